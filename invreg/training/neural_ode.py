"""Neural ordinary differential equations: classifiers and regressors that let their features flow, and trajectories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from invreg._check import require_positive
from invreg.interfaces import Regularizer
from invreg.regularizers.compose import named_terms
from invreg.solvers import Solution, Solver
from invreg.training.requirements import require_model, require_modules, require_names, require_solver

Solve = Callable[..., Solution]  # (field, y0, ts) -> Solution


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a `NeuralODE` says, (B, outputs), and the solution that it came from."""

    output: Tensor
    solution: Solution


class NeuralODE(nn.Module):
    """head(y(t1)) where dy/dt = field(t, y) and y(t0) = encoder(x).

    Args:
        field: dy/dt as a module of t and y, such as `TimeMLP`.
        encoder: from the data to the state; None: the data are the state.
        head: from the last state to the output; None: the state is the output.
        span: t0 and t1.
        solver: how it is solved: a `Solver`, or any function of (field, y0, ts) that gives a `Solution`.

    Raises:
        ValueError: t0 and t1 are the same. TypeError: the solver is no function, or one with noise.

    Source: Chen et al. 2018, "Neural Ordinary Differential Equations".
    """

    def __init__(
        self,
        field: nn.Module,
        *,
        encoder: nn.Module | None = None,
        head: nn.Module | None = None,
        span: tuple[float, float] = (0.0, 1.0),
        solver: Solve = Solver(),
    ) -> None:
        super().__init__()
        if not isinstance(span, Sequence) or len(span) != 2 or span[0] == span[1]:
            raise ValueError(f"span must be two different times, got {span}")
        require_modules(field=field)
        require_solver(solver)
        self.field, self.encoder, self.head = field, encoder, head
        self.span, self.solver = (float(span[0]), float(span[1])), solver

    @property
    def config(self) -> Mapping[str, object]:
        """The arguments of the constructor."""
        return {
            "field": self.field,
            "encoder": self.encoder,
            "head": self.head,
            "span": self.span,
            "solver": self.solver,
        }

    def forward(self, x: Tensor, end: float | None = None) -> Prediction:
        """The prediction for a batch; with `end` the flow ends there instead of at t1."""
        start, last = self.span
        y0 = x if self.encoder is None else self.encoder(x)
        solution = self.solver(self.field, y0, [start, last if end is None else end])
        y: Tensor = solution.ys[-1]
        return Prediction(y if self.head is None else self.head(y), solution)


@dataclass(frozen=True, eq=False)
class Supervised:
    """The objective of a `NeuralODE` on pairs (x, target): "data", and each regularizer of the solution by its name.

    Args:
        model: what is trained.
        loss: of (output, target), (), such as torch.nn.functional.cross_entropy or mse_loss.
        regularizers: of the solution, by name: ERNODE is {"error": SolverError(...)}; with `.at(progress)`.
        steer: b of STEER, >= 0: in training the flow ends at a time drawn uniformly from (t1 - b, t1 + b).

    Raises:
        ValueError: steer is not below |t1 - t0|, or a regularizer is called "data". TypeError: the model is another.

    Source: of STEER, Ghosh et al. 2020, "STEER: Simple Temporal Regularization For Neural ODEs"; of the regularizers,
    Pal et al. 2021, "Opening the Blackbox", and 2023, "Locally Regularized Neural Differential Equations".
    """

    model: NeuralODE
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy
    regularizers: Mapping[str, Regularizer[Solution]] = field(default_factory=dict)
    steer: float = 0.0

    def __post_init__(self) -> None:
        require_model("Supervised", self.model, NeuralODE)
        require_positive("steer", self.steer, zero_allowed=True)
        length = abs(self.model.span[1] - self.model.span[0])
        if self.steer >= length:
            raise ValueError(f"steer must be below the length of the span, {length}, got {self.steer}")
        require_names(self.regularizers, "data")

    def __call__(
        self, batch: tuple[Tensor, Tensor], progress: float, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The named terms for a batch of x and target."""
        x, target = batch
        prediction = self.model(x, self._end(generator) if self.steer else None)
        terms = named_terms(self.regularizers, prediction.solution, progress)
        return {"data": self._loss(prediction.output, target), **terms}

    def score(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Loss and evaluations of the field, and for targets that are classes the accuracy."""
        x, target = batch
        prediction = self.model(x)
        output = prediction.output
        scores = {"loss": self._loss(output, target), "evaluations": prediction.solution.stats.nfe.double().mean()}
        if not target.is_floating_point() and output.ndim == target.ndim + 1:
            scores["accuracy"] = (output.argmax(1) == target).to(output.dtype).mean()
        return scores

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        try:
            return self.loss(output, target)
        except (IndexError, RuntimeError, ValueError) as error:  # torch says what, but not of whom
            raise ValueError(
                f"target does not fit the output of the model, {tuple(output.shape)} of {output.dtype}: {error}; got "
                f"{tuple(target.shape)} of {target.dtype}"
            ) from error

    def _end(self, generator: torch.Generator | None) -> float:
        device = None if generator is None else generator.device
        uniform = float(torch.rand((), generator=generator, device=device, dtype=torch.float64))
        return self.model.span[1] + self.steer * (2 * uniform - 1)


@dataclass(frozen=True, eq=False)
class TrajectoryFit:
    """The objective of a field on observed trajectories: "data", the mean squared error, and regularizers by name.

    Args:
        field: dy/dt as a module of t and y, such as `CubicDrift`.
        times: of the initial state first, then of the observations; T + 1 numbers.
        regularizers: of the solution, by name.
        solver: how it is solved.

    A batch is (y0, targets), (B, *state) and (B, T, *state).

    Raises:
        ValueError: fewer than two times, or a regularizer called "data"; on call, targets of another shape.
        TypeError: the solver is no function, or one with noise.
    """

    field: nn.Module
    times: Sequence[float]
    regularizers: Mapping[str, Regularizer[Solution]] = field(default_factory=dict)
    solver: Solve = Solver()

    def __post_init__(self) -> None:
        if len(self.times) < 2:
            raise ValueError(f"times must hold the start and at least one more, got {len(self.times)}")
        require_solver(self.solver)
        require_names(self.regularizers, "data")

    def __call__(
        self, batch: tuple[Tensor, Tensor], progress: float, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The named terms for a batch of initial states and trajectories."""
        data, solution = self._misfit(batch)
        return {"data": data, **named_terms(self.regularizers, solution, progress)}

    def score(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Mean squared error and evaluations of the field."""
        data, solution = self._misfit(batch)
        return {"data": data, "evaluations": solution.stats.nfe.double().mean()}

    def _misfit(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Solution]:
        y0, targets = batch
        wanted = (len(y0), len(self.times) - 1, *y0.shape[1:])
        if targets.shape != wanted:
            raise ValueError(
                f"targets must be {wanted}: samples, the times behind the first, state; got {tuple(targets.shape)}"
            )
        solution = self.solver(self.field, y0, self.times)
        return (solution.ys[1:].movedim(0, 1) - targets).square().mean(), solution
