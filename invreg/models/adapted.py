"""Denoisers made of denoisers: for other units, for volumes slice by slice, for large images tile by tile."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from types import EllipsisType

import torch
from torch import Tensor

from invreg._check import require_count, require_finite, require_positive, require_tensor
from invreg.interfaces import Denoiser
from invreg.linalg import expand

Place = tuple[EllipsisType | slice, ...]


class Calibrated(Denoiser):
    """A denoiser in the units of the user's images: x = scale * (an image as the denoiser knows them) + offset.

    Args:
        denoiser: in its own units, such as images within -1 and 1.
        scale: > 0; a number, () or one for each sample, (B,). `calibration` estimates it.
        offset: a number, () or (B,); complex for complex images only.

    Its noise levels follow: sigma is in the user's units, and so is `sigma_range`, the levels that suit every sample.
    Its `image_scale` is the argument times that of the denoiser; of one for each sample, the geometric mean.

    Raises:
        TypeError, ValueError: arguments of another kind, a scale that is not positive, or scales so different that no
            noise level suits all; on call, a batch of another size.
    """

    scale: Tensor | float
    offset: Tensor | complex

    def __init__(self, denoiser: Denoiser, scale: Tensor | float, offset: Tensor | complex = 0.0) -> None:
        super().__init__()
        _require_denoiser(denoiser)
        self.denoiser = denoiser
        if isinstance(scale, Tensor):
            if not scale.is_floating_point() or scale.ndim > 1:
                raise TypeError(f"scale must be real and () or (B,), got {scale.dtype} {tuple(scale.shape)}")
            if not bool(((scale > 0) & scale.isfinite()).all()):
                raise ValueError("scale must be finite and > 0 for every sample, got other values")
            self.register_buffer("scale", scale)
            self._mean = float(scale.double().log().mean().exp())
        else:
            require_positive("scale", scale)
            self.scale, self._mean = scale, float(scale)
        if isinstance(offset, Tensor):
            if offset.ndim > 1:
                raise ValueError(f"offset must be () or (B,), got {tuple(offset.shape)}")
            require_finite("offset", offset)
            self.register_buffer("offset", offset)
        elif isinstance(offset, bool) or not isinstance(offset, (int, float, complex)):
            raise TypeError(f"offset must be a number or a tensor, got {type(offset).__name__}")
        else:
            self.offset = offset
        low, high = self.sigma_range
        if low > high:
            raise ValueError(
                f"scale must leave noise levels that suit every sample, got {low:g} to {high:g}; "
                "calibrate samples of one kind together"
            )

    @property
    def config(self) -> Mapping[str, object]:
        """The constructor's arguments, for `save_pretrained`."""
        if isinstance(self.scale, Tensor) or isinstance(self.offset, Tensor):
            raise TypeError("a calibration that is a tensor belongs to its images and cannot be saved; use numbers")
        return {"denoiser": self.denoiser, "scale": self.scale, "offset": self.offset}

    @property
    def sigma_range(self) -> tuple[float, float]:
        low, high = self.denoiser.sigma_range
        if isinstance(self.scale, Tensor):
            return low * float(self.scale.max()), high * float(self.scale.min())
        return low * self.scale, high * self.scale

    @property
    def image_scale(self) -> float:
        return self._mean * self.denoiser.image_scale

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        scale = _per_sample("scale", self.scale, x, x.real.dtype)
        complex_offset = self.offset.is_complex() if isinstance(self.offset, Tensor) else self.offset.imag != 0
        if complex_offset and not x.is_complex():
            raise TypeError(f"offset must be real for real images, got {self.offset} and x {x.dtype}")
        number = self.offset if isinstance(self.offset, Tensor) or complex_offset else self.offset.real
        offset = expand(_per_sample("offset", number, x, x.dtype), x)
        level = torch.as_tensor(sigma, dtype=scale.dtype, device=x.device) / scale
        wide = expand(scale, x)
        return wide * self.denoiser((x - offset) / wide, level) + offset


