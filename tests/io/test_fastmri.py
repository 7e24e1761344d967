"""HDF5 in the fastMRI layout, written with h5py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from invreg.io import Image, KSpace, Sinogram, read, write
from invreg.io.ismrmrd_header import parse_header

SHAPE = (2, 3, 24, 16)  # slice, coil, readout, phase encoding

HEADER = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>24</x><y>16</y><z>1</z></matrixSize>
<fieldOfView_mm><x>48</x><y>24</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>12</x><y>12</y><z>1</z></matrixSize>
<fieldOfView_mm><x>24</x><y>18</y><z>5</z></fieldOfView_mm></reconSpace>
<trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"""


def numbers(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., Path]:
    def make(**datasets: Any) -> Path:
        path = tmp_path / "file.h5"
        with h5py.File(path, "w") as file:
            for name, value in datasets.items():
                file[name] = value
            file.attrs["acquisition"], file.attrs["max"], file.attrs["patient_id"] = "CORPD_FBK", 1e-3, "secret"
        return path

    return make


def test_multi_coil_k_space_keeps_its_axes_and_gets_its_geometry(make_file: Callable[..., Path]) -> None:
    kspace = numbers()
    record = read(make_file(kspace=kspace, ismrmrd_header=HEADER, reconstruction_rss=np.zeros((2, 12, 12), "f4")))
    assert isinstance(record, KSpace)
    assert torch.equal(record.data, torch.from_numpy(kspace))
    assert record.mask is None
    assert record.crop == (12, 12)
    assert record.voxel_size == (2.0, 1.5)
    assert record.slices == 2
    assert record.meta["acquisition"] == "CORPD_FBK"
    assert "secret" not in str(record.meta)


def test_the_mask_over_columns_is_applied_and_padding_counts_as_not_sampled(make_file: Callable[..., Path]) -> None:
    kspace = numbers()
    kspace[..., :2] = 0  # columns that the scanner padded
    mask = np.arange(16) % 3 == 0
    record = read(make_file(kspace=kspace, mask=mask.astype(np.float32)))
    assert isinstance(record, KSpace)
    assert record.mask is not None
    wanted = torch.from_numpy(mask & (np.arange(16) >= 2))
    assert torch.equal(record.mask, wanted.expand(2, 1, 24, 16))
    assert torch.equal(record.data, torch.from_numpy(kspace) * wanted)


def test_single_coil_k_space_gets_a_coil_axis_and_the_stored_image_its_crop(make_file: Callable[..., Path]) -> None:
    record = read(make_file(kspace=numbers()[:, 0], reconstruction_esc=np.zeros((2, 12, 10), "f4")))
    assert isinstance(record, KSpace)
    assert record.data.shape == (2, 1, 24, 16)
    assert record.crop == (12, 10)
    assert record.voxel_size is None


@pytest.mark.parametrize("sigma", [0.5, "tensor"])
def test_a_record_comes_back_whole(tmp_path: Path, sigma: Any) -> None:
    data = torch.from_numpy(numbers())
    mask = torch.arange(16) % 2 == 0
    record = KSpace(
        data * mask,
        mask[None, None, None].expand(2, 1, 24, 16),
        maps=torch.from_numpy(numbers((1, 3, 24, 16), 1)),
        calibration=torch.from_numpy(numbers((2, 3, 24, 16), 2)),
        noise_covariance=torch.eye(3, dtype=torch.complex128),
        noise_sigma=torch.rand(2, 1, 24, 1) + 0.5 if sigma == "tensor" else sigma,
        voxel_size=(2.0, 1.5),
        affine=torch.diag(torch.tensor([1.5, 2.0, 4.0, 1.0], dtype=torch.float64)),
        crop=(12, 10),
        slices=2,
        meta={"TE": [12.5], "name": "knee", "nested": {"a": 1}},
    )
    path = tmp_path / "out.h5"
    write(path, record)
    back = read(path)
    assert isinstance(back, KSpace)
    for name in ("data", "mask", "maps", "calibration", "noise_covariance", "affine"):
        assert torch.equal(getattr(back, name), getattr(record, name)), name
    assert torch.equal(torch.as_tensor(back.noise_sigma), torch.as_tensor(record.noise_sigma))
    assert (back.voxel_size, back.crop, back.slices) == (record.voxel_size, record.crop, record.slices)
    assert back.meta == record.meta
    with h5py.File(path) as file:  # what other programs expect
        assert np.array_equal(file["mask"], mask.numpy())


