"""The solvers by torchdiffeq's names."""

from __future__ import annotations

from ..runge_kutta import Bosh3, Dopri5, Dopri8, Euler, Heun, Midpoint, Tsit5
from .adams import AdamsSolver
from .adaptive import AdaptiveSolver
from .fixed_grid import FixedGridSolver
from .pairs import RK38, Fehlberg2, Heun3
from .request import Solver
from .scipy_solver import ScipySolver

_IMPLICIT_ADAMS = AdamsSolver("AdamsBashforthMoulton", implicit=True)

SOLVERS: dict[str, Solver] = {
    "dopri8": AdaptiveSolver("Dopri8Solver", Dopri8()),
    "dopri5": AdaptiveSolver("Dopri5Solver", Dopri5(weights="shampine")),
    "tsit5": AdaptiveSolver("Tsit5Solver", Tsit5()),  # not in 0.2.5
    "bosh3": AdaptiveSolver("Bosh3Solver", Bosh3()),
    "fehlberg2": AdaptiveSolver("Fehlberg2", Fehlberg2()),
    "adaptive_heun": AdaptiveSolver("AdaptiveHeunSolver", Heun()),
    "euler": FixedGridSolver("Euler", Euler()),
    "midpoint": FixedGridSolver("Midpoint", Midpoint()),
    "heun2": FixedGridSolver("Heun2", Heun()),
    "heun3": FixedGridSolver("Heun3", Heun3()),
    "rk4": FixedGridSolver("RK4", RK38()),
    "explicit_adams": AdamsSolver("AdamsBashforth", implicit=False),
    "implicit_adams": _IMPLICIT_ADAMS,
    "fixed_adams": _IMPLICIT_ADAMS,
    "scipy_solver": ScipySolver("ScipyWrapperODESolver"),
}
