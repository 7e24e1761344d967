"""How a network was told of noise: what scales its input and what stands for the noise level.

Everything here speaks of x = x0 + sigma n; a network sees scale * x and a time, both of them functions of sigma.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn

from invreg._check import require_count, require_positive


class NoisePath(nn.Module, ABC):
    """What a network sees of x = x0 + sigma n at noise level sigma, (B,).

    `sigma_range` holds the least and the largest noise level that it was trained for.
    """

    sigma_range: tuple[float, float]
    config: Mapping[str, object]

    @abstractmethod
    def scale(self, sigma: Tensor) -> Tensor:
        """By which x is multiplied before the network sees it, (B,)."""

    @abstractmethod
    def time(self, sigma: Tensor) -> Tensor:
        """What the network is told of the noise level, (B,)."""

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.config.items() if not isinstance(value, tuple))


class EDM(NoisePath):
    """The path of preconditioned networks: input of unit variance, time = log(sigma) / 4.

    Args:
        sigma_data: standard deviation of the clean images about 0.
        sigma_min, sigma_max: noise levels that were trained.

    Source: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", table 1.
    """

    def __init__(self, sigma_data: float = 0.5, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        super().__init__()
        require_positive("sigma_data", sigma_data)
        _require_range(sigma_min, sigma_max)
        self.config = {"sigma_data": sigma_data, "sigma_min": sigma_min, "sigma_max": sigma_max}
        self.sigma_data, self.sigma_range = sigma_data, (sigma_min, sigma_max)

    def scale(self, sigma: Tensor) -> Tensor:
        return (sigma.square() + self.sigma_data**2).rsqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4


class VarianceExploding(NoisePath):
    """The path of networks that see x itself and are told sigma, or its logarithm.

    Args:
        sigma_min, sigma_max: noise levels that were trained.
        logarithm: whether the network is told log(sigma) instead of sigma.

    Source: Song et al. 2021, "Score-based generative modeling through stochastic differential equations", NCSN++.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, *, logarithm: bool = False) -> None:
        super().__init__()
        _require_range(sigma_min, sigma_max)
        self.config = {"sigma_min": sigma_min, "sigma_max": sigma_max, "logarithm": logarithm}
        self.sigma_range, self.logarithm = (sigma_min, sigma_max), logarithm

    def scale(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def time(self, sigma: Tensor) -> Tensor:
        return sigma.log() if self.logarithm else sigma


class VariancePreserving(NoisePath):
    """The path with x_t = e^(-B/2) x0 + sqrt(1 - e^(-B)) n, B = beta_min t + (beta_max - beta_min) t^2 / 2, 0 < t <= 1.

    Args:
        beta_min, beta_max: rates of noise at t = 0 and at t = 1.
        t_min: least t that was trained.
        multiplier: the network is told multiplier * t.

    Source: Song et al. 2021, eq. 32 and 33; the authors' code tells its networks 999 t.
    """

    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, *, t_min: float = 1e-3, multiplier: float = 999.0
    ) -> None:
        super().__init__()
        for name, value in (("beta_min", beta_min), ("t_min", t_min), ("multiplier", multiplier)):
            require_positive(name, value)
        if not beta_max > beta_min or not t_min < 1:
            raise ValueError(
                "beta_max must be > beta_min and t_min < 1, got "
                f"beta_max {beta_max}, beta_min {beta_min}, t_min {t_min}"
            )
        self.config = {"beta_min": beta_min, "beta_max": beta_max, "t_min": t_min, "multiplier": multiplier}
        self.beta_min, self.beta_max, self.multiplier = beta_min, beta_max, multiplier
        self.sigma_range = (self._sigma(t_min), self._sigma(1.0))

    def _sigma(self, t: float) -> float:
        return math.sqrt(math.expm1(self.beta_min * t + (self.beta_max - self.beta_min) * t * t / 2))

    def scale(self, sigma: Tensor) -> Tensor:
        return (1 + sigma.square()).rsqrt()

    def time(self, sigma: Tensor) -> Tensor:
        integral, rise = torch.log1p(sigma.square()), self.beta_max - self.beta_min
        # the root of rise t^2 / 2 + beta_min t = integral, without cancellation at small t
        return self.multiplier * 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * rise * integral).sqrt())


