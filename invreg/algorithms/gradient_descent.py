"""Gradient descent with momentum on misfit + R of a differentiable prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_count, require_positive
from invreg.algorithms.loop import Algorithm, starting_point
from invreg.algorithms.smooth import annealed, backtrack, curvature, first_step_size, inverse, value_and_gradient
from invreg.interfaces import Regularizer
from invreg.linalg import expand
from invreg.problem import Problem


@dataclass(frozen=True, eq=False)
class DescentState:
    """Where the descent is.

    Args:
        x, previous: the last two images, (B, *signal).
        step_size: the one to try next, (B,).
    """

    x: Tensor
    previous: Tensor
    step_size: Tensor


@dataclass(frozen=True, kw_only=True)
class GradientDescent(Algorithm[Regularizer[Tensor] | None, DescentState]):
    """x <- z - s grad(misfit + R)(z) with z = x + momentum (x - x_previous).

    For smooth priors, annealed ones (`prior.at(progress)`) and surrogates included, any operator and any noise; not for
    constraints, which a gradient does not show.

    Args:
        step_size: s, > 0. Default: without a prior 1 / |A|^2 sigma^2 for a quadratic misfit; otherwise found by each
            sample through `trials` halvings within every step, all on the device.
        momentum: 0 <= momentum < 1.
        trials: step sizes tried within a step where none is given; each costs one evaluation of misfit and prior.

    Source: Polyak 1964 for the momentum, in the form of Nesterov; the step size as in Beck and Teboulle 2009.
    """

    step_size: float | None = None
    momentum: float = 0.0
    trials: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None:
            require_positive("step_size", self.step_size)
        require_positive("momentum", self.momentum, zero_allowed=True)
        if self.momentum >= 1:
            raise ValueError(f"momentum must be < 1, got {self.momentum}")
        require_count("trials", self.trials)

    def init(self, problem: Problem, prior: Regularizer[Tensor] | None, x0: Tensor | None) -> DescentState:
        if prior is not None and not isinstance(prior, Regularizer):
            raise TypeError(
                f"GradientDescent needs a prior with a gradient, got {type(prior).__name__}; "
                "ProximalGradient, ADMM and HQS take one that only has a prox"
            )
        if prior is not None and not prior.finite:
            raise TypeError(
                f"GradientDescent needs a prior finite everywhere, got {type(prior).__name__} with a constraint; "
                "ProximalGradient takes one by its prox, PDHG a sum with one"
            )
        x = starting_point(problem, x0)
        if self.step_size is not None:
            size = torch.full_like(problem.misfit(x), self.step_size)
        elif self._searches(problem, prior):
            if prior is not None and not prior.exact:
                raise ValueError(
                    f"step_size must be given with {type(prior).__name__}: its value is not its penalty (exact = "
                    "False), so no step size can be judged by it"
                )
            first = annealed(prior, 1 / self.iterations)
            gradient = _gradient(problem, first, x)
            size = first_step_size(lambda z: _objective(problem, first, z), lambda s: x - s * gradient, x, gradient)
        else:
            size = inverse(curvature(problem, x))
        return DescentState(x, x, size)

    def step(
        self, problem: Problem, prior: Regularizer[Tensor] | None, state: DescentState, progress: float
    ) -> DescentState:
        prior = annealed(prior, progress)
        searches = self._searches(problem, prior)
        z = state.x + self.momentum * (state.x - state.previous) if self.momentum else state.x
        if searches and self.momentum and not problem.is_quadratic:
            # z may lie where the misfit is infinite: then start from x
            z = torch.where(expand(problem.misfit(z).isfinite(), z), z, state.x)
        gradient = _gradient(problem, prior, z)
        if not searches:
            return DescentState(z - expand(state.step_size, z) * gradient, state.x, state.step_size)
        x, size = backtrack(
            lambda x: _objective(problem, prior, x),
            lambda s: z - s * gradient,
            z,
            gradient,
            state.step_size,
            self.trials,
            state.x,
        )
        return DescentState(x, state.x, size)

    def _searches(self, problem: Problem, prior: Regularizer[Tensor] | None) -> bool:
        return self.step_size is None and (prior is not None or not problem.is_quadratic)


def _objective(problem: Problem, prior: Regularizer[Tensor] | None, x: Tensor) -> Tensor:
    misfit = problem.misfit(x)
    return misfit if prior is None else misfit + prior(x)


def _gradient(problem: Problem, prior: Regularizer[Tensor] | None, x: Tensor) -> Tensor:
    gradient = problem.misfit_gradient(x)
    return gradient if prior is None else gradient + value_and_gradient(prior, x)[1]
