"""What a file holds, once read: raw k-space, a sinogram, or an image, each with its geometry."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from invreg._check import require_count, require_finite, require_positive, require_tensor

Units = Literal["HU", "1/mm", "arbitrary"]
UNITS: tuple[Units, ...] = ("HU", "1/mm", "arbitrary")


@dataclass(frozen=True, eq=False)
class KSpace:
    """A multi-coil Cartesian MRI measurement, zero where nothing was sampled.

    Args:
        data: (B, coil, [z,] y, x), complex, finite. Frequency zero is at index N // 2 of every axis.
        mask: bool, broadcastable to (B, 1, [z,] y, x), True where sampled; None means everywhere.
        maps: coil sensitivities, (B or 1, coil, [z,] y, x), in the dtype of `data`.
        calibration: separately acquired calibration lines on the same grid, (B or 1, coil, [z,] y, x), zero-filled.
        noise_covariance: E n n^H of the coils in the file's noise scan, scaled to the bandwidth of the imaging lines,
            (coil, coil), before any whitening.
        noise_sigma: standard deviation of each real component of the noise in `data`, E|n|^2 = 2 sigma^2: a number,
            or where lines were averaged unevenly a tensor that broadcasts to `data`.
        voxel_size: mm, in the order of the image axes ([z,] y, x), of the grid of `data`.
        affine: (4, 4), voxel index (x, y, z, 1) to mm in RAS+ axes; z counts the slices of a 2D stack.
        crop: the image shape ([z,] y, x), centred, that the scan was meant to show.
        slices: how many consecutive batch items are slices of one stack; batch = repetition * slices + slice.
        meta: plain values (numbers, strings, lists, dicts).

    Raises:
        TypeError: a field of the wrong kind or dtype.
        ValueError: shapes that do not fit, NaN or Inf, data outside the mask, a mask that samples nothing.
    """

    data: Tensor
    mask: Tensor | None = None
    maps: Tensor | None = None
    calibration: Tensor | None = None
    noise_covariance: Tensor | None = None
    noise_sigma: float | Tensor | None = None
    voxel_size: tuple[float, ...] | None = None
    affine: Tensor | None = None
    crop: tuple[int, ...] | None = None
    slices: int = 1
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_tensor("data", self.data)
        if not self.data.is_complex():
            raise TypeError(f"data must be complex k-space, got {self.data.dtype}; an image is not k-space")
        _require_layout("data", self.data, (4, 5), "(B, coil, [z,] y, x)")
        _check_geometry(self.voxel_size, self.affine, self.slices, self.data.shape[0], self.spatial)
        if self.mask is not None:
            _check_mask(self.mask, self.data)
        for name, value in (("maps", self.maps), ("calibration", self.calibration)):
            if value is not None:
                _check_like_kspace(name, value, self.data)
        _check_noise(self.noise_covariance, self.noise_sigma, self.data)
        if self.crop is not None and (
            len(self.crop) != len(self.spatial)
            or any(not 1 <= n <= full for n, full in zip(self.crop, self.spatial, strict=True))
        ):
            raise ValueError(f"crop must be a shape within {self.spatial}, got {self.crop}")

    @property
    def spatial(self) -> tuple[int, ...]:
        """The grid, ([z,] y, x)."""
        return tuple(self.data.shape[2:])

    def image(self, x: Tensor, units: Units = "arbitrary") -> Image:
        """An image on this grid, cropped to `crop`, with this scan's geometry.

        Args:
            x: (B, [z,] y, x), reconstructed on the grid of `data`.
            units: what its values mean.

        Raises:
            ValueError: x is not on the grid.
        """
        require_tensor("x", x)
        if tuple(x.shape[1:]) != self.spatial:
            raise ValueError(f"x must be (B, {', '.join(map(str, self.spatial))}), got {tuple(x.shape)}")
        shape = self.spatial if self.crop is None else self.crop
        affine = self.affine
        if affine is not None:
            offset = [full // 2 - n // 2 for full, n in zip(self.spatial, shape, strict=True)][::-1]
            shift = torch.tensor([*offset, *[0] * (3 - len(offset))], dtype=affine.dtype)
            affine = affine.clone()
            affine[:3, 3] += affine[:3, :3] @ shift
        slices = self.slices if x.shape[0] % self.slices == 0 else 1
        return Image(centre_crop(x, shape), units, self.voxel_size, affine, slices, dict(self.meta))


@dataclass(frozen=True, eq=False)
class Sinogram:
    """CT line integrals, after the logarithm.

    Args:
        data: (B, angles, detectors), real, finite.
        angles: radians, (angles,).
        detector_pitch: mm between detector cells (at the rotation axis for parallel beams), or None.
        centre_of_rotation: where the rotation axis falls on the detector, as a cell index counted from 0;
            (detectors - 1) / 2 is the middle. None if unknown.
        counts: net counts, shaped as `data`, or None.
        photons: expected counts without object: a number, or a tensor that broadcasts to `data`; None if unknown.
        meta: plain values.

    Raises:
        TypeError: a field of the wrong kind.
        ValueError: shapes that do not fit, NaN or Inf.
    """

    data: Tensor
    angles: Tensor
    detector_pitch: float | None = None
    centre_of_rotation: float | None = None
    counts: Tensor | None = None
    photons: float | Tensor | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("data", self.data), ("angles", self.angles)):
            require_tensor(name, value)
            if not value.is_floating_point():
                raise TypeError(f"{name} must be real floating point, got {value.dtype}")
        _require_layout("data", self.data, (3,), "(B, angles, detectors)")
        require_finite("angles", self.angles)
        if tuple(self.angles.shape) != (self.data.shape[1],):
            raise ValueError(
                f"angles must be ({self.data.shape[1]},), one for each row of data, got {tuple(self.angles.shape)}"
            )
        if self.detector_pitch is not None:
            require_positive("detector_pitch", self.detector_pitch)
        if self.counts is not None and self.counts.shape != self.data.shape:
            raise ValueError(f"counts must be {tuple(self.data.shape)} as data, got {tuple(self.counts.shape)}")
        if isinstance(self.photons, Tensor):
            _require_broadcast("photons", self.photons, tuple(self.data.shape))
        elif self.photons is not None:
            require_positive("photons", self.photons)

    @property
    def detector_offset(self) -> float | None:
        """How far the detector's middle lies from the rotation axis, mm, as the projectors take it; None if unknown."""
        if self.centre_of_rotation is None or self.detector_pitch is None:
            return None
        return ((self.data.shape[-1] - 1) / 2 - self.centre_of_rotation) * self.detector_pitch


