"""Adaptive solvers that tell how they fared."""

from .adjoint import Adjoint, Checkpointed, Direct
from .backsolve import Backsolve
from .controller import PI, PID, Controller, Fixed, I
from .event import Event
from .interpolating import Interpolating
from .method import Method, Step
from .record import Happening, Stats, Status, Steps
from .reversible import Reversible, ReversibleHeun
from .runge_kutta import RK4, Bosh3, Dopri5, Dopri8, Euler, Heun, Midpoint, Ralston, Tsit5, Vern7
from .solution import Solution
from .solve import odeint, step
from .switch import AutoSwitch

__all__ = [
    "PI",
    "PID",
    "RK4",
    "Adjoint",
    "AutoSwitch",
    "Backsolve",
    "Bosh3",
    "Checkpointed",
    "Controller",
    "Direct",
    "Dopri5",
    "Dopri8",
    "Euler",
    "Event",
    "Fixed",
    "Happening",
    "Heun",
    "I",
    "Interpolating",
    "Method",
    "Midpoint",
    "Ralston",
    "Reversible",
    "ReversibleHeun",
    "Solution",
    "Stats",
    "Status",
    "Step",
    "Steps",
    "Tsit5",
    "Vern7",
    "odeint",
    "step",
]
