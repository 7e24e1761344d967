"""DDNM and DDNM+: the null space from the prior, the range from the data, as far as their noise allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invreg.algorithms.renoise import (
    OTHERS,
    DiffusionSampler,
    Estimate,
    Level,
    mixed_noise,
    require_fraction,
    require_quadratic,
)
from invreg.algorithms.spectral import SpectralData, spectral_data
from invreg.problem import Problem
from invreg.random import draw


@dataclass(frozen=True, kw_only=True)
class DDNM(DiffusionSampler):
    """Measured coordinates of the denoised image are replaced by their data, whose noise counts as part of the next.

    Coordinates whose data noise sigma_y / s is below the next level are replaced whole, and what is missing to that
    level is added; others in part only. Needs a singular value decomposition of the operator.

    Args:
        eta: fraction of fresh noise, 0 to 1, in coordinates that were not measured.
        noise_aware: DDNM+; False is DDNM, which takes the data for exact.

    Source: Wang, Yu and Zhang 2023, "Zero-shot image restoration using denoising diffusion null-space model", eq. 13
    and 17 to 19 with a level for each singular value, without time travel.
    """

    iterations: int = 100
    eta: float = 0.85
    noise_aware: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction("eta", self.eta)

    def require(self, problem: Problem) -> None:
        require_quadratic(problem, "DDNM", OTHERS)

    def remember(self, problem: Problem, like: Tensor) -> SpectralData:
        return spectral_data(problem, like, "DDNM")

    def consistent(
        self, problem: Problem, denoised: Tensor, noisy: Tensor, level: Level, memory: SpectralData
    ) -> tuple[Tensor, SpectralData]:
        weight = memory.seen.to(memory.noise.dtype)
        if self.noise_aware:
            weight = torch.where(memory.noise > level.lower, self._partly(memory, level), weight)
        change = weight * torch.where(memory.seen, memory.value - memory.analyse(denoised), 0)
        return denoised + memory.synthesise(change), memory

    def _partly(self, memory: SpectralData, level: Level) -> Tensor:
        """The share of the data that brings noise of lower * sqrt(1 - eta^2) with it."""
        return level.lower * math.sqrt(1 - self.eta**2) / torch.where(memory.noise > 0, memory.noise, 1)

    def renoise(self, problem: Problem, estimate: Estimate, noisy: Tensor, level: Level) -> Tensor:
        direction = (noisy - estimate.denoised) * (1 / level.sigma)
        if not self.noise_aware:
            return mixed_noise(estimate.consistent, direction, level.lower, self.eta, self.generator)
        memory: SpectralData = estimate.memory
        rest = (level.lower**2 - memory.noise**2).clamp_min(0).sqrt()  # what the data lack of the next level
        good = memory.seen & (memory.noise <= level.lower)
        fresh = memory.analyse(draw(noisy, self.generator))
        noise = torch.where(good, rest, self.eta * level.lower) * fresh
        if self.eta < 1:
            kept = level.lower * math.sqrt(1 - self.eta**2)
            noise = noise + torch.where(memory.seen, 0, kept * memory.analyse(direction))
        return estimate.consistent + memory.synthesise(noise)
