"""Encoders of series that are observed at irregular times, in part: from the last observation back to the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invreg._check import require_count
from invreg.random import Generator, draw


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Independent normal distributions, (B, d)."""

    mean: Tensor
    log_sigma: Tensor

    def sample(self, generator: Generator = None) -> Tensor:
        """A draw, (B, d), with gradients to mean and log_sigma."""
        return self.mean + self.log_sigma.exp() * draw(self.mean, generator)

    def divergence(self) -> Tensor:
        """Kullback-Leibler divergence from the standard normal distribution, (B,), in nats."""
        parts = (2 * self.log_sigma).exp() + self.mean.square() - 1 - 2 * self.log_sigma
        return parts.sum(-1) / 2


class SeriesEncoder(nn.Module):
    """A gated recurrent unit that reads a series backwards in time and says what it began with.

    At each time it is given the observed values (0 where there is none), which they are, and how long ago, in its
    direction, the sample was last observed. A time at which a sample has no observation leaves its state as it is.

    Args:
        features: of an observation.
        hidden: units of the recurrent state.
        latent: of the initial state that is told.
        evolving: whether the state moves between observations, too, by an Euler step of a learned autonomous field: an
            ODE-RNN instead of an RNN.

    Shapes: values and mask (B, T, features), times (T,) increasing; gives a `Gaussian` of (B, latent).

    Raises:
        ValueError: the shapes do not fit, or the times do not increase.

    Source: Rubanova et al. 2019, "Latent ODEs for Irregularly-Sampled Time Series", sec. 3 and 4, where the ODE-RNN
    moves by an adaptive solver or Euler steps.
    """

    def __init__(self, features: int, hidden: int, latent: int, *, evolving: bool = False) -> None:
        super().__init__()
        for name, count in (("features", features), ("hidden", hidden), ("latent", latent)):
            require_count(name, count)
        self.config: Mapping[str, object] = {
            "features": features,
            "hidden": hidden,
            "latent": latent,
            "evolving": evolving,
        }
        self.features = features
        self.cell = nn.GRUCell(2 * features + 1, hidden)
        drift = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, hidden))
        self.drift = drift if evolving else None
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 2 * latent))

    def forward(self, values: Tensor, mask: Tensor, times: Tensor) -> Gaussian:
        self._require(values, mask, times)
        present = mask.to(values.dtype)
        inputs = torch.cat([torch.where(mask.bool(), values, 0), present], -1)
        seen = mask.bool().any(-1, keepdim=True)  # (B, T, 1)
        gaps = times.diff().to(values)
        state = values.new_zeros(len(values), self.cell.hidden_size)
        since = values.new_zeros(len(values), 1)
        for i in reversed(range(len(times))):
            if i + 1 < len(times):
                since = since + gaps[i]
                if self.drift is not None:
                    state = state + gaps[i] * self.drift(state)
            state = torch.where(seen[:, i], self.cell(torch.cat([inputs[:, i], since], -1), state), state)
            since = torch.where(seen[:, i], 0, since)
        mean, log_sigma = self.head(state).chunk(2, -1)
        return Gaussian(mean, log_sigma)

    def _require(self, values: Tensor, mask: Tensor, times: Tensor) -> None:
        wanted = ("B", "T", str(self.features))
        if values.ndim != 3 or values.shape[-1] != self.features or not values.is_floating_point():
            raise ValueError(
                f"values must be ({', '.join(wanted)}) of floating point, got {tuple(values.shape)} of {values.dtype}"
            )
        if mask.shape != values.shape:
            raise ValueError(f"mask must be {tuple(values.shape)} as values are, got {tuple(mask.shape)}")
        if times.shape != values.shape[1:2] or not bool((times.diff() > 0).all()):
            raise ValueError(
                f"times must be increasing, ({values.shape[1]},), one for each value, got {tuple(times.shape)}; sort "
                "and merge them"
            )
