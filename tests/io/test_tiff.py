"""TIFF files written by tifffile."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from invreg.io import Image, KSpace, read, write

tifffile = pytest.importorskip("tifffile")


def test_pages_are_the_planes_of_a_volume_and_one_page_an_image(tmp_path: Path) -> None:
    stack = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tiff", stack[0].astype(np.float64), compression="zlib", byteorder=">")
    volume, image = read(tmp_path / "a.tif"), read(tmp_path / "b.tiff")
    assert isinstance(volume, Image)
    assert isinstance(image, Image)
    assert torch.equal(volume.data, torch.from_numpy(stack.astype(np.float32))[None])
    assert torch.equal(image.data, torch.from_numpy(stack[:1].astype(np.float64)))
    assert volume.voxel_size is None


def test_resolution_tags_give_millimetres(tmp_path: Path) -> None:
    stack = np.zeros((3, 4, 5), np.float32)
    tifffile.imwrite(tmp_path / "cm.tif", stack[0], resolution=(20, 40), resolutionunit="CENTIMETER")
    tifffile.imwrite(tmp_path / "inch.tif", stack[0], resolution=(254, 254), resolutionunit="INCH")
    tifffile.imwrite(
        tmp_path / "ij.tif",
        stack,
        imagej=True,
        resolution=(2, 4),
        metadata={"spacing": 3.0, "unit": "mm", "axes": "ZYX"},
    )
    assert read(tmp_path / "cm.tif").voxel_size == pytest.approx((0.25, 0.5))
    assert read(tmp_path / "inch.tif").voxel_size == pytest.approx((0.1, 0.1))
    assert read(tmp_path / "ij.tif").voxel_size == pytest.approx((3.0, 0.25, 0.5))


@pytest.mark.parametrize(("shape", "slices"), [((1, 4, 5), 1), ((3, 4, 5), 3), ((1, 3, 4, 5), 1), ((2, 3, 4, 5), 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_record_comes_back_whole(tmp_path: Path, shape: tuple[int, ...], slices: int, dtype: torch.dtype) -> None:
    data = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    image = Image(data, "1/mm", (3.0, 2.0, 1.0)[-(len(shape) - 1) :], affine, slices, {"a": "ü"})
    write(tmp_path / "x.tif", image)
    back = read(tmp_path / "x.tif")
    assert isinstance(back, Image)
    assert torch.equal(back.data, data)
    assert (back.units, back.voxel_size, back.slices, back.meta) == (image.units, image.voxel_size, slices, image.meta)
    assert back.affine is not None
    assert torch.equal(back.affine, affine)
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        assert len(file.pages) == data.flatten(0, -3).shape[0]


def test_colour_complex_and_mixed_pages_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (np.zeros((4, 5, 3), np.uint8), {"photometric": "rgb"}, "grey"),
        (np.zeros((4, 5), np.complex64), {}, "complex images go to"),
        (np.full((4, 5), np.nan, np.float32), {}, "finite"),
    ]
    for array, options, message in cases:
        tifffile.imwrite(path, array, **options)
        with pytest.raises(ValueError, match=message):
            read(path)
    with tifffile.TiffWriter(path) as file:
        file.write(np.zeros((4, 5), np.uint8))
        file.write(np.zeros((2, 5), np.uint8))
    with pytest.raises(ValueError, match="one shape"):
        read(path)
    for record in (
        Image(torch.ones(1, 2, 2, dtype=torch.complex64)),
        KSpace(torch.ones(1, 1, 2, 2, dtype=torch.complex64)),
    ):
        with pytest.raises(TypeError, match="TIFF"):
            write(tmp_path / "y.tif", record)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.random.default_rng(0).random((64, 64)).astype(np.float32))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="declares 16384 bytes"):
        read(path)


def test_a_missing_library_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.zeros((4, 5), np.float32))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'invreg\[ct\]'"):
        read(path)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'invreg\[ct\]'"):
        write(tmp_path / "y.tif", Image(torch.zeros(1, 2, 2)))
