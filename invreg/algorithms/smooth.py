"""What gradient steps share: the curvature of the misfit, gradients of priors, step sizes found by trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor

from invreg.interfaces import Regularizer
from invreg.lanczos import largest_eigenvalue
from invreg.linalg import expand, inner
from invreg.problem import Problem

P = TypeVar("P")
GROWTH = 1.1
"""A step size that was accepted is tried this much larger at the next iteration."""
SLACK = 16.0
"""Roundings of the objective that the test of a step forgives: it compares two large, nearly equal numbers."""


def curvature(problem: Problem, like: Tensor) -> Tensor:
    """|A|^2 / sigma^2, (B,): the Lipschitz constant of a quadratic misfit's gradient; an upper estimate.

    Args:
        problem: a linear operator under Gaussian noise.
        like: a signal, (B, *signal), for shape, dtype and device.

    Raises:
        TypeError: the misfit is not quadratic.
    """
    return largest_eigenvalue(problem.normal, like)


def inverse(values: Tensor) -> Tensor:
    """1 / values where they are > 0, else 1: a step size for an operator that is zero is any."""
    return torch.where(values > 0, 1 / torch.where(values > 0, values, 1), 1)


def annealed(prior: P, progress: float) -> P:
    """The prior to use at `progress`: `prior.at(progress)` of a Regularizer, else the prior itself."""
    return cast(P, prior.at(progress)) if isinstance(prior, Regularizer) else prior


def value_and_gradient(prior: Regularizer[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Weight * R(x), (B,) or (), and its gradient, (B, *signal); x itself is left alone, and so is its graph."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        value = prior(point)
        (gradient,) = torch.autograd.grad(value.sum(), point)
    return value.detach(), gradient


def backtrack(
    value: Callable[[Tensor], Tensor],
    move: Callable[[Tensor], Tensor],
    z: Tensor,
    gradient: Tensor,
    step_size: Tensor,
    trials: int,
    rest: Tensor,
) -> tuple[Tensor, Tensor]:
    """A gradient step whose size each sample finds by halving; the host never looks.

    A trial x(s) passes if f(x) <= f(z) + <gradient, x - z> + |x - z|^2 / (2 s). Of s, s/2, s/4, ... the first that
    passes is taken; a sample for which all fail takes the last if that does not raise f, else it goes to `rest`. So
    does one for which f(z) is not finite, as nothing can be judged by it.

    Args:
        value: f, (B, *signal) -> (B,); may be infinite.
        move: step size (B, 1, ..., 1) -> the point it leads to, (B, *signal).
        z: where the step starts.
        gradient: of f there.
        step_size: the first to try, (B,).
        trials: how many to try.
        rest: the last image, from which z may have been extrapolated: z may raise f and obey no constraint.

    Returns:
        (new point, the step size to try first next time).

    Source: Beck and Teboulle 2009, "A fast iterative shrinkage-thresholding algorithm", with backtracking.
    """
    start = value(z)
    slack = SLACK * torch.finfo(start.dtype).eps * start.abs()
    judged, chosen, size = start.isfinite(), rest, step_size
    done = torch.zeros_like(step_size, dtype=torch.bool)
    for trial in range(trials):
        x = move(expand(size, z))
        moved = x - z
        f = value(x)
        bound = start + inner(gradient, moved) + inner(moved, moved) / (2 * size) + slack
        good = f <= bound
        if trial == trials - 1:
            good = good | (f <= start)
        good = good & judged
        chosen = torch.where(expand(good & ~done, z), x, chosen)
        done = done | good
        size = torch.where(done, size, size / 2)
    return chosen, torch.where(done, size * GROWTH, size)


def first_step_size(
    value: Callable[[Tensor], Tensor], move: Callable[[Tensor], Tensor], z: Tensor, gradient: Tensor
) -> Tensor:
    """A step size, (B,), that passes the test of `backtrack` at the start while its double may not.

    The host looks, so this is for `init`.

    Raises:
        ValueError: f or its gradient is not finite at z.
        RuntimeError: no step size passes.
    """
    start = value(z)
    if not bool(start.isfinite().all() & gradient.isfinite().all()):
        raise ValueError("the misfit or its gradient is not finite at x0; give an x0 that explains y roughly")
    slack = SLACK * torch.finfo(start.dtype).eps * start.abs()

    def passes(size: Tensor) -> Tensor:
        moved = move(expand(size, z)) - z
        bound = start + inner(gradient, moved) + inner(moved, moved) / (2 * size) + slack
        return value(z + moved) <= bound

    size = torch.ones_like(start)
    growing = passes(size)
    shrinking = ~growing
    for _ in range(100):
        if not bool((growing | shrinking).any()):
            return size
        trial = torch.where(growing, 2 * size, torch.where(shrinking, size / 2, size))
        good = passes(trial)
        size = torch.where(shrinking | (growing & good), trial, size)
        growing, shrinking = growing & good, shrinking & ~good
    if bool(shrinking.any()):
        raise RuntimeError(
            "no step size lowers the objective at the first image: is the gradient of the noise model and of the "
            "prior right? Give step_size or another x0"
        )
    return size
