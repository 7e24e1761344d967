"""The diffusions of score-based models: how noise grows in time, and the score of it by a denoiser.

x_t = scale(t) x0 + std(t) n for 0 <= t <= 1, where x_t solves dx = rate(t) x dt + diffusion(t) dw. A denoiser speaks of
x0 + sigma n with sigma = std / scale, so that any denoiser goes with any of these diffusions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_count, require_positive
from invreg.interfaces import Denoiser
from invreg.linalg import expand
from invreg.random import Generator, draw

Time = Tensor | float


class SDE(ABC):
    """dx = rate(t) x dt + diffusion(t) dw, whose solution given x0 is Gaussian at every t.

    Times are from 0 (clean) to 1 (noise), numbers or tensors, () or (B,); coefficients come back as float64 tensors of
    that shape. `std` and `diffusion` are those of each real component, as all noise here.
    """

    @abstractmethod
    def scale(self, t: Time) -> Tensor:
        """What is left of x0 at t, > 0."""

    @abstractmethod
    def std(self, t: Time) -> Tensor:
        """Standard deviation of the noise at t."""

    @abstractmethod
    def rate(self, t: Time) -> Tensor:
        """Of the drift rate * x: the derivative of log scale."""

    @abstractmethod
    def diffusion(self, t: Time) -> Tensor:
        """What multiplies the Brownian increments."""

    @abstractmethod
    def time(self, sigma: Time) -> Tensor:
        """The t at which std / scale is sigma > 0; it may lie outside 0 and 1."""

    def sigma(self, t: Time) -> Tensor:
        """The noise level std / scale that a denoiser is told."""
        return self.std(t) / self.scale(t)

    def perturb(self, x0: Tensor, t: Time, generator: Generator = None) -> Tensor:
        """A draw of x_t given x0, (B, *signal)."""
        return _like(self.scale(t), x0) * x0 + _like(self.std(t), x0) * draw(x0, generator)

    def denoised(self, denoiser: Denoiser, x: Tensor, t: Time) -> Tensor:
        """E[x0 | x_t = x], (B, *signal)."""
        return denoiser(x / _like(self.scale(t), x), _there(self.sigma(t), x))

    def score(self, denoiser: Denoiser, x: Tensor, t: Time) -> Tensor:
        """Gradient of log p_t at x, (B, *signal): (scale * E[x0 | x_t] - x) / std^2."""
        return self.score_of(self.denoised(denoiser, x, t), x, t)

    def score_of(self, denoised: Tensor, x: Tensor, t: Time) -> Tensor:
        """The score where E[x0 | x_t = x] is known, (B, *signal)."""
        return (_like(self.scale(t), x) * denoised - x) / _like(self.std(t), x) ** 2

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """(a, c) with x_t = a x_s + c n for s <= t, exactly."""
        a = self.scale(t) / self.scale(s)
        return a, (self.std(t).square() - (a * self.std(s)).square()).clamp_min(0).sqrt()

    def prior_mean(self, denoiser: Denoiser, like: Tensor, t: Time = 1.0) -> Tensor:
        """The mean of x_t where t is so late that x_t tells next to nothing of x0: scale * E[x0 | x_t = 0]."""
        return _like(self.scale(t), like) * self.denoised(denoiser, torch.zeros_like(like), t)

    def prior_log_density(self, x: Tensor, t: Time = 1.0) -> Tensor:
        """Log density of the noise at time t, N(0, std(t)^2) in every real component, (B,), in nats."""
        parts = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
        z = (parts / _like(self.std(t), parts)).flatten(1)
        constant = self.std(t).to(x.device, z.dtype).log() + 0.5 * math.log(2 * math.pi)
        return -0.5 * z.square().sum(1) - z.shape[1] * constant

    def span(self, sigma_range: tuple[float, float] = (0.0, math.inf), t_min: float = 1e-5) -> tuple[float, float]:
        """(last, first): the times between which a denoiser made for `sigma_range` can be asked, from t_min to 1.

        Raises:
            ValueError: t_min is not within 0 and 1, or no time is left.
        """
        if not 0 < t_min < 1:
            raise ValueError(f"t_min must be within 0 and 1, got {t_min}")
        least, most = sigma_range
        last = max(t_min, float(self.time(least))) if least > 0 else t_min
        first = min(1.0, float(self.time(most))) if math.isfinite(most) else 1.0
        if last >= first:
            raise ValueError(
                f"{self} must overlap with the noise levels that the denoiser was made for, {least:g} to {most:g}, "
                f"got levels {float(self.sigma(t_min)):g} to {float(self.sigma(1.0)):g}"
            )
        return last, first

    def times(
        self, n: int, sigma_range: tuple[float, float] = (0.0, math.inf), t_min: float = 1e-5
    ) -> tuple[float, ...]:
        """N times that fall evenly over `span`, whose arguments these are; the last one > 0."""
        require_count("n", n, least=2)
        last, first = self.span(sigma_range, t_min)
        return tuple(first + (last - first) * k / (n - 1) for k in range(n))


def _double(value: Time) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _there(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient on the device and in the precision of x; a number of the host's is sent without waiting."""
    if coefficient.ndim or coefficient.requires_grad or coefficient.device == x.device:
        return coefficient.to(x.device, x.real.dtype)
    return torch.full((), float(coefficient), dtype=x.real.dtype, device=x.device)


