"""One door to all file formats: `read`, `write`, and what they know."""

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from invreg._check import unknown_name
from invreg.io import hdf5
from invreg.io.files import pair_of, require_file
from invreg.io.records import Image, KSpace, Record, Sinogram


@dataclass(frozen=True)
class Format:
    """A file format.

    Args:
        name: what `format=` takes.
        suffixes: lower case, the first is the usual one; empty suffix for directories.
        module: the file that reads and writes it.
        holds: names of the records it can hold.
        writes: whether it can be written.
        description: one line.
    """

    name: str
    suffixes: tuple[str, ...]
    module: str
    holds: tuple[str, ...]
    writes: bool
    description: str


_FORMATS = (
    Format("numpy", (".npz", ".npy"), "numpy_files", ("KSpace", "Sinogram", "Image"), True, "NumPy arrays, any record"),
    Format("nifti", (".nii.gz", ".nii"), "nifti", ("Image",), True, "NIfTI images with their affine"),
    Format("dicom", (".dcm", ".ima"), "dicom", ("Image",), True, "DICOM slice, or a directory with one series"),
    Format("cfl", (".cfl", ".hdr"), "cfl", ("KSpace", "Image"), True, "BART pair of .cfl and .hdr"),
    Format("fastmri", (".h5", ".hdf5"), "fastmri", ("KSpace", "Image"), True, "HDF5 in the fastMRI layout"),
    Format("ismrmrd", (".mrd",), "ismrmrd_file", ("KSpace",), False, "ISMRMRD raw data, Cartesian"),
    Format("data_exchange", (".dxf",), "data_exchange", ("Sinogram",), False, "Data Exchange HDF5 of tomography"),
    Format("tiff", (".tif", ".tiff"), "tiff", ("Image",), True, "TIFF image or stack (extra: ct)"),
)
_HDF5 = ("fastmri", "ismrmrd", "data_exchange")
_BY_NAME = {one.name: one for one in _FORMATS}
_BY_SUFFIX = {suffix: one for one in _FORMATS for suffix in one.suffixes}


def formats() -> tuple[Format, ...]:
    """All known formats."""
    return _FORMATS


def read(path: str | os.PathLike[str], format: str | None = None) -> Record:
    """Read a file, or a directory with one DICOM series.

    The kind is told from the content, and must agree with a known suffix; names without a known suffix are fine.

    Args:
        path: the file; of a BART pair either one, or their common name.
        format: a name from `formats()` to skip the guess.

    Returns:
        `KSpace`, `Sinogram` or `Image`, on the CPU.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ModuleNotFoundError: an extra is missing; the message names it.
        ValueError: unknown, mislabelled, truncated or damaged; the message names the file.
    """
    place = Path(path)
    found = _named(format) if format is not None else _recognise(place)
    return cast(Record, _module(found).read(place))


def write(path: str | os.PathLike[str], record: Record, format: str | None = None, overwrite: bool = False) -> None:
    """Write a record, whole or not at all.

    Args:
        path: its suffix chooses the format, unless `format` does; a directory, or a name without suffix or with a
            slash at its end, becomes a DICOM series.
        record: k-space, sinogram or image.
        format: a name from `formats()`.
        overwrite: whether an existing file may be replaced.

    Raises:
        TypeError: the format cannot hold this record, such as complex numbers in NIfTI.
        ValueError: an unknown suffix or format, or something that the format cannot hold.
        FileExistsError: the file exists and `overwrite` is False.
        FileNotFoundError, IsADirectoryError: the directory is missing, or is one.
    """
    if not isinstance(record, KSpace | Sinogram | Image):
        raise TypeError(
            f"record must be KSpace, Sinogram or Image, got {type(record).__name__}; wrap the tensor in one"
        )
    place = Path(path)
    if format is not None:
        found = _named(format)
    elif os.fspath(path).endswith(("/", os.sep)) or not _suffix(place):
        found = _BY_NAME["dicom"]
    else:
        found = _by_suffix(place)
    if not found.writes:
        known = ", ".join(one.name for one in _FORMATS if one.writes)
        raise ValueError(f"{place}: {found.name} is read only; write one of {known}")
    _module(found).write(place, record, overwrite=overwrite)


