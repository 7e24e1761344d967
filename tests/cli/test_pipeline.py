"""What is chosen where the user says nothing, and what an interrupt does to the choice."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from invreg.algorithms import FISTA
from invreg.cli import weights
from invreg.cli.mri import MRI
from invreg.cli.pipeline import scan_prior
from invreg.io import Image, KSpace, read, write
from invreg.metrics import psnr


def test_without_a_prior_few_iterations_keep_the_noise_out(invoke, tmp_path: Path) -> None:
    small = ("--matrix", 64, "--coils", 4, "--calibration", 16, "--acceleration", 4, "--sigma", 0.05)
    assert invoke("simulate", tmp_path / "mri.npz", "--truth", tmp_path / "truth.npz", *small).code == 0
    truth, quality = read(tmp_path / "truth.npz").data, {}
    for name, words in {"usual": (), "cg": ("--algorithm", "cg"), "many": ("--iterations", 100)}.items():
        prior = () if name == "cg" else ("--prior", "none")
        outcome = invoke("reconstruct", tmp_path / "mri.npz", "-o", tmp_path / f"{name}.npz", "--json", *prior, *words)
        assert outcome.code == 0, outcome.err
        assert "ConjugateGradient" in outcome.json["plan"]["algorithm"]
        quality[name] = float(psnr(read(tmp_path / f"{name}.npz").data, truth))
    assert quality["usual"] == quality["cg"]
    assert quality["usual"] > quality["many"] + 1


@pytest.mark.slow
def test_a_noisy_sinogram_without_a_prior_is_stopped_early(invoke, tmp_path: Path) -> None:
    words = ("--what", "ct", "--views", 30, "--photons", 2000)
    assert invoke("simulate", tmp_path / "ct.npz", "--truth", tmp_path / "truth.npz", *words).code == 0
    truth, error = read(tmp_path / "truth.npz").data, []
    for name, flags in {"usual": (), "many": ("--iterations", 100)}.items():
        output = tmp_path / f"{name}.npz"
        outcome = invoke("reconstruct", tmp_path / "ct.npz", "-o", output, "--prior", "none", "--json", *flags)
        assert outcome.code == 0, outcome.err
        assert f"iterations={100 if flags else 20}" in outcome.json["plan"]["algorithm"]
        error.append(float((read(output).data - truth).norm()))
    assert error[0] < 0.7 * error[1]


def test_an_interrupted_search_for_the_weight_writes_nothing(
    invoke, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = FISTA.step, []

    def interrupted(*words: Any) -> Any:
        calls.append(None)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return step(*words)

    monkeypatch.setattr(FISTA, "step", interrupted)
    words = ("--weight", "auto", "--iterations", 5, "--prior", "tv", "--json")
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "x.npz", *words)
    assert outcome.code == 1
    assert outcome.json == {"error": "interrupted; nothing was written", "exit code": 1}
    assert list(tmp_path.iterdir()) == []
    assert len(calls) == 12


def test_the_seed_reaches_the_rule(invoke, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    choose = weights.choose_weight

    def watched(problem: Any, make: Any, algorithm: Any, rule: Any, **more: Any) -> Any:
        seen.append(rule)
        return choose(problem, make, algorithm, rule, **more)

    monkeypatch.setattr(weights, "choose_weight", watched)
    words = ("--weight", "auto", "--iterations", 2, "--seed", 7)
    for rule in ("sure", "gcv", "lcurve"):
        outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / f"{rule}.npz", "--rule", rule, *words)
        assert outcome.code == 0, outcome.err
    assert [getattr(rule, "seed", None) for rule in seen] == [7, 7, None]


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        ("[2,2,2]", "factor must be one number or 2, one for each image axis, got (2, 2, 2)"),
        ("2.5", "factor must be an int, got float"),
        ("0", "factor must be >= 1, got 0"),
    ],
)
def test_factors_that_do_not_fit_are_refused(factor: str, message: str, invoke, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(16, 16)))
    words = ("-o", tmp_path / "x.npz", "--operator", f"downsample:factor={factor}")
    outcome = invoke("reconstruct", tmp_path / "a.npy", *words)
    assert outcome.code == 2
    assert message in outcome.err


def test_priors_go_to_the_device_of_the_scan(scans: Path) -> None:
    record = read(scans / "mri.npz")
    assert isinstance(record, KSpace)
    scan = MRI(record, None, None, torch.device("cpu"))
    scan.device = torch.device("meta")  # no data, but every machine has it
    places = {buffer.device.type for buffer in scan_prior("wavelet", 0.1, scan).buffers()}
    assert places == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("mri.npz", ()),
        ("mri.npz", ("--prior", "tv", "--weight", "auto")),
        ("mri.npz", ("--operator", "soft-sense")),
        ("ct.npz", ()),
        ("image.npz", ("--prior", "wavelet")),
        ("image.npz", ("--operator", "blur:sigma=1", "--prior", "tgv")),
    ],
)
def test_every_kind_of_scan_gives_the_same_image_on_the_gpu(
    source: str, words: tuple[str, ...], invoke, scans: Path, tmp_path: Path
) -> None:
    file = scans / source
    if source == "image.npz":
        file = tmp_path / source
        truth = read(scans / "truth.npz")
        noise = torch.randn(truth.data.shape, generator=torch.Generator().manual_seed(0))
        write(file, Image(truth.data.abs() + 0.05 * noise))
    images = []
    for device in ("cpu", "cuda"):
        output = tmp_path / f"{device}.npz"
        flags = ("--device", device, "--iterations", 20, *words)
        outcome = invoke("reconstruct", file, "-o", output, *flags)
        assert outcome.code == 0, outcome.err
        images.append(read(output).data)
    assert float((images[0] - images[1]).abs().max()) < 1e-2 * float(images[0].abs().max())
