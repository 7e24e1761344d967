"""A field that is not evaluated at the very ends of a step, where it may jump, but just inside."""

from __future__ import annotations

import torch
from torch import Tensor

from .request import Field

AT_END = 1e-6  # of a step: closer than this to one of its ends is there


class Perturbed:
    """The field between the ends of one step, in its own clock; gradients of t pass unchanged."""

    def __init__(self, field: Field, time_dtype: torch.dtype, start: Tensor, end: Tensor) -> None:
        self.field = field
        self.start, self.end = start.detach().to(time_dtype), end.detach().to(time_dtype)
        self.near = AT_END * (self.end - self.start).abs()

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        now = t.detach().to(self.start.dtype)
        moved = torch.where((now - self.start).abs() <= self.near, torch.nextafter(self.start, self.end), now)
        moved = torch.where((now - self.end).abs() <= self.near, torch.nextafter(self.end, self.start), moved)
        return self.field(t.to(moved.dtype) + (moved - now), y)
