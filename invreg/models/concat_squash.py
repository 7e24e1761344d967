"""The field of continuous normalizing flows: layers whose gain and offset depend on time."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from invreg._check import require_count


class ConcatSquash(nn.Module):
    """A field dy/dt = f(t, y) of layers (W y + b) * sigmoid(u t + v) + w t, with tanh between them.

    Args:
        features: length of the last axis of y.
        hidden: widths of the hidden layers.

    Shapes: t is () or has ones behind the batch, (B, 1, ..., 1); y is (..., features).

    Source: Grathwohl et al. 2019, "FFJORD", whose authors' program calls the layer "concatsquash".
    """

    def __init__(self, features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = (features, *hidden, features)
        for width in widths:
            require_count("widths of layers", width)
        self.config: Mapping[str, object] = {"features": features, "hidden": tuple(hidden)}
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.gains = nn.ModuleList(nn.Linear(1, b) for b in widths[1:])
        self.offsets = nn.ModuleList(nn.Linear(1, b, bias=False) for b in widths[1:])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        time = t.to(y.dtype)
        time = time if time.ndim else time[None]  # the axis of features
        for i, (layer, gain, offset) in enumerate(zip(self.layers, self.gains, self.offsets, strict=True)):
            y = layer(torch.tanh(y) if i else y) * torch.sigmoid(gain(time)) + offset(time)
        return y
