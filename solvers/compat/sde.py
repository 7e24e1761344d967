"""torchsde's SDE objects: what they promise, checked, as drift and diffusion of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

NOISE_TYPES = ("additive", "diagonal", "general", "scalar")
SDE_TYPES = ("ito", "stratonovich")
NAMES = {
    "drift": "f",
    "diffusion": "g",
    "prior_drift": "h",
    "diffusion_prod": "g_prod",
    "drift_and_diffusion": "f_and_g",
    "drift_and_diffusion_prod": "f_and_g_prod",
}
TINY = 1e-7  # below which a diffusion is not divided by


class BaseSDE(nn.Module):
    """A module with the attributes that `sdeint` looks for; torchsde's signature."""

    def __init__(self, noise_type: str, sde_type: str) -> None:
        super().__init__()
        _require_types(noise_type, sde_type)
        self.noise_type, self.sde_type = noise_type, sde_type


class SDEIto(BaseSDE):
    """An equation of Ito."""

    def __init__(self, noise_type: str) -> None:
        super().__init__(noise_type, "ito")


class SDEStratonovich(BaseSDE):
    """An equation of Stratonovich."""

    def __init__(self, noise_type: str) -> None:
        super().__init__(noise_type, "stratonovich")


@dataclass(frozen=True, eq=False)
class Equation:
    """Drift and diffusion of an SDE object; diffusion (B, d) for diagonal and scalar noise, else (B, d, m)."""

    sde: Any
    drift: Callable[[Tensor, Tensor], Tensor]
    diffusion: Callable[[Tensor, Tensor], Tensor]
    noise: Literal["additive", "diagonal", "general", "scalar"]
    calculus: Literal["ito", "stratonovich"]
    channels: int


