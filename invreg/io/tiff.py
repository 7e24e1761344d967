"""TIFF: one image or a stack of pages."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from invreg.io.files import as_tensor, atomic, reading, require_file, require_module, require_stored
from invreg.io.records import Image, Record, fields_from_json, to_json

_MM_PER_UNIT = {2: 25.4, 3: 10.0}  # resolution unit tag: inch, centimetre


def read(path: Path) -> Image:
    """Read a grey TIFF: several pages are the planes of a volume (1, z, y, x), one page is (1, y, x).

    The pixel size comes from the resolution tags (with ImageJ's spacing for z) where they state a unit. A file that
    `write` made gives the same record again.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ModuleNotFoundError: tifffile is missing.
        ValueError: damaged, colour, complex, pages of different shapes, or an unknown compression.
    """
    size = require_file(path)
    tifffile = require_module("tifffile", "ct", "reading TIFF")
    with reading(path, "TIFF"), tifffile.TiffFile(path) as file:
        pages = list(file.pages)
        first = pages[0]
        if first.samplesperpixel != 1 or len(first.shape) != 2:
            raise ValueError(f"wanted grey pages (y, x), got {first.shape}; convert colour to grey first")
        if any(page.shape != first.shape or page.dtype != first.dtype for page in pages):
            raise ValueError(
                "wanted pages of one shape and dtype, got several; split the file (pyramids: take a level)"
            )
        if first.dtype is None or first.dtype.kind not in "iuf":
            raise ValueError(f"wanted real numbers, got {first.dtype}; complex images go to .npz or .cfl")
        compressed = int(first.compression) != 1
        require_stored(path, first.nbytes * len(pages), size, compressed=compressed)
        stack = np.stack([page.asarray() for page in pages])
        data = as_tensor(stack, "the image")
        fields = _own_fields(file)
        if fields:
            if fields.pop("kind") != "Image":
                raise ValueError("its header tells of another record than an image; write it again")
            if fields.pop("ndim") == 4:
                planes = _planes(file)
                data = data.reshape(-1, planes, *data.shape[1:])
            return Image(data, **fields)
        voxel = _pixel_size(file, first, len(pages))
        return Image(data[None] if len(pages) > 1 else data, voxel_size=voxel)


def _description(file: Any) -> dict[str, Any]:
    """The JSON that tifffile keeps in the first page's description, {} if it is something else."""
    text = file.pages[0].description
    if not text.startswith("{"):
        return {}
    content = json.loads(text)
    return content if isinstance(content, dict) else {}


def _own_fields(file: Any) -> dict[str, Any]:
    header = _description(file).get("invreg")
    return fields_from_json(header) if isinstance(header, str) else {}


def _planes(file: Any) -> int:
    planes = _description(file).get("planes")
    if not isinstance(planes, int) or planes < 1:
        raise ValueError(f"its header must state a count of planes, got {planes!r}; write it again")
    return planes


def _pixel_size(file: Any, page: Any, pages: int) -> tuple[float, ...] | None:
    """Voxel size ([z,] y, x) in mm, None unless all of it is stated."""
    tags = page.tags
    imagej = file.imagej_metadata or {}
    unit = {"mm": 1.0, "cm": 10.0, "um": 1e-3, "micron": 1e-3, "\\u00B5m": 1e-3, "inch": 25.4}.get(
        str(imagej.get("unit", ""))
    ) or (_MM_PER_UNIT.get(int(tags["ResolutionUnit"].value)) if "ResolutionUnit" in tags else None)
    if unit is None or "XResolution" not in tags or "YResolution" not in tags:
        return None
    sizes = []
    for name in ("YResolution", "XResolution"):
        numerator, denominator = tags[name].value
        if numerator <= 0 or denominator <= 0:
            return None
        sizes.append(unit * denominator / numerator)
    if pages == 1:
        return tuple(sizes)
    spacing = imagej.get("spacing")
    if not isinstance(spacing, int | float) or not math.isfinite(spacing) or spacing <= 0:
        return None
    return (unit * float(spacing), *sizes)


def write(path: Path, record: Record, *, overwrite: bool = False) -> None:
    """Write a real image, a page for each plane, with its resolution; the rest goes into the description as JSON.

    Raises:
        TypeError: no image, or a complex one.
        ModuleNotFoundError: tifffile is missing.
        FileExistsError: the file exists and `overwrite` is False.
    """
    if not isinstance(record, Image):
        raise TypeError(f"{path}: TIFF holds images, got {type(record).__name__}; use .npz")
    if record.data.is_complex():
        raise TypeError(f"{path}: TIFF is written real, got {record.data.dtype}; use image.abs(), or .cfl, .h5, .npz")
    tifffile = require_module("tifffile", "ct", "writing TIFF")
    data = record.data.detach().cpu()
    pages = data.flatten(0, -3).numpy()
    description = {"invreg": to_json(record), "planes": data.shape[1] if data.ndim == 4 else 1}
    resolution, unit = None, None
    if record.voxel_size is not None:
        resolution, unit = (10 / record.voxel_size[-1], 10 / record.voxel_size[-2]), "CENTIMETER"
    with atomic(path, overwrite=overwrite) as (temporary,), open(temporary, "wb") as file:
        tifffile.imwrite(
            file,
            pages,
            photometric="minisblack",
            metadata=description,
            resolution=resolution,
            resolutionunit=unit,
            bigtiff=pages.nbytes > 2**31,
        )
