"""Adaptive solvers that tell how they fared."""

from .adjoint import Adjoint, Checkpointed, Direct
from .backsolve import Backsolve
from .brownian import BrownianPath, VirtualBrownianTree
from .controller import PI, PID, Controller, Fixed, I
from .event import Event
from .implicit import ImplicitEuler, Kvaerno3, Kvaerno5, Trapezoid
from .interpolating import Interpolating
from .linear import GMRES, Dense
from .method import Method, Step
from .milstein import EulerHeun, Milstein
from .record import Happening, Stats, Status, Steps
from .reversible import Reversible, ReversibleHeun
from .rosenbrock import Rodas5P, Rosenbrock23
from .runge_kutta import RK4, Bosh3, Dopri5, Dopri8, Euler, Heun, Midpoint, Ralston, Tsit5, Vern7
from .settings import NoisySolver, Solver
from .solution import Solution
from .solve import odeint, step
from .sra import SOSRA, SOSRA2, SRA1, SRA3, ShARK
from .sri import SOSRI, SOSRI2, SRIW1, SRIW2
from .stochastic_adjoint import StochasticAdjoint
from .stochastic_solve import sdeint
from .switch import AutoSwitch

__all__ = [
    "GMRES",
    "PI",
    "PID",
    "RK4",
    "SOSRA",
    "SOSRA2",
    "SOSRI",
    "SOSRI2",
    "SRA1",
    "SRA3",
    "SRIW1",
    "SRIW2",
    "Adjoint",
    "AutoSwitch",
    "Backsolve",
    "Bosh3",
    "BrownianPath",
    "Checkpointed",
    "Controller",
    "Dense",
    "Direct",
    "Dopri5",
    "Dopri8",
    "Euler",
    "EulerHeun",
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
    "Milstein",
    "NoisySolver",
    "Ralston",
    "Reversible",
    "ReversibleHeun",
    "Rodas5P",
    "Rosenbrock23",
    "ShARK",
    "Solution",
    "Solver",
    "Stats",
    "Status",
    "Step",
    "Steps",
    "StochasticAdjoint",
    "Trapezoid",
    "Tsit5",
    "Vern7",
    "VirtualBrownianTree",
    "odeint",
    "sdeint",
    "step",
]