class _Both:
    """Drift and diffusion that one function gives: the value at the last time and state serves both."""

    def __init__(self, function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.function = function
        self._at: tuple[Any, ...] = (None, None, None)

    def __call__(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        key = (t, y, torch.is_grad_enabled())
        if any(one is not other for one, other in zip(self._at, key, strict=True)):
            self._at, self._value = key, self.function(t, y)
        return self._value

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self(t, y)[0]

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self(t, y)[1]


def equation_of(
    sde: Any, y0: Tensor, t0: Tensor, bm: Any, names: Mapping[str, str] | None, logqp: bool
) -> tuple[Equation, Tensor]:
    """The equation, and its initial state: with a column for the log-ratio where that is asked for.

    Raises:
        ValueError, AttributeError: it lacks something, or its shapes do not fit.
    """
    for attribute in ("noise_type", "sde_type"):
        if not hasattr(sde, attribute):
            raise ValueError(f"sde does not have the attribute {attribute}.")
    _require_types(sde.noise_type, sde.sde_type)
    if not isinstance(y0, Tensor):
        raise ValueError("`y0` must be a torch.Tensor.")
    if y0.ndim != 2:
        raise ValueError("`y0` must be a 2-dimensional tensor of shape (batch, channels).")
    if bm is not None and len(bm.shape) != 2:
        raise ValueError("`bm` must be of shape (batch, noise_channels).")
    found = {short: getattr(sde, (names or {}).get(long, short), None) for long, short in NAMES.items()}
    f, g = _functions(found, sde.noise_type, y0, None if bm is None else bm.shape[1])
    if logqp:
        if found["f"] is None or found["g"] is None or found["h"] is None:
            raise AttributeError("If using logqp then drift, diffusion and prior drift must all be specified.")
        f, g = _with_log_ratio(f, g, found["h"], diagonal=sde.noise_type == "diagonal")
        y0 = torch.cat((y0, y0.new_zeros(len(y0), 1)), 1)
    with torch.no_grad():
        shapes = tuple(f(t0, y0).shape), tuple(g(t0, y0).shape)
    _require_shapes(*shapes, y0, sde.noise_type, bm)
    channels = shapes[1][-1]
    if sde.noise_type == "scalar":
        matrix = g

        def g(t: Tensor, y: Tensor) -> Tensor:
            return matrix(t, y).squeeze(-1)

    return Equation(sde, f, g, sde.noise_type, sde.sde_type, channels), y0


def _functions(
    found: Mapping[str, Any], noise: str, y0: Tensor, channels: int | None
) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    f, g = found["f"], found["g"]
    if found["f_and_g"] is not None:
        both = _Both(found["f_and_g"])
        f, g = both.f if f is None else f, both.g if g is None else g
    product = found["g_prod"]
    if product is None and found["f_and_g_prod"] is not None:
        pair = found["f_and_g_prod"]

        def product(t: Tensor, y: Tensor, v: Tensor) -> Tensor:
            return pair(t, y, v)[1]  # type: ignore[no-any-return]

    if g is None and product is not None:
        channels = y0.shape[1] if noise == "diagonal" else channels
        if channels is None:
            raise ValueError(
                "Cannot infer noise size (i.e. number of Brownian motion channels). Either pass `bm` explicitly, or "
                "specify one of the `g`, `f_and_g` functions.`"
            )
        g = _from_products(product, noise, channels)
    if f is None and found["f_and_g_prod"] is not None and channels is not None:
        pair, width = found["f_and_g_prod"], channels

        def f(t: Tensor, y: Tensor) -> Tensor:
            return pair(t, y, y.new_zeros(len(y), width))[0]  # type: ignore[no-any-return]

    if f is None:
        raise ValueError("sde must define at least one of `f`, `f_and_g`, or `f_and_g_prod`.")
    if g is None:
        raise ValueError("sde must define at least one of `g`, `f_and_g`, `g_prod` or `f_and_g_prod`.")
    return f, g


def _from_products(
    product: Callable[[Tensor, Tensor, Tensor], Tensor], noise: str, channels: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """A diffusion that is known by its products with vectors: one product for each channel."""
    if noise == "diagonal":
        return lambda t, y: product(t, y, torch.ones_like(y))

    def columns(t: Tensor, y: Tensor) -> Tensor:
        basis = torch.eye(channels, dtype=y.dtype, device=y.device)
        return torch.stack([product(t, y, one.expand(len(y), channels)) for one in basis], -1)

    return columns


def _with_log_ratio(
    f: Callable[[Tensor, Tensor], Tensor],
    g: Callable[[Tensor, Tensor], Tensor],
    h: Callable[[Tensor, Tensor], Tensor],
    diagonal: bool,
) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """Drift and diffusion of the state and of half the integral of |(f - h) / g|^2, the log-ratio to the prior."""

    def drift(t: Tensor, y: Tensor) -> Tensor:
        y = y[:, :-1]
        here, strength = f(t, y), g(t, y)
        gap = here - h(t, y)
        if diagonal:
            small = strength.abs() <= TINY
            u = gap / torch.where(small, torch.full_like(strength, TINY) * strength.sign(), strength)
        else:
            u = (strength.pinverse() @ gap.unsqueeze(-1)).squeeze(-1)
        return torch.cat((here, 0.5 * u.square().sum(1, keepdim=True)), 1)

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        strength = g(t, y[:, :-1])
        return torch.cat((strength, torch.zeros_like(strength[:, :1])), 1)

    return drift, diffusion


def _require_types(noise_type: str, sde_type: str) -> None:
    if noise_type not in NOISE_TYPES:
        raise ValueError(f"Expected noise type in {list(NOISE_TYPES)}, but found {noise_type}.")
    if sde_type not in SDE_TYPES:
        raise ValueError(f"Expected sde type in {list(SDE_TYPES)}, but found {sde_type}.")


def _require_shapes(f: tuple[int, ...], g: tuple[int, ...], y0: Tensor, noise: str, bm: Any) -> None:
    if len(f) != 2:
        raise ValueError(f"Drift must be of shape (batch, state_channels), but got {f}.")
    if noise == "diagonal" and len(g) != 2:
        raise ValueError(f"Diffusion must be of shape (batch, state_channels), but got {g}.")
    if noise != "diagonal" and len(g) != 3:
        raise ValueError(f"Diffusion must be of shape (batch, state_channels, noise_channels), but got {g}.")
    batches = {len(y0), f[0], g[0], *(() if bm is None else (bm.shape[0],))}
    states = {y0.shape[1], f[1], g[1]}
    noises = {g[-1], *(() if bm is None else (bm.shape[1],))}
    for name, sizes in (("Batch", batches), ("State", states), ("Noise", noises)):
        if len(sizes) > 1:
            raise ValueError(f"{name} sizes not consistent.")
    if noise == "scalar" and g[-1] != 1:
        raise ValueError(f"Scalar noise must have only one channel; the diffusion has {g[-1]} noise channels.")
