"""The adaptive loop where all samples share their steps: step, judge, accept, hand out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .controller import Adaptive, Fixed
from .event import locate
from .method import Slope, Step, end_at
from .problem import BARELY, InitialValueProblem
from .record import Status
from .stochastic import Stochastic

PATIENCE = 40  # rejections in a row for NaN or infinity: 0.2^40 is far below the resolution of the clock
NEARLY = 1.01  # a step that ends this close to a stop goes there at once


class Accepted(NamedTuple):
    """An accepted step from (t, y) to `end`: what the method did, and how it fared."""

    t: float
    dt: float  # signed
    end: float
    y: Tensor
    step: Step
    ratio: Tensor | None
    stiffness: Tensor | None
    method: int  # which of two that switch
    hits: tuple[tuple[int, float], ...]  # events in it: which, and after what fraction of the step
    random: tuple[Tensor, ...] | None  # states of the random generators before it


class March:
    """Iterate for the accepted steps; afterwards `status`, `reached`, `accepted` and `rejected` say how it went.

    At most one value is read from the device for each attempted step.

    Args:
        problem: with steps shared by all samples.
        slope: dynamics(ts[0], y0).
        dt: length of the first step, > 0; `Fixed` controllers have their own.
        stochastic: whether the functions draw random numbers: then each step begins with a fresh evaluation, and the
            states of the generators are kept for the replay.
    """

    def __init__(
        self,
        problem: InitialValueProblem,
        slope: Tensor,
        dt: float,
        stochastic: bool = False,
    ) -> None:
        self.problem = problem
        self.controller = problem.controller
        times: list[float] = problem.ts.tolist()
        self.t, self.end = times[0], times[-1]
        self.sign = 1.0 if self.end >= self.t else -1.0
        self.y = problem.y0
        self.status, self.reached = Status.RUNNING, self.t
        self.accepted = self.rejected = 0
        self._fixed = problem.fixed_steps() if isinstance(self.controller, Fixed) else iter(())
        self._stops = iter(sorted(set(problem.stops) - {self.end}, key=lambda t: t * self.sign))
        self._stop = next(self._stops, self.end)
        noisy = isinstance(problem.dynamics, Stochastic)
        self._fresh = stochastic or (noisy and not problem.method.carries_noise)  # each step begins with an evaluation
        self._slope: Callable[[], Slope] | None = None if self._fresh or noisy else lambda: slope
        self._dt = dt
        self._stochastic = stochastic
        self._zero = problem.shift(self.t)
        self._which = self._run = self._failures = 0
        self._earlier = (1.0, 1.0)
        self._signs = [one.item() for one in self._conditions(self.t, self.y)]

    def __iter__(self) -> Iterator[Accepted]:
        while self._goes_on():
            h, end = self._length()
            if end == self.t:
                self._finish(Status.NONFINITE if self._failures else Status.UNDERFLOW)
                return
            random = random_states(self.y.device) if self._stochastic else None
            method = self.problem.methods[self._which]
            start = self._start()
            slope = None if self._slope is None else self._slope()
            dynamics = self.problem.dynamics.over(self.t, end)
            step = method.step(dynamics, start, self.sign * h, self.y, slope)
            error = step.error()
            ratio = None if error is None else self.problem.judge(error, self.y, step)
            stiffness = step.stiffness(samples=False) if method.has_stiffness else None
            judged = self._judged(ratio, stiffness)
            values = read([*judged, *self._conditions(end, step.y)])
            if judged and not self._accepts(values[0], h):
                continue
            hits = self._hits(step, h, values[len(judged) :]) if self.problem.events else ()
            after = step.y
            if end in self.problem.jumps and self._zero.requires_grad:  # a jump does not come later with the start
                after = end_at(step, 1 - self._zero / (self.sign * h))
            yield Accepted(self.t, self.sign * h, end, self.y, step, ratio, stiffness, self._which, hits, random)
            self.accepted += 1
            if hits and any(self.problem.events[i].terminal for i, _ in hits):
                self._finish(Status.EVENT, self.t + self.sign * h * hits[-1][1])
                return
            if judged:
                self._plan(values, h, end)
            self._signs = values[len(judged) :]
            self.t, self.y = self.problem.jumps.get(end, end), after
            if end in self.problem.jumps:
                self._zero = self.problem.shift(self.t)
            self._slope = None if self._fresh or end in self.problem.jumps else step.slope

    def _start(self) -> Tensor:
        """The time, with the gradient of ts[0]."""
        return self._zero + self.t if self._zero.requires_grad else self._zero.new_full(self._zero.shape, self.t)

    def _goes_on(self) -> bool:
        if (self.t - self.end) * self.sign >= 0:
            self._finish(Status.SUCCESS)
        elif self.accepted + self.rejected >= self.problem.max_steps:
            self._finish(Status.MAX_STEPS)
        elif self._failures > PATIENCE:
            self._finish(Status.NONFINITE)
        return self.status == Status.RUNNING

    def _finish(self, status: Status, reached: float | None = None) -> None:
        self.status, self.reached = status, self.t if reached is None else reached

    def _length(self) -> tuple[float, float]:
        """Length of the next step, and the time it reaches."""
        if isinstance(self.controller, Fixed):
            _, end = next(self._fixed)
            return abs(end - self.t), end
        while self._stop != self.end and (self._stop - self.t) * self.sign <= 0:
            self._stop = next(self._stops, self.end)
        left = abs(self._stop - self.t)
        h = min(max(self._dt, self.controller.min_step), self.controller.max_step)
        reach = min(h * NEARLY, self.controller.max_step * BARELY)
        if reach >= left and not (self.problem.overshoot and self._stop == self.end):
            return left, self._stop
        end = self.t + self.sign * h
        snapped = self.problem.dynamics.snap(self.t, end)
        return (h, end) if snapped == end else (snapped - self.t, snapped)

    def _judged(self, ratio: Tensor | None, stiffness: Tensor | None) -> list[Tensor]:
        """What the controller has to know of a step."""
        if ratio is None or isinstance(self.controller, Fixed):
            return []
        return [ratio] if self.problem.switch is None or stiffness is None else [ratio, stiffness]

    def _accepts(self, ratio: float, h: float) -> bool:
        """Whether a step is accepted; else the next one is shortened."""
        assert isinstance(self.controller, Adaptive)
        if ratio <= 1 or (h <= self.controller.min_step and math.isfinite(ratio)):
            return True
        self.rejected += 1
        self._failures = 0 if math.isfinite(ratio) else self._failures + 1
        self._dt = h * self.controller.shrinkage(ratio, self._order())
        return False

    def _order(self) -> float:
        return self.problem.order_of(self.problem.methods[self._which])

    def _plan(self, values: list[float], h: float, end: float) -> None:
        """Length and method of what follows an accepted step."""
        assert isinstance(self.controller, Adaptive)
        grown = h * self.controller.growth(values[0], self._earlier, self._order())
        # a stop cuts a step short, which says nothing of the steps beyond it
        self._dt = max(grown, self._dt) if end == self._stop else grown
        self._earlier, self._failures = (values[0], self._earlier[0]), 0
        if self.problem.switch is not None:
            self._which, self._run, factor = self.problem.switch.judge(self._which, self._run, values[1], h)
            self._dt *= factor

    def _conditions(self, t: float, y: Tensor) -> list[Tensor]:
        if not self.problem.events:
            return []
        with torch.no_grad():
            return [self.problem.condition(event, self._zero.detach() + t, y) for event in self.problem.events]

    def _hits(self, step: Step, h: float, values: list[float]) -> tuple[tuple[int, float], ...]:
        """The events of a step in the order of time, up to the first that ends the solve."""
        found = []
        for i, (event, before, after) in enumerate(zip(self.problem.events, self._signs, values, strict=True)):
            if event.happened(before, after):

                def condition(theta: float, i: int = i) -> float:
                    return self._conditions(self.t + self.sign * h * theta, step.at(theta))[i].item()

                with torch.no_grad():
                    found.append((i, locate(condition, before, after, 4e-16 * max(1.0, abs(self.t) / h))))
        found.sort(key=lambda hit: hit[1])
        for k, (i, _) in enumerate(found):
            if self.problem.events[i].terminal:
                return tuple(found[: k + 1])
        return tuple(found)


def read(values: list[Tensor]) -> list[float]:
    """Read 0-d tensors from their device, all at once."""
    if len(values) <= 1:
        return [value.item() for value in values]
    return torch.stack([value.double() for value in values]).tolist()


def random_states(device: torch.device) -> tuple[Tensor, ...]:
    """States of the generators that a field on this device may draw from."""
    states = (torch.get_rng_state(),)
    return (*states, torch.cuda.get_rng_state(device)) if device.type == "cuda" else states