@dataclass(frozen=True, eq=False)
class Image:
    """One or several images.

    Args:
        data: (B, [z,] y, x), real or complex floating point, finite.
        units: "HU", "1/mm" (linear attenuation) or "arbitrary".
        voxel_size: mm, in the order of the image axes ([z,] y, x), or None.
        affine: (4, 4), voxel index (x, y, z, 1) to mm in RAS+ axes; z counts the slices of a 2D stack. None if unknown.
        slices: how many consecutive batch items are slices of one stack (2D only); 1 means unrelated images.
        meta: plain values.

    Raises:
        TypeError: a field of the wrong kind.
        ValueError: shapes that do not fit, unknown units, NaN or Inf.
    """

    data: Tensor
    units: Units = "arbitrary"
    voxel_size: tuple[float, ...] | None = None
    affine: Tensor | None = None
    slices: int = 1
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_tensor("data", self.data)
        if not (self.data.is_floating_point() or self.data.is_complex()):
            raise TypeError(f"data must be floating point or complex, got {self.data.dtype}")
        _require_layout("data", self.data, (3, 4), "(B, [z,] y, x)")
        if self.units not in UNITS:
            raise ValueError(f"units must be one of {', '.join(UNITS)}, got {self.units!r}")
        _check_geometry(self.voxel_size, self.affine, self.slices, self.data.shape[0], tuple(self.data.shape[1:]))

    def abs(self) -> Image:
        """The magnitude of a complex image; a real one is returned as it is, with its signs."""
        return replace(self, data=self.data.abs()) if self.data.is_complex() else self

    def as_kspace(self) -> KSpace:
        """The same numbers read as single-coil k-space, sampled where they are not zero."""
        data = self.data[:, None]
        if not data.is_complex():
            raise TypeError(f"k-space is complex, but this image is {data.dtype}")
        return KSpace(
            data, sampled(data), voxel_size=self.voxel_size, affine=self.affine, slices=self.slices, meta=self.meta
        )


