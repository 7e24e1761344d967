"""Explicit Runge-Kutta methods that torchdiffeq offers and the solvers proper do not."""

from __future__ import annotations

from dataclasses import dataclass

from .. import tableau as tableaux
from ..runge_kutta import RungeKutta


@dataclass(frozen=True)
class Fehlberg2(RungeKutta):
    """Fehlberg's pair RK1(2), advanced with the second-order weights."""

    table = tableaux.FEHLBERG2


@dataclass(frozen=True)
class Heun3(RungeKutta):
    """Heun's third-order method; fixed steps only."""

    table = tableaux.HEUN3


@dataclass(frozen=True)
class RK38(RungeKutta):
    """Kutta's 3/8 rule, order 4; fixed steps only."""

    table = tableaux.RK38
