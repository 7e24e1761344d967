"""Images of files and folders."""

from pathlib import Path

import numpy as np
import pytest
import torch

from invreg import io
from invreg.training.image_files import images


def test_files_of_any_kind_and_folders_become_slices_of_about_one(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path / "scans"
    (folder / "series").mkdir(parents=True)
    np.save(folder / "a.npy", 40 * np.random.default_rng(0).random((2, 20, 24)))
    io.write(folder / "b.nii.gz", io.Image(torch.rand(1, 3, 20, 20, generator=generator), voxel_size=(1, 1, 1)))
    stack = 300 * torch.rand(2, 16, 16, generator=generator)
    made = io.Image(stack, voxel_size=(1, 1), affine=torch.eye(4).double(), slices=2)
    io.write(folder / "series" / "c", made)
    (folder / "notes.txt").write_text("not an image")
    found = images(str(folder), size=16)
    assert found.files == (0, 0, 1, 1, 1, 2, 2)
    assert [tuple(one.shape) for one in found.images] == [(20, 24)] * 2 + [(20, 20)] * 3 + [(16, 16)] * 2
    assert all(0.9 < float(one.max()) < 1.1 for one in found.images)
    assert found.info["images"] == 7
    assert len(found.info["source"]) == 3


def test_units_of_ones_own_and_magnitudes_and_channels(tmp_path: Path) -> None:
    path = tmp_path / "ct.npy"
    np.save(path, np.full((1, 8, 8), 500.0))
    assert float(images(str(path), size=8, scale=1000.0, offset=-1000.0).images[0][0, 0]) == 1.5
    np.save(path, np.full((2, 3, 8, 8), 3 + 4j))
    found = images([str(path)], size=8, magnitude=True, scale=1.0)
    assert (len(found), float(found.images[0].max()), found.images[0].dtype) == (6, 5.0, torch.float32)
    assert images(str(path), size=8, channels=True).images[0].shape == (3, 8, 8)
    np.save(path, np.zeros((8, 8)))
    with pytest.raises(ValueError, match=r"ct.npy: wanted an image, got hardly a value but 0.0"):
        images(str(path), size=8)


def test_files_that_are_held_out_by_name_are_not_trained_on(tmp_path: Path) -> None:
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).random((3, 20, 20)))
    found = images(str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), size=16)
    kept, held_out = found.split(0.0, seed=0)
    assert held_out is not None
    assert (len(kept), len(held_out)) == (3, 12)
    with pytest.raises(ValueError, match="one of held_out and a fraction to hold out must be given, got both"):
        found.split(0.5, seed=0)
    with pytest.raises(ValueError, match=r"a.npy must be in one of files and held_out, got it in both"):
        images(str(tmp_path), [str(tmp_path / "a.npy")])


def test_files_that_cannot_be_trained_on_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none: no such file or folder; check the path"):
        images(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="wanted images in this folder, got none of a known kind"):
        images(str(tmp_path))
    data = torch.randn(1, 2, 8, 8, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    io.write(tmp_path / "k.npz", io.KSpace(data))
    with pytest.raises(TypeError, match=r"k.npz: wanted images, got KSpace; reconstruct it"):
        images(str(tmp_path / "k.npz"))
    with pytest.raises(ValueError, match="scale must be finite and > 0, got 0"):
        images(str(tmp_path), scale=0)


def test_a_file_without_a_suffix_is_left_alone_unless_it_is_dicom(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((2, 16, 16)))
    (tmp_path / "LICENSE").write_text("do what you like" * 20)
    assert images(str(tmp_path), size=16).info["source"] == [str(tmp_path / "a.npy")]
    io.write(tmp_path / "b.dcm", io.Image(torch.rand(1, 16, 16), voxel_size=(1, 1)))
    (tmp_path / "b.dcm").rename(tmp_path / "b")  # as scanners name them
    assert images(str(tmp_path), size=16).files == (0, 0, 1)


def test_images_that_do_not_fit_are_named_by_their_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 16, 16)))
    for content, said in (
        (np.ones((3, 12, 16)), r"b.npy, image 0 must have 16 pixels along both axes, got \(12, 16\)"),
        (
            np.ones((3, 16, 16), complex),
            r"images must be of one dtype, got torch.float32, and torch.complex64 in .*b.npy",
        ),
    ):
        np.save(tmp_path / "b.npy", content)
        with pytest.raises((TypeError, ValueError), match=said):
            images(str(tmp_path), size=16)


def test_pixel_sizes_and_units_of_the_files_are_kept(tmp_path: Path) -> None:
    for name, size in (("a", 0.5), ("b", 0.9)):
        image = io.Image(torch.rand(1, 16, 16), voxel_size=(size, 1.2 * size), units="HU")
        io.write(tmp_path / f"{name}.npz", image)
    info = images(str(tmp_path), size=16, scale=1000.0, offset=-1000.0, zoom=0.25).info
    assert info["pixel size (mm)"] == [0.4, 1.35]  # the zoom is of either sign
    assert info["units"] == "HU"
    np.save(tmp_path / "c.npy", np.ones((16, 16)))
    assert not {"pixel size (mm)", "units"} & images(str(tmp_path), size=16).info.keys()
