"""The record of one integration: the accepted steps, and the values asked for between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from .march import Accepted, March
from .method import Slope, Step
from .problem import InitialValueProblem
from .record import Status, Steps
from .stochastic import Stochastic


@dataclass(frozen=True, eq=False)
class Hit:
    """An event that happened: which, in which step, after what fraction of it."""

    event: int
    step: int | Tensor  # (B,) per sample
    theta: float | Tensor
    mask: Tensor | None = None  # (B,): the samples to which it happened


@dataclass(frozen=True, eq=False)
class Run:
    """What a loop leaves behind. Tensors carry gradients where the loop ran with them.

    The ts in step i are those from first[i] to first[i + 1], at most rounds[i] of them for any sample.
    """

    steps: Steps
    ys: Tensor  # (T, *y), states of the method at ts; NaN where not reached
    at_hits: Tensor  # (E, *y), states of the method at the events
    last: Tensor  # the state where it ended
    status: Tensor  # (1,) or (B,), values of Status
    reached: Tensor  # (1,) or (B,), float64
    accepted: Tensor  # (1,) or (B,)
    rejected: Tensor
    first: Tensor  # (S + 1, 1) or (S + 1, B)
    rounds: tuple[int, ...]
    hits: tuple[Hit, ...] = ()
    random: tuple[tuple[Tensor, ...], ...] = ()  # states of the generators before each step, where they are drawn from
    taped: int = 0  # how many of the first steps are on a tape


@dataclass(eq=False)
class _Lists:
    """A run while it goes on."""

    pieces: list[tuple[float, float, int]] = field(default_factory=list)
    y: list[Tensor] = field(default_factory=list)
    ratio: list[Tensor] = field(default_factory=list)
    error: list[Tensor] = field(default_factory=list)
    stiffness: list[Tensor] = field(default_factory=list)
    ys: list[Tensor] = field(default_factory=list)
    at_hits: list[Tensor] = field(default_factory=list)
    first: list[int] = field(default_factory=lambda: [1])
    hits: list[Hit] = field(default_factory=list)
    random: list[tuple[Tensor, ...]] = field(default_factory=list)


def integrate_lean(problem: InitialValueProblem, slope: Tensor, dt: float) -> Run:
    """March through a problem with fixed steps and no events for the values at ts only: the run has no steps."""
    times: list[float] = problem.ts.tolist()
    sign = 1.0 if times[-1] >= times[0] else -1.0
    method, dynamics = problem.method, problem.dynamics
    noisy = isinstance(dynamics, Stochastic)
    known: Slope = None if noisy else slope
    ys, y, reached, accepted = [problem.y0], problem.y0, times[0], 0
    step: Step | None = None
    for t, end in problem.fixed_steps():
        if accepted == problem.max_steps or end == t:
            break
        if step is not None:
            known = step.slope() if t == reached and (method.carries_noise or not noisy) else None
        step = method.step(dynamics.over(t, end), t, end - t, y, known)
        y, reached, accepted = step.y, end, accepted + 1
        after = len(ys)
        while after < len(times) and (times[after] - end) * sign <= 0:
            after += 1
        ys.extend(values_at(problem, step, t, end - t, range(len(ys), after)))
    if len(ys) < len(times) or not _finite(y):
        return integrate(problem, slope, dt)  # which tells where it happened
    return lean_run(problem, ys, y, accepted)


def lean_run(problem: InitialValueProblem, ys: list[Tensor], last: Tensor, accepted: int) -> Run:
    """The record of a solve that arrived and kept the values at ts only."""
    y0 = problem.y0
    none = problem.ts.new_empty((0, 1))
    steps = Steps(none, none, y0.new_empty((0, *y0.shape)), None, None, None, none.bool(), torch.empty(0).long())
    return Run(
        steps=steps,
        ys=torch.stack(ys),
        at_hits=y0.new_empty((0, *y0.shape)),
        last=last,
        status=torch.tensor([Status.SUCCESS]),
        reached=problem.ts[-1:].detach().cpu(),
        accepted=torch.tensor([accepted]),
        rejected=torch.tensor([0]),
        first=torch.tensor([[1]]),
        rounds=(),
    )


def integrate(
    problem: InitialValueProblem, slope: Tensor, dt: float, stochastic: bool = False, taped: int | None = None
) -> Run:
    """March through a problem whose samples share their steps, and collect; the first `taped` steps on the tape."""
    march = March(problem, slope, dt, stochastic)
    times: list[float] = problem.ts.tolist()
    lists, last = _Lists(ys=[problem.y0]), problem.y0
    taped = problem.max_steps if taped is None else taped
    with torch.set_grad_enabled(torch.is_grad_enabled() and taped > 0):
        for i, piece in enumerate(march):
            lists.pieces.append((piece.t, piece.dt, piece.method))
            lists.y.append(piece.y)
            error = piece.step.error()
            for kept, value in (
                (lists.ratio, piece.ratio),
                (lists.error, None if error is None else problem.size(error)),
                (lists.stiffness, piece.stiffness),
            ):
                if value is not None:
                    kept.append(value)
            if piece.random is not None:
                lists.random.append(piece.random)
            end = piece.t + piece.dt * piece.hits[-1][1] if _ends(problem, piece) else piece.end
            after = len(lists.ys)
            while after < len(times) and (times[after] - end) * march.sign <= 0:
                after += 1
            lists.ys.extend(values_at(problem, piece.step, piece.t, piece.dt, range(len(lists.ys), after)))
            lists.first.append(after)
            lists.hits.extend(Hit(event, i, theta) for event, theta in piece.hits)
            lists.at_hits.extend(piece.step.at(theta) for _, theta in piece.hits)
            last = lists.at_hits[-1] if _ends(problem, piece) else piece.step.y
            if i + 1 == taped:
                torch.set_grad_enabled(False)  # until the block ends
    return _finish(problem, march, lists, last, taped)


def _ends(problem: InitialValueProblem, piece: Accepted) -> bool:
    return any(problem.events[i].terminal for i, _ in piece.hits)


def values_at(problem: InitialValueProblem, step: Step, t: float, dt: float, inside: Sequence[int]) -> list[Tensor]:
    """States at the ts numbered `inside`, which lie in a step from t; with the gradient of ts."""
    if not inside:
        return []
    if problem.ts.requires_grad:
        theta = (problem.ts[list(inside)] - (problem.shift(t) + t)) / dt
        return list(step.at(theta.reshape(-1, *([1] * problem.y0.ndim))))
    ts: list[float] = problem.ts[list(inside)].tolist()
    thetas = [(one - t) / dt for one in ts]
    whole = [step.y] if math.isclose(thetas[-1], 1.0, rel_tol=1e-14) else []
    between = thetas[: len(thetas) - len(whole)]
    if len(between) <= 1:
        return [*(step.at(theta) for theta in between), *whole]
    theta = torch.tensor(between, dtype=torch.float64, device=problem.y0.device)
    return [*step.at(theta.reshape(-1, *([1] * problem.y0.ndim))), *whole]


def _finish(problem: InitialValueProblem, march: March, lists: _Lists, last: Tensor, taped: int) -> Run:
    y0, count = problem.y0, len(lists.pieces)
    t, dt, which = zip(*lists.pieces, strict=True) if count else ((), (), ())
    status = march.status
    if not _finite(last) and not status.failed:
        status = Status.NONFINITE  # steps of fixed length go on through NaN
        bad = [i for i, y in enumerate(lists.y) if not _finite(y)]
        march.reached = t[bad[0] - 1 if bad else count - 1]
    steps = Steps(
        t=torch.tensor(t, dtype=torch.float64).reshape(-1, 1),
        dt=torch.tensor(dt, dtype=torch.float64).reshape(-1, 1),
        y=torch.stack(lists.y) if count else y0.new_empty((0, *y0.shape)),
        ratio=_column(problem, lists.ratio, count, problem.method.error_order is not None),
        error=_column(problem, lists.error, count, problem.method.error_order is not None),
        stiffness=_column(problem, lists.stiffness, count, problem.method.has_stiffness),
        mask=torch.ones(count, 1, dtype=torch.bool),
        method=torch.tensor(which, dtype=torch.int64),
    )
    missing = problem.ts.shape[0] - len(lists.ys)
    return Run(
        steps=steps,
        ys=torch.stack([*lists.ys, *[torch.full_like(y0, torch.nan)] * missing]),
        at_hits=torch.stack(lists.at_hits) if lists.at_hits else y0.new_empty((0, *y0.shape)),
        last=last,
        status=torch.tensor([status]),
        reached=torch.tensor([march.reached], dtype=torch.float64),
        accepted=torch.tensor([march.accepted]),
        rejected=torch.tensor([march.rejected]),
        first=torch.tensor(lists.first).reshape(-1, 1),
        rounds=tuple(b - a for a, b in pairwise(lists.first)),
        hits=tuple(lists.hits),
        random=tuple(lists.random),
        taped=min(taped, count) if torch.is_grad_enabled() else 0,
    )


def _finite(y: Tensor) -> bool:
    return bool(y.detach().isfinite().all())


def _column(problem: InitialValueProblem, values: list[Tensor], count: int, estimates: bool) -> Tensor | None:
    """(S, 1); None where not every step had a value."""
    if not count and estimates:
        return problem.ts.new_empty((0, 1))
    return torch.stack(values).reshape(-1, 1) if count and len(values) == count else None
