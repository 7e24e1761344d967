"""Checks of what comes in at the public face, and the choices that it leaves open."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .controller import PI, Adaptive, Controller, Fixed
from .dynamics import Dynamics, State, leaves_of, structure_of
from .event import Event
from .method import Method, real_dtype
from .problem import InitialValueProblem
from .switch import AutoSwitch
from .warn import warn_user

_warned: set[torch.dtype] = set()


def problem_of(
    field: Callable[..., Any],
    y0: State,
    ts: Tensor | Sequence[float],
    method: Method | AutoSwitch,
    controller: Controller | None,
    per_sample: bool,
    rtol: float | Tensor,
    atol: float | Tensor,
    args: Sequence[Any],
    events: Sequence[Event],
    stops: Sequence[float],
    jumps: Sequence[float],
    max_steps: int,
) -> InitialValueProblem:
    """The problem that the arguments of `odeint` describe.

    Raises:
        TypeError, ValueError: an argument does not fit; it is named.
    """
    require_callable("field", field)
    methods = methods_of(method)
    if jumps:
        _require_within(methods)
    structure = structure_of(y0, per_sample)
    flat = y0 if isinstance(y0, Tensor) else None
    if flat is None:
        assert structure is not None
        flat = structure.pack(leaves_of(y0))
    if per_sample and not flat.ndim:
        raise ValueError("y0 must have a batch on axis 0 for per_sample steps, got a 0-d tensor")
    require_finite(flat)
    times = times_of(ts, flat, per_sample)
    controller = controller_of(controller, methods[0])
    if isinstance(controller, Fixed) and len(methods) > 1:
        raise ValueError("AutoSwitch needs an adaptive controller such as PI(), got Fixed")
    if len(methods) > 1 and per_sample:
        raise ValueError("AutoSwitch decides for the whole batch: use per_sample=False, or one stiff method")
    require_sequences(args=args, events=events)
    for event in events:
        if not isinstance(event, Event):
            raise TypeError(f"events must be Event objects, got {type(event).__name__}")
    require_max_steps(max_steps)
    time_dtype = real_dtype(flat)
    forced = forced_times(stops, jumps, times, time_dtype)
    return InitialValueProblem(
        dynamics=Dynamics(field, tuple(args), structure, time_dtype),
        y0=methods[0].lift(flat),
        ts=times,
        methods=methods,
        switch=method if isinstance(method, AutoSwitch) else None,
        controller=controller,
        rtol=tolerance_of("rtol", rtol, flat),
        atol=tolerance_of("atol", atol, flat),
        samples=per_sample,
        max_steps=max_steps,
        stops=tuple(forced),
        jumps={before: after for before, after in forced.items() if after != before},
        events=tuple(events),
    )


def require_callable(name: str, field: object) -> None:
    """Raise TypeError unless a field can be called."""
    if not callable(field):
        raise TypeError(f"{name} must be callable as {name}(t, y, *args), got {type(field).__name__}")


def require_finite(y0: Tensor) -> None:
    """Raise ValueError unless all entries of a state are finite."""
    if not bool(y0.detach().isfinite().all()):
        raise ValueError("y0 must be finite, got NaN or infinity in it")


def require_max_steps(max_steps: object) -> None:
    """Raise ValueError unless it is a number of steps."""
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps <= 0:
        raise ValueError(f"max_steps must be an integer > 0, got {max_steps!r}")


def _require_within(methods: tuple[Method, ...]) -> None:
    for method in methods:
        if method.reach > 1:
            name = type(method).__name__
            raise ValueError(f"{name} evaluates the field beyond the end of a step, over a jump: use another method")


def methods_of(method: object) -> tuple[Method, ...]:
    """The method, or the two that switch.

    Raises:
        TypeError: it is no method; a near name is suggested.
    """
    if isinstance(method, AutoSwitch):
        return (method.nonstiff, method.stiff)
    if isinstance(method, Method):
        return (method,)
    got = method.__name__ if isinstance(method, type) else repr(method)
    near = nearest(got.strip("'"), [one.__name__ for one in all_methods()])
    raise TypeError(
        f"method must be a Method such as Tsit5(), got {got}" + (f"; did you mean {near}()?" if near else "")
    )


def all_methods() -> list[type[Method]]:
    """Every class of methods that is loaded."""
    found, pending = list[type[Method]](), [Method]
    while pending:
        pending.extend(pending.pop().__subclasses__())
        found.extend(pending[-1:])
    return found


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The name that was probably meant."""
    close = difflib.get_close_matches(name.lower(), [one.lower() for one in names], 1, 0.5)
    return next(one for one in names if one.lower() == close[0]) if close else None


