"""Images for training priors: random slices of anatomies, to be painted at random, and procedural phantoms.

A network that sees one subject under one contrast learns that subject. Here every image has a plane, pixel size, shape,
contrast, bias field, resolution and phase of its own, drawn from wide distributions, so that a real scan is one more of
them. Batches are made when they are asked for, by number, so that a training can be resumed.

Source: Billot et al. 2023, "SynthSeg: segmentation of brain MRI scans of any contrast and resolution without
retraining", for the idea; the distributions are our own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from invreg._check import require_count, require_positive, require_tensor

SUPERSAMPLING = 2
CHANNELS = 5
"""Of an anatomy's volume: intensity, fluid, grey matter, white matter, distance from the brain in voxels / 32."""
Paint = Callable[[Tensor | None, int, torch.Generator], Tensor]


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A brain in three dimensions.

    Args:
        volume: (5, z, y, x), float32: intensity 0 to 1; probabilities of fluid, grey and white matter; distance from
            the brain over 32 voxels, 0 within it.
        voxel_size: in mm, of cubic voxels; an animal's may be enlarged to human size.
    """

    volume: Tensor
    voxel_size: float

    @staticmethod
    def of(intensity: Tensor, grey: Tensor, white: Tensor, voxel_size: float) -> Anatomy:
        """An anatomy of an intensity without skull, (z, y, x), 0 outside, and probabilities of two tissues."""
        for name, value in (("intensity", intensity), ("grey", grey), ("white", white)):
            require_tensor(name, value)
            if value.ndim != 3 or value.shape != intensity.shape:
                raise ValueError(f"{name} must be (z, y, x) and of the shape of intensity, got {tuple(value.shape)}")
        require_positive("voxel_size", voxel_size)
        from scipy.ndimage import distance_transform_edt

        inside = intensity > 0.02 * intensity.max()
        distance = torch.from_numpy(distance_transform_edt(~inside.numpy())).float() / 32
        fluid = (inside.float() - grey - white).clamp(0, 1)
        volume = torch.stack([intensity / intensity.max(), fluid, grey, white, distance])
        return Anatomy(volume.float(), voxel_size)


class RandomImages:
    """Batches (images,) of random images, (B, y, x), made when they are asked for by number.

    Args:
        anatomies: to cut slices from; none: phantoms alone.
        size: pixels of a side.
        batch: images in one.
        steps: how many batches there are.
        seed: of all that is random.
        phantoms: fraction of procedural phantoms, 0 to 1.
        paint: makes an image of the slice through an anatomy on a grid twice as fine, (5, 2 size, 2 size), or of
            nothing, None; (slice, 2 size, generator) -> (size, size), real or complex.
        pixel: least and largest pixel size, mm.

    Raises:
        TypeError, ValueError: a number out of its range.
    """

    def __init__(
        self,
        anatomies: Sequence[Anatomy],
        *,
        size: int = 64,
        batch: int = 16,
        steps: int = 10_000,
        seed: int = 0,
        phantoms: float = 0.15,
        paint: Paint,
        pixel: tuple[float, float] = (0.8, 2.2),
    ) -> None:
        for name, value in (("size", size), ("batch", batch), ("steps", steps)):
            require_count(name, value)
        require_count("seed", seed, least=0)
        require_positive("phantoms", phantoms, zero_allowed=True)
        if phantoms > 1:
            raise ValueError(f"phantoms must be from 0 to 1, got {phantoms}")
        if not 0 < pixel[0] <= pixel[1]:
            raise ValueError(f"pixel must be two sizes > 0 that do not fall, got {pixel}")
        self.anatomies = tuple(anatomies)
        self.size, self.batch, self.steps, self.seed = size, batch, steps, seed
        self.phantoms = phantoms if self.anatomies else 1.0
        self.paint, self.pixel = paint, pixel

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the batches follow from, of the anatomies a digest."""
        found = hashlib.sha256()
        for one in self.anatomies:
            found.update(one.volume.numpy().tobytes() + repr(one.voxel_size).encode())
        names = ("size", "batch", "steps", "seed", "phantoms", "pixel")
        plain = {name: getattr(self, name) for name in names}
        return {**plain, "paint": getattr(self.paint, "__name__", repr(self.paint)), "anatomies": found.hexdigest()}

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int, /) -> tuple[Tensor]:
        if not -self.steps <= index < self.steps:
            raise IndexError(f"index must be within 0 to {self.steps - 1}, got {index}")
        mixed = hashlib.blake2b(f"{self.seed}/{index % self.steps}".encode(), digest_size=8).digest()
        g = torch.Generator().manual_seed(int.from_bytes(mixed, "big") >> 1)
        images = torch.stack([self._image(g) for _ in range(self.batch)])
        return (images,)

    def _image(self, g: torch.Generator) -> Tensor:
        fine = self.size * SUPERSAMPLING
        if uniform(g) < self.phantoms:
            return self.paint(None, fine, g)
        anatomy = self.anatomies[int(torch.randint(len(self.anatomies), (), generator=g))]
        return self.paint(_slice(anatomy, fine, self.size, self.pixel, g), fine, g)