Record = KSpace | Sinogram | Image


def sampled(data: Tensor) -> Tensor | None:
    """Where any coil of zero-filled k-space (B, coil, [z,] y, x) is not zero, (B, 1, [z,] y, x); None if everywhere."""
    mask = (data != 0).any(1, keepdim=True)
    return None if bool(mask.all()) else mask


def centre_crop(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The last axes cropped to `shape` so that index N // 2 goes to n // 2.

    Raises:
        ValueError: `shape` exceeds x.
    """
    window: list[slice] = []
    for full, n in zip(x.shape[x.ndim - len(shape) :], shape, strict=True):
        if not 1 <= n <= full:
            raise ValueError(f"shape must be within {tuple(x.shape)}, got {shape}")
        start = full // 2 - n // 2
        window.append(slice(start, start + n))
    return x[tuple([slice(None)] * (x.ndim - len(window)) + window)]


def to_json(record: Record) -> str:
    """All of a record but its large arrays, as JSON text.

    Raises:
        TypeError: meta holds something that is not a plain value.
    """
    head: dict[str, Any] = {"invreg": 1, "kind": type(record).__name__, "meta": dict(record.meta)}
    if isinstance(record, Sinogram):
        head |= {"detector_pitch": record.detector_pitch, "centre_of_rotation": record.centre_of_rotation}
        head |= {"photons": None if isinstance(record.photons, Tensor) else record.photons}
    else:
        head |= {"voxel_size": record.voxel_size, "slices": record.slices}
        head |= {"affine": None if record.affine is None else record.affine.tolist(), "ndim": record.data.ndim}
    if isinstance(record, Image):
        head["units"] = record.units
    if isinstance(record, KSpace):
        head |= {"crop": record.crop, "noise_sigma": None}
        if not isinstance(record.noise_sigma, Tensor):
            head["noise_sigma"] = record.noise_sigma
        if record.noise_covariance is not None:
            head["noise_covariance"] = torch.view_as_real(record.noise_covariance.to(torch.complex128)).tolist()
    try:
        return json.dumps(head, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"meta must hold plain finite values (numbers, strings, lists, dicts): {error}") from error


def fields_from_json(text: str) -> dict[str, Any]:
    """The fields that `to_json` wrote, as keyword arguments of their record, beside "kind" and "ndim".

    Raises:
        ValueError: not such text.
    """
    head = json.loads(text)
    if not isinstance(head, dict) or head.get("invreg") != 1 or head.get("kind") not in _KINDS:
        raise ValueError(f"the header must name one of {', '.join(_KINDS)}, got {text[:60]!r}")
    meta = head.get("meta", {})
    if not isinstance(meta, dict):
        raise ValueError(f"meta must be a mapping, got {type(meta).__name__}")
    fields: dict[str, Any] = {"kind": head["kind"], "meta": meta}
    for name in ("detector_pitch", "centre_of_rotation", "photons", "noise_sigma"):
        if head.get(name) is not None:
            fields[name] = float(head[name])
    for name, kind in (("voxel_size", float), ("crop", int)):
        if head.get(name) is not None:
            fields[name] = tuple(kind(v) for v in head[name])
    if head.get("affine") is not None:
        fields["affine"] = torch.tensor(head["affine"], dtype=torch.float64)
    if head.get("noise_covariance") is not None:
        fields["noise_covariance"] = torch.view_as_complex(
            torch.tensor(head["noise_covariance"], dtype=torch.float64).contiguous()
        )
    fields |= {name: head[name] for name in ("units", "slices", "ndim") if head.get(name) is not None}
    return fields


_KINDS = ("KSpace", "Sinogram", "Image")


def _require_layout(name: str, value: Tensor, ndims: tuple[int, ...], layout: str) -> None:
    if value.ndim not in ndims:
        raise ValueError(f"{name} must be {layout}, got {tuple(value.shape)}")
    if value.numel() == 0:
        raise ValueError(f"{name} must not be empty, got {tuple(value.shape)}")
    require_finite(name, value)


def _require_broadcast(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if value.ndim != len(shape) or any(n not in (1, full) for n, full in zip(value.shape, shape, strict=True)):
        raise ValueError(f"{name} must broadcast to {shape}, got {tuple(value.shape)}")


def _check_geometry(
    voxel_size: tuple[float, ...] | None,
    affine: Tensor | None,
    slices: int,
    batch: int,
    spatial: tuple[int, ...],
) -> None:
    if voxel_size is not None:
        if len(voxel_size) != len(spatial):
            raise ValueError(f"voxel_size must have {len(spatial)} entries, one for each image axis, got {voxel_size}")
        for size in voxel_size:
            require_positive("voxel_size", size)
    if affine is not None:
        require_tensor("affine", affine)
        if tuple(affine.shape) != (4, 4) or not affine.is_floating_point():
            raise ValueError(f"affine must be a real (4, 4), got {affine.dtype} {tuple(affine.shape)}")
        require_finite("affine", affine)
        if affine[3].tolist() != [0, 0, 0, 1] or float(torch.linalg.det(affine)) == 0:
            raise ValueError(f"affine must be invertible with last row (0, 0, 0, 1), got {affine.tolist()}")
        steps = torch.linalg.vector_norm(affine[:3, :3], dim=0).tolist()[: len(spatial)][::-1]
        if voxel_size is not None and not all(
            math.isclose(a, b, rel_tol=1e-3) for a, b in zip(steps, voxel_size, strict=True)
        ):
            raise ValueError(f"voxel_size must be the steps of the affine, {tuple(steps)} mm, got {voxel_size}")
    require_count("slices", slices)
    if batch % slices or (slices > 1 and len(spatial) != 2):
        raise ValueError(
            f"slices must divide the batch ({batch}) of 2D images, got {slices} with image shape {spatial}"
        )


def _check_mask(mask: Tensor, data: Tensor) -> None:
    require_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}; use mask != 0")
    _require_broadcast("mask", mask, (data.shape[0], 1, *data.shape[2:]))
    if not bool(mask.any()):
        raise ValueError("mask samples nothing; True marks the measured entries")
    if bool((data.masked_fill(mask, 0) != 0).any()):
        raise ValueError("data must be 0 where the mask is False, got other values; multiply it by the mask")


def _check_like_kspace(name: str, value: Tensor, data: Tensor) -> None:
    require_tensor(name, value)
    if value.ndim != data.ndim or value.shape[0] not in (1, data.shape[0]) or value.shape[1:] != data.shape[1:]:
        raise ValueError(
            f"{name} must be {('1 or ' + str(data.shape[0]), *data.shape[1:])} as data, got {tuple(value.shape)}"
        )
    if value.dtype != data.dtype:
        raise TypeError(f"{name} is {value.dtype} but data is {data.dtype}; use {name}.to({data.dtype})")
    require_finite(name, value)


def _check_noise(covariance: Tensor | None, sigma: float | Tensor | None, data: Tensor) -> None:
    coils = data.shape[1]
    if covariance is not None:
        require_tensor("noise_covariance", covariance)
        if tuple(covariance.shape) != (coils, coils):
            raise ValueError(f"noise_covariance must be ({coils}, {coils}), got {tuple(covariance.shape)}")
        require_finite("noise_covariance", covariance)
    if isinstance(sigma, Tensor):
        _require_broadcast("noise_sigma", sigma, tuple(data.shape))
        if not bool((sigma > 0).all()):
            raise ValueError("noise_sigma must be > 0 everywhere, got a tensor with other values")
    elif sigma is not None:
        require_positive("noise_sigma", sigma)
