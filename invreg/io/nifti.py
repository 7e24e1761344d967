"""NIfTI images (.nii, .nii.gz), their axes and affine turned to ours."""

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from invreg.io.files import as_tensor, atomic, reading, require_file, require_stored
from invreg.io.records import Image, Record, fields_from_json, to_json

_MM = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}
_COMMENT = 6  # NIfTI's code of a plain-text header extension


def read(path: Path) -> Image:
    """Read one file: its array (x, y, z[, t]) becomes (t, z, y, x), or (t, y, x) where there is one plane.

    Scale factors are applied; lengths are mm; the affine is None where the file states none. Where it states one the
    voxel size is its steps, whatever the header's zooms. A file that `write` made gives the same record again.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ValueError: damaged, truncated, colour, or more than four axes.
    """
    size = require_file(path)
    import nibabel

    with reading(path, "NIfTI"):
        compressed = _starts_with(path, b"\x1f\x8b")
        loader = nibabel.Nifti2Image if _is_nifti2(path, compressed) else nibabel.Nifti1Image
        with open(path, "rb") as raw:
            stream = _unzipped(raw) if compressed else raw
            image = loader.from_stream(stream)
            header = image.header
            shape = tuple(int(n) for n in image.shape)
            if not 2 <= len(shape) <= 7 or any(n != 1 for n in shape[4:]) or min(shape) < 1:
                raise ValueError(f"wanted (x, y[, z[, t]]), got shape {shape}; extract what you need")
            dtype = header.get_data_dtype()
            require_stored(path, int(np.prod(shape, dtype=object)) * dtype.itemsize, size, compressed=compressed)
            array = np.asanyarray(image.dataobj)
        scaled = dtype.kind in "iu" and dtype.itemsize <= 2 and array.dtype.kind == "f"
        if scaled or (dtype.kind == "f" and dtype.itemsize == 4):
            array = array.astype(np.float32)
        array = array.reshape((*shape, 1, 1)[:4] if len(shape) < 4 else shape[:4])
        return _record(as_tensor(array.transpose(3, 2, 1, 0), "the image"), image)


def _record(data: torch.Tensor, image: Any) -> Image:
    """The record of an array (t, z, y, x) under the header of `image`."""
    header = image.header
    fields = _own_fields(header)
    slices = int(fields.get("slices", 1))
    if data.shape[1] == 1 and fields.get("ndim") != 4:
        data = data[:, 0]
    elif slices > 1:
        if slices != data.shape[1]:
            raise ValueError(f"its header tells of {slices} slices but there are {data.shape[1]}; write it again")
        data = data.flatten(0, 1)
    unit = _MM[header.get_xyzt_units()[0]]
    sizes = [*(float(v) * unit for v in header.get_zooms()[:3]), 1.0]
    affine = None
    if int(header["sform_code"]) or int(header["qform_code"]):
        scale = np.diag([unit, unit, unit, 1.0])
        affine = torch.from_numpy(scale @ np.asarray(image.affine, dtype=np.float64))
        sizes = torch.linalg.vector_norm(affine[:3, :3], dim=0).tolist()
    voxel = tuple(sizes[: data.ndim - 1][::-1])
    known = {name: fields[name] for name in ("units", "meta") if name in fields}
    stated = all(np.isfinite(v) and v > 0 for v in voxel) and ("kind" not in fields or "voxel_size" in fields)
    return Image(
        data,
        voxel_size=voxel if stated else None,
        affine=affine,
        slices=slices,
        **known,
    )


def _own_fields(header: Any) -> dict[str, Any]:
    """What `write` put into a header extension, if it did."""
    for extension in header.extensions:
        if int(extension.get_code()) != _COMMENT:
            continue
        content = extension.get_content()
        content = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
        content = content.rstrip("\0 ")
        if content.startswith('{"invreg"'):
            fields = fields_from_json(content)
            if fields["kind"] != "Image":
                raise ValueError(f"its header says {fields['kind']}, want Image; write it again")
            return fields
    return {}


def _starts_with(path: Path, magic: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


def _unzipped(raw: Any) -> Any:
    return gzip.GzipFile(fileobj=raw, mode="rb")


def _is_nifti2(path: Path, compressed: bool) -> bool:
    with open(path, "rb") as raw:
        start = (_unzipped(raw) if compressed else raw).read(4)
    return int.from_bytes(start, "little") == 540 or int.from_bytes(start, "big") == 540


def write(path: Path, record: Record, *, overwrite: bool = False) -> None:
    """Write a real image with its affine: (B, z, y, x) as (x, y, z, t), a stack of slices as (x, y, z).

    Slices without an affine lie `meta["slice_thickness"]` apart where that is a length, else 1 mm. Units, metadata and
    what NIfTI has no field for go into a header extension, which other programs pass over.

    Raises:
        TypeError: no image, or a complex one.
        FileExistsError: the file exists and `overwrite` is False.
    """
    if not isinstance(record, Image):
        raise TypeError(f"{path}: NIfTI holds images, got {type(record).__name__}; use .npz")
    if record.data.is_complex():
        raise TypeError(f"{path}: NIfTI is written real, got {record.data.dtype}; use image.abs(), or .cfl, .h5, .npz")
    import nibabel

    data = record.data.detach().cpu()
    data = data.float() if data.dtype.itemsize < 4 else data
    if data.ndim == 3:
        data = data.reshape(-1, record.slices, *data.shape[1:])
    array = data.numpy().transpose(3, 2, 1, 0)
    array = array[..., 0] if array.shape[3] == 1 else array
    affine = None if record.affine is None else record.affine.double().cpu().numpy()
    image = nibabel.Nifti1Image(array, affine)
    if affine is not None:
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)  # its nearest rotation; the sform is what is read
    elif record.voxel_size is not None:
        sizes = [*record.voxel_size[::-1], _thickness(record)][:3]
        image.header.set_zooms((*sizes, *[1.0] * (array.ndim - 3)))
    image.header.set_xyzt_units("mm")
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", to_json(record).encode()))
    with atomic(path, overwrite=overwrite) as (temporary,), open(temporary, "wb") as raw:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as stream:
                image.to_stream(stream)
        else:
            image.to_stream(raw)


def _thickness(record: Image) -> float:
    """Of the slices of a stack, mm."""
    stated = record.meta.get("slice_thickness")
    return float(stated) if isinstance(stated, int | float) and math.isfinite(stated) and stated > 0 else 1.0
