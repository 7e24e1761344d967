"""Data Exchange HDF5 of synchrotron tomography: projections, flat and dark fields, angles in degrees."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invreg.io import hdf5
from invreg.io.files import reading
from invreg.io.records import Sinogram
from invreg.noise import line_integrals

_MM = {
    "m": 1e3,
    "meter": 1e3,
    "cm": 10.0,
    "mm": 1.0,
    "um": 1e-3,
    "micron": 1e-3,
    "microns": 1e-3,
    "µm": 1e-3,
    "nm": 1e-6,
}
_DETECTOR = "measurement/instrument/detector"
_OBJECTIVE = "measurement/instrument/detection_system/objective"
_ROWS_FOR_CENTRE = 16
_LEAST_CONCORDANCE = 0.5
_FEWEST_COUNTS = 10.0
"""Real flat fields below this are no counts: the data were divided by them already."""
_LEAST_LIGHT = 1e-3
"""Of the largest flat field, below which a cell of such data is dead."""
_LEAST_TRANSMISSION = 2.0**-17
"""What stands for no light in such data: half a count of a camera of 16 bits."""


def read(path: Path) -> Sinogram:
    """Read a parallel-beam scan: `exchange/data` (angles, rows, detectors) becomes (rows, angles, detectors).

    Counts less the mean dark field (0 where that is negative), over the mean flat field less the mean dark field, go
    through `invreg.noise.line_integrals`, whose rule for low counts holds. Detector cells whose flat field does not
    exceed the dark one by a count are dead: their line integrals are interpolated along the detector, and
    `meta["dead_cells"]` counts them. Without `data_dark` the dark field is 0. Real data whose flat field is below 10
    everywhere were divided by it already (`meta["normalised"]`): their line integrals are -log(data / flat), with 2^-17
    for less light than that, and there are no counts. The centre of rotation is `find_centre`'s
    (`meta["centre_of_rotation"]` says "estimated"), or None where the angles or the data do not determine it.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ValueError: damaged, or data, data_white or theta are missing or do not fit together.
    """
    with reading(path, "Data Exchange HDF5"), hdf5.opened(path) as file:
        data = hdf5.numbers(path, file, "exchange/data", (3,), "(angles, rows, detectors)")
        shape = data.shape
        theta = hdf5.numbers(path, file, "exchange/theta", (1,), "angles in degrees, (angles,)")
        if theta.size != shape[0]:
            raise ValueError(f"exchange/theta must have {shape[0]} angles as exchange/data, got {theta.size}")
        angles = _radians(path, file, theta)
        white = _field(path, file, "exchange/data_white", shape[1:])
        dark = torch.zeros_like(white)
        if hdf5.has(file, "exchange/data_dark"):
            dark = _field(path, file, "exchange/data_dark", shape[1:])
        pitch = _pitch(path, file)
    with reading(path, "Data Exchange HDF5"):
        if data.dtype.kind not in "iuf" or not np.isfinite(data).all():
            raise ValueError(f"exchange/data must be finite real counts, got {data.dtype} with other values")
        light = torch.from_numpy(np.ascontiguousarray(data.transpose(1, 0, 2), dtype=np.float32)) - dark[:, None]
        normalised = data.dtype.kind == "f" and float((white - dark).max()) < _FEWEST_COUNTS
        integrals, alive, photons = _logarithm(light, white - dark, normalised)
        meta: dict[str, Any] = {"dead_cells": int((~alive).sum()), "dark_field": bool((dark != 0).any())}
        if normalised:
            meta["normalised"] = True
        centre = None
        try:
            centre = find_centre(integrals, angles)
            meta["centre_of_rotation"] = "estimated"
        except ValueError as error:
            meta["centre_of_rotation"] = f"not found: {error}"
        counts = None if normalised else light.clamp_min(0)
        return Sinogram(integrals, angles, pitch, centre, counts, None if normalised else photons, meta)


def _logarithm(light: Tensor, flat: Tensor, normalised: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Line integrals (rows, angles, detectors), which cells live (rows, detectors), and the flat field of those."""
    least = _LEAST_LIGHT * float(flat.max()) if normalised else 1.0
    alive = flat >= least
    if not float(flat.max()) > 0 or not bool(alive.any()):
        raise ValueError("exchange/data_white must exceed data_dark, got flat fields without light; check them")
    photons = flat.clamp_min(least)[:, None]
    if normalised:
        integrals = -torch.log((light / photons).clamp_min(_LEAST_TRANSMISSION))
    else:
        integrals, _ = line_integrals(light.clamp_min(0), photons)
    return _bridge(integrals, alive), alive, photons


