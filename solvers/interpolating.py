"""Gradients of the continuous solution along the forward solve's own dense output."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import torch
from torch import Tensor

from .augmented import Past
from .backsolve import Continuous
from .method import Step
from .problem import InitialValueProblem
from .replay import retake
from .run import Run


@dataclass(frozen=True, eq=False)
class Interpolating(Continuous):
    """As `Backsolve`, but y(t) comes from the values between the steps of the forward solve.

    Only the adjoint and the gradients of parameters are integrated backwards, so that it is stable wherever the forward
    solve is; memory for one state a step, and up to one step more in evaluations where the way back enters it. The
    gradients are as accurate as the backward solve and the method's dense output.

    Args:
        method, controller, rtol, atol, seminorm, params: as in `Backsolve`.
        norm: as in `Backsolve`, of (gradient of t, adjoint, *gradients of parameters).

    Source: the InterpolatingAdjoint of SciMLSensitivity.
    """

    def kept(self, run: Run) -> Tensor:
        return run.steps.y

    def past(self, problem: InitialValueProblem, run: Run) -> Past | None:
        return DenseOutput(problem, run)

    def require_fit(self, problem: InitialValueProblem) -> None:
        if problem.samples:
            raise ValueError(
                "Interpolating needs steps that all samples share, got per_sample=True: use adjoint=Checkpointed() or "
                "Backsolve()"
            )


class DenseOutput:
    """y(t) of a finished run: the step that holds t is taken once more and kept."""

    def __init__(self, problem: InitialValueProblem, run: Run) -> None:
        self.problem, self.steps = problem, run.steps
        self.starts: list[float] = run.steps.t[:, 0].tolist()
        self.lengths: list[float] = run.steps.dt[:, 0].tolist()
        self.sign = 1.0 if self.lengths and self.lengths[0] > 0 else -1.0
        self._order = [t * self.sign for t in self.starts]
        self._held: dict[int, Step] = {}

    def __call__(self, t: Tensor) -> Tensor:
        now = float(t.detach())
        i = max(bisect.bisect_right(self._order, now * self.sign) - 1, 0)
        theta = min(max((now - self.starts[i]) / self.lengths[i], 0.0), 1.0)
        with torch.no_grad():
            y = self.problem.methods[int(self.steps.method[i])].lower(self._step(i).at(theta))
            if not t.requires_grad:
                return y
            slope = self.problem.dynamics.evaluate(t.detach(), y)
        return y + slope * (t - t.detach())  # for stiff methods, which differentiate in time

    def _step(self, i: int) -> Step:
        if i not in self._held:
            if len(self._held) > 1:  # a backward step may begin in one and end in the next
                self._held.pop(next(iter(self._held)))
            self._held[i] = retake(self.problem, self.steps, i, self.steps.y[i])
        return self._held[i]
