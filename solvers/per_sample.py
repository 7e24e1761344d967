"""The adaptive loop where each sample has its own steps: one trial of all samples at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .march import random_states, read
from .masked import Control, Limits, Trial, attempt, limits_of, rules_of, start_of, trial_of
from .method import Step
from .problem import InitialValueProblem, spread
from .record import Status, Steps
from .run import Hit, Run

HALVINGS = 60  # of the step in which an event lies: beyond the resolution of the clock


@dataclass(eq=False)
class Rows:
    """A run while it goes on: one entry for each trial."""

    trials: list[Trial] = field(default_factory=list)
    y: list[Tensor] = field(default_factory=list)
    first: list[Tensor] = field(default_factory=list)
    hits: list[tuple[int, int, Tensor, Tensor]] = field(default_factory=list)  # event, trial, theta, mask
    at_hits: list[Tensor] = field(default_factory=list)
    random: list[tuple[Tensor, ...]] = field(default_factory=list)


def integrate_per_sample(problem: InitialValueProblem, slope: Tensor, dt: Tensor, stochastic: bool = False) -> Run:
    """Integrate until every sample is done, with one read from the device for each trial; no tape.

    Args:
        problem: with a batch on axis 0.
        slope: dynamics(ts[0], y0). dt: lengths of the first steps, () or (B,).
        stochastic: as in `March`.
    """
    rules, limits = rules_of(problem, stochastic), limits_of(problem)
    now, rows = start_of(problem, slope, dt), Rows()
    outputs, crossings = Outputs(problem), Crossings(problem, now)
    rows.first.append(outputs.pointer[None])
    with torch.no_grad():
        going = problem.ts.shape[0] > 1 and len(now.t) > 0
        while going:
            if stochastic:
                rows.random.append(random_states(now.y.device))
            then, trial, step = attempt(problem.dynamics, rules, limits, now)
            crossed = crossings.see(trial, step)
            pointer = outputs.beyond(trial.end, trial.accepted, limits)
            flags = [(then.status == int(Status.RUNNING)).any(), (pointer - outputs.pointer).max()]
            values = read([*flags, *([crossed.any()] if crossed is not None else [])])
            if crossed is not None and values[2]:
                then, end = crossings.settle(rows, now, then, trial, step, crossed)
                pointer = outputs.beyond(end, trial.accepted, limits)
                values = read([(then.status == int(Status.RUNNING)).any(), (pointer - outputs.pointer).max()])
            going, rounds = bool(values[0]), int(values[1])
            outputs.write(trial, step, pointer, rounds)
            rows.trials.append(trial)
            rows.y.append(now.y)
            rows.first.append(pointer[None])
            now = then
    if not rows.trials:
        return no_steps(outputs, now)
    columns = [None if column[0] is None else torch.stack(column) for column in zip(*rows.trials, strict=True)]
    return finish(rows, trial_of(columns), torch.stack(rows.y), outputs, now, whole=stochastic)


class Values(Protocol):
    """The part of a step that outputs are read from."""

    y: Tensor

    def at(self, theta: Tensor) -> Tensor: ...


class Outputs:
    """The solution at the ts as they are passed: for each sample a pointer to the next."""

    def __init__(self, problem: InitialValueProblem) -> None:
        ts, y = problem.ts.detach(), problem.y0.detach()
        batch = y.shape[0]
        self.ts = ts if ts.ndim > 1 else ts[:, None].expand(-1, batch)
        self.ys = torch.full((len(ts) + 1, *y.shape), torch.nan, dtype=y.dtype, device=y.device)  # the last takes waste
        self.ys[0] = y
        self.pointer = torch.ones(batch, dtype=torch.int64, device=y.device)
        self.samples = torch.arange(batch, device=y.device)

    def beyond(self, end: Tensor, accepted: Tensor, limits: Limits) -> Tensor:
        """The pointers once the accepted samples are at `end`."""
        passed = ((self.ts - end) * limits.sign <= 0).sum(0)
        return torch.where(accepted, torch.maximum(passed, self.pointer), self.pointer)

    def write(self, trial: Trial, step: Values, pointer: Tensor, rounds: int) -> None:
        """Write the values that lie within the step: at most `rounds` for each sample."""
        last = len(self.ts)
        for k in range(rounds):
            theta, row = fraction(self.ts, trial.t, trial.dt, self.pointer + k, pointer)
            value = torch.where(spread(theta == 1, step.y), step.y, step.at(spread(theta, step.y)))
            self.ys[torch.where(row < pointer, row, last), self.samples] = value
        self.pointer = pointer

    def passing(self, trials: Trial) -> tuple[Tensor, Tensor]:
        """From all trials, (N, B), at once: the pointers after each, and the trial that passes each time, (T, B).

        That is N for a time that is not passed.
        """
        direction = torch.where(self.ts[-1] >= self.ts[0], 1.0, -1.0)
        reached = torch.where(trials.accepted, trials.end * direction, -torch.inf).cummax(0).values
        ts = (self.ts * direction).T.contiguous()
        pointers = torch.searchsorted(ts, reached.T.contiguous(), right=True).clamp_min(1)
        numbers = torch.arange(ts.shape[1], device=ts.device).expand_as(ts).contiguous()
        self.pointer = pointers[:, -1]
        return pointers.T, torch.searchsorted(pointers, numbers, right=True).T


def fraction(ts: Tensor, t: Tensor, dt: Tensor, row: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Where in its step each sample meets its time number `row`, and the row; 0 where it is not below `stop`."""
    wanted = ts.gather(0, row.clamp_max(len(ts) - 1)[None])[0]
    inside = (row < stop) & (dt != 0)
    return torch.where(inside, (wanted - t) / torch.where(inside, dt, 1.0), 0.0), row


