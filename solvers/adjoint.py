"""Gradients of the discrete solution: taped as it is made, or replayed step by step from checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .capture import Captured
from .once import once
from .problem import InitialValueProblem
from .replay import (
    Wanted,
    autocast_of,
    gradient_of_hits,
    gradient_of_outputs,
    hits_each,
    piece_of,
    retake,
    same_conditions,
    set_random_states,
)
from .run import Run

COLUMNS = ("ratio", "error", "stiffness")
Integrate = Callable[[InitialValueProblem], Run]  # from a problem to its run


class Adjoint(ABC):
    """How the gradients of a solution are computed."""

    @abstractmethod
    def run(self, problem: InitialValueProblem, integrate: Integrate, captured: Captured) -> Run:
        """Integrate, so that the tensors of the run carry gradients as far as this way of computing them can.

        Args:
            problem: what is solved; its ts and y0 may carry gradients.
            integrate: the loop.
            captured: the tensors with gradients that the dynamics hold.
        """


@dataclass(frozen=True)
class Direct(Adjoint):
    """Differentiate through the solver's operations; memory grows with all stages of all steps.

    Exact gradients of the discrete solution and of its error and stiffness estimates; can be differentiated again.
    """

    def run(self, problem: InitialValueProblem, integrate: Integrate, captured: Captured) -> Run:
        if not problem.samples:
            return integrate(problem)
        with torch.no_grad():
            found = integrate(problem.over(ts=problem.ts.detach(), y0=problem.y0.detach()))
        return _tape(problem, found) if torch.is_grad_enabled() else found


def _tape(problem: InitialValueProblem, run: Run) -> Run:
    """Take the steps of a run again, on the tape."""
    y, samples = problem.y0, torch.arange(problem.y0.shape[0], device=problem.y0.device)
    states: list[Tensor] = []
    columns: dict[str, list[Tensor]] = {name: [] for name in COLUMNS if getattr(run.steps, name) is not None}
    ys, hits = torch.cat([y[None], run.ys[1:], run.ys[:1]]), [torch.zeros_like(y) for _ in run.hits]
    with same_conditions(problem, autocast_of(y.device)):
        for i in range(len(run.steps)):
            if run.random:
                set_random_states(run.random[i], y.device)
            step = retake(problem, run.steps, i, y)
            piece = piece_of(problem, run, i, step, Wanted(), y)
            for name, column in columns.items():
                column.append(getattr(piece, name))
            for k in range(run.rounds[i]):
                row = run.first[i] + k
                assert piece.ys is not None
                ys[torch.where(row < run.first[i + 1], row, len(ys) - 1), samples] = piece.ys[k]
            for h, value in enumerate(hits_each(problem, run, i, step)):
                hits[h] = hits[h] if value is None else hits[h] + value
            states.append(y)
            y = piece.y
    parts = {name: torch.stack(column) for name, column in columns.items() if column}
    steps = replace(run.steps, y=torch.stack(states), **parts) if states else run.steps
    return replace(run, steps=steps, ys=ys[:-1], at_hits=torch.stack(hits) if hits else run.at_hits)


@dataclass(frozen=True)
class Checkpointed(Adjoint):
    """Keep the state at each accepted step and replay one step at a time backwards: the default.

    The same gradients as `Direct`, error and stiffness estimates included, in memory for one state a step.
    They cannot be differentiated again.
    """

    def run(self, problem: InitialValueProblem, integrate: Integrate, captured: Captured) -> Run:
        box: list[Run] = []
        inputs = (problem, integrate, box, captured.shared, problem.ts, problem.y0, *captured.tensors)
        outputs = _Replay.apply(*inputs)  # type: ignore[no-untyped-call]
        ys, at_hits, y, *columns = outputs
        found = box[0]
        steps = found.steps
        parts = dict(zip([name for name in COLUMNS if getattr(steps, name) is not None], columns, strict=True))
        ys = torch.cat([problem.y0[None], ys[1:]])
        return replace(found, steps=replace(steps, y=y, **parts), ys=ys, at_hits=at_hits)


class _Replay(torch.autograd.Function):
    """(ts, y0, known tensors) -> (ys, at_hits, steps.y, ratio, error, stiffness)."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: InitialValueProblem,
        integrate: Integrate,
        box: list[Run],
        shared: bool,
        ts: Tensor,
        y0: Tensor,
        *known: Tensor,
    ) -> tuple[Tensor, ...]:
        run = integrate(problem.over(ts=ts.detach(), y0=y0.detach()))
        box.append(run)
        columns = [getattr(run.steps, name) for name in COLUMNS]
        ctx.names = [name for name, column in zip(COLUMNS, columns, strict=True) if column is not None]
        ctx.problem, ctx.autocast, ctx.shared = problem, autocast_of(y0.device), shared
        empty = replace(run.steps, y=y0.new_empty(0), ratio=None, error=None, stiffness=None)
        ctx.run = replace(run, steps=empty, ys=y0.new_empty(0), at_hits=y0.new_empty(0))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(ts, run.steps.y, *known)
        present = [column for column in columns if column is not None]
        return run.ys, run.at_hits, run.steps.y, *present

    @staticmethod
    @once
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ts, y, *known = ctx.saved_tensors
        needs = ctx.needs_input_grad
        clock = ts.detach().requires_grad_(needs[4])
        problem = ctx.problem.over(ts=clock)
        run = replace(ctx.run, steps=replace(ctx.run.steps, y=y))
        wanted = [one for one, need in zip(known, needs[6:], strict=True) if need]
        pull = _Pull(
            problem,
            run,
            gradients,
            dict(zip(ctx.names, gradients[3:], strict=True)),
            wanted,
            Captured(tuple(known), ctx.shared),
        )
        with same_conditions(problem, ctx.autocast):
            for i in reversed(range(len(run.steps))):
                pull.step(i)
        sums = iter(pull.sums)
        to_known = [next(sums) if need else None for need in needs[6:]]
        return None, None, None, None, pull.clock if needs[4] else None, pull.state, *to_known