def calibration(x: Tensor, *, quantile: float = 0.99, reference: float = 1.0) -> Tensor:
    """The scale of `Calibrated` from first images, such as zero-filled ones: a quantile of |x|, over `reference`.

    A quantile, because a few bright pixels, as metal or vessels give, move a maximum and hardly move it. It is the k-th
    smallest magnitude of a sample with k = ceil(quantile * entries), which scales with x.

    Args:
        x: first images, (B, *signal), real or complex.
        quantile: above 0, up to 1.
        reference: that quantile of |x| in images as the denoiser knows them, > 0.

    Returns:
        One scale for each sample, (B,).

    Raises:
        TypeError, ValueError: arguments of another kind, NaN or Inf, or an image whose quantile is 0.
    """
    require_tensor("x", x)
    require_positive("quantile", quantile)
    require_positive("reference", reference)
    if quantile > 1:
        raise ValueError(f"quantile must be within 0 and 1, got {quantile}; 0.99 stands for 99 %")
    if x.ndim < 2 or not (x.is_floating_point() or x.is_complex()):
        raise ValueError(f"x must be floating point or complex, (B, *signal), got {x.dtype} {tuple(x.shape)}")
    require_finite("x", x)
    size = x.detach().abs().flatten(1)
    found = size.kthvalue(math.ceil(quantile * size.shape[1]), dim=1).values
    if bool((found == 0).any()):
        raise ValueError(f"x must have more than {quantile:.0%} of its entries other than 0; raise quantile or crop it")
    return found / reference


class Slices(Denoiser):
    """A denoiser of images at work on volumes, slice by slice.

    Args:
        denoiser: of the slices. What belongs to samples, such as a scale for each, goes around `Slices`, not inside.
        axis: along which the slices lie, counted as in x; -3 for z of (B, z, y, x). Not 0, which is the batch.
        batch: at most so many slices at once; None for all.

    Raises:
        TypeError, ValueError: arguments of another kind; on call, an axis that x does not have.
    """

    def __init__(self, denoiser: Denoiser, axis: int = -3, batch: int | None = None) -> None:
        super().__init__()
        _require_denoiser(denoiser)
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise TypeError(f"axis must be an int, got {type(axis).__name__}")
        if axis == 0:
            raise ValueError("axis must not be 0, the axis of the batch; use -3 for z of (B, z, y, x)")
        if batch is not None:
            require_count("batch", batch)
        self.denoiser, self.axis, self.batch = denoiser, axis, batch

    @property
    def config(self) -> Mapping[str, object]:
        """The constructor's arguments, for `save_pretrained`."""
        return {"denoiser": self.denoiser, "axis": self.axis, "batch": self.batch}

    @property
    def sigma_range(self) -> tuple[float, float]:
        return self.denoiser.sigma_range

    @property
    def image_scale(self) -> float:
        return self.denoiser.image_scale

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        if not -x.ndim < self.axis < x.ndim:
            raise ValueError(f"x must have an axis {self.axis} besides its batch, got {tuple(x.shape)}")
        stacked = x.movedim(self.axis, 1)
        images = stacked.flatten(0, 1)
        level = _levels(sigma, x)
        level = level.repeat_interleave(stacked.shape[1]) if level.ndim else level
        size = self.batch or len(images)
        parts = [
            self.denoiser(images[i : i + size], level[i : i + size] if level.ndim else level)
            for i in range(0, len(images), size)
        ]
        return torch.cat(parts).reshape(stacked.shape).movedim(1, self.axis)


