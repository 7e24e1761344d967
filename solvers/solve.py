"""The public face: check what comes in, choose what was left open, march, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .adjoint import Adjoint, Checkpointed, Direct
from .arguments import methods_of, problem_of
from .capture import Captured, first_slope, moving_buffers
from .compiled import integrate_compiled, obstacle
from .compiled_noise import integrate_blocks, noisy_obstacle
from .controller import Controller, Fixed
from .dynamics import Dynamics, State, structure_of
from .event import Event
from .first_step import first_step
from .march import random_states
from .method import Method, Step, real_dtype
from .once import once
from .per_sample import integrate_per_sample
from .problem import InitialValueProblem
from .record import Happening, Stats, Status
from .run import Hit, Run, integrate, integrate_lean
from .runge_kutta import Tsit5
from .solution import Solution
from .stochastic import Stochastic
from .switch import AutoSwitch
from .untraced import untraced
from .warn import warn_user


@untraced
def odeint(
    field: Callable[..., Any],
    y0: State,
    ts: Tensor | Sequence[float],
    *,
    method: Method | AutoSwitch = Tsit5(),
    controller: Controller | None = None,
    per_sample: bool = False,
    rtol: float | Tensor = 1e-3,
    atol: float | Tensor = 1e-6,
    args: Sequence[Any] = (),
    events: Sequence[Event] = (),
    stops: Sequence[float] = (),
    jumps: Sequence[float] = (),
    adjoint: Adjoint = Checkpointed(),
    compile: bool | Literal["auto"] = False,
    max_steps: int = 10_000,
    throw: bool = True,
) -> Solution:
    """Solve dy/dt = field(t, y, *args) from y(ts[0]) = y0.

    Args:
        field: gives dy/dt, structured and shaped as y. It gets t as a scalar (), or (B, 1, ..., 1) with `per_sample`
            ((B,) where y is a tuple or dict), in the real dtype of y.
        y0: a tensor of any shape, real or complex, or a tuple or dict of tensors.
        ts: times at which the solution is wanted, strictly increasing or decreasing, (T,); with `per_sample` also
            (T, B). Kept in float64.
        method: Tsit5(), Dopri5(), Bosh3(), Dopri8(), Vern7(), ... ; Rosenbrock23(), Rodas5P(), Kvaerno3(), Kvaerno5()
            for stiff problems; AutoSwitch(Tsit5(), Rosenbrock23()) decides on its own.
        controller: PI(), I(), PID() or Fixed(step). Default: PI(), or Fixed() (one step between two ts) for methods
            without an error estimate.
        per_sample: whether axis 0 of y is a batch of independent problems, each with its own steps, times and status.
        rtol, atol: a step is accepted where its local error is below atol + rtol |y|: numbers, or tensors that
            broadcast to y.
        args: further arguments of the field.
        events: where something happens, and whether the solve ends there.
        stops: times that steps must hit. jumps: times at which the field jumps; no step reaches over them.
        adjoint: how gradients are computed: Checkpointed(), Direct(), Backsolve(), Interpolating() or Reversible().
        compile: True: run the loop as one compiled program; "auto": where there is a compiler; False: step by step.
        max_steps: attempted steps, > 0.
        throw: whether a solve that stops short raises; else its `status` says so and what it reached is returned.

    Returns:
        A `Solution`: ys (T, *y0), status, stats, steps with their error and stiffness, events; callable between ts.

    Raises:
        TypeError, ValueError: an argument does not fit; it is named.
        RuntimeError: the solve stopped short and `throw` is set.
    """
    require_adjoint(adjoint)
    problem = problem_of(
        field, y0, ts, method, controller, per_sample, rtol, atol, args, events, stops, jumps, max_steps
    )
    solution = solve(problem, adjoint, compile)
    if throw and not solution.success:
        raise RuntimeError(solution.report())
    return solution


def require_adjoint(adjoint: object) -> None:
    """Raise TypeError unless it is an adjoint."""
    if not isinstance(adjoint, Adjoint):
        got = adjoint.__name__ if isinstance(adjoint, type) else repr(adjoint)
        raise TypeError(f"adjoint must be an Adjoint such as Checkpointed() or Direct(), got {got}")


def step(
    field: Callable[..., Any],
    t: float | Tensor,
    dt: float | Tensor,
    y: Tensor,
    *,
    method: Method = Tsit5(),
    slope: Tensor | None = None,
    args: Sequence[Any] = (),
) -> Step:
    """Take one step by hand, with its error, stiffness and values between: a loop of your own around the methods.

    Args:
        field: as in `odeint`.
        t, dt: start and signed length: numbers, or (B, 1, ..., 1) tensors that broadcast to y.
        y: a state, or the `y` of the step before.
        method: a method.
        slope: field(t, y) where it is known, such as the `slope()` of the step before.
        args: further arguments of the field.

    Returns:
        A `Step`: y at t + dt; slope(), error(), stiffness(samples) and at(theta) are computed when called. Gradients
        reach y, t and what the field holds.

    Raises:
        TypeError, ValueError: y is no tensor, or the field does not fit it.
    """
    structure_of(y, batched=False)
    if not isinstance(y, Tensor):
        raise TypeError(f"y must be a tensor for single steps, got {type(y).__name__}")
    if len(methods_of(method)) > 1 or method.lift(y) is not y:
        raise ValueError(
            f"method must carry nothing but y from step to step, which {type(method).__name__} does not: use odeint"
        )
    dynamics = Dynamics(field, tuple(args), None, real_dtype(y))
    time = torch.as_tensor(t, dtype=torch.float64, device=y.device)
    if slope is None:
        slope = dynamics.checked(time, method.lower(y))
    length = dt.to(torch.float64) if isinstance(dt, Tensor) else float(dt)
    return method.step(dynamics, time, length, y, slope)


def solve(problem: InitialValueProblem, adjoint: Adjoint, compile: bool | Literal["auto"] = False) -> Solution:
    """Solve a problem whose arguments were checked."""
    before = random_states(problem.y0.device)
    if isinstance(adjoint, Direct):
        slope, captured = problem.dynamics.first(*problem.first())[0], Captured(problem)
    else:
        slope, captured = first_slope(problem)
    stochastic = not all(map(torch.equal, before, random_states(problem.y0.device)))
    with torch.no_grad():
        dt = _first_step(problem, slope)
    base = problem.dynamics.calls
    compiled = bool(compile) and _compiles(problem, compile, stochastic)
    noisy = isinstance(problem.dynamics, Stochastic)

    def forward(taped: int | None = 0) -> Run:
        one = captured.origin
        if compiled:
            return integrate_compiled(one, slope.detach(), dt)
        if one.samples:
            return integrate_per_sample(one, slope.detach(), dt, stochastic)
        return integrate(one, slope, dt.item(), stochastic, taped)

    if (noisy or not compiled) and _lean(problem, adjoint, stochastic):
        found = integrate_blocks(problem, slope) if compiled else integrate_lean(problem, slope, dt.item())
        return _solution(problem, found, base, recorded=len(found.steps) > 0)
    run = adjoint.run(problem, forward, captured)
    return _solution(problem, run, base)


def _lean(problem: InitialValueProblem, adjoint: Adjoint, stochastic: bool) -> bool:
    """Whether the steps need not be recorded: no gradient asks for them, and they can be taken again."""
    if torch.is_grad_enabled() or stochastic or not isinstance(adjoint, (Checkpointed, Direct)):
        return False
    if not isinstance(problem.controller, Fixed) or problem.samples or problem.events:
        return False
    return not (torch.is_autocast_enabled(problem.y0.device.type) or moving_buffers(problem.dynamics.fields))


def _compiles(problem: InitialValueProblem, wanted: bool | str, stochastic: bool) -> bool:
    """Whether to compile; says once why not where that is left to us.

    Raises:
        ValueError: it is asked for and cannot be.
    """
    if wanted not in {True, "auto"}:
        raise ValueError(f'compile must be True, False or "auto", got {wanted!r}')
    noisy = isinstance(problem.dynamics, Stochastic)
    reason = noisy_obstacle(problem, stochastic) if noisy else obstacle(problem, stochastic)
    if reason is not None and wanted is True:
        raise ValueError(f'compile=True is not possible: {reason}; use compile="auto" or False')
    if reason is not None and reason not in _said:
        _said.add(reason)
        warn_user(f"not compiled, the steps run one by one: {reason}")
    return reason is None


_said: set[str] = set()


def _first_step(problem: InitialValueProblem, slope: Tensor) -> Tensor:
    controller, ts = problem.controller, problem.ts
    if isinstance(controller, Fixed) or ts.shape[0] == 1:
        return ts.new_full((), torch.inf)
    if controller.first_step is not None:
        return ts.new_full((), controller.first_step)
    return first_step(problem, slope, problem.order)


def _solution(problem: InitialValueProblem, run: Run, base: int, recorded: bool = True) -> Solution:
    calls = problem.dynamics.calls
    attempts = run.accepted + run.rejected
    # of the evaluations of a batch, a sample needs those of its own steps
    trials = max([1, *attempts.tolist()])
    nfe = base + ((calls - base) * attempts) // trials
    return Solution(
        ts=problem.ts,
        ys=problem.solution(run.ys),
        status=tuple(Status(one) for one in run.status.tolist()),
        reached=run.reached,
        stats=Stats(
            nfe.cpu(),
            run.accepted.cpu(),
            run.rejected.cpu(),
            calls,
            problem.dynamics.jacobians,
            problem.dynamics.solves,
            problem.dynamics.diffusions,
        ),
        recorded=run.steps if recorded else None,
        events=tuple(_happening(problem, run, i) for i in range(len(problem.events))),
        problem=problem,
    )


def _happening(problem: InitialValueProblem, run: Run, event: int) -> Happening:
    """Times and states of one event, with gradients by the implicit function theorem."""
    found = [_at_event(problem, hit, run, k) for k, hit in enumerate(run.hits) if hit.event == event]
    if not found:
        none = problem.ts.new_empty((0, *run.status.shape) if problem.samples else 0)
        return Happening(none, problem.solution(problem.y0.new_empty((0, *problem.y0.shape))), none.bool())
    t, y, mask = (torch.stack(parts) for parts in zip(*found, strict=True))
    return Happening(t, problem.solution(y), mask)


def _at_event(problem: InitialValueProblem, hit: Hit, run: Run, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Time, state and mask of one hit: t solves g(t, y(t)) = 0, so that dt = -dg / (dg/dt + dg/dy f)."""
    if isinstance(hit.step, Tensor):
        samples = torch.arange(len(hit.step), device=hit.step.device)
        start, dt = run.steps.t[hit.step, samples], run.steps.dt[hit.step, samples]
        mask = hit.mask if hit.mask is not None else torch.ones_like(hit.step, dtype=torch.bool)
        t = torch.where(mask, problem.shift(start) + start + hit.theta * dt, torch.nan)
    else:
        begin = float(run.steps.t[hit.step, 0])
        t = problem.shift(begin) + begin + hit.theta * float(run.steps.dt[hit.step, 0])
        mask = torch.ones_like(t, dtype=torch.bool)
    y = torch.where(problem.spread(mask), run.at_hits[k], torch.nan)
    if not torch.is_grad_enabled():
        return t, y, mask
    event, method = problem.events[hit.event], problem.method
    safe_t, safe_y = torch.where(mask, t, problem.ts.detach()[0]), torch.where(problem.spread(mask), y, problem.y0)
    gap = problem.condition(event, safe_t, safe_y)
    if not (y.requires_grad or t.requires_grad or gap.requires_grad):
        return t, y, mask
    low = method.lower(safe_y)
    slope = problem.dynamics.evaluate(problem.moment(safe_t), low).detach()
    moment = safe_t.detach().requires_grad_()
    ahead = problem.moment(moment - moment.detach()).to(real_dtype(slope))
    value = problem.condition(event, moment, method.lift(low.detach() + slope * ahead))
    (rate,) = torch.autograd.grad(value.sum(), moment)
    shift: Tensor = _Crossing.apply(gap, torch.where(mask, rate, torch.inf))  # type: ignore[no-untyped-call]
    moved = method.lower(y) + slope * problem.moment(shift).to(real_dtype(slope))
    return t + shift, method.lift(moved), mask


class _Crossing(torch.autograd.Function):
    """0, with the gradient that the time of a crossing has: -dgap / rate."""

    @staticmethod
    def forward(ctx: Any, gap: Tensor, rate: Tensor) -> Tensor:
        ctx.save_for_backward(gap, rate)
        return torch.zeros_like(rate, dtype=torch.float64)

    @staticmethod
    @once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gap, rate = ctx.saved_tensors
        return -(gradient / rate).to(gap.dtype), None
