"""The contract of the methods: one pure step gives the new state, its error, its stiffness, and the values between."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

_REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}
Dynamics = Callable[[Tensor, Tensor], Tensor]  # (t, y) -> dy/dt, shaped as y
Slope = Tensor | tuple[Tensor, Tensor] | None
Time = float | Tensor  # a number, or a tensor that broadcasts to the state
Calculus = Literal["ito", "stratonovich"]
Noise = Literal["additive", "scalar", "diagonal", "commutative", "general"]
CALCULI: tuple[Calculus, ...] = get_args(Calculus)
NOISES: tuple[Noise, ...] = get_args(Noise)
StrongOrders = Mapping[tuple[Calculus, Noise], float]


def real_dtype(y: Tensor) -> torch.dtype:
    """The dtype of the real part of y; `dtype.to_real` cannot be compiled."""
    return _REAL.get(y.dtype, y.dtype)


def time_at(t: Time, dt: Time, c: float, y: Tensor) -> Tensor:
    """The time t + c dt in the dtype of the state y."""
    if isinstance(t, Tensor):
        return (t + dt * c).to(real_dtype(y))
    assert not isinstance(dt, Tensor)
    return torch.full((), t + c * dt, dtype=real_dtype(y), device=y.device)


class Step(ABC):
    """What a method did between t and t + dt. Everything beyond `y` is computed when asked for, once.

    `dt` is a number when all samples share the step, else a tensor that broadcasts to y, (B, 1, ..., 1) or ().
    """

    y: Tensor  # the solution at t + dt

    @abstractmethod
    def slope(self) -> Slope:
        """f(t + dt, y), with which the next step starts; shaped as y. None where each step begins anew.

        Methods that carry noise give drift and diffusion.
        """

    @abstractmethod
    def error(self) -> Tensor | None:
        """Estimate of the local error of y, shaped as y; None where the method has none."""

    @abstractmethod
    def stiffness(self, samples: bool) -> Tensor | None:
        """Estimate of the largest |eigenvalue| of the Jacobian that this step met: (B,) if `samples`, else ().

        None where the method has none.
        """

    @abstractmethod
    def at(self, theta: float | Tensor) -> Tensor:
        """The solution at t + theta dt, 0 <= theta <= 1, shaped as y; theta broadcasts to y."""


def end_at(step: Step, theta: Tensor) -> Tensor:
    """The solution at the end of a step, with the gradient that its time has: theta, which is 1."""
    moved = step.at(theta)
    return moved + (step.y - moved).detach()


class Method(ABC):
    """A one-step method: a frozen dataclass that holds constants and options, no state."""

    reach: ClassVar[float] = 1.0  # how far from its start a step evaluates the dynamics, in lengths of the step
    strong_orders: ClassVar[StrongOrders] = {}  # of stochastic equations that it can solve
    noise_order: ClassVar[float] = 1.0  # there the error estimate grows with dt to this power
    needs_area: ClassVar[bool] = False  # whether it needs the space-time Levy area of the noise
    carries_noise: ClassVar[bool] = False  # whether drift and diffusion at the end of a step serve the next one

    @property
    @abstractmethod
    def order(self) -> int:
        """Order of the solution."""

    @property
    @abstractmethod
    def dense_order(self) -> int:
        """Order of the values between steps."""

    @property
    @abstractmethod
    def error_order(self) -> int | None:
        """Order of the embedded solution; None: steps have no error estimate."""

    @property
    @abstractmethod
    def stability_size(self) -> float | None:
        """Length of the negative real axis on which a step is stable; None: unbounded."""

    @property
    @abstractmethod
    def has_stiffness(self) -> bool:
        """Whether steps estimate the stiffness."""

    @property
    def evaluations(self) -> int | None:
        """Evaluations of the dynamics that one more step takes; None: as many as it needs. Overridden where known."""
        return None

    @abstractmethod
    def step(self, dynamics: Dynamics, t: Time, dt: Time, y: Tensor, slope: Slope = None) -> Step:
        """One step from (t, y). Pure; differentiable in t, y and whatever the dynamics hold, not in dt.

        Args:
            dynamics: (t, y) -> dy/dt.
            t: start, float64, () or (B, 1, ..., 1); a number where no gradient is asked for.
            dt: signed length, a number or a tensor shaped as t.
            y: state at t.
            slope: dynamics(t, y) where it is known, else it is evaluated.
        """

    def lift(self, y: Tensor) -> Tensor:
        """The method's own state for a solution y. May be overridden by methods that carry more than y."""
        return y

    def lower(self, state: Tensor) -> Tensor:
        """The solution in the method's own state; the inverse of `lift`. May be overridden with it."""
        return state
