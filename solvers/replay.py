"""One accepted step once more: for gradients without the tape of the whole solve, for dense output, for heuristics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .capture import moving_buffers
from .dynamics import Guard
from .method import Step, end_at
from .per_sample import fraction
from .problem import InitialValueProblem
from .record import Steps
from .run import Hit, Run, values_at


def retake(problem: InitialValueProblem, steps: Steps, i: int, y: Tensor, guard: Guard | None = None) -> Step:
    """The i-th accepted step from the state y: steps.y[i], or a copy of it with another graph.

    Its gradient reaches y, what the dynamics hold, and ts[0]; not the length of the step. `guard` wraps the functions
    of the dynamics.
    """
    method = problem.methods[int(steps.method[i])]
    if not problem.samples:
        begin, dt = float(steps.t[i, 0]), float(steps.dt[i, 0])
        dynamics = problem.dynamics.again(begin, begin + dt, guard)
        return method.step(dynamics, problem.shift(begin) + begin, dt, y)
    dynamics = problem.dynamics.evaluate if guard is None else guard(problem.dynamics.evaluate)
    t = problem.shift(steps.t[i]) + steps.t[i]
    return method.step(dynamics, problem.spread(t), problem.spread(steps.dt[i]), y)


@dataclass(frozen=True, eq=False)
class Piece:
    """What one step contributes to a run; None where the method has it not or nobody asks."""

    y: Tensor  # state at its end
    ratio: Tensor | None
    error: Tensor | None
    stiffness: Tensor | None
    ys: Tensor | None  # states at the ts in it
    at_hits: Tensor | None  # states at the events in it


@dataclass(frozen=True)
class Wanted:
    """Which parts of a piece are asked for."""

    ratio: bool = True
    error: bool = True
    stiffness: bool = True
    ys: bool = True
    at_hits: bool = True


def piece_of(problem: InitialValueProblem, run: Run, i: int, step: Step, wanted: Wanted, y: Tensor) -> Piece:
    """The contributions of the i-th step, retaken from y."""
    mask = run.steps.mask[i] if problem.samples else None
    ratio = error = stiffness = None
    if wanted.ratio or wanted.error:
        estimate = step.error()
        if estimate is not None:
            ratio = _where(mask, problem.judge(estimate, y, step)) if wanted.ratio else None
            error = _where(mask, problem.size(estimate)) if wanted.error else None
    if wanted.stiffness:
        stiffness = step.stiffness(problem.samples)
        stiffness = None if stiffness is None else _where(mask, stiffness)
    ys = outputs_in(problem, run, i, step) if wanted.ys and run.rounds[i] else None
    at_hits = hits_in(problem, run, i, step) if wanted.at_hits else None
    return Piece(_end_of(problem, run.steps, i, step), ratio, error, stiffness, ys, at_hits)


def _end_of(problem: InitialValueProblem, steps: Steps, i: int, step: Step) -> Tensor:
    """The state after the i-th step; a jump there does not come later with the start."""
    if not problem.jumps or not problem.ts.requires_grad or i + 1 == len(steps):
        return step.y
    t, dt, then = (one.to(problem.ts.device) for one in (steps.t[i], steps.dt[i], steps.t[i + 1]))
    lands = problem.beyond(then) & ~problem.beyond(t)
    if not bool(lands.any()):
        return step.y
    zero = torch.where(lands, problem.shift(t) / torch.where(lands, dt, 1.0), 0.0)
    return end_at(step, 1 - (problem.spread(zero) if problem.samples else zero[0]))


def _where(mask: Tensor | None, value: Tensor) -> Tensor:
    return value if mask is None else torch.where(mask, value, 0)


def outputs_in(problem: InitialValueProblem, run: Run, i: int, step: Step) -> Tensor:
    """States at the ts in the i-th step, (rounds[i], *y); meaningless where a sample has fewer."""
    if not problem.samples:
        inside = range(int(run.first[i, 0]), int(run.first[i + 1, 0]))
        t, dt = float(run.steps.t[i, 0]), float(run.steps.dt[i, 0])
        return torch.stack(values_at(problem, step, t, dt, inside))
    ts = problem.ts if problem.ts.ndim > 1 else problem.ts[:, None].expand(-1, step.y.shape[0])
    start = problem.shift(run.steps.t[i]) + run.steps.t[i]
    values = []
    for k in range(run.rounds[i]):
        theta, _ = fraction(ts, start, run.steps.dt[i], run.first[i] + k, run.first[i + 1])
        values.append(step.at(problem.spread(theta)))
    return torch.stack(values)


def gradient_of_outputs(problem: InitialValueProblem, run: Run, i: int, gradient: Tensor) -> Tensor:
    """The rows of a gradient of ys that belong to `outputs_in`."""
    if not problem.samples:
        return gradient[int(run.first[i, 0]) : int(run.first[i + 1, 0])]
    samples = torch.arange(gradient.shape[1], device=gradient.device)
    rows = [run.first[i] + k for k in range(run.rounds[i])]
    picked = [gradient[row.clamp_max(len(gradient) - 1), samples] for row in rows]
    inside = [problem.spread(row < run.first[i + 1]) for row in rows]
    return torch.stack([torch.where(mask, one, 0) for mask, one in zip(inside, picked, strict=True)])


def set_outputs(problem: InitialValueProblem, run: Run, i: int, ys: Tensor, values: Tensor) -> None:
    """Write `outputs_in` into ys, (T + 1, *y), whose last row takes what is meaningless."""
    if not problem.samples:
        ys[int(run.first[i, 0]) : int(run.first[i + 1, 0])] = values
        return
    samples = torch.arange(ys.shape[1], device=ys.device)
    for k, value in enumerate(values):
        row = run.first[i] + k
        ys[torch.where(row < run.first[i + 1], row, len(ys) - 1), samples] = value


def hits_each(problem: InitialValueProblem, run: Run, i: int, step: Step) -> list[Tensor | None]:
    """For each event the state where it happened, if that is in the i-th step; 0 for samples to which it did not."""
    values: list[Tensor | None] = []
    for hit in run.hits:
        if not isinstance(hit.step, Tensor):
            values.append(step.at(hit.theta) if hit.step == i else None)
            continue
        here = problem.spread(_here(hit, i))
        theta = torch.where(_here(hit, i), hit.theta, 0.0)
        values.append(torch.where(here, step.at(problem.spread(theta)), 0) if bool(here.any()) else None)
    return values


def hits_in(problem: InitialValueProblem, run: Run, i: int, step: Step) -> Tensor | None:
    """The states at the events in the i-th step, one row for each; None where there are none."""
    values = [value for value in hits_each(problem, run, i, step) if value is not None]
    return torch.stack(values) if values else None


def gradient_of_hits(problem: InitialValueProblem, run: Run, i: int, gradient: Tensor) -> Tensor | None:
    """The rows of a gradient of at_hits that belong to `hits_in`."""
    values = []
    for hit, row in zip(run.hits, gradient, strict=True):
        if isinstance(hit.step, int):
            if hit.step == i:
                values.append(row)
        elif bool(_here(hit, i).any()):
            values.append(torch.where(problem.spread(_here(hit, i)), row, 0))
    return torch.stack(values) if values else None


def _here(hit: Hit, i: int) -> Tensor:
    """The samples to which an event happened in their i-th step."""
    return (hit.step == i) & hit.mask  # type: ignore[operator]


@contextlib.contextmanager
def same_conditions(problem: InitialValueProblem, autocast: tuple[bool, torch.dtype]) -> Iterator[None]:
    """Run a replay as the first pass ran: with its autocast, and leaving buffers and random generators as they were."""
    device = problem.y0.device
    buffers = moving_buffers(problem.dynamics.fields)
    before = [buffer.clone() for buffer in buffers]  # BatchNorm counts its batches in them
    enabled, dtype = autocast
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.autocast(device.type, dtype=dtype, enabled=enabled):
            yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.data.copy_(value)  # a tape may hold the buffer, whose version must stay


def autocast_of(device: torch.device) -> tuple[bool, torch.dtype]:
    """Whether autocast is on for a device, and its dtype."""
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)


def set_random_states(states: tuple[Tensor, ...], device: torch.device) -> None:
    """Bring the random generators to where a step found them."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
