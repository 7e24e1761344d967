"""Generalized teacher forcing: training models of chaotic systems on long trajectories with bounded gradients.

A chaotic model's gradients grow exponentially along its trajectory, whatever the data. Here the model's state is drawn
towards the data at each observation, x~ = alpha * data + (1 - alpha) * state, which multiplies each factor of the
gradient by 1 - alpha: strong enough that they do not grow, weak enough that the model has to find its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invreg._check import require_count, require_positive
from invreg.solvers import RK4, Method, step

Map = Callable[[Tensor], Tensor]
MOST_BINS = 10**8


class FlowMap(nn.Module):
    """From a state to the state one sampling interval later, (B, d) -> (B, d), by a few fixed steps of a field.

    Args:
        field: dy/dt as a module of t and y; t is 0 at each start, so that it should be autonomous.
        interval: time between two observations.
        steps: of the solver in it.
        method: of the solver, explicit.
    """

    def __init__(self, field: nn.Module, interval: float, *, steps: int = 1, method: Method = RK4()) -> None:
        super().__init__()
        require_positive("interval", interval)
        require_count("steps", steps)
        self.field, self.interval, self.steps, self.method = field, float(interval), steps, method

    @property
    def config(self) -> Mapping[str, object]:
        """The arguments of the constructor."""
        return {"field": self.field, "interval": self.interval, "steps": self.steps, "method": self.method}

    def forward(self, x: Tensor) -> Tensor:
        dt = self.interval / self.steps
        for i in range(self.steps):
            x = step(self.field, i * dt, dt, x, method=self.method).y
        return x


class AdaptiveForcing(nn.Module):
    """The strength of forcing that just bounds the gradients: alpha = max(0, 1 - 1 / sigma).

    sigma is the geometric mean, along a sequence of data, of the largest singular values of the map's Jacobian, and of
    these the largest of the batch. A larger alpha is taken over at once, a smaller one slowly.

    Args:
        first: alpha in the beginning.
        decay: of the old alpha where the new one is smaller, in [0, 1).
        every: batches between two estimates.

    Its state, `alpha`, is a buffer: save it with the model.

    Source: Hess et al. 2023, eq. 15 and 16 and the authors' program, whose default ("product_upper_bound", annealing)
    this is.
    """

    def __init__(self, first: float = 1.0, decay: float = 0.999, every: int = 5) -> None:
        super().__init__()
        if not (0 <= first <= 1 and 0 <= decay < 1):
            raise ValueError(f"first must be in [0, 1] and decay in [0, 1), got {first} and {decay}")
        require_count("every", every)
        self.decay, self.every = decay, every
        self.alpha: Tensor
        self.batches: Tensor
        self.register_buffer("alpha", torch.tensor(float(first), dtype=torch.float64))
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, model: Map, data: Tensor) -> float:
        """The alpha to use for a batch of data, (B, T, d); looks at the model each `every` batches."""
        self.batches += 1
        if int(self.batches) % self.every == 0:
            found = bounding_alpha(jacobian_norms(model, data))
            old = float(self.alpha)
            self.alpha.fill_(found if found > old else self.decay * old + (1 - self.decay) * found)
        return float(self.alpha)


@dataclass(frozen=True, eq=False)
class ForcedFit:
    """The objective of a map such as `FlowMap` on sequences: "data", the mean squared error of each next state.

    A batch is (data,), (B, T + 1, d), as `Shuffled(windows, ...)` gives it, in the same units for all entries of d.

    Args:
        model: from a state to the next, (B, d) -> (B, d).
        forcing: `AdaptiveForcing`, or a function of progress that gives alpha in [0, 1]: 1 predicts one step, 0 leaves
            the model alone.

    Raises:
        TypeError: forcing is no function. ValueError: on call, data of another shape, or alpha out of range.

    Source: Hess, Monfared, Brenner and Durstewitz 2023, "Generalized Teacher Forcing for Learning Chaotic Dynamics",
    eq. 9; the interpolation is Doya's of 1992.
    """

    model: Map
    forcing: AdaptiveForcing | Callable[[float], float]

    def __post_init__(self) -> None:
        if not callable(self.forcing):
            raise TypeError(
                f"forcing must be AdaptiveForcing() or a function of progress, got {self.forcing!r}; a constant is "
                f"lambda progress: {self.forcing!r}"
            )

    def __call__(
        self, batch: tuple[Tensor, ...], progress: float, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The named terms for a batch of sequences."""
        data = batch[0]
        if data.ndim != 3 or data.shape[1] < 2:
            raise ValueError(f"data must be (B, T + 1, d) with T >= 1, got {tuple(data.shape)}")
        if isinstance(self.forcing, AdaptiveForcing):
            alpha = self.forcing(self.model, data[:, :-1])
        else:
            alpha = self.forcing(progress)
        return {"data": (forced(self.model, data, alpha) - data[:, 1:]).square().mean()}

    def score(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Mean squared error of one step, and of the whole sequence without forcing."""
        data = batch[0]
        return {
            "one step": (forced(self.model, data, 1.0) - data[:, 1:]).square().mean(),
            "free run": (forced(self.model, data, 0.0) - data[:, 1:]).square().mean(),
        }


def forced(model: Map, data: Tensor, alpha: float) -> Tensor:
    """The states that follow data[:, 0], (B, T, d), each from a state that was drawn towards the data by alpha.

    Args:
        model: from a state to the next, (B, d) -> (B, d).
        data: (B, T + 1, d); the last entry along time is not used.
        alpha: in [0, 1].

    Raises:
        ValueError: alpha is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    state, states = data[:, 0], list[Tensor]()
    for i in range(data.shape[1] - 1):
        state = model(state if i == 0 else torch.lerp(state, data[:, i], alpha))
        states.append(state)
    return torch.stack(states, 1)


def run_free(model: Map, x: Tensor, number: int) -> Tensor:
    """The next `number` states from x (B, d) without forcing or gradients: (B, number, d)."""
    require_count("number", number)
    states = []
    with torch.no_grad():
        for _ in range(number):
            x = model(x)
            states.append(x)
    return torch.stack(states, 1)


def jacobian_norms(model: Map, data: Tensor) -> Tensor:
    """The largest singular value of the Jacobian of a map (B, d) -> (B, d) at each state of (B, T, d): (B, T)."""
    features = data.shape[-1]
    points = data.detach().reshape(-1, features).requires_grad_()
    with torch.enable_grad():
        after = model(points)
        rows = [
            torch.autograd.grad(after[:, i].sum(), points, retain_graph=i + 1 < features)[0] for i in range(features)
        ]
    norms: Tensor = torch.linalg.matrix_norm(torch.stack(rows, 1), ord=2)
    return norms.reshape(data.shape[:-1])


def bounding_alpha(norms: Tensor) -> float:
    """max(0, 1 - 1 / sigma) with the geometric mean sigma along time of norms (B, T), the largest of the batch.

    Raises:
        ValueError: the norms are not finite.
    """
    if not bool(norms.isfinite().all()):
        raise ValueError("norms must be finite, got NaN or Inf: the model diverges on the data")
    sigma = float(norms.clamp_min(torch.finfo(norms.dtype).tiny).log().mean(-1).max().exp())
    return max(0.0, 1.0 - 1.0 / sigma)


def state_space_divergence(truth: Tensor, found: Tensor, bins: int = 30) -> float:
    """How differently two trajectories fill their space: the Kullback-Leibler divergence of histograms, in nats.

    The bins divide the box around `truth`, a tenth of a standard deviation wider on each side; what lies outside, or is
    NaN, is not counted, and each bin has 1e-5 added.

    Args:
        truth, found: states, (N, d) and (M, d), of few dimensions: there are bins^d.
        bins: along each dimension.

    Raises:
        ValueError: shapes that do not fit, a truth of fewer than two states or with NaN or Inf, more than 10^8 bins.

    Source: D_stsp of Hess et al. 2023, App. 6, with the settings of the authors' program.
    """
    if truth.ndim != 2 or found.ndim != 2 or truth.shape[1] != found.shape[1]:
        raise ValueError(
            f"truth and found must be (N, d) and (M, d), got {tuple(truth.shape)} and {tuple(found.shape)}"
        )
    require_count("bins", bins)
    if bins ** truth.shape[1] > MOST_BINS:
        raise ValueError(f"bins must leave {MOST_BINS:.0e} of them in all, got {bins}^{truth.shape[1]}; take fewer")
    if len(truth) < 2 or not bool(truth.isfinite().all()):
        raise ValueError(f"truth must be at least two states, all finite, got {tuple(truth.shape)}")
    margin = 0.1 * truth.std(0)
    low, high = truth.amin(0) - margin, truth.amax(0) + margin
    p, q = (_histogram(x, low, high, bins) for x in (truth, found))
    return float((p * (p / q).log()).sum())


def _histogram(x: Tensor, low: Tensor, high: Tensor, bins: int, smoothing: float = 1e-5) -> Tensor:
    x = x[((x >= low) & (x < high)).all(1)]  # false for NaN, too
    cells = ((x - low) / (high - low) * bins).long().clamp_max(bins - 1)
    place = bins ** torch.arange(x.shape[1], device=x.device)
    counts = torch.bincount((cells * place).sum(1), minlength=bins ** x.shape[1]).double() + smoothing
    return counts / counts.sum()
