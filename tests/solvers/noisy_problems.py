"""Stochastic test problems as functions of torch tensors in float64, most of them with the solution as one of the path.

`cubic`, `wave`, `roots` and `fading` are those of SciML's SDEProblemLibrary, of which `growing` is the linear one with
rates that depend on time; `bent` is a linear system with commuting noise seen through a curved map. The drift of Ito is
that of Stratonovich plus half the derivative of the diffusion along itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invreg.solvers.method import Calculus, Noise

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class NoisyProblem:
    """dy = drift dt + diffusion dW from y0, (d,), at t = 0.

    Args:
        name: of the problem.
        noise: of which it is.
        drifts: of each calculus.
        diffusion: (*batch, d), or (*batch, d, m) for m channels.
        y0: (d,), float64.
        channels: the last axis of the path.
        exact: the solution from t, a number, and the path there, (*batch, channels); None: not known.
    """

    name: str
    noise: Noise
    drifts: dict[Calculus, Field]
    diffusion: Field
    y0: Tensor
    channels: int
    exact: Callable[[float, Tensor], Tensor] | None = None

    def start(self, batch: int) -> Tensor:
        """The start of a batch of solutions, (batch, d)."""
        return self.y0.expand(batch, -1).clone()


def vector(*values: float) -> Tensor:
    """A float64 vector."""
    return torch.tensor(values, dtype=torch.float64)


# --- diagonal noise


def growing(noise: Noise = "diagonal") -> NoisyProblem:
    """dX = a(t) X dt + 0.87 X dW, X = X0 exp(1.01 sin t + 0.87 W) with Stratonovich's a = 1.01 cos t."""
    sigma, y0 = 0.87, vector(0.5, 1.0)
    return NoisyProblem(
        "growing",
        noise,
        {
            "ito": lambda t, y: (1.01 * torch.cos(t) + sigma**2 / 2) * y,
            "stratonovich": lambda t, y: 1.01 * torch.cos(t) * y,
        },
        lambda t, y: sigma * y,
        y0,
        2 if noise == "diagonal" else 1,
        lambda t, w: y0 * torch.exp(1.01 * math.sin(t) + sigma * w),
    )


def cubic() -> NoisyProblem:
    """A solution z = tanh(W / 2 + c) of dZ = (1 - Z^2) / 2 o dW, times 1 + t / 2: both fields depend on time."""
    y0 = vector(0.3, -0.2)

    def scale(t: Tensor) -> Tensor:
        return 1 + t / 2

    def plain(t: Tensor, y: Tensor) -> Tensor:
        return 0.5 * y / scale(t)

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        return 0.5 * scale(t) * (1 - (y / scale(t)) ** 2)

    def of_ito(t: Tensor, y: Tensor) -> Tensor:
        return plain(t, y) - 0.5 * (y / scale(t)) * diffusion(t, y)

    return NoisyProblem(
        "cubic",
        "diagonal",
        {"ito": of_ito, "stratonovich": plain},
        diffusion,
        y0,
        2,
        lambda t, w: (1 + t / 2) * torch.tanh(w / 2 + torch.atanh(y0)),
    )


def wave() -> NoisyProblem:
    """dX = 0.1 cos^2 X o dW, X = atan(0.1 W + tan X0); Ito's drift is -0.01 sin X cos^3 X."""
    y0 = vector(1.0, 0.4)
    return NoisyProblem(
        "wave",
        "diagonal",
        {
            "ito": lambda t, y: -0.01 * torch.sin(y) * torch.cos(y) ** 3,
            "stratonovich": lambda t, y: torch.zeros_like(y),
        },
        lambda t, y: 0.1 * torch.cos(y) ** 2,
        y0,
        2,
        lambda t, w: torch.atan(0.1 * w + torch.tan(y0)),
    )


def roots() -> NoisyProblem:
    """dX = (X^(1/3) / 3 + 6 X^(2/3)) dt + X^(2/3) dW of Ito, X = (2 t + 1 + W / 3)^3."""
    y0 = vector(1.0, 8.0)

    def root(y: Tensor) -> Tensor:
        return y.abs() ** (1 / 3)

    return NoisyProblem(
        "roots",
        "diagonal",
        {
            "ito": lambda t, y: root(y) / 3 + 6 * root(y) ** 2,
            "stratonovich": lambda t, y: 6 * root(y) ** 2,
        },
        lambda t, y: root(y) ** 2,
        y0,
        2,
        lambda t, w: (2 * t + vector(1.0, 2.0) + w / 3) ** 3,
    )


# --- noise of several entries that commutes: a linear system behind a curved map