def require_sequences(**given: object) -> None:
    """Raise TypeError unless each is a list or tuple."""
    for name, value in given.items():
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError(f"{name} must be a list or tuple, got {type(value).__name__}; put a single one in a list")


def controller_of(controller: Controller | None, method: Method, other: str = "Tsit5()") -> Controller:
    """The controller, or the default for a method; raises where the two do not go together."""
    if controller is None:
        return Fixed() if method.error_order is None else PI()
    if not isinstance(controller, (Adaptive, Fixed)):
        raise TypeError(f"controller must be PI(), I(), PID() or Fixed(step), got {controller!r}")
    if isinstance(controller, Adaptive) and method.error_order is None:
        raise ValueError(
            f"{type(method).__name__} has no error estimate to adapt to: use controller=Fixed(step), or a method that "
            f"has one, such as {other}"
        )
    return controller


def times_of(ts: Tensor | Sequence[float], y: Tensor, per_sample: bool) -> Tensor:
    """The times in float64 on the device of y; raises unless they are in order."""
    times = ts if isinstance(ts, Tensor) else _stacked(ts)
    if times.is_complex() or times.dtype == torch.bool:
        raise TypeError(f"ts must be real, got {times.dtype}")
    times = times.to(y.device, torch.float64)
    wanted = "(T,)" if not per_sample else f"(T,) or (T, {y.shape[0]})"
    if times.ndim != 1 and not (per_sample and times.ndim == 2 and times.shape[1] == y.shape[0]):
        raise ValueError(f"ts must have shape {wanted}, got {tuple(times.shape)}")
    if not times.shape[0]:
        raise ValueError("ts must hold at least one time, got none")
    values = times.detach().cpu()
    if not bool(values.isfinite().all()):
        raise ValueError("ts must be finite, got NaN or infinity in it")
    change = values.diff(dim=0)
    if not bool((change > 0).all() or (change < 0).all()):
        raise ValueError(f"ts must be strictly increasing or strictly decreasing, got {values.tolist()}")
    return times


def _stacked(ts: Sequence[float]) -> Tensor:
    if any(isinstance(t, Tensor) for t in ts):
        return torch.stack([torch.as_tensor(t, dtype=torch.float64) for t in ts])
    return torch.tensor(ts, dtype=torch.float64)


def tolerance_of(name: str, value: float | Tensor, y: Tensor) -> float | Tensor:
    """A tolerance, as a tensor in the real dtype of y where it is one; raises unless it is > 0 and fits."""
    if isinstance(value, Tensor):
        value = value.to(y.device, real_dtype(y))
        try:
            value.expand(y.shape)
        except RuntimeError:
            raise ValueError(f"{name} must broadcast to y, {tuple(y.shape)}, got {tuple(value.shape)}") from None
        least = value > 0 if name == "rtol" else value >= 0
        if not bool((least & value.isfinite()).all()):
            raise ValueError(f"{name} must be finite and {'>' if name == 'rtol' else '>='} 0 everywhere")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and > 0, got {value}")
    eps = torch.finfo(y.dtype).eps
    if name == "rtol" and value < eps and y.dtype not in _warned:
        _warned.add(y.dtype)
        warn_user(
            f"rtol {value} is below the resolution of {y.dtype}, {eps:.1e}: the error estimates are rounding errors"
        )
    return float(value)


def forced_times(
    stops: Sequence[float], jumps: Sequence[float], ts: Tensor, time_dtype: torch.dtype
) -> dict[float, float]:
    """Times at which a step must end -> the time at which the next begins: beyond a jump, in the field's clock."""
    for name, times in (("stops", stops), ("jumps", jumps)):
        try:
            finite = all(math.isfinite(t) for t in times)
        except TypeError:
            raise TypeError(f"{name} must be a list of times, got {times!r}; put a single one in a list") from None
        if not finite:
            raise ValueError(f"{name} must be finite, got {list(times)}")
    forced = {float(t): float(t) for t in stops}
    ends = ts[[0, -1]].detach().cpu().reshape(2, -1)
    forward = bool(ends[1, 0] > ends[0, 0])
    clock = torch.finfo(time_dtype)
    rounding = 4 * torch.finfo(torch.float64).eps * float(ends.abs().max())  # of a start and a length to an end
    for jump in jumps:
        gap = (1 if forward else -1) * max(2 * abs(float(jump)) * clock.eps + rounding, clock.tiny)
        forced[float(jump) - gap] = float(jump) + gap
    low, high = float(ends.min()), float(ends.max())
    inside = {t: after for t, after in forced.items() if low < t < high and low < after < high}
    return dict(sorted(inside.items(), reverse=not forward))
