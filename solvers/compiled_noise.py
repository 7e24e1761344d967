"""Steps of a stochastic equation as a compiled program: for solves with steps of one length, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from .compiler import PROGRAMS, missing_compiler
from .controller import Fixed
from .dynamics import Dynamics, Structure
from .method import Method
from .problem import InitialValueProblem
from .run import Run, integrate_lean, lean_run
from .stochastic import Driven, Kind, Stochastic

BLOCK = 8  # steps in a program; the others, before each of the times that are asked for, are taken one by one

# drift, diffusion, args, t, y, increments, areas -> y after a block of steps
Program = Callable[
    [Callable[..., Any], Callable[..., Any], Sequence[Any], Tensor, Tensor, Tensor, Tensor | None], Tensor
]


def noisy_obstacle(problem: InitialValueProblem, stochastic: bool) -> str | None:
    """Why the steps of a stochastic equation cannot be compiled; None where they can."""
    if not isinstance(problem.controller, Fixed) or problem.controller.step is None:
        return "stochastic equations are compiled for steps of one length, controller=Fixed(step)"
    if torch.is_grad_enabled():
        return "stochastic equations are compiled without gradients: solve under torch.no_grad()"
    if stochastic:
        return "drift or diffusion draw random numbers"
    return missing_compiler(problem.y0.device)


def integrate_blocks(problem: InitialValueProblem, slope: Tensor) -> Run:
    """Solve a problem with steps of one length for the values at ts only: the run has no steps.

    Args:
        problem: stochastic, without estimates to be recorded.
        slope: as in `March`.
    """
    dynamics, controller = problem.dynamics, problem.controller
    assert isinstance(dynamics, Stochastic)
    assert isinstance(controller, Fixed)
    assert controller.step is not None
    dt, y = controller.step, problem.y0
    pieces = list(islice(problem.fixed_steps(), problem.max_steps + 1))  # of tiny steps there is no end
    wanted = set(problem.ts.tolist())
    stops = wanted.union(problem.stops)
    if not 0 < len(pieces) <= problem.max_steps:
        return integrate_lean(problem, slope, dt)
    program = program_of(problem.method, dynamics.kind, dynamics.structure, dynamics.time_dtype, dt)
    drifts, diffusions = _work(problem, dynamics, dt)
    ys, done = [y], 0
    while done < len(pieces):
        block = pieces[done : done + BLOCK]
        inside = any(end in stops for _, end in block[:-1])
        t, end = block[-1]
        if len(block) == BLOCK and not inside and abs(end - t - dt) < 1e-9 * dt:
            y = _block(problem, dynamics, program, block, y)
            dynamics.calls += BLOCK * drifts
            dynamics.diffusion.calls += BLOCK * diffusions
        else:
            t, end = block[0]
            block = block[:1]
            y = problem.method.step(dynamics.over(t, end), t, end - t, y).y
        done += len(block)
        if end in wanted:
            ys.append(y)
    if not bool(y.isfinite().all()):
        return integrate_lean(problem, slope, dt)  # which tells where it happened
    return lean_run(problem, ys, y, len(pieces))


_known: dict[tuple[Method, Kind, tuple[int, ...]], tuple[int, int]] = {}


def _work(problem: InitialValueProblem, dynamics: Stochastic, dt: float) -> tuple[int, int]:
    """Evaluations of drift and diffusion in a step, found by taking one that does not count."""
    key = (problem.method, dynamics.kind, dynamics.path.shape)
    if key not in _known:
        calls, diffusions = dynamics.calls, dynamics.diffusions
        t = float(problem.ts[0])
        problem.method.step(dynamics.over(t, min(t + dt, float(problem.ts[-1]))), problem.ts[0], dt, problem.y0)
        _known[key] = (dynamics.calls - calls, dynamics.diffusions - diffusions)
        dynamics.calls, dynamics.diffusion.calls = calls, diffusions
    return _known[key]


def _block(
    problem: InitialValueProblem,
    dynamics: Stochastic,
    program: Program,
    block: Sequence[tuple[float, float]],
    y: Tensor,
) -> Tensor:
    """The state after a block of steps from y."""
    path = dynamics.path
    if problem.method.needs_area:
        noise = [path.with_area(t, end) for t, end in block]
        increments, areas = torch.stack([w for w, _ in noise]), torch.stack([area for _, area in noise])
    else:
        increments, areas = torch.stack([path.increment(t, end) for t, end in block]), None
    t = torch.full_like(problem.ts[0], block[0][0])
    return program(dynamics.field, dynamics.diffusion.field, dynamics.args, t, y, increments, areas)


@lru_cache(maxsize=PROGRAMS)
def program_of(method: Method, kind: Kind, structure: Structure | None, time_dtype: torch.dtype, dt: float) -> Program:
    """The compiled program of a block of steps."""

    def block(
        drift: Callable[..., Any],
        diffusion: Callable[..., Any],
        args: Sequence[Any],
        t: Tensor,
        y: Tensor,
        increments: Tensor,
        areas: Tensor | None,
    ) -> Tensor:
        f = Dynamics(drift, tuple(args), structure, time_dtype).evaluate
        g = Dynamics(diffusion, tuple(args), structure, time_dtype).evaluate
        for k in range(BLOCK):
            w, area = increments[k], None if areas is None else areas[k]
            noisy = Driven(kind, f, g, dt, lambda _, w=w, area=area: (w, area))  # type: ignore[misc]
            y = method.step(noisy, t + k * dt, dt, y).y
        return y

    return torch.compile(block, fullgraph=True)
