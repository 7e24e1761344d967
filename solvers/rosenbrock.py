"""Rosenbrock methods: stiff steps by linear solves with the Jacobian at their start, without iterations."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .jacobian import Linearized
from .linear import Linear, chosen, require_linear
from .method import Dynamics, Method, Slope, Step, Time, real_dtype, time_at
from .sums import weighted

D = 1 / (2 + math.sqrt(2))  # Rosenbrock23: L-stable
E32 = 6 + math.sqrt(2)

# Rodas5P: Steinebach 2023, "Construction of Rosenbrock-Wanner method Rodas5P and numerical benchmarks within the Julia
# Differential Equations package", BIT 63:27; in the form of Hairer, Wanner II, IV.7, which needs no products with J:
# (I - GAMMA dt J) u_i = GAMMA (dt f(t + ALPHA_i dt, y + sum_j A_ij u_j) + sum_j C_ij u_j + GAMMAS_i dt^2 df/dt)
GAMMA = 0.21193756319429014
A: tuple[tuple[float, ...], ...] = (
    (),
    (3.0,),
    (2.849394379747939, 0.45842242204463923),
    (-6.954028509809101, 2.489845061869568, -10.358996098473584),
    (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
    (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946),
    (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946, 1.0),
    (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946, 1.0, 1.0),
)
C: tuple[tuple[float, ...], ...] = (
    (),
    (-14.155112264123755,),
    (-17.97296035885952, -2.859693295451294),
    (147.12150275711716, -1.41221402718213, 71.68940251302358),
    (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
    (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
    (
        30.91273214028599,
        -3.1208243349937974,
        77.79954646070892,
        34.28646028294783,
        -19.097331116725623,
        -28.087943162872662,
    ),
    (
        37.80277123390563,
        -3.2571969029072276,
        112.26918849496327,
        66.9347231244047,
        -40.06618937091002,
        -54.66780262877968,
        -9.48861652309627,
    ),
)
ALPHA = (0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1.0, 1.0, 1.0)
GAMMAS = (
    0.21193756319429014,
    -0.42387512638858027,
    -0.3384627126235924,
    1.8046452872882734,
    2.325825639765069,
    0.0,
    0.0,
    0.0,
)
# dense output: y0 + theta (y1 - y0) + theta (1 - theta) sum_p theta^p sum_i H_pi u_i
H: tuple[tuple[float, ...], ...] = (
    (
        25.948786856663858,
        -2.5579724845846235,
        10.433815404888879,
        -2.3679251022685204,
        0.524948541321073,
        1.1241088310450404,
        0.4272876194431874,
        -0.17202221070155493,
    ),
    (
        -9.91568850695171,
        -0.9689944594115154,
        3.0438037242978453,
        -24.495224566215796,
        20.176138334709044,
        15.98066361424651,
        -6.789040303419874,
        -6.710236069923372,
    ),
    (
        11.419903575922262,
        2.8879645146136994,
        72.92137995996029,
        80.12511834622643,
        -52.072871366152654,
        -59.78993625266729,
        -0.15582684282751913,
        4.883087185713722,
    ),
)


class RosenbrockStep(Step):
    """What the steps share: the field at the start, its derivatives there, and the solves with them."""

    def __init__(
        self,
        method: Rosenbrock,
        dynamics: Dynamics,
        t: Time,
        dt: Time,
        y: Tensor,
        slope: Slope,
    ) -> None:
        self.dynamics, self.t, self.dt, self.start = dynamics, t, dt, y
        self.h = dt.to(real_dtype(y)) if isinstance(dt, Tensor) else dt
        start = self.time(0.0)
        self.first = slope if isinstance(slope, Tensor) else dynamics(start, y)
        self.linearized = Linearized(dynamics, start, y)
        self.linear = chosen(method.linear, self.linearized)
        self.inverse = self.linear.inverse(self.linearized, self.h * method.gamma)
        self.drift = self.linearized.time_derivative() * self.h
        self._end: Tensor | None = None

    def time(self, c: float) -> Tensor:
        """The time t + c dt in the dtype of the state."""
        return time_at(self.t, self.dt, c, self.start)

    def slope(self) -> Tensor:
        if self._end is None:
            self._end = self.dynamics(self.time(1.0), self.y)
        return self._end

    def stiffness(self, samples: bool) -> Tensor | None:
        return self.linear.stiffness(self.linearized, samples)


class Rosenbrock23Step(RosenbrockStep):
    """A step of `Rosenbrock23`."""

    def __init__(self, method: Rosenbrock, dynamics: Dynamics, t: Time, dt: Time, y: Tensor, slope: Slope) -> None:
        super().__init__(method, dynamics, t, dt, y, slope)
        self.k1 = self.inverse.solve(self.first + self.drift * D)
        self.middle = dynamics(self.time(0.5), y + self.k1 * (self.h * 0.5))
        self.k2 = self.inverse.solve(self.middle - self.k1) + self.k1
        self.y = y + self.k2 * self.h
        self._error: Tensor | None = None

    def error(self) -> Tensor:
        if self._error is None:
            k1, k2 = self.k1, self.k2
            rhs = self.slope() - (k2 - self.middle) * E32 - (k1 - self.first) * 2 + self.drift * D
            self._error = (k1 - k2 * 2 + self.inverse.solve(rhs)) * (self.h / 6)
        return self._error

    def at(self, theta: float | Tensor) -> Tensor:
        first, second = theta * (1 - theta) / (1 - 2 * D), theta * (theta - 2 * D) / (1 - 2 * D)
        return self.start + (_cast(first, self.start) * self.k1 + _cast(second, self.start) * self.k2) * self.h


class Rodas5PStep(RosenbrockStep):
    """A step of `Rodas5P`."""

    def __init__(self, method: Rosenbrock, dynamics: Dynamics, t: Time, dt: Time, y: Tensor, slope: Slope) -> None:
        super().__init__(method, dynamics, t, dt, y, slope)
        drift, state = self.drift * self.h, y
        us: list[Tensor] = []
        for i in range(len(ALPHA)):
            if i:
                state = y + weighted(A[i], us)
            f = dynamics(self.time(ALPHA[i]), state) if i else self.first
            rhs = f * self.h
            if i:
                rhs = rhs + weighted(C[i], us)
            if GAMMAS[i]:
                rhs = torch.add(rhs, drift, alpha=GAMMAS[i])
            us.append(self.inverse.solve(rhs * GAMMA))
        self.us, self.y = us, state + us[-1]

    def error(self) -> Tensor:
        return self.us[-1]

    def at(self, theta: float | Tensor) -> Tensor:
        parts = [weighted(row, self.us) for row in H]
        theta = _cast(theta, self.start)
        bend = (parts[2] * theta + parts[1]) * theta + parts[0]
        return self.start + ((self.y - self.start) + bend * (1 - theta)) * theta


def _cast(weight: float | Tensor, y: Tensor) -> float | Tensor:
    return weight.to(real_dtype(y)) if isinstance(weight, Tensor) else weight


@dataclass(frozen=True)
class Rosenbrock(Method):
    """What the Rosenbrock methods share.

    Args:
        linear: how the linear systems are solved: Dense(), GMRES(), or None, which takes Dense() up to 256 unknowns
            (of a sample with per-sample steps, else of the whole state).
    """

    linear: Linear | None = None
    stability_size = None
    has_stiffness = True  # the infinity norm of the Jacobian at the start, or without a matrix a power iteration

    def __post_init__(self) -> None:
        require_linear(self.linear)

    @property
    @abstractmethod
    def gamma(self) -> float:
        """The systems are (I - gamma dt J) x = b."""


@dataclass(frozen=True)
class Rosenbrock23(Rosenbrock):
    """Shampine and Reichelt's ode23s: order 2, L-stable, cheap; for loose tolerances.

    Two solves a step, and a third with the slope at its end for the error estimate, of third order; that slope
    begins the next step. The error needs no exact Jacobian, so GMRES may be loose. Arguments as in `Rosenbrock`.

    Source: Shampine, Reichelt 1997, "The MATLAB ODE Suite", section 3.1.
    """

    order = 2
    dense_order = 2
    error_order = 3
    gamma = D

    def step(self, dynamics: Dynamics, t: Time, dt: Time, y: Tensor, slope: Slope = None) -> Rosenbrock23Step:
        return Rosenbrock23Step(self, dynamics, t, dt, y, slope)


@dataclass(frozen=True)
class Rodas5P(Rosenbrock):
    """Steinebach's Rodas5P: order 5 with embedded order 4, stiffly accurate; the stiff method for most tolerances.

    Eight stages with one factorisation. Arguments as in `Rosenbrock`.

    Source: Steinebach 2023, BIT 63:27; dense output of order 4 from OrdinaryDiffEq's tableau.
    """

    order = 5
    dense_order = 4
    error_order = 4
    gamma = GAMMA

    def step(self, dynamics: Dynamics, t: Time, dt: Time, y: Tensor, slope: Slope = None) -> Rodas5PStep:
        return Rodas5PStep(self, dynamics, t, dt, y, slope)
