"""NIfTI files written by nibabel."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from invreg.io import Image, KSpace, read, write

# oblique, with mirrored x: columns are the steps of i, j, k
AFFINE = np.array([[-1.0, 0.2, 0, 10], [0.1, 2.0, -0.3, -20], [0, 0.3, 3.0, 5], [0, 0, 0, 1]])
VOXEL = tuple(np.linalg.norm(AFFINE[:3, :3], axis=0)[::-1].tolist())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_voxel_keeps_its_point_in_the_world(tmp_path: Path, suffix: str, kind: type) -> None:
    array = np.zeros((4, 5, 6), np.float32)
    array[1, 2, 3] = 7
    path = tmp_path / f"image{suffix}"
    nibabel.save(kind(array, AFFINE), path)
    record = read(path)
    assert isinstance(record, Image)
    assert record.data.shape == (1, 6, 5, 4)
    assert record.data[0, 3, 2, 1] == 7  # z, y, x
    assert record.affine is not None
    assert record.voxel_size == pytest.approx(VOXEL)
    z, y, x = torch.nonzero(record.data[0])[0].tolist()
    point = record.affine @ torch.tensor([x, y, z, 1.0], dtype=torch.float64)
    assert point.tolist() == pytest.approx((AFFINE @ [1, 2, 3, 1]).tolist(), abs=1e-5)


def test_steps_come_from_the_affine_and_not_from_other_zooms_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6), np.float32), np.diag([1.5, 2.0, 3.0, 1.0])), path)
    content = bytearray(path.read_bytes())
    content[80:92] = np.ones(3, "<f4").tobytes()  # pixdim[1:4]
    path.write_bytes(content)
    assert nibabel.load(path).header.get_zooms() == (1.0, 1.0, 1.0)
    record = read(path)
    assert isinstance(record, Image)
    assert record.voxel_size == pytest.approx((3.0, 2.0, 1.5))
    assert record.affine is not None
    assert torch.equal(record.affine, torch.diag(torch.tensor([1.5, 2.0, 3.0, 1.0], dtype=torch.float64)))


def test_what_we_write_nibabel_reads_at_the_right_place(tmp_path: Path) -> None:
    data = torch.zeros(1, 6, 5, 4)
    data[0, 3, 2, 1] = 7
    path = tmp_path / "image.nii.gz"
    write(path, Image(data, "HU", VOXEL, torch.from_numpy(AFFINE), meta={"kvp": 120}))
    image = nibabel.load(path)
    index = np.argwhere(np.asarray(image.dataobj) == 7)[0]
    assert index.tolist() == [1, 2, 3]
    assert np.allclose(image.affine, AFFINE, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    back = read(path)
    assert isinstance(back, Image)
    assert (back.units, back.meta) == ("HU", {"kvp": 120})
    assert torch.equal(back.data, data)


@pytest.mark.parametrize(("shape", "slices"), [((3, 5, 4), 1), ((6, 5, 4), 3), ((6, 5, 4), 6), ((2, 1, 5, 4), 1)])
def test_a_record_comes_back_with_its_shape(tmp_path: Path, shape: tuple[int, ...], slices: int) -> None:
    data = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    voxel = (3.0, 2.0, 1.0)[-(data.ndim - 1) :]
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    for image in (Image(data, voxel_size=voxel, affine=affine, slices=slices), Image(data, slices=slices)):
        write(tmp_path / "x.nii", image, overwrite=True)
        back = read(tmp_path / "x.nii")
        assert isinstance(back, Image)
        assert torch.equal(back.data, data)
        assert (back.slices, back.voxel_size) == (slices, image.voxel_size)
        assert (back.affine is None) == (image.affine is None)


def test_a_stack_of_slices_is_a_volume_to_others(tmp_path: Path) -> None:
    write(tmp_path / "x.nii", Image(torch.rand(3, 5, 4), slices=3))
    assert nibabel.load(tmp_path / "x.nii").shape == (4, 5, 3)


def test_slices_without_an_affine_lie_their_thickness_apart(tmp_path: Path) -> None:
    for meta, step in (({"slice_thickness": 5.0}, 5.0), ({"slice_thickness": "thin"}, 1.0), ({}, 1.0)):
        image = Image(torch.rand(3, 5, 4), voxel_size=(0.5, 0.25), slices=3, meta=meta)
        write(tmp_path / "x.nii", image, overwrite=True)
        assert nibabel.load(tmp_path / "x.nii").header.get_zooms() == (0.25, 0.5, step)
        assert read(tmp_path / "x.nii").voxel_size == (0.5, 0.25)  # type: ignore[union-attr]


def test_scaled_integers_big_endian_files_and_metres_are_understood(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    image = nibabel.Nifti1Image(
        np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([0.001, 0.002, 0.003, 1]), header
    )
    image.header.set_slope_inter(2.0, -5.0)
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "x.nii")
    record = read(tmp_path / "x.nii")
    assert isinstance(record, Image)
    assert record.data.dtype == torch.float32
    stored = np.asarray(nibabel.load(tmp_path / "x.nii").dataobj)
    assert np.allclose(record.data[0].numpy(), stored.transpose(2, 1, 0))
    assert record.voxel_size == pytest.approx((3, 2, 1))
    assert record.affine is not None
    assert record.affine.diagonal().tolist() == pytest.approx([1, 2, 3, 1])


def test_one_plane_is_a_2d_image_and_a_fourth_axis_the_batch(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5), np.uint8), None), tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 1, 7), np.uint8), None), tmp_path / "b.nii")
    one, many = read(tmp_path / "a.nii"), read(tmp_path / "b.nii")
    assert one.data.shape == (1, 5, 4)
    assert many.data.shape == (7, 5, 4)
    assert isinstance(one, Image)
    assert one.affine is None


def test_a_wrong_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:900])
    with pytest.raises(ValueError, match="declares 2048 bytes of data but holds 900"):
        read(path)
    huge = bytearray(whole)
    huge[42:48] = np.array([32767, 32767, 32767], "<i2").tobytes()
    path.write_bytes(huge)
    with pytest.raises(ValueError, match="declares"):
        read(path)
    path.with_suffix(".nii.gz").write_bytes(gzip.compress(bytes(huge)))
    with pytest.raises(ValueError, match="declares"):
        read(path.with_suffix(".nii.gz"))
    colour = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colour, np.eye(4)), path)
    with pytest.raises(ValueError, match="array of numbers"):
        read(path)
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 2, 2, 3), np.float32), np.eye(4)), path)
    with pytest.raises(ValueError, match=r"wanted \(x, y"):
        read(path)
    nibabel.save(nibabel.Nifti1Image(np.full((2, 2, 2), np.inf, np.float32), np.eye(4)), path)
    with pytest.raises(ValueError, match="finite"):
        read(path)


def test_complex_images_are_written_only_as_magnitude(tmp_path: Path) -> None:
    image = Image(torch.full((1, 3, 4), 3 + 4j))
    with pytest.raises(TypeError, match=r"use image\.abs\(\)"):
        write(tmp_path / "x.nii", image)
    write(tmp_path / "x.nii", image.abs())
    assert torch.equal(read(tmp_path / "x.nii").data, torch.full((1, 3, 4), 5.0))
    with pytest.raises(TypeError, match="KSpace"):
        write(tmp_path / "y.nii", KSpace(torch.ones(1, 1, 3, 4, dtype=torch.complex64)))
