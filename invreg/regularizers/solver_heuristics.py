"""How hard a differential equation was to solve: the solver's own estimates of error and stiffness as penalties.

A neural differential equation that is trained with them learns to be easy to solve.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from invreg.interfaces import Regularizer
from invreg.solvers import Solution

Over = Literal["sum", "mean", "max"]


class Schedule(Protocol):
    """A weight that changes as training goes on."""

    def __call__(self, progress: float) -> float:
        """The weight when `progress`, from 0 to 1, of the training is done."""
        ...


@dataclass(frozen=True)
class Exponential:
    """From `first` to `last` by a constant factor: first * (last / first)^progress; both > 0.

    Source: Pal et al. 2021, "Opening the Blackbox", where error weights fall by 10.
    """

    first: float
    last: float

    def __post_init__(self) -> None:
        if not (self.first > 0 and self.last > 0):
            raise ValueError(f"first and last must be > 0, got {self.first} and {self.last}; Linear reaches 0")

    def __call__(self, progress: float) -> float:
        return self.first * math.exp(progress * math.log(self.last / self.first))


@dataclass(frozen=True)
class Linear:
    """From `first` to `last` in equal parts; a constant is `Linear(w, w)`."""

    first: float
    last: float

    def __call__(self, progress: float) -> float:
        return self.first + progress * (self.last - self.first)


class _Heuristic(Regularizer[Solution]):
    """What the heuristics share: a weight that may follow a schedule."""

    def __init__(self, weight: float | Tensor, schedule: Schedule | None) -> None:
        super().__init__(weight if schedule is None else schedule(0.0))
        self.schedule = schedule

    def at(self, progress: float) -> Self:
        """The regularizer with the weight that its schedule has there."""
        if self.schedule is None:
            return self
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must be between 0 and 1, got {progress}")
        other = copy.copy(self)
        other.weight = self.schedule(progress)
        return other


class SolverError(_Heuristic):
    """R_E: the local error estimates of the accepted steps, sum_j E_j |h_j|; ERNODE.

    Args:
        weight: of the penalty.
        power: 1, or 2 for the squared variant, sum_j E_j^2, which the paper takes without the step: by_step=False.
        over: "sum" of the steps (the paper's formula) or "mean" (what its authors' program computes).
        by_step: whether each estimate counts with the length of its step.
        normalized: E in units of the tolerance, as in the paper, or as the root mean square of the estimate itself.
        schedule: the weight as training goes on; it takes the place of `weight`.

    The normalized penalty is proportional to 1 / tolerance: where y is so small that atol is all of it, it is the other
    one divided by atol. A weight found at one tolerance is carried to another by multiplying it with their quotient, or
    by normalized=False.

    Returns:
        On call with a `Solution`: () where samples share their steps, else (B,).

    Raises:
        RuntimeError: the solution carries no gradient of its estimates. ValueError: its method has no estimate.

    Source: Pal et al. 2021, "Opening the Blackbox: Accelerating Neural Differential Equations by Regularizing Internal
    Solver Heuristics", eq. 7 and the squared variant of its Physionet experiment.
    """

    def __init__(
        self,
        weight: float | Tensor = 1.0,
        *,
        power: int = 1,
        over: Literal["sum", "mean"] = "sum",
        by_step: bool = True,
        normalized: bool = True,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(weight, schedule)
        if power not in {1, 2}:
            raise ValueError(f"power must be 1 or 2, got {power}")
        _require_over(over, ("sum", "mean"))
        self.power, self.over, self.by_step, self.normalized = power, over, by_step, normalized

    def forward(self, x: Solution) -> Tensor:
        values = x.steps.ratio if self.normalized else x.steps.error
        if values is None:
            raise ValueError(f"{_method_of(x)} has no error estimate; Tsit5(), Bosh3(), Heun() and others have")
        _require_graph(values, x)
        return self.weight * _over_steps(x, values**self.power, self.over, self.by_step)


class SolverStiffness(_Heuristic):
    """R_S: the stiffness estimates of the accepted steps, sum_j S_j |h_j|; SRNODE.

    Args:
        weight: of the penalty.
        over: "sum" of the steps (the paper's formula), "mean", or "max" (what its authors' program computes, without
            the step).
        by_step: whether each estimate counts with the length of its step.
        by_stability: whether it is divided by the length of the method's stability region on the negative real axis.
        schedule: as in `SolverError`.

    The norm of the estimate, root mean square or largest entry, is an option of the method:
    Tsit5(stiffness_norm="max").

    Returns:
        On call with a `Solution`: () where samples share their steps, else (B,).

    Raises:
        RuntimeError, ValueError: as in `SolverError`.

    Source: Pal et al. 2021, eq. 8; the estimate is Shampine's of 1977.
    """

    def __init__(
        self,
        weight: float | Tensor = 1.0,
        *,
        over: Over = "sum",
        by_step: bool = True,
        by_stability: bool = False,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(weight, schedule)
        _require_over(over, ("sum", "mean", "max"))
        self.over, self.by_step, self.by_stability = over, by_step, by_stability

    def forward(self, x: Solution) -> Tensor:
        values = x.steps.stiffness
        if values is None:
            raise ValueError(f"{_method_of(x)} has no stiffness estimate; {WITH_STIFFNESS} have")
        _require_graph(values, x)
        return self.weight * _over_steps(x, values / self._size(x), self.over, self.by_step)

    def _size(self, x: Solution) -> float:
        return _stability_size(x) if self.by_stability else 1.0


class LocalHeuristic(_Heuristic):
    """The error or stiffness of one accepted step, drawn at random and taken once more: any adjoint will do.

    The step starts from a state and has a length that count as given: the gradient reaches what the field holds, and
    nothing before it. Only this one step is taped.

    Args:
        weight: of the penalty.
        of: "error", E_j |h_j| in units of the tolerance, or "stiffness", S_j divided by the stability size.
        sampling: "unbiased": the step in which a time lies that is drawn uniformly; "biased": any of the accepted steps
            but the last, so that it is drawn where the solver makes many.
        generator: the source of the draws.
        schedule: as in `SolverError`.

    Returns:
        On call with a `Solution`: () where samples share their steps, else (B,).

    Raises:
        ValueError: the method has no such estimate, or no step was taken.

    Source: Pal et al. 2023, "Locally Regularized Neural Differential Equations", Alg. 1 and 2. There the step is a new
    one from the time drawn; here it is one that the solver took, which costs no search for its length.
    """

    def __init__(
        self,
        weight: float | Tensor = 1.0,
        *,
        of: Literal["error", "stiffness"] = "error",
        sampling: Literal["unbiased", "biased"] = "unbiased",
        generator: torch.Generator | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(weight, schedule)
        if of not in {"error", "stiffness"}:
            raise ValueError(f'of must be "error" or "stiffness", got {of!r}')
        if sampling not in {"unbiased", "biased"}:
            raise ValueError(f'sampling must be "unbiased" or "biased", got {sampling!r}')
        self.of, self.sampling, self.generator = of, sampling, generator

    def forward(self, x: Solution) -> Tensor:
        i = self._draw(x)
        step = x.retake(i, detach=True)
        problem = x.problem
        if self.of == "stiffness":
            stiffness = step.stiffness(problem.samples)
            if stiffness is None:
                raise ValueError(f"{_method_of(x)} has no stiffness estimate; {WITH_STIFFNESS} have")
            return self.weight * stiffness / _stability_size(x)
        error = step.error()
        if error is None:
            raise ValueError(f"{_method_of(x)} has no error estimate; Tsit5(), Bosh3(), Heun() and others have")
        y, dt = x.pick(x.steps.y, i).detach(), x.pick(x.steps.dt, i).abs()
        ratio = problem.judge(error, y, step)
        return self.weight * ratio * (dt if problem.samples else dt[0]).to(ratio)

    def _draw(self, x: Solution) -> int | Tensor:
        """The number of a step; per sample one for each."""
        steps = x.steps
        if not len(steps):
            raise ValueError("the solution has no steps to draw from")
        if self.sampling == "unbiased":
            chance = steps.dt.abs()
        else:
            number = steps.mask.long().cumsum(0)
            others = steps.mask & (number < number.amax(0).clamp_min(2))
            chance = others.double()
        chance = chance.cpu()
        draws = torch.multinomial(chance.T, 1, generator=self.generator)[:, 0]
        return draws.to(steps.dt.device) if x.problem.samples else int(draws)


WITH_STIFFNESS = "Tsit5(), Dopri5(), Dopri8(), Vern7(), the stiff methods, and with noise SOSRI2() and SOSRA2()"


def _over_steps(x: Solution, values: Tensor, over: str, by_step: bool) -> Tensor:
    """Sum, mean or largest of (S, B) values, those of padding left out: (B,), or () where samples share their steps."""
    mask = x.steps.mask.to(values.device)
    if by_step:
        values = values * x.steps.dt.abs().to(values)
    kept = torch.where(mask, values, 0)
    if over == "max":
        total = kept.amax(0)
    else:
        total = kept.sum(0)
        if over == "mean":
            total = total / mask.sum(0).clamp_min(1)
    return total if x.problem.samples else total[0]


def _require_graph(values: Tensor, x: Solution) -> None:
    if torch.is_grad_enabled() and not values.requires_grad:
        raise RuntimeError(
            "the solution carries no gradient of its estimates: solve with gradients enabled, with a field that "
            "depends on tensors that require them, and adjoint=Checkpointed() or Direct(); LocalHeuristic works with "
            "any adjoint"
        )


def _stability_size(x: Solution) -> float:
    size = x.problem.method.stability_size
    if size is None:
        raise ValueError(f"{_method_of(x)} is stable on the whole negative axis, by which nothing can be divided")
    return size


def _method_of(x: Solution) -> str:
    return type(x.problem.method).__name__


def _require_over(over: str, wanted: tuple[str, ...]) -> None:
    if over not in wanted:
        raise ValueError(f"over must be one of {', '.join(map(repr, wanted))}, got {over!r}")
