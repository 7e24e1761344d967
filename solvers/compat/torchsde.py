"""torchsde's functions over our solvers: change one import line and keep the code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..adjoint import Adjoint, Checkpointed
from ..arguments import nearest
from ..brownian import VirtualBrownianTree
from ..controller import PI, Controller, Fixed
from ..method import Method
from ..milstein import EulerHeun, Milstein
from ..problem import InitialValueProblem
from ..reversible import Reversible, ReversibleHeun
from ..runge_kutta import Euler, Heun, Midpoint
from ..solution import Solution
from ..solve import solve
from ..sra import SRA1
from ..sri import SRIW2
from ..stochastic import Stochastic
from ..stochastic_adjoint import StochasticAdjoint
from ..stochastic_solve import noisy_problem_of
from ..untraced import untraced
from ..warn import warn_user
from .brownian import (
    BrownianInterval,
    BrownianPath,
    BrownianTree,
    ReverseBrownian,
    brownian_interval_like,
)
from .sde import BaseSDE, Equation, SDEIto, SDEStratonovich, equation_of

__all__ = [
    "BaseSDE",
    "BrownianInterval",
    "BrownianPath",
    "BrownianTree",
    "ReverseBrownian",
    "SDEIto",
    "SDEStratonovich",
    "brownian_interval_like",
    "sdeint",
    "sdeint_adjoint",
]

METHODS = ("euler", "euler_heun", "heun", "midpoint", "milstein", "reversible_heun", "srk")
MAX_STEPS = 2**31 - 1
Extra = tuple[Tensor, ...]


@untraced
def sdeint(
    sde: Any,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Any = None,
    method: str | None = None,
    dt: float | Tensor = 1e-3,
    adaptive: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-4,
    dt_min: float = 1e-5,
    options: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Extra | None = None,
) -> Any:
    """Integrate an SDE object; gradients by replaying its steps. torchsde's signature.

    Steps of length dt from ts[0] on, values at ts by linear interpolation, as torchsde has them. Adaptive steps follow
    the embedded error estimate of the method, not step doubling.

    Args:
        sde: with `noise_type`, `sde_type` and `f` and `g` (or `f_and_g`, `g_prod`, `f_and_g_prod`; renamed by `names`).
        y0: (B, d).
        ts: strictly increasing times, (T,).
        bm: a Brownian motion of shape (B, m), torchsde's or one of this module; None: a new one.
        method: "euler", "milstein", "srk", "midpoint", "heun", "euler_heun" or "reversible_heun"; None: "srk" for Ito's
            equations ("euler" for general noise), "midpoint" for Stratonovich's.
        dt: length of the steps, or of the first one where they are adaptive.
        adaptive, rtol, atol, dt_min: adaptive steps; "euler" has no error estimate.
        options: {"grad_free": True} for derivative-free Milstein.
        names: of the methods of sde, for "drift", "diffusion", "prior_drift", "drift_and_diffusion", ...
        logqp: whether to return the increments of the log-ratio to the prior, whose drift is `h`.
        extra: whether to return the solver's own state.
        extra_solver_state: with which it starts.

    Returns:
        ys (T, B, d); with `logqp` and (T - 1, B) increments; with `extra` and a tuple of tensors, of which only
        "reversible_heun" has any: drift, diffusion and z.

    Raises:
        ValueError: an argument does not fit.
    """
    return _integrate(
        _Request(sde, y0, ts, bm, method, dt, adaptive, rtol, atol, dt_min, options, names, logqp, extra_solver_state),
        Checkpointed(),
        extra,
    )


@untraced
def sdeint_adjoint(
    sde: Any,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Any = None,
    method: str | None = None,
    adjoint_method: str | None = None,
    dt: float | Tensor = 1e-3,
    adaptive: bool = False,
    adjoint_adaptive: bool = False,
    rtol: float = 1e-5,
    adjoint_rtol: float = 1e-5,
    atol: float = 1e-4,
    adjoint_atol: float = 1e-4,
    dt_min: float = 1e-5,
    options: Mapping[str, Any] | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Extra | None = None,
) -> Any:
    """Integrate an SDE object; gradients by integrating backwards. torchsde's signature; arguments as in `sdeint`.

    "reversible_heun" takes its steps back exactly. Other methods are followed back by Heun's along the steps of the
    forward solve, whatever `adjoint_method`, `adjoint_adaptive` and the tolerances of the adjoint say; a warning tells
    so once. Gradients reach every tensor that the SDE was seen to use; `adjoint_params` has no effect.
    """
    if adjoint_params is None and not isinstance(sde, torch.nn.Module):
        raise ValueError(
            "`sde` must be an instance of nn.Module to specify the adjoint parameters; alternatively they can be "
            "specified explicitly via the `adjoint_params` argument."
        )
    reversible = method == "reversible_heun" and adjoint_method in {None, "adjoint_reversible_heun"}
    if adjoint_method not in {None, "adjoint_reversible_heun"} or adjoint_adaptive or adjoint_options:
        _say_once(
            "sdeint_adjoint goes back by Heun's method along the steps of the forward solve: the adjoint_ options "
            "have no effect"
        )
    adjoint: Adjoint = StochasticAdjoint()
    if reversible and not extra:
        adjoint = Reversible()
    elif method == "reversible_heun":
        adjoint = Checkpointed()
    return _integrate(
        _Request(sde, y0, ts, bm, method, dt, adaptive, rtol, atol, dt_min, options, names, logqp, extra_solver_state),
        adjoint,
        extra,
    )


@dataclass(frozen=True, eq=False)
class _Request:
    """The arguments of either function."""

    sde: Any
    y0: Tensor
    ts: Tensor | Sequence[float]
    bm: Any
    method: str | None
    dt: float | Tensor
    adaptive: bool
    rtol: float
    atol: float
    dt_min: float
    options: Mapping[str, Any] | None
    names: Mapping[str, str] | None
    logqp: bool
    extra: Extra | None


def _integrate(request: _Request, adjoint: Adjoint, extra: bool) -> Any:
    times = _times(request.ts, request.y0)
    start = torch.tensor(times[0], dtype=request.y0.dtype, device=request.y0.device)
    equation, y0 = equation_of(request.sde, request.y0, start, request.bm, request.names, request.logqp)
    method, dt = _method(request, equation), float(request.dt)
    controller: Controller = Fixed(dt)
    grid, shares = (times, None) if request.adaptive else _grid(times, dt)
    if request.adaptive:
        if method.error_order is None:
            raise ValueError(
                f"method {request.method!r} has no error estimate for adaptive steps: use 'srk', 'milstein' or 'heun'"
            )
        controller = PI(first_step=dt, min_step=request.dt_min)
    path = request.bm
    if isinstance(path, BrownianInterval) and not request.adaptive:
        path.expect(dt)
    if path is None:
        path = VirtualBrownianTree(
            times[0],
            times[-1],
            (len(y0), equation.channels),
            cell=None if request.adaptive else dt,
            knots=times[1:-1] if request.adaptive else (),
            area=method.needs_area,
            dtype=y0.dtype,
            device=y0.device,
        )
    problem = noisy_problem_of(
        equation.drift,
        equation.diffusion,
        y0,
        grid,
        equation.noise,
        equation.calculus,
        method,
        controller,
        path,
        None,
        request.rtol,
        request.atol,
        (),
        (),
        MAX_STEPS,
    )
    if request.extra:
        if not isinstance(method, ReversibleHeun) or len(request.extra) != 3:
            raise ValueError("extra_solver_state must be the three tensors of 'reversible_heun', or None")
        problem = problem.over(y0=torch.stack((y0, request.extra[2]), -1))
    solution = solve(problem, adjoint)
    if not solution.success:
        raise RuntimeError(solution.report())
    ys = solution.ys if shares is None else _between(solution.ys, shares)
    return _returned(request, ys, _state(problem, solution, times[-1]) if extra else None)


def _returned(request: _Request, ys: Tensor, state: Extra | None) -> Any:
    """What was asked for: ys, increments of the log-ratio, the solver's state."""
    found: list[Any] = [ys]
    if request.logqp:
        found = [ys[..., :-1], ys[..., -1].diff(dim=0)]
    if state is not None:
        found.append(state)
    return found[0] if len(found) == 1 else tuple(found)


