"""Every example runs, and shows what it says it shows."""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from invreg.algorithms import judge
from invreg.assets import brain_slice
from invreg.config import from_pretrained
from invreg.interfaces import Denoiser
from invreg.metrics import psnr
from invreg.models import ConvexCNN
from invreg.noise import Gaussian
from invreg.operators import Mask
from invreg.problem import Problem
from invreg.training.random_ct import computed_tomography

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def load(name: str) -> ModuleType:
    path = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))  # as for a script, whose siblings it may import
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
        "spiral_ode",
        "spiral_sde",
        "latent_ode",
        "cnf_mixture",
        "lorenz63",
        "mri_dds",
    }
    assert {p.stem for p in EXAMPLES} == tested
    assert all(len(p.read_text().splitlines()) < 80 for p in EXAMPLES)


def test_mri_example_improves_from_method_to_method() -> None:
    scores = load("mri_sense").main(quick=True)
    assert scores["zero-filling"] < scores["CG-SENSE"] < scores["TV"]


def test_a_learned_prior_beats_total_variation_on_an_unseen_brain() -> None:
    scores = load("mri_dds").main(quick=True)
    assert scores["DDS, mean"] > scores["DDS"] > scores["TV"]


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


@pytest.mark.slow(seconds=60)
def test_the_error_penalty_makes_the_digits_easier_to_solve() -> None:
    means = load("ernode_digits").main(seeds=1)
    assert means["ERNODE"][1] <= 0.9 * means["vanilla"][1]
    assert means["ERNODE"][0] >= means["vanilla"][0] - 0.02  # one seed: 360 images tell two accuracies to 0.012 apart


def test_a_spiral_is_learned_from_pieces() -> None:
    errors = load("spiral_ode").main(quick=True)
    assert errors["learned"] < errors["standing"]


def test_a_stochastic_spiral_is_fitted_with_and_without_the_penalty() -> None:
    results = load("spiral_sde").main(quick=True)
    assert set(results) == {"vanilla", "ERNSDE"}
    assert all(0 < misfit < 10 and evaluations > 0 for misfit, evaluations in results.values())


def test_irregular_series_are_filled_in() -> None:
    errors = load("latent_ode").main(quick=True)
    assert errors["within"] < errors["within, mean"]


def test_a_flow_beats_a_gaussian_on_a_mixture() -> None:
    nats = load("cnf_mixture").main(quick=True)
    assert nats["mixture"] < nats["flow"] < nats["one Gaussian"]


@pytest.mark.parametrize("name", ["brain", "head_ct"])
def test_the_trainings_of_diffusion_priors_run(name: str, tmp_path: Path) -> None:
    loss = load(f"priors/{name}").main(quick=True, folder=tmp_path)
    assert 0 < loss < 5
    denoiser = from_pretrained(tmp_path / "model")
    assert isinstance(denoiser, Denoiser)
    assert denoiser.sigma_range[0] <= 0.003


def test_the_training_of_a_learned_proximal_network_runs_and_goes_on(tmp_path: Path) -> None:
    script = load("priors/lpn")
    found = script.main(quick=True, folder=tmp_path)
    assert set(found) == {"noisy", "TV", "LPN"}
    assert 19 < found["noisy"] < 21
    assert found["TV"] > found["noisy"] + 3
    assert isinstance(from_pretrained(tmp_path / "model"), ConvexCNN)
    assert script.main(quick=True, folder=tmp_path) == found  # all steps are done


def test_a_chaotic_system_is_predicted_for_a_while() -> None:
    assert load("lorenz63").main(quick=True)["predicted"] > 0.2


@pytest.mark.slow(seconds=60)
def test_a_latent_ode_predicts_what_comes() -> None:
    errors = load("latent_ode").main()
    assert errors["within"] < 0.2 * errors["within, mean"]
    assert errors["behind"] < 0.6 * errors["behind, mean"]


