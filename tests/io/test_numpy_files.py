"""NumPy files, ours and others'."""

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from invreg.io import Image, KSpace, Sinogram, read, write


def normal(*shape: int, dtype: torch.dtype = torch.complex64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    for name, value in vars(a).items():
        other = getattr(b, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other), name
            assert value.dtype == other.dtype, name
        else:
            assert value == other, name


@pytest.mark.parametrize(
    "record",
    [
        KSpace(normal(2, 3, 4, 5)),
        KSpace(
            normal(2, 3, 4, 5, 6, dtype=torch.complex128) * (torch.arange(5) > 1)[:, None],
            (torch.arange(5) > 1)[:, None].expand(1, 1, 4, 5, 6),
            maps=normal(1, 3, 4, 5, 6, dtype=torch.complex128),
            calibration=normal(1, 3, 4, 5, 6, dtype=torch.complex128),
            noise_covariance=torch.eye(3, dtype=torch.complex128),
            noise_sigma=0.5,
            voxel_size=(3.0, 2.0, 1.0),
            affine=torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64)),
            crop=(4, 4, 4),
            meta={"a": [1, {"b": None}], "c": "d"},
        ),
        KSpace(normal(4, 3, 4, 5), noise_sigma=torch.rand(4, 1, 4, 1) + 0.1, slices=2),
        Sinogram(normal(2, 5, 6).real.contiguous(), torch.arange(5.0), 0.5, 2.25, torch.ones(2, 5, 6), 1e4, {"k": 1}),
        Sinogram(normal(2, 5, 6).real.contiguous(), torch.arange(5.0), photons=torch.ones(2, 1, 6)),
        Image(normal(2, 5, 6), "arbitrary", (1.0, 2.0), slices=2),
        Image(normal(1, 3, 5, 6, dtype=torch.float64), "HU"),
    ],
    ids=["kspace", "kspace3d", "slices", "sinogram", "photons", "complex image", "volume"],
)
def test_every_record_comes_back_whole(tmp_path: Path, record: Any) -> None:
    write(tmp_path / "x.npz", record)
    same(read(tmp_path / "x.npz"), record)


def test_arrays_of_others_are_known_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    kspace = normal(1, 2, 4, 6).numpy()
    kspace[..., ::2] = 0
    np.savez(path, kspace=kspace)
    record = read(path)
    assert isinstance(record, KSpace)
    assert record.mask is not None
    assert record.mask[0, 0, 0].tolist() == [False, True] * 3
    np.savez(path, kspace=kspace, mask=np.arange(6) % 2, voxel_size=np.array([1.0, 2.0]), crop=[4, 4])
    record = read(path)
    assert isinstance(record, KSpace)
    assert record.mask is not None
    assert record.mask.shape == (1, 1, 1, 6)
    assert (record.voxel_size, record.crop) == ((1.0, 2.0), (4, 4))
    np.savez_compressed(path, sinogram=np.ones((2, 3, 4), np.float32), angles=np.arange(3.0), detector_pitch=0.5)
    sinogram = read(path)
    assert isinstance(sinogram, Sinogram)
    assert sinogram.detector_pitch == 0.5
    np.savez(path, image=np.ones((3, 4), np.uint8))
    assert read(path).data.shape == (1, 3, 4)


def test_numbers_and_words_beside_foreign_arrays_become_fields(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, kspace=normal(4, 2, 4, 6).numpy(), noise_sigma=0.5, slices=2)
    kspace = read(path)
    assert isinstance(kspace, KSpace)
    assert (kspace.noise_sigma, kspace.slices) == (0.5, 2)
    data = np.ones((2, 3, 4), np.float32)
    np.savez(path, sinogram=data, angles=np.arange(3.0), photons=1e4, counts=data, centre_of_rotation=[1.5])
    sinogram = read(path)
    assert isinstance(sinogram, Sinogram)
    assert (sinogram.photons, sinogram.centre_of_rotation) == (1e4, 1.5)
    np.savez(path, image=np.ones((4, 3, 4), np.float32), units="HU", slices=2, voxel_size=[2.0, 1.0])
    image = read(path)
    assert isinstance(image, Image)
    assert (image.units, image.slices, image.voxel_size) == ("HU", 2, (2.0, 1.0))


