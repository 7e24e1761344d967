"""Explicit Runge-Kutta pairs: one step kernel, and a class for each tableau."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from . import tableau as tableaux
from .method import NOISES, Dynamics, Method, Slope, Step, StrongOrders, Time, real_dtype, time_at
from .sums import advance, polynomial, weighted
from .tableau import Tableau

EULER_MARUYAMA: StrongOrders = {
    ("stratonovich", "additive"): 1.0,
    **{("ito", noise): 1.0 if noise == "additive" else 0.5 for noise in NOISES},
}
STRATONOVICH: StrongOrders = {
    ("ito", "additive"): 1.0,
    **{("stratonovich", noise): 0.5 if noise == "general" else 1.0 for noise in NOISES},
}


@lru_cache(maxsize=256)
def _abscissae(c: tuple[float, ...], ndim: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(c, dtype=torch.float64, device=device).reshape(-1, *([1] * ndim))


def stage_times(c: tuple[float, ...], t: Time, dt: Time, y: Tensor) -> tuple[Tensor, ...]:
    """The times t + c dt in the dtype of the state y, one for each stage."""
    if not isinstance(t, Tensor) or torch.compiler.is_compiling():  # numbers fuse into the program, a table does not
        return tuple(time_at(t, dt, one, y) for one in c)
    if c == (0.0,):
        return (t.to(real_dtype(y)),)
    abscissae = _abscissae(c, t.ndim, t.device)
    return (t + abscissae * dt).to(real_dtype(y)).unbind()  # rounded twice, as numbers are


def stiffness_ratio(slopes: Tensor, states: Tensor, norm: str, samples: bool) -> Tensor:
    """|difference of slopes| / |difference of states|, 0 where the states coincide: (B,) if `samples`, else ()."""
    start = 1 if samples else 0
    axes = tuple(range(start, slopes.ndim))
    tiny = torch.finfo(states.dtype).tiny
    if norm == "max":
        apart = states.abs() > tiny
        ratio = torch.where(apart, slopes.abs() / torch.where(apart, states.abs(), 1), 0)
        return ratio.amax(axes) if axes else ratio
    if not axes:
        top, bottom = slopes.abs(), states.abs()
    else:
        top, bottom = torch.linalg.vector_norm(slopes, dim=axes), torch.linalg.vector_norm(states, dim=axes)
    return top / bottom.clamp_min(tiny)


class RungeKuttaStep(Step):
    """A step of an explicit pair: its slopes, and the states at which the stiffness pair was evaluated."""

    def __init__(
        self,
        method: RungeKutta,
        dynamics: Dynamics,
        t: Time,
        dt: Time,
        start: Tensor,
        slopes: list[Tensor],
        states: dict[int, Tensor],
        y: Tensor,
    ) -> None:
        self.method, self.dynamics, self.t, self.dt, self.start = method, dynamics, t, dt, start
        self.slopes, self.states, self.y = slopes, states, y
        self.h = dt.to(real_dtype(y)) if isinstance(dt, Tensor) else dt
        self._taped = torch.is_grad_enabled()  # what is computed later is taped where the step was
        self._end: Tensor | None = None
        self._error: Tensor | None = None
        self._extra: list[Tensor] = []

    def slope(self) -> Tensor:
        fsal = self.method.table.fsal
        if fsal and len(self.slopes) == self.method.table.stages:
            return self.slopes[-1]
        if self._end is None:
            with torch.set_grad_enabled(self._taped):
                self._end = self.dynamics(time_at(self.t, self.dt, 1.0, self.y), self.y)
            if fsal:
                self.slopes.append(self._end)
        return self._end

    def _stages(self) -> list[Tensor]:
        if self.method.table.fsal:
            self.slope()
        return self.slopes

    def error(self) -> Tensor | None:
        weights = self.method.table.error
        if weights is None:
            return None
        if self._error is None:
            slopes = self._stages()
            if isinstance(self.h, Tensor):
                self._error = weighted(weights, slopes) * self.h
            else:
                self._error = weighted([weight * self.h for weight in weights], slopes)
        return self._error

    def stiffness(self, samples: bool) -> Tensor | None:
        pair = self.method.table.stiffness_pair
        if pair is None:
            return None
        slopes, (later, earlier) = self._stages(), pair
        states = self.states[later] - self.states[earlier]
        return stiffness_ratio(slopes[later] - slopes[earlier], states, self.method.stiffness_norm, samples)

    def at(self, theta: float | Tensor) -> Tensor:
        slopes = [*self._stages(), *self._extra_slopes()]
        pairs = [(polynomial(row, theta), k) for row, k in zip(self.method.table.dense, slopes, strict=True) if row]
        if not isinstance(theta, Tensor):
            return advance(self.start, self.h, [float(weight) for weight, _ in pairs], [k for _, k in pairs])
        total: Tensor | None = None
        for weight, k in pairs:
            term = torch.as_tensor(weight).to(k.dtype)
            total = term * k if total is None else torch.addcmul(total, term, k)
        return self.start if total is None else self.start + total * self.h

    def _extra_slopes(self) -> list[Tensor]:
        table = self.method.table
        for i in range(len(self._extra), len(table.extra_c)):
            row = table.extra_a[i]
            if i == 0 and row == table.b:  # this stage is the slope at the end of the step
                self._extra.append(self.slope())
                continue
            with torch.set_grad_enabled(self._taped):
                state = advance(self.start, self.h, row, [*self.slopes, *self._extra])
                self._extra.append(self.dynamics(time_at(self.t, self.dt, table.extra_c[i], self.y), state))
        return self._extra


class RungeKutta(Method):
    """What the explicit pairs share; a class states its numbers."""

    stiffness_norm: Literal["rms", "max"] = "rms"  # of the pairs that estimate it

    def __post_init__(self) -> None:
        require_one_of("stiffness_norm", self.stiffness_norm, ("rms", "max"))

    @property
    @abstractmethod
    def table(self) -> Tableau:
        """The numbers of the method."""

    @property
    def order(self) -> int:
        return self.table.order

    @property
    def dense_order(self) -> int:
        return self.table.dense_order

    @property
    def error_order(self) -> int | None:
        return self.table.error_order

    @property
    def stability_size(self) -> float | None:
        return self.table.stability_size

    @property
    def has_stiffness(self) -> bool:
        return self.table.stiffness_pair is not None

    @property
    def evaluations(self) -> int:
        """Evaluations of the dynamics in a step whose first slope is known, and of the slope after it."""
        return self.table.stages - 1 + (not self.table.fsal)

    def step(self, dynamics: Dynamics, t: Time, dt: Time, y: Tensor, slope: Slope = None) -> RungeKuttaStep:
        table = self.table
        times = stage_times(table.c, t, dt, y)
        h = dt.to(real_dtype(y)) if isinstance(dt, Tensor) else dt
        slopes = [slope if isinstance(slope, Tensor) else dynamics(times[0], y)]
        states: dict[int, Tensor] = {}  # those that the stiffness estimate compares
        for i in range(1, table.stages - table.fsal):
            state = advance(y, h, table.a[i], slopes)
            if table.stiffness_pair is not None and i in table.stiffness_pair:
                states[i] = state
            slopes.append(dynamics(times[i], state))
        end = advance(y, h, table.b, slopes)
        if table.fsal:
            states[table.stages - 1] = end
        return RungeKuttaStep(self, dynamics, t, dt, y, slopes, states, end)


def require_one_of(name: str, value: object, options: tuple[str, ...]) -> None:
    """Raise ValueError unless a value is among the options."""
    if value not in options:
        raise ValueError(f"{name} must be {' or '.join(map(repr, options))}, got {value!r}")


@dataclass(frozen=True)
class Euler(RungeKutta):
    """Forward Euler, order 1; fixed steps only. For stochastic equations of Ito it is Euler-Maruyama."""

    table = tableaux.EULER
    strong_orders = EULER_MARUYAMA


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's second-order method (explicit trapezoid) with embedded Euler; equations of Stratonovich, too."""

    table = tableaux.HEUN
    strong_orders = STRATONOVICH


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """The explicit midpoint rule, order 2, with embedded Euler; equations of Stratonovich, too."""

    table = tableaux.MIDPOINT
    strong_orders = STRATONOVICH


