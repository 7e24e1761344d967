"""How far to step: the scaled error, and the controllers that answer to it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)
Norm = Callable[[Tensor], Tensor]

FLOOR = 1e-10  # of an error ratio that is raised to a negative power
EARLIER_FLOOR = 1e-4  # of the ratios of earlier steps, as DOPRI5 and OrdinaryDiffEq have it


def rms(x: Tensor) -> Tensor:
    """Root mean square over all entries, (); its gradient at 0 is 0."""
    norm: Tensor = torch.linalg.vector_norm(x, dtype=_wide(x))
    return norm / math.sqrt(max(x.numel(), 1))


def rms_per_sample(x: Tensor) -> Tensor:
    """Root mean square over all axes but the first, (B,)."""
    flat = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=_wide(x))
    return norm / math.sqrt(max(flat.shape[1], 1))


def _wide(x: Tensor) -> torch.dtype | None:
    """Half precision overflows at the square of 256."""
    return torch.float32 if x.dtype in {torch.float16, torch.bfloat16} else None


def scaled(error: Tensor, y0: Tensor, y1: Tensor, rtol: float | Tensor, atol: float | Tensor) -> Tensor:
    """An error in units of what is tolerated of each entry, atol + rtol max(|y0|, |y1|); half precision in float32."""
    largest = torch.maximum(y0.abs(), y1.abs())
    if (wide := _wide(largest)) is not None:
        error, largest = error.to(torch.complex64 if error.is_complex() else wide), largest.to(wide)
    return error / (largest * rtol + atol)


@dataclass(frozen=True)
class Fixed:
    """Steps of one length, whatever the error.

    Args:
        step: length, > 0, in the units of t; the last step before an end is shorter. None: one step between two `ts`.
    """

    step: float | None = None

    def __post_init__(self) -> None:
        if self.step is not None:
            _require_positive("step", self.step)


@dataclass(frozen=True, kw_only=True)
class Adaptive(ABC):
    """Steps that follow the error: dt * safety * r_n^(-b1/k) * r_(n-1)^(b2/k) * r_(n-2)^(-b3/k).

    k is 1 + the order of the error estimate and r the error ratio, the norm of error / (atol + rtol max(|y_n|,
    |y_(n+1)|)). A step is accepted where r <= 1; one that is not is repeated with dt * safety * r^(-1/k).

    Args:
        safety: aims below the tolerance.
        min_factor, max_factor: bounds of the change from step to step.
        first_step: length of the first step, > 0; None: estimated from two evaluations (Hairer, Norsett, Wanner I,
            II.4).
        min_step, max_step: bounds of the length of a step; a step of min_step is accepted whatever its error.
        shrink_accepted: whether a step that was accepted may be followed by a shorter one.
        norm: from the scaled error to its ratio, () for joint steps, (B,) for per-sample ones; None: root mean square.
    """

    safety: float = 0.9
    min_factor: float = 0.2
    max_factor: float = 10.0
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = math.inf
    shrink_accepted: bool = True
    norm: Norm | None = None

    def __post_init__(self) -> None:
        for name in ("safety", "min_factor", "max_factor", "max_step"):
            _require_positive(name, getattr(self, name))
        if self.first_step is not None:
            _require_positive("first_step", self.first_step)
        if not 0 <= self.min_step <= self.max_step:
            raise ValueError(f"min_step must be >= 0 and <= max_step = {self.max_step}, got {self.min_step}")
        if not self.min_factor < 1 < self.max_factor:
            raise ValueError(f"min_factor must be < 1 and max_factor > 1, got {self.min_factor} and {self.max_factor}")

    @property
    @abstractmethod
    def gains(self) -> tuple[float, float, float]:
        """The exponents b1, b2, b3."""

    def growth(self, ratio: Number, earlier: tuple[Number, Number], order: float) -> Number:
        """The factor for the length of the next step after an accepted one; `order` is k."""
        b1, b2, b3 = self.gains
        factor: Number = self.safety * _clamp(ratio, FLOOR, math.inf) ** (-b1 / order)
        if b2:
            factor = factor * _clamp(earlier[0], EARLIER_FLOOR, math.inf) ** (b2 / order)
        if b3:
            factor = factor * _clamp(earlier[1], EARLIER_FLOOR, math.inf) ** (-b3 / order)
        return _clamp(factor, self.min_factor if self.shrink_accepted else 1.0, self.max_factor)

    def shrinkage(self, ratio: Number, order: float) -> Number:
        """The factor after a rejected step; the least where the ratio is not finite."""
        if not isinstance(ratio, Tensor) and not math.isfinite(ratio):
            return self.min_factor
        factor: Number = _clamp(self.safety * ratio ** (-1 / order), self.min_factor, 1.0)
        return torch.where(ratio.isfinite(), factor, self.min_factor) if isinstance(ratio, Tensor) else factor


@dataclass(frozen=True, kw_only=True)
class I(Adaptive):  # noqa: E742
    """The integral controller, which looks at the last error only; torchdiffeq's. See `Adaptive`."""

    gains = (1.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class PI(Adaptive):
    """The proportional-integral controller: the default. See `Adaptive`.

    Source: Gustafsson 1991, with gains that need the fewest evaluations on the DETEST problems: 0.7 and 0.4, those of
    OrdinaryDiffEq, need a tenth to a quarter more, as they grow the step slowly where the error is small.
    """

    gains = (0.95, 0.1, 0.0)


@dataclass(frozen=True, kw_only=True)
class PID(Adaptive):
    """The proportional-integral-derivative controller: smoother steps where the error is noisy. See `Adaptive`.

    Source: Kennedy and Carpenter 2003; the gains are those of SUNDIALS' ARKODE.
    """

    gains = (0.58, 0.21, 0.1)


Controller = Fixed | Adaptive


def _clamp(x: Number, low: float, high: float) -> Number:
    return x.clamp(low, high) if isinstance(x, Tensor) else min(max(x, low), high)


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be > 0, got {value}")
