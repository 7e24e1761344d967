"""Random contrasts of magnetic resonance: tissues, skulls, bias fields, resolutions and phases of any scanner."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from invreg.training.random_images import SUPERSAMPLING, phantom, smooth_field, uniform


def magnetic_resonance(found: Tensor | None, fine: int, g: torch.Generator) -> Tensor:
    """A complex image of magnitude about 0 to 1 with a smooth phase, (fine / 2, fine / 2); `paint` of `RandomImages`.

    Args:
        found: a slice through an anatomy, (5, fine, fine); None for a phantom.
        fine: pixels of a side of the grid it is made on.
        g: source of all that is random.
    """
    size = fine // SUPERSAMPLING
    image = finished(phantom(fine, g) if found is None else contrast(found, g), g)
    image = _band_limited(image, size) if uniform(g) < 0.6 else avg_pool2d(image[None], SUPERSAMPLING)[0]
    image = image * uniform(g, 0.6, 1.1)
    angle = 2 * math.pi * uniform(g) * torch.ones(())
    if uniform(g) < 0.85:
        angle = angle + _ramp(size, g) + uniform(g, 0, 1.5) * smooth_field(size, g, size / 2)
    return torch.polar(image.abs(), angle + torch.where(image < 0, math.pi, 0.0))


def _ramp(size: int, g: torch.Generator) -> Tensor:
    """A linear phase, up to 3 radians across each axis."""
    at = torch.linspace(-1, 1, size)
    return uniform(g, -1.5, 1.5) * at[:, None] + uniform(g, -1.5, 1.5) * at


def contrast(found: Tensor, g: torch.Generator) -> Tensor:
    """An image of random contrast of the slice through an anatomy, (fine, fine)."""
    intensity, tissues, distance = found[0], found[1:4], 32 * found[4]
    kind = uniform(g)
    if kind < 0.4:
        image = _remapped(intensity, g)
    else:
        sharp = uniform(g, 1, 5)
        weights = tissues.clamp(1e-4, 1) ** sharp * torch.exp(
            uniform(g, 0, 0.8) * torch.stack([smooth_field(found.shape[-1], g, uniform(g, 3, 12)) for _ in range(3)])
        )
        inside = tissues.sum(0).clamp(0, 1)
        weights = weights / weights.sum(0) * inside
        level = torch.rand(3, generator=g)
        image = (weights * level[:, None, None]).sum(0)
        if uniform(g) < 0.6:  # texture of each tissue
            for one in weights:
                image = image + one * uniform(g, 0, 0.07) * smooth_field(found.shape[-1], g, uniform(g, 2, 20))
        if kind < 0.65:
            image = image + uniform(g, -1.0, 1.0) * (intensity - _smoothed(intensity)) * inside
    if uniform(g) < 0.55:
        image = _with_head(image, distance, g)
    return image.clamp_min(0)


def _smoothed(image: Tensor) -> Tensor:
    return avg_pool2d(image[None, None], 9, stride=1, padding=4, count_include_pad=False)[0, 0]


def _remapped(intensity: Tensor, g: torch.Generator) -> Tensor:
    """The intensity through a random curve: near the identity, or any that is piecewise linear."""
    if uniform(g) < 0.5:
        return intensity ** math.exp(uniform(g, -0.6, 0.6))
    knots = torch.cat([torch.zeros(1), torch.rand(6, generator=g)])
    at = intensity.clamp(0, 1) * 6
    low = at.floor().clamp(0, 5).long()
    return knots[low] + (knots[low + 1] - knots[low]) * (at - low)


def _with_head(brain: Tensor, distance: Tensor, g: torch.Generator) -> Tensor:
    """Fluid, skull with marrow, fat and scalp as shells about the brain, of random widths and brightness."""
    fine = brain.shape[-1]
    depth = distance + uniform(g, 0, 1.5) * smooth_field(fine, g, fine / 6)
    edges = torch.tensor([uniform(g, 0.5, 4), uniform(g, 1.5, 3), uniform(g, 1, 5), uniform(g, 1.5, 3)])
    edges = torch.cat([edges, torch.tensor([uniform(g, 1, 6), uniform(g, 1, 3)])]).cumsum(0)
    levels = [uniform(g, 0, 0.5), uniform(g, 0, 0.15), uniform(g, 0, 0.6), uniform(g, 0, 0.15)]
    levels += [uniform(g, 0.3, 1.2), uniform(g, 0.1, 0.7), 0.0]
    outside = torch.zeros_like(brain)
    above = torch.sigmoid((depth - 0.3) * 3)  # of the brain's own border
    for edge, level in zip([0.0, *edges.tolist()], levels, strict=True):
        within = torch.sigmoid((depth - edge) * 3)
        outside = outside * (1 - within) + level * within
    texture = 1 + 0.15 * uniform(g) * smooth_field(fine, g, uniform(g, 3, 10))
    return brain * (1 - above) + outside * above * texture


def finished(image: Tensor, g: torch.Generator) -> Tensor:
    """Sharpened or not, under a bias field, its largest value about 1."""
    if uniform(g) < 0.4:
        soft = avg_pool2d(image[None, None], 3, stride=1, padding=1, count_include_pad=False)[0, 0]
        image = (image + uniform(g, 0, 1.5) * (image - soft)).clamp_min(0)
    fine = image.shape[-1]
    image = image * torch.exp(uniform(g, 0, 0.3) * smooth_field(fine, g, fine / 1.5))
    top = float(image.flatten().kthvalue(max(1, round(0.995 * image.numel()))).values)
    # a patch of dark tissue is not bright: only what exceeds 1, or what is dark altogether, is scaled
    return image / max(top, 0.35 + 0.65 * uniform(g)) if top > 0 else image


def _band_limited(image: Tensor, size: int) -> Tensor:
    """The centre of the image's k-space, as a scanner sees it: with its ringing, (size, size)."""
    k = torch.fft.fftshift(torch.fft.fft2(image))
    start = (image.shape[-1] - size) // 2
    kept = k[start : start + size, start : start + size]
    cut: Tensor = torch.fft.ifft2(torch.fft.ifftshift(kept)).real
    return cut * (size / image.shape[-1]) ** 2
