"""torchdiffeq's solvers on a grid that is given: one step of a method between two of its points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..event import locate
from ..runge_kutta import RungeKutta
from .perturbed import Perturbed
from .request import Field, Request, Solver

OPTIONS = ("step_size", "grid_constructor", "interp", "perturb")
MAX_STEPS = 20_000  # until an event


class Stepper(ABC):
    """Takes steps one after the other; it may remember those before."""

    @abstractmethod
    def step(self, field: Field, t: Tensor, dt: float | Tensor, end: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The state at `end` = t + dt from (t, y), and the slope at t."""


@dataclass(frozen=True)
class RungeKuttaStepper(Stepper):
    """Steps of an explicit Runge-Kutta method."""

    method: RungeKutta

    def step(self, field: Field, t: Tensor, dt: float | Tensor, end: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        step = self.method.step(field, t, dt, y)
        return step.y, step.slopes[0]


class GridSolver(Solver):
    """What the solvers on a grid share; a class states how it steps."""

    callbacks = ("callback_step",)

    @abstractmethod
    def stepper(self, request: Request) -> Stepper:
        """A fresh stepper."""

    def trajectory(self, request: Request) -> Tensor:
        t, callbacks = request.t, request.callbacks
        grid = _grid(request)
        if not (bool(grid[0] == t[0]) and bool(grid[-1] == t[-1])):
            raise AssertionError(f"the grid must begin and end with t, from {t[0]} to {t[-1]}, got {grid.tolist()}")
        stepper = self.stepper(request)
        solution, y = [request.y0], request.y0
        clock, times, values = grid.double().unbind(), t.double().unbind(), t.tolist()
        points: list[float] = grid.tolist()
        for i in range(len(points) - 1):
            dt: float | Tensor = points[i + 1] - points[i]
            if grid.requires_grad:
                dt = clock[i + 1] - clock[i]
            if callbacks.wanted:
                callbacks.tell(callbacks.step, grid[i], y, dt)
            field = _field(request, clock[i], clock[i + 1])
            after, slope = stepper.step(field, clock[i], dt, clock[i + 1], y)
            leap = Leap(request, clock[i], clock[i + 1], y, after, slope)
            while len(solution) < len(values) and (points[i + 1] - values[len(solution)]) * request.sign >= 0:
                j = len(solution)
                solution.append(leap.at(times[j], (values[j] - points[i]) / (points[i + 1] - points[i])))
            y = after
        return torch.stack(solution)

    def until_event(self, request: Request) -> tuple[Tensor, Tensor]:
        condition, size = request.condition, request.options.get("step_size")
        assert condition is not None
        if size is None:
            raise AssertionError(
                "options must hold a step_size for an event_fn and a method on a grid: the end of the grid is not known"
            )
        dt = float(size) * request.sign
        stepper = self.stepper(request)
        t, y = request.t[0].double(), request.y0
        before = _value(condition, t, y)
        if before == 0:
            return request.t[0].detach().clone(), torch.stack([y, y])
        for _ in range(MAX_STEPS):
            end = t + dt
            after, slope = stepper.step(_field(request, t, end), t, dt, end, y)
            value = _value(condition, end, after)
            if (value > 0) != (before > 0) or (value < 0) != (before < 0):
                leap = Leap(request, t, end, y, after, slope)
                return _event(request, condition, leap, (before, value))
            t, y = end, after
        raise RuntimeError(
            f"no event by t = {t.item():.6g}: {MAX_STEPS} steps were taken, the maximum number of iterations"
        )


@dataclass(frozen=True)
class FixedGridSolver(GridSolver):
    """An explicit Runge-Kutta method on a grid."""

    name: str
    method: RungeKutta

    options = OPTIONS

    def stepper(self, request: Request) -> Stepper:
        return RungeKuttaStepper(self.method)


class Leap:
    """One step, and the values in it: on a straight line or on the cubic of its ends and slopes."""

    def __init__(self, request: Request, start: Tensor, end: Tensor, y0: Tensor, y1: Tensor, slope: Tensor) -> None:
        self.request, self.start, self.end, self.y0, self.y1, self.slope = request, start, end, y0, y1, slope
        self._later: Tensor | None = None
        self._graph = False  # whether it was evaluated with its graph

    def at(self, t: Tensor, theta: float) -> Tensor:
        """The state at t, which is `theta` of the step.

        Raises:
            ValueError: no such interpolation.
        """
        interp = self.request.options.get("interp", "linear")
        if interp == "linear":
            if theta in {0.0, 1.0}:
                return self.y1 if theta else self.y0
            return self.y0 + (self.y1 - self.y0) * self._theta(t, theta)
        if interp != "cubic":
            raise ValueError(f"Unknown interpolation method {interp}")
        if self._later is None or (torch.is_grad_enabled() and not self._graph):
            self._later, self._graph = self.request.field(self.end, self.y1), torch.is_grad_enabled()
        s, dt = self._theta(t, theta), self.end - self.start
        straight = self.y0 + (self.y1 - self.y0) * s
        bow = (self.slope * dt - (self.y1 - self.y0)) * (1 - s) - (self._later * dt - (self.y1 - self.y0)) * s
        return straight + bow * (s * (1 - s))

    def _theta(self, t: Tensor, theta: float) -> float | Tensor:
        if t.requires_grad or self.start.requires_grad:
            return (t - self.start) / (self.end - self.start)
        return theta


def _field(request: Request, start: Tensor, end: Tensor) -> Field:
    """The field of one step."""
    if not request.options.get("perturb", False):
        return request.field
    return Perturbed(request.field, request.time_dtype, start, end)


def _value(condition: Field, t: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(condition(t, y))


def _event(request: Request, condition: Field, leap: Leap, values: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The time of an event in a step, and the states at the start of the solve and there."""
    start, dt = leap.start.detach(), (leap.end - leap.start).detach()

    def along(theta: float) -> float:
        t = start + theta * dt
        return _value(condition, t, leap.at(t, theta))

    with torch.no_grad():
        theta = locate(along, *values, 4e-16 * max(1.0, float((start / dt).abs())))
    event_t = start + theta * dt
    return event_t.to(request.t.dtype), torch.stack([request.y0, leap.at(event_t, theta)])


def _grid(request: Request) -> Tensor:
    """The times between which to step.

    Raises:
        ValueError: both a step size and a constructor are given.
    """
    size: Any = request.options.get("step_size")
    constructor: Callable[..., Tensor] | None = request.options.get("grid_constructor")
    if size is None:
        return request.t if constructor is None else constructor(request.field, request.y0, request.t)
    if constructor is not None:
        raise ValueError("options must hold step_size or grid_constructor, not both, which are mutually exclusive")
    t = request.t
    count = int(torch.ceil((t[-1] - t[0]).detach().abs() / size + 1).item())
    grid = t[0] + request.sign * size * torch.arange(count, dtype=t.dtype, device=t.device)
    return torch.cat([grid[:-1], t[-1:]])