@pytest.mark.slow(seconds=60)
def test_a_flow_comes_near_a_mixture() -> None:
    nats = load("cnf_mixture").main()
    assert nats["flow"] < nats["mixture"] + 0.1


@pytest.mark.slow(seconds=60)
def test_the_attractor_of_a_chaotic_system_is_found() -> None:
    found = load("lorenz63").main()
    assert found["predicted"] > 1
    assert found["divergence"] < 3


def test_the_table_of_the_digits_is_filled_run_by_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = load("experiments/digits")
    out = tmp_path / "found.json"
    common = ["--epochs", "1", "--dtype", "float64", "--out", str(out)]
    first = digits.main([*common, "--seeds", "1", "--methods", "vanilla,local-biased"])
    again = digits.main([*common, "--seeds", "1", "--methods", "vanilla", "--weight", "ernode:error=2,0.2"])
    assert again == first
    both = digits.main([*common, "--seeds", "1", "--methods", "vanilla,ernode", "--weight", "ernode:error=2,0.2"])
    assert list(both["runs"])[:2] == list(first["runs"])
    assert list(tmp_path.iterdir()) == [out]
    shown = capsys.readouterr().out
    assert "| local-biased | local=1,0.1 | 1 |" in shown
    assert "| ernode | error=2,0.2 | 1 |" in shown
    with pytest.raises(SystemExit):
        digits.main([*common, "--methods", "vanila"])
    with pytest.raises(SystemExit):
        digits.main([*common, "--weight", "ernode:errors=1,1"])
    assert "known: taynode:taylor, rnode:kinetic" in capsys.readouterr().err


