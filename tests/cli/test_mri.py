"""K-space as problems to solve: several map sets, options of the maps."""

from pathlib import Path

import pytest
import torch

from invreg.io import KSpace, read, write


@pytest.mark.parametrize("prior", ["wavelet", "tv", pytest.param("tgv", marks=pytest.mark.slow)])
def test_map_sets_are_channels_and_no_third_axis(prior: str, invoke, scans: Path, tmp_path: Path) -> None:
    images = []
    for text in (prior, f"{prior}:channel_dim=1"):
        words = ("--operator", "soft-sense", "--prior", text, "--weight", 0.01, "--iterations", 1, "--force")
        outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "x.npz", *words)
        assert outcome.code == 0, outcome.err
        images.append(read(tmp_path / "x.npz").data)
    assert images[0].shape == (1, 64, 64)
    assert torch.equal(*images)


def test_soft_sense_comes_close_to_sense(invoke, scans: Path, tmp_path: Path) -> None:
    images = []
    for name in ("sense", "soft-sense"):
        words = ("reconstruct", scans / "mri.npz", "-o", tmp_path / f"{name}.npz", "--operator", name)
        assert invoke(*words, "--iterations", 30).code == 0
        images.append(read(tmp_path / f"{name}.npz").data.abs())
    assert float((images[0] - images[1]).norm() / images[0].norm()) < 0.1


def test_a_scan_of_few_calibration_lines_is_reconstructed_whole(invoke, tmp_path: Path) -> None:
    scan, truth = tmp_path / "scan.npz", tmp_path / "truth.npz"
    words = ("--matrix", 96, "--coils", 6, "--acceleration", 6, "--calibration", 8)
    assert invoke("simulate", scan, "--truth", truth, *words).code == 0
    true = read(truth).data.abs()
    seen = []
    for more in ((), ("--operator", "sense:kernel=6")):
        outcome = invoke("reconstruct", scan, "-o", tmp_path / "x.npz", "--iterations", 2, "--force", *more)
        assert outcome.code == 0, outcome.err
        seen.append(float((read(tmp_path / "x.npz").data != 0)[true > 0.1 * true.max()].double().mean()))
        assert ("WARNING: they reach" in outcome.err) == bool(more)
        assert "{" not in outcome.err.split("prior:")[0]
    assert seen[0] > 0.98
    assert seen[1] < 0.7
    assert "kernel 6; WARNING" in outcome.err.replace("\n", " ")
    assert "give --maps, more calibration lines" in outcome.err


def test_options_that_would_do_nothing_are_refused(invoke, scans: Path, tmp_path: Path) -> None:
    maps = torch.ones(1, 4, 64, 64, dtype=torch.complex64) / 2
    write(tmp_path / "maps.cfl", KSpace(maps))
    write(tmp_path / "one.npz", KSpace(torch.ones(1, 1, 16, 16, dtype=torch.complex64)))
    scan = scans / "mri.npz"
    for source, words, message in (
        (scan, ("--operator", "sense:kernel=5", "--maps", tmp_path / "maps.cfl"), "but the maps are given"),
        (tmp_path / "one.npz", ("--operator", "fourier:kernel=5"), "fourier takes no options, got kernel"),
        (scan, ("--size", 32), "--size goes with a sinogram"),
        (scan, ("--pixel-size", 1.0), "--pixel-size goes with a sinogram"),
        (scan, ("--mu-water", 0.02), "--mu-water goes with a sinogram"),
        (scans / "truth.npz", ("--centre", 3), "--centre goes with a sinogram"),
    ):
        outcome = invoke("reconstruct", source, "-o", tmp_path / "x.npz", *words)
        assert outcome.code == 2
        assert message in outcome.err
    assert not (tmp_path / "x.npz").exists()