@dataclass(frozen=True)
class Ralston(RungeKutta):
    """Ralston's second-order method of least error bound, with embedded Euler; equations of Stratonovich, too."""

    table = tableaux.RALSTON
    strong_orders = STRATONOVICH


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical fourth-order Runge-Kutta method; fixed steps only."""

    table = tableaux.RK4


@dataclass(frozen=True)
class Bosh3(RungeKutta):
    """Bogacki and Shampine's pair 3(2)."""

    table = tableaux.BOSH3


@dataclass(frozen=True)
class Dopri5(RungeKutta):
    """Dormand and Prince's pair 5(4), with a stiffness estimate.

    Args:
        weights: of the embedded solution: "classical" (1980; SciPy, OrdinaryDiffEq) or "shampine" (1986; torchdiffeq,
            torchode, diffrax), whose error estimate is two thirds of the classical one.
        stiffness_norm: "rms", the ratio of root mean squares, or "max", the largest elementwise ratio.
    """

    weights: Literal["classical", "shampine"] = "classical"
    stiffness_norm: Literal["rms", "max"] = "rms"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("weights", self.weights, ("classical", "shampine"))

    @property
    def table(self) -> Tableau:
        return tableaux.DOPRI5 if self.weights == "classical" else tableaux.DOPRI5_SHAMPINE


@dataclass(frozen=True)
class Tsit5(RungeKutta):
    """Tsitouras' pair 5(4), with a stiffness estimate: the default.

    Args:
        stiffness_norm: "rms", the ratio of root mean squares, or "max", the largest elementwise ratio.
    """

    stiffness_norm: Literal["rms", "max"] = "rms"

    table = tableaux.TSIT5


@dataclass(frozen=True)
class Dopri8(RungeKutta):
    """Prince and Dormand's pair 8(7), with a stiffness estimate.

    Args:
        stiffness_norm: "rms", the ratio of root mean squares, or "max", the largest elementwise ratio.
    """

    stiffness_norm: Literal["rms", "max"] = "rms"

    table = tableaux.DOPRI8


@dataclass(frozen=True)
class Vern7(RungeKutta):
    """Verner's most efficient pair 7(6), with a stiffness estimate: for tight tolerances.

    Args:
        stiffness_norm: "rms", the ratio of root mean squares, or "max", the largest elementwise ratio.
    """

    stiffness_norm: Literal["rms", "max"] = "rms"

    table = tableaux.VERN7
