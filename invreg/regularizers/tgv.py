"""Total generalized variation of second order: edges and slopes, without the staircases of total variation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_count, require_positive
from invreg.interfaces import Regularizer
from invreg.linalg import expand, inner, norm
from invreg.operators.gradient import Gradient, SymmetrizedGradient
from invreg.regularizers.norms import (
    ImplicitProx,
    binary_scale,
    group_norm,
    needs_graph,
    sample_sum,
    scaled_step,
    shrink,
    threshold_tensor,
)

RELAXATION = 1.9  # of the primal-dual steps; < 2
# square roots of primal over dual steps, in units of the data's: fastest on images, ramps and noise of every weight
VALUE_RATIO, PROX_RATIO, LEAST_RATIO, MOST_RATIO = 0.3, 0.1, 0.03, 1e4


@dataclass(frozen=True, eq=False)
class _Saddle:
    """Primal image z and slope field w, dual fields p and q of grad z - w and E w."""

    z: Tensor
    w: Tensor
    p: Tensor
    q: Tensor


Resolvent = Callable[[Tensor], Tensor]


class TotalGeneralizedVariation(Regularizer[Tensor]):
    """weight * min over fields w of  sum |grad x - w| + ratio * sum |E w|, E the symmetrised gradient.

    Zero for affine images. Norms are Euclidean (Frobenius) over directions and channels, with the modulus of complex
    entries. Differences are those of `Gradient` and `SymmetrizedGradient`; none reaches across the border.

    Value and prox are found by over-relaxed primal-dual iterations from a fixed start, so they depend on their
    arguments alone. A sample stops at the first check where a duality gap guarantees the accuracy; the true error
    is usually far smaller. The gradient of the value is that of its dual form. Gradients pass through `prox`
    implicitly (once), by the same iterations on the linearised problem.

    Args:
        weight: >= 0, a number or a 0-d tensor, which may require a gradient.
        dim: number of spatial axes, 1 to 3.
        ratio: weight of the second term relative to the first, > 0, in pixels or in the length unit of voxel_size.
        channel_dim: axis of (B, ...) that holds channels, which share their edges; None if there is none.
        voxel_size: pixel pitch, as for `Gradient`.
        rtol: the value is at most rtol * weight * TV(x) too large, and |prox - exact| <= rtol |x|; but no finer than
            a gap can show (the square root of the machine precision for the prox). 0 runs all iterations. Within FISTA,
            whose steps move x by little, ask for less than the share of x that a step moves.
        iterations: limit; it warns where that was not enough for rtol.
        check_every: iterations between two looks at the gap.

    Raises:
        TypeError, ValueError: arguments of the wrong kind or out of range; (when used) x has other axes.

    Source: Bredies, Kunisch and Pock 2010, "Total generalized variation"; iterations: Chambolle and Pock 2011,
    Alg. 1, over-relaxed after Condat 2013. The differences of w stand on the staggered grid of the gradient, which
    departs from the paper's and makes affine images cost nothing at the border either.
    """

    def __init__(
        self,
        weight: float | Tensor = 1.0,
        dim: int = 2,
        *,
        ratio: float = 2.0,
        channel_dim: int | None = None,
        voxel_size: float | tuple[float, ...] = 1.0,
        rtol: float = 2e-3,
        iterations: int = 3000,
        check_every: int = 20,
    ) -> None:
        super().__init__(weight)
        require_positive("ratio", ratio)
        require_positive("rtol", rtol, zero_allowed=True)
        require_count("iterations", iterations)
        require_count("check_every", check_every)
        self.gradient = Gradient(dim, channel_dim, voxel_size)
        self.symmetrized = SymmetrizedGradient(dim, channel_dim, voxel_size)
        channels = () if channel_dim is None else (channel_dim + 1 if channel_dim > 0 else channel_dim,)
        self.axis = (1, *channels)
        self.ratio, self.rtol, self.iterations, self.check_every = ratio, rtol, iterations, check_every

    def forward(self, x: Tensor) -> Tensor:
        slope = self.gradient(x)
        with torch.no_grad():
            value, certificate = self._value(x.detach(), slope.detach())
        # the value is the maximum of <grad x, certificate> over certificates: this is its gradient (Danskin)
        dual = inner(slope, certificate)
        return self.weight * (dual + (value - dual.detach()))

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        t = threshold_tensor(scaled_step(self.weight, step, x), x)
        with torch.no_grad():
            point = self._denoise(x.detach(), t.detach())
        if not needs_graph(x, t):
            return point.z
        start, bound = x.detach(), t.detach().unsqueeze(1) if t.ndim else t.detach()
        result: Tensor = ImplicitProx.apply(  # type: ignore[no-untyped-call]
            x, t, point.z, lambda g: self._pull_back(start, bound, point, g)
        )
        return result

    def _size(self, field: Tensor) -> Tensor:
        return group_norm(field, self.axis)

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        product = a.real * b.real + a.imag * b.imag if a.is_complex() else a * b
        return product.sum(self.axis, keepdim=True)

    def _cap(self, field: Tensor, bound: Tensor) -> Tensor:
        """Every group shortened to the bound where it is longer."""
        return field * (bound / torch.maximum(self._size(field), bound.clamp_min(torch.finfo(bound.dtype).tiny)))

    def _feasible(self, q: Tensor, bound: Tensor) -> Tensor:
        """E^H q for the q scaled down so far that no group of it is longer than the bound."""
        field = self.symmetrized.adjoint(q)
        longest = expand(self._size(field).flatten(1).amax(1), field)
        return field * torch.where(longest > bound, bound / torch.where(longest > 0, longest, 1), 1)

    def _value(self, x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """The value without weight, (B,), and the field whose inner product with the slope it is."""
        unit = binary_scale(x)
        slope = slope / unit.unsqueeze(1)
        variation = sample_sum(self._size(slope))
        scale = expand(torch.where(variation > 0, norm(slope) / slope[0].numel() ** 0.5, 1), slope)
        operator_norm = self.symmetrized.norm_bound
        tau, sigma = VALUE_RATIO * scale / operator_norm, 1 / (VALUE_RATIO * scale * operator_norm)
        one, ratio = torch.ones_like(scale), torch.full_like(scale, self.ratio)
        w, q = torch.zeros_like(slope), self.symmetrized(torch.zeros_like(slope))
        value, certificate = variation, torch.zeros_like(slope)
        gap, done = variation, variation < 0
        for k in range(1, self.iterations + 1):
            rest = slope - w + tau * self.symmetrized.adjoint(q)
            w_next = slope - shrink(rest, self._size(rest), tau)
            q_next = self._cap(q + sigma * self.symmetrized(2 * w_next - w), ratio)
            if self._looks(k):
                primal = sample_sum(self._size(slope - w_next)) + self.ratio * sample_sum(
                    self._size(self.symmetrized(w_next))
                )
                field = self._feasible(q_next, one)
                value = torch.where(done, value, torch.minimum(primal, variation))
                certificate = torch.where(expand(done, field), certificate, field)
                gap = torch.where(done, gap, value - inner(slope, field))
                done = ~(gap > self.rtol * variation)
                if self.rtol > 0 and bool(done.all()):
                    break
            w, q = torch.lerp(w, w_next, RELAXATION), torch.lerp(q, q_next, RELAXATION)
        if self.rtol > 0 and not bool(done.all()):
            self._warn("the value", float((gap / variation)[~done].max()))
        return value * unit.reshape(-1), certificate

    def _looks(self, k: int) -> bool:
        return k == self.iterations or (self.rtol > 0 and k % self.check_every == 0)

    def _warn(self, what: str, reached: float) -> None:
        warnings.warn(
            f"TotalGeneralizedVariation: {what} reached accuracy {reached:.1e} > rtol = {self.rtol:g} "
            f"in {self.iterations} iterations; raise iterations or loosen rtol",
            stacklevel=4,
        )

    def _steps(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Primal and dual step of the prox, each sample's own, (B, 1, ..., 1) with the axes of t.

        Their product comes from a bound of the norm of (z, w) -> (grad z - w, E w), their ratio from what they cover:
        slopes of the size of grad x, and dual fields of length t.
        """
        square = self.gradient.norm_bound**2
        bound = math.sqrt((2 * square + 1 + math.sqrt(1 + 4 * square)) / 2)
        slope = self.gradient(x)
        slope_size = expand(norm(slope) / slope[0].numel() ** 0.5, slope)
        ratio = PROX_RATIO * slope_size / torch.where(t > 0, t, 1)
        ratio = torch.where(t > 0, ratio, MOST_RATIO).clamp(LEAST_RATIO, MOST_RATIO)
        return ratio / bound, 1 / (ratio * bound)

    def _advance(
        self, x: Tensor, at: _Saddle, steps: tuple[Tensor, Tensor], to_p: Resolvent, to_q: Resolvent
    ) -> _Saddle:
        """One primal-dual step, before relaxation."""
        tau, sigma = steps
        tau_z = tau.squeeze(1)
        z = (at.z + tau_z * (x - self.gradient.adjoint(at.p))) / (1 + tau_z)
        w = at.w + tau * (at.p - self.symmetrized.adjoint(at.q))
        ahead = 2 * w - at.w
        p = to_p(at.p + sigma * (self.gradient(2 * z - at.z) - ahead))
        q = to_q(at.q + sigma * self.symmetrized(ahead))
        return _Saddle(z, w, p, q)

    def _start(self, x: Tensor) -> _Saddle:
        field = self.gradient(torch.zeros_like(x))
        return _Saddle(x, field, field, self.symmetrized(field))

    def _denoise(self, x: Tensor, t: Tensor) -> _Saddle:
        unit = binary_scale(x)
        x, t = x / unit, (t / unit).unsqueeze(1)
        size = norm(x)
        tolerance = max(self.rtol, torch.finfo(t.dtype).eps ** 0.5) * size
        at = found = self._start(x)
        steps = self._steps(x, t)
        error = torch.full_like(size, torch.inf)
        done = error < 0
        for k in range(1, self.iterations + 1):
            following = self._advance(x, at, steps, lambda p: self._cap(p, t), lambda q: self._cap(q, self.ratio * t))
            if self._looks(k):
                found = _keep(done, found, following)
                if self.rtol > 0:
                    error = torch.where(done, error, self._distance(x, t, following))
                    done = ~(error > tolerance)  # NaN is done: it must show, not run on
                    if bool(done.all()):
                        break
            at = _relax(at, following)
        if self.rtol > 0 and not bool(done.all()):
            self._warn("prox", float((error / size)[~done].max()))
        fields = (field * unit.unsqueeze(1) for field in (found.w, found.p, found.q))
        return _Saddle(found.z * unit, *fields)

    def _distance(self, x: Tensor, t: Tensor, at: _Saddle) -> Tensor:
        """Upper bound of |z - z*|, (B,): sqrt(2 gap), as the primal objective is 1-strongly convex in z."""
        dual = self.gradient.adjoint(self._feasible(at.q, t))
        rise = t * (self._size(self.gradient(at.z) - at.w) + self.ratio * self._size(self.symmetrized(at.w)))
        # |z - x|^2 / 2 - <x, dual> + |dual|^2 / 2, without cancellation
        miss = x - at.z - dual
        gap = inner(miss, miss) / 2 - inner(at.z, dual) + sample_sum(rise)
        return (2 * gap.clamp_min(0)).sqrt()

    def _pull_back(self, x: Tensor, t: Tensor, point: _Saddle, g: Tensor) -> tuple[Tensor, Tensor]:
        """The prox's symmetric Jacobian times g, and <g, dz/dt>, (B,).

        The derivative of the solution in the direction g solves the same saddle problem with the two projections
        replaced by their derivatives at the solution; so the same iterations find it. Groups whose dual is shorter
        than its bound stay zero; in the others the dual is its bound times a direction n, so that
        dz/dt = -J (grad^H n_p), with n_q beside it.
        """
        steps = self._steps(x, t)
        sigma = steps[1]
        slope, bend = self.gradient(point.z) - point.w, self.symmetrized(point.w)
        n_p, to_p = self._linearised(point.p + sigma * slope, t)
        n_q, to_q = self._linearised(point.q + sigma * bend, self.ratio * t)
        unit = binary_scale(g)
        target = g / unit
        at = self._start(target)
        tolerance = max(self.rtol / 1000, 4 * torch.finfo(unit.dtype).eps) * norm(target)
        for k in range(1, self.iterations + 1):
            following = self._advance(target, at, steps, to_p, to_q)
            relaxed = _relax(at, following)
            if self._looks(k) and self.rtol > 0:
                change = sum(norm(b - a) for a, b in zip(_fields(at), _fields(relaxed), strict=True))
                if not bool((change > tolerance).any()):
                    break
            at = relaxed
        to_x, w = at.z * unit, at.w * unit.unsqueeze(1)
        along = self._dot(n_p, self.gradient(to_x) - w) + self.ratio * self._dot(n_q, self.symmetrized(w))
        return to_x, -sample_sum(along)

    def _linearised(self, v: Tensor, bound: Tensor) -> tuple[Tensor, Resolvent]:
        """Directions of the groups of v longer than the bound (else 0), and the derivative of `_cap` at v."""
        size = self._size(v)
        long = size > bound
        normal = torch.where(long, v / torch.where(long, size, 1), 0)
        factor = torch.where(long, bound / torch.where(long, size, 1), 1)
        return normal, lambda u: factor * (u - normal * self._dot(normal, u))


def _fields(at: _Saddle) -> tuple[Tensor, ...]:
    return at.z, at.w, at.p, at.q


def _keep(done: Tensor, old: _Saddle, new: _Saddle) -> _Saddle:
    """What was found for samples that are done, the new for the others."""
    pairs = zip(_fields(old), _fields(new), strict=True)
    return _Saddle(*(torch.where(expand(done, b), a, b) for a, b in pairs))


def _relax(old: _Saddle, new: _Saddle) -> _Saddle:
    pairs = zip(_fields(old), _fields(new), strict=True)
    return _Saddle(*(torch.lerp(a, b, RELAXATION) for a, b in pairs))
