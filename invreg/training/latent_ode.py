"""Latent ordinary differential equations: generative models of series that are observed at irregular times, in part."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from invreg._check import require_positive
from invreg.interfaces import Regularizer
from invreg.models.recurrent import Gaussian, SeriesEncoder
from invreg.regularizers.compose import named_terms
from invreg.solvers import Solution, Solver
from invreg.training import parallel
from invreg.training.requirements import require_model, require_modules, require_names, require_solver

Solve = Callable[..., Solution]  # (field, y0, ts) -> Solution


@dataclass(frozen=True, eq=False)
class LatentPath:
    """What a `LatentODE` says of series: values (B, T, features), and the latent solution that they came from."""

    values: Tensor
    solution: Solution


class LatentODE(nn.Module):
    """decoder(z(t)) where dz/dt = field(t, z), and the encoder tells z at the first time from the series.

    Args:
        encoder: (values, mask, times) -> `Gaussian` of the latent state at the first of these times.
        field: dz/dt as a module of t and z.
        decoder: from latent states to values, on the last axis.
        sigma: standard deviation of an observation around its value, in the units of the data.
        solver: how the equation is solved.

    Source: Rubanova et al. 2019, "Latent ODEs for Irregularly-Sampled Time Series"; Chen et al. 2018.
    """

    def __init__(
        self,
        encoder: SeriesEncoder,
        field: nn.Module,
        decoder: nn.Module,
        *,
        sigma: float = 0.01,
        solver: Solve = Solver(),
    ) -> None:
        super().__init__()
        require_modules(encoder=encoder, field=field, decoder=decoder)
        require_positive("sigma", sigma)
        require_solver(solver)
        self.encoder, self.field, self.decoder = encoder, field, decoder
        self.sigma, self.solver = sigma, solver

    @property
    def config(self) -> Mapping[str, object]:
        """The arguments of the constructor."""
        return {
            "encoder": self.encoder,
            "field": self.field,
            "decoder": self.decoder,
            "sigma": self.sigma,
            "solver": self.solver,
        }

    def encode(self, values: Tensor, mask: Tensor, times: Tensor) -> Gaussian:
        """The distribution of the latent state at times[0]: values and mask (B, T, features), times (T,) increasing."""
        found: Gaussian = self.encoder(values, mask, times)
        return found

    def decode(self, latent: Tensor, times: Tensor) -> LatentPath:
        """The series from a latent state (B, d) at times[0], at all times (T,), increasing or decreasing."""
        solution = self.solver(self.field, latent, times)
        values: Tensor = self.decoder(solution.ys.movedim(0, 1))
        return LatentPath(values, solution)

    def forward(self, values: Tensor, mask: Tensor, times: Tensor, wanted: Tensor | None = None) -> LatentPath:
        """The series by the mean of the latent state: reconstruction, and prediction where nothing was observed.

        Args:
            values, mask: observations and where there are any, (B, T, features).
            times: of the observations, (T,), increasing.
            wanted: times at which the series is wanted, increasing from times[0] on, (W,); None: `times`.

        Raises:
            ValueError: wanted does not begin with times[0].
        """
        wanted = times if wanted is None else wanted
        if float(wanted[0]) != float(times[0]):
            raise ValueError(
                f"wanted must begin with the first time of the observations, {float(times[0])}, got {float(wanted[0])}"
            )
        return self.decode(self.encode(values, mask, times).mean, wanted)


def warm_up(progress: float) -> float:
    """From 0 to 1 over the first half of the training, then 1."""
    return min(1.0, 2 * progress)


@dataclass(frozen=True, eq=False)
class EvidenceBound:
    """The objective of a `LatentODE`: the negative evidence lower bound, per observed number, and regularizers by name.

    "data" is the negative log-likelihood of the observed numbers, "divergence" that of the latent state from the
    standard normal distribution, both in nats divided by how many numbers the batch has observed, so that their sum is
    the bound but for a factor. Where several processes share a batch, that is the mean of their counts, so that the
    mean of their terms is that of the whole batch, and all of them must call the objective together. A batch is
    (values, mask), (B, T, features) each, on the common grid `times`; times at which no sample of the batch was
    observed are left out of its solve.

    Args:
        model: what is trained.
        times: the union of the times of all samples, (T,), increasing.
        annealing: the weight of "divergence" as a function of progress; Rubanova et al. raise it from 0 to 1.
        regularizers: of the latent solution, by name; with `.at(progress)`.

    Raises:
        ValueError: a regularizer is called as a term of the bound; on call, a batch without observations, or whose
            shapes do not fit.
    """

    model: LatentODE
    times: Tensor
    annealing: Callable[[float], float] = warm_up
    regularizers: Mapping[str, Regularizer[Solution]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_model("EvidenceBound", self.model, LatentODE)
        require_names(self.regularizers, "data", "divergence")

    def __call__(
        self, batch: tuple[Tensor, Tensor], progress: float, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The named terms for a batch of values and mask."""
        values, mask, times = self._observed(batch)
        latent = self.model.encode(values, mask, times)
        path = self.model.decode(latent.sample(generator), times)
        count = parallel.mean(mask.sum().to(torch.promote_types(values.dtype, torch.float32)))
        return {
            "data": gaussian_nll(path.values, values, mask, self.model.sigma) / count,
            "divergence": self.annealing(progress) * latent.divergence().sum() / count,
            **named_terms(self.regularizers, path.solution, progress),
        }

    def score(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Mean squared error of the reconstruction at observed entries, and evaluations of the field."""
        values, mask, times = self._observed(batch)
        path = self.model(values, mask, times)
        squares = torch.where(mask, path.values - values, 0).square()
        return {
            "squared error": squares.sum() / mask.sum(),
            "evaluations": path.solution.stats.nfe.double().mean(),
        }

    def _observed(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Values, mask and times, those times left out at which there is nothing."""
        values, mask = batch
        if values.ndim != 3 or mask.shape != values.shape or values.shape[1:2] != self.times.shape:
            raise ValueError(
                f"values and mask must be (B, {len(self.times)}, features), got {tuple(values.shape)} and "
                f"{tuple(mask.shape)}"
            )
        mask = mask.bool()
        kept = mask.any(2).any(0)
        if not bool(kept.any()):
            raise ValueError("mask must have an observation in each batch, got none; leave out empty samples")
        return values[:, kept], mask[:, kept], self.times.to(kept.device)[kept]


def gaussian_nll(means: Tensor, values: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """Negative log-likelihood, (), in nats, of those values that the mask marks, normal around their means."""
    squares = torch.where(mask, means - values, 0).square().sum() / (2 * sigma**2)
    return squares + mask.sum() * (math.log(sigma) + math.log(2 * math.pi) / 2)


@dataclass(frozen=True, eq=False)
class Series:
    """Series of several samples on one grid of times: values and mask (B, T, features), times (T,) increasing, float64.

    A value where the mask is False is 0.
    """

    times: Tensor
    values: Tensor
    mask: Tensor


def union_grid(samples: Sequence[tuple[Tensor, Tensor]]) -> Series:
    """Put samples, each observed at its own times, on the union of all times.

    Args:
        samples: (times, values) of each, (T_i,) and (T_i, features); NaN marks numbers that were not observed. Times
            that are to count as one must be equal: round them before.

    Raises:
        ValueError: no sample, or shapes that do not fit, or a sample with one time twice.
    """
    if not samples:
        raise ValueError("samples must hold at least one series, got none")
    features = samples[0][1].shape[-1]
    for i, (t, v) in enumerate(samples):
        if t.ndim != 1 or v.shape != (len(t), features):
            raise ValueError(
                f"sample {i} must have times (T,) and values (T, {features}), got {tuple(t.shape)} and {tuple(v.shape)}"
            )
        twice = len(t) - len(set(t.tolist()))
        if twice:
            raise ValueError(f"sample {i} must have each time once, got {twice} twice; merge them")
    union = sorted({float(one) for t, _ in samples for one in t.tolist()})
    times = torch.tensor(union, dtype=torch.float64, device=samples[0][1].device)
    values = samples[0][1].new_zeros(len(samples), len(times), features)
    mask = torch.zeros_like(values, dtype=torch.bool)
    for i, (t, v) in enumerate(samples):
        rows = torch.searchsorted(times, t.to(torch.float64))
        mask[i, rows] = ~v.isnan()
        values[i, rows] = v.nan_to_num(0)
    return Series(times, values, mask)
