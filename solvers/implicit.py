"""Diagonally implicit Runge-Kutta methods: each stage is found by Newton iterations."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .jacobian import Linearized, uncounted
from .linear import Inverse, Linear, chosen, require_linear
from .method import Dynamics, Method, Slope, Step, Time, real_dtype, time_at
from .newton import Newton
from .sums import polynomial

TAPED = 2  # corrections that carry gradients: 2^TAPED - 1 is the order of the derivatives that are exact


@dataclass(frozen=True)
class ImplicitTableau:
    """A stiffly accurate diagonally implicit method whose first stage is the slope at the start.

    Stage i > 0 solves z_i = dt f(t + c_i dt, y + sum_j<i a_ij z_j + gamma z_i); z_0 = dt f(t, y). The last argument is
    the solution.

    Attributes:
        order: order of the solution.
        gamma: the diagonal.
        a: row i holds a_ij, j < i; row 0 is empty.
        c: abscissae, one for each stage.
        predictor: row i holds the weights of the z_j from which Newton starts z_i.
        dense: y(t + theta dt) = y + sum_i b_i(theta) z_i; row i holds the coefficients of theta, theta^2, ... in b_i.
        dense_order: order of the dense output.
        error: weights of the error estimate; None if there is none.
        error_order: order of the embedded solution.
    """

    order: int
    gamma: float
    a: tuple[tuple[float, ...], ...]
    c: tuple[float, ...]
    predictor: tuple[tuple[float, ...], ...]
    dense: tuple[tuple[float, ...], ...]
    dense_order: int
    error: tuple[float, ...] | None = None
    error_order: int | None = None


IMPLICIT_EULER = ImplicitTableau(
    order=1,
    gamma=1.0,
    a=((), (0.0,)),
    c=(0.0, 1.0),
    predictor=((), (0.0,)),
    dense=((), (1.0,)),
    dense_order=1,
)

TRAPEZOID = ImplicitTableau(
    order=2,
    gamma=0.5,
    a=((), (0.5,)),
    c=(0.0, 1.0),
    predictor=((), (1.0,)),
    dense=((1.0, -0.5), (0.0, 0.5)),
    dense_order=2,
)

# The dense outputs of KVAERNO3 and KVAERNO5 were found from the order conditions and one more, that the weights on the
# slope at the start cancel where dt J -> -infinity, so that values between stiff steps stay bounded (sum_i b_i z_i with
# b_0 = sum_i>0 b_i (A^-1 a)_i). That leaves Kvaerno3 no choice; Kvaerno5 has the b_i of degree 4 with the least defects
# of order 5 and values at -infinity. A test recomputes these conditions.
_G3 = 0.43586652150845967  # the middle root of g^3 - 3 g^2 + 3/2 g - 1/6
_A41, _A42, _A43 = 0.3088099699767468, 1.4905633884217944, -1.2352398799070012
_A31, _A32 = 0.4905633884217808, 0.07357009006975955
KVAERNO3 = ImplicitTableau(
    order=3,
    gamma=_G3,
    a=((), (_G3,), (_A31, _A32), (_A41, _A42, _A43)),
    c=(0.0, 2 * _G3, 1.0, 1.0),
    predictor=((), (1.0,), (1 - 0.5 / _G3, 0.5 / _G3), (_A31, _A32, _G3)),
    dense=(
        (1.0, -1.0735700900697642, 0.38238006004651137),
        (0.0, 4.471690165265368, -2.981126776843582),
        (1.0452602553350987, -5.7962401503912, 3.515740015149099),
        (-1.0452602553350987, 2.3981200751955907, -0.9169932983520231),
    ),
    dense_order=3,
    error=(_A41 - _A31, _A42 - _A32, _A43 - _G3, _G3),
    error_order=2,
)

_G5 = 0.26
_A6 = (0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676)
_A7 = (0.13659751177640291, 0.0, -0.05496908796538376, -0.04118626728321046, 0.62993304899016403, 0.06962479448202728)
KVAERNO5 = ImplicitTableau(
    order=5,
    gamma=_G5,
    a=(
        (),
        (_G5,),
        (0.13, 0.84033320996790809),
        (0.22371961478320505, 0.47675532319799699, -0.06470895363112615),
        (0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998),
        _A6,
        _A7,
    ),
    c=(0.0, 0.52, 1.230333209967908, 0.8957659843500759, 0.43639360985864756, 1.0, 1.0),
    predictor=(
        (),
        (1.0,),
        (-1.366025403784441, 2.3660254037844357),
        (-0.19650552613122207, 0.8113579546496623, 0.38514757148155954),
        (0.10375304369958693, 0.937994698066431, -0.04174774176601781, 0.0),
        (-0.17281112873898072, 0.6235784481025847, 0.5492326806363959, 0.0, 0.0),
        (*_A6, _G5),
    ),
    dense=(
        (0.9733135217076236, -2.0456878725222225, 1.7402712619184952, -0.5312993993274935),
        (),
        (-0.17050487292186134, 1.0110775568141566, -1.5871049553231733, 0.6915631834654932),
        (-0.8944059018041218, 0.21653350080199552, 2.8376917122516874, -2.2010055785327713),
        (0.14308046142436703, 3.1156539139983535, -4.261162196149409, 1.6323608697168543),
        (-1.2571654760232835, 2.3202186023844065, 1.590981214988344, -2.5844095468674357),
        (2.205682267617271, -4.617795701476732, -0.32067703768596223, 2.992790471545422),
    ),
    dense_order=4,
    error=(*(high - low for high, low in zip(_A7[:5], _A6, strict=True)), _A7[5] - _G5, _G5),
    error_order=4,
)


class ImplicitStep(Step):
    """A step of a diagonally implicit method: z_i, dt times its slopes."""

    def __init__(
        self,
        method: ImplicitRungeKutta,
        dynamics: Dynamics,
        t: Time,
        dt: Time,
        y: Tensor,
        slope: Slope,
    ) -> None:
        table = method.table
        self.method, self.t, self.dt, self.start = method, t, dt, y
        self.field = uncounted(dynamics)
        self.h = dt.to(real_dtype(y)) if isinstance(dt, Tensor) else dt
        self.first = slope if isinstance(slope, Tensor) else dynamics(self._time(0.0), y)
        self.zs, self.y = [self.first * self.h], y
        with torch.no_grad():
            self._linearized = Linearized(dynamics, self._time(0.0), y.detach())
            newton = Newton(
                self._inverse(self._linearized),
                y.detach(),
                isinstance(t, Tensor) and t.ndim > 0,
                table.gamma,
                method.tolerance,
            )
        for i in range(1, len(table.a)):
            known, time = _plus(y, table.a[i], self.zs), self._time(table.c[i])

            def residual(z: Tensor, known: Tensor = known, time: Tensor = time) -> Tensor:
                return dynamics(time, torch.add(known, z, alpha=table.gamma)) * self.h - z

            def linearize(state: Tensor, time: Tensor = time) -> Inverse:
                return self._inverse(Linearized(dynamics, time.detach(), state))

            with torch.no_grad():
                z = newton.solve(residual, linearize, known, _plus(torch.zeros_like(y), table.predictor[i], self.zs))
            if torch.is_grad_enabled():
                z = self._with_gradient(time, known, z)
            self.zs.append(z)
            self.y = torch.add(known, z, alpha=table.gamma)

    def _time(self, c: float) -> Tensor:
        return time_at(self.t, self.dt, c, self.start)

    def _inverse(self, linearized: Linearized) -> Inverse:
        return chosen(self.method.linear, linearized).inverse(linearized, self.h * self.method.table.gamma)

    def _with_gradient(self, time: Tensor, known: Tensor, z: Tensor) -> Tensor:
        """The same z, with the gradients of the exact solution of the stage: those of Newton steps that start in it."""
        gamma, inverse = self.method.table.gamma, None
        for _ in range(TAPED):
            residual = self.field(time, torch.add(known, z, alpha=gamma)) * self.h - z
            if not residual.requires_grad:
                return z
            if inverse is None:
                with torch.no_grad():
                    inverse = self._inverse(Linearized(self.field, time, torch.add(known, z, alpha=gamma)))
            shift = inverse.solve(residual)
            z = z + (shift - shift.detach())
        return z

    def slope(self) -> Tensor:
        last = self.zs[-1]
        if not isinstance(self.h, Tensor):
            return last / self.h
        still = self.h == 0
        return torch.where(still, self.first, last / torch.where(still, 1.0, self.h))

    def error(self) -> Tensor | None:
        weights = self.method.table.error
        return None if weights is None else _plus(torch.zeros_like(self.y), weights, self.zs)

    def stiffness(self, samples: bool) -> Tensor | None:
        linearized = self._linearized
        if torch.is_grad_enabled():
            linearized = Linearized(self.field, self._time(0.0), self.start)
        return chosen(self.method.linear, linearized).stiffness(linearized, samples)

    def at(self, theta: float | Tensor) -> Tensor:
        if isinstance(theta, Tensor):
            theta = theta.to(real_dtype(self.start))
        total = self.start
        for row, z in zip(self.method.table.dense, self.zs, strict=True):
            if row:
                total = total + polynomial(row, theta) * z
        return total


def _plus(y: Tensor, weights: tuple[float, ...], zs: list[Tensor]) -> Tensor:
    """y + the sum of weight * z."""
    for weight, z in zip(weights, zs, strict=True):
        if weight:
            y = torch.add(y, z, alpha=weight)
    return y


@dataclass(frozen=True)
class ImplicitRungeKutta(Method):
    """What the diagonally implicit methods share.

    Newton's iterations use the Jacobian at the start of the step and one factorisation for all stages; only where they
    would not converge within 10 a new one is made. A step in which a stage does not converge even so becomes NaN:
    adaptive loops reject it and try a shorter one, with steps of fixed length the solve ends as NONFINITE. Gradients
    are those of the exact solution of the stages, by the implicit function theorem: none goes through the iterations,
    second derivatives are exact, too.

    Args:
        linear: how the linear systems are solved: Dense(), GMRES(), or None, which takes Dense() up to 256 unknowns
            (of a sample with per-sample steps, else of the whole state).
        tolerance: estimated error at which the iterations stop, relative to each component of y. It has to lie well
            below rtol, or the error estimate is noise; a thousandth of it saves up to a third of the evaluations.
    """

    linear: Linear | None = None
    tolerance: float = 1e-10
    stability_size = None
    has_stiffness = True  # the infinity norm of the Jacobian at the start, or without a matrix a power iteration

    def __post_init__(self) -> None:
        require_linear(self.linear)
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be between 0 and 1, got {self.tolerance}")

    @property
    @abstractmethod
    def table(self) -> ImplicitTableau:
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

    def step(self, dynamics: Dynamics, t: Time, dt: Time, y: Tensor, slope: Slope = None) -> ImplicitStep:
        return ImplicitStep(self, dynamics, t, dt, y, slope)


@dataclass(frozen=True)
class ImplicitEuler(ImplicitRungeKutta):
    """Backward Euler, order 1, L-stable; fixed steps only. Arguments as in `ImplicitRungeKutta`."""

    table = IMPLICIT_EULER


@dataclass(frozen=True)
class Trapezoid(ImplicitRungeKutta):
    """The implicit trapezoidal rule, order 2, A-stable but not damping; fixed steps only.

    Arguments as in `ImplicitRungeKutta`.
    """

    table = TRAPEZOID


@dataclass(frozen=True)
class Kvaerno3(ImplicitRungeKutta):
    """Kvaerno's pair 3(2), L-stable and stiffly accurate. Arguments as in `ImplicitRungeKutta`.

    Source: Kvaerno 2004, "Singly diagonally implicit Runge-Kutta methods with an explicit first stage", BIT 44(3).
    """

    table = KVAERNO3


@dataclass(frozen=True)
class Kvaerno5(ImplicitRungeKutta):
    """Kvaerno's pair 5(4), L-stable and stiffly accurate. Arguments as in `ImplicitRungeKutta`.

    It evaluates the field beyond the end of the step, up to t + 1.23 dt.

    Source: Kvaerno 2004, BIT 44(3).
    """

    reach = max(KVAERNO5.c)
    table = KVAERNO5
