"""The images that ship: there, small, in range, with their notice."""

from importlib.resources import files

import pytest
import torch

from invreg.assets import BRAIN_SLICES, HEAD_SLICES, Slice, brain_slice, head_slice

ALL = [("head", head_slice, k) for k in range(HEAD_SLICES)] + [("brain", brain_slice, k) for k in range(BRAIN_SLICES)]


@pytest.mark.parametrize(("which", "read", "index"), ALL)
def test_slices_are_images_of_a_head_in_unit_range(which: str, read: object, index: int) -> None:
    slice_ = read(index)  # type: ignore[operator]
    assert isinstance(slice_, Slice)
    assert slice_.image.dtype == torch.float32
    assert float(slice_.image.min()) == 0
    assert float(slice_.image.max()) == 1
    assert 0.3 < float((slice_.image > 0.05).float().mean()) < 0.95
    assert slice_.voxel_size == ((1.0, 1.0) if which == "head" else (0.5, 0.5))
    assert all(140 < side < 220 for side in slice_.field_of_view)
    assert slice_.plane in {"axial", "coronal", "sagittal"}


def test_first_slices_are_axial_at_eight_millimetres_and_upright() -> None:
    for slice_ in (head_slice(), brain_slice()):
        assert (slice_.plane, slice_.position) == ("axial", 8.0)
        assert slice_.image.shape[-2] > slice_.image.shape[-1]  # a head is longer than wide


def test_changing_a_slice_does_not_change_the_next_reading() -> None:
    first = head_slice()
    first.image.zero_()
    assert float(head_slice().image.max()) == 1


@pytest.mark.parametrize("index", [-1, 6, True, "0", 1.0])
def test_unknown_slice_is_refused(index: object) -> None:
    with pytest.raises(ValueError, match="index of a head slice must be an int from 0 to 5"):
        head_slice(index)  # type: ignore[arg-type]


def test_files_are_small_and_carry_the_notice() -> None:
    folder = files("invreg.assets")
    sizes = [len(item.read_bytes()) for item in folder.iterdir() if item.name.endswith(".npz")]
    assert len(sizes) == 2
    assert sum(sizes) < 400_000
    notice = " ".join((folder / "NOTICE.md").read_text(encoding="utf-8").replace("\n> ", " ").split())
    assert "Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre" in notice
    assert "provided that the above copyright notice appear in all copies" in notice
    assert "No network in this package is trained on this brain" in notice
