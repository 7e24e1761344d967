"""Perceptrons: plain ones, and as the right-hand side of a differential equation with time as a feature."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from invreg._check import require_count


class MLP(nn.Module):
    """Linear layers with tanh between them: (..., inputs) -> (..., outputs).

    Args:
        inputs, outputs: lengths of the last axis.
        hidden: widths between them; none: one linear layer.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        hidden = _widths(hidden)
        self.config: Mapping[str, object] = {"inputs": inputs, "hidden": hidden, "outputs": outputs}
        self.layers = nn.ModuleList(_layers((inputs, *hidden, outputs), 0))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.layers
        x = first(x)
        for layer in others:
            x = layer(torch.tanh(x))
        return x


class TimeMLP(nn.Module):
    """A field dy/dt = f(t, y) by a perceptron with tanh between its layers and time as a feature of each.

    Args:
        features: length of the last axis of y.
        hidden: widths of the hidden layers.
        timed: whether t is a feature; else the field is autonomous.
        bounded: whether tanh follows the last layer, too, so that no entry of y moves faster than 1.

    Shapes: t is () or has ones behind the batch, (B, 1, ..., 1), as solvers give it; y is (..., features).

    Source: with `bounded` and one hidden layer of 100 the field of the MNIST experiments of Kelly et al. 2020,
    "Learning Differential Equations that are Easy to Solve", and Pal et al. 2021, "Opening the Blackbox".
    """

    def __init__(self, features: int, hidden: Sequence[int], *, timed: bool = True, bounded: bool = False) -> None:
        super().__init__()
        hidden = _widths(hidden)
        self.config: Mapping[str, object] = {
            "features": features,
            "hidden": hidden,
            "timed": timed,
            "bounded": bounded,
        }
        self.timed, self.bounded = timed, bounded
        self.layers = nn.ModuleList(_layers((features, *hidden, features), int(timed)))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        time = t.to(y.dtype).expand(*y.shape[:-1], 1) if self.timed else None
        for i, layer in enumerate(self.layers):
            y = layer(y if time is None else torch.cat([y, time], -1))
            if self.bounded or i + 1 < len(self.layers):
                y = torch.tanh(y)
        return y


class EntrywiseMLP(nn.Module):
    """A diffusion of diagonal noise: entry i of the result depends on entry i of y only, by a perceptron of its own.

    Without hidden units it is linear, w_i y_i + b_i.

    Args:
        features: length of the last axis of y.
        hidden: units of each entry, 0 or more, with tanh behind them.
    """

    def __init__(self, features: int, hidden: int = 16) -> None:
        super().__init__()
        require_count("features", features)
        if isinstance(hidden, bool) or not isinstance(hidden, int) or hidden < 0:
            raise ValueError(f"hidden must be an integer >= 0, got {hidden!r}")
        self.config: Mapping[str, object] = {"features": features, "hidden": hidden}
        self.inner = nn.Parameter(torch.randn(2, features, hidden)) if hidden else None
        self.outer = nn.Parameter(torch.randn(features, max(hidden, 1)) / max(hidden, 1) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        units = y.unsqueeze(-1)
        if self.inner is not None:
            units = torch.tanh(units * self.inner[0] + self.inner[1])
        found: Tensor = (units * self.outer).sum(-1) + self.bias
        return found


class CubicDrift(nn.Module):
    """A field dy/dt = W2 tanh(W1 y^3 + b1) + b2, which holds the cubic spiral in reach of few units.

    Args:
        features: length of the last axis of y.
        hidden: units.

    Source: the spiral of Chen et al. 2018, "Neural Ordinary Differential Equations", and the drift of Pal et al. 2021.
    """

    def __init__(self, features: int = 2, hidden: int = 50) -> None:
        super().__init__()
        self.config: Mapping[str, object] = {"features": features, "hidden": hidden}
        self.inner, self.outer = _layers((features, hidden, features), 0)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        slope: Tensor = self.outer(torch.tanh(self.inner(y**3)))
        return slope


def _widths(hidden: object) -> tuple[int, ...]:
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise TypeError(f"hidden must be a list of widths, got {hidden!r}; write [{hidden}] for one layer")
    return tuple(hidden)


def _layers(widths: Sequence[int], extra: int) -> list[nn.Linear]:
    for width in widths:
        require_count("widths of layers", width)
    return [nn.Linear(a + extra, b) for a, b in itertools.pairwise(widths)]
