"""One trial of all samples as a pure function of tensors: each has its own clock, steps and status.

The per-sample loop makes one trial at a time, the compiled loop a block of them. A sample that is done, or whose step
was rejected, is left as it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .controller import Adaptive, Fixed, rms, rms_per_sample, scaled
from .march import NEARLY, PATIENCE
from .method import Dynamics, Method, Step, real_dtype
from .problem import BARELY, InitialValueProblem, spread
from .record import Status


@dataclass(frozen=True)
class Rules:
    """What decides how a program of trials looks; everything else is a tensor and may change."""

    method: Method
    controller: Adaptive | Fixed
    samples: bool
    order: float  # of the controller's exponents
    fresh: bool  # whether every step begins with a new evaluation


class Control(NamedTuple):
    """Where the samples are: (B,) per sample, else (); y and slope are states."""

    t: Tensor  # float64
    dt: Tensor  # length of the next step, > 0, float64
    y: Tensor
    slope: Tensor
    earlier: Tensor  # error ratio of the last accepted step, float64
    before: Tensor  # and of the one before
    failures: Tensor  # rejections in a row for NaN or infinity
    attempts: Tensor
    status: Tensor


class Limits(NamedTuple):
    """Where the samples go and how closely; () or (B,) but for the stops and the tolerances."""

    end: Tensor  # float64
    sign: Tensor  # of the direction of time
    stops: Tensor  # (K,) or (K, B), float64: times at which steps must end
    jumps: Tensor  # (2, J): times just before and just after jumps
    max_steps: Tensor
    rtol: Tensor
    atol: Tensor


class Trial(NamedTuple):
    """What a trial was: (B,) per sample, else ()."""

    t: Tensor
    dt: Tensor  # signed; 0 where it was not accepted
    accepted: Tensor
    end: Tensor  # the time it reached
    ratio: Tensor | None
    error: Tensor | None
    stiffness: Tensor | None


def trial_of(columns: Iterable[Tensor | None]) -> Trial:
    """A trial from its parts in order."""
    return Trial(*columns)  # type: ignore[arg-type]


def rules_of(problem: InitialValueProblem, stochastic: bool) -> Rules:
    """The rules of a problem."""
    fresh = stochastic or bool(problem.jumps)
    return Rules(problem.method, problem.controller, problem.samples, problem.order, fresh)


def limits_of(problem: InitialValueProblem) -> Limits:
    """The limits of a problem."""
    ts, y = problem.ts.detach(), problem.y0
    start, end = (ts[0], ts[-1]) if ts.ndim > 1 or not problem.samples else (ts[[0, -1]][:, None].expand(2, y.shape[0]))
    stops = torch.tensor(problem.stops, dtype=torch.float64, device=ts.device)
    if isinstance(problem.controller, Fixed) and problem.controller.step is None:
        grid = ts[1:-1]
        stops = torch.cat([grid, stops if grid.ndim == 1 else stops[:, None].expand(-1, grid.shape[1])])
    jumps = torch.tensor([*problem.jumps.items()], dtype=torch.float64, device=ts.device).reshape(-1, 2).T
    dtype = real_dtype(y)
    return Limits(
        end=end.clone(),
        sign=torch.where(end >= start, 1.0, -1.0).double(),
        stops=stops,
        jumps=jumps,
        max_steps=torch.tensor(problem.max_steps, device=ts.device),
        rtol=torch.as_tensor(problem.rtol, dtype=dtype, device=y.device),
        atol=torch.as_tensor(problem.atol, dtype=dtype, device=y.device),
    )


def start_of(problem: InitialValueProblem, slope: Tensor, dt: Tensor) -> Control:
    """The samples at ts[0], with the first slope and the length of the first step, () or (B,)."""
    ts, y = problem.ts.detach(), problem.y0.detach()
    t = (ts[0].expand(y.shape[0]) if problem.samples else ts[0]).clone()
    one, none = torch.ones_like(t), torch.zeros_like(t, dtype=torch.int64)
    status = none + int(Status.RUNNING if ts.shape[0] > 1 else Status.SUCCESS)
    return Control(t, dt.expand_as(t).clone(), y, slope.detach(), one, one.clone(), none, none.clone(), status)


def attempt(dynamics: Dynamics, rules: Rules, limits: Limits, now: Control) -> tuple[Control, Trial, Step]:
    """One trial of all samples."""
    running = now.status == int(Status.RUNNING)
    h, end, arrives, stuck = _length(rules, limits, now, running)
    start, signed = spread(now.t, now.y), spread(h * limits.sign, now.y)
    method = rules.method
    step = method.step(dynamics, start, signed, now.y, None if rules.fresh else now.slope)
    ratio, error = _judge(rules, limits, now, step)
    accepted = running & ~stuck
    dt, failures = now.dt, now.failures
    if isinstance(rules.controller, Adaptive) and ratio is not None:
        finite = ratio.isfinite()
        accepted = accepted & ((ratio <= 1) | (finite & (h <= rules.controller.min_step)))
        grown = h * rules.controller.growth(ratio, (now.earlier, now.before), rules.order)
        grown = torch.where(arrives, torch.maximum(grown, now.dt), grown)
        shrunk = h * rules.controller.shrinkage(ratio, rules.order)
        dt = torch.where(running, torch.where(accepted, grown, shrunk), now.dt)
        failures = torch.where(finite, 0, now.failures + 1)
    mask = spread(accepted, now.y)
    t = torch.where(accepted, end, now.t)
    for j in range(limits.jumps.shape[1]):
        t = torch.where(t == limits.jumps[0, j], limits.jumps[1, j], t)
    slope = None if rules.fresh else step.slope()
    earlier = now.earlier if ratio is None else torch.where(accepted, ratio, now.earlier)
    attempts = now.attempts + running
    then = Control(
        t=t,
        dt=dt,
        y=torch.where(mask, step.y, now.y),
        slope=now.slope
        if not isinstance(slope, Tensor)
        else torch.where(spread(accepted, now.slope), slope, now.slope),
        earlier=earlier,
        before=torch.where(accepted, now.earlier, now.before),
        failures=failures,
        attempts=attempts,
        status=_status(limits, now, t, attempts, failures, stuck),
    )
    stiffness = step.stiffness(rules.samples) if method.has_stiffness else None
    return then, Trial(now.t, torch.where(accepted, h * limits.sign, 0.0), accepted, end, ratio, error, stiffness), step


def _length(rules: Rules, limits: Limits, now: Control, running: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Length of the step, the time it reaches, whether that is a stop, and whether the clock stands still."""
    left = (limits.end - now.t) * limits.sign
    target = limits.end
    if limits.stops.shape[0]:
        ahead = (limits.stops.reshape(limits.stops.shape[0], -1) - now.t) * limits.sign
        distance, number = torch.where(ahead > 0, ahead, torch.inf).min(dim=0)
        stop = limits.stops.reshape(limits.stops.shape[0], -1).expand_as(ahead).gather(0, number[None])[0]
        near, stop = distance.reshape(left.shape), stop.reshape(left.shape)
        target, left = torch.where(near < left, stop, target), torch.minimum(near, left)
    if isinstance(rules.controller, Adaptive):
        h = now.dt.clamp(rules.controller.min_step, rules.controller.max_step)
        reach = (h * NEARLY).clamp_max(rules.controller.max_step * BARELY)
    else:
        h = left if rules.controller.step is None else torch.full_like(left, rules.controller.step)
        reach = h * BARELY
    arrives = reach >= left
    end = torch.where(arrives, target, now.t + h * limits.sign)
    h = torch.where(running, torch.where(arrives, left, h), 0.0)
    return h, end, arrives, running & (end == now.t)


