"""The length of the first step."""

from __future__ import annotations

import torch
from torch import Tensor

from .method import real_dtype
from .problem import InitialValueProblem
from .stochastic import Stochastic


def first_step(problem: InitialValueProblem, slope: Tensor, order: float) -> Tensor:
    """A length for the first step, > 0, float64: () or, per sample, (B,). One evaluation of the dynamics.

    Args:
        problem: its start.
        slope: dynamics(ts[0], y0).
        order: of the local error that grows with dt^order.

    Source: Hairer, Norsett, Wanner, Solving ODEs I, II.4, algorithm 4.14.
    """
    y0 = problem.method.lower(problem.y0)
    start, span = problem.ts[0], problem.ts[-1] - problem.ts[0]

    def norm(x: Tensor) -> Tensor:
        return problem.ratio(x, y0, y0).double()

    d0, d1 = norm(y0), norm(slope)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
    if not problem.overshoot:
        h0 = torch.minimum(h0, span.abs())
    signed = problem.moment(h0 * span.sign())
    ahead = y0 + (slope * signed.to(real_dtype(y0)))
    if isinstance(problem.dynamics, Stochastic):
        return _first_of_noise(problem, slope, order)
    d2 = norm(problem.dynamics(problem.moment(start) + signed, ahead) - slope) / h0
    steepest = torch.maximum(d1, d2)
    h1 = torch.where(steepest <= 1e-15, torch.clamp_min(h0 * 1e-3, 1e-6), (0.01 / steepest) ** (1 / order))
    h1 = torch.where(steepest.isfinite(), h1, h0 * 1e-3)  # no slope there
    return torch.minimum(100 * h0, h1)


def _first_of_noise(problem: InitialValueProblem, drift: Tensor, order: float) -> Tensor:
    """The same from drift and diffusion at the start; one evaluation of the diffusion."""
    assert isinstance(problem.dynamics, Stochastic)
    t, y0 = problem.first()
    diffusion = problem.dynamics.diffusion(t, y0)
    strength = diffusion.norm(dim=-1) if problem.dynamics.kind.matrix else diffusion.abs()
    d0 = problem.ratio(y0, y0, y0).double()
    d1 = problem.ratio(drift.abs() + 3 * strength, y0, y0).double()
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-4, d0 / d1)
    h1 = torch.where(d1 > 1e-15, (0.01 / d1) ** (1 / order), h0)
    span = (problem.ts[-1] - problem.ts[0]).abs()
    return torch.where(d1.isfinite(), torch.minimum(torch.minimum(h0, h1), span), 1e-3 * span)  # no slope there
