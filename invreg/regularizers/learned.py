"""Learned proximal networks as priors: the gradient of a convex network is a prox, and its penalty can be computed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from invreg._check import require_count, require_positive, warn
from invreg.interfaces import ConvexPotential, Regularizer
from invreg.linalg import cg, expand, inner, norm
from invreg.regularizers.norms import ImplicitProx, needs_graph, scaled_step, threshold_tensor

SAME = 1e-5
"""Relative difference of steps that counts as none: 1 / rho in single precision."""
FORCING = 0.05
"""Accuracy of a Newton direction, relative."""
DIRECTIONS = 200
"""Conjugate gradients for a Newton direction at most."""
TRIALS = 25
"""Lengths of a Newton step that are tried at most."""
CALLS = 100
"""Calls of a prox in the course of which a relaxed one reaches its accuracy."""


@dataclass(frozen=True, eq=False)
class LearnedValue:
    """weight * R(x) of a learned prior, and how far it is to be trusted.

    Args:
        value: weight * R(x) up to the constant that the network leaves open, (B,); from below, by at most
            weight * residual * bound / (2 step).
        point: y with f(y) = x, f the network, (B, *signal); the gradient of weight * R is weight * (y - x) / step.
        residual: |f(y) - x|, (B,), in the units of x.
        bound: residual / strong_convexity >= |y - y*|, y* the exact solution, (B,), in the units of x; infinite where
            the network is not strongly convex, since a small residual then says nothing of y.
        converged: whether the residual met the tolerance, (B,), bool.
    """

    value: Tensor
    point: Tensor
    residual: Tensor
    bound: Tensor
    converged: Tensor


class _Learned(Regularizer[Tensor]):
    """What both priors share: R, its value and its gradient."""

    cheap: ClassVar[bool] = False

    def __init__(
        self,
        potential: ConvexPotential,
        step: float,
        scale: float,
        weight: float | Tensor,
        rtol: float,
        iterations: int,
    ) -> None:
        super().__init__(weight)
        if not isinstance(potential, ConvexPotential):
            raise TypeError(
                f"potential must have value, gradient and strong_convexity, got {type(potential).__name__}; use "
                "ConvexMLP or ConvexCNN"
            )
        for name, value in (("step", step), ("scale", scale), ("rtol", rtol)):
            require_positive(name, value)
        require_count("iterations", iterations)
        self.potential, self.step, self.scale, self.rtol, self.iterations = potential, step, scale, rtol, iterations

    def evaluate(self, x: Tensor) -> LearnedValue:
        """The value at x, (B, *signal), with its certificate and without a graph; a call gives the value with one."""
        found = self._evaluate(x)
        with torch.no_grad():
            return replace(found, value=self.weight * found.value)

    def _evaluate(self, x: Tensor) -> LearnedValue:
        """As `evaluate`, of weight 1."""
        with torch.no_grad():
            unit = x.detach() / self.scale
            goal = self.rtol * unit[0].numel() ** 0.5
            one = torch.ones_like(norm(unit))
            y, miss = _minimise(self.potential, unit, 0 * one, one, goal, self.iterations)
            conjugate = inner(unit, y) - self.potential.value(y)
            modulus = self.potential.strong_convexity
            residual = self.scale * miss
            bound = residual / modulus if modulus > 0 else torch.full_like(residual, torch.inf)
            value = self.scale**2 / self.step * (conjugate - inner(unit, unit) / 2)
            return LearnedValue(value, self.scale * y, residual, bound, miss <= goal)

    def forward(self, x: Tensor) -> Tensor:
        found = self._evaluate(x)
        if not bool(found.converged.all()):
            worst = float((found.residual / (self.scale * x[0].numel() ** 0.5))[~found.converged].max())
            warn(
                f"the value of {type(self).__name__} reached accuracy {worst:.1e} > rtol = {self.rtol:g} in "
                f"{self.iterations} iterations; raise iterations, loosen rtol, or look at evaluate(x).bound"
            )
        if not torch.is_grad_enabled():
            return self.weight * found.value
        value: Tensor = _Value.apply(x, found.point, found.value, self)  # type: ignore[no-untyped-call]
        # the inverse needs no derivative in the weights of the network either: y minimises psi(y) - <x, y>
        psi = self.potential.value(found.point / self.scale)
        if psi.requires_grad:
            value = value - self.scale**2 / self.step * (psi - psi.detach())
        return self.weight * value

    @abstractmethod
    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """argmin_z step * weight * R(z) + |z - x|^2 / 2."""


class _Value(torch.autograd.Function):
    """R(x), computed already, whose gradient is (y - x) / step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, value: Tensor, prior: _Learned) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.prior = prior
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        x, y = ctx.saved_tensors
        inverse = _Inverse.apply(x, y, ctx.prior)  # type: ignore[no-untyped-call]
        return expand(gradient / ctx.prior.step, x) * (inverse - x), None, None, None