class DiscreteVariancePreserving(NoisePath):
    """The path of networks trained at whole time steps k, where x_k = sqrt(a_k) x0 + sqrt(1 - a_k) n.

    Between two steps the network is told a fraction: log(sigma) is interpolated over k.

    Args:
        alphas_cumprod: a_k of every step, falling, within 0 and 1. A last one of exactly 0 (zero terminal
            signal-to-noise) has no sigma and is left out.

    Raises:
        ValueError: fewer than two steps, or they do not fall.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models", eq. 4.
    """

    log_sigmas: Tensor

    def __init__(self, alphas_cumprod: Sequence[float]) -> None:
        super().__init__()
        steps = tuple(float(a) for a in alphas_cumprod)
        steps = steps[:-1] if steps and steps[-1] == 0 else steps
        if len(steps) < 2 or not all(1 > a > b > 0 for a, b in pairwise(steps)):
            raise ValueError(
                f"alphas_cumprod must be two numbers or more that fall between 1 and 0, got {len(steps)} from "
                f"{steps[:1]} to {steps[-1:]}"
            )
        self.config = {"alphas_cumprod": steps}
        sigmas = [math.sqrt((1 - a) / a) for a in steps]
        self.sigma_range = (sigmas[0], sigmas[-1])
        self.register_buffer("log_sigmas", torch.tensor(sigmas, dtype=torch.float64).log(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = self.log_sigmas
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.log_sigmas = exact.to(self.log_sigmas.device)  # in half precision, steps of the table would coincide
        return self

    def scale(self, sigma: Tensor) -> Tensor:
        return (1 + sigma.square()).rsqrt()

    def time(self, sigma: Tensor) -> Tensor:
        table = self.log_sigmas
        at = sigma.log().to(table.dtype)
        above = torch.searchsorted(table, at).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        return (above - 1 + ((at - low) / (high - low)).clamp(0, 1)).to(sigma.dtype)


class RectifiedFlow(NoisePath):
    """The straight path x_t = (1 - t) x0 + t n: scale 1 - t, where t = sigma / (1 + sigma).

    Args:
        t_min, t_max: times that were trained, within 0 and 1, noise at 1.
        multiplier: the network is told multiplier * t.
        reverse: the network is told 1 - t, its noise at time 0; its velocity is then x0 - n.

    Source: Liu, Gong and Liu 2023, "Flow straight and fast".
    """

    def __init__(
        self, t_min: float = 1e-3, t_max: float = 0.999, *, multiplier: float = 1.0, reverse: bool = False
    ) -> None:
        super().__init__()
        require_positive("multiplier", multiplier)
        if not 0 < t_min < t_max < 1:
            raise ValueError(f"t_min and t_max must rise within 0 and 1, got {t_min} and {t_max}")
        self.config = {"t_min": t_min, "t_max": t_max, "multiplier": multiplier, "reverse": reverse}
        self.sigma_range = (t_min / (1 - t_min), t_max / (1 - t_max))
        self.multiplier, self.reverse = multiplier, reverse

    def scale(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def time(self, sigma: Tensor) -> Tensor:
        return self.multiplier * (1 / (1 + sigma) if self.reverse else sigma / (1 + sigma))


def linear_alphas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> tuple[float, ...]:
    """The a_k of `DiscreteVariancePreserving` under rates of noise that rise linearly, as Ho et al. 2020 have them."""
    require_count("steps", steps, least=2)
    betas = torch.linspace(first, last, steps, dtype=torch.float64)
    return tuple((1 - betas).cumprod(0).tolist())


def _require_range(sigma_min: float, sigma_max: float) -> None:
    require_positive("sigma_min", sigma_min)
    require_positive("sigma_max", sigma_max)
    if sigma_max <= sigma_min:
        raise ValueError(f"sigma_max must be > sigma_min = {sigma_min}, got {sigma_max}")
