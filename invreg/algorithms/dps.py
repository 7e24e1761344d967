"""Diffusion posterior sampling: ancestral steps, pushed along the gradient of the residual through the denoiser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invreg._check import require_positive
from invreg.algorithms.renoise import DiffusionSampler, Estimate, Level, ancestral
from invreg.interfaces import Denoiser
from invreg.linalg import expand, norm
from invreg.noise import Gaussian, Poisson
from invreg.problem import Problem


@dataclass(frozen=True, kw_only=True)
class DPS(DiffusionSampler):
    """An ancestral step, then x <- x - weight * grad_x |y - A(D(x))|, in a variance-preserving diffusion.

    The norm is that of each sample, so no chain depends on its batch. Under Poisson noise it is that of y / photons,
    weighed by the inverse of its standard deviation sqrt(y) / photons, relative to the root mean square of these
    weights: images that are negative somewhere, whose likelihood is 0, have a gradient, too. Under other noise but
    Gaussian, the root of twice the misfit takes the norm's place. Takes any operator; the gradient passes through the
    denoiser. Images, and the norm, are in units of the denoiser's `image_scale`.

    The weight is no likelihood: what is sampled depends on it, and on the number of steps. The authors use 0.3 to 1 at
    1000 steps.

    Args:
        iterations: >= 2, as the last one only denoises and does not look at the data.
        weight: zeta, > 0.

    Raises:
        ValueError: numbers out of their range.

    Source: Chung et al. 2023, "Diffusion posterior sampling for general noisy inverse problems", Alg. 1, and for
    counts the Gaussian noise of variance y that they put in the place of Poisson's, with the weights made relative.
    """

    iterations: int = 1000
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("weight", self.weight)
        if self.iterations < 2:
            raise ValueError(f"iterations must be >= 2, got {self.iterations}; the last one does not look at the data")

    def estimate(self, problem: Problem, prior: Denoiser, noisy: Tensor, level: Level, memory: Any) -> Estimate:
        if not level.lower:  # nothing comes behind it that could be guided
            denoised = prior(noisy, level.sigma)
            return Estimate(denoised, denoised, None)
        with torch.enable_grad():
            point = noisy.detach().requires_grad_()
            denoised = prior(point, level.sigma)
            clean = problem.operator(denoised)
            residual, slope = _residual(problem, clean.detach())
            (gradient,) = torch.autograd.grad(clean, point, slope)
        # an infinite likelihood says in no direction that it could fall
        gradient = torch.where(expand(residual.isfinite(), gradient), gradient, torch.nan)
        # the image x of a variance-preserving diffusion is scaled by 1 / sqrt(1 + sigma^2), before and behind the step;
        # it is in units of the denoiser's image scale, and so is the norm of a residual, not so the root of a misfit
        unit = prior.image_scale
        scale = math.sqrt((1 + (level.sigma / unit) ** 2) * (1 + (level.lower / unit) ** 2))
        scale *= unit if isinstance(problem.noise, (Gaussian, Poisson)) else unit**2
        return Estimate(denoised.detach(), denoised.detach(), scale * gradient)

    def consistent(
        self, problem: Problem, denoised: Tensor, noisy: Tensor, level: Level, memory: Any
    ) -> tuple[Tensor, Any]:
        return denoised, memory

    def renoise(self, problem: Problem, estimate: Estimate, noisy: Tensor, level: Level) -> Tensor:
        guidance: Tensor = estimate.memory
        return ancestral(estimate.denoised, noisy, level, self.generator) - self.weight * guidance


def _residual(problem: Problem, clean: Tensor) -> tuple[Tensor, Tensor]:
    """|y - clean| of each sample, in the units of clean for Gaussian noise and for counts, (B,), and its gradient."""
    noise, y, seen = problem.noise, problem.y, problem.operator.sampled()

    def kept(a: Tensor) -> Tensor:
        return a if seen is None else torch.where(seen, a, 0)

    if isinstance(noise, Gaussian):  # whatever the operator is
        slope = kept(clean - y)
        size = norm(slope)
    elif isinstance(noise, Poisson):
        weight = kept(noise.photons * y.clamp_min(1).rsqrt())
        typical = norm(weight) * problem.count.clamp_min(1).to(weight).rsqrt()
        weight = weight / expand(torch.where(typical > 0, typical, 1), weight)
        miss = weight * (clean - (y - noise.background) / noise.photons)
        slope, size = weight * miss, norm(miss)
    else:
        slope, size = kept(noise.nll_gradient(clean, y)), (2 * noise.nll(clean, y, seen)).sqrt()
    zero = expand(size == 0, slope)
    return size, torch.where(zero, 0, slope / torch.where(zero, 1, expand(size, slope)))
