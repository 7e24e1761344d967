"""torchdiffeq's Adams methods: variable order on a fixed grid, begun with the 3/8 rule."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

from ..sums import weighted
from ..warn import warn_user
from . import fixed_grid
from .fixed_grid import GridSolver, Stepper
from .pairs import RK38
from .request import Field, Request

MIN_ORDER = 4
MAX_ORDER = 12
MAX_ITERS = 4


def quadrature(nodes: Sequence[int]) -> tuple[float, ...]:
    """Weights w with sum of w_i f(x_i) = the integral over [0, 1] of the polynomial through f at the nodes x.

    Each is the integral of a Lagrange polynomial, in exact arithmetic.
    """
    weights = []
    for i, xi in enumerate(nodes):
        coefficients = [Fraction(1)]  # of 1, x, x^2, ...
        for j, xj in enumerate(nodes):
            if j != i:
                shifted = [Fraction(0), *coefficients]
                scaled = [c * xj for c in coefficients] + [Fraction(0)]
                coefficients = [(a - b) / (xi - xj) for a, b in zip(shifted, scaled, strict=True)]
        weights.append(float(sum((c / (k + 1) for k, c in enumerate(coefficients)), Fraction(0))))
    return tuple(weights)


@cache
def bashforth(order: int) -> tuple[float, ...]:
    """Weights of the slopes at 0, -1, ..., 1 - order for a step to 1.

    Source: Hairer, Norsett, Wanner 1993, "Solving Ordinary Differential Equations I", III.1.
    """
    return quadrature(range(0, -order, -1))


@cache
def moulton(order: int) -> tuple[float, ...]:
    """Weights of the slopes at 1, 0, ..., 2 - order for a step to 1; source as in `bashforth`."""
    return quadrature(range(1, 1 - order, -1))


class AdamsStepper(Stepper):
    """Steps of an Adams-Bashforth predictor, and an Adams-Moulton corrector where `iterations` > 0."""

    def __init__(self, request: Request, max_order: int, iterations: int) -> None:
        self.rtol, self.atol = request.rtol, request.atol
        self.iterations = iterations
        self.max_order = max_order
        self.slopes: deque[Tensor] = deque(maxlen=max(max_order - 1, 1))  # the latest first

    def step(self, field: Field, t: Tensor, dt: float | Tensor, end: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        slope = field(t, y)
        self.slopes.appendleft(slope)
        order = min(len(self.slopes), self.max_order - 1)
        if order < MIN_ORDER - 1:
            return RK38().step(field, t, dt, y, slope).y, slope
        change = weighted(bashforth(order), tuple(self.slopes)) * dt
        if self.iterations:
            change = self._corrected(field, end, dt, y, change, order + 1)
        return y + change, slope

    def _corrected(
        self, field: Field, end: Tensor, dt: float | Tensor, y: Tensor, change: Tensor, order: int
    ) -> Tensor:
        """Iterate on the implicit formula."""
        first, *others = moulton(order)
        known = weighted(others, tuple(self.slopes)) * dt
        for _ in range(self.iterations):
            before, change = change, known + field(end, y + change) * first * dt
            if self._close(before.detach(), change.detach()):
                return change
        warn_user("the corrector of the Adams method did not converge in max_iters iterations; take shorter steps")
        self.slopes.pop()
        return change

    def _close(self, before: Tensor, after: Tensor) -> bool:
        tolerated = self.atol + self.rtol * torch.maximum(before.abs(), after.abs())
        return bool(((before - after).abs() < tolerated).all())


@dataclass(frozen=True)
class AdamsSolver(GridSolver):
    """Adams-Bashforth, with the Moulton corrector where `implicit`. Its weights are those of equal steps."""

    name: str
    implicit: bool

    options = (*fixed_grid.OPTIONS, "max_order", "max_iters")

    def stepper(self, request: Request) -> Stepper:
        order = int(request.options.get("max_order", MAX_ORDER))
        if order > MAX_ORDER:
            raise AssertionError(f"max_order must be at most {MAX_ORDER}, got {order}")
        if order < MIN_ORDER:
            warn_user(f"max_order = {order} is below {MIN_ORDER}: every step is one of rk4")
        iterations = int(request.options.get("max_iters", MAX_ITERS)) if self.implicit else 0
        return AdamsStepper(request, order, iterations)
