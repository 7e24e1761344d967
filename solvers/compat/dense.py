"""A solution as a function of time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..march import Accepted
from .request import Request


class DenseOutput:
    """The values of the methods' own dense output between the ends of a solve, with gradients."""

    def __init__(self, request: Request, pieces: Sequence[Accepted]) -> None:
        self.sign, self.pieces = request.sign, pieces
        self.origin = request.t[0].double()
        starts = [self.sign * piece.t for piece in pieces]
        self.starts = torch.tensor(starts, dtype=torch.float64, device=request.t.device)
        self.ends = (float(request.t[0].detach()), float(request.t[-1].detach()))

    def __call__(self, t: Tensor | float) -> Tensor:
        """The states at t, () or (K,): (*y0) or (K, *y0).

        Raises:
            AssertionError: a time lies outside.
        """
        asked = torch.as_tensor(t, device=self.starts.device).double()
        low, high = sorted(self.ends)
        if bool((asked < low).any() | (asked > high).any()):
            raise AssertionError(f"invalid interpolation: t must lie between {low} and {high}, got {asked.tolist()}")
        indices = torch.searchsorted(self.starts, self.sign * asked.detach().reshape(-1), right=True) - 1
        values = [self._at(one, i) for one, i in zip(asked.reshape(-1), indices.tolist(), strict=True)]
        return torch.stack(values).reshape(*asked.shape, *values[0].shape)

    def _at(self, t: Tensor, i: int) -> Tensor:
        piece = self.pieces[i]
        theta = (t - piece.t - (self.origin - self.origin.detach())) / piece.dt
        return piece.step.at(theta if theta.requires_grad else float(theta))
