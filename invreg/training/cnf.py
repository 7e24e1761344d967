"""Continuous normalizing flows: densities by the change of variables along a differential equation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from invreg._check import require_count, require_positive
from invreg.interfaces import Regularizer
from invreg.models.derivatives import slope_and_trace
from invreg.random import draw
from invreg.regularizers.compose import named_terms
from invreg.solvers import Solution, Solver
from invreg.training.requirements import require_model, require_modules, require_names, require_solver

Solve = Callable[..., Solution]  # (field, y0, ts) -> Solution
Trace = Literal["exact", "rademacher", "gaussian"]


@dataclass(frozen=True, eq=False)
class Flowed:
    """Points (B, d) at the end of a flow, the log-determinant of its Jacobian (B,), and the solution.

    The solution's state is (B, d + 1): the points, and behind them the log-determinant so far.
    """

    points: Tensor
    log_det: Tensor
    solution: Solution


class CNF(nn.Module):
    """A density on R^d: what becomes of the data in a flow from time 0 to `end` is standard normal.

    log p(x) = log N(z; 0, 1) + integral of the trace of df/dy along the path from x to z.

    Args:
        field: dy/dt as a module of t and y, (B, d) -> (B, d), each row by itself, such as `ConcatSquash`.
        features: d.
        trace: how the trace is computed: "exact" (one derivative for each dimension: for small d), or by Hutchinson's
            estimator with noise of "rademacher" (-1 or 1) or "gaussian", one derivative; unbiased for log p, not for p.
        end: the time at which the flow ends, > 0.
        solver: how the equation is solved; its error covers the log-determinant, too.

    Raises:
        ValueError: an argument is out of range; on call, points of another shape.

    Source: Chen et al. 2018, "Neural Ordinary Differential Equations", eq. 8; Grathwohl et al. 2019, "FFJORD", whose
    noise is the same at all times of a solve, as here.
    """

    def __init__(
        self,
        field: nn.Module,
        features: int,
        *,
        trace: Trace = "exact",
        end: float = 1.0,
        solver: Solve = Solver(rtol=1e-5, atol=1e-5),
    ) -> None:
        super().__init__()
        require_modules(field=field)
        require_count("features", features)
        require_positive("end", end)
        if trace not in {"exact", "rademacher", "gaussian"}:
            raise ValueError(f'trace must be "exact", "rademacher" or "gaussian", got {trace!r}')
        self.field, self.features, self.trace = field, features, trace
        require_solver(solver)
        self.end, self.solver = float(end), solver

    @property
    def config(self) -> Mapping[str, object]:
        """The arguments of the constructor."""
        return {
            "field": self.field,
            "features": self.features,
            "trace": self.trace,
            "end": self.end,
            "solver": self.solver,
        }

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Flowed:
        """From data, (B, d), to normal noise; `generator` is the source of the estimator's noise."""
        return self._flow(x, [0.0, self.end], generator)

    def log_prob(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The logarithm of the density at x, (B, d) -> (B,), in nats."""
        return log_density(self.forward(x, generator))

    def sample(self, number: int, generator: torch.Generator | None = None) -> Tensor:
        """Points drawn from the density, (number, d), without gradients, where the model is."""
        require_count("number", number)
        like = next(self.field.parameters(), torch.empty(()))
        z = draw(like.new_empty(number, self.features), generator)
        with torch.no_grad():
            points: Tensor = self.solver(self.field, z, [self.end, 0.0]).ys[-1]
        return points

    def _flow(self, x: Tensor, ts: list[float], generator: torch.Generator | None) -> Flowed:
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"points must be (B, {self.features}), got {tuple(x.shape)}")
        noise = None if self.trace == "exact" else self._noise(x, generator)
        y0 = torch.cat([x, x.new_zeros(len(x), 1)], 1)
        solution = self.solver(_Augmented(self.field, noise), y0, ts)
        end = solution.ys[-1]
        return Flowed(end[:, :-1], end[:, -1], solution)

    def _noise(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        noise = draw(x.detach(), generator)
        return noise if self.trace == "gaussian" else torch.where(noise < 0, -1.0, 1.0).to(noise.dtype)


class _Augmented(nn.Module):
    """The field of the points and of the log-determinant, (B, d + 1)."""

    def __init__(self, field: nn.Module, noise: Tensor | None) -> None:
        super().__init__()
        self.field, self.noise = field, noise

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        slope, trace = slope_and_trace(self.field, t, y[..., :-1], self.noise)
        return torch.cat([slope, trace[..., None]], -1)


def log_density(flowed: Flowed) -> Tensor:
    """log p of the points that a flow began with, (B,), in nats, where those that it ends with are standard normal."""
    z = flowed.points
    return flowed.log_det - z.square().sum(1) / 2 - z.shape[1] * math.log(2 * math.pi) / 2


@dataclass(frozen=True, eq=False)
class NegativeLogLikelihood:
    """The objective of a `CNF`: "data", the mean of -log p in nats, and each regularizer of the solution by its name.

    A batch is (x,), x (B, d), as `Shuffled(x, ...)` gives it. Penalties on the path (`TaylorDerivative`,
    `KineticEnergy`, `JacobianNorm`) want field=model.field, features=d, so that the log-determinant is left out.

    Args:
        model: what is trained.
        regularizers: of the solution, by name; with `.at(progress)`.

    Raises:
        ValueError: a regularizer is called "data". TypeError: the model is no `CNF`.
    """

    model: CNF
    regularizers: Mapping[str, Regularizer[Solution]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_model("NegativeLogLikelihood", self.model, CNF)
        require_names(self.regularizers, "data")

    def __call__(
        self, batch: tuple[Tensor, ...], progress: float, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The named terms for a batch of points."""
        flowed = self.model(batch[0], generator)
        terms = named_terms(self.regularizers, flowed.solution, progress)
        return {"data": -log_density(flowed).mean(), **terms}

    def score(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Mean -log p in nats and evaluations of the field."""
        flowed = self.model(batch[0], torch.Generator().manual_seed(0))  # the same noise at each judgement
        evaluations = flowed.solution.stats.nfe.double().mean()
        return {"nats": -log_density(flowed).mean(), "evaluations": evaluations}
