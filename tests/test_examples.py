"""Every example runs, and shows what it says it shows."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import pytest

from invreg.metrics import psnr

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def load(name: str) -> ModuleType:
    path = next(p for p in EXAMPLES if p.stem == name)
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested_and_short() -> None:
    tested = {
        "mri_sense",
        "ct_low_dose",
        "choose_weight",
        "own_operator",
        "deepinv_denoiser",
        "assimilation",
        "ernode_digits",
    }
    assert {p.stem for p in EXAMPLES} == tested
    assert all(len(p.read_text().splitlines()) < 80 for p in EXAMPLES)


def test_mri_example_improves_from_method_to_method() -> None:
    scores = load("mri_sense").main(quick=True)
    assert scores["zero-filling"] < scores["CG-SENSE"] < scores["TV"]


def test_ct_example_beats_filtered_backprojection() -> None:
    scores = load("ct_low_dose").main(quick=True)
    assert scores["TV"] > scores["FBP"] + 2


def test_chosen_weights_come_near_the_best_in_hindsight() -> None:
    scores = load("choose_weight").main(quick=True)
    assert scores["SURE"] > scores["hindsight"] - 0.5
    assert scores["GCV"] > scores["hindsight"] - 1.0
    assert scores["Discrepancy"] > scores["hindsight"] - 1.5


def test_own_operator_is_adjoint_and_inverted() -> None:
    scores = load("own_operator").main(quick=True)
    assert scores["adjoint gap"] < 1e-6
    assert scores["TV"] > scores["measured"] + 3


def test_denoiser_of_deepinv_deblurs() -> None:
    scores = load("deepinv_denoiser").main(quick=True)
    if not scores:
        pytest.skip("deepinv is not installed")
    assert scores["plug-and-play"] > scores["measured"]


def test_the_code_in_the_readme_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    names: dict[str, object] = {}
    exec(compile(blocks[0], "README.md", "exec"), {})
    exec(compile(blocks[1], "README.md", "exec"), names)
    assert float(psnr(names["result"].x, names["scan"].truth)) > 37  # type: ignore[attr-defined]
    assert (tmp_path / "result.png").stat().st_size > 0


def test_an_initial_state_is_recovered() -> None:
    assert load("assimilation").main(quick=True) < 0.02


def test_the_digits_example_runs() -> None:
    means = load("ernode_digits").main(quick=True)
    assert means["vanilla"][0] > 0.8
    assert means["ERNODE"][1] <= means["vanilla"][1]  # two epochs do not show the effect


@pytest.mark.slow(seconds=170)
def test_the_error_penalty_makes_the_digits_easier_to_solve() -> None:
    means = load("ernode_digits").main()
    assert means["ERNODE"][1] <= 0.9 * means["vanilla"][1]
    assert means["ERNODE"][0] >= means["vanilla"][0] - 0.01
