"""DiffPIR: half-quadratic splitting at the noise levels of a diffusion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from invreg._check import require_count, require_positive
from invreg.algorithms.renoise import (
    OTHERS,
    DiffusionSampler,
    Estimate,
    Level,
    ancestral,
    mixed_noise,
    require_fraction,
    require_quadratic,
)
from invreg.problem import Problem


@dataclass(frozen=True, kw_only=True)
class DiffPIR(DiffusionSampler):
    """The data step is the prox of the likelihood about D(x, sigma) with variance sigma^2 / strength.

    The noise that is kept is that of the consistent image, (x - x0') / sigma. The last step leaves the data out, as
    the authors do; with a strong prior that costs consistency at its noise level.

    Args:
        strength: lambda, > 0: how much more the denoised image counts than its noise level says; the authors use 1
            to 25.
        zeta: fraction of variance that is fresh noise, 0 to 1; narrows draws as eta = sqrt(zeta) does those of `DDS`.
            None for ancestral steps, draws of p(x_lower | noisy, x_0 = the consistent image), which do not.
        inner_iterations: conjugate gradients of a data step, from the denoised image, unless the operator offers a
            closed form.

    Source: Zhu et al. 2023, "Denoising diffusion models for plug-and-play image restoration", Alg. 1.
    """

    iterations: int = 100
    strength: float = 1.0
    zeta: float | None = 1.0
    inner_iterations: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("strength", self.strength)
        if self.zeta is not None:
            require_fraction("zeta", self.zeta)
        require_count("inner_iterations", self.inner_iterations)

    def require(self, problem: Problem) -> None:
        require_quadratic(problem, "DiffPIR", OTHERS)

    def consistent(
        self, problem: Problem, denoised: Tensor, noisy: Tensor, level: Level, memory: Any
    ) -> tuple[Tensor, Any]:
        if not level.lower:
            return denoised, None
        n, variance = self.inner_iterations, level.sigma**2 / self.strength
        return problem.prox(denoised, variance, x0=denoised, rtol=0, iterations=n, check_every=n), None

    def renoise(self, problem: Problem, estimate: Estimate, noisy: Tensor, level: Level) -> Tensor:
        if self.zeta is None:
            return ancestral(estimate.consistent, noisy, level, self.generator)
        direction = (noisy - estimate.consistent) * (1 / level.sigma)
        return mixed_noise(
            estimate.consistent, direction, level.lower, math.sqrt(self.zeta), self.generator, math.sqrt(1 - self.zeta)
        )
