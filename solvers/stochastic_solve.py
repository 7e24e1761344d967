"""Stochastic differential equations: the public face, its checks, and the choices that it leaves open."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .adjoint import Adjoint, Checkpointed
from .arguments import (
    all_methods,
    controller_of,
    forced_times,
    methods_of,
    nearest,
    require_callable,
    require_finite,
    require_max_steps,
    require_sequences,
    times_of,
    tolerance_of,
)
from .backsolve import Continuous
from .brownian import BrownianPath, VirtualBrownianTree, path_of
from .controller import Controller, Fixed
from .dynamics import Dynamics, State, Structure, leaves_of, structure_of
from .method import CALCULI, NOISES, Calculus, Method, Noise, real_dtype
from .milstein import Milstein
from .problem import InitialValueProblem
from .runge_kutta import Euler, Heun
from .solution import Solution
from .solve import require_adjoint, solve
from .sra import SOSRA
from .sri import SOSRI, SRI
from .stochastic import Kind, Stochastic, channels, coupled
from .stochastic_adjoint import StochasticAdjoint
from .switch import AutoSwitch
from .untraced import untraced
from .warn import warn_user


@untraced
def sdeint(
    drift: Callable[..., Any],
    diffusion: Callable[..., Any],
    y0: State,
    ts: Tensor | Sequence[float],
    *,
    noise: Noise = "diagonal",
    calculus: Calculus = "ito",
    method: Method | None = None,
    controller: Controller | None = None,
    path: object = None,
    generator: torch.Generator | None = None,
    rtol: float | Tensor = 1e-2,
    atol: float | Tensor = 1e-3,
    args: Sequence[Any] = (),
    stops: Sequence[float] = (),
    adjoint: Adjoint = Checkpointed(),
    compile: bool | Literal["auto"] = False,
    max_steps: int = 10_000,
    throw: bool = True,
) -> Solution:
    """Solve dy = drift(t, y, *args) dt + diffusion(t, y, *args) dW from y(ts[0]) = y0.

    Args:
        drift: gives what is shaped and structured as y; t is a scalar (), in the dtype of y.
        diffusion: with `diagonal` and `scalar` noise shaped as y, with `commutative` and `general` noise (*y, m), with
            `additive` noise either of them.
        y0: a real tensor of any shape; for diagonal noise also a tuple or dict of tensors.
        ts: times at which the solution is wanted, increasing, (T,). Steps end at each of them. Kept in float64.
        noise: `diagonal`: every entry of y has its own noise; `scalar`: all entries along the last axis share one;
            `additive`: the diffusion does not depend on y; `commutative`, `general`: m channels of noise for each last
            axis, which commute (g_j . grad g_k = g_k . grad g_j) or need not.
        calculus: "ito" or "stratonovich".
        method: SOSRI(), SOSRA(), SRIW1(), SRA1(), ShARK(), Milstein(), Euler(), Heun(), Midpoint(), EulerHeun(),
            ReversibleHeun(), ... Default: SOSRA() for additive noise; of Ito SOSRI() for diagonal and scalar,
            Milstein() for commutative, Euler() for general noise; of Stratonovich Heun().
        controller: PI(), I(), PID() or Fixed(step). Default: PI(), or Fixed() (one step between two ts) for methods
            without an error estimate.
        path: the Brownian motion: a VirtualBrownianTree, or one of torchsde's. Default: a new tree whose cells are the
            steps where they are fixed.
        generator: the source of the seed of that tree; None: torch's.
        rtol, atol: a step is accepted where its local error is below atol + rtol |y|.
        args: further arguments of drift and diffusion.
        stops: further times that steps must hit.
        adjoint: how gradients are computed: Checkpointed(), Direct(), Reversible() or StochasticAdjoint().
        compile: True: take steps of fixed length as a compiled program, without gradients; "auto": where that is
            possible; False: as they are.
        max_steps: attempted steps, > 0.
        throw: whether a solve that stops short raises; else its `status` says so.

    Returns:
        A `Solution`: ys (T, *y0), status, stats, steps with their error and stiffness; callable between ts.

    Raises:
        TypeError, ValueError: an argument does not fit; it is named.
        RuntimeError: the solve stopped short and `throw` is set.
    """
    require_adjoint(adjoint)
    if isinstance(adjoint, Continuous):
        raise TypeError(
            f"adjoint must be StochasticAdjoint() or Checkpointed() for sdeint, got {type(adjoint).__name__}"
        )
    problem = noisy_problem_of(
        drift,
        diffusion,
        y0,
        ts,
        noise,
        calculus,
        method,
        controller,
        path,
        generator,
        rtol,
        atol,
        args,
        stops,
        max_steps,
    )
    _look_at_coupling(problem, adjoint)
    solution = solve(problem, adjoint, compile)
    if throw and not solution.success:
        raise RuntimeError(solution.report())
    return solution


_known: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # diffusions that were looked at: whether they are coupled


def _is_coupled(problem: InitialValueProblem, dynamics: Stochastic) -> bool:
    field = dynamics.diffusion.field
    with contextlib.suppress(TypeError):  # of a kind that cannot be remembered
        if field in _known:
            return _known[field]
    found = coupled(dynamics.diffusion, *problem.first())
    with contextlib.suppress(TypeError):
        _known[field] = found
    return found


def _look_at_coupling(problem: InitialValueProblem, adjoint: Adjoint) -> None:
    """Refuse or warn where diagonal noise is not what the method or the adjoint takes it for.

    Raises:
        ValueError: what it would compute is the solution of another equation.
    """
    dynamics, method = problem.dynamics, problem.method
    if not isinstance(dynamics, Stochastic) or dynamics.kind.noise != "diagonal":
        return
    exact = isinstance(method, Milstein) or isinstance(adjoint, StochasticAdjoint)
    if not (exact or isinstance(method, SRI)) or not _is_coupled(problem, dynamics):
        return
    said = 'diffusion must give entry i from entry i of y only for noise="diagonal"'
    if exact:
        name = type(method if isinstance(method, Milstein) else adjoint).__name__
        raise ValueError(f"{said}, which {name} relies on: use Heun() of Stratonovich, or another adjoint")
    text = f"{said}: {type(method).__name__} then has strong order 0.5, and errors above the tolerance"
    if text not in _said:
        _said.add(text)
        warn_user(text)


_said: set[str] = set()


def noisy_problem_of(
    drift: Callable[..., Any],
    diffusion: Callable[..., Any],
    y0: State,
    ts: Tensor | Sequence[float],
    noise: Noise,
    calculus: Calculus,
    method: Method | None,
    controller: Controller | None,
    path: object,
    generator: torch.Generator | None,
    rtol: float | Tensor,
    atol: float | Tensor,
    args: Sequence[Any],
    stops: Sequence[float],
    max_steps: int,
) -> InitialValueProblem:
    """The problem that the arguments of `sdeint` describe.

    Raises:
        TypeError, ValueError: an argument does not fit; it is named.
    """
    for name, function in (("drift", drift), ("diffusion", diffusion)):
        require_callable(name, function)
    require_sequences(args=args)
    require_max_steps(max_steps)
    chosen = noisy_method(method, calculus, noise)
    structure, flat = _flat(y0, noise)
    require_finite(flat)
    times = _noisy_times(ts, flat)
    if controller is None and method is None and chosen.error_order is None:
        raise ValueError(
            f"controller must be Fixed(step) for {noise} noise of {calculus.capitalize()}, whose method Euler() has no "
            f"error estimate, got None"
        )
    controller = controller_of(controller, chosen, "Milstein() or Heun()")
    kind = Dynamics(diffusion, tuple(args), structure, real_dtype(flat))
    matrix, shape = channels(kind, times[0], flat, noise)
    stopping = tuple(sorted({*times[1:-1].tolist(), *forced_times(stops, (), times, real_dtype(flat))}))
    stochastic = Stochastic(
        drift,
        diffusion,
        tuple(args),
        structure,
        real_dtype(flat),
        Kind(noise, calculus, matrix),
        _path(path, shape, times, stopping, chosen, controller, flat, generator),
    )
    stochastic.diffusion.calls += kind.calls
    return InitialValueProblem(
        dynamics=stochastic,
        y0=chosen.lift(flat),
        ts=times,
        methods=(chosen,),
        switch=None,
        controller=controller,
        rtol=tolerance_of("rtol", rtol, flat),
        atol=tolerance_of("atol", atol, flat),
        samples=False,
        max_steps=max_steps,
        stops=stopping,
    )


def _noisy_times(ts: Tensor | Sequence[float], y: Tensor) -> Tensor:
    times = times_of(ts, y, False)
    if times.requires_grad:
        raise ValueError("ts must not require gradients: a Brownian path has no derivative; use ts.detach()")
    if times.shape[0] > 1 and bool(times[1] < times[0]):
        raise ValueError("ts must be increasing for stochastic equations, got a decreasing one")
    return times


def _path(
    path: object,
    shape: tuple[int, ...],
    times: Tensor,
    stops: tuple[float, ...],
    method: Method,
    controller: Controller,
    y: Tensor,
    generator: torch.Generator | None,
) -> BrownianPath:
    """The path, or a new one in whose cells the steps fit: as long as they are, or from one stop to the next."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
    start, end = float(times[0]), float(times[-1])
    if path is not None:
        if generator is not None:
            raise ValueError("generator must be None where path is given, which has a seed of its own")
        if isinstance(path, VirtualBrownianTree):
            slack = 1e-9 * (path.t1 - path.t0)
            if not path.t0 - slack <= start <= end <= path.t1 + slack:
                raise ValueError(f"path must reach from {start} to {end}, as ts does, got {path!r}")
        return path_of(path, shape)
    return VirtualBrownianTree(
        start,
        end if end > start else start + 1.0,
        shape,
        cell=controller.step if isinstance(controller, Fixed) else None,
        knots=stops,
        area=method.needs_area,
        dtype=torch.promote_types(y.dtype, torch.float32),
        device=y.device,
        generator=generator,
    )


