"""Stochastic Runge-Kutta methods of strong order 1.5 for additive noise, with an embedded error."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import stochastic_tableau as tableaux
from .method import Dynamics, Slope, StrongOrders, Time
from .noisy import Estimate, NoisyStep, Roessler, StochasticMethod, error_of, pair_of
from .runge_kutta import stage_times
from .stochastic import driven
from .stochastic_tableau import Additive
from .sums import advance, weighted

ADDITIVE: StrongOrders = {("ito", "additive"): 1.5, ("stratonovich", "additive"): 1.5}


class SRA(Roessler):
    """Roessler's methods for additive noise, of Ito or Stratonovich: what they share; a class states its numbers."""

    strong_orders = ADDITIVE

    @property
    @abstractmethod
    def table(self) -> Additive:
        """The numbers of the method."""

    @property
    def evaluations(self) -> int:
        return len(self.table.alpha) + len(set(self.table.c1))

    def step(self, dynamics: Dynamics, t: Time, dt: Time, y: Tensor, slope: Slope = None) -> NoisyStep:
        table, noisy, h = self.table, driven(dynamics, self), float(dt)
        w, area = noisy.with_area(y)
        x = torch.add(area, w, alpha=0.5)
        times = stage_times(table.c0, t, h, y)
        at = {c: noisy.diffusion(one, y) for c, one in _times(table.c1, t, h, y).items()}
        g = [at[c] for c in table.c1]
        states, slopes = [y], [noisy.drift(times[0], y)]
        for i in range(1, len(table.alpha)):
            state = advance(y, h, table.a0[i], slopes)
            if any(table.b0[i]):
                state = state + noisy.applied(weighted(table.b0[i], g), x)
            states.append(state)
            slopes.append(noisy.drift(times[i], state))
        correction = noisy.applied(weighted(table.beta2, g), x)
        end = advance(y, h, table.alpha, slopes)
        end = end + noisy.applied(weighted(table.beta1, g), w) + correction
        return NoisyStep(
            y,
            end,
            lambda: error_of(self.estimate, table.alpha, slopes, len(slopes), h, correction),
            pair_of(table.stiffness_pair, slopes, states),
        )


def _times(c: Sequence[float], t: Time, h: float, y: Tensor) -> dict[float, Tensor]:
    distinct = tuple(dict.fromkeys(c))
    return dict(zip(distinct, stage_times(distinct, t, h, y), strict=True))


@dataclass(frozen=True)
class SRA1(SRA):
    """Roessler's SRA1 for additive noise, strong order 1.5: two evaluations of the drift.

    Args:
        estimate: of the error: "embedded", the difference to Euler-Maruyama in the same stages, or "sum", |dt times the
            sum of the slopes| + |noise|, which StochasticDiffEq takes and which is larger.
    """

    estimate: Estimate = "embedded"
    table = tableaux.SRA1


@dataclass(frozen=True)
class SRA3(SRA):
    """Roessler's SRA3 for additive noise, strong order 1.5, order 3 without noise.

    Args:
        estimate: as in `SRA1`.
    """

    estimate: Estimate = "embedded"
    table = tableaux.SRA3


@dataclass(frozen=True)
class SOSRA(SRA):
    """Rackauckas and Nie's stability-optimized method for additive noise, strong order 1.5: the default there.

    Args:
        estimate: as in `SRA1`.
    """

    estimate: Estimate = "embedded"
    table = tableaux.SOSRA


@dataclass(frozen=True)
class SOSRA2(SRA):
    """Rackauckas and Nie's second method for additive noise, strong order 1.5, with a stiffness estimate.

    Args:
        estimate: as in `SRA1`.
    """

    estimate: Estimate = "embedded"
    table = tableaux.SOSRA2


@dataclass(frozen=True)
class ShARK(StochasticMethod):
    """The shifted additive Runge-Kutta method, strong order 1.5 for additive noise: two evaluations of the drift.

    Both stages lie above the start by the area of the path, so that its error has a small constant.

    Source: Foster, dos Reis and Strange 2024, "High order splitting methods for SDEs satisfying a commutativity
    condition", eq. 6.1.
    """

    strong_orders = ADDITIVE
    noise_order = 1.5
    needs_area = True
    order = 2
    evaluations = 4

    def step(self, dynamics: Dynamics, t: Time, dt: Time, y: Tensor, slope: Slope = None) -> NoisyStep:
        noisy, h = driven(dynamics, self), float(dt)
        w, area = noisy.with_area(y)
        begin, middle, end = stage_times((0.0, 5 / 6, 1.0), t, h, y)
        g0, g1 = noisy.diffusion(begin, y), noisy.diffusion(end, y)
        lifted = y + noisy.applied(g0, area)
        k1 = noisy.drift(begin, lifted)
        state = torch.add(lifted, torch.add(k1 * h, noisy.applied(g0, w)), alpha=5 / 6)
        k2 = noisy.drift(middle, state)
        after = y + weighted((0.4 * h, 0.6 * h), (k1, k2))
        change = noisy.applied(g0 - g1, area)
        after = after + noisy.applied(torch.lerp(g0, g1, 0.5), w) + change
        return NoisyStep(y, after, lambda: torch.add(change, k2 - k1, alpha=0.6 * h))