def _field(path: Path, file: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    """The mean of flat or dark fields, (rows, detectors)."""
    values = hdf5.numbers(path, file, name, (2, 3), "(fields, rows, detectors)")
    if values.shape[-2:] != tuple(shape):
        raise ValueError(f"{name} must be (fields, {shape[0]}, {shape[1]}) as exchange/data, got {values.shape}")
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite real counts, got {values.dtype} with other values")
    mean = values.reshape(-1, *shape).mean(0, dtype=np.float64)
    return torch.from_numpy(mean.astype(np.float32))


def _radians(path: Path, file: Any, theta: Any) -> Tensor:
    if theta.dtype.kind not in "iuf" or not np.isfinite(theta).all():
        raise ValueError("exchange/theta must be finite angles in degrees, got other values")
    theta = theta.astype(np.float64)
    unit = _unit(file["exchange/theta"])
    if unit in ("rad", "radian", "radians"):
        return torch.from_numpy(theta).float()
    if theta.size > 8 and unit is None and 0 < np.ptp(theta) <= 2 * math.pi * 1.01:
        warnings.warn(
            f"{path}: exchange/theta spans {np.ptp(theta):.3g}, read as degrees as the format says; if these are "
            "radians, set its attribute units to 'rad'",
            stacklevel=2,
        )
    return torch.from_numpy(np.deg2rad(theta)).float()


def _unit(node: Any) -> str | None:
    value = node.attrs.get("units")
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return str(value).strip().lower() if isinstance(value, str) else None


def _pitch(path: Path, file: Any) -> float | None:
    """Cell size at the object, mm: the objective's resolution, else the detector's cell over the magnification."""

    def number(name: str) -> float | None:
        if not hdf5.has(file, name):
            return None
        value = np.ravel(hdf5.numbers(path, file, name, (0, 1), "a number"))
        return float(value[0]) if math.isfinite(value[0]) and value[0] > 0 else None

    resolution = number(f"{_OBJECTIVE}/resolution")
    if resolution is not None:
        scale = _MM.get(_unit(file[f"{_OBJECTIVE}/resolution"]) or "um")
        return None if scale is None else resolution * scale
    for name in ("pixel_size_x", "x_pixel_size", "pixel_size"):
        size = number(f"{_DETECTOR}/{name}")
        if size is not None:
            scale = _MM.get(_unit(file[f"{_DETECTOR}/{name}"]) or "m")
            return None if scale is None else size * scale / (number(f"{_OBJECTIVE}/magnification") or 1.0)
    return None


def _bridge(integrals: Tensor, alive: Tensor) -> Tensor:
    """Dead cells (rows, detectors) interpolated linearly from their living neighbours, the nearest at the ends."""
    integrals = integrals.clone()
    for row in torch.nonzero(~alive.all(1)).flatten().tolist():
        good = torch.nonzero(alive[row]).flatten()
        if good.numel() == 0:
            raise ValueError(f"row {row} of the detector is dead; leave it out")
        bad = torch.nonzero(~alive[row]).flatten()
        right = torch.searchsorted(good, bad).clamp(0, good.numel() - 1)
        left = (right - 1).clamp_min(0)
        left = torch.where(bad > good[right], right, left)  # beyond the last living cell
        a, b = good[left], good[right]
        share = ((bad - a) / (b - a).clamp_min(1)).clamp(0, 1).to(integrals.dtype)
        integrals[row][:, bad] = integrals[row][:, a] * (1 - share) + integrals[row][:, b] * share
    return integrals


def find_centre(sinogram: Tensor, angles: Tensor) -> float:
    """Where the rotation axis falls on the detector, from parallel projections that face each other.

    A projection and the one half a turn later are mirror images about the axis: p(angle + pi, s) = p(angle, 2 c - s).
    All such pairs that the angles offer, interpolated between neighbours and extrapolated by at most one step, are
    registered at once by the normalised mismatch over their overlap, whose minimum is refined by a parabola.

    Args:
        sinogram: line integrals, (B, angles, detectors), real.
        angles: radians, (angles,), covering at least half a turn less one step.

    Returns:
        The axis as a cell index counted from 0, between a tenth and nine tenths of the detector.

    Raises:
        ValueError: fewer than 3 angles or 8 cells, no facing pairs, or projections that do not mirror each other.
    """
    if sinogram.ndim != 3 or sinogram.is_complex() or angles.shape != sinogram.shape[1:2]:
        raise ValueError(
            "sinogram must be real (B, angles, detectors) with (angles,), "
            f"got {tuple(sinogram.shape)} and {tuple(angles.shape)}"
        )
    if sinogram.shape[1] < 3 or sinogram.shape[2] < 8:
        raise ValueError(f"sinogram must have 3 angles and 8 cells at least, got {tuple(sinogram.shape[1:])}")
    rows = torch.linspace(0, sinogram.shape[0] - 1, min(_ROWS_FOR_CENTRE, sinogram.shape[0])).round().long()
    order = torch.argsort(angles.double())
    values = sinogram.detach()[rows.to(sinogram.device)][:, order].double().cpu()
    here, facing = _facing_pairs(values, angles.double().cpu()[order.cpu()])
    score = _concordance(here, facing)
    n = sinogram.shape[2]
    allowed = slice(math.ceil(0.2 * (n - 1)), math.floor(1.8 * (n - 1)) + 1)  # of 2 c
    best = int(score[allowed].argmax()) + allowed.start
    if float(score[best]) < _LEAST_CONCORDANCE:
        raise ValueError(
            f"projections half a turn apart agree by {float(score[best]):.2f} of 1 only; give the centre by hand"
        )
    peak = float(best)
    if allowed.start < best < allowed.stop - 1:
        left, middle, right = (float(score[best + k]) for k in (-1, 0, 1))
        curvature = left - 2 * middle + right
        if math.isfinite(curvature) and curvature < 0:
            peak += 0.5 * (left - right) / curvature
    return peak / 2


def _facing_pairs(values: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Projections and those half a turn later, both (B, pairs, detectors), of sorted angles."""
    step = float((angles[1:] - angles[:-1]).median())
    last = float(angles[-1])
    wanted = angles + math.pi
    chosen = torch.nonzero(wanted <= last + 1.01 * step).flatten()
    backwards = torch.nonzero(angles - math.pi >= float(angles[0]) - 1.01 * step).flatten()
    if chosen.numel() == 0 or step <= 0:
        raise ValueError(
            f"angles must cover half a turn, got {math.degrees(last - float(angles[0])):.1f} degrees; "
            "give the centre by hand"
        )
    here = [values[:, chosen], values[:, backwards]]
    facing = [_interpolate(values, angles, wanted[chosen]), _interpolate(values, angles, angles[backwards] - math.pi)]
    return torch.cat(here, 1), torch.cat(facing, 1)


def _interpolate(values: Tensor, angles: Tensor, at: Tensor) -> Tensor:
    """Projections at other angles, linearly between (or beyond) the two nearest with distinct angles."""
    right = torch.searchsorted(angles, at).clamp(1, angles.numel() - 1)
    gap = angles[right] - angles[right - 1]
    share = torch.where(gap > 0, (at - angles[right - 1]) / gap.clamp_min(1e-12), torch.ones_like(gap))[:, None]
    return values[:, right - 1] * (1 - share) + values[:, right] * share


def _concordance(here: Tensor, facing: Tensor) -> Tensor:
    """2 <p, q(m - .)> / (|p|^2 + |q|^2) over the overlap, for every m = 0 ... 2 (n - 1); 1 is perfect."""
    n = here.shape[-1]
    size = 1 << (2 * n - 1).bit_length()

    def convolve(a: Tensor, b: Tensor) -> Tensor:
        product: Tensor = torch.fft.rfft(a, size) * torch.fft.rfft(b, size)
        sums: Tensor = torch.fft.irfft(product.sum(tuple(range(product.ndim - 1))), size)
        return sums[: 2 * n - 1]

    ones = torch.ones_like(here)
    energy = convolve(here.square(), ones) + convolve(ones, facing.square())
    total = here.square().sum() + facing.square().sum()
    score = 2 * convolve(here, facing) / energy.clamp_min(1e-300)
    return torch.where(energy > 0.2 * total, score, -torch.inf)