def test_every_method_of_the_digits_has_its_penalties() -> None:
    digits = load("experiments/digits")
    for weights in digits.WEIGHTS.values():
        made = {name: digits.regularizers_of(name, one, torch.Generator()) for name, one in weights.items()}
        assert {*made, "vanilla", "steer"} == set(digits.METHODS)
        assert all(set(made[name]) == set(one) for name, one in weights.items())


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("mixture", ["--epochs", "1"]),
        ("spirals", ["--kind", "ode", "--length", "1"]),
        ("spirals", ["--kind", "sde", "--length", "1"]),
    ],
)
def test_the_other_tables_are_filled_run_by_run(
    script: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load(f"experiments/{script}")
    common = ["--seeds", "1", "--out", str(tmp_path / "found.json"), *options]
    experiment.main(common)
    shown = capsys.readouterr().out
    assert re.search(r"\| vanilla \|  \| 1 \| .* \|\n\| ER \|", shown)
    experiment.main(common)
    again = capsys.readouterr().out
    assert again == shown[shown.index(again[:20]) :]  # nothing is run twice


@pytest.mark.slow(seconds=40)
def test_what_the_tables_of_learned_priors_compare_on_a_brain() -> None:
    script = load("experiments/priors_mri")
    head = brain_slice(0)
    source = avg_pool2d(head.image, 2), (1.0, 1.0)
    one = script.scanned(source, "x4 uniform", 0)
    assert int(one.problem.operator.sampled()[0, 0, :, 0].sum()) <= 32
    weights = {"TV": 20.0, "wavelet": 20.0, "LPN": 300.0}
    methods = script.methods(one.problem, weights, "brain")
    assert {"zero-filling", "wavelet", "TV", "LPN (ADMM)", "DDS", "DDS (mean of 8)", "DDS + TV"} < set(methods)
    tv = methods["TV"][1]()
    measured = load("experiments/compared").measured
    found = {name: measured(*methods[name], one, tv, 0) for name in ("zero-filling", "DDS", "DDS + TV")}
    assert found["zero-filling"]["PSNR"] + 4 < found["DDS"]["PSNR"]
    assert found["DDS"]["PSNR"] - 1.5 < found["DDS + TV"]["PSNR"]
    assert 0.8 < found["DDS"]["chi-square"] < 1.2
    assert 0 < found["DDS"]["apart"] < 0.3


@pytest.mark.slow(seconds=40)
def test_what_the_tables_of_learned_priors_compare_on_a_head() -> None:
    script = load("experiments/priors_ct")
    g = torch.Generator().manual_seed(0)
    drawn = computed_tomography(None, 2 * script.FINE, g)[None] * script.MU_WATER
    one = script.scanned(drawn, "48 views", 0)
    methods = script.methods(one.problem, {"TV": 8.0, "wavelet": 8.0}, "head-ct")
    tv = methods["TV"][1]()
    found = {name: load("experiments/compared").measured(*methods[name], one, tv, 0) for name in ("FBP", "TV", "DDS")}
    assert found["FBP"]["PSNR"] + 1 < min(found["TV"]["PSNR"], found["DDS"]["PSNR"])
    assert found["TV"]["apart"] == 0


@pytest.mark.slow(seconds=40)
def test_what_the_table_of_volumes_compares() -> None:
    script = load("experiments/priors_volume")
    plane = avg_pool2d(brain_slice(0).image, 2)[0]
    one = script.scanned(torch.stack([plane] * 4), "x4", 0)
    assert one.problem.y.shape == (1, 8, 4, script.SIDE, script.SIDE)
    methods = script.methods(one.problem, {"TV": 10.0, "between": 3.0})
    back, tv, dds = (methods[name][1]() for name in ("zero-filling", "TV", "DDS + TV between slices"))
    known = [float(psnr(x.abs(), one.truth)) for x in (back, tv, dds)]
    assert known[0] + 3 < known[1] < known[2]
    assert 0.8 < float(judge(one.problem, dds, tv).chi_square) < 1.2


@pytest.mark.slow(seconds=40)
def test_what_the_table_of_the_learned_proximal_network_compares() -> None:
    script = load("experiments/lpn_images")
    image = script.squared(avg_pool2d(brain_slice(0).image, 2))
    assert image.shape == (1, script.SIDE, script.SIDE)
    one = script.scanned(image, "blur", 0)
    restored = script.solve("LPN", 0.1, one.problem)
    assert psnr(restored, image) > psnr(one.problem.y, image) + 1.5


def test_a_study_tunes_its_weights_and_does_each_run_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load("experiments/compared")
    made: list[str] = []

    def scanned(truth: Tensor, task: str, seed: int) -> object:
        return script.Scanned(
            truth, Problem(Mask(torch.ones_like(truth[0], dtype=torch.bool)), truth + 1, Gaussian(1.0)), lambda x: x
        )

    def classical(kind: str, weight: float, problem: Problem) -> Tensor:
        made.append(kind)
        return problem.y - weight

    def methods(problem: Problem, weights: Mapping[str, float]) -> object:
        return {
            "none": (0, lambda: problem.y),
            "TV": (0, lambda: classical("image", weights["TV"], problem)),
            "network": (3, lambda: classical("image", 1.1, problem)),
        }

    truth = torch.linspace(0, 1, 256).reshape(1, 16, 16)
    study = script.Study(
        "what", {"a": truth, "b": truth**2}, lambda: [truth], lambda task: {"TV": (0.0, 0.8, 1.8)}, scanned, classical,
        methods,
    )  # fmt: skip
    for _ in range(2):
        script.compare(study, tmp_path / "found.json", ["one", "two"])
    found = json.loads((tmp_path / "found.json").read_text())["runs"]
    assert found["weight/TV/one"]["weight"] == 0.8
    assert made.count("image") == 2 * 2 * 2
    assert found["what/two/b/network"]["PSNR"] == pytest.approx(20, abs=1e-3)  # one tenth of the range of 1
    assert found["what/two/b/network"]["evaluations"] == 3
    _, second = capsys.readouterr().out.split("two, 2 slices:")[1:]
    assert "| TV | 13.98 +- 0.00 |  |  | " in second
    assert "| network | 20.00 +- 0.00 | +6.02 +- 0.00 | +6.02 | " in second
