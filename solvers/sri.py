"""Stochastic Runge-Kutta methods of strong order 1.5 for diagonal and scalar noise of Ito, with an embedded error."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from . import stochastic_tableau as tableaux
from .method import Dynamics, Slope, StrongOrders, Time
from .noisy import Estimate, NoisyStep, Roessler, error_of, pair_of
from .runge_kutta import stage_times
from .stochastic import driven
from .stochastic_tableau import Diagonal
from .sums import advance, weighted


class SRI(Roessler):
    """Roessler's methods for diagonal and scalar noise of Ito: what they share; a class states its numbers."""

    strong_orders: ClassVar[StrongOrders] = {("ito", "diagonal"): 1.5, ("ito", "scalar"): 1.5}

    @property
    @abstractmethod
    def table(self) -> Diagonal:
        """The numbers of the method."""

    @property
    def evaluations(self) -> int:
        return self._drifts + len(self.table.c1)

    @property
    def _drifts(self) -> int:
        """How many of the slopes are used."""
        table = self.table
        used = [i for i in range(len(table.alpha)) if table.alpha[i] or any(i < len(r) and r[i] for r in table.a0)]
        return max(used) + 1

    def step(self, dynamics: Dynamics, t: Time, dt: Time, y: Tensor, slope: Slope = None) -> NoisyStep:
        table, noisy, h = self.table, driven(dynamics, self), float(dt)
        w, area = noisy.with_area(y)
        root, x2 = h**0.5, torch.add(area, w, alpha=0.5)
        drifts = self._drifts
        times, moments = stage_times(table.c0, t, h, y), stage_times(table.c1, t, h, y)
        states, slopes = [y], [noisy.drift(times[0], y)]
        g = [noisy.diffusion(moments[0], y)]
        for i in range(1, len(table.alpha)):
            if i < drifts:
                state = advance(y, h, table.a0[i], slopes)
                for weight, one in zip(table.b0[i], g, strict=False):
                    state = torch.addcmul(state, one, x2, value=weight) if weight else state
                states.append(state)
            other = advance(advance(y, root, table.b1[i], g), h, table.a1[i], slopes)
            if i < drifts:
                slopes.append(noisy.drift(times[i], states[i]))
            g.append(noisy.diffusion(moments[i], other))
        powers = (w, area, w * w, w * w * w)
        end = advance(y, h, table.alpha, slopes) + polynomial_of_noise(table, h, g, powers)
        terms, part = (table.terms, h * table.share) if self.estimate == "sum" else (0, h)

        def correction() -> Tensor:
            """What methods of order 1 leave out."""
            return polynomial_of_noise(table, h, g, powers, last=True)

        return NoisyStep(
            y,
            end,
            lambda: error_of(self.estimate, table.alpha, slopes, terms, part, correction()),
            pair_of(table.stiffness_pair, slopes, states),
        )


def polynomial_of_noise(
    table: Diagonal, h: float, g: Sequence[Tensor], powers: Sequence[Tensor], last: bool = False
) -> Tensor:
    """The sum of (beta1 w + beta2 x1 + beta3 x2 + beta4 x3) g as a polynomial in w and H; `last`: beta3 and beta4 only.

    Args:
        table: the numbers.
        h: length of the step.
        g: diffusions in the stages.
        powers: w, H, w^2, w^3.
    """
    rows = zip(table.beta1, table.beta2, table.beta3, table.beta4, strict=True)
    weights = [(0.0, 0.0, b3, b4) if last else (b1, b2, b3, b4) for b1, b2, b3, b4 in rows]
    root = math.sqrt(h)
    total = weighted([-0.5 * root * b2 for _, b2, _, _ in weights], g)
    for power, coefficients in zip(
        powers,
        (
            [b1 + 0.5 * b3 - 0.5 * b4 for b1, _, b3, b4 in weights],
            [b3 for _, _, b3, _ in weights],
            [0.5 / root * b2 for _, b2, _, _ in weights],
            [b4 / (6 * h) for _, _, _, b4 in weights],
        ),
        strict=True,
    ):
        if any(coefficients):
            total = torch.addcmul(total, weighted(coefficients, g), power)
    return total


@dataclass(frozen=True)
class SRIW1(SRI):
    """Roessler's SRIW1 for diagonal and scalar noise of Ito, strong order 1.5.

    Args:
        estimate: of the error: "embedded", the difference to a method of order 1 in the same stages, or "sum", |dt
            times the sum of the slopes| + |noise|, which StochasticDiffEq takes and which is larger.
    """

    estimate: Estimate = "embedded"
    table = tableaux.SRIW1


@dataclass(frozen=True)
class SRIW2(SRI):
    """Roessler's SRIW2 for diagonal and scalar noise of Ito, strong order 1.5, order 3 without noise.

    Args:
        estimate: as in `SRIW1`.
    """

    estimate: Estimate = "embedded"
    table = tableaux.SRIW2


@dataclass(frozen=True)
class SOSRI(SRI):
    """Rackauckas and Nie's stability-optimized method for diagonal and scalar noise, strong order 1.5: the default.

    A stage lies 3.75 steps ahead of the start, one 0.04 behind it: where the drift depends on time, it must be defined
    there, too.

    Args:
        estimate: as in `SRIW1`.
    """

    estimate: Estimate = "embedded"
    table = tableaux.SOSRI
    reach = 3.7504010171562823


@dataclass(frozen=True)
class SOSRI2(SRI):
    """Rackauckas and Nie's second method for diagonal and scalar noise, strong order 1.5, with a stiffness estimate.

    Args:
        estimate: as in `SRIW1`.
    """

    estimate: Estimate = "embedded"
    table = tableaux.SOSRI2
