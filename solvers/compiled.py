"""The adaptive loop as a compiled program of several trials: the host looks once a block.

The field comes into the program as an argument, so that one program serves solves that differ in batch size, times,
tolerances or weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .compiler import PROGRAMS, missing_compiler
from .dynamics import Dynamics, Structure
from .masked import Control, Limits, Rules, Trial, attempt, limits_of, rules_of, start_of
from .method import Step, real_dtype
from .per_sample import Outputs, Rows, finish, no_steps
from .problem import InitialValueProblem, spread
from .record import Status
from .run import Run
from .runge_kutta import RungeKutta

IN_PLACE = torch.__version__ >= "2.13"  # whether a loop may write into what it does not carry
TRIALS = 1024 if IN_PLACE else 32  # that a record has room for at most
ROOM = 2**26  # bytes of a record at most
PATIENCE = 0.5  # seconds between two visits of the host, in which it can be interrupted
UNROLLED = 8  # in a block on a device, whose loops would ask the host after each trial


class Record(NamedTuple):
    """What is kept of the trials, which axis 0 counts."""

    rows: Tensor  # (K, R, *control), float64: the parts of `Trial` that the method has
    y: Tensor  # (K, *y): the states before them


class State(NamedTuple):
    """A control in three tensors, which cost less to carry than nine."""

    clock: Tensor  # (7, *control), float64: all but y and slope
    y: Tensor
    slope: Tensor


# field, args, limits, state, record, (trials in it, trials to stop at) -> state, record, trials in it
Program = Callable[[Callable[..., Any], Sequence[Any], Limits, State, Record, Tensor], tuple[State, Record, Tensor]]


def obstacle(problem: InitialValueProblem, stochastic: bool) -> str | None:
    """Why a problem cannot be compiled; None where it can."""
    if problem.switch is not None or not isinstance(problem.method, RungeKutta):
        return f"{type(problem.switch or problem.method).__name__} takes a number of evaluations that is not fixed"
    if problem.events:
        return "events are looked for by the host"
    if problem.y0.is_complex():
        return "the compiler cannot write complex states"
    if stochastic:
        return "the field draws random numbers"
    return missing_compiler(problem.y0.device)


@lru_cache(maxsize=PROGRAMS)
def program_of(rules: Rules, structure: Structure | None, time_dtype: torch.dtype, unrolled: bool) -> Program:
    """The compiled program of a block: from a control and room for a record to both, and the number of trials."""

    def loop(
        field: Callable[..., Any], args: Sequence[Any], limits: Limits, now: State, record: Record, counts: Tensor
    ) -> tuple[State, Record, Tensor]:
        dynamics = Dynamics(field, tuple(args), structure, time_dtype).evaluate
        start, stop = counts.unbind()

        def goes_on(k: Tensor, clock: Tensor, y: Tensor, slope: Tensor, *copies: Tensor) -> Tensor:
            return (k < stop) & (clock[-1] == int(Status.RUNNING)).any()

        def trial(k: Tensor, clock: Tensor, y: Tensor, slope: Tensor, *copies: Tensor) -> tuple[Tensor, ...]:
            after, row, _ = attempt(dynamics, rules, limits, _unpack(State(clock, y, slope)))
            entries = _row(row), y
            then = _pack(after)._replace(y=after.y.clone(), slope=after.slope.clone())
            if not IN_PLACE:
                copies = tuple(torch.index_put(copy, (k,), one) for copy, one in zip(copies, entries, strict=True))
                return k + 1, *then, *copies
            for column, one in zip(record, entries, strict=True):
                column.index_put_((k,), one)
            return k + 1, *then

        carried = (start.clone(), *now, *(() if IN_PLACE else record))
        count, clock, y, slope, *copies = torch.while_loop(goes_on, trial, carried)  # type: ignore[no-untyped-call]
        return State(clock, y, slope), record if IN_PLACE else Record(*copies), count

    def unroll(
        field: Callable[..., Any], args: Sequence[Any], limits: Limits, now: State, record: Record, counts: Tensor
    ) -> tuple[State, Record, Tensor]:
        dynamics = Dynamics(field, tuple(args), structure, time_dtype).evaluate
        control, rows, states = _unpack(now), [], []
        for _ in range(UNROLLED):
            after, row, _ = attempt(dynamics, rules, limits, control)
            rows.append(_row(row))
            states.append(control.y)
            control = after
        return _pack(control), Record(torch.stack(rows), torch.stack(states)), torch.full_like(counts[0], UNROLLED)

    if unrolled:
        return torch.compile(unroll, fullgraph=True, mode="reduce-overhead")
    # without the wrapper in C++ Python starts every kernel, which for small states takes longer than the kernel
    # (before torch 2.13 the plan for reusing buffers can fail in a loop: "End index out of bounds")
    return torch.compile(loop, fullgraph=True, options={"cpp_wrapper": True, "allow_buffer_reuse": IN_PLACE})


def _pack(now: Control) -> State:
    return State(torch.stack([one.double() for one in (*now[:2], *now[4:])]), now.y, now.slope)


def _unpack(state: State) -> Control:
    t, dt, earlier, before, *counts = state.clock.unbind()
    return Control(t, dt, state.y, state.slope, earlier, before, *(one.long() for one in counts))


def _row(trial: Trial) -> Tensor:
    """The parts of a trial that its method has, (R, *control), float64."""
    return torch.stack([one.double() for one in trial if one is not None])


def _trials(problem: InitialValueProblem, rows: Tensor) -> Trial:
    """The inverse of `_row`, for rows (N, R, *control)."""
    t, dt, accepted, end, *rest = rows.unbind(1)
    estimates, method = iter(rest), problem.method
    ratio, error = (next(estimates), next(estimates)) if method.error_order is not None else (None, None)
    stiffness = next(estimates) if method.has_stiffness else None
    real = real_dtype(problem.y0)
    return Trial(
        t,
        dt,
        accepted.bool(),
        end,
        ratio,
        None if error is None else error.to(real),
        None if stiffness is None else stiffness.to(real),
    )


def _room(problem: InitialValueProblem, now: Control) -> Record:
    """Space for the record of some trials."""
    method = problem.method
    parts = 4 + 2 * (method.error_order is not None) + method.has_stiffness
    size = now.y.numel() * now.y.element_size() + parts * 8 * now.t.numel()
    trials = min(TRIALS, max(4, ROOM // max(size, 1)))
    return Record(now.t.new_empty((trials, parts, *now.t.shape)), now.y.new_empty((trials, *now.y.shape)))


def integrate_compiled(problem: InitialValueProblem, slope: Tensor, dt: Tensor) -> Run:
    """Integrate in compiled blocks; one visit of the host for each. No tape.

    Args:
        problem: with an explicit method and no events; per sample or joint.
        slope: dynamics(ts[0], y0). dt: lengths of the first steps, () or (B,).
    """
    if not isinstance(problem.method, RungeKutta):
        raise TypeError(f"only explicit methods can be compiled, got {type(problem.method).__name__}")
    now, records = start_of(problem, slope, dt), list[Record]()
    if problem.ts.shape[0] > 1 and now.t.numel():
        table = problem.method.table
        now, records = _run_blocks(problem, table.stages if problem.jumps else problem.method.evaluations, now)
    single = not problem.samples  # the record of a joint solve is kept as that of one sample
    one = problem.over(y0=problem.y0[None], ts=problem.ts[:, None], samples=True) if single else problem
    now = now._replace(**{name: value[None] for name, value in now._asdict().items()}) if single else now
    outputs = Outputs(one)
    if not records:
        run = no_steps(outputs, now)
    else:
        rows, y = records[0] if len(records) == 1 else map(torch.cat, zip(*records, strict=True))
        trials = _trials(problem, rows[..., None] if single else rows)
        y = y[:, None] if single else y
        with torch.no_grad():
            first = _read_off(one, single, outputs, trials, y, now.y)
        run = finish(Rows(first=first), trials, y, outputs, now, whole=False)
    return _joint(run) if single else run


def _run_blocks(problem: InitialValueProblem, evaluations: int, control: Control) -> tuple[Control, list[Record]]:
    """Try until every sample is done: the control after it, and the records of all trials."""
    rules, limits, dynamics = rules_of(problem, stochastic=False), limits_of(problem), problem.dynamics
    unrolled = problem.y0.device.type != "cpu"
    program = program_of(rules, dynamics.structure, dynamics.time_dtype, unrolled)
    now, record, records = _pack(control), _room(problem, control), list[Record]()
    _let_vary(problem, limits, now, record)
    going, taken, seconds = 1, 0, dynamics.seconds * evaluations
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=PROGRAMS, accumulated_recompile_limit=1024):
        while going:
            begun, before = time.perf_counter(), taken
            stop = min(before + 1 + int(PATIENCE / max(seconds, 1e-9)), len(record.y))
            counts = torch.tensor([before, stop], device=problem.y0.device)
            now, record, count = program(dynamics.field, dynamics.args, limits, now, record, counts)
            if unrolled:  # the next replay of a CUDA graph overwrites its outputs
                now, record, count = tree_map_only(Tensor, torch.clone, (now, record, count))
            running = (now.clock[-1] == int(Status.RUNNING)).any()
            going, taken = torch.stack([running.long(), count]).tolist()
            dynamics.calls += (taken - before) * evaluations
            seconds = (time.perf_counter() - begun) / max(1, taken - before)
            if not going or taken == len(record.y):
                used = (column if taken == len(column) else column[:taken].clone() for column in record)
                records.append(Record(*used))
                record, taken = (_room(problem, control) if going and not unrolled else record), 0
    return _unpack(now), records


def _let_vary(problem: InitialValueProblem, limits: Limits, now: State, record: Record) -> None:
    """Tell the compiler which sizes may be others next time: the batch, and the trials of a record."""
    if not problem.y0.ndim:
        return
    ends = (limits.end, limits.sign) if problem.samples else ()
    for one in (now.y, now.slope, *ends, *record):
        torch._dynamo.maybe_mark_dynamic(one, 0)
    torch._dynamo.maybe_mark_dynamic(record.y, 1)
    if problem.samples:
        torch._dynamo.maybe_mark_dynamic(now.clock, 1)
        torch._dynamo.maybe_mark_dynamic(record.rows, 2)


def _read_off(
    one: InitialValueProblem, single: bool, outputs: Outputs, trials: Trial, y: Tensor, last: Tensor
) -> list[Tensor]:
    """Write the values asked for, given all trials (N, B), the states before them and the last: the pointers.

    A time that lies within a step is read off that step, taken again: all samples at once.
    """
    pointers, trial = outputs.passing(trials)
    inside = trial < len(y)
    trial = trial.clamp_max(len(y) - 1)
    t, dt, end = (column.gather(0, trial) for column in (trials.t, trials.dt, trials.end))
    theta = torch.where(inside, (outputs.ts - t) / torch.where(inside, dt, 1.0), 1.0)
    at_end = (end == outputs.ts) | ~inside | one.grid
    others = torch.cat([inside[:1], trial.diff(dim=0) != 0]).any(1)
    between, others = torch.stack([~at_end.all(1), others]).tolist()
    step: Step | None = None
    for r in range(1, len(outputs.ts)):
        is_last = trial[r] + 1 == len(y)
        after = y[(trial[r] + 1).clamp_max(len(y) - 1), outputs.samples]
        value = after = torch.where(spread(is_last, after), last, after)
        step = None if others[r] else step
        if between[r]:
            if step is None:
                start = y[trial[r], outputs.samples]
                moment, length = (x[r, 0] if single else spread(x[r], start) for x in (t, dt))
                step = one.method.step(one.dynamics, moment, length, start[0] if single else start)
            value = step.at(theta[r, 0])[None] if single else step.at(spread(theta[r], after))
            value = torch.where(spread(at_end[r], after), after, value)
        outputs.ys[r] = torch.where(spread(inside[r], after), value, torch.nan)
    return [torch.ones_like(outputs.pointer[None]), pointers]


def _joint(run: Run) -> Run:
    """The record of one sample as that of a joint solve; its control on the CPU."""
    steps = replace(
        run.steps, t=run.steps.t.cpu(), dt=run.steps.dt.cpu(), mask=run.steps.mask.cpu(), y=run.steps.y.squeeze(1)
    )
    return replace(
        run,
        steps=steps,
        ys=run.ys.squeeze(1),
        at_hits=run.at_hits.squeeze(1),
        last=run.last.squeeze(0),
        first=run.first.cpu(),
        status=run.status.cpu(),
        reached=run.reached.cpu(),
    )