class Crossings:
    """Watches the conditions of the events for each sample."""

    def __init__(self, problem: InitialValueProblem, now: Control) -> None:
        self.problem = problem
        self.values = self._conditions(now.t, now.y) if problem.events else None

    def _conditions(self, t: Tensor, y: Tensor) -> Tensor:
        """The values of all conditions, (E, B)."""
        with torch.no_grad():
            return torch.stack([self.problem.condition(event, t, y).double() for event in self.problem.events])

    def see(self, trial: Trial, step: Step) -> Tensor | None:
        """Which conditions passed zero in an accepted step, (E, B); None without events."""
        if self.values is None:
            return None
        after = self._conditions(trial.end, step.y)
        crossed = self._crossed(self.values, after) & trial.accepted
        self.start, self.values = self.values, torch.where(trial.accepted, after, self.values)
        return crossed

    def _crossed(self, before: Tensor, after: Tensor) -> Tensor:
        direction = torch.tensor([event.direction for event in self.problem.events], device=before.device)[:, None]
        rises, falls = (before < 0) & (after >= 0), (before > 0) & (after <= 0)
        return (rises & (direction >= 0)) | (falls & (direction <= 0))

    def settle(
        self, rows: Rows, now: Control, then: Control, trial: Trial, step: Step, crossed: Tensor
    ) -> tuple[Control, Tensor]:
        """Find the events in a step and end the samples that they end: the control, and the times reached."""
        theta = torch.where(crossed, self._locate(trial, step), torch.inf)
        terminal = torch.tensor([event.terminal for event in self.problem.events], device=theta.device)
        cut = torch.where(terminal[:, None], theta, torch.inf).amin(0)
        for i in torch.nonzero((theta <= cut).any(1) & crossed.any(1)).flatten().tolist():
            mask = crossed[i] & (theta[i] <= cut)
            where = torch.where(mask, theta[i], 0.0)
            rows.hits.append((i, len(rows.trials), where, mask))
            rows.at_hits.append(step.at(spread(where, step.y)))
        ends = cut.isfinite()
        finite = torch.where(ends, cut, 0.0)
        end = torch.where(ends, trial.t + finite * trial.dt, trial.end)
        return then._replace(
            t=torch.where(ends, end, then.t),
            y=torch.where(spread(ends, step.y), step.at(spread(finite, step.y)), then.y),
            status=torch.where(ends, int(Status.EVENT), then.status),
        ), end

    def _locate(self, trial: Trial, step: Step) -> Tensor:
        """By bisection, all conditions of all samples at once, (E, B)."""
        low = torch.zeros_like(self.start)
        high = torch.ones_like(self.start)
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            rows = []
            for i, theta in enumerate(middle):
                y = step.at(spread(theta, step.y))
                rows.append(self._conditions(trial.t + theta * trial.dt, y)[i])
            same = torch.stack(rows) * self.start > 0
            low, high = torch.where(same, middle, low), torch.where(same, high, middle)
        return high


