"""A small Gaussian field whose posterior is known, and how far samples are from it."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from invreg.models.oracles import GaussianOracle
from invreg.noise import Gaussian
from invreg.operators import Mask
from invreg.problem import Problem
from invreg.sample_distance import sampling_floor, sliced_wasserstein


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seeded(seed: int = 0, where: torch.device | None = None) -> torch.Generator:
    return torch.Generator(where or device()).manual_seed(seed)


@dataclass(frozen=True)
class Levels:
    """Noise levels that are given, so that two libraries take the same.

    Args:
        values: falling, > 0.
    """

    values: tuple[float, ...]

    def sigmas(self, n: int, sigma_range: tuple[float, float], scale: float = 1.0) -> tuple[float, ...]:
        if n != len(self.values):
            raise ValueError(f"iterations must be {len(self.values)}, as many as levels, got {n}")
        return self.values


@dataclass(frozen=True)
class Known:
    """A problem whose posterior is known.

    Args:
        prior, exact: the denoisers of prior and posterior.
        problem: one measurement.
        count: samples that are drawn.
    """

    prior: GaussianOracle
    exact: GaussianOracle
    problem: Problem
    count: int

    @cached_property
    def floor(self) -> float:
        """The distance between two exact sets of samples."""
        return sampling_floor(self.exact.sample, self.count, repeats=10, generator=seeded(4)).mean

    @property
    def repeated(self) -> Problem:
        """The problem, once for each sample."""
        y = self.problem.y
        return replace(self.problem, y=y.expand(self.count, *y.shape[1:]))


def known(spread: float, sigma: float, count: int) -> Known:
    """A smooth field of 8 x 8 about 0.5, of which half the pixels are seen."""
    k = torch.fft.fftfreq(8, dtype=torch.float64) * 8
    spectrum = (1 + (k[:, None] ** 2 + k**2) / 4) ** -1.5
    spectrum = spread**2 * spectrum / spectrum.mean()
    basis = torch.fft.ifft2(torch.eye(64).reshape(64, 8, 8).to(torch.complex128), norm="ortho").reshape(64, 64).mT
    covariance = (basis @ torch.diag(spectrum.flatten()).to(basis) @ basis.mH).real
    prior = GaussianOracle(torch.full((8, 8), 0.5, dtype=torch.float64), (covariance + covariance.mT) / 2)
    cpu = torch.device("cpu")
    mask = torch.rand(64, generator=seeded(1, cpu)).argsort().reshape(8, 8) < 32
    operator, noise = Mask(mask), Gaussian(sigma)
    y = noise.sample(operator(prior.sample(1, seeded(2, cpu))), seeded(3, cpu))
    exact = prior.posterior(Problem(operator, torch.where(mask, y, 0), noise))
    problem = Problem(operator, torch.where(mask, y, 0).float().to(device()), noise)
    problem = replace(problem, operator=operator.to(device()))
    return Known(prior.float().to(device()), exact.float().to(device()), problem, count)


def quality(x: Tensor, there: Known) -> str:
    """How far samples are from the posterior, in words."""
    exact, total = there.exact, there.exact.covariance.diagonal().sum()
    distance = float(sliced_wasserstein(x, exact.sample(there.count, seeded(5)), generator=seeded(6))) / there.floor
    bias, spread = (x.mean(0) - exact.mean).square().sum(), x.flatten(1).var(0).sum()
    return (
        f"distance {distance:.1f} floors, bias {float((bias / total).sqrt()):.2f}, "
        f"std ratio {float((spread / total).sqrt()):.2f}"
    )
