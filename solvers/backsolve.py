"""Gradients of the continuous solution: an augmented system integrated backwards in time."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .adjoint import Adjoint, Integrate
from .augmented import (
    Augmented,
    Field,
    MixedNorm,
    Parts,
    PartsNorm,
    Past,
    Point,
    Way,
    any_live,
    each,
    live_rows,
    spread_tolerance,
)
from .capture import Captured, Guarded
from .controller import Adaptive, Controller, Fixed, rms, rms_per_sample
from .dynamics import Dynamics
from .first_step import first_step
from .march import March
from .method import Method
from .once import once
from .problem import InitialValueProblem
from .record import ADVICE, Status
from .replay import autocast_of, same_conditions
from .run import Run
from .switch import AutoSwitch


@dataclass(frozen=True, eq=False)
class Continuous(Adjoint):
    """What the adjoints share that solve da/dt = -J^H a backwards; see `Backsolve`."""

    method: Method | AutoSwitch | None = None
    controller: Controller | None = None
    rtol: float | Tensor | None = None
    atol: float | Tensor | None = None
    seminorm: bool = False
    norm: PartsNorm | None = None
    params: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Tensor) and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be finite and > 0, got {value}; None takes that of the forward solve")
        if self.method is not None and not isinstance(self.method, (Method, AutoSwitch)):
            raise TypeError(f"method must be a Method such as Tsit5(), or None, got {self.method!r}")
        if self.controller is not None and not isinstance(self.controller, (Adaptive, Fixed)):
            raise TypeError(f"controller must be PI(), I(), PID(), Fixed(step) or None, got {self.controller!r}")
        if self.seminorm and self.norm is not None:
            raise ValueError("norm must be None with seminorm=True, which is a norm of its own; give one of the two")
        for one in self.params or ():
            if not isinstance(one, Tensor):
                raise TypeError(f"params must be tensors, got {type(one).__name__}")

    @abstractmethod
    def kept(self, run: Run) -> Tensor:
        """The states of the forward solve that the way back needs besides those at ts; empty where none."""

    @abstractmethod
    def past(self, problem: InitialValueProblem, run: Run) -> Past | None:
        """y(t) of the forward solve, whose `steps.y` is what was kept; None: it is integrated backwards."""

    @abstractmethod
    def require_fit(self, problem: InitialValueProblem) -> None:
        """Raise unless this adjoint can do the problem."""

    def run(self, problem: InitialValueProblem, integrate: Integrate, captured: Captured) -> Run:
        self.require_fit(problem)
        _controller(self, problem)
        once = {id(one): one for one in self.params or () if one.requires_grad}
        given = captured.tensors if self.params is None else tuple(once.values())
        box: list[Run] = []
        ys, at_hits, y = _Solve.apply(  # type: ignore[no-untyped-call]
            self, problem, integrate, box, captured, problem.ts, problem.y0, *given
        )
        return replace(box[0], steps=replace(box[0].steps, y=y), ys=ys, at_hits=at_hits)


@dataclass(frozen=True, eq=False)
class Backsolve(Continuous):
    """Integrate the state, its adjoint and the gradients backwards in time: memory for the states at ts only.

    The gradients are those of the continuous solution, to the tolerance of the backward solve, not those of the steps
    that were taken: `steps.error`, `.ratio` and `.stiffness` carry none. y is integrated backwards, which is unstable
    where the forward problem forgets its start, and is reset at each of the ts: use `Checkpointed` or `Interpolating`
    for stiff problems. They cannot be differentiated again.

    Args:
        method, controller, rtol, atol: of the backward solve; None: as in the forward one. Tensors broadcast to y.
        seminorm: whether the error norm ignores the gradients of parameters, on which nothing else depends.
        norm: from the scaled error, unpacked to (gradient of t, y, adjoint, *gradients of parameters), to its ratio,
            (). y and the adjoint come as one tensor each, packed where y0 is a tuple or dict; the gradient of t
            follows from the adjoint, has no error of its own and comes as 0. None: the largest of the root mean
            squares of the parts, or of the controller's own norm for y and the adjoint.
        params: the tensors with gradients besides y0 and ts, none computed from another; None: all that the field
            was seen to use.

    Source: Chen et al. 2018, "Neural Ordinary Differential Equations", Alg. 1; Kidger, Chen and Lyons 2021, "Hey,
    that's not an ODE" for the seminorm. The gradient of ts[0] is taken from the adjoint there, -a . f, not
    from an integral.
    """

    def kept(self, run: Run) -> Tensor:
        return run.steps.y.new_empty(0)

    def past(self, problem: InitialValueProblem, run: Run) -> Past | None:
        return None

    def require_fit(self, problem: InitialValueProblem) -> None:
        if problem.ts.ndim == 2 and problem.jumps:
            raise ValueError(
                "Backsolve needs one row of ts, (T,), where there are jumps, got (T, B): use Checkpointed()"
            )


class _Solve(torch.autograd.Function):
    """(ts, y0, known tensors) -> (ys, at_hits, steps.y)."""

    @staticmethod
    def forward(
        ctx: Any,
        adjoint: Continuous,
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
                f"{type(adjoint).__name__} needs a field without random numbers, as it meets other times on its way "
                f"back: put layers such as Dropout in eval mode, or use adjoint=Checkpointed()"
            )
        box.append(run)
        ctx.adjoint, ctx.problem, ctx.autocast = adjoint, problem, autocast_of(y0.device)
        ctx.captured = captured
        empty = y0.new_empty(0)
        steps = replace(run.steps, y=empty, ratio=None, error=None, stiffness=None)
        ctx.run = replace(run, steps=steps, ys=empty, at_hits=empty, last=empty)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(ts, run.ys, run.at_hits, adjoint.kept(run), run.last, *captured.tensors, *known)
        return run.ys, run.at_hits, run.steps.y

    @staticmethod
    @once
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ts, ys, at_hits, y, last, *tensors = ctx.saved_tensors
        known = tensors[len(ctx.captured.tensors) :]
        needs = ctx.needs_input_grad
        run = replace(ctx.run, steps=replace(ctx.run.steps, y=y), ys=ys, at_hits=at_hits, last=last)
        problem = ctx.problem.over(ts=ts.detach(), y0=ys[0].detach(), events=(), overshoot=False)
        wanted = tuple(one for one, need in zip(known, needs[7:], strict=True) if need)
        field = Guarded(problem.dynamics.evaluate, tuple(tensors), ctx.captured.differentiating)
        with same_conditions(problem, ctx.autocast):
            back = _Back(ctx.adjoint, problem, run, Field(field, wanted, ctx.captured.shared), needs[5])
            back.pull(*gradients)
        sums = iter(back.sums)
        to_known = [next(sums) if need else None for need in needs[7:]]
        return None, None, None, None, None, back.clock if needs[5] else None, back.state_gradient(), *to_known


class _Back:
    """The adjoint and the gradients on their way back."""

    def __init__(self, adjoint: Continuous, problem: InitialValueProblem, run: Run, field: Field, clock: bool) -> None:
        self.adjoint, self.problem, self.run, self.field = adjoint, problem, run, field
        self.past = adjoint.past(problem, run)
        self.clock = torch.zeros_like(problem.ts) if clock else None
        self.times: list[float] = problem.ts.tolist() if problem.ts.ndim == 1 else list(range(problem.ts.shape[0]))
        self.sign = 1.0 if self.times[-1] >= self.times[0] else -1.0
        self.y = problem.method.lower(problem.y0)
        self.a = torch.zeros_like(self.y)
        self.sums: list[Tensor] = [torch.zeros_like(one) for one in field.wanted]
        self.batch = (self.y.shape[0], *([1] * (self.y.ndim - 1))) if problem.samples else ()
        self._dt: float | None = None

    def pull(self, to_ys: Tensor | None, to_hits: Tensor | None, to_steps: Tensor | None) -> None:
        """Bring the gradients of the outputs back to the start."""
        points = self._points(to_ys, to_hits, to_steps)
        begun = False
        for i, point in enumerate(points):
            if i:
                self._solve(points[i - 1], point)
            if point.y is not None:
                self.y = point.y
            elif self.past is not None:
                self.y = self.past(self.problem.ts.new_tensor(point.t))
            at_start = point.t == self.times[0]
            if at_start and not begun:
                self._move(point, -self.a)
                begun = True
            if point.gradient is not None:
                if not at_start:
                    self._move(point, point.gradient)
                self.a = self.a + point.gradient

    def state_gradient(self) -> Tensor:
        """The gradient of the method's state at the start."""
        with torch.enable_grad():
            state = self.problem.y0.detach().requires_grad_()
            lowered = self.problem.method.lower(state)
        return self.a if lowered is state else torch.autograd.grad(lowered, state, self.a)[0]

    def _move(self, point: Point, gradient: Tensor) -> None:
        """What the time of a point does to a loss with this gradient of the state there."""
        if self.clock is None:
            return
        t = self.problem.ts[point.row] if self.clock.ndim == 2 else self.problem.ts.new_tensor(point.t)
        if self.batch:
            t = (t.expand(self.batch[0]) if t.ndim == 0 else t).reshape(self.batch)
        product = (gradient.conj() * self.field.slope(t, self.y)).real.double()
        self.clock[point.row] += product.sum() if self.clock.ndim == 1 else product.flatten(1).sum(1)

    def _points(self, to_ys: Tensor | None, to_hits: Tensor | None, to_steps: Tensor | None) -> list[Point]:
        """Where gradients come in, and the states at ts, from the last gradient to the first of the ts."""
        if self.problem.samples and (any_live(to_hits) or any_live(to_steps)):
            raise RuntimeError(
                f"{type(self.adjoint).__name__} with per_sample=True gives gradients of ys only, but those of "
                f"events or of values between ts were asked for: put the times in ts, or use adjoint=Checkpointed()"
            )
        points = self._at_times(to_ys)
        if not self.problem.samples:
            points += self._between(to_hits, to_steps)
            points.sort(key=lambda point: -point.t * self.sign)
        while points and points[0].gradient is None:
            points.pop(0)
        if points and points[0].y is None and self.past is None:
            points.insert(0, Point(float(self.run.reached[0]), 0, self.problem.method.lower(self.run.last), None))
        return points

    def _at_times(self, to_ys: Tensor | None) -> list[Point]:
        run, reached = self.run, self.run.first[-1]
        points: list[Point] = []
        y = self.problem.method.lower(run.ys[0])
        live = live_rows(to_ys)
        for i in range(int(reached.max())):
            active = (i < reached).reshape(self.batch) if self.batch else None
            y_i = self.problem.method.lower(run.ys[i])
            y = y_i if active is None else torch.where(active, y_i, y)
            gradient = self._lowered(y, to_ys[i]) if to_ys is not None and live[i] else None
            if gradient is not None and active is not None:
                gradient = torch.where(active, gradient, 0)
            points.append(Point(self.times[i], i, y, gradient, active))
        return points[::-1]

    def _between(self, to_hits: Tensor | None, to_steps: Tensor | None) -> list[Point]:
        """Events, and starts of steps from which values between the ts were computed."""
        steps, points = self.run.steps, []
        for hit, y, gradient, live in zip(
            self.run.hits, self.run.at_hits, each(to_hits), live_rows(to_hits), strict=False
        ):
            if live and gradient is not None:
                assert isinstance(hit.step, int)
                t = float(steps.t[hit.step, 0] + hit.theta * steps.dt[hit.step, 0])
                y = self.problem.method.lower(y)
                points.append(Point(t, 0, y, self._lowered(y, gradient)))
        for i, (gradient, live) in enumerate(zip(each(to_steps), live_rows(to_steps), strict=False)):
            if live and gradient is not None:
                points.append(Point(float(steps.t[i, 0]), 0, None, self._lowered(self.y, gradient)))
        return points

    def _lowered(self, y: Tensor, gradient: Tensor) -> Tensor:
        """A gradient of the method's state as one of the solution y."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            state = self.problem.method.lift(y)
        return gradient if state is y else torch.autograd.grad(state, y, gradient)[0]

    def _solve(self, late: Point, early: Point) -> None:
        """Integrate from one point back to an earlier one."""
        way = self._way(late, early)
        if way.start == way.end:
            return
        problem, layout = self._augmented(way)
        slope = problem.dynamics(problem.ts[0], problem.method.lower(problem.y0))
        if self._dt is None:
            self._dt = self._first_step(problem, slope)
        march, last, lengths = March(problem, slope, self._dt), problem.y0, [0.0]
        for piece in march:
            last = piece.step.y
            lengths.append(abs(piece.dt))
        status = march.status
        if not status.failed and not bool(last.isfinite().all()):
            status = Status.NONFINITE
        if status.failed:
            raise RuntimeError(
                f"backward solve from t = {way.start:.6g} to t = {way.end:.6g}: {status.name.lower()} after "
                f"{march.accepted + march.rejected} steps at t = {march.reached:.6g}; {ADVICE[status]}; or use "
                f"adjoint=Checkpointed(), which solves nothing backwards"
            )
        if not isinstance(problem.controller, Fixed):
            self._dt = max(lengths[-2:]) if len(lengths) > 2 else max(self._dt, lengths[-1])
        parts = layout.unpack(problem.method.lower(last))
        if self.past is None:
            self.y, parts = parts[0], parts[1:]
        self.a, self.sums = parts[0], list(parts[1:])

    def _first_step(self, problem: InitialValueProblem, slope: Tensor) -> float:
        if isinstance(problem.controller, Fixed):
            return math.inf
        given = problem.controller.first_step
        return first_step(problem, slope, problem.order).item() if given is None else given

    def _augmented(self, way: Way) -> tuple[InitialValueProblem, Parts]:
        states = (self.a,) if self.past is not None else (self.y, self.a)
        parts = (*states, *self.sums)
        layout = Parts(tuple(one.shape for one in parts), tuple(one.dtype for one in parts))
        flat = layout.pack(parts)
        methods, switch = _methods(self.adjoint, self.problem)
        controller = _controller(self.adjoint, self.problem)
        if isinstance(controller, Adaptive):
            norm = controller.norm or (rms_per_sample if self.batch else rms)
            mixed = MixedNorm(layout, len(states), norm, self.adjoint.seminorm, self.adjoint.norm)
            controller = replace(controller, norm=mixed)
        adjoint, old = self.adjoint, self.problem
        tolerances = (
            old.rtol if adjoint.rtol is None else adjoint.rtol,
            old.atol if adjoint.atol is None else adjoint.atol,
        )
        rtol, atol = (spread_tolerance(one, self.y, len(states), flat) for one in tolerances)
        field = Augmented(self.field, way, self.past, layout)
        problem = old.over(
            dynamics=Dynamics(field, (), None, flat.dtype.to_real()),
            y0=methods[0].lift(flat),
            ts=old.ts.new_tensor([way.start, way.end]),
            methods=methods,
            switch=switch,
            controller=controller,
            rtol=rtol,
            atol=atol,
            samples=False,
            stops=way.stops,
            jumps=way.jumps,
        )
        return problem, layout

    def _way(self, late: Point, early: Point) -> Way:
        if self.problem.ts.ndim == 2:
            return self._way_per_sample(late, early)
        jumps, sign = self.problem.jumps, self.sign
        start, end = late.t, early.t
        for before, after in jumps.items():
            if before * sign <= start * sign <= after * sign:
                start = before
            if before * sign <= end * sign <= after * sign:
                end = after
        if start * sign <= end * sign:
            return Way(end, end)
        back = {jumps.get(t, t): t for t in self.problem.stops}
        inside = [t for t in back if end * sign < t * sign < start * sign]
        inside.sort(key=lambda t: -t * sign)
        leaps = {t: back[t] for t in inside if back[t] != t}
        return Way(start, end, tuple(inside), leaps, batch=self.batch, active=late.active)

    def _way_per_sample(self, late: Point, early: Point) -> Way:
        """The clock runs as fast as the sample with the farthest to go."""
        origin, change = self.problem.ts[late.row], self.problem.ts[early.row] - self.problem.ts[late.row]
        length = float(change.abs().max())
        rate = change / length
        met = [((stop - origin) / rate).tolist() for stop in self.problem.stops]
        stops = tuple(sorted({s for row in met for s in row if 0 < s < length}))
        shape = self.batch
        return Way(0.0, length, stops, {}, origin.reshape(shape), rate.reshape(shape), shape, late.active)


def _methods(adjoint: Continuous, problem: InitialValueProblem) -> tuple[tuple[Method, ...], AutoSwitch | None]:
    if adjoint.method is None:
        return problem.methods, problem.switch
    if isinstance(adjoint.method, AutoSwitch):
        return (adjoint.method.nonstiff, adjoint.method.stiff), adjoint.method
    return (adjoint.method,), None


def _controller(adjoint: Continuous, problem: InitialValueProblem) -> Controller:
    controller = problem.controller if adjoint.controller is None else adjoint.controller
    method = _methods(adjoint, problem)[0][0]
    if isinstance(controller, Adaptive) and method.error_order is None:
        raise ValueError(
            f"method of {type(adjoint).__name__} must estimate errors for {type(controller).__name__}, which "
            f"{type(method).__name__} does not: use controller=Fixed(step), or a method such as Tsit5()"
        )
    return controller
