"""The adaptive loop as a compiled program of several trials: the host looks once a block.

The field comes into the program as an argument, so that one program serves solves that differ in batch size, times,
tolerances or weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .dynamics import Dynamics, Structure
from .masked import Control, Limits, Rules, Trial, attempt, limits_of, rules_of, start_of, trial_of
from .method import Step, real_dtype
from .per_sample import Outputs, Rows, finish, no_steps
from .problem import InitialValueProblem, spread
from .record import Status
from .run import Run
from .runge_kutta import RungeKutta

TRIALS = 256  # in a block at most
UNROLLED = 8  # in a block on a device, whose loops would ask the host after each trial
VISIT = 2**24  # bytes that are copied in twice the time that a visit of the host takes
PROGRAMS = 64  # kept for different fields, methods and controllers


class Block(NamedTuple):
    """The trials of a block, stacked on axis 0: (K,), (K, B) or (K, *y)."""

    trial: Trial
    y: Tensor


Program = Callable[[Callable[..., Any], Sequence[Any], Limits, Control, Block], tuple[Control, Block, Tensor]]


def obstacle(problem: InitialValueProblem, stochastic: bool) -> str | None:
    """Why a problem cannot be compiled; None where it can."""
    if problem.switch is not None or not isinstance(problem.method, RungeKutta):
        return f"{type(problem.switch or problem.method).__name__} takes a number of evaluations that is not fixed"
    if problem.events:
        return "events are looked for by the host"
    if stochastic:
        return "the field draws random numbers"
    return _missing_compiler(problem.y0.device)


@lru_cache(maxsize=8)
def _missing_compiler(device: torch.device) -> str | None:
    if device.type == "cpu":
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            return "no C++ compiler was found; install g++ or clang++"
        return None
    from torch.utils._triton import has_triton

    return None if has_triton() else f"no back end for {device.type} was found; install triton"


@lru_cache(maxsize=PROGRAMS)
def program_of(rules: Rules, structure: Structure | None, time_dtype: torch.dtype, unrolled: bool) -> Program:
    """The compiled program of a block: from a control and room for a record to both, and the number of trials."""

    def loop(
        field: Callable[..., Any], args: Sequence[Any], limits: Limits, now: Control, record: Block
    ) -> tuple[Control, Block, Tensor]:
        dynamics = Dynamics(field, tuple(args), structure, time_dtype).evaluate
        columns = _columns(record)

        def goes_on(k: Tensor, *carried: Tensor) -> Tensor:
            return (k < len(carried[-1])) & (carried[8] == int(Status.RUNNING)).any()

        def trial(k: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
            before = Control(*carried[:9])
            after, row, _ = attempt(dynamics, rules, limits, before)
            values = _columns(Block(row, before.y))
            rows = [
                torch.index_put(column, (k,), value.to(column.dtype))
                for column, value in zip(carried[9:], values, strict=True)
            ]
            return k + 1, *(one.clone() for one in after), *rows

        start = torch.zeros((), dtype=torch.int64, device=now.t.device)
        count, *carried = torch.while_loop(goes_on, trial, (start, *now, *columns))  # type: ignore[no-untyped-call]
        return Control(*carried[:9]), _block_of(carried[9:], record), count

    def unroll(
        field: Callable[..., Any], args: Sequence[Any], limits: Limits, now: Control, record: Block
    ) -> tuple[Control, Block, Tensor]:
        dynamics = Dynamics(field, tuple(args), structure, time_dtype).evaluate
        rows, states = [], []
        for _ in range(UNROLLED):
            after, row, _ = attempt(dynamics, rules, limits, now)
            rows.append(row)
            states.append(now.y)
            now = after
        trial = trial_of(None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True))
        return now, Block(trial, torch.stack(states)), torch.full((), UNROLLED, device=now.t.device)

    if unrolled:
        return torch.compile(unroll, fullgraph=True, mode="reduce-overhead")
    # without the wrapper in C++ Python starts every kernel, which for small states takes longer than the kernel
    return torch.compile(loop, fullgraph=True, options={"cpp_wrapper": True})


def _columns(block: Block) -> list[Tensor]:
    """The tensors of a block, without what its method does not estimate."""
    return [one for one in (*block.trial, block.y) if one is not None]


def _block_of(columns: Sequence[Tensor], like: Block) -> Block:
    """The inverse of `_columns`."""
    rest = iter(columns)
    trial = trial_of([None if one is None else next(rest) for one in like.trial])
    return Block(trial, next(rest))


def _room(problem: InitialValueProblem, now: Control) -> Block:
    """Space for the record of a block."""
    method = problem.method
    size = now.y.numel() * now.y.element_size() + 7 * 8 * now.t.numel()
    count = max(4, min(TRIALS, math.isqrt(VISIT // size)))  # each trial copies the record, each block is a visit
    kind = now.t.new_empty((count, *now.t.shape))
    real = now.t.new_empty(kind.shape, dtype=real_dtype(now.y))
    error = method.error_order is not None
    return Block(
        Trial(
            t=kind,
            dt=kind.clone(),
            accepted=kind.bool(),
            end=kind.clone(),
            ratio=kind.clone() if error else None,
            error=real if error else None,
            stiffness=real.clone() if method.has_stiffness else None,
        ),
        now.y.new_empty((count, *now.y.shape)),
    )


def integrate_compiled(problem: InitialValueProblem, slope: Tensor, dt: Tensor) -> Run:
    """Integrate in compiled blocks; one visit of the host for each. No tape.

    Args:
        problem: with an explicit method and no events; per sample or joint.
        slope: dynamics(ts[0], y0). dt: lengths of the first steps, () or (B,).
    """
    rules, limits = rules_of(problem, stochastic=False), limits_of(problem)
    dynamics, method = problem.dynamics, problem.method
    if not isinstance(method, RungeKutta):
        raise TypeError(f"only explicit methods can be compiled, got {type(method).__name__}; use compile=False")
    program = program_of(rules, dynamics.structure, dynamics.time_dtype, problem.y0.device.type != "cpu")
    now = start_of(problem, slope, dt)
    single = not problem.samples  # the record of a joint solve is kept as that of one sample
    one = problem.over(y0=problem.y0[None], ts=problem.ts[:, None], samples=True) if single else problem
    outputs, rows, blocks = Outputs(one), Rows(), list[Block]()
    rows.first.append(outputs.pointer[None])
    going = problem.ts.shape[0] > 1 and len(one.y0) > 0
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=PROGRAMS, accumulated_recompile_limit=1024):
        while going:
            room = _room(problem, now)
            if not blocks:
                _let_vary(problem, limits, now, room)
            now, block, count = program(dynamics.field, dynamics.args, limits, now, room)
            if not problem.y0.is_cpu:  # the next replay of a CUDA graph overwrites its outputs
                now, block, count = tree_map_only(Tensor, torch.clone, (now, block, count))
            block = tree_map_only(Tensor, lambda column: column[:, None], block) if single else block
            going, taken = _write(one, single, rows, outputs, limits, block, now, count)
            dynamics.calls += taken * method.evaluations
            blocks.append(tree_map_only(Tensor, lambda column, taken=taken: column[:taken], block))
    now = now._replace(**{name: value[None] for name, value in now._asdict().items()}) if single else now
    if not blocks:
        run = no_steps(outputs, now)
    else:
        columns = zip(*(block.trial for block in blocks), strict=True)
        trials = trial_of(None if column[0] is None else torch.cat(column) for column in columns)
        run = finish(rows, trials, torch.cat([block.y for block in blocks]), outputs, now, whole=False)
    return _joint(run) if single else run


def _let_vary(problem: InitialValueProblem, limits: Limits, now: Control, room: Block) -> None:
    """Tell the compiler which sizes may be others next time: the batch, and the trials of a block."""
    if not problem.y0.ndim:
        return
    controls = (*now[:2], *now[4:], limits.end, limits.sign) if problem.samples else ()
    for one in (now.y, now.slope, *controls):
        torch._dynamo.maybe_mark_dynamic(one, 0)
    for column in _columns(room):
        torch._dynamo.maybe_mark_dynamic(column, 0)
    for column in _columns(room) if problem.samples else [room.y]:
        torch._dynamo.maybe_mark_dynamic(column, 1)


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


def _write(
    one: InitialValueProblem,
    single: bool,
    rows: Rows,
    outputs: Outputs,
    limits: Limits,
    block: Block,
    now: Control,
    count: Tensor,
) -> tuple[bool, int]:
    """Write the values asked for in a block: whether any sample goes on, and the number of trials."""
    trial = block.trial
    valid = torch.arange(len(block.y), device=count.device) < count
    passed = ((outputs.ts[:, None] - trial.end) * limits.sign <= 0).sum(0)
    passed = torch.where(trial.accepted & valid[:, None], passed, 0)
    pointers = torch.cat([outputs.pointer[None], passed]).cummax(0).values
    rounds = pointers.diff(dim=0).amax(1)
    running = (now.status == int(Status.RUNNING)).any()
    going, taken, *counts = torch.cat([running.reshape(1).long(), count.reshape(1), rounds]).tolist()
    rows.first.append(pointers[1 : taken + 1])
    for k in [k for k in range(taken) if counts[k]]:
        here = trial_of(None if column is None else column[k] for column in trial)
        after = block.y[k + 1] if k + 1 < taken else now.y.reshape(block.y.shape[1:])
        outputs.write(here, _Values(one, single, here, block.y[k], after), pointers[k + 1], counts[k])
    outputs.pointer = pointers[taken]
    return bool(going), taken


class _Values:
    """The values in a step of a block: at its end as it was, between by taking the step again."""

    def __init__(self, one: InitialValueProblem, single: bool, trial: Trial, y0: Tensor, y: Tensor) -> None:
        self.one, self.single, self.trial, self.start, self.y = one, single, trial, y0, y
        self._step: Step | None = None

    def at(self, theta: Tensor) -> Tensor:
        if not self.one.ts.shape[0] > 2 or self.one.grid:
            return self.y
        if self._step is None:
            t, dt, method, dynamics = self.trial.t, self.trial.dt, self.one.method, self.one.dynamics
            if self.single:
                self._step = method.step(dynamics, t[0], dt[0], self.start[0])
            else:
                self._step = method.step(dynamics, spread(t, self.y), spread(dt, self.y), self.start)
        return self._step.at(theta.reshape(()))[None] if self.single else self._step.at(theta)
