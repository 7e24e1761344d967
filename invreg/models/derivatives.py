"""Derivatives of fields, dy/dt = field(t, y): along the solution, in the state, their divergence.

In the state they go backwards: forward-mode differentiation of torch 2.13 takes a millisecond for each sum or product
of which one part is constant.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]


def time_derivative(field: Field, t: Tensor, y: Tensor, order: int) -> Tensor:
    """The derivative d^K y / dt^K, K = `order`, of the solution of dy/dt = field(t, y) through y at t, shaped as y.

    The first is the field, and each further one the directional derivative of the last along (1, field), by nested
    forward-mode differentiation: 2^K - 1 evaluations of the field.
    """
    if order == 1:
        return field(t, y)

    def before(t: Tensor, y: Tensor) -> Tensor:
        return time_derivative(field, t, y, order - 1)

    derivative: Tensor = torch.func.jvp(before, (t, y), (torch.ones_like(t), field(t, y)))[1]
    return derivative


def slope_and_product(field: Field, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A field at (B, d) and the product of v, (B, d), with its Jacobian from the left: v_i df_i/dy_j, (B, d).

    Gradients reach t, y and what the field holds; while they are disabled neither result carries any.
    """
    recording = torch.is_grad_enabled()
    slope, point = _slope_of_point(field, t, y)
    product = _pull(slope, point, v, recording, again=recording)
    return (slope if recording else slope.detach()), product


def slope_and_trace(field: Field, t: Tensor, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A field at (B, d) and the trace of its Jacobian, (B,).

    The trace is exact, by d products, or estimated by one product with noise, (B, d), of mean 0 and covariance 1:
    sum_ij n_i df_i/dy_j n_j (Hutchinson 1989). Gradients as of `slope_and_product`.
    """
    if noise is not None:
        slope, product = slope_and_product(field, t, y, noise)
        return slope, (product * noise).sum(-1)
    recording = torch.is_grad_enabled()
    slope, point = _slope_of_point(field, t, y)
    features = y.shape[-1]
    basis = torch.eye(features, dtype=y.dtype, device=y.device)
    parts = [
        _pull(slope, point, one.expand_as(y), recording, again=recording or i + 1 < features)[..., i]
        for i, one in enumerate(basis)
    ]
    return (slope if recording else slope.detach()), torch.stack(parts).sum(0)


def _slope_of_point(field: Field, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        point = y if y.requires_grad else y.detach().requires_grad_()
        return field(t, point), point


def _pull(slope: Tensor, point: Tensor, v: Tensor, recording: bool, again: bool) -> Tensor:
    if not slope.requires_grad:  # a constant field
        return torch.zeros_like(point)
    with torch.enable_grad():
        (product,) = torch.autograd.grad(
            slope, point, v, create_graph=recording, retain_graph=again, allow_unused=True, materialize_grads=True
        )
    return product