def targets(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The files, or the directory, that `write` makes for a path: two for a BART pair."""
    place = Path(path)
    return pair_of(place) if _suffix(place) in _BY_NAME["cfl"].suffixes else (place,)


def _module(found: Format) -> Any:
    return importlib.import_module(f"invreg.io.{found.module}")


def _named(name: str) -> Format:
    if name not in _BY_NAME:
        raise ValueError(unknown_name("format", name, _BY_NAME))
    return _BY_NAME[name]


def _suffix(path: Path) -> str:
    """The longest known suffix, else the last one, in lower case."""
    name = path.name.lower()
    known = [suffix for suffix in _BY_SUFFIX if name.endswith(suffix) and len(name) > len(suffix)]
    return max(known, key=len) if known else path.suffix.lower()


def _by_suffix(path: Path) -> Format:
    suffix = _suffix(path)
    if suffix not in _BY_SUFFIX:
        raise ValueError(f"{path}: {unknown_name('suffix', suffix, _BY_SUFFIX)}; or pass format=")
    return _BY_SUFFIX[suffix]


def _recognise(path: Path) -> Format:
    """The format of what is at `path`, from its content, checked against its suffix."""
    if path.is_dir():
        return _BY_NAME["dicom"]
    if not path.exists() and path.with_name(f"{path.name}.cfl").exists():
        return _BY_NAME["cfl"]
    require_file(path)
    labelled = _BY_SUFFIX.get(_suffix(path))
    found = _by_content(path)
    if found is None:
        if labelled is None or labelled.name != "cfl":  # a cfl has no mark; its header is text
            kind = "of no known kind" if labelled is None else f"named as {labelled.name} but is not, or is truncated"
            raise ValueError(f"{path}: {kind}; wanted one of {', '.join(_BY_NAME)}, check the file or pass format=")
        return labelled
    if found == "hdf5":
        return _within_hdf5(path, labelled)
    if labelled is not None and labelled.name != found:
        raise ValueError(f"{path}: named as {labelled.name} but holds {found}; rename it or pass format={found!r}")
    return _BY_NAME[found]


def _by_content(path: Path) -> str | None:
    """The name of a format (or "hdf5") by its magic bytes, None if there are none known."""
    with open(path, "rb") as file:
        start = file.read(352)
    if start.startswith(hdf5.MAGIC):
        return "hdf5"
    if start.startswith((b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")):
        return "numpy"
    if start[128:132] == b"DICM":
        return "dicom"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if start.startswith(b"\x1f\x8b") or start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] in (b"n+2\0", b"ni2\0"):
        return "nifti"
    if start.lstrip().startswith(b"# Dimensions"):
        return "cfl"
    return None


def _within_hdf5(path: Path, labelled: Format | None) -> Format:
    """Which of the HDF5 layouts a file has."""
    if labelled is not None and labelled.name not in _HDF5:
        raise ValueError(f"{path}: named as {labelled.name} but holds HDF5; rename it or pass format=")
    from invreg.io.files import reading

    with reading(path, "HDF5"), hdf5.opened(path) as file:
        if hdf5.has(file, "exchange/data"):
            return _BY_NAME["data_exchange"]
        if hdf5.has(file, "kspace") or hdf5.has(file, "reconstruction"):
            return _BY_NAME["fastmri"]
        if any(hdf5.has(file, f"{name}/xml") and hdf5.has(file, f"{name}/data") for name in file):
            return _BY_NAME["ismrmrd"]
        names = ", ".join(sorted(map(str, file))[:12]) or "nothing"
    raise ValueError(
        f"{path}: HDF5 with {names} is none of the known layouts: fastMRI (kspace), ISMRMRD (dataset/xml, "
        "dataset/data), Data Exchange (exchange/data); rename its datasets"
    )
