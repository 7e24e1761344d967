"""How far from straight a trajectory runs, as penalties on the solution of a neural differential equation.

They integrate over time something that the field does along its trajectory. The integral is the trapezoidal rule over
the steps that the solver took, on the states that it passed: the solve itself stays as it is, and what is paid for is
one evaluation of the integrand a step. (The papers integrate it as one more entry of the state.)
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from invreg._check import require_count
from invreg.interfaces import Regularizer
from invreg.models.derivatives import Field, slope_and_product, time_derivative
from invreg.random import draw
from invreg.solvers import Solution, Status


class _AlongPath(Regularizer[Solution]):
    """Weight times the integral over |dt| of the squared norm of something that the field does, mean of the samples."""

    def __init__(self, weight: float | Tensor, field: Field | None, features: int | None) -> None:
        super().__init__(weight)
        if (field is None) != (features is None):
            raise ValueError("field and features must be given together: dy/dt of the first entries, and how many")
        if features is not None:
            require_count("features", features)
        self.field, self.features = field, features

    @abstractmethod
    def integrand(self, field: Field, y: Tensor) -> Field:
        """What is squared, as a function of t and y shaped as y, for one solve from states like y."""

    def forward(self, x: Solution) -> Tensor:
        _require_states(x)
        problem, steps = x.problem, x.steps
        weights = node_weights(x)
        total = weights.new_zeros(())
        dtype = problem.dynamics.time_dtype
        integrand = self.integrand(self.field or problem.dynamics.evaluate, self._counted(x.ys[0]))
        for j in range(len(steps) + 1):
            if j < len(steps):
                t, y = (steps.t[j] if problem.samples else steps.t[j, 0]), problem.method.lower(steps.y[j])
            else:
                end = x.ts[-1].detach()
                t, y = (end.expand(len(x.ys[-1])) if problem.samples else end), x.ys[-1]
            squares = integrand(problem.moment(t).to(dtype).contiguous(), self._counted(y)).abs().square()
            each = squares.flatten(1).sum(1) if y.ndim > 1 else squares.sum()
            weight = weights[j].to(each)
            total = total + (weight * each if problem.samples else weight[0] * each.mean())
        return self.weight * total

    def _counted(self, y: Tensor) -> Tensor:
        """The entries that count."""
        return y if self.features is None else y[..., : self.features]


class TaylorDerivative(_AlongPath):
    """weight * integral of |d^K y / dt^K|^2: trajectories that low-order steps follow; TayNODE.

    The derivative is that of the solution through each state: f for K = 1, and for the next the directional derivative
    of the last along (1, f), by forward-mode differentiation; 2^K - 1 evaluations of f.

    Args:
        weight: of the penalty.
        order: K, >= 1.
        field, features: where only the first entries of the state's last axis count, as in a flow that carries its
            log-determinant behind, dy/dt of these alone, and how many they are. None: the field that was solved.

    Returns:
        On call with a `Solution`: () where samples share their steps, the mean of the samples (axis 0 of y, where it
        has more than one axis), else (B,). |.|^2 sums over the entries of a sample.

    Raises:
        RuntimeError: the solve did not arrive, or its adjoint keeps no states, as Reversible(); others will do.
        TypeError: the state is not one tensor.

    Source: Kelly et al. 2020, "Learning Differential Equations that are Easy to Solve", eq. 1, with nested forward mode
    in place of Taylor mode, whose cost would grow as K^2, and the trapezoidal rule over the steps in place of one more
    entry of the state.
    """

    def __init__(
        self, weight: float | Tensor = 1.0, *, order: int = 2, field: Field | None = None, features: int | None = None
    ) -> None:
        super().__init__(weight, field, features)
        require_count("order", order)
        self.order = order

    def integrand(self, field: Field, y: Tensor) -> Field:
        return lambda t, y: time_derivative(field, t, y, self.order)


class KineticEnergy(_AlongPath):
    """weight * integral of |f|^2: short paths; one half of RNODE.

    Args:
        weight: of the penalty.
        field, features: as in `TaylorDerivative`, whose order 1 this is; values and errors likewise.

    Source: Finlay et al. 2020, "How to Train Your Neural ODE: the World of Jacobian and Kinetic Regularization", eq. 6.
    """

    def __init__(
        self, weight: float | Tensor = 1.0, *, field: Field | None = None, features: int | None = None
    ) -> None:
        super().__init__(weight, field, features)

    def integrand(self, field: Field, y: Tensor) -> Field:
        return field


class JacobianNorm(_AlongPath):
    """weight * integral of |df/dy|_F^2 by Hutchinson's estimator, |n df/dy|^2 with normal n: the other half of RNODE.

    Args:
        weight: of the penalty.
        field, features: as in `TaylorDerivative`.
        generator: the source of n, which is the same at all times of a trajectory.

    Source: Finlay et al. 2020, eq. 7.
    """

    def __init__(
        self,
        weight: float | Tensor = 1.0,
        *,
        field: Field | None = None,
        features: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(weight, field, features)
        self.generator = generator

    def integrand(self, field: Field, y: Tensor) -> Field:
        noise = draw(y.detach(), self.generator)

        return lambda t, y: slope_and_product(field, t, y, noise)[1]


def node_weights(x: Solution) -> Tensor:
    """Weights of the trapezoidal rule over the steps of a solution: at the start of each and at the end, (S + 1, B)."""
    steps = x.steps
    lengths = torch.where(steps.mask, steps.dt.abs(), 0).to(steps.dt.device)
    none = lengths.new_zeros(1, lengths.shape[1])
    before, behind = torch.cat([none, lengths]), torch.cat([lengths, none])
    weights = (before + behind) / 2
    # a sample's last state is in ys[-1], not at the start of a step that it did not take
    weights[:-1] = torch.where(steps.mask, weights[:-1], 0)
    weights[-1] = lengths.gather(0, (steps.mask.sum(0, keepdim=True) - 1).clamp_min(0))[0] / 2 if len(steps) else 0
    return weights


def _require_states(x: Solution) -> None:
    if x.problem.dynamics.structure is not None:
        raise TypeError("y0 must be one tensor for penalties on its path, got a tuple or dict: pack its parts into one")
    if any(status is not Status.SUCCESS for status in x.status):
        raise RuntimeError(
            f"the solve must reach its last time for penalties on its path, it reached {x.reached.tolist()}"
        )
    if len(x.steps.y) < len(x.steps):
        raise RuntimeError("adjoint=Reversible() keeps no states along the path: use Checkpointed() or another")
