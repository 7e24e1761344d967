"""A few T1-weighted slices of the Colin27 average brain; NOTICE.md beside this file carries their copyright."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

HEAD_SLICES = 6
BRAIN_SLICES = 4
_VOXEL_SIZE = MappingProxyType({"head": 1.0, "brain": 0.5})  # mm


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice of the Colin27 average brain.

    Args:
        image: magnitude, (1, y, x), float32, 0 to 1 in units of the slice's largest value. Rows run from superior or
            anterior to inferior or posterior, columns towards the subject's right (sagittal: anterior).
        voxel_size: (y, x) in mm.
        plane: "axial", "coronal" or "sagittal".
        position: of the slice along its normal in MNI space, mm.
    """

    image: Tensor
    voxel_size: tuple[float, float]
    plane: str
    position: float

    @property
    def field_of_view(self) -> tuple[float, float]:
        """Height and width in mm."""
        height, width = self.image.shape[-2:]
        return height * self.voxel_size[0], width * self.voxel_size[1]


def head_slice(index: int = 0) -> Slice:
    """A T1-weighted slice of the whole head, 1 mm: 0-3 axial (8, 20, -4, 40 mm), 4 coronal, 5 sagittal.

    It is for demonstration and evaluation: train nothing on it.

    Raises:
        ValueError: no such slice.

    Source: Holmes et al. 1998, "Enhancement of MR images using registration for signal averaging".
    """
    return _slice("head", index, HEAD_SLICES)


def brain_slice(index: int = 0) -> Slice:
    """A T1-weighted slice of the brain alone, 0.5 mm: 0-2 axial (8, 20, -20 mm), 3 coronal.

    Skull, scalp and most of the fluid are masked to 0. It is for demonstration and evaluation: train nothing on it.

    Raises:
        ValueError: no such slice.

    Source: Holmes et al. 1998, "Enhancement of MR images using registration for signal averaging".
    """
    return _slice("brain", index, BRAIN_SLICES)


def _slice(which: str, index: int, count: int) -> Slice:
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        raise ValueError(f"index of a {which} slice must be an int from 0 to {count - 1}, got {index!r}")
    name, pixels = _stored(which)[index]
    _, plane, position = name.split("_")
    size = _VOXEL_SIZE[which]
    image = torch.from_numpy(pixels).to(torch.float32)
    return Slice((image / image.max())[None], (size, size), plane, float(position))


@cache
def _stored(which: str) -> tuple[tuple[str, Any], ...]:
    """Name and pixels (uint8) of every slice in a file, in order."""
    import numpy as np

    with (files("invreg.assets") / f"colin27_{which}.npz").open("rb") as file, np.load(file, allow_pickle=False) as npz:
        return tuple((name, npz[name]) for name in sorted(npz.files))
