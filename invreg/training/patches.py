"""Random patches of one's own images, varied: what a prior for one's own scans is trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from invreg._check import require_count, require_finite, require_positive, require_tensor
from invreg._store import update_digest
from invreg.data import DataSet
from invreg.training.random_images import smooth_field, uniform

TRIES = 16
"""Patches that are drawn in search of one that is not empty; the last of them is taken as it is."""


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How a patch is varied, each time anew, beside its place.

    Args:
        flips: along each axis, every second time.
        turns: by 0, 90, 180 or 270 degrees.
        zoom: every second patch is enlarged by up to a factor of 1 + zoom, or shrunk by as much; the others keep their
            pixels as they are.
        gain: the values are multiplied by 1 / (1 + gain) to 1 + gain.
        phase: complex patches are multiplied by a phase, any of which is as likely as another.
        smooth_phase: largest root mean square of a smooth phase on top, radians; for complex patches.

    Raises:
        TypeError, ValueError: a number that is negative or not finite.
    """

    flips: bool = True
    turns: bool = True
    zoom: float = 0.1
    gain: float = 0.1
    phase: bool = True
    smooth_phase: float = 0.0

    def __post_init__(self) -> None:
        for name in ("zoom", "gain", "smooth_phase"):
            require_positive(name, getattr(self, name), zero_allowed=True)
        for name in ("flips", "turns", "phase"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be true or false, got {getattr(self, name)!r}")

    def side(self, size: int, g: torch.Generator) -> int:
        """Pixels of the square that becomes `size` pixels."""
        if self.zoom == 0 or uniform(g) < 0.5:
            return size
        reach = math.log1p(self.zoom)
        return max(1, round(size * math.exp(uniform(g, -reach, reach))))

    def __call__(self, patch: Tensor, g: torch.Generator) -> Tensor:
        """A square patch, (..., size, size), varied in all but its place and zoom."""
        if self.flips:
            axes = [axis for axis in (-2, -1) if uniform(g) < 0.5]
            patch = patch.flip(axes) if axes else patch
        if self.turns:
            patch = torch.rot90(patch, int(torch.randint(4, (), generator=g)), (-2, -1))
        if self.gain > 0:
            reach = math.log1p(self.gain)
            patch = patch * math.exp(uniform(g, -reach, reach))
        if not patch.is_complex() or not (self.phase or self.smooth_phase > 0):
            return patch
        size = patch.shape[-1]
        angle = torch.full((size, size), 2 * math.pi * uniform(g) if self.phase else 0.0)
        if self.smooth_phase > 0:
            angle = angle + uniform(g, 0, self.smooth_phase) * smooth_field(size, g, size / 2)
        angle = angle.to(patch.device, patch.real.dtype)
        return patch * torch.polar(torch.ones_like(angle), angle)


class Patches:
    """Batches (patches,) of squares cut from images at random and varied, made when they are asked for by number.

    Every pixel is as likely as another, but for those near a border: large images are cut more often than small ones.

    Args:
        images: (N, y, x) or (N, C, y, x), or a list of (y, x) or (C, y, x), whose y and x may differ; real or complex.
        size: pixels of a side of the patches, which are (B, [C,] size, size).
        batch: patches in one.
        steps: how many batches there are.
        seed: of all that is random.
        variation: of the patches.
        least: a patch of a smaller root mean square, such as one of air, is drawn anew, up to `TRIES` times.

    Raises:
        TypeError: images that are no floating-point tensors, or of several kinds.
        ValueError: no images, one that is smaller than a patch or not finite, images of different numbers of channels
            or on several devices, or a number out of its range.
    """

    def __init__(
        self,
        images: Tensor | Sequence[Tensor],
        *,
        size: int = 64,
        batch: int = 16,
        steps: int = 10_000,
        seed: int = 0,
        variation: Variation = Variation(),
        least: float = 0.0,
    ) -> None:
        for name, value in (("size", size), ("batch", batch), ("steps", steps)):
            require_count(name, value)
        require_count("seed", seed, least=0)
        require_positive("least", least, zero_allowed=True)
        self.images = require_images(images, size)
        self.size, self.batch, self.steps, self.seed = size, batch, steps, seed
        self.variation, self.least = variation, least
        self._areas = list(accumulate(one.shape[-2] * one.shape[-1] for one in self.images))

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """What the batches follow from, of the images a digest."""
        found = hashlib.blake2b(digest_size=8)
        for number, one in enumerate(self.images):
            update_digest(found, str(number), one)
        plain = {name: getattr(self, name) for name in ("size", "batch", "steps", "seed", "least")}
        return {**plain, **dataclasses.asdict(self.variation), "images": found.hexdigest()}

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int, /) -> tuple[Tensor]:
        if not -self.steps <= index < self.steps:
            raise IndexError(f"index must be within 0 to {self.steps - 1}, got {index}")
        mixed = hashlib.blake2b(f"{self.seed}/{index % self.steps}".encode(), digest_size=8).digest()
        g = torch.Generator().manual_seed(int.from_bytes(mixed, "big") >> 1)
        return (torch.stack([self.variation(self._patch(g), g) for _ in range(self.batch)]),)

    def _patch(self, g: torch.Generator) -> Tensor:
        for _ in range(TRIES):
            patch = self._cut(g)
            if self.least == 0 or float(patch.abs().square().mean()) >= self.least**2:
                break
        return patch if patch.shape[-1] == self.size else _resized(patch, self.size)

    def _cut(self, g: torch.Generator) -> Tensor:
        place = int(torch.randint(self._areas[-1], (), generator=g))
        image = self.images[bisect_right(self._areas, place)]
        height, width = image.shape[-2:]
        side = min(self.variation.side(self.size, g), height, width)
        y, x = (int(torch.randint(n - side + 1, (), generator=g)) for n in (height, width))
        return image[..., y : y + side, x : x + side]


