"""Adaptive solvers that tell how they fared."""

from .adjoint import Adjoint, Checkpointed, Direct
from .backsolve import Backsolve
from .controller import PI, PID, Controller, Fixed, I
from .event import Event
from .implicit import ImplicitEuler, Kvaerno3, Kvaerno5, Trapezoid
from .interpolating import Interpolating
from .linear import GMRES, Dense
from .method import Method, Step
from .record import Happening, Stats, Status, Steps
from .reversible import Reversible, ReversibleHeun
from .rosenbrock import Rodas5P, Rosenbrock23
from .runge_kutta import RK4, Bosh3, Dopri5, Dopri8, Euler, Heun, Midpoint, Ralston, Tsit5, Vern7
from .settings import Solver
from .solution import Solution
from .solve import odeint, step
from .switch import AutoSwitch

__all__ = [
    "GMRES",
    "PI",
    "PID",
    "RK4",
    "Adjoint",
    "AutoSwitch",
    "Backsolve",
    "Bosh3",
    "Checkpointed",
    "Controller",
    "Dense",
    "Direct",
    "Dopri5",
    "Dopri8",
    "Euler",
    "Event",
    "Fixed",
    "Happening",
    "Heun",
    "I",
    "ImplicitEuler",
    "Interpolating",
    "Kvaerno3",
    "Kvaerno5",
    "Method",
    "Midpoint",
    "Ralston",
    "Reversible",
    "ReversibleHeun",
    "Rodas5P",
    "Rosenbrock23",
    "Solution",
    "Solver",
    "Stats",
    "Status",
    "Step",
    "Steps",
    "Trapezoid",
    "Tsit5",
    "Vern7",
    "odeint",
    "step",
]