def _state(problem: InitialValueProblem, solution: Solution, end: float) -> Extra:
    """The solver's own state at the end."""
    if not isinstance(problem.method, ReversibleHeun) or not len(solution.steps):
        return ()
    assert isinstance(problem.dynamics, Stochastic)
    z = solution.retake(len(solution.steps) - 1).y[..., 1]
    t = torch.tensor(end, dtype=z.dtype, device=z.device)
    return problem.dynamics.evaluate(t, z), problem.dynamics.diffusion.evaluate(t, z), z


def _method(request: _Request, equation: Equation) -> Method:
    name = request.method
    if name is None:
        ito = "euler" if equation.noise == "general" else "srk"
        name = ito if equation.calculus == "ito" else "midpoint"
    options = dict(request.options or {})
    grad_free = bool(options.pop("grad_free", False))
    if options:
        raise ValueError(f"options must be {{'grad_free': ...}} or none, got {sorted(options)} besides")
    if name == "srk":
        return SRA1() if equation.noise == "additive" else SRIW2()
    known: dict[str, Method] = {
        "euler": Euler(),
        "euler_heun": EulerHeun(),
        "heun": Heun(),
        "midpoint": Midpoint(),
        "milstein": Milstein(derivative_free=grad_free),
        "reversible_heun": ReversibleHeun(),
    }
    if name not in known:
        near = nearest(str(name), METHODS)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ValueError(f"Expected method in {list(METHODS)}, but found {name}{hint}.")
    return known[name]


