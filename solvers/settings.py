"""A choice of solver, made once and used for many problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .adjoint import Adjoint, Checkpointed
from .arguments import controller_of, methods_of, require_max_steps, tolerance_of
from .controller import Controller
from .dynamics import State
from .method import Calculus, Method, Noise
from .noisy import StochasticMethod
from .runge_kutta import Tsit5
from .solution import Solution
from .solve import odeint, require_adjoint
from .stochastic_solve import noisy_method, sdeint
from .switch import AutoSwitch


@dataclass(frozen=True)
class Solver:
    """The arguments of `odeint` that say how, apart from the problem; call it with the problem.

    It compares, pickles and can be saved with a model, which a `functools.partial` of `odeint` cannot.

    Args:
        method, controller, per_sample, rtol, atol, adjoint, compile, max_steps: as in `odeint`.

    Raises:
        TypeError, ValueError: as of `odeint`, for what can be seen without a problem.
    """

    method: Method | AutoSwitch = Tsit5()
    controller: Controller | None = None
    per_sample: bool = False
    rtol: float = 1e-3
    atol: float = 1e-6
    adjoint: Adjoint = Checkpointed()
    compile: bool | Literal["auto"] = False
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        methods = methods_of(self.method)
        for one in methods:
            if isinstance(one, StochasticMethod):
                raise TypeError(f"method {type(one).__name__} solves stochastic equations: use it in a NoisySolver")
        _require_usable(self, methods[0])

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


@dataclass(frozen=True)
class NoisySolver:
    """The arguments of `sdeint` that say how, apart from the problem; call it with the problem.

    Args:
        noise, calculus, method, controller, rtol, atol, adjoint, max_steps: as in `sdeint`.

    Raises:
        TypeError, ValueError: as of `sdeint`, for what can be seen without a problem.
    """

    noise: Noise = "diagonal"
    calculus: Calculus = "ito"
    method: Method | None = None
    controller: Controller | None = None
    rtol: float = 1e-2
    atol: float = 1e-3
    adjoint: Adjoint = Checkpointed()
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        _require_usable(self, noisy_method(self.method, self.calculus, self.noise))

    def __call__(
        self,
        drift: Callable[..., Any],
        diffusion: Callable[..., Any],
        y0: State,
        ts: Tensor | Sequence[float],
        generator: torch.Generator | None = None,
    ) -> Solution:
        """Solve dy = drift dt + diffusion dW, y(ts[0]) = y0; values, shapes and errors as of `sdeint`."""
        return sdeint(
            drift,
            diffusion,
            y0,
            ts,
            noise=self.noise,
            calculus=self.calculus,
            method=self.method,
            controller=self.controller,
            generator=generator,
            rtol=self.rtol,
            atol=self.atol,
            adjoint=self.adjoint,
            max_steps=self.max_steps,
        )


def _require_usable(solver: Solver | NoisySolver, method: Method) -> None:
    if solver.controller is not None:
        controller_of(solver.controller, method)
    for name in ("rtol", "atol"):
        value = getattr(solver, name)
        if not isinstance(value, Tensor):
            tolerance_of(name, value, torch.empty(0, dtype=torch.float64))
    require_adjoint(solver.adjoint)
    require_max_steps(solver.max_steps)
