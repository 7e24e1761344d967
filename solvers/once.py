"""Gradients that can be taken once, and say so when they are asked for twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple[Tensor | None, ...]]


class _Once(torch.autograd.Function):
    """A gradient, tied to all that it depends on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *origins: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            "first derivatives only: for second ones use adjoint=Direct(), which has them but for events"
        )


def once(backward: Backward) -> Backward:
    """Let the `backward` of a Function run without a tape, and its result raise when it is differentiated again."""

    @wraps(backward)
    def guarded(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            found = backward(ctx, *(None if one is None else one.detach() for one in gradients))
        if not torch.is_grad_enabled():
            return found
        origins = [one for one in (*ctx.saved_tensors, *gradients) if one is not None and one.requires_grad]
        return tuple(None if one is None else _tied(one, origins) for one in found)

    return guarded


def _tied(gradient: Tensor, origins: list[Tensor]) -> Tensor:
    tied: Tensor = _Once.apply(gradient if origins else gradient.requires_grad_(), *origins)  # type: ignore[no-untyped-call]
    return tied