def _judge(rules: Rules, limits: Limits, now: Control, step: Step) -> tuple[Tensor | None, Tensor | None]:
    """Error ratio and size of the error of a step, float64; None where the method has no estimate."""
    error = step.error()
    if error is None:
        return None, None
    mean = rms_per_sample if rules.samples else rms
    norm = rules.controller.norm if isinstance(rules.controller, Adaptive) else None
    y0, y1 = rules.method.lower(now.y), rules.method.lower(step.y)
    ratio = (norm or mean)(scaled(error, y0, y1, limits.rtol, limits.atol))
    return ratio.double(), mean(error)


def _status(limits: Limits, now: Control, t: Tensor, attempts: Tensor, failures: Tensor, stuck: Tensor) -> Tensor:
    """The status after a trial."""
    status = torch.where(attempts >= limits.max_steps, int(Status.MAX_STEPS), int(Status.RUNNING))
    status = torch.where(failures > PATIENCE, int(Status.NONFINITE), status)
    lost = torch.where(now.failures > 0, int(Status.NONFINITE), int(Status.UNDERFLOW))
    status = torch.where(stuck, lost, status)
    status = torch.where((t - limits.end) * limits.sign >= 0, int(Status.SUCCESS), status)
    return torch.where(now.status == int(Status.RUNNING), status, now.status)
