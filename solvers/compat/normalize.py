"""From the arguments of torchdiffeq's functions to a request, with torchdiffeq's complaints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..controller import Norm, rms
from ..warn import warn_user
from .methods import SOLVERS
from .request import CALLBACKS, Callbacks, FlatCondition, FlatField, Leaves, Request, Solver

Tolerance = Any  # a number, a tensor, or one of these for each tensor of a tuple state


def mixed_norm(leaves: tuple[Tensor, ...]) -> Any:
    """The largest root mean square of several tensors; 0 of none."""
    return max((rms(leaf) for leaf in leaves), default=0.0)


def solver_of(method: str | None) -> Solver:
    """The solver of a name; dopri5 where there is none.

    Raises:
        ValueError: no such name.
    """
    name = "dopri5" if method is None else method
    if name not in SOLVERS:
        names = '", "'.join(SOLVERS)
        raise ValueError(f'Invalid method "{method}". Must be one of {{"{names}"}}.')
    return SOLVERS[name]


def leaves_of(y0: Any) -> tuple[Leaves | None, Tensor]:
    """How the state lies in one tensor, and that tensor; mixed dtypes are promoted to one.

    Raises:
        AssertionError: neither a tensor nor a tuple.
    """
    if isinstance(y0, Tensor):
        return None, y0
    if not isinstance(y0, tuple):
        raise AssertionError(f"y0 must be either a torch.Tensor or a tuple, got {type(y0).__name__}")
    leaves = Leaves(tuple(leaf.shape for leaf in y0))
    return leaves, leaves.pack(y0)


def request_of(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    rtol: Tolerance,
    atol: Tolerance,
    method: str | None,
    options: Mapping[str, Any] | None,
    event_fn: Callable[..., Tensor] | None,
) -> tuple[Solver, Leaves | None, Request]:
    """Check a call of odeint.

    Raises:
        ValueError: the method is unknown, or t has not two times in event mode.
        TypeError: t is not floating point.
        AssertionError: anything else that does not fit, as torchdiffeq has it.
    """
    if event_fn is not None and len(t) != 2:
        raise ValueError(
            f"t must have two entries with an event_fn, the start and the direction, got len(t) = {len(t)}"
        )
    leaves, flat = leaves_of(y0)
    rtol, atol = (_tolerance(name, tol, flat, leaves) for name, tol in (("rtol", rtol), ("atol", atol)))
    solver = solver_of(method)
    chosen = dict(options or {})
    norm = _norm(chosen.pop("norm", None), leaves)
    require_times(t)
    if t.device != flat.device:
        warn_user(f"t lies on {t.device} and y0 on {flat.device}: t is moved there")
        t = t.to(flat.device)
    condition = None if event_fn is None else FlatCondition(event_fn, t[0], y0, leaves)
    request = Request(
        field=FlatField(func, leaves),
        y0=flat,
        t=t,
        rtol=rtol,
        atol=atol,
        norm=norm,
        options=solver.known(chosen),
        callbacks=_callbacks(func, leaves, solver, method or "dopri5"),
        condition=condition,
    )
    return solver, leaves, request


def require_times(t: Tensor) -> None:
    """Raise unless t is a strictly monotone, one-dimensional, floating point tensor.

    Raises:
        TypeError, AssertionError: as torchdiffeq has them.
    """
    if not isinstance(t, Tensor):
        raise AssertionError(f"t must be a torch.Tensor, got {type(t).__name__}")
    if not t.is_floating_point():
        raise TypeError(f"`t` must be a floating point Tensor but is a {t.type()}")
    if t.ndim != 1:
        raise AssertionError(f"t must be one dimensional, got shape {tuple(t.shape)}")
    change = t.detach().diff()
    if not bool((change > 0).all() or (change < 0).all()):
        raise AssertionError(f"t must be strictly increasing or decreasing, got {t.tolist()}")


def _tolerance(name: str, tol: Tolerance, y: Tensor, leaves: Leaves | None) -> float | Tensor:
    """One tolerance for all, or one for each entry of the flat state."""
    if isinstance(tol, Tensor) and tol.requires_grad:
        raise AssertionError(f"{name} cannot require gradient")
    if leaves is not None and (isinstance(tol, (tuple, list)) or (isinstance(tol, Tensor) and tol.ndim)):
        if len(tol) != len(leaves.shapes):
            raise AssertionError(f"{name} must have one entry for each of {len(leaves.shapes)} tensors, got {len(tol)}")
        parts = [torch.as_tensor(one, device=y.device).expand(n) for one, n in zip(tol, leaves.sizes, strict=True)]
        return torch.cat(parts).to(y.dtype.to_real())
    if isinstance(tol, Tensor) and tol.ndim:
        return tol.to(y.device, y.dtype.to_real())
    return float(tol)


def _norm(norm: Callable[[Any], Any] | None, leaves: Leaves | None) -> Norm:
    """The norm of the flat state; the user's own takes the state as the user knows it."""
    if leaves is None:
        return norm or rms
    of_leaves = norm or mixed_norm

    def of_flat(flat: Tensor) -> Tensor:
        return torch.as_tensor(of_leaves(leaves.unpack(flat))).abs()

    return of_flat


def _callbacks(func: object, leaves: Leaves | None, solver: Solver, method: str) -> Callbacks:
    found = {name: getattr(func, name, None) for name in CALLBACKS}
    invalid = {name for name, callback in found.items() if callback is not None} - set(solver.callbacks)
    if invalid:
        warn_user(f"Solver '{method}' does not support callbacks {invalid}")
    served = [found[name] if name in solver.callbacks else None for name in CALLBACKS]
    return Callbacks(served[0], served[1], served[2], leaves)
