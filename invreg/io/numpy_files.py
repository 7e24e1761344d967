"""NumPy files: .npz holds any record whole, .npy one image."""

import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from invreg._check import unknown_name
from invreg.io.files import as_tensor, atomic, reading, require_file, require_stored
from invreg.io.records import Image, KSpace, Record, Sinogram, fields_from_json, sampled, to_json

# The array that says what a foreign npz holds, and the record it makes.
_NAMES = {"kspace": "KSpace", "sinogram": "Sinogram", "image": "Image"}
_TENSORS = {
    "KSpace": ("mask", "maps", "calibration", "noise_covariance", "noise_sigma", "affine"),
    "Sinogram": ("angles", "counts", "photons"),
    "Image": ("affine",),
}
# Fields of a foreign npz that are numbers; those that are tensors too may also be one number.
_NUMBERS = {"KSpace": ("noise_sigma",), "Sinogram": ("detector_pitch", "centre_of_rotation", "photons"), "Image": ()}
_TUPLES = {"KSpace": ("voxel_size", "crop"), "Sinogram": (), "Image": ("voxel_size",)}
_PLAIN = {"KSpace": ("slices",), "Sinogram": (), "Image": ("slices", "units")}
_LARGEST_HEADER = 65536


def read(path: Path) -> Record:
    """Read .npz or .npy; nothing is unpickled.

    An .npz is recognised by its array `kspace` (B, coil, [z,] y, x), `sinogram` (B, angles, detectors) with `angles` in
    radians, or `image` ([B, [z,]] y, x). The other fields of the record but `meta` may stand beside it under their own
    names, nothing else may; a mask may lack leading axes, and without one k-space is sampled where it is not exactly
    zero.
    An .npy is an image: (y, x), (B, y, x) or (B, z, y, x).

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ValueError: damaged, object arrays, unknown names of arrays, or a record's own check.
    """
    size = require_file(path)
    with reading(path, "NumPy"):
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                return Image(_as_image(_load(path, file, size, "the array")))
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            for member in archive.infolist():
                if not member.filename.endswith(".npy"):
                    continue
                require_stored(path, member.file_size, member.compress_size, compressed=member.compress_type != 0)
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as file:
                    arrays[name] = _load(path, file, member.file_size, name)
        return _record(path, arrays)


def _load(path: Path, file: IO[bytes], size: int, name: str) -> Any:
    """One array from an .npy stream of known length, its header checked against that length."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{path}: {name} is in .npy version {version}, want 1.0 or 2.0; save it again")
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(file, max_header_size=_LARGEST_HEADER)
    if dtype.hasobject:
        raise ValueError(f"{path}: {name} holds Python objects, which are not loaded; save plain numbers")
    count = int(np.prod(shape, dtype=object)) if shape else 1
    require_stored(path, count * dtype.itemsize, size)
    content = file.read(count * dtype.itemsize)
    if len(content) < count * dtype.itemsize:
        raise ValueError(
            f"{path}: {name} ends after {len(content)} of {count * dtype.itemsize} bytes; get a fresh copy"
        )
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _as_image(array: Any) -> torch.Tensor:
    data = as_tensor(array, "the image")
    return data[None] if data.ndim == 2 else data


def _record(path: Path, arrays: dict[str, Any]) -> Record:
    found = [name for name in _NAMES if name in arrays]
    if len(found) != 1:
        raise ValueError(
            f"{path}: wanted exactly one array named kspace, sinogram or image, "
            f"got {', '.join(sorted(arrays)) or 'none'}"
            "; save it under one of these names"
        )
    kind = _NAMES[found[0]]
    fields: dict[str, Any] = {}
    if "header" in arrays:
        fields = fields_from_json(str(arrays["header"]))
        if fields.pop("kind") != kind:
            raise ValueError(f"{path}: its header says another kind than its array {found[0]}; save it again")
        fields.pop("ndim", None)
    fields |= _fields(kind, {name: array for name, array in arrays.items() if name not in (found[0], "header")})
    if "mask" in fields:
        mask = fields["mask"] != 0
        fields["mask"] = mask.reshape((1,) * (arrays[found[0]].ndim - mask.ndim) + tuple(mask.shape))
    if kind == "Image":
        return Image(_as_image(arrays["image"]), **fields)
    if kind == "KSpace":
        data = as_tensor(arrays["kspace"], "kspace")
        if "header" not in arrays and "mask" not in fields and data.ndim > 3:
            fields["mask"] = sampled(data)
        return KSpace(data, **fields)
    if "angles" not in fields:
        raise ValueError(f"{path}: a sinogram needs its angles in radians; save them as the array angles")
    return Sinogram(as_tensor(arrays["sinogram"], "sinogram"), **fields)


def _main(kind: str) -> str:
    """The name of the array that holds the data of a record."""
    return next(name for name, known in _NAMES.items() if known == kind)


def _fields(kind: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record that stand beside its data."""
    known = {*_TENSORS[kind], *_NUMBERS[kind], *_TUPLES[kind], *_PLAIN[kind]}
    fields: dict[str, Any] = {}
    for name, array in arrays.items():
        if name not in known:
            raise ValueError(f"{unknown_name(f'array beside {_main(kind)}', name, known)}; leave it away")
        if name in _TUPLES[kind]:
            fields[name] = tuple((int if name == "crop" else float)(v) for v in np.atleast_1d(array))
        elif name in _NUMBERS[kind] and (array.ndim == 0 or name not in _TENSORS[kind]):
            fields[name] = float(array.item())
        elif name in _PLAIN[kind]:
            fields[name] = array.item()
        else:
            fields[name] = as_tensor(array, name)
    return fields


def write(path: Path, record: Record, *, overwrite: bool = False) -> None:
    """Write a whole record to .npz (compressed), or an image without its metadata to .npy.

    Raises:
        TypeError: a record that is no image goes to .npy, or meta is not plain.
        FileExistsError: the file exists and `overwrite` is False.
    """
    if path.suffix.lower() == ".npy":
        if not isinstance(record, Image):
            raise TypeError(f"{path}: .npy holds one image, got {type(record).__name__}; use .npz")
        with atomic(path, overwrite=overwrite) as (temporary,), open(temporary, "wb") as file:
            np.save(file, record.data.detach().cpu().numpy(), allow_pickle=False)
        return
    kind = type(record).__name__
    arrays: dict[str, Any] = {_main(kind): record.data.detach().cpu().numpy(), "header": np.array(to_json(record))}
    for name in _TENSORS[kind]:
        value = getattr(record, name)
        if isinstance(value, torch.Tensor):
            arrays[name] = value.detach().cpu().numpy()
    with atomic(path, overwrite=overwrite) as (temporary,), open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
