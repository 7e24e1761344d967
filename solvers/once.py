"""Gradients that can be taken once, and say so when they are asked for twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple[Tensor | None, ...]]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError("this adjoint gives first derivatives only: for second ones use adjoint=Direct()")


def once(backward: Backward) -> Backward:
    """Let the `backward` of a Function run without a tape, and its result raise when it is differentiated again."""

    @wraps(backward)
    def guarded(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            found = backward(ctx, *(None if one is None else one.detach() for one in gradients))
        if not torch.is_grad_enabled():
            return found
        return tuple(None if one is None else _Once.apply(one.detach().requires_grad_()) for one in found)  # type: ignore[no-untyped-call]

    return guarded