class Tiles(Denoiser):
    """A denoiser at work on overlapping tiles of the last axes, which are blended: for images larger than memory.

    The weights of the tiles sum to 1 at every pixel and rise as sin^2 over the overlap, less a margin on either side
    that counts nothing. Where the margin is no smaller than the denoiser's reach, the result is that of the whole
    image; a network that coarsens its image also needs tiles that start at multiples of its coarsest pixel, as all but
    the last of each axis do where size - overlap is one.

    Args:
        denoiser: of the tiles. What belongs to samples, such as a scale for each, goes around `Tiles`, not inside.
        size: of a tile in pixels along each of the last axes; a number stands for two axes.
        overlap: pixels that neighbours share at least, < size.
        margin: pixels at each inner edge of a tile that are dropped; 2 * margin < overlap, or both 0.
        batch: at most so many tiles of each image at once.

    An axis shorter than the tile is one tile.

    Raises:
        TypeError, ValueError: arguments of another kind or value; on call, images with too few axes.
    """

    def __init__(
        self, denoiser: Denoiser, size: int | Sequence[int], overlap: int, *, margin: int = 0, batch: int = 1
    ) -> None:
        super().__init__()
        _require_denoiser(denoiser)
        sizes = (size, size) if isinstance(size, int) else tuple(size)
        for one in sizes:
            require_count("size", one)
        require_count("overlap", overlap, least=0)
        require_count("margin", margin, least=0)
        require_count("batch", batch)
        if not sizes or overlap >= min(sizes):
            raise ValueError(f"overlap must be < size, got {overlap} and {size}")
        if margin and 2 * margin >= overlap:
            raise ValueError(f"margin must be < overlap / 2 = {overlap / 2:g}, got {margin}; raise overlap")
        self.denoiser, self.size, self.overlap, self.margin, self.batch = denoiser, sizes, overlap, margin, batch

    @property
    def config(self) -> Mapping[str, object]:
        """The constructor's arguments, for `save_pretrained`."""
        return {
            "denoiser": self.denoiser,
            "size": self.size,
            "overlap": self.overlap,
            "margin": self.margin,
            "batch": self.batch,
        }

    @property
    def sigma_range(self) -> tuple[float, float]:
        return self.denoiser.sigma_range

    @property
    def image_scale(self) -> float:
        return self.denoiser.image_scale

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        if x.ndim <= len(self.size):
            raise ValueError(f"x must have a batch and {len(self.size)} axes or more, got {tuple(x.shape)}")
        level = _levels(sigma, x)
        found = torch.zeros_like(x)
        tiles = self._tiles(x)
        while some := list(itertools.islice(tiles, self.batch)):
            together = torch.cat([x[place] for place, _ in some])
            clean = self.denoiser(together, level.repeat(len(some)) if level.ndim else level)
            for (place, weight), one in zip(some, clean.chunk(len(some)), strict=True):
                found[place] += weight * one
        return found

    def _tiles(self, x: Tensor) -> Iterator[tuple[Place, Tensor]]:
        """Places and weights of the tiles."""
        lengths = x.shape[x.ndim - len(self.size) :]
        axes = [self._along(length, size, x) for length, size in zip(lengths, self.size, strict=True)]
        for tile in itertools.product(*axes):
            weight = torch.ones((), dtype=x.real.dtype, device=x.device)
            for _, along in tile:
                weight = weight[..., None] * along
            yield (..., *(place for place, _ in tile)), weight

    def _along(self, length: int, size: int, x: Tensor) -> list[tuple[slice, Tensor]]:
        """The tiles of one axis: where each lies, and its weights."""
        if length <= size:
            return [(slice(0, length), torch.ones(length, dtype=x.real.dtype, device=x.device))]
        starts = [*range(0, length - size, size - self.overlap), length - size]
        weights = torch.zeros(len(starts), length, dtype=torch.float64)
        for i, start in enumerate(starts):
            rise = self._rise(size) if i else torch.ones(size, dtype=torch.float64)
            fall = self._rise(size).flip(0) if i < len(starts) - 1 else torch.ones(size, dtype=torch.float64)
            weights[i, start : start + size] = rise * fall
        weights = (weights / weights.sum(0)).to(x.real.dtype).to(x.device)
        return [(slice(s, s + size), w[s : s + size]) for s, w in zip(starts, weights, strict=True)]

    def _rise(self, size: int) -> Tensor:
        """From 0 to 1 over the overlap less its margins, at the centres of pixels."""
        pixels = torch.arange(size, dtype=torch.float64) + 0.5
        width = max(self.overlap - 2 * self.margin, 0)
        ramp = (pixels - self.margin) / width if width else torch.ones_like(pixels)
        return (ramp.clamp(0, 1) * (math.pi / 2)).sin().square()


def _require_denoiser(denoiser: object) -> None:
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            f"denoiser must be a Denoiser, got {type(denoiser).__name__}; wrap a network in NetworkDenoiser"
        )


def _per_sample(name: str, value: Tensor | complex, x: Tensor, dtype: torch.dtype) -> Tensor:
    """A number or tensor as () or (B,), on the device of x."""
    found = torch.as_tensor(value, dtype=dtype, device=x.device)
    if found.numel() not in (1, x.shape[0]):
        raise ValueError(
            f"{name} must be () or ({x.shape[0]},) as x is, got {tuple(found.shape)}; "
            "put Calibrated around Slices or Tiles, not inside"
        )
    return found


def _levels(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Sigma as () or (B,)."""
    level = torch.as_tensor(sigma, dtype=x.real.dtype, device=x.device)
    if level.numel() not in (1, x.shape[0]):
        raise ValueError(f"sigma must be () or ({x.shape[0]},), got {tuple(level.shape)}")
    return level.reshape(()) if level.numel() == 1 else level.reshape(-1)
