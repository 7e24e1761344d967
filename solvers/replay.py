"""One accepted step once more: for gradients without the tape of the whole solve, for dense output, for heuristics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .capture import modules_of, require_known
from .dynamics import Dynamics
from .method import Step
from .problem import InitialValueProblem
from .record import Steps
from .run import Run, outputs_in


class Guarded:
    """Dynamics that check, at the first call of a step, that no gradient would be lost."""

    def __init__(self, dynamics: Dynamics, known: tuple[Tensor, ...]) -> None:
        self.dynamics = dynamics
        self.known = known
        self._checked = False

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        slope = self.dynamics.evaluate(t, y)
        if not self._checked:
            require_known(slope, (t, y, *self.known))
            self._checked = True
        return slope


def retake(
    problem: InitialValueProblem, steps: Steps, i: int, y: Tensor, known: tuple[Tensor, ...] | None = None
) -> Step:
    """The i-th accepted step from the state y: steps.y[i], or a copy of it with another graph.

    Its gradient reaches y, what the dynamics hold, and ts[0]; not the length of the step.
    """
    dynamics = problem.dynamics if known is None else Guarded(problem.dynamics, known)
    method = problem.methods[int(steps.method[i])]
    zero = problem.ts[0] - problem.ts[0].detach()
    if not problem.samples:
        return method.step(dynamics, zero + float(steps.t[i, 0]), float(steps.dt[i, 0]), y)
    t, dt = problem.spread(zero + steps.t[i]), problem.spread(steps.dt[i])
    return method.step(dynamics, t, dt, y)


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
    ratio = error = stiffness = ys = at_hits = None
    if wanted.ratio or wanted.error:
        estimate = step.error()
        if estimate is not None:
            ratio = problem.judge(estimate, y, step) if wanted.ratio else None
            error = problem.size(estimate) if wanted.error else None
    if wanted.stiffness:
        stiffness = step.stiffness(problem.samples)
    if wanted.ys and run.rounds[i]:
        ys = torch.stack(outputs_in(problem, run, i, step))
    hits = [hit for hit in run.hits if hit.step == i]
    if wanted.at_hits and hits:
        at_hits = torch.stack([step.at(hit.theta) for hit in hits])
    return Piece(step.y, ratio, error, stiffness, ys, at_hits)


@contextlib.contextmanager
def same_conditions(problem: InitialValueProblem, autocast: tuple[bool, torch.dtype]) -> Iterator[None]:
    """Run a replay as the first pass ran: with its autocast, and leaving buffers and random generators as they were."""
    device = problem.y0.device
    modules = modules_of(problem.dynamics.field)
    buffers = [buffer for module in modules for buffer in module.buffers()] if any(m.training for m in modules) else []
    before = [buffer.clone() for buffer in buffers]  # BatchNorm counts its batches in them
    enabled, dtype = autocast
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.autocast(device.type, dtype=dtype, enabled=enabled):
        yield
    with torch.no_grad():
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def autocast_of(device: torch.device) -> tuple[bool, torch.dtype]:
    """Whether autocast is on for a device, and its dtype."""
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)


def set_random_states(states: tuple[Tensor, ...], device: torch.device) -> None:
    """Bring the random generators to where a step found them."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
