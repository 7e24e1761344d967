"""Tensors with a channel axis, as networks and other libraries want them, and ours without it.

Three layouts: "native", the two are the same; "channels", (B, C, *signal) against (B * C, *signal), every channel by
itself; "real2", real (B, 2, *signal) against complex (B, *signal).
"""

from typing import Any

import torch
from torch import Tensor

from invreg._check import unknown_name

LAYOUTS = ("native", "channels", "real2")


def check_layout(layout: str) -> None:
    """Raise ValueError unless `layout` names one of the three."""
    if layout not in LAYOUTS:
        raise ValueError(unknown_name("layout", layout, LAYOUTS))


def to_plain(x: Tensor, layout: str) -> Tensor:
    """(B, C, *s) -> (B * C, *s), or (B, 2, *s) real -> (B, *s) complex; the native layout is left alone.

    Raises:
        ValueError: the channel axis is missing, or has not the size that the layout needs.
    """
    if layout == "native":
        return x
    if layout == "channels":
        if x.ndim < 3:
            raise ValueError(f'x must be (B, C, *signal) in the layout "channels", got {tuple(x.shape)}')
        return x.flatten(0, 1)
    if x.ndim < 3 or x.shape[1] != 2 or x.is_complex():
        raise ValueError(
            f'x must be real and (B, 2, *signal) in the layout "real2", got {x.dtype} {tuple(x.shape)}; '
            "use torch.view_as_real(x).movedim(-1, 1)"
        )
    return torch.view_as_complex(x.movedim(1, -1).contiguous())


def to_channels(x: Tensor, layout: str, batch: int) -> Tensor:
    """The inverse of `to_plain` for a batch of `batch`.

    Raises:
        TypeError: x is real in the layout "real2".
    """
    if layout == "native":
        return x
    if layout == "channels":
        return x.reshape(batch, -1, *x.shape[1:])
    if not x.is_complex():
        raise TypeError(
            f'the layout "real2" is for complex tensors, got {x.dtype} {tuple(x.shape)}; use "native" or "channels"'
        )
    return torch.view_as_real(x).movedim(-1, 1)


def per_problem(value: Any, x: Tensor, layout: str) -> Any:
    """A step, weight or noise level of deepinv, one for all or one per sample, as (B * C,) or () for the plain side."""
    if not isinstance(value, Tensor):
        return value
    if value.numel() == 1:
        return value.reshape(())
    value = value.flatten()
    return value.repeat_interleave(x.shape[1]) if layout == "channels" else value


def against(value: Any, plain: Tensor) -> Any:
    """A number, () or (B,), made to broadcast against (B, *signal)."""
    if isinstance(value, Tensor) and value.ndim:
        return value.reshape(-1, *(1,) * (plain.ndim - 1))
    return value
