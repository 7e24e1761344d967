"""The reversible Heun method, and gradients that reconstruct its steps instead of keeping them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .adjoint import Adjoint, Integrate
from .capture import Captured, Guarded
from .dynamics import Guard
from .method import Dynamics, Method, Slope, Step, Time, real_dtype, time_at
from .once import once
from .problem import InitialValueProblem
from .record import Status
from .replay import (
    Wanted,
    autocast_of,
    gradient_of_hits,
    gradient_of_outputs,
    piece_of,
    retake,
    same_conditions,
)
from .run import Run
from .runge_kutta import STRATONOVICH
from .stochastic import Driven


class ReversibleHeunStep(Step):
    """A step of `ReversibleHeun` from the state (y, z)."""

    def __init__(self, dynamics: Dynamics, t: Time, dt: Time, state: Tensor, slope: Slope) -> None:
        y, z = state.unbind(-1)
        dt, t, real = _lowered(dt, state), _lowered(t, state), real_dtype(state)
        start, arrival = time_at(t, dt, 0.0, state), time_at(t, dt, 1.0, state)
        self.carried: tuple[Tensor, Tensor] | None = None
        if isinstance(dynamics, Driven):
            pair = slope if isinstance(slope, tuple) else dynamics.pair(start, z)
            self.start = dynamics.along(pair)
        else:
            self.start = slope if isinstance(slope, Tensor) else dynamics(start, z)
        self.h = dt.to(real) if isinstance(dt, Tensor) else dt
        self.begin = state
        after = 2 * y - z + self.start * self.h
        if isinstance(dynamics, Driven):
            self.carried = dynamics.pair(arrival, after)
            self.end = dynamics.along(self.carried)
        else:
            self.end = dynamics(arrival, after)
        self.y = torch.stack((y + (self.start + self.end) * (0.5 * self.h), after), -1)

    def slope(self) -> Slope:
        return self.end if self.carried is None else self.carried

    def error(self) -> Tensor | None:
        return (self.end - self.start) * (0.5 * self.h)

    def stiffness(self, samples: bool) -> Tensor | None:
        return None

    def at(self, theta: float | Tensor) -> Tensor:
        part = _lowered(theta, self.begin)
        part = part.to(real_dtype(self.begin)) if isinstance(part, Tensor) else part
        y, z = self.begin.unbind(-1)
        middle = y + (self.start + (self.end - self.start) * (0.5 * part)) * (part * self.h)
        return torch.stack((middle, z + (self.y[..., 1] - z) * part), -1)


def _lowered(length: Time, state: Tensor) -> Time:
    """What broadcasts to the state, as it broadcasts to the solution in it."""
    return length[..., 0] if isinstance(length, Tensor) and length.ndim >= state.ndim else length


@dataclass(frozen=True)
class ReversibleHeun(Method):
    """The reversible Heun method, order 2, with embedded Euler: its steps can be taken back exactly.

    The state is (y, z) on a new last axis, where z is a second approximation of the solution:
    z1 = 2 y0 - z0 + f(t0, z0) dt, y1 = y0 + (f(t0, z0) + f(t1, z1)) dt / 2; one evaluation a step. It is stable on a
    piece of the imaginary axis only: for long or damped problems its two solutions drift apart. For stochastic
    equations it is that of Stratonovich, strong order 1 for noise that commutes, 0.5 for general noise.

    Source: Kidger, Foster, Li and Lyons 2021, "Efficient and accurate gradients for neural SDEs", Alg. 1.
    """

    strong_orders = STRATONOVICH
    carries_noise = True

    @property
    def order(self) -> int:
        return 2

    @property
    def dense_order(self) -> int:
        return 2

    @property
    def error_order(self) -> int | None:
        return 1

    @property
    def stability_size(self) -> float | None:
        return 0.0

    @property
    def has_stiffness(self) -> bool:
        return False

    def step(self, dynamics: Dynamics, t: Time, dt: Time, y: Tensor, slope: Slope = None) -> ReversibleHeunStep:
        return ReversibleHeunStep(dynamics, t, dt, y, slope)

    def lift(self, y: Tensor) -> Tensor:
        return torch.stack((y, y), -1)

    def lower(self, state: Tensor) -> Tensor:
        return state[..., 0]


@dataclass(frozen=True)
class Reversible(Adjoint):
    """Take the steps of `ReversibleHeun` back one by one: memory for one state, however many steps.

    The gradients of `Direct` to rounding, error estimates included, for one evaluation and its gradient a step. The
    states are not kept: `steps.y` is empty, (0, *y0), and the solution has no values between the ts, nor steps to take
    again. They cannot be differentiated again.

    Source: Kidger, Foster, Li and Lyons 2021, "Efficient and accurate gradients for neural SDEs", Alg. 2.
    """

    def run(self, problem: InitialValueProblem, integrate: Integrate, captured: Captured) -> Run:
        if len(problem.methods) > 1 or not isinstance(problem.method, ReversibleHeun):
            names = " and ".join(type(one).__name__ for one in problem.methods)
            raise ValueError(
                f"Reversible needs method=ReversibleHeun(), got {names}; adjoint=Checkpointed() takes any method"
            )
        if problem.samples:
            raise ValueError(
                "Reversible needs steps that all samples share, got per_sample=True: use adjoint=Checkpointed()"
            )
        if problem.jumps and problem.ts.requires_grad:
            raise ValueError(
                "Reversible has no gradients of ts where the field jumps: use ts that require none, or Checkpointed()"
            )
        box: list[Run] = []
        ys, at_hits, *columns = _Reverse.apply(  # type: ignore[no-untyped-call]
            problem, integrate, box, captured, problem.ts, problem.y0, *captured.tensors
        )
        steps = box[0].steps
        ratio, error = (*columns, None, None)[:2] if steps.ratio is not None else (None, (*columns, None)[0])
        ys = torch.cat([problem.y0[None], ys[1:]])
        return replace(box[0], steps=replace(steps, ratio=ratio, error=error), ys=ys, at_hits=at_hits)


class _Reverse(torch.autograd.Function):
    """(ts, y0, known tensors) -> (ys, at_hits, ratio, error), the last two where there are any."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: InitialValueProblem,
        integrate: Integrate,
        box: list[Run],
        captured: Captured,
        ts: Tensor,
        y0: Tensor,
        *known: Tensor,
    ) -> tuple[Tensor, ...]:
        run = integrate()
        if run.random and any(ctx.needs_input_grad):
            raise ValueError(
                "Reversible needs a field without random numbers, to take its steps back: put layers such as Dropout "
                "in eval mode, or use adjoint=Checkpointed()"
            )
        last = _end_of(problem, run)
        steps = replace(run.steps, y=run.steps.y.new_empty((0, *y0.shape)))
        box.append(replace(run, steps=steps))
        empty = y0.new_empty(0)
        bare = replace(steps, ratio=None, error=None, stiffness=None)
        ctx.run = replace(run, steps=bare, ys=empty, at_hits=empty, last=empty)
        ctx.problem, ctx.autocast, ctx.captured = problem, autocast_of(y0.device), captured
        ctx.rated = steps.ratio is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(ts, last, *known)
        return run.ys, run.at_hits, *(one for one in (steps.ratio, steps.error) if one is not None)

    @staticmethod
    @once
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ts, last, *known = ctx.saved_tensors
        needs = ctx.needs_input_grad
        clock = ts.detach().requires_grad_(needs[4])
        problem = ctx.problem.over(ts=clock, y0=last)
        ratio, error = (*gradients[2:], None, None)[:2] if ctx.rated else (None, (*gradients[2:], None)[0])
        asked = _Asked(problem, ctx.run, gradients[0], gradients[1], ratio, error)
        wanted = [one for one, need in zip(known, needs[6:], strict=True) if need]
        guard = partial(Guarded, known=(clock, *known), differentiating=ctx.captured.differentiating)
        back = _Back(problem, ctx.run, asked, guard, wanted, ctx.captured.shared)
        with same_conditions(problem, ctx.autocast):
            back.pull(last)
        sums = iter(back.sums)
        to_known = [next(sums) if need else None for need in needs[6:]]
        return None, None, None, None, back.clock if needs[4] else None, back.state, *to_known


