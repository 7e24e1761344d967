"""Gradients of the time and state at an event."""

from __future__ import annotations

import torch
from torch import Tensor

from .request import Field


def linked(field: Field, condition: Field, event_t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The same time and state, with gradients by the implicit function theorem.

    g(t + s, y(t + s)) = 0 gives s = -g / (dg/dt + dg/dy f), whose value is 0 and whose gradient is the wanted one.

    Args:
        field: dy/dt.
        condition: g, with the graph of whatever it holds.
        event_t: where g is 0.
        y: the state there, with its gradient at fixed time.
    """
    event_t = event_t.detach()
    if not torch.is_grad_enabled():
        return event_t, y
    with torch.no_grad():
        slope = field(event_t, y)
    moment = event_t.clone().requires_grad_()
    along = y.detach() + slope * (moment - event_t).to(y.dtype.to_real())
    (rate,) = torch.autograd.grad(condition(moment, along), moment)
    value = condition(event_t, y)
    shift = -(value - value.detach()).to(rate.dtype) / torch.where(rate == 0, 1e-12, rate)
    return event_t + shift, y + slope * shift.to(y.dtype.to_real())
