"""Finished slices beside the output."""

from pathlib import Path

import pytest
import torch

from invreg.algorithms.reconstruction import History, Reconstruction, Status
from invreg.cli.finished import Finished
from invreg.cli.workfolder import WorkFolder, digest, key_of


def done(value: float, spread: bool = False) -> Finished:
    none = torch.zeros(0, 1)
    x = torch.full((1, 2, 2), value, dtype=torch.complex64)
    result = Reconstruction(
        x, History(none, torch.zeros(0, dtype=torch.int64), none, none), (Status.CONVERGED,), {}, 0.0, torch.ones(1)
    )
    return Finished(result, x.abs() / 2 if spread else None, {"trust": {"reasons": ["too good"]}} if spread else {})


def test_slices_are_kept_for_the_same_key_only(tmp_path: Path) -> None:
    output = tmp_path / "image.nii.gz"
    folder = WorkFolder(output, "a")
    assert folder.load(0) is None
    folder.store(0, done(3))
    found = WorkFolder(output, "a").load(0)
    assert found is not None
    assert torch.equal(found.result.x, done(3).result.x)
    assert WorkFolder(output, "b").load(0) is None
    assert WorkFolder(output, "a").load(0) is None


def test_spread_and_remarks_of_a_slice_are_kept_with_it(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path / "x.npz", "a")
    folder.store(0, done(2, spread=True))
    folder.store(1, done(2))
    found, plain = folder.load(0), folder.load(1)
    assert found is not None and found.std is not None
    assert torch.equal(found.std, torch.ones(1, 2, 2))
    assert found.reasons == ("too good",)
    assert plain is not None and plain.std is None and plain.reasons == ()
    next(folder.path.glob("about_00000*")).write_bytes(b"{")
    assert folder.load(0) is None
    next(folder.path.glob("about_00001*")).unlink()
    assert folder.load(1) is None


def test_damaged_slices_are_done_again(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path / "x.npz", "a")
    folder.store(0, done(1))
    file = next(folder.path.glob("slice_*"))
    file.write_bytes(file.read_bytes()[:40])
    assert folder.load(0) is None


def test_only_an_empty_folder_is_removed_where_slices_may_be_of_use(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path / "x.npz", "a")
    folder.store(0, done(1))
    folder.remove_if_empty()
    assert folder.path.exists()
    folder.remove()
    assert not folder.path.exists()
    other = WorkFolder(tmp_path / "y.npz", "a")
    other.remove_if_empty()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / ".x.npz.invreg"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="was not made by invreg"):
        WorkFolder(tmp_path / "x.npz", "a")
    assert (theirs / "thesis.txt").exists()


def test_fingerprints_follow_content_and_settings(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"1")
    first = digest(tmp_path / "a.npz")
    assert first == digest(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"2")
    assert digest(tmp_path / "a.npz") != first
    (tmp_path / "s.cfl").write_bytes(b"data")
    (tmp_path / "s.hdr").write_bytes(b"1 2")
    pair = digest(tmp_path / "s.cfl")
    assert pair == digest(tmp_path / "s.hdr") == digest(tmp_path / "s")
    (tmp_path / "s.hdr").write_bytes(b"2 1")
    assert digest(tmp_path / "s.cfl") != pair
    assert digest(tmp_path) != digest(tmp_path / "a.npz")
    assert key_of({"a": 1, "b": None}) == key_of({"b": None, "a": 1}) != key_of({"a": 2, "b": None})
