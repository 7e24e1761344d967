"""Neural stochastic differential equations: paths, and their fit to the moments of observed ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from invreg._check import require_count
from invreg.interfaces import Regularizer
from invreg.regularizers.compose import named_terms
from invreg.solvers import NoisySolver, Solution
from invreg.training.requirements import require_modules, require_names


class NeuralSDE(nn.Module):
    """dy = drift(t, y) dt + diffusion(t, y) dW.

    Args:
        drift, diffusion: modules of t and y, such as `CubicDrift`; for diagonal noise the entries of the diffusion
            depend on their own of y only, as those of `EntrywiseMLP` do.
        solver: how it is solved, and what kind of noise it has.

    Source: Tzen and Raginsky 2019, "Neural Stochastic Differential Equations"; Liu et al. 2019, "Neural SDE".
    """

    def __init__(self, drift: nn.Module, diffusion: nn.Module, solver: NoisySolver = NoisySolver()) -> None:
        super().__init__()
        require_modules(drift=drift, diffusion=diffusion)
        if not isinstance(solver, NoisySolver):
            raise TypeError(f"solver must be a NoisySolver, got {type(solver).__name__}")
        self.drift, self.diffusion, self.solver = drift, diffusion, solver

    @property
    def config(self) -> Mapping[str, object]:
        """The arguments of the constructor."""
        return {"drift": self.drift, "diffusion": self.diffusion, "solver": self.solver}

    def forward(self, y0: Tensor, ts: Sequence[float], generator: torch.Generator | None = None) -> Solution:
        """Paths from y0 at the times ts, each sample of the batch with noise of its own, drawn from the generator."""
        return self.solver(self.drift, self.diffusion, y0, ts, generator)


@dataclass(frozen=True, eq=False)
class MomentFit:
    """The objective of a `NeuralSDE` on the moments of observed paths: the method of moments.

    Its terms are "mean" and "variance", squared differences summed over times and entries and averaged over the batch,
    and regularizers by name: ERNSDE is {"error": SolverError(...)}.

    Args:
        model: what is trained.
        times: of the initial state first, then of the moments; T + 1 numbers.
        paths: that are drawn from each initial state for an estimate of the moments, at least 2.
        regularizers: of the solution, by name; with `.at(progress)`.

    A batch is (y0, means, variances): (B, d), (B, T, d), (B, T, d).

    Raises:
        ValueError: fewer than two times or paths, or a regularizer called as a term is; on call, moments of another
            shape.

    Source: Pal et al. 2021, "Opening the Blackbox", section 4.2.
    """

    model: NeuralSDE
    times: Sequence[float]
    paths: int = 100
    regularizers: Mapping[str, Regularizer[Solution]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, NeuralSDE):
            raise TypeError(f"model must be a NeuralSDE, got {type(self.model).__name__}")
        if len(self.times) < 2:
            raise ValueError(f"times must hold the start and at least one more, got {len(self.times)}")
        require_count("paths", self.paths)
        if self.paths < 2:
            raise ValueError(f"paths must be at least 2 for a variance, got {self.paths}")
        require_names(self.regularizers, "mean", "variance")

    def __call__(
        self, batch: tuple[Tensor, Tensor, Tensor], progress: float, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The named terms for initial states and the moments of the paths from each."""
        misfits, solution = self._misfits(batch, generator)
        return {**misfits, **named_terms(self.regularizers, solution, progress)}

    def score(self, batch: tuple[Tensor, ...], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The misfits, and the evaluations of drift and diffusion; without a generator on the same paths each time."""
        if generator is None:
            generator = torch.Generator(batch[0].device).manual_seed(0)
        misfits, solution = self._misfits(batch, generator)
        evaluations = torch.tensor(float(solution.stats.calls + solution.stats.diffusions), dtype=torch.float64)
        return {**misfits, "evaluations": evaluations}

    def _misfits(
        self, batch: tuple[Tensor, ...], generator: torch.Generator | None
    ) -> tuple[dict[str, Tensor], Solution]:
        y0, means, variances = batch
        wanted = (len(y0), len(self.times) - 1, *y0.shape[1:])
        for name, one in (("means", means), ("variances", variances)):
            if one.shape != wanted:
                raise ValueError(
                    f"{name} must be {wanted}: samples, the times behind the first, state; got {tuple(one.shape)}"
                )
        solution = self.model(y0.repeat_interleave(self.paths, 0), self.times, generator)
        ys = solution.ys[1:].unflatten(1, (len(y0), self.paths)).transpose(0, 1)  # (B, T, paths, d)
        misfits = {
            "mean": (ys.mean(2) - means).square().sum() / len(y0),
            "variance": (ys.var(2) - variances).square().sum() / len(y0),
        }
        return misfits, solution
