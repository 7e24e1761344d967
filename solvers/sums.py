"""Sums with the weights of a tableau."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def weighted(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """Sum of weight * slope over the weights that are not zero, of which there is one at least."""
    total: Tensor | None = None
    for weight, slope in zip(weights, slopes, strict=False):
        if weight:
            total = slope * weight if total is None else torch.add(total, slope, alpha=weight)
    return slopes[0] * 0 if total is None else total


def advance(y: Tensor, dt: float | Tensor, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """The state y + dt * sum of weight * slope; the slopes are summed first, so that y is rounded once.

    The largest weight is taken out of the sum, which saves a pass over the state and enlarges no slope.
    """
    used = min(len(weights), len(slopes))
    lead = 0
    for i in range(1, used):  # not max with a key, which torch.compile does not take for every sequence
        lead = i if abs(weights[i]) > abs(weights[lead]) else lead
    weight, total = weights[lead], slopes[lead]
    if not weight:
        return y
    for i in range(used):
        if weights[i] and i != lead:
            total = torch.add(total, slopes[i], alpha=weights[i] / weight)
    return y + total * (dt * weight) if isinstance(dt, Tensor) else torch.add(y, total, alpha=dt * weight)


def polynomial(coefficients: tuple[float, ...], theta: float | Tensor) -> float | Tensor:
    """c_1 theta + c_2 theta^2 + ..."""
    total: float | Tensor = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        total = total * theta + c
    return total * theta