def uniform(g: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    """A number between low and high."""
    return low + (high - low) * float(torch.rand((), generator=g))


def smooth_field(size: int, g: torch.Generator, scale: float) -> Tensor:
    """Smooth noise of unit variance with features of `scale` pixels, (size, size): cubic splines of random weights."""
    basis = _splines(size, max(1, round(size / scale)))
    return basis @ torch.randn(basis.shape[1], basis.shape[1], generator=g) @ basis.T


@lru_cache(maxsize=256)
def _splines(size: int, intervals: int) -> Tensor:
    """Cubic B-splines over `intervals` equal ones at pixels' centres, of unit norm at each, (size, intervals + 3)."""
    at = (torch.arange(size) + 0.5) * intervals / size
    distance = (at[:, None] - torch.arange(-1, intervals + 2)).abs()
    near, far = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance).clamp_min(0) ** 3 / 6
    weights = torch.where(distance < 1, near, far)
    normed: Tensor = weights / weights.norm(dim=1, keepdim=True)
    return normed


def _slice(anatomy: Anatomy, fine: int, size: int, pixel: tuple[float, float], g: torch.Generator) -> Tensor:
    """A deformed oblique slice of a random pixel size through the brain, (5, fine, fine)."""
    volume = anatomy.volume
    pitch = math.exp(uniform(g, math.log(pixel[0]), math.log(pixel[1])))  # mm
    span = pitch * size / anatomy.voxel_size  # voxels across the image
    turn = _rotation(g)
    extent = torch.tensor(volume.shape[1:], dtype=torch.float32).flip(0)  # x, y, z
    room = (0.5 * extent - 0.3 * span).clamp_min(0.15 * extent)
    centre = (torch.rand(3, generator=g) * 2 - 1) * torch.minimum(room, 0.42 * extent)
    at = torch.linspace(-0.5, 0.5, fine) * span
    v, u = torch.meshgrid(at, at, indexing="ij")
    points = u[..., None] * turn[0] + v[..., None] * turn[1] + centre
    bend = 1.5 * uniform(g) * torch.stack([smooth_field(fine, g, fine * 14 / span) for _ in range(3)], -1)
    points = (points + bend) / (0.5 * extent)
    found: Tensor = grid_sample(volume[None], points[None, None], align_corners=False, padding_mode="border")
    return found[0, :, 0]


def _rotation(g: torch.Generator) -> Tensor:
    """Rows: the image's axes in the volume, within 15 degrees of a plane of the body, turned at random, (2, 3)."""
    axes = torch.eye(3)[torch.randperm(3, generator=g)]
    tilt = torch.matrix_exp(_skew((torch.rand(3, generator=g) * 2 - 1) * math.radians(15)))
    axes = axes @ tilt.T
    angle = 2 * math.pi * uniform(g) if uniform(g) < 0.5 else 0.0
    c, s = math.cos(angle), math.sin(angle)
    flip = torch.tensor([1.0 if uniform(g) < 0.5 else -1.0, 1.0 if uniform(g) < 0.5 else -1.0])
    return torch.stack([c * axes[0] + s * axes[1], c * axes[1] - s * axes[0]]) * flip[:, None]


def _skew(w: Tensor) -> Tensor:
    x, y, z = w.tolist()
    return torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])


def phantom(size: int, g: torch.Generator) -> Tensor:
    """Ellipses and polygons one over the other, flat, shaded or textured, (size, size), 0 to about 1."""
    at = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(at, at, indexing="ij")
    image = torch.zeros(size, size) if uniform(g) < 0.5 else torch.full((size, size), uniform(g))
    for _ in range(int(torch.randint(2, 14, (), generator=g))):
        cx, cy, angle = uniform(g, -1, 1), uniform(g, -1, 1), uniform(g, 0, math.pi)
        u = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
        v = (y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)
        a, b = math.exp(uniform(g, -3, 0)), math.exp(uniform(g, -3, 0))
        if uniform(g) < 0.6:
            inside = (u / a).square() + (v / b).square() < 1
        else:
            sides = int(torch.randint(3, 7, (), generator=g))
            turns = torch.arange(sides) * 2 * math.pi / sides
            reach = u[..., None] / a * turns.cos() + v[..., None] / b * turns.sin()
            inside = reach.amax(-1) < 1
        level = uniform(g) + (uniform(g, -0.5, 0.5) * u + uniform(g, -0.5, 0.5) * v if uniform(g) < 0.4 else 0.0)
        if uniform(g) < 0.25:
            level = level + uniform(g, 0, 0.1) * smooth_field(size, g, uniform(g, 2, 12))
        image = torch.where(inside, torch.as_tensor(level), image)
    return image.clamp_min(0)
