"""The demos: what they show, say and write."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from invreg.algorithms import DDS, SIRT, ConjugateGradient
from invreg.algorithms.posterior import PosteriorRun
from invreg.cli import demo
from invreg.cli.figure import draw_comparison
from invreg.noise import Gaussian
from invreg.operators import Mask
from invreg.problem import Problem


@pytest.mark.slow(seconds=90)
def test_mri_demo_improves_from_method_to_method_and_draws(invoke, tmp_path: Path) -> None:
    figure = tmp_path / "demo.png"
    outcome = invoke("demo", "mri", "-o", figure, "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json
    assert "SIMULATED" in found["simulated"]
    assert "not by the reconstruction's operator" in found["simulated"]
    rows = {row["method"]: row for row in found["results"]}
    names = list(rows)
    assert names[0] == "zero-filling"
    for key, sign in (("PSNR (dB)", 1), ("SSIM", 1), ("NRMSE", -1)):
        scores = [sign * rows[name][key] for name in names[:4]]
        assert scores == sorted(scores), key
        assert sign * rows["DDS, mean of 4"][key] > sign * rows["DDS, a sample"][key], key
        assert sign * rows["DDS, mean of 4"][key] > scores[-1], key
        assert sign * rows["PnP, ADMM"][key] > scores[-1], key
    assert rows["TV, PDHG"]["PSNR (dB)"] > 35
    assert rows["RED-Diff"]["PSNR (dB)"] > 34
    assert figure.read_bytes().startswith(b"\x89PNG")
    refused = invoke("demo", "mri", "-o", figure)
    assert refused.code == 2
    assert "pass --force" in refused.err


@pytest.mark.slow(seconds=60)
def test_ct_demo_improves_with_what_is_believed(invoke, tmp_path: Path) -> None:
    figure = tmp_path / "demo.png"
    outcome = invoke("demo", "ct", "-o", figure, "--json")
    assert outcome.code == 0, outcome.err
    rows = {row["method"].removeprefix("DDS, ").split(",")[0]: row for row in outcome.json["results"]}
    assert list(rows) == ["FBP", "SIRT", "CGLS", "TV", "a sample", "mean of 2"]
    assert rows["TV"]["RMSE (HU)"] < 0.75 * min(rows[name]["RMSE (HU)"] for name in ("FBP", "SIRT", "CGLS"))
    assert rows["TV"]["SSIM"] > max(rows[name]["SSIM"] for name in ("FBP", "SIRT", "CGLS")) + 0.05
    assert rows["mean of 2"]["PSNR (dB)"] > rows["a sample"]["PSNR (dB)"]
    assert rows["mean of 2"]["PSNR (dB)"] > rows["TV"]["PSNR (dB)"]
    assert rows["mean of 2"]["SSIM"] > rows["TV"]["SSIM"]
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_seconds_of_a_mean_are_those_of_all_its_draws(
    invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, solved = [0.0], PosteriorRun.__next__

    def slow(run: PosteriorRun) -> object:
        clock[0] += 10
        return solved(run)

    def small(device: torch.device, seed: int, console: Console) -> demo.Comparison:
        problem = Problem(Mask(torch.ones(16, 16, dtype=torch.bool)), torch.ones(1, 16, 16), Gaussian(0.1))
        rows = demo._learned("head-ct", problem, seed, lambda x: x, console, DDS(iterations=1), 4)
        return demo.Comparison("small", problem.y, rows, lambda x: {"mean": float(x.mean())}, (0, 1), 1.0, "")

    monkeypatch.setattr(PosteriorRun, "__next__", slow)
    monkeypatch.setattr(demo, "_ct", small)
    monkeypatch.setattr(demo, "draw_comparison", lambda *_: None)
    monkeypatch.setattr(demo, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    outcome = invoke("demo", "ct", "-o", tmp_path / "demo.png", "--json")
    assert outcome.code == 0, outcome.err
    seconds = {row["method"]: row["seconds"] for row in outcome.json["results"]}
    assert seconds == {"DDS, a sample": 10, "DDS, mean of 4": 40}
    assert outcome.json["seconds"] == 40


@pytest.mark.parametrize(("what", "algorithm"), [("mri", ConjugateGradient), ("ct", SIRT)])
def test_an_interrupted_demo_draws_nothing(
    what: str, algorithm: type, invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(algorithm, "step", interrupted)
    outcome = invoke("demo", what, "-o", tmp_path / "demo.png")
    assert outcome.code == 1
    assert "error: interrupted; nothing was written" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_figure_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    image = torch.rand(8, 8)
    path = tmp_path / "a.png"
    for count in (1, 2, 5, 8):  # from six on in two rows
        images = [(f"image {k}", image + 0.1 * k) for k in range(count)]
        draw_comparison(path, "title", image, images, (0, 1), 0.1, "unit")
        assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileNotFoundError):
        draw_comparison(tmp_path / "no" / "a.png", "title", image, [("one", image)], (0, 1), 0.1, "unit")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_demo_refuses_what_it_does_not_know_before_it_works(invoke, tmp_path: Path) -> None:
    assert "demo must be mri or ct" in invoke("demo", "pet").err
    assert "does not exist" in invoke("demo", "mri", "-o", tmp_path / "no" / "a.png").err
    assert "device must be auto, cpu or cuda" in invoke("demo", "mri", "-o", tmp_path / "a.png", "--device", "x").err
