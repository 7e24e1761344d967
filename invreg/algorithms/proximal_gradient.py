"""Proximal gradient descent and its accelerated form FISTA."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_count, require_positive
from invreg.algorithms.loop import Algorithm, starting_point
from invreg.algorithms.proved_step import TrainedProximal, check_step, warn_if_learned
from invreg.algorithms.smooth import annealed, backtrack, curvature, first_step_size, inverse
from invreg.interfaces import Proximal, Regularizer
from invreg.linalg import expand, inner
from invreg.problem import Problem


@dataclass(frozen=True, eq=False)
class ProximalState:
    """Where proximal gradient descent is.

    Args:
        x: the image, (B, *signal).
        step_size: the one to try next, (B,).
    """

    x: Tensor
    step_size: Tensor


@dataclass(frozen=True, kw_only=True)
class ProximalGradient(Algorithm[Proximal | None, ProximalState]):
    """x <- prox(x - s grad misfit(x), s): also plug-and-play, where `prox` is a denoiser.

    Args:
        step_size: s, > 0. Default: sigma^2 / |A|^2 of each sample for a quadratic misfit; for any other found by each
            sample through `trials` halvings within every step, all on the device.
        trials: step sizes tried within a step where the misfit is not quadratic; each costs one prox and one misfit.

    Source: Combettes and Wajs 2005, "Signal recovery by proximal forward-backward splitting".
    """

    step_size: float | None = None
    trials: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_options(self.step_size, self.trials)

    def init(self, problem: Problem, prior: Proximal | None, x0: Tensor | None) -> ProximalState:
        _require_proximal(prior, "ProximalGradient")
        x = starting_point(problem, x0)
        bend = curvature(problem, x) if self.step_size is None and problem.is_quadratic else None
        size = _step_size(problem, annealed(prior, 1 / self.iterations), x, self.step_size, bend)
        if isinstance(prior, TrainedProximal) and problem.is_quadratic:
            check_step(problem, x, float(size.max()), bend)
        else:
            warn_if_learned((prior,), "a misfit that is not quadratic")
        return ProximalState(x, size)

    def step(self, problem: Problem, prior: Proximal | None, state: ProximalState, progress: float) -> ProximalState:
        prior = annealed(prior, progress)
        if self.step_size is not None or problem.is_quadratic:
            return ProximalState(_forward_backward(problem, prior, state.x, state.step_size), state.step_size)
        return ProximalState(*_searched(problem, prior, state.x, state.step_size, self.trials, state.x))


@dataclass(frozen=True, eq=False)
class FISTAState:
    """Where FISTA is.

    Args:
        x: the image, (B, *signal).
        ahead: the extrapolated image from which the next step starts, (B, *signal).
        age: steps since the momentum was last reset, (B,).
        step_size: the one to try next, (B,).
    """

    x: Tensor
    ahead: Tensor
    age: Tensor
    step_size: Tensor


@dataclass(frozen=True, kw_only=True)
class FISTA(Algorithm[Proximal | None, FISTAState]):
    """Proximal gradient descent from the extrapolated point x_k + (t_k - 1) / t_(k+1) (x_k - x_(k-1)).

    t_k = (k + a - 1) / a, so the momentum is (k - 1) / (k + a): the objective falls with 1 / k^2, and the images
    converge too, which a = 2 would not promise. A restart sets k to 1 in those samples whose last move went
    against the gradient mapping; the strongly convex ones then converge linearly.

    Args:
        step_size: as for `ProximalGradient`.
        a: > 2; larger starts more slowly and oscillates less.
        restart: reset the momentum of a sample where it points uphill.
        trials: as for `ProximalGradient`.

    Source: Beck and Teboulle 2009; Chambolle and Dossal 2015, "On the convergence of the iterates of FISTA", eq. 5;
    O'Donoghue and Candes 2015, "Adaptive restart for accelerated gradient schemes", the gradient scheme.
    """

    step_size: float | None = None
    a: float = 3.0
    restart: bool = True
    trials: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_options(self.step_size, self.trials)
        require_positive("a", self.a)
        if self.a <= 2:
            raise ValueError(f"a must be > 2 for the images to converge, got {self.a}")

    def init(self, problem: Problem, prior: Proximal | None, x0: Tensor | None) -> FISTAState:
        _require_proximal(prior, "FISTA")
        x = starting_point(problem, x0)
        bend = curvature(problem, x) if self.step_size is None and problem.is_quadratic else None
        size = _step_size(problem, annealed(prior, 1 / self.iterations), x, self.step_size, bend)
        warn_if_learned((prior,), "FISTA")
        return FISTAState(x, x, torch.zeros_like(size), size)

    def step(self, problem: Problem, prior: Proximal | None, state: FISTAState, progress: float) -> FISTAState:
        prior = annealed(prior, progress)
        ahead, size = state.ahead, state.step_size
        if self.step_size is not None or problem.is_quadratic:
            x = _forward_backward(problem, prior, ahead, size)
        else:  # the extrapolated point may lie where the misfit is infinite: then start from x
            ahead = torch.where(expand(problem.misfit(ahead).isfinite(), ahead), ahead, state.x)
            x, size = _searched(problem, prior, ahead, size, self.trials, state.x)
        moved = x - state.x
        # a sample that found no step stands still: its momentum starts anew
        age = torch.where(inner(moved, moved) > 0, state.age, 0) + 1
        if self.restart:
            age = torch.where(inner(ahead - x, moved) > 0, 1, age)
        momentum = expand((age - 1) / (age + self.a), x).to(x.dtype)
        return FISTAState(x, torch.addcmul(x, momentum, moved), age, size)


def _check_options(step_size: float | None, trials: int) -> None:
    if step_size is not None:
        require_positive("step_size", step_size)
    require_count("trials", trials)


def _require_proximal(prior: object, name: str) -> None:
    if prior is None or isinstance(prior, Proximal):
        return
    advice = "GradientDescent takes any prior with a gradient, PDHG and ADMM one with terms"
    if not isinstance(prior, Regularizer):
        advice = "priors are found in invreg.regularizers"
    raise TypeError(f"{name} needs a prior with a prox, got {type(prior).__name__}; {advice}")


def _step_size(problem: Problem, prior: Proximal | None, x: Tensor, given: float | None, bend: Tensor | None) -> Tensor:
    """The first step size, (B,); `bend` is the curvature of a quadratic misfit."""
    if given is not None:
        return torch.full_like(problem.misfit(x), given)
    if bend is not None:
        return inverse(bend)
    gradient = problem.misfit_gradient(x)
    return first_step_size(problem.misfit, lambda s: _proximal(prior, x - s * gradient, s), x, gradient)


def _proximal(prior: Proximal | None, x: Tensor, step: Tensor) -> Tensor:
    return x if prior is None else prior.prox(x, step)


def _forward_backward(problem: Problem, prior: Proximal | None, z: Tensor, size: Tensor) -> Tensor:
    step = expand(size, z)
    return _proximal(prior, torch.addcmul(z, step.to(z.dtype), problem.misfit_gradient(z), value=-1), step)


def _searched(
    problem: Problem, prior: Proximal | None, z: Tensor, size: Tensor, trials: int, rest: Tensor
) -> tuple[Tensor, Tensor]:
    """One step from z with a step size that each sample finds, and the size to try first next time."""
    gradient = problem.misfit_gradient(z)
    return backtrack(problem.misfit, lambda s: _proximal(prior, z - s * gradient, s), z, gradient, size, trials, rest)
