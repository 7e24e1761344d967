"""Gradients of the discrete solution: taped as it is made, or replayed step by step from checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .capture import Captured, Guarded, require_known
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
    set_outputs,
    set_random_states,
)
from .run import Run

STATES = 3  # that the graph of a step holds beside each of its evaluations, nearly
NODES = 8  # and nodes
NODE = 1000  # bytes of a node, nearly
DEEPEST = 10_000  # nodes in a graph that Python has looked at: it is let go recursively, on a stack that ends somewhere
COLUMNS = ("ratio", "error", "stiffness")
Integrate = Callable[..., Run]  # the run of `Captured.origin`, given how many steps go on the tape; None: all


class Adjoint(ABC):
    """How the gradients of a solution are computed."""

    @abstractmethod
    def run(self, problem: InitialValueProblem, integrate: Integrate, captured: Captured) -> Run:
        """Integrate, so that the tensors of the run carry gradients as far as this way of computing them can.

        Args:
            problem: what is solved; its ts and y0 may carry gradients.
            integrate: the loop, over `captured.origin`.
            captured: the tensors with gradients that the dynamics hold.
        """


@dataclass(frozen=True)
class Direct(Adjoint):
    """Differentiate through the solver's operations; memory grows with all stages of all steps.

    Exact gradients of the discrete solution and of its error and stiffness estimates; can be differentiated again.
    """

    def run(self, problem: InitialValueProblem, integrate: Integrate, captured: Captured) -> Run:
        found = integrate(taped=None)
        return found if found.taped or not torch.is_grad_enabled() else _tape(problem, found)


def _tape(problem: InitialValueProblem, run: Run) -> Run:
    """Take the steps of a run again, on the tape."""
    y, states = problem.y0, list[Tensor]()
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
            if piece.ys is not None:
                set_outputs(problem, run, i, ys, piece.ys)
            for h, value in enumerate(hits_each(problem, run, i, step)):
                hits[h] = hits[h] if value is None else hits[h] + value
            states.append(y)
            y = piece.y
    count = len(run.steps)
    parts = {name: torch.stack(column).reshape(count, -1) for name, column in columns.items() if column}
    steps = replace(run.steps, y=torch.stack(states), **parts) if states else run.steps
    return replace(run, steps=steps, ys=ys[:-1], at_hits=torch.stack(hits) if hits else run.at_hits)


@dataclass(frozen=True)
class Checkpointed(Adjoint):
    """Keep the state at each accepted step and replay one step at a time backwards: the default.

    The same gradients as `Direct`, error and stiffness estimates included. They cannot be differentiated again.

    Args:
        tape: bytes that may be kept beside the states, nearly: the first steps of an explicit method whose samples
            share them are not replayed as far as this holds all that their gradient needs. 0: replay all.
    """

    tape: int = 2**25

    def __post_init__(self) -> None:
        if isinstance(self.tape, bool) or not isinstance(self.tape, int) or self.tape < 0:
            raise ValueError(f"tape must be a number of bytes, an integer >= 0, got {self.tape!r}")

    def run(self, problem: InitialValueProblem, integrate: Integrate, captured: Captured) -> Run:
        box: list[Run] = []
        tensors = (problem.ts, problem.y0, *captured.tensors)
        taped = self._steps(problem, captured) if torch.is_grad_enabled() else 0
        outputs = _Replay.apply(problem, integrate, box, captured, taped, *tensors)  # type: ignore[no-untyped-call]
        ys, at_hits, y, *columns = outputs
        found = box[0]
        steps = found.steps
        parts = dict(zip([name for name in COLUMNS if getattr(steps, name) is not None], columns, strict=True))
        ys = torch.cat([problem.y0[None], ys[1:]])
        return replace(found, steps=replace(steps, y=y, **parts), ys=ys, at_hits=at_hits)

    def _steps(self, problem: InitialValueProblem, captured: Captured) -> int:
        """How many steps the tape can hold."""
        evaluations = problem.method.evaluations
        if problem.switch is not None or evaluations is None or captured.differentiating:
            return 0
        nodes = captured.nodes + NODES
        held = captured.held + STATES * problem.y0.nbytes + NODE * nodes
        return min(self.tape // (held * max(1, evaluations)), DEEPEST // (nodes * max(1, evaluations)))


class _Replay(torch.autograd.Function):
    """(ts, y0, known tensors) -> (ys, at_hits, steps.y, ratio, error, stiffness)."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: InitialValueProblem,
        integrate: Integrate,
        box: list[Run],
        captured: Captured,
        taped: int,
        ts: Tensor,
        y0: Tensor,
        *known: Tensor,
    ) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(taped > 0):
            run = integrate(taped)
        columns = [getattr(run.steps, name) for name in COLUMNS]
        present = [column for column in columns if column is not None]
        outputs = [run.ys, run.at_hits, run.steps.y, *present]
        if not any(ctx.needs_input_grad):
            require_known(outputs, ())  # nothing has gradients so far: a later step must not need any
        ctx.tape = outputs if run.taped else []
        outputs = [one.detach() for one in outputs]
        empty = y0.new_empty(0)
        run = replace(run, ys=empty, at_hits=empty, last=run.last.detach())
        box.append(run)
        ctx.names = [name for name, column in zip(COLUMNS, columns, strict=True) if column is not None]
        ctx.problem, ctx.autocast, ctx.captured = problem, autocast_of(y0.device), captured
        ctx.run = replace(run, steps=replace(run.steps, y=empty, ratio=None, error=None, stiffness=None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(ts, outputs[2], *known)
        return tuple(outputs)

    @staticmethod
    @once
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ts, y, *known = ctx.saved_tensors
        needs = ctx.needs_input_grad
        clock = ts.detach().requires_grad_(needs[5])
        problem = ctx.problem.over(ts=clock)
        run = replace(ctx.run, steps=replace(ctx.run.steps, y=y))
        wanted = [one for one, need in zip(known, needs[7:], strict=True) if need]
        pull = _Pull(
            problem,
            run,
            gradients,
            dict(zip(ctx.names, gradients[3:], strict=True)),
            wanted,
            replace(ctx.captured, tensors=tuple(known)),
        )
        if run.taped < len(run.steps):
            with same_conditions(problem, ctx.autocast):
                for i in reversed(range(run.taped, len(run.steps))):
                    pull.step(i)
        if run.taped:
            pull.tape(ctx.tape, gradients)
        sums = iter(pull.sums)
        to_known = [next(sums) if need else None for need in needs[7:]]
        return None, None, None, None, None, pull.clock if needs[5] else None, pull.state, *to_known


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
        known = (problem.ts, *captured.tensors)
        self.guard = partial(Guarded, known=known, differentiating=captured.differentiating)
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
            step = retake(problem, run.steps, i, y, self.guard)
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
        self.state = _plus(self._through(live, y, problem.ts, self.captured.shared), own)

    def tape(self, outputs: list[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Pull the gradients back through the steps on the tape, all at once."""
        origin = self.captured.origin
        to_outputs = list(gradients)
        if self.run.taped < len(self.run.steps) and self.state is not None:
            to_states = torch.zeros_like(outputs[2]) if self.y is None else self.y.clone()
            to_states[self.run.taped] = self.state  # which has its own already
            to_outputs[2] = to_states
        live = [(out, g) for out, g in zip(outputs, to_outputs, strict=True) if g is not None and out.requires_grad]
        require_known((out for out, _ in live), (origin.ts, origin.y0, *self.captured.tensors))
        self.state = self._through(live, origin.y0, origin.ts, again=True) if live else None

    def _through(self, live: list[tuple[Tensor, Tensor]], y: Tensor, ts: Tensor, again: bool) -> Tensor | None:
        """Add to the gradients of times and known tensors, and give that of the state y.

        The graph stays if it is to be used `again`.
        """
        inputs = [*([y] if y.requires_grad else []), *([ts] if ts.requires_grad else []), *self.wanted]
        outs, gs = zip(*live, strict=True)
        found = list(torch.autograd.grad(outs, inputs, gs, allow_unused=True, retain_graph=again))
        state = found.pop(0) if y.requires_grad else None
        if ts.requires_grad:
            self.clock = _plus(self.clock, found.pop(0))
        self.sums = [_plus(total, one) for total, one in zip(self.sums, found, strict=True)]
        return state

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
