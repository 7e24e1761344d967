"""Images for training priors: slices of anatomies under random contrasts, and procedural phantoms.

A network that sees one subject under one contrast learns that subject. Here every image has a plane, pixel size, shape,
contrast, bias field, resolution and phase of its own, drawn from wide distributions, so that a real scan is one more of
them. Batches are made when they are asked for, by number, so that a training can be resumed.

Source: Billot et al. 2023, "SynthSeg: segmentation of brain MRI scans of any contrast and resolution without
retraining", for the idea; the distributions are our own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from invreg._check import require_count, require_positive, require_tensor

SUPERSAMPLING = 2
CHANNELS = 5
"""Of an anatomy's volume: intensity, fluid, grey matter, white matter, distance from the brain in voxels / 32."""


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
    """Batches (images,) of random complex or real images, (B, y, x), made when asked for by number.

    Magnitudes lie about 0 to 1, the largest value of a whole slice being about 1.

    Args:
        anatomies: to cut slices from; none: phantoms alone.
        size: pixels of a side.
        batch: images in one.
        steps: how many batches there are.
        seed: of all that is random.
        phantoms: fraction of procedural phantoms, 0 to 1.
        phase: whether images are complex with a smooth phase; else they are real.
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
        phase: bool = True,
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
        self.phase, self.pixel = phase, pixel
        self.digest = self._digest()

    def _digest(self) -> str:
        found = hashlib.sha256(repr((self.size, self.batch, self.seed, self.phantoms, self.phase, self.pixel)).encode())
        for one in self.anatomies:
            found.update(one.volume.numpy().tobytes() + repr(one.voxel_size).encode())
        return found.hexdigest()

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
        if _uniform(g) < self.phantoms:
            image = phantom(fine, g)
        else:
            anatomy = self.anatomies[int(torch.randint(len(self.anatomies), (), generator=g))]
            image = _contrast(_slice(anatomy, fine, self.size, self.pixel, g), g)
        image = _finished(image, g)
        image = _band_limited(image, self.size) if _uniform(g) < 0.6 else avg_pool2d(image[None], SUPERSAMPLING)[0]
        image = image * _uniform(g, 0.6, 1.1)
        if not self.phase:
            return image
        angle = 2 * math.pi * _uniform(g) * torch.ones(())
        if _uniform(g) < 0.85:
            angle = angle + _ramp(self.size, g) + _uniform(g, 0, 1.5) * smooth_field(self.size, g, self.size / 2)
        return torch.polar(image.abs(), angle + torch.where(image < 0, math.pi, 0.0))


def _uniform(g: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
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
    return weights / weights.norm(dim=1, keepdim=True)


def _ramp(size: int, g: torch.Generator) -> Tensor:
    at = torch.linspace(-1, 1, size)
    return _uniform(g, -1.5, 1.5) * at[:, None] + _uniform(g, -1.5, 1.5) * at


def _slice(anatomy: Anatomy, fine: int, size: int, pixel: tuple[float, float], g: torch.Generator) -> Tensor:
    """A deformed oblique slice of a random pixel size through the brain, (5, fine, fine)."""
    volume = anatomy.volume
    pitch = math.exp(_uniform(g, math.log(pixel[0]), math.log(pixel[1])))  # mm
    span = pitch * size / anatomy.voxel_size  # voxels across the image
    turn = _rotation(g)
    extent = torch.tensor(volume.shape[1:], dtype=torch.float32).flip(0)  # x, y, z
    room = (0.5 * extent - 0.3 * span).clamp_min(0.15 * extent)
    centre = (torch.rand(3, generator=g) * 2 - 1) * torch.minimum(room, 0.42 * extent)
    at = torch.linspace(-0.5, 0.5, fine) * span
    v, u = torch.meshgrid(at, at, indexing="ij")
    points = u[..., None] * turn[0] + v[..., None] * turn[1] + centre
    bend = 1.5 * _uniform(g) * torch.stack([smooth_field(fine, g, fine * 14 / span) for _ in range(3)], -1)
    points = (points + bend) / (0.5 * extent)
    found = grid_sample(volume[None], points[None, None], align_corners=False, padding_mode="border")
    return found[0, :, 0]


def _rotation(g: torch.Generator) -> Tensor:
    """Rows: the image's axes in the volume, within 15 degrees of a plane of the body, turned at random, (2, 3)."""
    axes = torch.eye(3)[torch.randperm(3, generator=g)]
    tilt = torch.matrix_exp(_skew((torch.rand(3, generator=g) * 2 - 1) * math.radians(15)))
    axes = axes @ tilt.T
    angle = 2 * math.pi * _uniform(g) if _uniform(g) < 0.5 else 0.0
    c, s = math.cos(angle), math.sin(angle)
    flip = torch.tensor([1.0 if _uniform(g) < 0.5 else -1.0, 1.0 if _uniform(g) < 0.5 else -1.0])
    return torch.stack([c * axes[0] + s * axes[1], c * axes[1] - s * axes[0]]) * flip[:, None]


def _skew(w: Tensor) -> Tensor:
    x, y, z = w.tolist()
    return torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])