def _end_of(problem: InitialValueProblem, run: Run) -> Tensor:
    """The state at the end of the last step, also where an event cut it short."""
    count = len(run.steps)
    if not count or int(run.status[0]) != Status.EVENT:
        return run.last
    return retake(problem, run.steps, count - 1, run.steps.y[count - 1]).y


@dataclass(frozen=True, eq=False)
class _Asked:
    """Which values within the steps have gradients."""

    problem: InitialValueProblem
    run: Run
    ys: Tensor | None
    at_hits: Tensor | None
    ratio: Tensor | None
    error: Tensor | None

    def concerns(self, i: int) -> bool:
        """Whether anything within the i-th step has a gradient."""
        if self.ratio is not None or self.error is not None or self.at_hits is not None:
            return True
        return self.ys is not None and self.run.rounds[i] > 0

    def pull(self, i: int, step: Step, inputs: list[Tensor]) -> list[Tensor | None]:
        """The gradients of what is asked of the i-th step with respect to the inputs."""
        problem, run = self.problem, self.run
        asks = Wanted(
            self.ratio is not None, self.error is not None, False, self.ys is not None, self.at_hits is not None
        )
        with torch.enable_grad():
            piece = piece_of(problem, run, i, step, asks, inputs[0])
        to_ys = None if self.ys is None or piece.ys is None else gradient_of_outputs(problem, run, i, self.ys)
        to_hits = None if self.at_hits is None else gradient_of_hits(problem, run, i, self.at_hits)
        pairs = [(piece.ys, to_ys), (piece.at_hits, to_hits)]
        for value, column in ((piece.ratio, self.ratio), (piece.error, self.error)):
            if value is not None and column is not None:
                pairs.append((value, column[i].reshape(value.shape)))
        live = [(out, g) for out, g in pairs if out is not None and g is not None]
        if not live:
            return [None] * len(inputs)
        outs, gs = zip(*live, strict=True)
        return list(torch.autograd.grad(outs, inputs, gs, allow_unused=True))