class _Pull:
    """Gradients on their way back from step to step."""

    def __init__(
        self,
        problem: InitialValueProblem,
        run: Run,
        gradients: tuple[Tensor | None, ...],
        columns: dict[str, Tensor | None],
        wanted: list[Tensor],
        captured: Captured,
    ) -> None:
        self.problem, self.run, self.wanted, self.captured = problem, run, wanted, captured
        self.ys, self.at_hits, self.y, *_ = gradients
        self.columns = {name: columns.get(name) for name in COLUMNS}
        self.asks = Wanted(
            ratio=self.columns["ratio"] is not None,
            error=self.columns["error"] is not None,
            stiffness=self.columns["stiffness"] is not None,
            ys=self.ys is not None,
            at_hits=self.at_hits is not None,
        )
        self.state: Tensor | None = None
        self.sums: list[Tensor | None] = [None] * len(wanted)
        self.clock: Tensor | None = None

    def step(self, i: int) -> None:
        """Pull the gradients back through the i-th step."""
        problem, run = self.problem, self.run
        if run.random:
            set_random_states(run.random[i], problem.y0.device)
        with torch.enable_grad():
            y = run.steps.y[i].detach().requires_grad_()
            step = retake(problem, run.steps, i, y, (problem.ts, *self.captured.tensors))
            piece = piece_of(problem, run, i, step, self.asks, y)
        pairs = [(piece.y, self.state), (piece.ys, self._of_outputs(i)), (piece.at_hits, self._of_hits(i))]
        pairs += [
            (getattr(piece, name), None if g is None else g[i].reshape(getattr(piece, name).shape))
            for name, g in self.columns.items()
        ]
        live = [(out, g) for out, g in pairs if out is not None and g is not None and out.requires_grad]
        own = None if self.y is None else self.y[i]
        if not live:
            self.state = _plus(own, None)
            return
        inputs = [y, *([problem.ts] if problem.ts.requires_grad else []), *self.wanted]
        outs, gs = zip(*live, strict=True)
        found = list(torch.autograd.grad(outs, inputs, gs, allow_unused=True, retain_graph=self.captured.shared))
        self.state = _plus(found.pop(0), own)
        if problem.ts.requires_grad:
            self.clock = _plus(self.clock, found.pop(0))
        self.sums = [_plus(total, one) for total, one in zip(self.sums, found, strict=True)]

    def _of_outputs(self, i: int) -> Tensor | None:
        if self.ys is None or not self.run.rounds[i]:
            return None
        return gradient_of_outputs(self.problem, self.run, i, self.ys)

    def _of_hits(self, i: int) -> Tensor | None:
        return None if self.at_hits is None else gradient_of_hits(self.problem, self.run, i, self.at_hits)


def _plus(total: Tensor | None, one: Tensor | None) -> Tensor | None:
    if total is None or one is None:
        return one if total is None else total
    return total + one