def noisy_method(method: object, calculus: Calculus, noise: Noise) -> Method:
    """The method for a kind of equation; None: a default.

    Raises:
        TypeError, ValueError: it is no method, or does not solve equations of that kind.
    """
    for name, value, known in (("calculus", calculus, CALCULI), ("noise", noise, NOISES)):
        if value not in known:
            near = nearest(str(value), known)
            hint = f"; did you mean {near!r}?" if near else ""
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}{hint}")
    if method is None:
        if noise == "additive":
            return SOSRA()
        if calculus == "stratonovich":
            return Heun()
        return {"commutative": Milstein(), "general": Euler()}.get(noise, SOSRI())
    if isinstance(method, AutoSwitch):
        raise TypeError("method must be one method for stochastic equations, got AutoSwitch")
    (chosen,) = methods_of(method)
    if (calculus, noise) not in chosen.strong_orders:
        can = ", ".join(f"{n} noise of {c.capitalize()}" for c, n in chosen.strong_orders) or "no stochastic equations"
        others = [
            one.__name__
            for one in all_methods()
            if (calculus, noise) in one.strong_orders and not inspect.isabstract(one)
        ]
        raise ValueError(
            f"{type(chosen).__name__} solves {can}; for {noise} noise of {calculus.capitalize()} use "
            f"{' or '.join(f'{one}()' for one in sorted(others))}"
        )
    return chosen


def _flat(y0: State, noise: Noise) -> tuple[Structure | None, Tensor]:
    structure = structure_of(y0, False)
    flat = y0 if isinstance(y0, Tensor) else None
    if flat is None:
        assert structure is not None
        if noise not in {"diagonal", "additive"}:
            raise TypeError(f"y0 must be one tensor for {noise} noise, got {type(y0).__name__}")
        flat = structure.pack(leaves_of(y0))
    if flat.is_complex():
        raise TypeError("y0 must be real for stochastic equations; use torch.view_as_real(y0)")
    if not flat.ndim and noise != "diagonal":
        raise ValueError(f"y0 must have an axis for {noise} noise, got a 0-d tensor")
    return structure, flat
