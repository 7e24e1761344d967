"""Stochastic dynamics: drift, diffusion and the Brownian path that drives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .brownian import BrownianPath
from .dynamics import Dynamics, Guard, Structure, require_like
from .jacobian import pushed
from .method import Calculus, Noise
from .method import Dynamics as Slope


@dataclass(frozen=True)
class Kind:
    """What kind of equation it is.

    Args:
        noise: how the diffusion meets the path.
        calculus: in whose sense the equation is meant.
        matrix: whether the diffusion gives (*y, m), applied to m channels of noise, or the shape of y.
    """

    noise: Noise
    calculus: Calculus
    matrix: bool


class Stochastic(Dynamics):
    """dy = drift dt + diffusion dW; `calls` counts evaluations of the drift, `diffusions` those of the diffusion.

    Args:
        drift, diffusion: the user's functions of (t, y, *args).
        args, structure, time_dtype: as in `Dynamics`.
        kind: of equation.
        path: the noise, shaped as y, or (*batch, 1), or (*batch, m).
    """

    def __init__(
        self,
        drift: Callable[..., Any],
        diffusion: Callable[..., Any],
        args: tuple[Any, ...],
        structure: Structure | None,
        time_dtype: torch.dtype,
        kind: Kind,
        path: BrownianPath,
    ) -> None:
        super().__init__(drift, args, structure, time_dtype)
        self.diffusion = Dynamics(diffusion, args, structure, time_dtype)
        self.kind, self.path = kind, path

    @property
    def diffusions(self) -> int:
        return self.diffusion.calls

    @property
    def fields(self) -> tuple[Callable[..., Any], ...]:
        return self.field, self.diffusion.field

    def first(self, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return self.checked(t, y, "drift"), checked_diffusion(self.diffusion, t, y, self.kind.matrix)

    def over(self, t: float, end: float) -> Driven:
        return Driven(self.kind, self, self.diffusion, end - t, self._noise(t, end))

    def again(self, t: float, end: float, guard: Guard | None = None) -> Driven:
        functions: list[Slope] = [self.evaluate, self.diffusion.evaluate]
        drift, diffusion = functions if guard is None else map(guard, functions)
        return Driven(self.kind, drift, diffusion, end - t, self._noise(t, end))

    def _noise(self, t: float, end: float) -> Callable[[bool], tuple[Tensor, Tensor | None]]:
        """Increment and, where it is asked for, area of the path, when they are needed."""
        return lambda area: self.path.with_area(t, end) if area else (self.path.increment(t, end), None)

    def snap(self, t: float, end: float) -> float:
        return self.path.snap(t, end)


class Driven:
    """Stochastic dynamics between two times, where the path goes from one value to another.

    Called, they give the slope that leads along the chord of the path: drift + diffusion increment / length. A method
    for ordinary equations that follows it solves the stochastic one: Euler's that of Ito, those that evaluate the ends
    alike that of Stratonovich.

    Args:
        kind: of equation.
        drift, diffusion: functions of (t, y).
        length: of the time between.
        noise: gives increment and, if asked, area of the path.
    """

    def __init__(
        self,
        kind: Kind,
        drift: Slope,
        diffusion: Slope,
        length: float,
        noise: Callable[[bool], tuple[Tensor, Tensor | None]],
    ) -> None:
        self.kind, self.drift, self.diffusion, self.length, self._noise = kind, drift, diffusion, length, noise
        self._increment: Tensor | None = None

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.along(self.pair(t, y))

    def pair(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Drift and diffusion."""
        return self.drift(t, y), self.diffusion(t, y)

    def along(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        """The slope that leads along the chord, from drift and diffusion."""
        (f, g), rate = pair, 1 / self.length
        w = self.increment(f)
        if self.kind.matrix:
            return torch.add(f, self.applied(g, w), alpha=rate)
        return torch.addcmul(f, g, w, value=rate)

    def pulled(self, to_slope: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the slope pulled back to drift and diffusion."""
        w = self.increment(to_slope) * (1 / self.length)
        if self.kind.matrix:
            return to_slope, to_slope.unsqueeze(-1) * w.unsqueeze(-2)
        return to_slope, to_slope * w

    def increment(self, y: Tensor) -> Tensor:
        """The increment of the path, in the dtype of y."""
        if self._increment is None:
            self._increment = self._fit(self._noise(False)[0], y)
        return self._increment

    def with_area(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The increment and the area of the path, in the dtype of y."""
        w, area = self._noise(True)
        assert area is not None
        return self._fit(w, y), self._fit(area, y)

    def applied(self, g: Tensor, w: Tensor) -> Tensor:
        """A diffusion applied to a value of the noise, shaped as y."""
        return (g @ w.unsqueeze(-1)).squeeze(-1) if self.kind.matrix else g * w

    def _fit(self, w: Tensor, y: Tensor) -> Tensor:
        return w if w.dtype == y.dtype else w.to(y.dtype)


def driven(dynamics: Slope, method: object) -> Driven:
    """The dynamics, which have to be stochastic.

    Raises:
        TypeError: they are not.
    """
    if not isinstance(dynamics, Driven):
        raise TypeError(f"{type(method).__name__} solves stochastic equations: use sdeint, or a method such as Tsit5()")
    return dynamics


def checked_diffusion(diffusion: Dynamics, t: Tensor, y: Tensor, matrix: bool) -> Tensor:
    """The diffusion, refused where it does not fit the state.

    Raises:
        TypeError, ValueError: it returns the wrong kind, shape, dtype or device.
    """
    if not matrix:
        return diffusion.checked(t, y, "diffusion")
    diffusion.calls += 1
    return _checked_matrix(diffusion.raw(t, y), y)


def coupled(diffusion: Dynamics, t: Tensor, y: Tensor) -> bool:
    """Whether entries of the diffusion of diagonal noise depend on other entries of y: two products with its Jacobian.

    For a diagonal Jacobian J the quotient (J v) / v is the same whatever v. They do not count.
    """
    if y.numel() < 2:
        return False
    draws = torch.Generator().manual_seed(0)
    directions = [(torch.rand(y.shape, generator=draws) + 0.5).to(y) for _ in range(2)]
    try:
        with torch.no_grad():
            first, second = (pushed(lambda x: diffusion.evaluate(t, x), y.detach(), v) / v for v in directions)
    except (RuntimeError, TypeError, ValueError):  # the check of the first evaluation will tell
        return False
    gap, size = (first - second).abs().max(), first.abs().max()
    return bool(gap > 1e-3 * size + torch.finfo(y.dtype).tiny)


def _require_additive(diffusion: Dynamics, g: object, t: Tensor, y: Tensor) -> None:
    """Raise where the diffusion of additive noise is another one elsewhere."""
    diffusion.calls += 1
    with torch.no_grad():
        elsewhere = diffusion.raw(t, y + 1)
    if isinstance(g, Tensor) and isinstance(elsewhere, Tensor) and g.shape == elsewhere.shape:
        if bool((g == elsewhere).all() | ~(g.isfinite() & elsewhere.isfinite()).all()):
            return
        raise ValueError(
            'noise must be "diagonal", "scalar", "commutative" or "general" for a diffusion that depends on y, got '
            '"additive"'
        )


def _checked_matrix(g: object, y: Tensor) -> Tensor:
    if isinstance(g, Tensor) and g.ndim == y.ndim + 1:
        require_like("diffusion", g, y.unsqueeze(-1).expand_as(g) if g.shape[:-1] == y.shape else y)
        return g
    got = tuple(g.shape) if isinstance(g, Tensor) else type(g).__name__
    raise ValueError(
        f"diffusion must return shape {(*y.shape, 'm')}, one column for each of m channels of noise, got {got}"
    )


def channels(diffusion: Dynamics, t: Tensor, y: Tensor, noise: Noise) -> tuple[bool, tuple[int, ...]]:
    """Whether the diffusion is a matrix, and the shape of the path that drives it; evaluates it where that matters.

    Raises:
        TypeError, ValueError: it does not fit the state.
    """
    if noise == "diagonal":
        return False, tuple(y.shape)
    if noise == "scalar":
        return False, (*y.shape[:-1], 1)
    if diffusion.structure is not None:
        return False, tuple(y.shape)
    if noise == "additive":
        diffusion.calls += 1
        with torch.no_grad():
            g = diffusion.raw(t, y)
        _require_additive(diffusion, g, t, y)
        if not isinstance(g, Tensor) or g.ndim == y.ndim:
            return False, tuple(y.shape)
        return True, (*y.shape[:-1], _checked_matrix(g, y).shape[-1])
    with torch.no_grad():
        g = checked_diffusion(diffusion, t, y, matrix=True)
    return True, (*y.shape[:-1], g.shape[-1])
