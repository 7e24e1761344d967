"""The length of the first step."""

from __future__ import annotations

import torch
from torch import Tensor

from .method import real_dtype
from .problem import InitialValueProblem


def first_step(problem: InitialValueProblem, slope: Tensor, order: int) -> Tensor:
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
    d2 = norm(problem.dynamics(problem.moment(start) + signed, ahead) - slope) / h0
    steepest = torch.maximum(d1, d2)
    h1 = torch.where(steepest <= 1e-15, torch.clamp_min(h0 * 1e-3, 1e-6), (0.01 / steepest) ** (1 / order))
    h1 = torch.where(steepest.isfinite(), h1, h0 * 1e-3)  # no slope there
    return torch.minimum(100 * h0, h1)
