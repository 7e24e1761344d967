"""Damage at random places: every reader gives a record or one clear error, and comes to an end."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from invreg.io import Image, KSpace, Sinogram, read, write

SECONDS = 10.0  # far more than any small file takes


def files(path: Path, make_scan: Callable[..., Any]) -> dict[str, Callable[[], Path]]:
    """One small file of each kind."""
    generator = torch.Generator().manual_seed(0)
    kspace = KSpace(torch.randn(2, 2, 6, 8, dtype=torch.complex64, generator=generator), noise_sigma=1.0)
    image = Image(torch.randn(1, 3, 6, 8, generator=generator), "HU", (1.0, 2.0, 3.0))

    def written(name: str, record: Any) -> Callable[[], Path]:
        def make() -> Path:
            write(path / name, record)
            return path / name

        return make

    def data_exchange() -> Path:
        with h5py.File(path / "dx.h5", "w") as file:
            file["exchange/data"] = np.full((20, 2, 8), 500, np.uint16)
            file["exchange/data_white"] = np.full((2, 2, 8), 1000, np.uint16)
            file["exchange/theta"] = np.arange(20) * 9.0
        return path / "dx.h5"

    def packed() -> Path:
        with h5py.File(path / "packed.h5", "w") as file:
            file.create_dataset("kspace", data=kspace.data.numpy(), chunks=(1, 1, 6, 8), compression="gzip")
            file["ismrmrd_header"] = "<ismrmrdHeader/>"
        return path / "packed.h5"

    def ct() -> Path:
        source = get_testdata_file("CT_small.dcm", download=False)
        return Path(shutil.copy(str(source), path / "ct.dcm"))

    return {
        "npy": written("x.npy", image),
        "npz": written("x.npz", kspace),
        "cfl": written("x.cfl", kspace),
        "hdr": lambda: written("x.cfl", kspace)().with_suffix(".hdr"),
        "nii": written("x.nii", image),
        "nii.gz": written("x.nii.gz", image),
        "dicom": ct,
        "fastmri": written("x.h5", kspace),
        "packed": packed,
        "ismrmrd": lambda: Path(make_scan(averages=1).path),
        "data_exchange": data_exchange,
        "tiff": written("x.tif", image),
    }


KINDS = sorted(files(Path(), lambda: None))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_damage_at_random_places_gives_a_record_or_a_clear_error(
    tmp_path: Path, make_scan: Callable[..., Any], kind: str
) -> None:
    if kind == "tiff":
        pytest.importorskip("tifffile")
    path = files(tmp_path, make_scan)[kind]()
    whole = path.read_bytes()
    place = st.one_of(st.integers(0, len(whole) - 1), st.integers(0, min(len(whole), 2048) - 1))
    byte = st.one_of(st.sampled_from([0, 1, 127, 128, 255]), st.integers(0, 255))

    @settings(max_examples=60, deadline=SECONDS * 1000, derandomize=True, database=None)
    @given(cut=st.one_of(st.just(len(whole)), place), damage=st.lists(st.tuples(place, byte), max_size=8))
    def check(cut: int, damage: list[tuple[int, int]]) -> None:
        content = bytearray(whole)
        for where, value in damage:
            content[where] = value
        path.write_bytes(content[:cut])
        try:
            record = read(path)
        except ValueError as error:
            if str(tmp_path) not in str(error):
                raise AssertionError("the message must name the file") from error
        else:
            assert isinstance(record, KSpace | Sinogram | Image)
            assert bool(
                torch.isfinite(torch.view_as_real(record.data) if record.data.is_complex() else record.data).all()
            )

    check()