MIX = torch.tensor([[1.0, 0.3], [-0.2, 0.9]], dtype=torch.float64)
UNMIX = MIX.inverse()
RATES = vector(0.4, -0.3)


def bent(noise: Noise) -> NoisyProblem:
    """V_i' = cos(t) a_i V_i + sum_j b_ij V_i o dW_j, seen as x = (u_1, u_2 + u_1^2 / 2) with u = MIX V."""
    channels = 1 if noise == "scalar" else 3
    strengths = torch.tensor([[0.5, 0.3, -0.2], [-0.3, 0.4, 0.25]], dtype=torch.float64)[:, :channels]
    v0 = vector(0.8, -0.5)

    def seen(v: Tensor) -> Tensor:
        u, other = (v @ MIX.T).unbind(-1)
        return torch.stack([u, other + u * u / 2], -1)

    def hidden(y: Tensor) -> Tensor:
        u, other = y.unbind(-1)
        return torch.stack([u, other - u * u / 2], -1) @ UNMIX.T

    def pushed(y: Tensor, change: Tensor) -> Tensor:
        """What a change of v does to what is seen."""
        first, second = (change @ MIX.T).unbind(-1)
        return torch.stack([first, second + y[..., 0] * first], -1)

    def plain(t: Tensor, y: Tensor) -> Tensor:
        return pushed(y, torch.cos(t) * RATES * hidden(y))

    def of_ito(t: Tensor, y: Tensor) -> Tensor:
        v = hidden(y)
        square = strengths.square().sum(1)
        bend = ((strengths[None] * v.reshape(-1, 2, 1)).transpose(1, 2) @ MIX.T)[..., 0].square().sum(1) / 2
        bend = torch.stack([torch.zeros_like(bend), bend], -1).reshape(y.shape)
        return plain(t, y) + pushed(y, square / 2 * v) + bend

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        v = hidden(y)
        columns = [pushed(y, strengths[:, j] * v) for j in range(channels)]
        return columns[0] if noise == "scalar" else torch.stack(columns, -1)

    return NoisyProblem(
        "bent",
        noise,
        {"ito": of_ito, "stratonovich": plain},
        diffusion,
        seen(v0),
        channels,
        lambda t, w: seen(v0 * torch.exp(math.sin(t) * RATES + w @ strengths.T)),
    )


# --- additive noise


def fading() -> NoisyProblem:
    """dX = (b / sqrt(1 + t) - X / (2 (1 + t))) dt + a b / sqrt(1 + t) dW, X = (X0 + b (t + a W)) / sqrt(1 + t)."""
    a, b, y0 = vector(0.5, 1.0), vector(0.5, 1.0), vector(1.0, 0.5)

    def drift(t: Tensor, y: Tensor) -> Tensor:
        return b / torch.sqrt(1 + t) - y / (2 * (1 + t))

    return NoisyProblem(
        "fading",
        "additive",
        {"ito": drift, "stratonovich": drift},
        lambda t, y: (a * b / torch.sqrt(1 + t)).expand_as(y),
        y0,
        2,
        lambda t, w: (y0 + b * (t + a * w)) / math.sqrt(1 + t),
    )


def pulled(matrix: bool) -> NoisyProblem:
    """A nonlinear drift with noise whose strength depends on time, diagonal or of three channels; not solved."""
    shape = torch.tensor([[0.8, 0.3, -0.4], [-0.2, 0.6, 0.5]], dtype=torch.float64)

    def drift(t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(y.flip(-1) * 2) + torch.cos(t) - y

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        columns = shape * (1 + 0.5 * torch.sin(2 * t))
        return columns.expand(*y.shape, 3) if matrix else columns[:, 0].expand_as(y)

    return NoisyProblem(
        "pulled", "additive", {"ito": drift, "stratonovich": drift}, diffusion, vector(0.3, -0.6), 3 if matrix else 2
    )


# --- noise that does not commute


def crossed(noise: Noise = "general") -> NoisyProblem:
    """Two channels, of which each turns the other; Ito's drift is not converted, the two are other equations."""

    def drift(t: Tensor, y: Tensor) -> Tensor:
        return -y + torch.cos(2 * t)

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        a, b = y.unbind(-1)
        first = torch.stack([torch.cos(b), 0.5 * a], -1)
        second = torch.stack([-0.6 * b, 1 + 0.5 * torch.sin(a + t)], -1)
        return torch.stack([first, second], -1)

    return NoisyProblem("crossed", noise, {"ito": drift, "stratonovich": drift}, diffusion, vector(0.5, -0.3), 2)