def _times(ts: Tensor | Sequence[float], y0: Any) -> list[float]:
    if isinstance(ts, Tensor):
        if ts.requires_grad:
            raise ValueError("Argument ts must not require gradient.")
        times: list[float] = ts.double().tolist()
    elif isinstance(ts, (tuple, list)) and all(isinstance(t, (float, int)) for t in ts):
        times = [float(t) for t in ts]
    else:
        raise ValueError("Evaluation times `ts` must be a 1-D Tensor or list/tuple of floats.")
    if not isinstance(y0, Tensor):
        raise ValueError("`y0` must be a torch.Tensor.")
    if any(b <= a for a, b in pairwise(times)):
        raise ValueError("Evaluation times `ts` must be strictly increasing.")
    return times


def _grid(times: list[float], dt: float) -> tuple[list[float], list[tuple[int, int, float]]]:
    """The ends of steps around each time, and for each time two of them and how far it lies between."""
    start, end = times[0], times[-1]

    def at(k: int) -> float:
        return min(start + k * dt, end)

    brackets = []
    for t in times:
        share = (t - start) / dt
        k = round(share) if abs(share - round(share)) < 1e-6 * max(1.0, share) else math.floor(share)
        high = k if abs(at(k) - t) <= 1e-6 * dt or at(k) >= end else k + 1
        brackets.append((k, high, 0.0 if high == k else (t - at(k)) / (at(high) - at(k))))
    ends = sorted({k for low, high, _ in brackets for k in (low, high)})
    places = {k: i for i, k in enumerate(ends)}
    return [at(k) for k in ends], [(places[low], places[high], share) for low, high, share in brackets]


def _between(ys: Tensor, shares: list[tuple[int, int, float]]) -> Tensor:
    """Values at the times that were asked for, on the chords of the steps."""
    low, high, share = zip(*shares, strict=True)
    if not any(share):
        return ys[list(low)]
    weight = torch.tensor(share, dtype=ys.dtype, device=ys.device).reshape(-1, 1, 1)
    return torch.lerp(ys[list(low)], ys[list(high)], weight)


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        warn_user(text)


_said: set[str] = set()
