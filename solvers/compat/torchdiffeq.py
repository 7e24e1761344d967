"""torchdiffeq 0.2.5's functions over our solvers: change the import, keep the code.

Steps, decisions and evaluations are those of torchdiffeq. What differs: values between steps come from the methods'
own dense output, not from a quartic fit (dopri8 evaluates the field for it); time is always kept in float64;
gradients do not flow through the choice of the first step; a step reaches out to a `step_t` or `jump_t` that is just
beyond it, and is not shortened after one; the parameters of an event function get their gradient too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..untraced import untraced
from .adaptive import AdaptiveSolver
from .adjoint import (
    Adjoint,
    Backward,
    callbacks_of,
    parameters_of,
    parts_norm,
    parts_tolerance,
    with_gradient,
)
from .dense import DenseOutput
from .events import linked
from .normalize import Tolerance, leaves_of, request_of
from .request import FlatCondition, FlatField

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]

Options = Mapping[str, Any]


@untraced
def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Tolerance = 1e-7,
    atol: Tolerance = 1e-9,
    method: str | None = None,
    options: Options | None = None,
    event_fn: Callable[..., Tensor] | None = None,
) -> Any:
    """Solve dy/dt = func(t, y) from y(t[0]) = y0; gradients go through the steps, and can be taken again.

    Args:
        func: gives dy/dt, a tensor or a tuple as y is; its attributes callback_step, callback_accept_step and
            callback_reject_step are called as f(t0, y0, dt).
        y0: a tensor of any shape, or a tuple of tensors.
        t: times at which the solution is wanted, (T,), increasing or decreasing.
        rtol, atol: tolerances of the local error: a number, a tensor shaped as y, or one for each tensor of a tuple.
        method: dopri5 (the default), dopri8, tsit5, bosh3, fehlberg2, adaptive_heun; euler, midpoint, heun2, heun3,
            rk4, explicit_adams, implicit_adams (fixed_adams) on a grid; scipy_solver, which gives no gradients.
        options: of adaptive methods first_step, safety, ifactor, dfactor, max_num_steps (between two times),
            min_step, max_step, step_t, jump_t, norm, dtype (which has no effect: time is float64); on a grid
            step_size or grid_constructor(func, y0, t), interp ("linear", "cubic"), perturb; of Adams methods
            max_order, max_iters; of scipy_solver solver, min_step, max_step.
        event_fn: event_fn(t, y); the solve ends where it passes through zero, one of its entries if there are
            several. t must have two entries, of which the second says only in which direction to go.

    Returns:
        The solution, (T, *y0.shape), or a tuple of such; with an event_fn the time of the event, without gradient,
        and the states at the start and there.

    Raises:
        ValueError, TypeError, AssertionError: an argument does not fit.
        AssertionError: too many steps, or steps too short for the clock, or values that are not finite.
    """
    solver, leaves, request = request_of(func, y0, t, rtol, atol, method, options, event_fn)
    if request.condition is None:
        ys = solver.trajectory(request)
        return ys if leaves is None else leaves.unpack(ys)
    event_t, ys = solver.until_event(request)
    return event_t, ys if leaves is None else leaves.unpack(ys)


@untraced
def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Tolerance = 1e-7,
    atol: Tolerance = 1e-9,
    method: str | None = None,
    options: Options | None = None,
    event_fn: Callable[..., Tensor] | None = None,
    adjoint_rtol: Tolerance = None,
    adjoint_atol: Tolerance = None,
    adjoint_method: str | None = None,
    adjoint_options: Options | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """As `odeint`, with gradients of the continuous solution: memory for the states at t only.

    They reach y0, t and the parameters, and cannot be taken again. Its attributes callback_step_adjoint,
    callback_accept_step_adjoint and callback_reject_step_adjoint are called on the way back.

    Args:
        func, y0, t, rtol, atol, method, options, event_fn: as in `odeint`; func is a module, or adjoint_params are
            given.
        adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: of the way back; None: as on the way there, but
            for the norm, which is the largest of the norms of y, its gradient and those of the parameters. The norm
            "seminorm" leaves the parameters out; one of your own takes (gradient of t, *y, *gradients of y,
            *gradients of the parameters) as a tuple.
        adjoint_params: tensors that get gradients; None: the parameters of func.

    Raises:
        ValueError: func is no module, or adjoint_options are missing where the method changes; as `odeint` besides.

    Source: Chen et al. 2018, "Neural Ordinary Differential Equations", Alg. 1.
    """
    params = parameters_of(func) if adjoint_params is None else tuple(adjoint_params)
    way_back = method if adjoint_method is None else adjoint_method
    if way_back != method and options is not None and adjoint_options is None:
        raise ValueError(
            f"adjoint_options must be given with options where adjoint_method differs from method, got {way_back!r} "
            f"and {method!r}: the options of one method do not fit another; pass adjoint_options={{}} for its defaults"
        )
    if adjoint_options is None:
        adjoint_options = {key: value for key, value in (options or {}).items() if key != "norm"}
    params = with_gradient(params, adjoint_options)
    solver, leaves, request = request_of(func, y0, t, rtol, atol, method, options, event_fn)
    count = len(params)
    norm = parts_norm(adjoint_options.get("norm"), request.norm, leaves)
    back = Backward(
        rtol=parts_tolerance(rtol, request.rtol, request.y0, count) if adjoint_rtol is None else adjoint_rtol,
        atol=parts_tolerance(atol, request.atol, request.y0, count) if adjoint_atol is None else adjoint_atol,
        method=way_back,
        options={**adjoint_options, "norm": norm},
        callbacks=callbacks_of(func),
    )
    apply: Callable[..., Any] = Adjoint.apply
    found = apply(solver, request, back, request.t, request.y0, *params)
    if request.condition is None:
        return found if leaves is None else leaves.unpack(found)
    event_t, ys = found
    return event_t, ys if leaves is None else leaves.unpack(ys)


@untraced
def odeint_dense(
    func: Callable[..., Any],
    y0: Tensor,
    t0: Tensor,
    t1: Tensor,
    *,
    rtol: Tolerance = 1e-7,
    atol: Tolerance = 1e-9,
    method: str | None = None,
    options: Options | None = None,
) -> DenseOutput:
    """Solve from t0 to t1, and return the solution as a function of the time between them.

    Args:
        func, rtol, atol, options: as in `odeint`.
        y0: one tensor.
        t0, t1: first and last time, ().
        method: an adaptive one.

    Raises:
        AssertionError: y0 is no tensor or the method not adaptive; as `odeint` besides.
    """
    if not isinstance(y0, Tensor):
        raise AssertionError(f"y0 must be a tensor, got {type(y0).__name__}; odeint takes tuples")
    t = torch.stack([torch.as_tensor(t0).reshape(()), torch.as_tensor(t1).reshape(()).to(t0)])
    solver, _, request = request_of(func, y0, t, rtol, atol, method, options, None)
    if not isinstance(solver, AdaptiveSolver):
        raise AssertionError(f"odeint_dense needs an adaptive method such as dopri5, got {method}")
    return DenseOutput(request, list(solver.pieces(request)))


@untraced
def odeint_event(
    func: Callable[..., Any],
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Callable[..., Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Solve from t0 until event_fn(t, y) passes through zero, with gradients of that time.

    Args:
        func, y0: as in `odeint`.
        t0: the first time, ().
        event_fn: as in `odeint`; tensors that it holds get gradients too.
        reverse_time: whether to go backwards in time.
        odeint_interface: `odeint` or `odeint_adjoint`.
        kwargs: passed on to it.

    Returns:
        The time of the event, and the states at t0 and there, (2, *y0.shape) or a tuple of such.
    """
    start = t0.reshape(-1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    event_t, solution = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    leaves, _ = leaves_of(y0)
    parts: tuple[Tensor, ...] = (solution,) if leaves is None else solution
    last = solution[-1] if leaves is None else leaves.pack(part[-1] for part in parts)
    condition = FlatCondition(event_fn, start[0].detach(), y0, leaves)
    event_t, last = linked(FlatField(func, leaves), condition, event_t, last)
    ends = (last,) if leaves is None else leaves.unpack(last)
    joined = tuple(torch.cat([part[:-1], end[None]]) for part, end in zip(parts, ends, strict=True))
    return event_t, joined[0] if leaves is None else joined
