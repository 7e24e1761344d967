"""Random heads of computed tomography: attenuation relative to water, of tissues, lesions, skulls and air."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from invreg.training.random_images import SUPERSAMPLING, phantom, smooth_field, uniform


def computed_tomography(found: Tensor | None, fine: int, g: torch.Generator) -> Tensor:
    """A real image of attenuation over that of water, 0 to about 3, (fine / 2, fine / 2); `paint` of `RandomImages`.

    Brain lies within a few per cent of 1, bone at 1.3 to 3, fat at 0.9, air at 0.

    Args:
        found: a slice through an anatomy, (5, fine, fine); None for a phantom of flat pieces in the same range.
        fine: pixels of a side of the grid it is made on.
        g: source of all that is random.
    """
    image = _pieces(fine, g) if found is None else _head(found, g)
    return avg_pool2d(image[None], SUPERSAMPLING)[0]


def _pieces(fine: int, g: torch.Generator) -> Tensor:
    """Flat pieces on air, most of them near water."""
    grey = phantom(fine, g)
    soft = 0.9 + 0.2 * grey
    bone = torch.where(grey > uniform(g, 0.75, 1.1), 1.3 + uniform(g, 0.2, 1.2) * grey, soft)
    return torch.where(grey < uniform(g, 0, 0.15), 0.0, bone)


def _head(found: Tensor, g: torch.Generator) -> Tensor:
    tissues, depth, fine = found[1:4], 32 * found[4], found.shape[-1]
    inside = tissues.sum(0).clamp(0, 1)
    weights = tissues.clamp(1e-4, 1) ** uniform(g, 1, 6)
    weights = weights / weights.sum(0)
    fluid = uniform(g, 1.0, 1.02)
    white = uniform(g, 1.02, 1.035)
    levels = torch.tensor([fluid, white + uniform(g, 0.003, 0.015), white])
    brain = (weights * levels[:, None, None]).sum(0)
    brain = brain + uniform(g, 0, 0.006) * smooth_field(fine, g, uniform(g, 4, 30))
    brain = _lesions(brain, g)
    image = fluid + (brain - fluid) * inside
    depth = depth + uniform(g, 0, 1.5) * smooth_field(fine, g, fine / 6)
    edges = [uniform(g, 0.5, 4)]  # from brain to: inner table, marrow, outer table, soft tissue, fat, skin, air
    for low, high in ((0.7, 2.0), (0.3, 4), (0.7, 2.0), (0.0, 3.0), (0.3, 6), (0.7, 2.5)):
        edges.append(edges[-1] + uniform(g, low, high))
    hard = uniform(g, 1.8, 3.0)
    shells = [hard, uniform(g, 1.2, 1.8), hard * uniform(g, 0.85, 1.1), uniform(g, 1.03, 1.08)]
    shells += [uniform(g, 0.88, 0.94), uniform(g, 1.02, 1.1), 0.0]
    for edge, level in zip(edges, shells, strict=True):
        within = torch.sigmoid((depth - edge) * 4)
        image = image * (1 - within) + level * within
    return _cavities(image, depth, g).clamp_min(0)


def _lesions(brain: Tensor, g: torch.Generator) -> Tensor:
    """Now and then blood, calcium, a hypodense region or fluid of an old one."""
    fine = brain.shape[-1]
    for chance, low, high, threshold in ((0.25, 1.05, 1.09, 1.6), (0.15, 1.1, 1.6, 2.4), (0.25, 1.0, 1.03, 1.4)):
        if uniform(g) < chance:
            where = torch.sigmoid((smooth_field(fine, g, uniform(g, fine / 12, fine / 4)) - threshold) * 12)
            brain = brain * (1 - where) + uniform(g, low, high) * where
    return brain


def _cavities(image: Tensor, depth: Tensor, g: torch.Generator) -> Tensor:
    """Air within the base of the skull, and fine bone around it; sometimes a foam rest outside."""
    fine = image.shape[-1]
    if uniform(g) < 0.3:
        field = smooth_field(fine, g, uniform(g, fine / 16, fine / 6))
        region = torch.sigmoid((depth - 1.5) * 2) * torch.sigmoid(6 * (smooth_field(fine, g, fine / 2) - 0.3))
        air = torch.sigmoid((field - uniform(g, 0.2, 1.0)) * 12) * region
        wall = torch.sigmoid((field - uniform(g, -0.3, 0.1)) * 12) * region * (image > 0.3)
        image = image * (1 - wall) + uniform(g, 1.2, 2.2) * wall
        image = image * (1 - air)
    if uniform(g) < 0.15:
        rest = torch.sigmoid((smooth_field(fine, g, fine / 2) - 0.8) * 10) * (image < 0.05)
        image = image + uniform(g, 0.02, 0.2) * rest
    return image
