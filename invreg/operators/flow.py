"""The solution map of a differential equation: from where it starts to what it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from invreg.interfaces import Operator
from invreg.solvers import Adjoint, Checkpointed, Controller, Method, Tsit5, odeint


class Flow(Operator):
    """x0 -> (x(t_1), ..., x(t_T)) where dx/dt = field(t, x): (B, *signal) -> (B, T, *signal).

    With it the recovery of an initial state from observations of a trajectory is an inverse problem like any other:
    `Mask(...) @ Flow(...)` or any other operator behind it says what is observed.

    Args:
        field: dx/dt as a function of t and x, (B, *signal); a module's parameters become those of the operator.
        ts: the time of x0 first, then those of the trajectory; T + 1 numbers, strictly increasing or decreasing.
        signal_shape: of a state.
        method, controller, rtol, atol, per_sample, adjoint: as in `invreg.solvers.odeint`. The default tolerances are
            finer than there, so that the misfit is smooth in x0 on the scale of its gradient.
        throw: whether a solve that does not arrive raises; else its trajectory is NaN from there on, so that an
            algorithm that searches for its step can step back. With `per_sample` only for the samples concerned.

    Raises:
        ValueError: fewer than two times; on call RuntimeError where the solver does not arrive and `throw` is set.
    """

    def __init__(
        self,
        field: Callable[[Tensor, Tensor], Tensor],
        ts: Tensor | Sequence[float],
        signal_shape: tuple[int, ...],
        *,
        method: Method = Tsit5(),
        controller: Controller | None = None,
        rtol: float = 1e-6,
        atol: float = 1e-8,
        per_sample: bool = False,
        adjoint: Adjoint = Checkpointed(),
        throw: bool = True,
    ) -> None:
        times = torch.as_tensor(ts, dtype=torch.float64)
        if times.ndim != 1 or times.shape[0] < 2:
            raise ValueError(f"ts must hold the start and at least one time, (T + 1,), got shape {tuple(times.shape)}")
        super().__init__(signal_shape, (times.shape[0] - 1, *signal_shape))
        self.field = field
        self.times = times.tolist()  # not a buffer: their precision is not that of the operator
        self.method, self.controller, self.rtol, self.atol = method, controller, rtol, atol
        self.per_sample, self.adjoint, self.throw = per_sample, adjoint, throw

    def forward(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        solution = odeint(
            self.field,
            x,
            self.times,
            method=self.method,
            controller=self.controller,
            per_sample=self.per_sample,
            rtol=self.rtol,
            atol=self.atol,
            adjoint=self.adjoint,
            throw=self.throw,
        )
        trajectory: Tensor = solution.ys[1:].movedim(0, 1)
        return trajectory