def _like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient, () or (B,), on the device and in the precision of x, to broadcast against it."""
    moved = _there(coefficient, x)
    return expand(moved, x) if moved.ndim else moved


@dataclass(frozen=True)
class VE(SDE):
    """Exploding variance: scale 1, std = sigma_min (sigma_max / sigma_min)^t.

    Args:
        sigma_min: noise level at t = 0, which is as clean as it gets.
        sigma_max: at t = 1; as large as the greatest distance between images, so that their origin is forgotten.

    Source: Song et al. 2021, "Score-based generative modeling through stochastic differential equations", eq. 30.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check_rising("sigma", self.sigma_min, self.sigma_max)

    def scale(self, t: Time) -> Tensor:
        return torch.ones_like(_double(t))

    def std(self, t: Time) -> Tensor:
        return self.sigma_min * torch.exp(self._growth * _double(t))

    def rate(self, t: Time) -> Tensor:
        return torch.zeros_like(_double(t))

    def diffusion(self, t: Time) -> Tensor:
        return self.std(t) * math.sqrt(2 * self._growth)

    def time(self, sigma: Time) -> Tensor:
        return (_double(sigma) / self.sigma_min).log() / self._growth

    @property
    def _growth(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class VP(SDE):
    """Preserved variance: scale = e^(-B/2), std^2 = 1 - e^(-B), B = beta_min t + (beta_max - beta_min) t^2 / 2.

    Args:
        beta_min, beta_max: rates of noise at t = 0 and at t = 1, 0 < beta_min <= beta_max.

    Source: Song et al. 2021, eq. 32 and 33.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _check_rising("beta", self.beta_min, self.beta_max, equal=True)

    def scale(self, t: Time) -> Tensor:
        return torch.exp(-_integral(self, t) / 2)

    def std(self, t: Time) -> Tensor:
        return (-torch.expm1(-_integral(self, t))).sqrt()

    def rate(self, t: Time) -> Tensor:
        return -_beta(self, t) / 2

    def diffusion(self, t: Time) -> Tensor:
        return _beta(self, t).sqrt()

    def time(self, sigma: Time) -> Tensor:
        return _time_of(self, torch.log1p(_double(sigma).square()))


@dataclass(frozen=True)
class SubVP(SDE):
    """Variance below the preserved one: scale = e^(-B/2), std = 1 - e^(-B), with the B of `VP`.

    Args:
        beta_min, beta_max: rates of noise at t = 0 and at t = 1, 0 < beta_min <= beta_max.

    Source: Song et al. 2021, eq. 29 and app. C.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _check_rising("beta", self.beta_min, self.beta_max, equal=True)

    def scale(self, t: Time) -> Tensor:
        return torch.exp(-_integral(self, t) / 2)

    def std(self, t: Time) -> Tensor:
        return -torch.expm1(-_integral(self, t))

    def rate(self, t: Time) -> Tensor:
        return -_beta(self, t) / 2

    def diffusion(self, t: Time) -> Tensor:
        return (_beta(self, t) * -torch.expm1(-2 * _integral(self, t))).sqrt()

    def time(self, sigma: Time) -> Tensor:
        return _time_of(self, 2 * torch.asinh(_double(sigma) / 2))


def _beta(sde: VP | SubVP, t: Time) -> Tensor:
    return sde.beta_min + (sde.beta_max - sde.beta_min) * _double(t)


def _integral(sde: VP | SubVP, t: Time) -> Tensor:
    """B(t), the integral of beta."""
    t = _double(t)
    return t * (sde.beta_min + (sde.beta_max - sde.beta_min) * t / 2)


def _time_of(sde: VP | SubVP, integral: Tensor) -> Tensor:
    """The t of a B, without cancellation at small t."""
    rise = sde.beta_max - sde.beta_min
    return 2 * integral / (sde.beta_min + (sde.beta_min**2 + 2 * rise * integral).sqrt())


def _check_rising(name: str, least: float, most: float, equal: bool = False) -> None:
    require_positive(f"{name}_min", least)
    require_positive(f"{name}_max", most)
    if most < least or (most == least and not equal):
        raise ValueError(f"{name}_max must be {'>=' if equal else '>'} {name}_min = {least}, got {most}")