def _contrast(found: Tensor, g: torch.Generator) -> Tensor:
    """An image of random contrast of the slice through an anatomy, (fine, fine)."""
    intensity, tissues, distance = found[0], found[1:4], 32 * found[4]
    kind = _uniform(g)
    if kind < 0.4:
        image = _remapped(intensity, g)
    else:
        sharp = _uniform(g, 1, 5)
        weights = tissues.clamp(1e-4, 1) ** sharp * torch.exp(
            _uniform(g, 0, 0.8) * torch.stack([smooth_field(found.shape[-1], g, _uniform(g, 3, 12)) for _ in range(3)])
        )
        inside = tissues.sum(0).clamp(0, 1)
        weights = weights / weights.sum(0) * inside
        level = torch.rand(3, generator=g)
        image = (weights * level[:, None, None]).sum(0)
        if _uniform(g) < 0.6:  # texture of each tissue
            for one in weights:
                image = image + one * _uniform(g, 0, 0.07) * smooth_field(found.shape[-1], g, _uniform(g, 2, 20))
        if kind < 0.65:
            image = image + _uniform(g, -1.0, 1.0) * (intensity - _smoothed(intensity)) * inside
    if _uniform(g) < 0.55:
        image = _with_head(image, distance, g)
    return image.clamp_min(0)


def _smoothed(image: Tensor) -> Tensor:
    return avg_pool2d(image[None, None], 9, stride=1, padding=4, count_include_pad=False)[0, 0]


def _remapped(intensity: Tensor, g: torch.Generator) -> Tensor:
    """The intensity through a random curve: near the identity, or any that is piecewise linear."""
    if _uniform(g) < 0.5:
        return intensity ** math.exp(_uniform(g, -0.6, 0.6))
    knots = torch.cat([torch.zeros(1), torch.rand(6, generator=g)])
    at = intensity.clamp(0, 1) * 6
    low = at.floor().clamp(0, 5).long()
    return knots[low] + (knots[low + 1] - knots[low]) * (at - low)


def _with_head(brain: Tensor, distance: Tensor, g: torch.Generator) -> Tensor:
    """Fluid, skull with marrow, fat and scalp as shells about the brain, of random widths and brightness."""
    fine = brain.shape[-1]
    depth = distance + _uniform(g, 0, 1.5) * smooth_field(fine, g, fine / 6)
    edges = torch.tensor([_uniform(g, 0.5, 4), _uniform(g, 1.5, 3), _uniform(g, 1, 5), _uniform(g, 1.5, 3)])
    edges = torch.cat([edges, torch.tensor([_uniform(g, 1, 6), _uniform(g, 1, 3)])]).cumsum(0)
    levels = [_uniform(g, 0, 0.5), _uniform(g, 0, 0.15), _uniform(g, 0, 0.6), _uniform(g, 0, 0.15)]
    levels += [_uniform(g, 0.3, 1.2), _uniform(g, 0.1, 0.7), 0.0]
    outside = torch.zeros_like(brain)
    above = torch.sigmoid((depth - 0.3) * 3)  # of the brain's own border
    for edge, level in zip([0.0, *edges.tolist()], levels, strict=True):
        within = torch.sigmoid((depth - edge) * 3)
        outside = outside * (1 - within) + level * within
    texture = 1 + 0.15 * _uniform(g) * smooth_field(fine, g, _uniform(g, 3, 10))
    return brain * (1 - above) + outside * above * texture


def _finished(image: Tensor, g: torch.Generator) -> Tensor:
    """Sharpened or not, under a bias field, its largest value about 1."""
    if _uniform(g) < 0.4:
        soft = avg_pool2d(image[None, None], 3, stride=1, padding=1, count_include_pad=False)[0, 0]
        image = (image + _uniform(g, 0, 1.5) * (image - soft)).clamp_min(0)
    fine = image.shape[-1]
    image = image * torch.exp(_uniform(g, 0, 0.3) * smooth_field(fine, g, fine / 1.5))
    top = float(image.flatten().kthvalue(max(1, round(0.995 * image.numel()))).values)
    # a patch of dark tissue is not bright: only what exceeds 1, or what is dark altogether, is scaled
    return image / max(top, 0.35 + 0.65 * _uniform(g)) if top > 0 else image


def phantom(size: int, g: torch.Generator) -> Tensor:
    """Ellipses and polygons one over the other, flat, shaded or textured, (size, size), 0 to about 1."""
    at = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(at, at, indexing="ij")
    image = torch.zeros(size, size) if _uniform(g) < 0.5 else torch.full((size, size), _uniform(g))
    for _ in range(int(torch.randint(2, 14, (), generator=g))):
        cx, cy, angle = _uniform(g, -1, 1), _uniform(g, -1, 1), _uniform(g, 0, math.pi)
        u = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
        v = (y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)
        a, b = math.exp(_uniform(g, -3, 0)), math.exp(_uniform(g, -3, 0))
        if _uniform(g) < 0.6:
            inside = (u / a).square() + (v / b).square() < 1
        else:
            sides = int(torch.randint(3, 7, (), generator=g))
            turns = torch.arange(sides) * 2 * math.pi / sides
            reach = u[..., None] / a * turns.cos() + v[..., None] / b * turns.sin()
            inside = reach.amax(-1) < 1
        level = _uniform(g) + (_uniform(g, -0.5, 0.5) * u + _uniform(g, -0.5, 0.5) * v if _uniform(g) < 0.4 else 0.0)
        if _uniform(g) < 0.25:
            level = level + _uniform(g, 0, 0.1) * smooth_field(size, g, _uniform(g, 2, 12))
        image = torch.where(inside, torch.as_tensor(level), image)
    return image.clamp_min(0)


def _band_limited(image: Tensor, size: int) -> Tensor:
    """The centre of the image's k-space, as a scanner sees it: with its ringing, (size, size)."""
    k = torch.fft.fftshift(torch.fft.fft2(image))
    start = (image.shape[-1] - size) // 2
    kept = k[start : start + size, start : start + size]
    return torch.fft.ifft2(torch.fft.ifftshift(kept)).real * (size / image.shape[-1]) ** 2