def require_images(
    images: Tensor | Sequence[Tensor], size: int, names: Sequence[str] | None = None
) -> tuple[Tensor, ...]:
    """Images one by one, once they are known to fit together and to hold a patch; names: for messages."""
    found: tuple[Tensor, ...] = images.unbind() if isinstance(images, Tensor) and images.ndim else tuple(images)
    if not found:
        raise ValueError("images must be at least one, got none")
    for number, one in enumerate(found):
        name = f"images[{number}]" if names is None else names[number]
        require_tensor(name, one)
        if not (one.is_floating_point() or one.is_complex()):
            raise TypeError(f"{name} must be floating point or complex, got {one.dtype}; use {name}.float()")
        if one.dtype != found[0].dtype:
            raise TypeError(
                f"images must be of one dtype, got {found[0].dtype}, and {one.dtype} in {name}; convert them"
            )
        if one.ndim not in (2, 3) or one.shape[:-2] != found[0].shape[:-2]:
            raise ValueError(
                f"{name} must be (y, x) or (C, y, x), with as many channels as the others, got {tuple(one.shape)}"
            )
        if one.device != found[0].device:
            raise ValueError(f"images must be on one device, got {found[0].device} and {one.device}")
        if min(one.shape[-2:]) < size:
            raise ValueError(
                f"{name} must have {size} pixels along both axes, got {tuple(one.shape)}; choose a smaller size, or "
                "leave small images away"
            )
        require_finite(name, one)
    return found


def _resized(patch: Tensor, size: int) -> Tensor:
    """A square patch on another grid of the same extent, (..., size, size)."""
    parts = torch.stack([patch.real, patch.imag]) if patch.is_complex() else patch[None]
    flat = parts.reshape(1, -1, *patch.shape[-2:])
    made = interpolate(flat, (size, size), mode="bicubic", antialias=True, align_corners=False)
    parts = made.reshape(-1, *patch.shape[:-2], size, size)
    return torch.complex(parts[0], parts[1]) if patch.is_complex() else parts[0]


