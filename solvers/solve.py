"""The public face: check what comes in, choose what was left open, march, report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .adjoint import Adjoint, Checkpointed, Direct
from .arguments import problem_of
from .capture import Captured, first_slope
from .controller import Controller, Fixed
from .dynamics import State
from .event import Event
from .first_step import first_step
from .method import Method
from .problem import InitialValueProblem
from .record import Happening, Stats, Status
from .run import Hit, Run, integrate
from .runge_kutta import Tsit5
from .solution import Solution
from .switch import AutoSwitch


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
        adjoint: how gradients are computed: Checkpointed() or Direct().
        compile: True: run the loop as one compiled program; "auto": where there is a compiler; False: step by step.
        max_steps: attempted steps, > 0.
        throw: whether a solve that stops short raises; else its `status` says so and what it reached is returned.

    Returns:
        A `Solution`: ys (T, *y0), status, stats, steps with their error and stiffness, events; callable between ts.

    Raises:
        TypeError, ValueError: an argument does not fit; it is named.
        RuntimeError: the solve stopped short and `throw` is set.
    """
    problem = problem_of(
        field, y0, ts, method, controller, per_sample, rtol, atol, args, events, stops, jumps, max_steps
    )
    solution = solve(problem, adjoint)
    if throw and not solution.success:
        raise RuntimeError(solution.report())
    return solution


def solve(problem: InitialValueProblem, adjoint: Adjoint) -> Solution:
    """Solve a problem whose arguments were checked."""
    before = torch.get_rng_state()
    slope, captured = _start(problem, adjoint)
    stochastic = not torch.equal(before, torch.get_rng_state())
    with torch.no_grad():
        dt = _first_step(problem, slope)

    def forward(one: InitialValueProblem) -> Run:
        return integrate(one, slope, dt, stochastic)

    run = adjoint.run(problem, forward, captured)
    return _solution(problem, run)


def _start(problem: InitialValueProblem, adjoint: Adjoint) -> tuple[Tensor, Captured]:
    """The first slope: on the tape where the gradient is taped, else with what the dynamics depend on."""
    y = problem.method.lower(problem.y0)
    t = problem.spread(problem.ts[0])
    if isinstance(adjoint, Direct):
        return problem.dynamics.checked(t, y), Captured()
    return first_slope(problem.dynamics, t, y)


def _first_step(problem: InitialValueProblem, slope: Tensor) -> float:
    controller = problem.controller
    if isinstance(controller, Fixed) or problem.ts.shape[0] == 1:
        return math.inf
    if controller.first_step is not None:
        return controller.first_step
    return first_step(problem, slope, problem.order).item()


def _solution(problem: InitialValueProblem, run: Run) -> Solution:
    calls = problem.dynamics.calls
    return Solution(
        ts=problem.ts,
        ys=problem.solution(run.ys),
        status=tuple(Status(one) for one in run.status.tolist()),
        reached=run.reached,
        stats=Stats(torch.tensor([calls]), run.accepted, run.rejected, calls),
        steps=run.steps,
        events=tuple(_happening(problem, run, i) for i in range(len(problem.events))),
        problem=problem,
    )


def _happening(problem: InitialValueProblem, run: Run, event: int) -> Happening:
    """Times and states of one event, with gradients by the implicit function theorem."""
    hits = [(k, hit) for k, hit in enumerate(run.hits) if hit.event == event]
    pairs = [_at_event(problem, run, k, hit) for k, hit in hits]
    t = torch.stack([one for one, _ in pairs]) if pairs else problem.ts.new_empty(0)
    y = torch.stack([one for _, one in pairs]) if pairs else problem.y0.new_empty((0, *problem.y0.shape))
    return Happening(t, problem.solution(y), torch.ones(len(pairs), dtype=torch.bool))


def _at_event(problem: InitialValueProblem, run: Run, k: int, hit: Hit) -> tuple[Tensor, Tensor]:
    zero = problem.ts[0] - problem.ts[0].detach()
    t = zero + float(run.steps.t[hit.step, 0]) + hit.theta * float(run.steps.dt[hit.step, 0])
    y = run.at_hits[k]
    if not (torch.is_grad_enabled() and (y.requires_grad or t.requires_grad)):
        return t, y
    # g(t + s, y(t + s)) = 0 gives s = -g / (dg/dt + dg/dy f), whose value is 0 and whose gradient is the wanted one
    slope = problem.dynamics.evaluate(t, problem.method.lower(y)).detach()
    moment = t.detach().requires_grad_()
    along = y.detach() + slope * (moment - moment.detach()).to(y.dtype)
    (rate,) = torch.autograd.grad(problem.condition(problem.events[hit.event], moment, along), moment)
    shift = -problem.condition(problem.events[hit.event], t, y).double() / rate
    shift = shift - shift.detach()
    return t + shift, y + slope * shift.to(y.dtype)
