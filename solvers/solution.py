"""What a solve returns: values where asked, values between, how it fared, and any of its steps again."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .method import Step
from .problem import InitialValueProblem
from .record import ADVICE, ADVICE_WITH_NOISE, Happening, Stats, Status, Steps
from .replay import autocast_of, retake, same_conditions
from .run import integrate
from .stochastic import Stochastic


@dataclass(frozen=True, eq=False)
class Solution:
    """A solution of an initial value problem; call it for values between the times that were asked for.

    Attributes:
        ts: times asked for, (T,) or (T, B), float64.
        ys: the solution there, (T, *y0) in the structure of y0; NaN at times that were not reached.
        status: how it ended, one for each sample where they step on their own, else one.
        reached: the time it reached, (1,) or (B,), float64.
        stats: the work.
        recorded: the accepted steps with their error and stiffness, as `steps`; None where nobody needed them.
        events: for each event the times and states at which it happened.
    """

    ts: Tensor
    ys: Any
    status: tuple[Status, ...]
    reached: Tensor
    stats: Stats
    recorded: Steps | None
    events: tuple[Happening, ...]
    problem: InitialValueProblem

    @cached_property
    def steps(self) -> Steps:
        """The accepted steps with their error and stiffness.

        Those of fixed length that were taken without gradients are not kept: then this solves once more.
        """
        if self.recorded is not None:
            return self.recorded
        with torch.no_grad(), same_conditions(self.problem, autocast_of(self.problem.y0.device)):
            slope = self.problem.dynamics.evaluate(*self.problem.first())
            return integrate(self.problem, slope, math.inf).steps

    @property
    def success(self) -> bool:
        """Whether every sample arrived, or ended with an event."""
        return not any(status.failed for status in self.status)

    def report(self) -> str:
        """What happened, in a sentence for each way in which samples stopped short; "" where none did."""
        lines = []
        for status in sorted({one for one in self.status if one.failed}):
            which = [i for i, one in enumerate(self.status) if one == status]
            t = min(float(self.reached[i]) for i in which)
            steps = int((self.stats.accepted + self.stats.rejected)[which[0]])
            who = "" if len(self.status) == 1 else f"{len(which)} of {len(self.status)} samples, the first {which[0]}: "
            end = float(self.ts[-1].reshape(-1)[0])
            said = f"{status.name.lower()} after {steps} steps at t = {t:.6g}"
            advice = ADVICE_WITH_NOISE if isinstance(self.problem.dynamics, Stochastic) else ADVICE
            lines.append(f"{who}no arrival at t = {end:.6g}: {said}; {advice[status]}")
        return "\n".join(lines)

    def retake(self, i: int | Tensor, detach: bool = False) -> Step:
        """The i-th accepted step once more, with its error, stiffness and values between.

        Args:
            i: its number; per sample also (B,), int64, one for each.
            detach: whether gradients reach only what the field holds, and not the state at the start of the step.

        Raises:
            IndexError: there is no such step.
        """
        count = len(self.steps)
        self._require_states()
        if not isinstance(i, Tensor) or not i.ndim:
            i = operator.index(i)
        elif not self.problem.samples:
            raise TypeError(f"i must be a number where the samples share their steps, got shape {tuple(i.shape)}")
        if isinstance(i, int) and not -count <= i < count:
            raise IndexError(f"i must be a step from 0 to {count - 1}, got {i}")
        y = self.pick(self.steps.y, i)
        return self._step(i, y.detach() if detach else y)

    def pick(self, rows: Tensor, i: int | Tensor) -> Tensor:
        """Row i of a record of the steps, (S, B, ...), or for each sample its own."""
        return rows[i] if isinstance(i, int) else rows[i, torch.arange(rows.shape[1], device=rows.device)]

    def _step(self, i: int | Tensor, y: Tensor) -> Step:
        problem, steps = self.problem, self.steps
        if not problem.samples:
            return retake(problem, steps, operator.index(i), y)
        t, dt = self._start(i), self.pick(steps.dt, i)
        return problem.method.step(problem.dynamics.evaluate, problem.spread(t), problem.spread(dt), y)

    def _start(self, i: int | Tensor) -> Tensor:
        """The time at which the i-th step starts, with the gradient of ts[0]: () or, per sample, (B,)."""
        t = self.pick(self.steps.t, i) if self.problem.samples else float(self.steps.t[i, 0])
        return self.problem.shift(t) + t

    def __call__(self, t: float | Tensor) -> Any:
        """The solution at t, between ts[0] and what was reached, by the method's dense output.

        Args:
            t: a number, or times of any shape; per sample a number, (K,), or (K, B) with times of each sample.

        Returns:
            (*y0) for a number, else (K, *y0), in the structure of y0.

        Raises:
            ValueError: a time was not reached.
        """
        asked = torch.as_tensor(t, dtype=torch.float64, device=self.problem.y0.device)
        if self.problem.samples:
            return self.problem.solution(self._between_per_sample(asked))
        self._require_reached(asked)
        flat = [self._between(one) for one in asked.reshape(-1)]
        shape = (*asked.shape, *self.problem.y0.shape)
        return self.problem.solution((torch.stack(flat) if flat else self.problem.y0.new_empty(0)).reshape(shape))

    def _require_reached(self, asked: Tensor) -> None:
        start = self.ts[0].detach()
        sign = torch.where(self.ts[-1].detach() >= start, 1.0, -1.0)
        low, high = (asked - start) * sign, (asked - self.reached.to(asked.device)) * sign
        if not bool((low >= 0).all() & (high <= 1e-9 * (1 + self.reached.abs().max())).all()):
            ends = f"{float(start.min()):.6g} and {float(self.reached.min()):.6g}"
            raise ValueError(f"t must lie between {ends}, which the solve reached, got {asked.tolist()}")

    def _between(self, t: Tensor) -> Tensor:
        if not len(self.steps):
            return self.problem.y0
        starts = self.steps.t[:, 0]
        sign = 1.0 if float(self.steps.dt[0, 0]) > 0 else -1.0
        i = int(torch.searchsorted(starts * sign, float(t.detach()) * sign, right=True).clamp(1, len(starts))) - 1
        if isinstance(self.problem.dynamics, Stochastic):
            return self._on_path(i, t)
        theta = (t - self._start(i)) / float(self.steps.dt[i, 0])
        step = self.retake(i)
        return step.at(theta if theta.requires_grad else float(theta))

    def _on_path(self, i: int, asked: Tensor) -> Tensor:
        """The solution at a time by a shorter i-th step, which follows the same path."""
        if asked.requires_grad:
            raise ValueError("t must not require gradients: a Brownian path has no derivative; use t.detach()")
        self._require_states()
        problem, begin, y = self.problem, float(self.steps.t[i, 0]), self.pick(self.steps.y, i)
        t = min(float(asked), float(self.reached))
        if t <= begin:
            return y
        return problem.method.step(problem.dynamics.again(begin, t), problem.shift(begin) + begin, t - begin, y).y

    def _require_states(self) -> None:
        if len(self.steps.y) < len(self.steps):
            raise ValueError(
                "adjoint=Reversible() keeps no states to start a step from: put the times in ts, or use Checkpointed()"
            )

    def _between_per_sample(self, asked: Tensor) -> Tensor:
        batch = self.problem.y0.shape[0]
        if asked.ndim > 2 or (asked.ndim == 2 and asked.shape[1] != batch):
            raise ValueError(f"t must be a number, (K,) or (K, {batch}), got shape {tuple(asked.shape)}")
        rows = asked.reshape(-1, 1).expand(-1, batch) if asked.ndim < 2 else asked
        self._require_reached(rows)
        if not len(self.steps):
            return self.problem.y0.expand(*asked.shape[:1], *self.problem.y0.shape)
        sign = self.steps.dt.sum(0).sign()
        starts = torch.where(self.steps.mask, self.steps.t * sign, torch.inf)
        i = (torch.searchsorted(starts.T.contiguous(), (rows * sign).T.contiguous(), right=True).T - 1).clamp_min(0)
        values = []
        for row, index in zip(rows, i, strict=True):
            theta = (row - self._start(index)) / self.pick(self.steps.dt, index)
            values.append(self.retake(index).at(self.problem.spread(theta)))
        if not values:
            return self.problem.y0.new_empty((0, *self.problem.y0.shape))
        return torch.stack(values) if asked.ndim else values[0]
