"""Images of files and folders, to train a prior on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invreg._check import require_count, require_positive
from invreg.io import Image, formats, read
from invreg.io.dicom import is_dicom
from invreg.training.patches import ImageSet, Variation, require_images

BRIGHTEST = 0.999
"""Share of a file's values that lies below the one that becomes 1."""


def images(
    files: str | Sequence[str],
    held_out: str | Sequence[str] = (),
    *,
    size: int = 64,
    flips: bool = True,
    turns: bool = True,
    zoom: float = 0.1,
    gain: float = 0.1,
    phase: bool = True,
    smooth_phase: float = 0.0,
    least: float = 0.0,
    scale: float | None = None,
    offset: float = 0.0,
    magnitude: bool = False,
    channels: bool = False,
) -> ImageSet:
    """Images of files and folders, to train on by random patches.

    Every kind of file that `invreg.io.read` knows will do; a volume is so many slices. Of a folder come all such files,
    and the DICOM series in it, of folders within it as well.

    Args:
        files: to train on.
        held_out: to judge by.
        size: pixels of a side of the patches.
        flips, turns, zoom, gain, phase, smooth_phase: as of `Variation`.
        least: patches of a smaller root mean square are drawn anew, as of `Patches`.
        scale, offset: images become (value - offset) / scale; without scale, of each file the value that one in a
            thousand exceeds becomes 1.
        magnitude: take the magnitude of complex images.
        channels: of four axes, (N, C, y, x), the second is of channels, not of slices.

    Raises:
        FileNotFoundError: a file is missing, or a folder holds none.
        TypeError: a file holds no image, or an option of the wrong kind.
        ValueError: a file is damaged, empty (all values offset), or both trained on and held out; as of `Patches`.
    """
    variation = Variation(
        flips=flips, turns=turns, zoom=zoom, gain=gain, phase=phase, smooth_phase=smooth_phase
    )  # fmt: skip
    require_count("size", size)
    if scale is not None:
        require_positive("scale", scale)
    groups = []
    for option, given in (("files", files), ("held_out", held_out)):
        named = [given] if isinstance(given, str) else given
        if not isinstance(named, Sequence) or not all(isinstance(name, str) for name in named):
            raise TypeError(f"{option} must be a path or a list of paths, as text, got {given!r}")
        groups.append([place for name in named for place in _places(Path(name))])
    twice = {place.resolve() for place in groups[0]} & {place.resolve() for place in groups[1]}
    if twice:
        raise ValueError(f"{min(twice)} must be in one of files and held_out, got it in both")
    records = [[_record(place) for place in group] for group in groups]
    read_in = [
        [_images(*pair, scale, offset, magnitude, channels) for pair in zip(*both, strict=True)]
        for both in zip(groups, records, strict=True)
    ]
    numbers = tuple(k for k, one in enumerate(read_in[0]) for _ in one)
    found, judged = (tuple(image for one in group for image in one) for group in read_in)
    names = [
        f"{place}, image {k}" for both in zip(groups, read_in, strict=True)
        for place, some in zip(*both, strict=True) for k in range(len(some))
    ]  # fmt: skip
    require_images([*found, *judged], size, names)
    info = {"source": [str(place) for place in groups[0]], "images": len(found), "patch": size, "offset": offset}
    info["scale"] = "the 99.9th percentile of each file" if scale is None else scale
    return ImageSet(found, numbers, judged, size, variation, least, info | _geometry(records[0], zoom, magnitude))


def _geometry(records: Sequence[Image], zoom: float, magnitude: bool) -> dict[str, Any]:
    """The least and the largest pixel of the patches, and the units of the files, where all of them say so."""
    found: dict[str, Any] = {}
    sizes = [None if one.voxel_size is None else one.voxel_size[-2:] for one in records]
    known = [length for size in sizes if size is not None for length in size]
    if all(size is not None for size in sizes):
        found["pixel size (mm)"] = [round(min(known) / (1 + zoom), 4), round(max(known) * (1 + zoom), 4)]
    if not magnitude and {one.units for one in records} == {"HU"}:
        found["units"] = "HU"
    return found


def _places(path: Path) -> list[Path]:
    """The files of a folder, and its folders with a DICOM series, in order; of a file the file."""
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder; check the path")
        return [path]
    inside = sorted(one for one in path.iterdir() if not one.name.startswith("."))
    suffixes = tuple(s for one in formats() if one.name != "dicom" for s in one.suffixes if s != ".hdr")
    known = [one for one in inside if one.is_file() and one.name.lower().endswith(suffixes)]
    found = known + [place for one in inside if one.is_dir() and _holds_files(one) for place in _places(one)]
    files = [one for one in inside if one.is_file()]
    if any(one.suffix.lower() in (".dcm", ".ima") or (not one.suffix and is_dicom(one)) for one in files):
        found.append(path)  # a series
    if not found:
        raise FileNotFoundError(f"{path}: wanted images in this folder, got none of a known kind; check the path")
    return found


def _holds_files(folder: Path) -> bool:
    return any(names for _, _, names in os.walk(folder))


def _record(place: Path) -> Image:
    record = read(place)
    if not isinstance(record, Image):
        raise TypeError(f"{place}: wanted images, got {type(record).__name__}; reconstruct it and train on the result")
    return record


def _images(
    place: Path, record: Image, scale: float | None, offset: float, magnitude: bool, channels: bool
) -> tuple[Tensor, ...]:
    """The images of a file, scaled, (y, x) or (C, y, x) each."""
    data = record.data.abs() if magnitude else record.data
    data = (data.to(torch.complex64) if data.is_complex() else data.float()) - offset
    if scale is None:
        flat = data.abs().flatten()
        scale = float(flat.kthvalue(max(1, round(BRIGHTEST * flat.numel()))).values)
        if scale == 0:
            raise ValueError(f"{place}: wanted an image, got hardly a value but {offset}; leave it away, or give scale")
    data = data / scale
    return (data if data.ndim == 3 or channels else data.flatten(0, 1)).unbind()
