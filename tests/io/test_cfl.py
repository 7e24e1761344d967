"""BART pairs: by NumPy after BART's description, and by BART itself where it is installed."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from invreg.io import Image, KSpace, Sinogram, read, write

needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="needs BART")


def pair(path: Path, array: np.ndarray) -> None:
    """A pair as BART writes it."""
    dims = [*array.shape, *[1] * (16 - array.ndim)]
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, dims)) + " \n# Command\nphantom\n")
    array.astype("<c8").ravel(order="F").tofile(path.with_suffix(".cfl"))


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def test_coils_are_k_space_sampled_where_it_is_not_zero(tmp_path: Path) -> None:
    array = numbers(6, 5, 1, 3)  # x, y, z, coil
    array[:, 1::2] = 0
    pair(tmp_path / "ksp", array)
    for name in ("ksp.cfl", "ksp.hdr", "ksp"):
        record = read(tmp_path / name)
        assert isinstance(record, KSpace)
        assert torch.equal(record.data, torch.from_numpy(array[:, :, 0].transpose(2, 1, 0).copy())[None])
        assert record.mask is not None
        assert torch.equal(record.mask[0, 0, :, 0], torch.tensor([True, False, True, False, True]))


def test_one_coil_is_an_image_that_can_be_read_as_k_space(tmp_path: Path) -> None:
    pair(tmp_path / "img", numbers(6, 5, 4))
    record = read(tmp_path / "img.cfl")
    assert isinstance(record, Image)
    assert record.data.shape == (1, 4, 5, 6)
    assert record.as_kspace().data.shape == (1, 1, 4, 5, 6)


def test_slices_run_fastest_in_the_batch(tmp_path: Path) -> None:
    array = numbers(4, 3, 1, 2, 1, 1, 1, 1, 1, 1, 5, 1, 1, 2)  # 5 times, 2 slices
    pair(tmp_path / "ksp", array)
    record = read(tmp_path / "ksp")
    assert isinstance(record, KSpace)
    assert record.data.shape == (10, 2, 3, 4)
    assert record.slices == 2
    time, piece = 3, 1
    wanted = array.reshape(4, 3, 2, 5, 2, order="F")[:, :, :, time, piece].transpose(2, 1, 0)
    assert torch.equal(record.data[2 * time + piece], torch.from_numpy(wanted.copy()))


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (2, 3, 4, 5, 6), (1, 1, 1, 5, 6)])
def test_k_space_comes_back_whole(tmp_path: Path, shape: tuple[int, ...]) -> None:
    record = KSpace(
        torch.from_numpy(numbers(*shape)),
        noise_covariance=torch.from_numpy(numbers(shape[1], shape[1])).to(torch.complex128),
        noise_sigma=0.25,
        voxel_size=(1.0, 2.0, 3.0)[: len(shape) - 2],
        crop=(1, 4, 3)[-(len(shape) - 2) :],
        slices=2 if len(shape) == 4 else 1,
        meta={"a": [1, 2.5, "x"]},
    )
    write(tmp_path / "ksp.cfl", record)
    back = read(tmp_path / "ksp.cfl")
    assert isinstance(back, KSpace)
    assert torch.equal(back.data, record.data)
    assert back.noise_covariance is not None
    assert torch.equal(back.noise_covariance, record.noise_covariance)
    assert (back.noise_sigma, back.crop, back.slices, back.meta) == (0.25, record.crop, record.slices, record.meta)
    assert back.voxel_size == record.voxel_size


def test_a_complex_image_comes_back_with_its_affine(tmp_path: Path) -> None:
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    image = Image(torch.from_numpy(numbers(1, 1, 5, 6)), "arbitrary", (3.0, 2.0, 1.0), affine)
    write(tmp_path / "x.y.cfl", image)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.y.cfl", "x.y.hdr"]
    back = read(tmp_path / "x.y.cfl")
    assert isinstance(back, Image)
    assert torch.equal(back.data, image.data)
    assert back.affine is not None
    assert torch.equal(back.affine, affine)


@needs_bart
def test_bart_and_we_read_each_other(tmp_path: Path) -> None:
    def bart(*words: str) -> None:
        subprocess.run(["bart", *words], cwd=tmp_path, check=True, capture_output=True, timeout=60)

    bart("phantom", "-k", "-x16", "-s3", "ksp")
    bart("fft", "-i", "-u", "3", "ksp", "img")
    kspace, images = read(tmp_path / "ksp.cfl"), read(tmp_path / "img.cfl")
    assert isinstance(kspace, KSpace)
    assert isinstance(images, KSpace)  # three coils
    # our centred orthonormal transform is BART's unitary one
    ours = torch.fft.ifftshift(kspace.data, dim=(-2, -1))
    ours = torch.fft.fftshift(torch.fft.ifft2(ours, norm="ortho"), dim=(-2, -1))
    assert torch.allclose(ours, images.data, atol=1e-5 * float(images.data.abs().max()))
    record = KSpace(kspace.data, meta={"long": "x" * 20000}, noise_covariance=torch.eye(3, dtype=torch.complex128))
    write(tmp_path / "back.cfl", record)
    bart("scale", "1", "back", "again")
    again = read(tmp_path / "again.cfl")
    assert isinstance(again, KSpace)
    assert torch.equal(again.data, kspace.data)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("# Dimensions\n1000000 1000000\n", "wanted .* of 8000000000000 bytes"),
        ("# Dimensions\n4 3 1 2 7\n", "wanted"),
        ("# Dimensions\n4 3 -1 2\n", "up to 16 counts"),
        ("# Dimensions\n4 3 0 2\n", ">= 1"),
        ("# Dimensions\n" + "1 " * 17 + "\n", "up to 16 counts"),
        ("# Dimensions\n4 x\n", "up to 16 counts"),
        ("# Dimensions", "up to 16 counts"),
        ("hello\n", "up to 16 counts"),
        ("# Dimensions\n4 3 1 1 2\n", "2 map sets"),
        ('# Dimensions\n4 3 1 2\n# invreg\n{"invreg": 1, "kind": "Image"}\n', "says Image"),
        ('# Dimensions\n4 3 1 2\n# invreg\n{"invreg": 1, "kind": "Sinogram"}\n', "says Sinogram"),
        ("# Dimensions\n4 3 1 2\n# invreg\n[]\n", "must name one of"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, header: str, message: str) -> None:
    pair(tmp_path / "ksp", numbers(4, 3, 1, 2))
    (tmp_path / "ksp.hdr").write_text(header)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "ksp.cfl")


def test_half_a_pair_is_a_missing_file(tmp_path: Path) -> None:
    pair(tmp_path / "ksp", numbers(4, 3))
    (tmp_path / "ksp.hdr").unlink()
    with pytest.raises(FileNotFoundError, match=r"ksp\.hdr"):
        read(tmp_path / "ksp.cfl")


def test_what_a_pair_cannot_hold_is_refused(tmp_path: Path) -> None:
    data = torch.ones(1, 2, 3, 4, dtype=torch.complex64)
    path = tmp_path / "x.cfl"
    with pytest.raises(ValueError, match="there are maps too"):
        write(path, KSpace(data, maps=data))
    with pytest.raises(ValueError, match="noise level for each line"):
        write(path, KSpace(data, noise_sigma=torch.ones(1, 1, 3, 1)))
    with pytest.raises(TypeError, match="Sinogram"):
        write(path, Sinogram(torch.ones(1, 3, 4), torch.arange(3.0)))
    assert list(tmp_path.iterdir()) == []


def test_both_files_are_exchanged_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    path = tmp_path / "x.cfl"
    old = KSpace(torch.ones(1, 2, 3, 4, dtype=torch.complex64))
    write(path, old)
    moves, real = [], os.replace

    def replace(source: object, target: object) -> None:
        moves.append(target)
        if len(moves) == 2:
            raise OSError("disk on fire")
        real(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="disk on fire"):
        write(path, KSpace(torch.ones(1, 2, 7, 7, dtype=torch.complex64)), overwrite=True)
    monkeypatch.undo()
    back = read(path)
    assert torch.equal(back.data, old.data)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.cfl", "x.hdr"]
