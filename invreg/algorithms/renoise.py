"""What samplers with a diffusion prior share: noise levels that fall, and the loop denoise - meet the data - renoise.

Everything lives in the space x = x0 + sigma n, whatever path the network was trained on: the steps of DDIM, DDPM and
their kin read the same for variance-preserving and variance-exploding networks there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from invreg._check import require_count, require_positive
from invreg.algorithms.loop import Sampler, starting_point
from invreg.interfaces import Denoiser
from invreg.problem import Problem
from invreg.random import Generator, draw

ROUNDING = 1e-3
"""Relative, of the ends of a denoiser's range: tables of single precision are that far off at the least level."""


@runtime_checkable
class Schedule(Protocol):
    """Noise levels of a sampler."""

    def sigmas(self, n: int, sigma_range: tuple[float, float], scale: float = 1.0) -> tuple[float, ...]:
        """N falling noise levels > 0 for a denoiser that is made for `sigma_range` and images of the size `scale`.

        The 0 behind them is not listed.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Karras:
    """sigma_i^(1/rho) falls linearly.

    Args:
        sigma_min, sigma_max: the last and the first noise level, in the units of the image. Default 0.005 and 20 times
            the denoiser's `image_scale`, or what it was made for, if that is narrower.
        rho: > 0; the larger, the more levels are small.

    Raises:
        ValueError: numbers out of their range; on use, levels that the denoiser was not made for.

    Source: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", eq. 5.
    """

    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_levels(self.sigma_min, self.sigma_max)
        require_positive("rho", self.rho)

    def sigmas(self, n: int, sigma_range: tuple[float, float], scale: float = 1.0) -> tuple[float, ...]:
        first, last = (s ** (1 / self.rho) for s in _ends(self.sigma_min, self.sigma_max, sigma_range, scale))
        return tuple((first + (last - first) * i / max(n - 1, 1)) ** self.rho for i in range(n))


@dataclass(frozen=True, kw_only=True)
class UniformSteps:
    """Noise levels of equally spaced time steps of a variance-preserving diffusion, as DDIM, DDRM and DDS take them.

    Args:
        beta_first, beta_last: rates of noise of the first and the last of `steps`, rising linearly between.
        steps: of the diffusion.

    The levels are those of a network in its own units, times the denoiser's `image_scale`. Levels below or above what
    it was made for are refused, so that this is for networks of those very rates, and for samples of one scale.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models", sec. 4; Song et al. 2021, "Denoising diffusion
    implicit models", app. D.3 ("linear").
    """

    beta_first: float = 1e-4
    beta_last: float = 0.02
    steps: int = 1000

    def __post_init__(self) -> None:
        require_positive("beta_first", self.beta_first)
        require_count("steps", self.steps, least=2)
        if not self.beta_first <= self.beta_last < 1:
            raise ValueError(f"beta_last must be from beta_first = {self.beta_first} to 1, got {self.beta_last}")

    def sigmas(self, n: int, sigma_range: tuple[float, float], scale: float = 1.0) -> tuple[float, ...]:
        if n > self.steps:
            raise ValueError(f"iterations must be <= steps = {self.steps} of the schedule, got {n}")
        kept, levels = 1.0, []
        for i in range(self.steps):
            kept *= 1 - self.beta_first - (self.beta_last - self.beta_first) * i / (self.steps - 1)
            levels.append(math.sqrt((1 - kept) / kept))
        chosen = tuple(scale * levels[i * self.steps // n] for i in reversed(range(n)))
        _require_within(chosen[-1], chosen[0], sigma_range)
        return chosen


def _check_levels(sigma_min: float | None, sigma_max: float | None) -> None:
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        if value is not None:
            require_positive(name, value)
    if sigma_min is not None and sigma_max is not None and sigma_max <= sigma_min:
        raise ValueError(f"sigma_max must be > sigma_min = {sigma_min}, got {sigma_max}")


def _ends(
    sigma_min: float | None, sigma_max: float | None, sigma_range: tuple[float, float], scale: float
) -> tuple[float, float]:
    """The first and the last level."""
    low = max(0.005 * scale, sigma_range[0]) if sigma_min is None else sigma_min
    high = min(20.0 * scale, sigma_range[1]) if sigma_max is None else sigma_max
    _require_within(low, high, sigma_range)
    if high <= low:
        raise ValueError(f"sigma_max must be > sigma_min, got {high} and {low}; give both")
    return high, low


def _require_within(low: float, high: float, sigma_range: tuple[float, float]) -> None:
    least, most = sigma_range
    if low < least * (1 - ROUNDING) or high > most * (1 + ROUNDING):
        raise ValueError(
            f"sigma must stay within what the denoiser is made for, {least:g} to {most:g}, got {low:g} to {high:g}; "
            "use Karras(sigma_min=..., sigma_max=...), or Calibrated(denoiser, scale) for images of another size"
        )


@dataclass(frozen=True)
class Level:
    """Where on the schedule a step is.

    Args:
        sigma: the noise level of the image that comes in.
        lower: that of the image that goes out; 0 at the last step.
    """

    sigma: float
    lower: float


@dataclass(frozen=True, eq=False)
class SampleState:
    """Where a sampler is.

    Args:
        x: the clean image as estimated last, made consistent with the data, (B, *signal).
        noisy: the image at the noise level of the next step, (B, *signal).
        sigmas: all noise levels, 0 behind them.
        memory: what the method keeps from step to step.
    """

    x: Tensor
    noisy: Tensor
    sigmas: tuple[float, ...]
    memory: Any = None


@dataclass(frozen=True, eq=False)
class Estimate:
    """What one step believes of the clean image.

    Args:
        denoised: by the prior alone, (B, *signal).
        consistent: with the data, too, (B, *signal).
        memory: for the next step.
    """

    denoised: Tensor
    consistent: Tensor
    memory: Any


@dataclass(frozen=True, kw_only=True)
class DiffusionSampler(Sampler[SampleState], ABC):
    """Denoise, meet the data, renoise to the next level: a method is what it does for the second and the third.

    Args:
        iterations: steps, each with one evaluation of the denoiser.
        schedule: the noise levels.
    """

    iterations: int = 50
    schedule: Schedule = Karras()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.schedule, Schedule) or isinstance(self.schedule, type):
            raise TypeError(f"schedule must be one such as Karras() or UniformSteps(), got {self.schedule!r}")

    @abstractmethod
    def consistent(
        self, problem: Problem, denoised: Tensor, noisy: Tensor, level: Level, memory: Any
    ) -> tuple[Tensor, Any]:
        """The clean image that meets the data, too, (B, *signal), and what to remember."""

    @abstractmethod
    def renoise(self, problem: Problem, estimate: Estimate, noisy: Tensor, level: Level) -> Tensor:
        """An image at the lower noise level, which is > 0, (B, *signal)."""

    def require(self, problem: Problem) -> None:
        """Raise TypeError unless the method can do this problem. May be overridden; the default takes any."""

    def estimate(self, problem: Problem, prior: Denoiser, noisy: Tensor, level: Level, memory: Any) -> Estimate:
        """Denoise and meet the data. May be overridden by methods that differentiate the denoiser."""
        denoised = prior(noisy, level.sigma)
        return Estimate(denoised, *self.consistent(problem, denoised, noisy, level, memory))

    def remember(self, problem: Problem, like: Tensor) -> Any:
        """What the first step is to know. May be overridden; the default is nothing."""
        return None

    def begin(self, problem: Problem, like: Tensor, sigma: float, memory: Any) -> Tensor:
        """The image at the first noise level, about `like`, (B, *signal). May be overridden."""
        return like + sigma * draw(like, self.generator)

    def init(self, problem: Problem, prior: Denoiser, x0: Tensor | None) -> SampleState:
        if not isinstance(prior, Denoiser):
            raise TypeError(
                f"{type(self).__name__} needs a Denoiser, got {type(prior).__name__}; "
                "FISTA, PDHG and ADMM take regularizers"
            )
        self.require(problem)
        x = starting_point(problem, x0)
        sigmas = self.schedule.sigmas(self.iterations, prior.sigma_range, prior.image_scale)
        memory = self.remember(problem, x)
        return SampleState(x, self.begin(problem, x, sigmas[0], memory), (*sigmas, 0.0), memory)

    def step(self, problem: Problem, prior: Denoiser, state: SampleState, progress: float) -> SampleState:
        k = round(progress * self.iterations) - 1
        level = Level(state.sigmas[k], state.sigmas[k + 1])
        found = self.estimate(problem, prior, state.noisy, level, state.memory)
        noisy = self.renoise(problem, found, state.noisy, level) if level.lower else found.consistent
        return SampleState(found.consistent, noisy, state.sigmas, found.memory)


def mixed_noise(
    centre: Tensor, direction: Tensor, lower: float, fresh: float, generator: Generator, kept: float | None = None
) -> Tensor:
    """Centre + lower * (kept * direction + fresh * n), (B, *signal).

    Args:
        centre: the clean image, (B, *signal).
        direction: the noise that is believed to be in the noisy image, of unit variance, (B, *signal).
        lower: the next noise level.
        fresh: fraction of new noise, 0 to 1.
        generator: of the new noise; none is drawn where fresh is 0.
        kept: fraction of the old noise, default sqrt(1 - fresh^2).
    """
    kept = math.sqrt(1 - fresh * fresh) if kept is None else kept
    x = centre + (lower * kept) * direction if kept else centre
    return x + (lower * fresh) * draw(centre, generator) if fresh else x


def ancestral(centre: Tensor, noisy: Tensor, level: Level, generator: Generator) -> Tensor:
    """A draw from p(x_lower | x_sigma = noisy, x_0 = centre), (B, *signal).

    Source: Ho et al. 2020, eq. 7, which is this in the space x0 + sigma n.
    """
    ratio = (level.lower / level.sigma) ** 2
    mean = centre + ratio * (noisy - centre)
    return mean + (level.lower * math.sqrt(1 - ratio)) * draw(noisy, generator)


def require_fraction(name: str, value: float) -> None:
    """Raise unless value is a number from 0 to 1."""
    require_positive(name, value, zero_allowed=True)
    if value > 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value}")


def require_quadratic(problem: Problem, name: str, others: str) -> None:
    """Raise TypeError unless the problem is a linear operator under Gaussian noise."""
    if not problem.is_quadratic:
        raise TypeError(
            f"{name} needs a LinearOperator and Gaussian noise, got {type(problem.operator).__name__} and "
            f"{type(problem.noise).__name__}; {others}"
        )


OTHERS = "DPS and Variational with REDDiff take any operator and noise"
