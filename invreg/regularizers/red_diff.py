"""RED-Diff: regularization by the denoising of a diffusion model, at noise levels that fall as iterations pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from invreg._check import require_positive
from invreg.interfaces import Denoiser, Regularizer
from invreg.linalg import inner
from invreg.problem import Problem
from invreg.random import Generator, draw


def linear(sigma: float) -> float:
    """Sigma, the inverse of the root of the signal-to-noise ratio: the gradient is weight * (x - D), in image units."""
    return sigma


def root(sigma: float) -> float:
    """The square root of sigma."""
    return math.sqrt(sigma)


def square(sigma: float) -> float:
    """Sigma^2."""
    return sigma * sigma


def logarithmic(sigma: float) -> float:
    """log(1 + sigma)."""
    return math.log1p(sigma)


def clipped(sigma: float) -> float:
    """Sigma, but at most 1."""
    return min(sigma, 1.0)


def two_thirds(sigma: float) -> float:
    """Sigma^(2/3)."""
    return math.pow(sigma, 2 / 3)


def constant(sigma: float) -> float:
    """1."""
    return 1.0


class REDDiff(Regularizer[Tensor]):
    """The gradient is weight * w(sigma) * (e - n): n the noise that is added to x, e what the denoiser takes it for.

    With x_sigma = x + sigma n that is weight * w(sigma) / sigma * (x - D(x_sigma, sigma)), and weight * (x - D) for the
    linear w; sigma as the argument of w, and w, are in units of the denoiser's `image_scale`. The denoiser is never
    differentiated. The noise level falls with `at(progress)`; before, it is the largest. The value has the right
    gradient and means nothing else, hence `exact` is False.

    Args:
        denoiser: D.
        weight: >= 0, beside misfit = |A x - y|^2 / (2 sigma_y^2); see `published_weight`. Default 0.25 over the
            square of the denoiser's `image_scale`.
        weighting: w, such as `linear`, `root`, `square`, `logarithmic`, `clipped`, `two_thirds`, `constant`.
        sigma_max, sigma_min: noise levels at the start and at the end; default those of a variance-preserving diffusion
            with rates from 0.1 to 20, 152 to 0.0105 times the denoiser's `image_scale`, or what it is made for, if
            that is narrower.
        spread: standard deviation of the variational distribution about x, >= 0.
        generator: source of the noise; one per sample, or one for the batch.

    Between the ends the level is that of equally spaced steps of that diffusion.

    Raises:
        TypeError: denoiser is not a Denoiser.
        ValueError: a number out of its range, or levels that the denoiser is not made for.

    Source: Mardani et al. 2024, "A variational perspective on solving inverse problems with diffusion models", Alg. 1
    and sec. 4.2; the weightings are those of the authors' program.
    """

    exact: ClassVar[bool] = False

    def __init__(
        self,
        denoiser: Denoiser,
        weight: float | Tensor | None = None,
        *,
        weighting: Callable[[float], float] = linear,
        sigma_max: float | None = None,
        sigma_min: float | None = None,
        spread: float = 0.0,
        generator: Generator = None,
    ) -> None:
        if not isinstance(denoiser, Denoiser):
            raise TypeError(f"denoiser must be a Denoiser, got {type(denoiser).__name__}")
        super().__init__(0.25 / denoiser.image_scale**2 if weight is None else weight)
        least, most = denoiser.sigma_range
        sigma_max = min(denoiser.image_scale * _level(1.0), most) if sigma_max is None else sigma_max
        sigma_min = max(denoiser.image_scale * _level(0.0), least) if sigma_min is None else sigma_min
        for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
            require_positive(name, value)
            if not least * (1 - 1e-6) <= value <= most * (1 + 1e-6):
                raise ValueError(f"{name} must be within what the denoiser is made for, {least} to {most}, got {value}")
        if sigma_min > sigma_max:
            raise ValueError(f"sigma_max must be >= sigma_min = {sigma_min}, got {sigma_max}")
        require_positive("spread", spread, zero_allowed=True)
        self.denoiser, self.weighting, self.spread, self.generator = denoiser, weighting, spread, generator
        self.sigma_max, self.sigma_min = sigma_max, sigma_min
        self.sigma = sigma_max

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            point = x.detach()
            if self.spread:
                point = point + self.spread * draw(point, self.generator)
            denoised = self.denoiser(point + self.sigma * draw(point, self.generator), self.sigma)
            sigma = self.sigma / self.denoiser.image_scale
            direction = (self.weighting(sigma) / sigma) * (point - denoised)
        product = inner(x, direction)
        return self.weight * product

    def at(self, progress: float) -> REDDiff:
        """The same at the noise level of that progress, which shares denoiser, weight and generator."""
        other = REDDiff.__new__(REDDiff)
        other.__dict__.update(self.__dict__)
        scale = self.denoiser.image_scale
        first, last = _time(self.sigma_max / scale), _time(self.sigma_min / scale)
        other.sigma = min(max(scale * _level(first + (last - first) * progress), self.sigma_min), self.sigma_max)
        return other


def published_weight(problem: Problem, x: Tensor, value: float = 0.25) -> float:
    """The weight that stands for the authors' `value` of lambda: value * m / (d sigma_y^2).

    They take means over the m measured and the d image entries, and noise of standard deviation 1, for the misfit.

    Args:
        problem: with Gaussian noise; where its level varies, the mean of 1 / sigma^2 counts.
        x: an image, (B, *signal), for its size.
        value: lambda; the authors use 0.25, and 1 for noisy inpainting.
    """
    sigma = problem.noise.sigma  # type: ignore[attr-defined]
    precision = float((torch.as_tensor(sigma) ** -2.0).mean())
    entries = x[0].numel() * (2 if x.is_complex() else 1)
    return value * float(problem.count.double().mean()) / entries * precision


_FIRST, _RISE = 0.1, 19.9
"""The rate at t = 0 and its rise until t = 1: 1000 times those of the 1000 steps of Ho et al. 2020."""


def _level(t: float) -> float:
    """Sigma at time t, 0 to 1, of the variance-preserving diffusion; not below that of t = 0.001."""
    t = max(t, 1e-3)
    return math.sqrt(math.expm1(_FIRST * t + _RISE * t * t / 2))


def _time(sigma: float) -> float:
    """The inverse of `_level`."""
    integral = math.log1p(sigma * sigma)
    return 2 * integral / (_FIRST + math.sqrt(_FIRST**2 + 2 * _RISE * integral))