def finish(rows: Rows, trials: Trial, y: Tensor, outputs: Outputs, now: Control, whole: bool) -> Run:
    """The record of all trials, stacked on axis 0, (N, B).

    The rejected ones are taken out, unless `whole`: then they stay as steps of length 0, so that the replay of a field
    that draws random numbers draws what the first pass drew.
    """
    mask, batch = trials.accepted, now.t.shape[0]
    if whole or bool(mask.all()):
        count, kept, pick = len(mask), mask, _same
    else:
        number = mask.cumsum(0)
        count = int(number[-1].max())
        kept = torch.arange(1, count + 1, device=mask.device)[:, None] <= number[-1]
        trial = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)
        order = torch.full((count + 1, batch), len(mask) - 1, device=mask.device)  # the last row takes waste
        order = order.scatter_(0, torch.where(mask, number - 1, count), trial)[:-1]
        entries = (order * batch + outputs.samples).flatten()

        def pick(values: Tensor) -> Tensor:
            return values.flatten(0, 1).index_select(0, entries).reshape(count, *values.shape[1:])

    def column(values: Tensor, padding: Tensor | float = 0.0) -> Tensor:
        return torch.where(kept, pick(values), padding)

    first = torch.cat(rows.first)
    firsts = torch.cat([torch.ones_like(first[:1]), column(first[1:], outputs.pointer)])
    steps = Steps(
        t=column(trials.t, now.t),
        dt=column(trials.dt),
        y=pick(y),
        ratio=None if trials.ratio is None else column(trials.ratio),
        error=None if trials.error is None else column(trials.error),
        stiffness=None if trials.stiffness is None else column(trials.stiffness),
        mask=kept,
        method=torch.zeros(count, dtype=torch.int64),
    )
    bad = ~_finite(now.y) & (now.status == int(Status.SUCCESS))  # steps of fixed length go on through NaN
    reached = now.t
    if bool(bad.any()):  # it reached the start of its last step from a finite state
        sound = (_finite(steps.y.flatten(0, 1)).reshape(kept.shape) & kept).cumprod(0).sum(0)
        reached = torch.where(bad, steps.t.gather(0, (sound - 1).clamp_min(0)[None])[0], reached)
    number = mask.cumsum(0) - 1  # of a trial among the accepted ones of its sample
    return Run(
        steps=steps,
        ys=outputs.ys[:-1],
        at_hits=torch.stack(rows.at_hits) if rows.at_hits else now.y.new_empty((0, *now.y.shape)),
        last=now.y,
        status=torch.where(bad, int(Status.NONFINITE), now.status),
        reached=reached,
        accepted=mask.sum(0),
        rejected=now.attempts - mask.sum(0),
        first=firsts,
        rounds=tuple(firsts.diff(dim=0).amax(1).tolist()),
        hits=tuple(
            Hit(event, torch.full_like(number[k], k) if whole else number[k], theta, some)
            for event, k, theta, some in rows.hits
        ),
        random=tuple(rows.random),
    )


def _same(values: Tensor) -> Tensor:
    return values


def _finite(y: Tensor) -> Tensor:
    """Whether all entries of a sample are finite, (B,)."""
    return y.reshape(len(y), -1).isfinite().all(1)


def no_steps(outputs: Outputs, now: Control) -> Run:
    """The record of a solve that asks for its start only."""
    y, none = now.y, now.t.new_empty((0, len(now.t)))
    steps = Steps(none, none, y.new_empty((0, *y.shape)), none, none, none, none.bool(), none.new_empty(0).long())
    counts = torch.zeros_like(now.attempts)
    empty = y.new_empty((0, *y.shape))
    return Run(steps, outputs.ys[:-1], empty, y, now.status, now.t, counts, counts, outputs.pointer[None], ())