def test_an_array_file_is_an_image(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    array = np.arange(24, dtype=">f8").reshape(2, 3, 4)
    np.save(path, np.asfortranarray(array))
    record = read(path)
    assert isinstance(record, Image)
    assert torch.equal(record.data, torch.from_numpy(array.astype(np.float64)))
    write(tmp_path / "y.npy", record)
    assert np.array_equal(np.load(tmp_path / "y.npy"), array)
    with pytest.raises(TypeError, match=r"use \.npz"):
        write(tmp_path / "z.npy", KSpace(normal(1, 1, 2, 2)))


class Bomb:
    """Would write a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    objects = np.array([Bomb(canary)], dtype=object)
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "x.npz", image=objects)
    (tmp_path / "y.npy").write_bytes(pickle.dumps(Bomb(canary)))
    for name, message in (("x.npy", "Python objects"), ("x.npz", "Python objects"), ("y.npy", "named as numpy but")):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be read as NumPy"):
        read(tmp_path / "y.npy", format="numpy")
    assert not canary.exists()


def npy(shape: str, dtype: str = "'<f4'", body: bytes = b"\0" * 48, version: int = 1) -> bytes:
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy("(1000000, 1000000)"), "declares 4000000000000 bytes"),
        (npy("(3, 4)", body=b"\0" * 40), "ends after 40 of 48 bytes"),
        (npy("(3, -4)"), "without entries"),
        (npy("(0, 4)"), "without entries"),
        (npy("(12,)"), r"data must be \(B"),
        (npy("(3, 4)", version=9), "version"),
        (npy("(3, 4)", dtype="'<U1'"), "array of numbers"),
        (npy("(3, 4)", dtype="[('a', '<f4')]"), "array of numbers"),
        (npy("(3, 4)", dtype="__import__('os')"), "cannot be read"),
        (npy("(3, 4)", body=np.full(12, np.nan, "<f4").tobytes()), "finite"),
        (b"\x93NUMPY", "cannot be read"),
    ],
)
def test_a_wrong_array_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.ones(3)}, "exactly one array named kspace, sinogram or image, got a"),
        ({}, "got none"),
        ({"kspace": np.ones((1, 1, 2, 2), "c8"), "image": np.ones((2, 2))}, "exactly one"),
        ({"kspace": np.ones((1, 1, 2, 2))}, "complex"),
        ({"kspace": np.ones((2, 2), "c8")}, r"\(B, coil"),
        ({"kspace": np.ones((1, 1, 2, 2), "c8"), "mask": np.zeros(2)}, "samples nothing"),
        ({"kspace": np.ones((1, 1, 2, 2), "c8"), "mask": np.array([1, 0])}, "0 where the mask is False"),
        ({"kspace": np.ones((1, 2, 2, 2), "c8"), "maps": np.ones((1, 3, 2, 2), "c8")}, "maps must be"),
        ({"kspace": np.ones((1, 2, 2, 2), "c8"), "maps": np.ones((1, 2, 2, 2), "c16")}, "complex128"),
        ({"sinogram": np.ones((1, 2, 2))}, "needs its angles"),
        ({"sinogram": np.ones((1, 2, 2)), "angles": np.ones(3)}, r"angles must be \(2,\)"),
        ({"image": np.ones((2, 2)), "unit": "HU"}, "unknown array beside image 'unit'; did you mean 'units'"),
        ({"image": np.ones((2, 2)), "mask": np.ones((2, 2))}, "unknown array beside image 'mask'"),
        ({"image": np.ones((2, 2)), "units": "MU"}, "units must be one of"),
        ({"image": np.ones((2, 2)), "slices": 0.5}, "slices must be an int"),
        ({"kspace": np.ones((1, 1, 2, 2), "c8"), "noise_sigma": 0.0}, "noise_sigma must be finite and > 0"),
        ({"image": np.ones((2, 2)), "header": np.array("{}")}, "must name one of"),
        ({"image": np.ones((2, 2)), "header": np.array('{"invreg": 1, "kind": "KSpace"}')}, "another kind"),
        ({"image": np.ones((2, 2)), "header": np.array("[" * 100000)}, "cannot be read"),
    ],
)
def test_a_wrong_archive_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_member_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", npy("(100000, 100000)"))
    with pytest.raises(ValueError, match="declares"):
        read(path)
    stream = io.BytesIO()
    np.savez(stream, image=np.ones((64, 64)))
    path.write_bytes(stream.getvalue()[:-30])
    with pytest.raises(ValueError, match="cannot be read as NumPy"):
        read(path)
