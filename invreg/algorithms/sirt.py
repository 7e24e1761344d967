"""Simultaneous iterative reconstruction (SIRT), the workhorse of tomography."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_positive
from invreg.algorithms.loop import Algorithm, starting_point
from invreg.interfaces import LinearOperator
from invreg.problem import Problem


@dataclass(frozen=True, eq=False)
class SIRTState:
    """Where SIRT is.

    Args:
        x: the image, (B, *signal).
        columns: relaxation / A^T 1, (B, *signal); 0 where no ray passes.
        rows: 1 / A 1, (B, *measurement); 0 where a ray meets nothing.
    """

    x: Tensor
    columns: Tensor
    rows: Tensor


@dataclass(frozen=True, kw_only=True)
class SIRT(Algorithm[None, SIRTState]):
    """x <- x + C A^T R (y - A x) with R = 1 / (A 1) and C = 1 / (A^T 1), for operators without negative entries.

    It takes no prior: early stopping regularizes, and `positive` projects. The noise level plays no part.

    Args:
        relaxation: 0 < relaxation < 2.
        positive: set negative values to zero after every step.

    Source: Gregor and Benson 2008, "Computational analysis and improvement of SIRT", eq. 8.
    """

    relaxation: float = 1.0
    positive: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("relaxation", self.relaxation)
        if self.relaxation >= 2:
            raise ValueError(f"relaxation must be < 2, got {self.relaxation}")

    def init(self, problem: Problem, prior: None, x0: Tensor | None) -> SIRTState:
        if prior is not None:
            raise TypeError(f"SIRT takes no prior, got {type(prior).__name__}; FISTA, PDHG and ADMM do")
        operator = _linear(problem)
        if problem.y.is_complex():
            raise TypeError(f"SIRT needs real measurements, got {problem.y.dtype}; use ConjugateGradient")
        x = starting_point(problem, x0)
        columns, rows = operator.adjoint(torch.ones_like(problem.y)), operator(torch.ones_like(x))
        if bool((columns < -_least(columns)).any()) or bool((rows < -_least(rows)).any()):
            raise ValueError("SIRT needs an operator without negative entries; use ConjugateGradient or FISTA")
        return SIRTState(x, self.relaxation * _reciprocal(columns), _reciprocal(rows))

    def step(self, problem: Problem, prior: None, state: SIRTState, progress: float) -> SIRTState:
        operator = _linear(problem)
        x = state.x + state.columns * operator.adjoint(state.rows * (problem.y - operator(state.x)))
        return SIRTState(x.clamp_min(0) if self.positive else x, state.columns, state.rows)


def _linear(problem: Problem) -> LinearOperator:
    if isinstance(problem.operator, LinearOperator):
        return problem.operator
    raise TypeError(f"SIRT needs a LinearOperator, got {type(problem.operator).__name__}; GradientDescent takes any")


def _least(sums: Tensor) -> Tensor:
    """What a sum must exceed to be more than rounding, (B, 1, ..., 1)."""
    return 1e-3 * sums.flatten(1).amax(1).reshape(-1, *(1,) * (sums.ndim - 1))


def _reciprocal(sums: Tensor) -> Tensor:
    """1 / sums; 0 for rays and pixels that hardly meet, whose reciprocal would only amplify rounding."""
    met = sums > _least(sums)
    return torch.where(met, 1 / torch.where(met, sums, 1), 0)
