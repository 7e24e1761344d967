"""Gradients of stochastic equations by the adjoint equation, integrated backwards along the same path."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .adjoint import Adjoint, Integrate
from .capture import Captured, Guarded
from .jacobian import pushed
from .once import once
from .problem import InitialValueProblem
from .replay import autocast_of, same_conditions
from .run import Run
from .stochastic import Driven, Stochastic


@dataclass(frozen=True)
class StochasticAdjoint(Adjoint):
    """Integrate the state, its adjoint and the gradients backwards along the path: they need the states at ts only.

    Those of the steps are in the solution as long as that is held; where only its ys are kept, they are let go.

    The way back takes the steps of the forward solve in reverse by Heun's method for the equation in the sense of
    Stratonovich; that of Ito is converted, which takes a derivative of the diffusion. The gradients are those of the
    continuous solution, to the error of these steps: they agree with `Checkpointed` as the steps get shorter, where
    the strong order is 1, for noise that commutes, or 0.5. `steps.error` and `.stiffness` carry none. They cannot be
    differentiated again.

    Source: Li, Wong, Chen and Duvenaud 2020, "Scalable gradients for stochastic differential equations".
    """

    def run(self, problem: InitialValueProblem, integrate: Integrate, captured: Captured) -> Run:
        if not isinstance(problem.dynamics, Stochastic):
            raise TypeError("StochasticAdjoint is for sdeint: use adjoint=Backsolve() for ordinary equations")
        if problem.method.lift(problem.y0) is not problem.y0:
            raise ValueError(
                f"StochasticAdjoint needs a method that carries nothing but y, which {type(problem.method).__name__} "
                f"does not: use adjoint=Reversible(), whose gradients are exact"
            )
        box: list[Run] = []
        ys = _Solve.apply(problem, integrate, box, captured, problem.y0, *captured.tensors)  # type: ignore[no-untyped-call]
        return replace(box[0], ys=ys)


class _Solve(torch.autograd.Function):
    """(y0, known tensors) -> ys."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: InitialValueProblem,
        integrate: Integrate,
        box: list[Run],
        captured: Captured,
        y0: Tensor,
        *known: Tensor,
    ) -> Tensor:
        run = integrate()
        if run.random and any(ctx.needs_input_grad):
            raise ValueError(
                "StochasticAdjoint needs functions without random numbers, as it meets other states on its way back: "
                "put layers such as Dropout in eval mode, or use adjoint=Checkpointed()"
            )
        box.append(run)
        ctx.problem, ctx.autocast, ctx.captured = problem, autocast_of(y0.device), captured
        ctx.pieces = list(zip(run.steps.t[:, 0].tolist(), run.steps.dt[:, 0].tolist(), strict=True))
        ctx.first = run.first[:, 0].tolist()
        ctx.save_for_backward(run.ys, run.last, *known)
        return run.ys

    @staticmethod
    @once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ys, last, *known = ctx.saved_tensors
        wanted = [one for one, need in zip(known, ctx.needs_input_grad[5:], strict=True) if need]
        back = _Back(ctx.problem, tuple(known), wanted, ctx.captured)
        with same_conditions(ctx.problem, ctx.autocast):
            y, a = last, torch.zeros_like(last)
            for i in reversed(range(len(ctx.pieces))):
                for k in range(ctx.first[i], ctx.first[i + 1]):  # ends of steps
                    y, a = ys[k], a + gradient[k]
                t, dt = ctx.pieces[i]
                y, a = back.step(t, dt, y, a)
        sums = iter(back.sums)
        to_known = [next(sums) if need else None for need in ctx.needs_input_grad[5:]]
        return None, None, None, None, a + gradient[0], *to_known


class _Back:
    """Steps taken back, with the gradients of the wanted tensors added up."""

    def __init__(
        self, problem: InitialValueProblem, known: tuple[Tensor, ...], wanted: list[Tensor], captured: Captured
    ) -> None:
        self.problem, self.wanted, self.shared = problem, wanted, captured.shared
        self.guard = partial(Guarded, known=(problem.ts, *known), differentiating=captured.differentiating)
        self.zero = torch.zeros_like(problem.ts.detach()[0])  # on its device, where times are made without copies
        self.sums = [torch.zeros_like(one) for one in wanted]

    def step(self, t: float, dt: float, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """State and adjoint at the start of a step, from those at its end."""
        noisy = self.problem.dynamics.again(t, t + dt, self.guard)
        assert isinstance(noisy, Driven)
        moved, pulled = self._pull(noisy, t + dt, dt, y, a, 0.5)
        other, more = self._pull(noisy, t, dt, y - moved, a + pulled, 0.5)
        return y - (moved + other) * 0.5, a + (pulled + more) * 0.5

    def _pull(self, noisy: Driven, t: float, dt: float, y: Tensor, a: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """The change of y along the chord, and the adjoint pulled back through it."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            time = (self.zero + t).to(y.dtype)
            moved = _slope(noisy, time, y) * dt
        if not moved.requires_grad:
            return moved, torch.zeros_like(y)
        inputs = [y, *self.wanted]
        found = torch.autograd.grad(moved, inputs, a, allow_unused=True, retain_graph=self.shared)
        for i, one in enumerate(found[1:]):
            if one is not None:
                self.sums[i] = torch.add(self.sums[i], one, alpha=share)
        return moved.detach(), torch.zeros_like(y) if found[0] is None else found[0]


def _slope(noisy: Driven, t: Tensor, y: Tensor) -> Tensor:
    """The slope along the chord of the equation in the sense of Stratonovich."""
    f, g = noisy.pair(t, y)
    if noisy.kind.calculus == "ito" and noisy.kind.noise != "additive":
        f = f - 0.5 * _drift_of_noise(noisy, t, y, g)
    return noisy.along((f, g))


def _drift_of_noise(noisy: Driven, t: Tensor, y: Tensor, g: Tensor) -> Tensor:
    """The sum over channels of (g_j . grad) g_j."""
    if not noisy.kind.matrix:
        return pushed(lambda x: noisy.diffusion(t, x), y, g)
    total = torch.zeros_like(y)
    for j in range(g.shape[-1]):
        total = total + pushed(lambda x, j=j: noisy.diffusion(t, x)[..., j], y, g[..., j])  # type: ignore[misc]
    return total
