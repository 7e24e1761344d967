"""DDRM: a diffusion in the coordinates of the operator's singular vectors, each mixed with its data."""

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
    require_fraction,
    require_quadratic,
)
from invreg.algorithms.spectral import SpectralData, spectral_data
from invreg.problem import Problem
from invreg.random import draw


@dataclass(frozen=True, kw_only=True)
class DDRM(DiffusionSampler):
    """The next noisy image is drawn coordinate by coordinate, by three rules.

    Not measured: D + lower * (sqrt(1 - eta^2) e + eta n), e the noise that is in now. Measured with noise above the
    next level: D moves towards the data by lower * sqrt(1 - eta^2) of their standard deviations, eta n is added.
    Measured better than that: (1 - eta_b) D + eta_b data, and noise up to the level. Needs a singular value
    decomposition of the operator.

    Args:
        eta: fraction of fresh noise in the first two, 0 to 1.
        eta_b: weight of the data in the third, 0 to 1.

    Source: Kawar et al. 2022, "Denoising diffusion restoration models", eq. 7 and 8.
    """

    iterations: int = 20
    eta: float = 0.85
    eta_b: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction("eta", self.eta)
        require_fraction("eta_b", self.eta_b)

    def require(self, problem: Problem) -> None:
        require_quadratic(problem, "DDRM", OTHERS)

    def remember(self, problem: Problem, like: Tensor) -> SpectralData:
        return spectral_data(problem, like, "DDRM")

    def begin(self, problem: Problem, like: Tensor, sigma: float, memory: SpectralData) -> Tensor:
        good = memory.seen & (memory.noise <= sigma)
        level = torch.where(good, (sigma**2 - memory.noise**2).clamp_min(0).sqrt(), sigma)
        start = torch.where(good, memory.value, memory.analyse(like))
        return memory.synthesise(start + level * memory.analyse(draw(like, self.generator)))

    def consistent(
        self, problem: Problem, denoised: Tensor, noisy: Tensor, level: Level, memory: SpectralData
    ) -> tuple[Tensor, SpectralData]:
        return denoised, memory  # the data come in with the noise

    def renoise(self, problem: Problem, estimate: Estimate, noisy: Tensor, level: Level) -> Tensor:
        memory: SpectralData = estimate.memory
        clean, fresh = memory.analyse(estimate.denoised), memory.analyse(draw(noisy, self.generator))
        kept, lower = math.sqrt(1 - self.eta**2), level.lower
        good = memory.seen & (memory.noise <= lower)
        loose = clean + (lower * self.eta) * fresh
        if kept:
            toward = torch.where(
                memory.seen,
                (memory.value - clean) / torch.where(memory.noise > 0, memory.noise, 1),
                (memory.analyse(noisy) - clean) / level.sigma,
            )
            loose = loose + (lower * kept) * toward
        rest = (lower**2 - (self.eta_b * memory.noise) ** 2).clamp_min(0).sqrt()
        tight = (1 - self.eta_b) * clean + self.eta_b * memory.value + rest * fresh
        return memory.synthesise(torch.where(good, tight, loose))
