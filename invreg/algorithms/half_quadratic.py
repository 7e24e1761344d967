"""Half-quadratic splitting: data and prior in turn, coupled ever more tightly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_count, require_positive
from invreg.algorithms.loop import Algorithm, starting_point
from invreg.algorithms.proved_step import warn_if_learned
from invreg.algorithms.smooth import annealed, curvature
from invreg.interfaces import Proximal
from invreg.linalg import expand
from invreg.problem import Problem


@dataclass(frozen=True, eq=False)
class HQSState:
    """Where HQS is.

    Args:
        x: the image after the prior's turn, (B, *signal).
        solution: the image after the data's turn, (B, *signal).
        curvature: |A|^2 / sigma^2, (B,).
    """

    x: Tensor
    solution: Tensor
    curvature: Tensor


@dataclass(frozen=True, kw_only=True)
class HQS(Algorithm[Proximal, HQSState]):
    """z <- argmin_z misfit(z) + rho / 2 |z - x|^2, then x <- prox(z, 1 / rho), while rho grows geometrically.

    With rho fixed it would minimise misfit + R smoothed by the coupling; the growing rho removes the smoothing. The
    usual scheme of plug-and-play reconstruction, with few iterations.

    Args:
        first, last: rho at the first and at the last iteration, in units of |A|^2 / sigma^2; 0 < first <= last.
        inner_iterations: conjugate gradients for each data step, unless the operator offers a closed form.

    Source: Geman and Yang 1995; as a plug-and-play scheme: Zhang et al. 2022, "Plug-and-play image restoration with
    deep denoiser prior", eq. 6.
    """

    iterations: int = 30
    first: float = 1e-2
    last: float = 10.0
    inner_iterations: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("first", self.first)
        require_positive("last", self.last)
        if self.last < self.first:
            raise ValueError(f"last must be >= first = {self.first}, got {self.last}")
        require_count("inner_iterations", self.inner_iterations)

    def init(self, problem: Problem, prior: Proximal, x0: Tensor | None) -> HQSState:
        if not isinstance(prior, Proximal):
            raise TypeError(f"HQS needs a prior with a prox, got {type(prior).__name__}; PDHG and ADMM take terms")
        if not problem.is_quadratic:
            raise TypeError(
                "HQS needs a LinearOperator and Gaussian noise, got "
                f"{type(problem.operator).__name__} and {type(problem.noise).__name__}; FISTA takes any"
            )
        warn_if_learned((prior,), "HQS")
        x = starting_point(problem, x0)
        return HQSState(x, x, curvature(problem, x))

    def step(self, problem: Problem, prior: Proximal, state: HQSState, progress: float) -> HQSState:
        done = (progress * self.iterations - 1) / max(self.iterations - 1, 1)
        rho = expand(state.curvature * (self.first * (self.last / self.first) ** done), state.x)
        rho = torch.where(rho > 0, rho, 1)
        n = self.inner_iterations
        solution = problem.prox(state.x, 1 / rho, x0=state.solution, rtol=0, iterations=n, check_every=n)
        return HQSState(annealed(prior, progress).prox(solution, 1 / rho), solution, state.curvature)
