"""Where results may go, asked before the work."""

from pathlib import Path

import pytest

from invreg.cli import simulated
from invreg.cli.outputs import require_apart, require_free, require_writable


def test_both_files_of_a_pair_are_asked_for_before_the_work(invoke, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "img.hdr").write_text("mine")
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "img.cfl")
    assert outcome.code == 2
    assert f"{tmp_path / 'img.hdr'}: exists already; choose another name or pass --force" in outcome.err
    assert "noise level" not in outcome.err  # the scan was not even read
    assert [path.name for path in tmp_path.iterdir()] == ["img.hdr"]


@pytest.mark.parametrize(
    ("scan", "truth", "message"),
    [
        ("scan.npz", "t.bmp", "cannot be written as an image"),
        ("scan.tif", "t.npz", "cannot be written as k-space"),
        ("scan.npz", "scan.npz", "must be different files"),
        ("scan.cfl", "scan.hdr", "must be different files"),
        ("scan.npz", "old.npz", "exists already; choose another name or pass --force"),
        ("scan.npz", "no/t.npz", "does not exist; make it first"),
    ],
)
def test_simulate_refuses_impossible_names_before_it_simulates(
    scan: str, truth: str, message: str, invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old.npz").write_text("mine")
    monkeypatch.setattr(simulated, "simulated_mri", None)  # calling it would fail
    outcome = invoke("simulate", tmp_path / scan, "--truth", tmp_path / truth)
    assert outcome.code == 2
    assert message in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["old.npz"]


def test_simulate_writes_nothing_where_the_truth_does_not_fit_its_format(invoke, tmp_path: Path) -> None:
    words = ("--slices", 2, "--matrix", 32, "--coils", 2)
    outcome = invoke("simulate", tmp_path / "scan.npz", "--truth", tmp_path / "truth.dcm", *words)
    assert outcome.code == 2
    assert f"{tmp_path / 'truth.dcm'}: 2 slices need a directory" in outcome.err
    assert list(tmp_path.iterdir()) == []
    assert "cannot be written as a sinogram" in invoke("simulate", tmp_path / "ct.cfl", "--what", "ct").err


def test_a_name_without_suffix_is_a_series_of_images_only(tmp_path: Path) -> None:
    require_writable(tmp_path / "series", "Image")
    for kind, words in (("KSpace", "k-space"), ("Sinogram", "a sinogram")):
        with pytest.raises(ValueError, match=f"cannot be written as {words}"):
            require_writable(tmp_path / "series", kind)


def test_a_series_takes_a_free_or_an_empty_directory_only(tmp_path: Path) -> None:
    require_free(tmp_path / "new", False, series=True)
    (tmp_path / "empty").mkdir()
    require_free(tmp_path / "empty", False, series=True)
    with pytest.raises(IsADirectoryError):
        require_free(tmp_path / "empty", True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="which are not deleted"):
        require_free(tmp_path / "full", True, series=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="a series needs a directory"):
        require_free(tmp_path / "file", True, series=True)


def test_links_to_one_file_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("")
    (tmp_path / "b.npz").symlink_to(tmp_path / "a.npz")
    require_apart(tmp_path / "a.npz", tmp_path / "c.npz")
    with pytest.raises(ValueError, match="must be different files"):
        require_apart(tmp_path / "a.npz", tmp_path / "b.npz")
