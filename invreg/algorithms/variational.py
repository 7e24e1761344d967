"""Descent by Adam: what stochastic regularizers such as RED-Diff are minimised with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_count, require_positive
from invreg.algorithms.loop import Algorithm, starting_point
from invreg.algorithms.smooth import value_and_gradient
from invreg.interfaces import LinearOperator, Regularizer
from invreg.linalg import cg, expand
from invreg.problem import Problem

TINY = 1e-8
"""Added to the root of the second moment, in units of its mean over the sample."""


@dataclass(frozen=True, eq=False)
class VariationalState:
    """Where the descent is.

    Args:
        x: the image, (B, *signal).
        first, second: running means of the gradient and of its square, (B, *signal) and as real numbers.
        steps: how many were taken.
    """

    x: Tensor
    first: Tensor
    second: Tensor
    steps: int


@dataclass(frozen=True, kw_only=True)
class Variational(Algorithm[Regularizer[Tensor], VariationalState]):
    """Adam on misfit + R, R annealed by `at(progress)`; takes any operator, any noise and any finite regularizer.

    Every real component of every sample has moments of its own, so no sample depends on its batch. The scale of
    misfit + R does not matter, that of the image does: `step_size` is how far an entry moves at most.

    Args:
        step_size: in the units of the image; the authors of RED-Diff use 0.1 and 0.5 for values from -1 to 1.
        momentum, decay: of the running means, within [0, 1); theirs, not those usual in training.
        start: conjugate gradients, at most, of a least-squares start where the problem is quadratic and no x0 is given;
            0 for none.

    Source: Mardani et al. 2024, "A variational perspective on solving inverse problems with diffusion models", Alg. 1;
    Kingma and Ba 2015 for Adam, whose 1e-8 beside the root is relative here.
    """

    complete = True
    rtol: float = 0.0
    step_size: float = 0.1
    momentum: float = 0.9
    decay: float = 0.99
    start: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("step_size", self.step_size)
        require_count("start", self.start, least=0)
        for name, value in (("momentum", self.momentum), ("decay", self.decay)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be within [0, 1), got {value}")

    def init(self, problem: Problem, prior: Regularizer[Tensor], x0: Tensor | None) -> VariationalState:
        if not isinstance(prior, Regularizer) or not prior.finite:
            raise TypeError(
                f"Variational needs a Regularizer with finite values, got {type(prior).__name__}; "
                "DDS and DiffPIR take a Denoiser, FISTA a prox"
            )
        x = starting_point(problem, x0)
        if x0 is None and problem.is_quadratic and self.start:
            assert isinstance(problem.operator, LinearOperator)
            back = problem.backprojection()
            back = back.real if back.is_complex() and not x.is_complex() else back
            x = cg(problem.normal, back, rtol=1e-2, iterations=self.start, check_every=1).x
        return VariationalState(x, torch.zeros_like(x), torch.zeros_like(_real(x)), 0)

    def step(
        self, problem: Problem, prior: Regularizer[Tensor], state: VariationalState, progress: float
    ) -> VariationalState:
        steps, total = state.steps + 1, self.iterations
        _, pull = value_and_gradient(prior.at((progress * total - 1) / max(total - 1, 1)), state.x)
        gradient = problem.misfit_gradient(state.x) + pull
        first = torch.lerp(gradient, state.first, self.momentum)
        second = torch.lerp(_real(gradient).square(), state.second, self.decay)
        root = (second / (1 - self.decay**steps)).sqrt()
        scale = root + TINY * expand(root.flatten(1).mean(1), root)
        move = _real(first) * (self.step_size / (1 - self.momentum**steps)) / torch.where(scale > 0, scale, 1)
        return VariationalState(state.x - _like(move, state.x), first, second, steps)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _like(move: Tensor, x: Tensor) -> Tensor:
    return torch.view_as_complex(move) if x.is_complex() else move
