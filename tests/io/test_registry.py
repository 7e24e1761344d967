"""Choosing the format."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from invreg.io import Image, KSpace, Sinogram, formats, read, targets, write

IMAGE = Image(torch.arange(20.0).reshape(1, 4, 5), "HU", (1.0, 2.0))
KSPACE = KSpace(torch.ones(1, 2, 4, 5, dtype=torch.complex64))


@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x.nii", "X.NII.GZ", "x.dcm", "x.cfl", "x.h5", "x.tif"])
def test_the_suffix_chooses_and_the_content_is_recognised_under_any_name(tmp_path: Path, name: str) -> None:
    record = Image(IMAGE.data + 0j, voxel_size=(1.0, 2.0)) if name in ("x.cfl", "x.h5") else IMAGE
    write(tmp_path / name, record)
    assert torch.equal(read(tmp_path / name).data, record.data)
    assert torch.equal(read(str(tmp_path / name)).data, record.data)
    if name != "x.cfl":
        (tmp_path / name).rename(tmp_path / "noname")
        assert torch.equal(read(tmp_path / "noname").data, record.data)


@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x.nii", "x.nii.gz", "x.dcm", "x.cfl", "x.h5", "x.tif"])
def test_an_existing_file_is_left_alone_unless_told(tmp_path: Path, name: str) -> None:
    complex_kind = name in ("x.cfl", "x.h5")
    old, new = (
        Image(t + 0j if complex_kind else t, voxel_size=(1.0, 1.0)) for t in (torch.zeros(1, 3, 3), torch.ones(1, 4, 4))
    )
    write(tmp_path / name, old)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write(tmp_path / name, new)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    write(tmp_path / name, new, overwrite=True)
    assert torch.equal(read(tmp_path / name).data, new.data)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(before)


@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x.nii.gz", "x.dcm", "x.h5", "x.tif"])
def test_a_failure_midway_leaves_the_old_file_of_every_format(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    path = tmp_path / name
    record = Image(IMAGE.data + 0j) if name == "x.h5" else IMAGE
    write(path, record)
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write(path, record, overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_unknown_names_come_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown suffix '\.npx'; did you mean '\.np"):
        write(tmp_path / "x.npx", IMAGE)
    with pytest.raises(ValueError, match="unknown format 'nifty'; did you mean 'nifti'"):
        write(tmp_path / "x", IMAGE, format="nifty")
    with pytest.raises(ValueError, match="unknown format 'ismrmd'; did you mean 'ismrmrd'"):
        read(tmp_path / "x", format="ismrmd")
    with pytest.raises(TypeError, match="DICOM holds images, got KSpace"):
        write(tmp_path / "x", KSPACE)
    with pytest.raises(TypeError, match="record must be"):
        write(tmp_path / "x.npz", IMAGE.data)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="make it first"):
        write(tmp_path / "no" / "x.npz", IMAGE)
    with pytest.raises(ValueError, match="ismrmrd is read only"):
        write(tmp_path / "x.mrd", KSPACE)
    assert list(tmp_path.iterdir()) == []


def test_targets_are_what_is_written(tmp_path: Path) -> None:
    for name in ("x.cfl", "x.hdr"):
        assert targets(tmp_path / name) == (tmp_path / "x.cfl", tmp_path / "x.hdr")
    for name in ("x.nii.gz", "series"):
        assert targets(tmp_path / name) == (tmp_path / name,)


def test_missing_and_meaningless_files_are_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read(tmp_path / "x.npz")
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(ValueError, match="of no known kind"):
        read(tmp_path / "x.txt")
    (tmp_path / "x.nii").write_text("hello")
    with pytest.raises(ValueError, match="named as nifti but is not"):
        read(tmp_path / "x.nii")
    (tmp_path / "x.dcm").touch()
    with pytest.raises(ValueError, match="empty file"):
        read(tmp_path / "x.dcm")
    with pytest.raises(IsADirectoryError):
        read(tmp_path, format="nifti")


def test_a_mislabelled_file_is_named_for_what_it_is(tmp_path: Path) -> None:
    write(tmp_path / "x.npz", IMAGE)
    (tmp_path / "x.npz").rename(tmp_path / "x.nii")
    with pytest.raises(ValueError, match="named as nifti but holds numpy"):
        read(tmp_path / "x.nii")
    assert torch.equal(read(tmp_path / "x.nii", format="numpy").data, IMAGE.data)
    with h5py.File(tmp_path / "y.tif", "w") as file:
        file["kspace"] = np.ones((1, 1, 2, 2), np.complex64)
    with pytest.raises(ValueError, match="named as tiff but holds HDF5"):
        read(tmp_path / "y.tif")
    with h5py.File(tmp_path / "z.h5", "w") as file:
        file["something"] = np.ones(3)
    with pytest.raises(ValueError, match="HDF5 with something is none of the known layouts"):
        read(tmp_path / "z.h5")
    with pytest.raises(ValueError, match="got a file of another kind"):
        read(tmp_path / "x.nii", format="fastmri")


def test_every_format_is_listed_and_can_do_what_it_says(tmp_path: Path) -> None:
    records = {"Image": Image(IMAGE.data + 0j, voxel_size=(1.0, 2.0)), "KSpace": KSPACE}
    records["Sinogram"] = Sinogram(torch.ones(1, 3, 4), torch.arange(3.0))  # type: ignore[assignment]
    for one in formats():
        assert one.description
        for kind, record in records.items():
            if not one.writes:
                continue
            path = tmp_path / f"{one.name}-{kind}{one.suffixes[0]}"
            if kind in one.holds:
                write(path, IMAGE if one.name in ("nifti", "dicom", "tiff") else record)
                assert type(read(path)).__name__ == kind
            else:
                with pytest.raises(TypeError, match=kind):
                    write(path, record)


def test_importing_the_formats_loads_none_of_their_libraries() -> None:
    code = "import sys, invreg.io; print(*({'h5py', 'nibabel', 'pydicom', 'tifffile', 'ismrmrd'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""