class _Inverse(torch.autograd.Function):
    """y = f^-1(x), computed already, whose slope is the inverse of that of f."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, prior: _Learned) -> Tensor:
        ctx.save_for_backward(y)
        ctx.prior = prior
        return y.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        slope = _Slope(ctx.prior.potential, ctx.saved_tensors[0] / ctx.prior.scale)
        return cg(slope, gradient, rtol=ctx.prior.rtol, iterations=DIRECTIONS).x, None, None


class LearnedProximal(_Learned):
    """weight * R(x) whose prox is a learned proximal network f = grad psi, exactly, at one step.

    With psi*, the conjugate of psi, in units of `scale`, R(x) = (psi*(x) - |x|^2 / 2) / step: f(y) is where
    step * R(z) + |z - y|^2 / 2 is least. R may be convex or not. At x it takes y = f^-1(x), the point where
    psi(y) - <x, y> is least, a convex problem that is solved for each sample by Newton's method; then
    R(x) = (<x, y> - psi(y) - |x|^2 / 2) / step and its gradient is (y - x) / step. `evaluate` says how well.

    A network trained to remove noise of standard deviation sigma from images of range `scale` has R = -log p of the
    images for step = sigma^2, sigma in the units of x. `prox` is the network alone, so it takes only those steps where
    step * weight is that one: `at_step` gives the prior with the weight for a step, `RelaxedLearnedProximal` takes
    other steps.

    Where it is proved to converge: ProximalGradient with step_size < 1 / L, ADMM with rho > L (relaxation=1,
    balance=False), L = |A|^2 / sigma^2 the Lipschitz constant of the misfit's gradient: `safe_step_size` of
    `invreg.algorithms.proved_step` gives a step, 1 / rho for ADMM, and `check_step` warns of others.

    Args:
        potential: psi, in units of `scale`: `ConvexMLP`, `ConvexCNN`.
        step: at which the network is the prox, > 0; it scales R.
        scale: what 1 stands for in the units of x, > 0: x / scale is what the network sees.
        weight: >= 0, a number or a 0-d tensor, which may require a gradient.
        rtol, iterations: root mean square of f(y) - x over `scale` at which the inverse is taken for found, and
            Newton steps at most; the value warns where they were not enough.

    Raises:
        TypeError: the potential lacks a faculty, or a number is of another type.
        ValueError: a number out of its range; on `prox`, another step.

    The value can be differentiated in x, twice, in the weight, and in the network.

    Source: Fang, Buchanan and Sulam 2024, "What's in a prior? Learned proximal networks for inverse problems", eq. 4
    and Theorem 2; Gribonval and Nikolova 2020, "A characterization of proximity operators".
    """

    def __init__(
        self,
        potential: ConvexPotential,
        step: float = 1.0,
        scale: float = 1.0,
        weight: float | Tensor = 1.0,
        *,
        rtol: float = 1e-5,
        iterations: int = 100,
    ) -> None:
        super().__init__(potential, step, scale, weight, rtol, iterations)

    def at_step(self, step: float) -> LearnedProximal:
        """The prior with the same network for its prox at another step: what changes is the weight."""
        require_positive("step", step)
        return LearnedProximal(
            self.potential, self.step, self.scale, self.step / step, rtol=self.rtol, iterations=self.iterations
        )

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """The network; exact. The device is read for the step if that is a tensor."""
        given = torch.as_tensor(scaled_step(self.weight, step, x)).detach()
        if not bool(((given - self.step).abs() <= SAME * self.step).all()):
            raise ValueError(
                f"step * weight must be {self.step:g}, at which the network is a prox, got {_range(given)}; take "
                "prior.at_step(step), with balance=False in ADMM, or RelaxedLearnedProximal"
            )
        return self.scale * self.potential.gradient(x / self.scale)


class RelaxedLearnedProximal(_Learned):
    """The R of `LearnedProximal` with a prox at other steps, each found by Newton's method.

    With t = step * weight over the network's own step, the prox at x is f(y) where t y + (1 - t) f(y) = x, so where
    t / 2 |y|^2 + (1 - t) psi(y) - <x, y> is least. For t < 1 this is strongly convex whatever the network, R convex or
    not, so the prox is one point and found to any accuracy, without f^-1. For t > 1 it is if the slope of f, nowhere
    above `lipschitz`, stays below t / (t - 1).

    Cost of a prox: some 5 to 30 Newton steps, each of one gradient of the network for every trial of its length and one
    product with its Hessian, about two gradients, for every conjugate gradient; tens to hundreds of times a
    `LearnedProximal`.

    Args:
        potential, step, scale, weight: as for `LearnedProximal`.
        lipschitz: a bound of the slope of f, such as 1 for a convex R; None: unknown, then t <= 1 is all it takes.
        rtol, iterations: as for `LearnedProximal`, of the value and of the prox.
        decay: p. In an algorithm that anneals, call k of `CALLS` has rtol * ((1 + CALLS) / (1 + k))^p for accuracy:
            the errors are summable. 0 keeps rtol.

    Raises:
        TypeError, ValueError: as of `LearnedProximal`; decay between 0 and 1.5, or below 0; on `prox`, t too large.

    `prox` can be differentiated once, in x and the weight, but not in the network.

    Source: Pritchard and Parhi 2026, arXiv:2609.33087, for the tolerances, c / (1 + k)^p with p > 3/2; they solve for
    z in place of y, with f^-1 inside, by L-BFGS.
    """

    def __init__(
        self,
        potential: ConvexPotential,
        step: float = 1.0,
        scale: float = 1.0,
        weight: float | Tensor = 1.0,
        *,
        lipschitz: float | None = None,
        rtol: float = 1e-5,
        iterations: int = 100,
        decay: float = 2.0,
    ) -> None:
        super().__init__(potential, step, scale, weight, rtol, iterations)
        if lipschitz is not None:
            require_positive("lipschitz", lipschitz)
        require_positive("decay", decay, zero_allowed=True)
        if 0 < decay <= 1.5:
            raise ValueError(f"decay must be > 1.5 for the errors to be summable, or 0, got {decay}")
        self.lipschitz, self.decay, self.looseness = lipschitz, decay, 1.0

    def at(self, progress: float) -> Regularizer[Tensor]:
        """The same with the tolerance that belongs to `progress`."""
        now = copy(self)
        now.looseness = ((1 + CALLS) / (1 + CALLS * progress)) ** self.decay
        return now

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        t = threshold_tensor(scaled_step(self.weight, step, x), x) / self.step
        self._check(t.detach())
        with torch.no_grad():
            unit, ratio = x.detach() / self.scale, t.detach() + torch.zeros_like(expand(norm(x), x))
            goal = self.looseness * self.rtol * unit[0].numel() ** 0.5
            y, miss = _minimise(self.potential, unit, ratio, 1 - ratio, goal, self.iterations)
            if not bool((miss <= goal).all()):
                warn(
                    f"RelaxedLearnedProximal.prox reached accuracy {float(miss.max()) / goal:.1e} times the "
                    f"wanted in {self.iterations} iterations; raise iterations or loosen rtol"
                )
            # of the two forms of the prox the one that the error of y hardly enters
            z = torch.where(ratio < 0.5, (unit - ratio * y) / (1 - ratio), self.potential.gradient(y))
        if not needs_graph(x, t):
            return self.scale * z
        relaxed: Tensor = ImplicitProx.apply(x / self.scale, t, z, self._pullback(y, z, ratio))  # type: ignore[no-untyped-call]
        return self.scale * relaxed

    def _check(self, t: Tensor) -> None:
        if bool((t <= 1).all()) and bool((t >= 0).all()):
            return
        largest = float(t.max())
        if self.lipschitz is None or not bool((t >= 0).all()) or self.lipschitz * (largest - 1) >= largest:
            limit = 1.0 if self.lipschitz is None else torch.inf
            if self.lipschitz is not None and self.lipschitz > 1:
                limit = self.lipschitz / (self.lipschitz - 1)
            raise ValueError(
                f"step * weight must be >= 0 and at most {limit:g} times the network's own step, {self.step:g}, got "
                f"{_range(t * self.step)}; take a smaller step, or state the largest slope of the network in lipschitz"
            )

    def _pullback(self, y: Tensor, z: Tensor, ratio: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Gradient in z -> those in x and t, by dz = J (t + (1 - t) J)^-1 (dx - (y - z) dt) with J the slope of f."""

        def pull(gradient: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                slope = _Slope(self.potential, y)
                solved = cg(_hessian(slope, ratio, 1 - ratio), gradient, rtol=self.rtol, iterations=DIRECTIONS).x
                to_x = slope(solved)
                return to_x, inner(to_x, z - y)

        return pull


def _range(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


class _Slope:
    """v -> J v with J the Hessian of psi at y, symmetric: one gradient is kept and differentiated again for each v."""

    def __init__(self, potential: ConvexPotential, y: Tensor) -> None:
        self.point = y.detach().requires_grad_()
        with torch.enable_grad():
            self.gradient = potential.gradient(self.point)

    def __call__(self, v: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(self.gradient, self.point, v, retain_graph=True)
        return product


def _hessian(slope: _Slope, a: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: a * v + b * slope(v)


def _minimise(
    potential: ConvexPotential, x: Tensor, a: Tensor, b: Tensor, goal: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """argmin_y a / 2 |y|^2 + b psi(y) - <x, y> of each sample, convex, by Newton's method with conjugate gradients.

    Args:
        x: (B, *signal), where it starts, too.
        a, b: (B,) or (B, 1, ..., 1).
        goal: norm of the gradient at which a sample is done.
        iterations: Newton steps at most.

    Returns:
        The minimisers, (B, *signal), and the norms of the gradient there, (B,).
    """
    a, b = expand(a.reshape(-1), x), expand(b.reshape(-1), x)
    y, stuck = x, torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for k in range(iterations + 1):
        slope = _Slope(potential, y)
        miss = x - a * y - b * slope.gradient.detach()
        residual = norm(miss)
        active = (residual > goal) & ~stuck
        if k == iterations or not bool(active.any()):
            break
        wanted = torch.where(expand(active, x), miss, 0)
        direction = cg(_hessian(slope, a, b), wanted, rtol=FORCING, iterations=DIRECTIONS, check_every=5).x
        length = _length(potential, x, a, b, y, direction, inner(miss, direction))
        stuck = stuck | (active & (length == 0))
        y = y + expand(length, x) * direction
    return y, residual


def _length(
    potential: ConvexPotential, x: Tensor, a: Tensor, b: Tensor, y: Tensor, direction: Tensor, fall: Tensor
) -> Tensor:
    """How far to go along a direction, (B,); 0 where no length lowers the function, which rounding may bring about.

    A length passes if the function has not risen and its slope there is at most 0.8 of `fall`, the slope at the start
    downwards: the approximate Wolfe condition, which rounding spares near the minimum. Else the secant of the slope,
    which rises along the direction, gives the next.

    Source: Hager and Zhang 2005, "A new conjugate gradient method with guaranteed descent".
    """

    def value(point: Tensor) -> Tensor:
        flat = expand(potential.value(point), x) * b
        return flat.reshape(-1) + inner(a / 2 * point - x, point)

    start = value(y)
    slack = 16 * torch.finfo(start.dtype).eps * (start.abs() + inner(x, y).abs())
    length, chosen = (fall > 0).to(fall.dtype), torch.zeros_like(fall)
    done = ~(fall > 0)
    for _ in range(TRIALS):
        point = y + expand(length, x) * direction
        rise = inner(a * point + b * potential.gradient(point) - x, direction)
        good = (value(point) <= start + slack) & (rise <= 0.8 * fall)
        chosen = torch.where(good & ~done, length, chosen)
        done = done | good
        if bool(done.all()):
            break
        secant = fall / (fall + rise.clamp_min(0))
        length = torch.where(done, length, length * secant.nan_to_num(0.5).clamp(0.05, 0.5))
    return chosen
