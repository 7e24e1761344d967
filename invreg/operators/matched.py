"""Autograd of a linear map that comes with its own transpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class MatchedPair(torch.autograd.Function):
    """A linear map whose backward pass is its transpose, differentiable as often as you like, also by `torch.func`."""

    @staticmethod
    def forward(x: Tensor, apply: Callable[[Tensor], Tensor], transpose: Callable[[Tensor], Tensor]) -> Tensor:
        return apply(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.pair = inputs[1:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        apply, transpose = ctx.pair
        return matched(gradient, transpose, apply), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return matched(tangent, *ctx.pair)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        apply: Callable[[Tensor], Tensor],
        transpose: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, int]:
        """More channels: both maps treat each alike."""
        assert in_dims[0] is not None
        stacked = x.movedim(in_dims[0], 0)
        out = matched(stacked.flatten(0, 1), apply, transpose)
        return out.reshape(*stacked.shape[:2], *out.shape[1:]), 0


def matched(x: Tensor, apply: Callable[[Tensor], Tensor], transpose: Callable[[Tensor], Tensor]) -> Tensor:
    """apply(x), with `transpose` as its vector-Jacobian product. Both are real: complex x go in as two channels."""
    out: Tensor = MatchedPair.apply(x, apply, transpose)  # type: ignore[no-untyped-call]
    return out