@dataclass(frozen=True, eq=False)
class _Taped:
    """An evaluation of the dynamics with its graph."""

    z: Tensor
    outs: tuple[Tensor, ...]  # the slope, or drift and diffusion


class _Back:
    """Steps taken back, with the gradients of their states (y, z) and of the slopes that they share."""

    def __init__(
        self,
        problem: InitialValueProblem,
        run: Run,
        asked: _Asked,
        guard: Guard,
        wanted: list[Tensor],
        shared: bool,
    ) -> None:
        self.problem, self.run, self.asked = problem, run, asked
        self.guard, self.wanted, self.shared = guard, wanted, shared
        self.origin: list[Tensor] = [problem.ts] if problem.ts.requires_grad else []
        self.clock = torch.zeros_like(problem.ts)
        self.sums: list[Tensor | None] = [None] * len(wanted)
        self.state: Tensor | None = None

    def pull(self, state: Tensor) -> None:
        """Go back from the end of the last step to the start of the first."""
        steps = self.run.steps
        to_y = to_z = torch.zeros_like(state[..., 0])
        to_end: tuple[Tensor, ...] | None = None  # the gradient of what was evaluated at the state
        landings = set(self.problem.jumps.values())
        taped: _Taped | None = None  # what was evaluated at the state
        for i in reversed(range(len(steps))):
            t, dt = float(steps.t[i, 0]), float(steps.dt[i, 0])
            y, z = state.unbind(-1)
            dynamics = self.problem.dynamics.again(t, t + dt, self.guard)
            end = self._evaluate(dynamics, t + dt, z) if taped is None else taped
            last = _along(dynamics, end)
            before = 2 * y - z - last * dt
            begin = self._evaluate(dynamics, t, before)
            first = _along(dynamics, begin)
            start = torch.stack((y - (first + last) * (0.5 * dt), before), -1)
            more = self._within(i, start, first, last)
            to_end = _sum(to_end, _pulled(dynamics, to_y * (0.5 * dt) + _or_zero(more[2], to_y)))
            to_z = to_z + self._through(end, to_end)
            own = _or_zero(more[0], start)
            to_end = _pulled(dynamics, to_y * (0.5 * dt) + to_z * dt + _or_zero(more[1], to_y))
            to_y, to_z = to_y + 2 * to_z + own[..., 0], own[..., 1] - to_z
            state, taped = start, begin
            if t in landings or i == 0:  # the slope is of this step alone
                to_z = to_z + self._through(begin, to_end)
                to_end = taped = None
        self.state = torch.stack((to_y, to_z), -1)

    def _evaluate(self, dynamics: Dynamics, t: float, z: Tensor) -> _Taped:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            zero = self.problem.ts[0] - self.problem.ts[0].detach()
            time = (zero + t).to(real_dtype(z))
            outs = dynamics.pair(time, z) if isinstance(dynamics, Driven) else (dynamics(time, z),)
        return _Taped(z, outs)

    def _through(self, at: _Taped, gradients: tuple[Tensor, ...]) -> Tensor:
        """Pull the gradients of what was evaluated back to z, and add up what reaches clock and known tensors."""
        live = [(out, g.sum_to_size(out.shape).to(out.dtype)) for out, g in zip(at.outs, gradients, strict=True)]
        live = [(out, g) for out, g in live if out.requires_grad]
        if not live:
            return torch.zeros_like(at.z)
        inputs = [at.z, *self.origin, *self.wanted]
        outs, gs = zip(*live, strict=True)
        to_z, *rest = torch.autograd.grad(outs, inputs, gs, allow_unused=True, retain_graph=self.shared)
        self._add_to_clock(rest[: len(self.origin)])
        added = zip(self.sums, rest[len(self.origin) :], strict=True)
        self.sums = [one if total is None else total if one is None else total + one for total, one in added]
        return _or_zero(to_z, at.z)

    def _within(self, i: int, start: Tensor, begin: Tensor, end: Tensor) -> list[Tensor | None]:
        """Gradients, from values within the i-th step, of its first state and of the slopes at its ends."""
        if not self.asked.concerns(i):
            return [None, None, None]
        steps = self.run.steps
        with torch.enable_grad():
            state, first, second = (one.detach().requires_grad_() for one in (start, begin, end))
            t = self.problem.ts.detach()[0]  # unused: the slopes are known
            step = ReversibleHeunStep(lambda t, z: second, t, float(steps.dt[i, 0]), state, first)
        to_state, to_first, to_second, *rest = self.asked.pull(i, step, [state, first, second, *self.origin])
        self._add_to_clock(rest)
        return [to_state, to_first, to_second]

    def _add_to_clock(self, gradients: Sequence[Tensor | None]) -> None:
        for one in gradients:
            self.clock = self.clock if one is None else self.clock + one


def _along(dynamics: Dynamics, at: _Taped) -> Tensor:
    """The slope of a step, from what was evaluated at one of its ends."""
    values = tuple(out.detach() for out in at.outs)
    return dynamics.along((values[0], values[1])) if isinstance(dynamics, Driven) else values[0]


def _pulled(dynamics: Dynamics, to_slope: Tensor) -> tuple[Tensor, ...]:
    """A gradient of that slope, pulled back to what was evaluated."""
    return dynamics.pulled(to_slope) if isinstance(dynamics, Driven) else (to_slope,)


def _sum(total: tuple[Tensor, ...] | None, more: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return more if total is None else tuple(a + b for a, b in zip(total, more, strict=True))


def _or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient
