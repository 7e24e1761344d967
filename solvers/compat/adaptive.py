"""torchdiffeq's adaptive solvers: its controller, its options and its callbacks, on our loop."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..controller import I
from ..dynamics import Dynamics
from ..event import Event
from ..first_step import first_step
from ..march import Accepted, March
from ..method import Dynamics as Slopes
from ..method import Method, Slope, Step, Time
from ..problem import InitialValueProblem
from ..record import Status
from ..runge_kutta import RungeKutta, RungeKuttaStep
from .perturbed import Perturbed
from .request import CALLBACKS, Callbacks, Request, Solver

OPTIONS = (
    "min_step",
    "max_step",
    "first_step",
    "step_t",
    "jump_t",
    "safety",
    "ifactor",
    "dfactor",
    "max_num_steps",
    "dtype",
)
MAX_NUM_STEPS = 2**31 - 1  # between two output times


class Attempts:
    """The attempted steps: counts them between outputs, and tells the callbacks of them."""

    def __init__(self, callbacks: Callbacks, limit: int) -> None:
        self.callbacks = callbacks
        self.limit = limit
        self.count = 0
        self.last: tuple[Tensor, Tensor, float] | None = None

    def begin(self, t: Tensor, y: Tensor, dt: float) -> None:
        """A step is tried; one that was tried before and not accepted was rejected.

        Raises:
            AssertionError: too many since the last output.
        """
        self._reject()
        if self.count >= self.limit:
            raise AssertionError(f"max_num_steps exceeded ({self.count}>={self.limit})")
        self.count += 1
        self.last = (t, y, dt)
        self.callbacks.tell(self.callbacks.step, t, y, dt)

    def accept(self) -> None:
        """The last one was accepted."""
        assert self.last is not None
        self.callbacks.tell(self.callbacks.accept, *self.last)
        self.last = None

    def _reject(self) -> None:
        if self.last is not None:
            self.callbacks.tell(self.callbacks.reject, *self.last)
            self.last = None

    def fail(self, status: Status, t: float) -> NoReturn:
        """Raise for a march that stopped short.

        Raises:
            AssertionError: always.
        """
        dt = 0.0 if self.last is None else self.last[2]
        self._reject()
        why = "" if status is Status.UNDERFLOW else ": non-finite values in state `y` or in its derivative"
        raise AssertionError(f"underflow in dt {abs(dt)} at t = {t}{why}")


class ObservedStep(Step):
    """A step that hands on the slope of its last stage, as torchdiffeq does also where that is not f(t1, y1)."""

    def __init__(self, step: RungeKuttaStep) -> None:
        self.step = step
        self.y = step.y
        self._grad = torch.is_grad_enabled()

    def slope(self) -> Tensor:
        return self.step.slope() if self.step.method.table.fsal else self.step.slopes[-1]

    def error(self) -> Tensor | None:
        return self.step.error()

    def stiffness(self, samples: bool) -> Tensor | None:
        return None

    def at(self, theta: float | Tensor) -> Tensor:
        with torch.set_grad_enabled(self._grad):  # stages for dense output are kept, also where asked for without
            return self.step.at(theta)


@dataclass(frozen=True, eq=False)
class Observed(Method):
    """A pair whose attempted steps are told to someone; it estimates no stiffness."""

    pair: RungeKutta
    attempts: Attempts
    forced: frozenset[float]  # times at which steps end and the field may jump

    @property
    def order(self) -> int:
        return self.pair.order

    @property
    def dense_order(self) -> int:
        return self.pair.dense_order

    @property
    def error_order(self) -> int | None:
        return self.pair.error_order

    @property
    def stability_size(self) -> float | None:
        return self.pair.stability_size

    @property
    def has_stiffness(self) -> bool:
        return False

    def step(self, dynamics: Slopes, t: Time, dt: Time, y: Tensor, slope: Slope = None) -> Step:
        assert isinstance(t, Tensor)
        assert not isinstance(dt, Tensor)
        self.attempts.begin(t, y, dt)
        if self.forced and any(math.isclose(float(t.detach()) + dt, one, abs_tol=1e-15) for one in self.forced):
            dynamics = Perturbed(dynamics, y.dtype.to_real(), t, t + dt)
        return ObservedStep(self.pair.step(dynamics, t, dt, y, slope))


@dataclass(frozen=True)
class Forced:
    """Where steps must end: `jumps` maps the time of a jump of the field to one just after."""

    stops: tuple[float, ...]
    jumps: Mapping[float, float]


@dataclass(frozen=True)
class AdaptiveSolver(Solver):
    """An embedded pair with torchdiffeq's integral controller."""

    name: str
    pair: RungeKutta

    options = OPTIONS
    callbacks = CALLBACKS

    def trajectory(self, request: Request) -> Tensor:
        if request.t.shape[0] == 1:
            return request.y0[None]
        ys = [request.y0]
        times = request.t.double()
        values: list[float] = times.tolist()
        attempts = self._attempts(request)
        forced = _forced(request, values[0])
        for piece in self._pieces(request, times, forced, attempts):
            after = len(ys)
            while after < len(values) and (values[after] - piece.end) * request.sign <= 0:
                after += 1
            if after > len(ys):
                ys.extend(_values(piece, times[len(ys) : after], times[0]))
                attempts.count = 0
        return torch.stack(ys)

    def until_event(self, request: Request) -> tuple[Tensor, Tensor]:
        assert request.condition is not None
        start = request.t[0]
        with torch.no_grad():
            if request.condition(start, request.y0) == 0:
                return start.detach().clone(), torch.stack([request.y0, request.y0])
        times = torch.stack([start.double(), start.new_tensor(math.inf * request.sign, dtype=torch.float64)])
        attempts = self._attempts(request)
        forced = _forced(request, float(start.detach()))
        piece = deque(self._pieces(request, times, forced, attempts), maxlen=1).pop()
        moment = piece.t + piece.hits[-1][1] * piece.dt
        event_t = torch.tensor(moment, dtype=torch.float64, device=start.device)
        (y,) = _values(piece, event_t[None], times[0])
        return event_t.to(request.t), torch.stack([request.y0, y])

    def pieces(self, request: Request) -> Iterator[Accepted]:
        """The accepted steps from the first to the last of request.t."""
        forced = _forced(request, float(request.t[0].detach()))
        return self._pieces(request, request.t.double(), forced, self._attempts(request))

    def _attempts(self, request: Request) -> Attempts:
        return Attempts(request.callbacks, int(request.options.get("max_num_steps", MAX_NUM_STEPS)))

    def _pieces(self, request: Request, times: Tensor, forced: Forced, attempts: Attempts) -> Iterator[Accepted]:
        """March, and raise where that stops short."""
        if not bool(request.y0.detach().isfinite().all()):
            raise AssertionError(f"non-finite values in state `y`: {request.y0}")
        ends = torch.stack([times[0], times[-1]])
        problem = InitialValueProblem(
            dynamics=Dynamics(request.field, (), None, request.time_dtype),
            y0=request.y0,
            ts=ends,
            methods=(Observed(self.pair, attempts, frozenset(forced.stops)),),
            switch=None,
            controller=_controller(request),
            rtol=request.rtol,
            atol=request.atol,
            samples=False,
            max_steps=sys.maxsize,
            stops=forced.stops,
            jumps=forced.jumps,
            events=() if request.condition is None else (Event(request.condition),),
            overshoot=float(times[-1].detach()) not in forced.stops,
        )
        slope = problem.dynamics(ends[0], request.y0)
        given = request.options.get("first_step")
        with torch.no_grad():
            dt = first_step(problem, slope, problem.order).item() if given is None else float(given)
        march = March(problem, slope, dt)
        for piece in march:
            attempts.accept()
            yield piece
        if march.status.failed:
            attempts.fail(march.status, march.reached)


def _controller(request: Request) -> I:
    options = request.options
    return I(
        safety=float(options.get("safety", 0.9)),
        min_factor=min(float(options.get("dfactor", 0.2)), math.nextafter(1.0, 0.0)),
        max_factor=max(float(options.get("ifactor", 10.0)), math.nextafter(1.0, 2.0)),
        min_step=float(options.get("min_step", 0.0)),
        max_step=float(options.get("max_step", math.inf)),
        shrink_accepted=False,
        norm=request.norm,
    )


def _forced(request: Request, start: float) -> Forced:
    """The times of the options step_t and jump_t that lie ahead.

    Raises:
        ValueError: one is named twice.
    """
    steps, jumps = (_times(request.options.get(name)) for name in ("step_t", "jump_t"))
    if len({*steps, *jumps}) < len(steps) + len(jumps):
        raise ValueError("`step_t` and `jump_t` must not have any repeated elements between them.")
    sign, resolution = request.sign, torch.finfo(request.time_dtype)
    stops = sorted((t for t in (*steps, *jumps) if (t - start) * sign > 0), key=lambda t: t * sign)
    beyond = {t: t + sign * max(abs(t) * resolution.eps, resolution.tiny) for t in jumps}
    return Forced(tuple(stops), {t: beyond[t] for t in stops if t in beyond})


def _times(value: Any) -> list[float]:
    return [] if value is None else [float(t) for t in torch.as_tensor(value).reshape(-1).tolist()]


def _values(piece: Accepted, times: Tensor, origin: Tensor) -> list[Tensor]:
    """The states at some times in a step, with the gradients of the times and of the origin of the clock."""
    step, y = piece.step, piece.step.y
    theta = (times - piece.t - (origin - origin.detach())) / piece.dt
    if len(theta) == 1:
        if theta.requires_grad:
            return [step.at(theta[0])]
        last = math.isclose(theta.item(), 1.0, rel_tol=1e-14)
        return [step.y if last else step.at(theta.item())]
    return list(step.at(theta.to(y.dtype.to_real()).reshape(-1, *([1] * y.ndim))))
