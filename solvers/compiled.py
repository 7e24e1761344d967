"""The adaptive loop as a compiled program of several trials: the host looks once a block.

The field comes into the program as an argument, so that one program serves solves that differ in batch size, times,
tolerances or weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .dynamics import Dynamics, Structure
from .masked import Control, Limits, Rules, Trial, attempt, limits_of, rules_of, spread, start_of
from .per_sample import Outputs, Rows, finish, no_steps
from .problem import InitialValueProblem
from .record import Status
from .run import Run
from .runge_kutta import RungeKutta, RungeKuttaStep

TRIALS = 8  # in a block: more cost compilation, fewer more visits of the host
PROGRAMS = 64  # kept for different fields, methods and controllers


class Block(NamedTuple):
    """The trials of a block, stacked on axis 0: (K,), (K, B) or (K, *y)."""

    trial: Trial
    y: Tensor
    slopes: Tensor | None  # (K, stages, *y), where values between steps are wanted


Program = Callable[[Callable[..., Any], Sequence[Any], Limits, Control], tuple[Control, Block]]


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
def program_of(
    rules: Rules, structure: Structure | None, time_dtype: torch.dtype, between: bool, device: str
) -> Program:
    """The compiled program of a block of trials."""

    def block(field: Callable[..., Any], args: Sequence[Any], limits: Limits, now: Control) -> tuple[Control, Block]:
        dynamics = Dynamics(field, tuple(args), structure, time_dtype).evaluate
        trials, states, slopes = [], [], []
        for _ in range(TRIALS):
            then, trial, step = attempt(dynamics, rules, limits, now)
            trials.append(trial)
            states.append(now.y)
            if between:
                slopes.append(torch.stack(step.slopes))  # type: ignore[attr-defined]
            now = then
        columns = [None if column[0] is None else torch.stack(column) for column in zip(*trials, strict=True)]
        return now, Block(Trial(*columns), torch.stack(states), torch.stack(slopes) if between else None)

    if device == "cpu":  # without it Python starts every kernel, which for small states takes longer than the kernel
        return torch.compile(block, fullgraph=True, options={"cpp_wrapper": True})
    return torch.compile(block, fullgraph=True, mode="reduce-overhead")


def integrate_compiled(problem: InitialValueProblem, slope: Tensor, dt: Tensor) -> Run:
    """Integrate in compiled blocks; one visit of the host for each. No tape.

    Args:
        problem: with an explicit method and no events; per sample or joint.
        slope: dynamics(ts[0], y0). dt: lengths of the first steps, () or (B,).
    """
    rules, limits = rules_of(problem, stochastic=False), limits_of(problem)
    between = problem.ts.shape[0] > 2
    dynamics, method = problem.dynamics, problem.method
    if not isinstance(method, RungeKutta):
        raise TypeError(f"only explicit methods can be compiled, got {type(method).__name__}; use compile=False")
    program = program_of(rules, dynamics.structure, dynamics.time_dtype, between, problem.y0.device.type)
    now = start_of(problem, slope, dt)
    single = not problem.samples  # the record of a joint solve is kept as that of one sample
    one = problem.over(y0=problem.y0[None], ts=problem.ts[:, None], samples=True) if single else problem
    outputs, rows, blocks = Outputs(one), Rows(), list[Block]()
    rows.first.append(outputs.pointer[None])
    _let_batch_vary(problem, limits, now)
    going = problem.ts.shape[0] > 1
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=PROGRAMS, accumulated_recompile_limit=1024):
        while going:
            now, block = program(dynamics.field, dynamics.args, limits, now)
            if problem.y0.is_cuda:  # the next replay of a CUDA graph overwrites its outputs
                now, block = tree_map_only(Tensor, torch.clone, (now, block))
            dynamics.calls += TRIALS * method.evaluations
            block = _as_one_sample(block) if single else block
            going = _write(method, _of_one(dynamics) if single else dynamics, rows, outputs, limits, block, now)
            blocks.append(block._replace(slopes=None))
    now = now._replace(**{name: value[None] for name, value in now._asdict().items()}) if single else now
    if not blocks:
        run = no_steps(outputs, now)
    else:
        columns = zip(*(block.trial for block in blocks), strict=True)
        trials = Trial(*(None if column[0] is None else torch.cat(column) for column in columns))
        run = finish(rows, trials, torch.cat([block.y for block in blocks]), outputs, now, whole=False)
    return _joint(run) if single else run


def _let_batch_vary(problem: InitialValueProblem, limits: Limits, now: Control) -> None:
    """Tell the compiler that axis 0 may have another size next time."""
    along = [now.y, now.slope, *((*now[:2], *now[4:], limits.end, limits.sign) if problem.samples else ())]
    if problem.y0.ndim:
        for one in along:
            torch._dynamo.maybe_mark_dynamic(one, 0)


def _of_one(dynamics: Dynamics) -> Callable[[Tensor, Tensor], Tensor]:
    """Dynamics of a joint state that comes with an axis for one sample."""
    return lambda t, y: dynamics(t.reshape(()), y[0])[None]


def _as_one_sample(block: Block) -> Block:
    trial = Trial(*(None if column is None else column[:, None] for column in block.trial))
    return Block(trial, block.y[:, None], None if block.slopes is None else block.slopes[:, :, None])


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
    method: RungeKutta,
    dynamics: Callable[[Tensor, Tensor], Tensor],
    rows: Rows,
    outputs: Outputs,
    limits: Limits,
    block: Block,
    now: Control,
) -> bool:
    """Write the values asked for in a block; whether any sample goes on."""
    trial = block.trial
    passed = ((outputs.ts[:, None] - trial.end) * limits.sign <= 0).sum(0)
    passed = torch.where(trial.accepted, passed, 0)
    pointers = torch.cat([outputs.pointer[None], passed]).cummax(0).values
    rows.first.append(pointers[1:])
    rounds = pointers.diff(dim=0).amax(1)
    going, *counts = torch.cat([(now.status == int(Status.RUNNING)).any().reshape(1).long(), rounds]).tolist()
    if block.slopes is None:
        outputs.pointer = pointers[-1]
        done = (now.status == int(Status.SUCCESS)).reshape(-1)
        last = now.y.reshape(block.y.shape[1:])
        outputs.ys[1] = torch.where(spread(done, last), last, torch.nan)
        return bool(going)
    for k, count in enumerate(counts):
        if count:
            here = Trial(*(None if column is None else column[k] for column in trial))
            after = block.y[k + 1] if k + 1 < TRIALS else now.y.reshape(block.y.shape[1:])
            t, dt = spread(here.t, after), spread(here.dt, after)
            step = RungeKuttaStep(method, dynamics, t, dt, block.y[k], list(block.slopes[k]), {}, after)
            outputs.write(here, step, pointers[k + 1], count)
    outputs.pointer = pointers[-1]
    return bool(going)
