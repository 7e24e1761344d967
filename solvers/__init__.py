"""Adaptive solvers that tell how they fared."""

from .adjoint import Checkpointed, Direct
from .controller import PI, PID, Fixed, I
from .event import Event
from .record import Happening, Stats, Status, Steps
from .runge_kutta import RK4, Bosh3, Dopri5, Dopri8, Euler, Heun, Midpoint, Ralston, Tsit5, Vern7
from .solution import Solution
from .solve import odeint
from .switch import AutoSwitch

__all__ = [
    "PI",
    "PID",
    "RK4",
    "AutoSwitch",
    "Bosh3",
    "Checkpointed",
    "Direct",
    "Dopri5",
    "Dopri8",
    "Euler",
    "Event",
    "Fixed",
    "Happening",
    "Heun",
    "I",
    "Midpoint",
    "Ralston",
    "Solution",
    "Stats",
    "Status",
    "Steps",
    "Tsit5",
    "Vern7",
    "odeint",
]