def test_a_complex_image_comes_back_whole(tmp_path: Path) -> None:
    image = Image(torch.from_numpy(numbers((2, 5, 6))).to(torch.complex128), voxel_size=(1.0, 2.0), meta={"a": None})
    write(tmp_path / "image.h5", image)
    back = read(tmp_path / "image.h5")
    assert isinstance(back, Image)
    assert torch.equal(back.data, image.data)
    assert back.voxel_size == image.voxel_size


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"kspace": numbers()[0, 0]}, "must be"),
        ({"kspace": np.zeros((2, 3, 4, 5))}, "complex"),
        ({"kspace": np.full((1, 2, 4, 5), np.nan + 0j)}, "finite"),
        ({"kspace": np.zeros((1, 2, 4, 5), "c8")}, "samples nothing"),
        ({"kspace": numbers(), "mask": np.ones(15)}, r"mask must be \(16,\)"),
        ({"kspace": numbers(), "mask": np.zeros(16)}, "samples nothing"),
        ({"kspace": numbers(), "mask": b"text"}, "mask must be"),
        ({"kspace": numbers(), "ismrmrd_header": "<a>"}, "no XML"),
        ({"kspace": numbers(), "ismrmrd_header": 3.0}, "must be text"),
        ({"kspace/inside": numbers()}, "got a group"),
        ({"kspace": numbers()[:0]}, "without entries"),
    ],
)
def test_what_is_wrong_in_the_file_is_said(make_file: Callable[..., Path], datasets: Any, message: str) -> None:
    path = make_file(**datasets)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_what_the_layout_lacks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    with pytest.raises(ValueError, match="2D k-space"):
        write(path, KSpace(torch.ones(1, 2, 3, 4, 5, dtype=torch.complex64)))
    with pytest.raises(TypeError, match="Sinogram"):
        write(path, Sinogram(torch.ones(1, 3, 4), torch.arange(3.0)))
    assert not path.exists()


def test_links_out_of_the_file_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["kspace"] = numbers()
    path = tmp_path / "link.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = h5py.ExternalLink(str(secret), "kspace")
    with pytest.raises(ValueError, match="wanted the dataset kspace"):
        read(path, format="fastmri")
    raw = tmp_path / "raw.bin"
    raw.write_bytes(bytes(8 * 6))
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", (1, 1, 2, 3), "c8", external=[(str(raw), 0, 48)])
    with pytest.raises(ValueError, match="other files"):
        read(path, format="fastmri")
    layout = h5py.VirtualLayout(SHAPE, "c8")
    layout[:] = h5py.VirtualSource(str(secret), "kspace", SHAPE)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("kspace", layout)
    with pytest.raises(ValueError, match="other files"):
        read(path, format="fastmri")


def test_sizes_that_are_declared_but_not_stored_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.h5"
    for options in ({}, {"chunks": (1, 1, 64, 64)}):
        with h5py.File(path, "w") as file:
            file.create_dataset("kspace", (10**4, 32, 1024, 1024), "c8", **options)
        with pytest.raises(ValueError, match="declares 2684354560000 bytes"):
            read(path)


def test_the_header_gives_voxels_and_what_the_scan_meant_to_show() -> None:
    (encoding,) = parse_header(HEADER).encodings
    assert encoding.voxel == (2.0, 1.5, 5.0)
    assert encoding.shown == (12, 12, 1)
    assert encoding.centres == (None, None)
    assert encoding.acceleration is None
