"""Conjugate gradients as a reconstruction: least squares, damped or not (CG-SENSE, CGLS)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invreg.algorithms.loop import Algorithm, starting_point
from invreg.algorithms.smooth import value_and_gradient
from invreg.interfaces import Regularizer
from invreg.linalg import expand, inner
from invreg.problem import Problem
from invreg.random import draw


@dataclass(frozen=True, eq=False)
class ConjugateGradientState:
    """Where conjugate gradients are.

    Args:
        x: the image, (B, *signal).
        residual: minus the gradient of misfit + R, by recurrence, (B, *signal).
        direction: the next search direction, (B, *signal).
        energy: |residual|^2, (B,).
    """

    x: Tensor
    residual: Tensor
    direction: Tensor
    energy: Tensor


@dataclass(frozen=True, kw_only=True)
class ConjugateGradient(Algorithm[Regularizer[Tensor] | None, ConjugateGradientState]):
    """Conjugate gradients on A^H W A x + grad R(x) = A^H W y, for a quadratic misfit and a quadratic prior or none.

    Without a prior the number of iterations is what regularizes an ill-posed problem. To solve to a residual
    tolerance instead, use `invreg.linalg.cg`.

    Source: Hestenes and Stiefel 1952; for MRI: Pruessmann et al. 2001.
    """

    iterations: int = 30

    def init(self, problem: Problem, prior: Regularizer[Tensor] | None, x0: Tensor | None) -> ConjugateGradientState:
        if not problem.is_quadratic:
            raise TypeError(
                "ConjugateGradient needs a LinearOperator and Gaussian noise, got "
                f"{type(problem.operator).__name__} and {type(problem.noise).__name__}; FISTA takes any"
            )
        x = starting_point(problem, x0)
        if prior is not None and not _is_quadratic(prior, x):
            raise TypeError(
                f"ConjugateGradient needs no prior or Tikhonov, got {type(prior).__name__}; FISTA and PDHG take it"
            )
        residual = problem.backprojection() - _hessian(problem, prior, x)
        return ConjugateGradientState(x, residual, residual, inner(residual, residual))

    def step(
        self, problem: Problem, prior: Regularizer[Tensor] | None, state: ConjugateGradientState, progress: float
    ) -> ConjugateGradientState:
        image = _hessian(problem, prior, state.direction)
        step = expand(_ratio(state.energy, inner(state.direction, image)), image).to(image.dtype)
        x = torch.addcmul(state.x, step, state.direction)
        residual = torch.addcmul(state.residual, step, image, value=-1)
        energy = inner(residual, residual)
        again = expand(_ratio(energy, state.energy), image).to(image.dtype)
        return ConjugateGradientState(x, residual, torch.addcmul(residual, again, state.direction), energy)


def _hessian(problem: Problem, prior: Regularizer[Tensor] | None, x: Tensor) -> Tensor:
    image = problem.normal(x)
    return image if prior is None else image + value_and_gradient(prior, x)[1]


def _is_quadratic(prior: object, like: Tensor) -> bool:
    """Whether R is finite and its gradient linear, told from one random image; a constraint's gradient is zero."""
    if not isinstance(prior, Regularizer) or not prior.finite:
        return False
    x = draw(like, torch.Generator().manual_seed(0))
    (value, once), (greater, thrice) = value_and_gradient(prior, x), value_and_gradient(prior, -3 * x)
    if not bool((value + greater).isfinite().all()):
        return False
    return torch.allclose(thrice, -3 * once, rtol=1e-3, atol=1e-3 * float(once.abs().max()))


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b where b > 0, else 0, so that a solved sample rests."""
    positive = b > 0
    return torch.where(positive, a / torch.where(positive, b, 1), 0)
