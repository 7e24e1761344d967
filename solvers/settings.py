"""A choice of solver, made once and used for many problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .adjoint import Adjoint, Checkpointed
from .controller import Controller
from .dynamics import State
from .method import Method
from .runge_kutta import Tsit5
from .solution import Solution
from .solve import odeint
from .switch import AutoSwitch


@dataclass(frozen=True)
class Solver:
    """The arguments of `odeint` that say how, apart from the problem; call it with the problem.

    It compares, pickles and can be saved with a model, which a `functools.partial` of `odeint` cannot.

    Args:
        method, controller, per_sample, rtol, atol, adjoint, compile, max_steps: as in `odeint`.
    """

    method: Method | AutoSwitch = Tsit5()
    controller: Controller | None = None
    per_sample: bool = False
    rtol: float = 1e-3
    atol: float = 1e-6
    adjoint: Adjoint = Checkpointed()
    compile: bool | Literal["auto"] = False
    max_steps: int = 10_000

    def __call__(self, field: Callable[..., Any], y0: State, ts: Tensor | Sequence[float]) -> Solution:
        """Solve dy/dt = field(t, y), y(ts[0]) = y0; values, shapes and errors as of `odeint`."""
        return odeint(
            field,
            y0,
            ts,
            method=self.method,
            controller=self.controller,
            per_sample=self.per_sample,
            rtol=self.rtol,
            atol=self.atol,
            adjoint=self.adjoint,
            compile=self.compile,
            max_steps=self.max_steps,
        )
