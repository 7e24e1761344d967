"""torchdiffeq's adjoint: state, its gradient and those of the parameters, integrated backwards between two times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..controller import Norm
from ..warn import warn_user
from .normalize import Tolerance, mixed_norm, request_of
from .request import CALLBACKS, Leaves, Request, Solver

once: Callable[..., Any] = once_differentiable
PartsNorm = Callable[[tuple[Tensor, ...]], Any]  # of (gradient of t, y, gradient of y, *gradients of parameters)


@dataclass(frozen=True, eq=False)
class Backward:
    """How to integrate backwards."""

    rtol: Tolerance
    atol: Tolerance
    method: str | None
    options: dict[str, Any]  # its norm may be changed until then, as torchdiffeq's may
    callbacks: Mapping[str, Callable[..., object]]


def parameters_of(func: object) -> tuple[Tensor, ...]:
    """The parameters of a module, also where it is a replica of DataParallel, which has them as plain attributes.

    Raises:
        ValueError: not a module.
    """
    if not isinstance(func, nn.Module):
        raise ValueError(
            f"func must be an nn.Module, whose parameters get gradients, got {type(func).__name__}; "
            f"else pass adjoint_params, () if there are none"
        )
    if not getattr(func, "_is_replica", False):
        return tuple(func.parameters())
    held = (vars(module).values() for module in func.modules())
    return tuple(one for values in held for one in values if isinstance(one, Tensor) and one.requires_grad)


def with_gradient(params: Sequence[Tensor], options: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Those parameters that require a gradient; warns where a norm was made for all of them."""
    kept = tuple(one for one in params if one.requires_grad)
    if len(kept) < len(params) and callable(options.get("norm")):
        warn_user(
            f"{len(params) - len(kept)} of {len(params)} adjoint parameters do not require a gradient: they are left "
            f"out of the adjoint, and the norm of adjoint_options does not get them"
        )
    return kept


def parts_norm(norm: Any, state_norm: Norm, leaves: Leaves | None) -> PartsNorm:
    """The norm of the augmented state: the one that was given, or the largest of the norms of its parts."""
    if norm is None or norm == "seminorm":

        def default(parts: tuple[Tensor, ...]) -> Any:
            t, y, adjoint, *params = parts
            largest = max(t.abs(), state_norm(y), state_norm(adjoint))
            return largest if norm else max(largest, mixed_norm(tuple(params)))

        return default
    if leaves is None:
        return norm  # type: ignore[no-any-return]

    def of_leaves(parts: tuple[Tensor, ...]) -> Any:
        t, y, adjoint, *params = parts
        return norm((t, *leaves.unpack(y), *leaves.unpack(adjoint), *params))

    return of_leaves


def parts_tolerance(tolerance: Tolerance, request_tolerance: float | Tensor, y: Tensor, params: int) -> Tolerance:
    """A tolerance of the state, one number or one for each entry, as one for the parts of the augmented state."""
    if not isinstance(request_tolerance, Tensor):
        return tolerance
    entries, least = request_tolerance.expand(y.shape).reshape(-1), float(request_tolerance.min())
    return (least, entries, entries, *[least] * params)


def callbacks_of(func: object) -> dict[str, Callable[..., object]]:
    """What the field wants to be told of the way back."""
    found = {name: getattr(func, f"{name}_adjoint", None) for name in CALLBACKS}
    return {name: callback for name, callback in found.items() if callback is not None}


class Augmented:
    """(gradient of t, y, gradient of y, gradients of the parameters) and how they change in time."""

    def __init__(self, request: Request, params: tuple[Tensor, ...], clock: bool, backward: Backward) -> None:
        self.field, self.dtype, self.params, self.clock = request.field, request.y0.dtype, params, clock
        for name, callback in backward.callbacks.items():
            setattr(self, name, callback)

    def __call__(self, t: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            moment = t.detach().requires_grad_(self.clock)
            y = parts[1].detach().to(self.dtype).requires_grad_()
            slope = self.field(moment, y)
        inputs = (*([moment] if self.clock else []), y, *self.params)
        if slope.requires_grad:
            found = torch.autograd.grad(
                slope, inputs, -parts[2].to(self.dtype), retain_graph=True, allow_unused=True, materialize_grads=True
            )
        else:
            found = tuple(torch.zeros_like(one) for one in inputs)
        to_t = found[0] if self.clock else torch.zeros_like(moment)
        return (to_t, slope.detach(), *found[1 if self.clock else 0 :])


class Adjoint(torch.autograd.Function):
    """(t, y0, parameters) -> the states at t; in event mode the time of the event and the states there."""

    @staticmethod
    def forward(
        ctx: Any, solver: Solver, request: Request, backward: Backward, t: Tensor, y0: Tensor, *params: Tensor
    ) -> Any:
        ctx.request, ctx.backward = replace(request, t=t.detach(), y0=y0.detach()), backward
        ctx.adjoint_options = backward.options
        if request.condition is None:
            ys = solver.trajectory(ctx.request)
            ctx.save_for_backward(t, ys, *params)
            return ys
        event_t, ys = solver.until_event(ctx.request)
        ctx.save_for_backward(torch.stack([t[0], event_t]), ys, *params)
        return event_t, ys

    @staticmethod
    @once
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        t, ys, *params = ctx.saved_tensors
        clock = ctx.needs_input_grad[3]
        way = _Way(ctx.request, replace(ctx.backward, options=ctx.adjoint_options), tuple(params), clock)
        to_t, to_y0, to_params = way.back(t, ys, gradients[-1])
        if clock and ctx.request.condition is not None:
            to_t = torch.stack([to_t[0], torch.zeros_like(to_t[1])])  # the event is where it is whatever t[1] says
        return None, None, None, to_t if clock else None, to_y0, *to_params


class _Way:
    """The way back from the last time to the first."""

    def __init__(self, request: Request, backward: Backward, params: tuple[Tensor, ...], clock: bool) -> None:
        self.request, self.how, self.clock = request, backward, clock
        self.func = Augmented(request, params, clock, backward)
        self.params = params

    def back(self, t: Tensor, ys: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Gradients of t, y0 and the parameters from that of the states."""
        to_t = torch.zeros_like(t)
        zero = ys.new_zeros((), dtype=ys.dtype.to_real())
        parts = [zero, ys[-1], gradient[-1], *(torch.zeros_like(one) for one in self.params)]
        for i in range(len(t) - 1, 0, -1):
            if self.clock:
                slope = self.request.field(t[i], ys[i])
                to_t[i] = torch.vdot(gradient[i].reshape(-1), slope.reshape(-1)).real
                parts[0] = parts[0] - to_t[i]
            if bool(t[i] != t[i - 1]):
                parts = self._leg(t[i], t[i - 1], tuple(parts))
            parts[1], parts[2] = ys[i - 1], parts[2].to(gradient.dtype) + gradient[i - 1]
        if self.clock:
            to_t[0] = _like(parts[0], to_t)
        return to_t, parts[2], [_like(one, param) for one, param in zip(parts[3:], self.params, strict=True)]

    def _leg(self, start: Tensor, end: Tensor, parts: tuple[Tensor, ...]) -> list[Tensor]:
        how = self.how
        times = torch.stack([start, end])
        solver, leaves, request = request_of(self.func, parts, times, how.rtol, how.atol, how.method, how.options, None)
        assert leaves is not None
        return list(leaves.unpack(solver.trajectory(request)[-1]))


def _like(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient of x from a state whose dtype is another: that of a real number is real."""
    return (gradient.real if gradient.is_complex() and not x.is_complex() else gradient).to(x.dtype)