def tiles(images: Tensor | Sequence[Tensor], size: int) -> Tensor:
    """Squares that cover images, as few as do, evenly spread: (N, [C,] size, size), to judge a model by.

    Args:
        images: as of `Patches`.
        size: pixels of a side.

    Raises:
        TypeError, ValueError: as `Patches`.
    """
    require_count("size", size)
    found = []
    for one in require_images(images, size):
        starts = [_starts(n, size) for n in one.shape[-2:]]
        found += [one[..., y : y + size, x : x + size] for y in starts[0] for x in starts[1]]
    return torch.stack(found)


def _starts(n: int, size: int) -> list[int]:
    """Where the tiles of an axis begin."""
    count = -(-n // size)
    return [round(k * (n - size) / max(1, count - 1)) for k in range(count)]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images to train on by patches, and those that are held out; what `invreg train` calls "images".

    Args:
        images: one by one, (y, x) or (C, y, x).
        files: from which file each is, by number.
        held_out: to judge by.
        size, variation, least: of the patches, as of `Patches`.
        info: in plain words and numbers.
    """

    images: tuple[Tensor, ...]
    files: tuple[int, ...]
    held_out: tuple[Tensor, ...] = ()
    size: int = 64
    variation: Variation = Variation()
    least: float = 0.0
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_images(self.images, self.size)
        if self.held_out:
            require_images([self.images[0], *self.held_out], self.size)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    @cached_property
    def constants(self) -> Mapping[str, float]:
        """`sigma_data`: root mean square of the real components of 512 patches, to three digits."""
        (patches,) = self.batches(512, 1, 0)[0]
        parts = torch.view_as_real(patches) if patches.is_complex() else patches
        return {"sigma_data": float(f"{float(parts.double().square().mean().sqrt()):.3g}")}

    def to(self, device: torch.device) -> ImageSet:
        """The same on a device."""
        images, held_out = (tuple(one.to(device) for one in group) for group in (self.images, self.held_out))
        return replace(self, images=images, held_out=held_out)

    def split(self, fraction: float, seed: int) -> tuple[ImageSet, DataSet | None]:
        """What is trained on, and `tiles` of what is held out.

        Args:
            fraction: in [0, 1), of the files where that is one at least, else of all images the last ones: slices that
                lie side by side are so alike that a random choice of them would flatter.
            seed: of the choice of files.

        Raises:
            ValueError: fraction outside [0, 1), or above 0 where images are held out already.
        """
        if not 0 <= fraction < 1:
            raise ValueError(f"fraction must be within [0, 1), got {fraction}")
        if fraction > 0 and self.held_out:
            raise ValueError(f"one of held_out and a fraction to hold out must be given, got both, {fraction}")
        numbers = sorted(set(self.files))
        order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed)).tolist()
        chosen = {numbers[k] for k in order[: int(len(numbers) * fraction)]}
        last = len(self) if chosen else len(self) - int(len(self) * fraction)
        out = [k >= last or number in chosen for k, number in enumerate(self.files)]
        held_out = self.held_out + tuple(one for one, is_out in zip(self.images, out, strict=True) if is_out)
        kept = [k for k, is_out in enumerate(out) if not is_out]
        images, files = tuple(self.images[k] for k in kept), tuple(self.files[k] for k in kept)
        info = {**self.info, "images": len(images), "held out": len(held_out)}
        judged = DataSet((tiles(held_out, self.size),), {}, info) if held_out else None
        return replace(self, images=images, files=files, held_out=(), info=info), judged

    def batches(self, batch: int, steps: int, seed: int) -> Patches:
        """Patches to train on."""
        return Patches(
            self.images, size=self.size, batch=batch, steps=steps, seed=seed, variation=self.variation, least=self.least
        )
