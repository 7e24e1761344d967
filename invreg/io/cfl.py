"""BART's .cfl/.hdr pairs: complex64, column-major, sixteen axes."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from invreg.io.files import as_tensor, atomic, pair_of, reading, require_file
from invreg.io.records import Image, KSpace, Record, Sinogram, fields_from_json, sampled, to_json

DIMS = 16
COIL, MAPS, TIME, SLICE = 3, 4, 10, 13
_LARGEST_HEADER = 1 << 20


def read(path: Path) -> KSpace | Image:
    """Read a pair by either of its names.

    Axes 0, 1, 2 are x, y, z, axis 3 the coils; the rest becomes the batch, slices (axis 13) fastest. With more than one
    coil the content is k-space, sampled where it is not exactly zero, else a complex image; a header that `write` made
    says it outright. For k-space of a single coil by others use `Image.as_kspace`.

    Raises:
        FileNotFoundError, IsADirectoryError: one of the pair is missing.
        ValueError: a damaged header, several map sets, or a size that does not fit.
    """
    data, header = pair_of(path)
    header_size, data_size = require_file(header), require_file(data)
    with reading(header, "BART header"):
        if header_size > _LARGEST_HEADER:
            raise ValueError(f"{header}: wanted a short text, got {header_size} bytes; it is no BART header")
        dims, fields = _parse(header, header.read_text(encoding="utf-8"))
        if 8 * math.prod(dims) != data_size:
            raise ValueError(
                f"{header}: wanted {data} of {8 * math.prod(dims)} bytes for dimensions {_short(dims)}, "
                f"got {data_size}; the pair does not belong together or is truncated"
            )
    with reading(data, "BART cfl"):
        array = np.fromfile(data, dtype="<c8").reshape(dims, order="F")
        order = [n for n in range(DIMS - 1, MAPS, -1) if n != SLICE]  # slowest first, slices fastest
        array = array.transpose(*order, SLICE, MAPS, COIL, 2, 1, 0)
        array = array.reshape(-1, *array.shape[-5:])  # (B, maps, coil, z, y, x)
        if array.shape[1] > 1:
            raise ValueError(f"{data}: axis 4 holds {array.shape[1]} map sets, want 1; extract one with bart slice 4 0")
        slices = dims[SLICE] if dims[2] == 1 else 1
        return _record(as_tensor(array[:, 0], "cfl"), {"slices": slices} | fields)


def _record(data: Any, fields: dict[str, Any]) -> KSpace | Image:
    kind, ndim = fields.pop("kind", None), fields.pop("ndim", None)
    coils = data.shape[1]
    if kind == "Sinogram" or (kind == "Image" and coils > 1):
        raise ValueError(f"the header says {kind}, but there are {coils} coils; the pair does not belong together")
    is_image = kind == "Image" or (kind is None and coils == 1)
    if is_image:
        data = data[:, 0]
    volume = data.shape[-3] > 1 or ndim == (4 if is_image else 5)
    if not volume:
        data = data.squeeze(-3)
    return Image(data, **fields) if is_image else KSpace(data, sampled(data), **fields)


def _parse(path: Path, content: str) -> tuple[list[int], dict[str, Any]]:
    """Dimensions, and the record's fields if the header carries them."""
    lines = content.splitlines()
    sections = {line[1:].strip(): lines[i + 1] for i, line in enumerate(lines[:-1]) if line.startswith("#")}
    words = sections.get("Dimensions", "").split()
    if not words or len(words) > DIMS or not all(word.isascii() and word.isdigit() for word in words):
        raise ValueError(f"{path}: wanted a line '# Dimensions' and up to {DIMS} counts after it, got {lines[:2]}")
    dims = [int(word) for word in words]
    if min(dims) < 1:
        raise ValueError(f"{path}: dimensions must be >= 1, got {dims}; the header is damaged")
    fields = fields_from_json(sections["invreg"]) if "invreg" in sections else {}
    return dims + [1] * (DIMS - len(dims)), fields


def _short(dims: list[int]) -> str:
    last = max((i for i, n in enumerate(dims) if n > 1), default=0)
    return " ".join(map(str, dims[: last + 1]))


def write(path: Path, record: Record, *, overwrite: bool = False) -> None:
    """Write k-space or an image as a pair; both files are exchanged together. The precision is single.

    Raises:
        TypeError: a sinogram.
        ValueError: k-space with coil maps, calibration lines or an uneven noise level, which a pair cannot hold.
        FileExistsError: one of the pair exists and `overwrite` is False.
    """
    if isinstance(record, Sinogram):
        raise TypeError(f"{path}: cfl holds k-space or images, got Sinogram; use .npz")
    data = record.data.detach().cpu().numpy()
    if isinstance(record, KSpace):
        for name in ("maps", "calibration"):
            if getattr(record, name) is not None:
                raise ValueError(f"{path}: a cfl pair holds one array, but there are {name} too; use .npz")
        if record.noise_sigma is not None and not isinstance(record.noise_sigma, float | int):
            raise ValueError(f"{path}: a cfl pair cannot hold a noise level for each line; use .npz")
    else:
        data = data[:, None]
    if data.ndim == 4:
        data = data[:, :, None]
    batch, coils, *spatial = data.shape
    dims = [1] * DIMS
    dims[0], dims[1], dims[2] = spatial[::-1]
    dims[COIL], dims[SLICE], dims[TIME] = coils, record.slices, batch // record.slices
    head = f"# Dimensions\n{' '.join(map(str, dims))} \n# invreg\n{to_json(record)}\n"
    with atomic(*pair_of(path), overwrite=overwrite) as (content, header):
        # (repetition, slice, coil, z, y, x) in C order is x fastest; BART wants the coil before slice and time, as here
        ordered = data.reshape(batch // record.slices, record.slices, coils, *spatial)
        ordered.swapaxes(0, 1).astype("<c8").tofile(content)
        header.write_text(head, encoding="utf-8")
