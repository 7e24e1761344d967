"""Total variation, isotropic or anisotropic, of real and complex images and volumes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_count, require_positive
from invreg.interfaces import LinearOperator, Regularizer
from invreg.linalg import cg, expand, norm
from invreg.operators.gradient import Gradient
from invreg.regularizers.norms import (
    L1,
    GroupL1,
    ImplicitProx,
    binary_scale,
    group_norm,
    needs_graph,
    sample_sum,
    scaled_step,
    threshold_tensor,
)


@dataclass(frozen=True, eq=False)
class _Point:
    """A denoised image z, its dual field q, and the bound t of that, () or (B, 1, ..., 1) with the axes of q."""

    z: Tensor
    q: Tensor
    t: Tensor


class TotalVariation(Regularizer[Tensor]):
    """weight * sum over pixels of |grad x|: forward differences, none across the border.

    Isotropic: at each pixel the Euclidean norm over directions and channels. Anisotropic: over channels only, summed
    over directions. Complex entries count with their modulus, so that TV(exp(i phi) x) = TV(x).

    `prox` minimises the dual by fast projected gradient with restart. A sample stops at the first check where the
    duality gap guarantees |z - z*| <= rtol |x - z|, relative to what the prox moves, so that small steps are taken as
    accurately as large ones; the true error is usually far smaller. The result depends on x and step alone. Gradients
    pass through `prox` implicitly (once), by one solve with conjugate gradients.

    Args:
        weight: >= 0, a number or a 0-d tensor, which may require a gradient.
        dim: number of spatial axes, 1 to 3.
        isotropic: couple the directions.
        channel_dim: axis of (B, ...) that holds channels, which share their edges; None if there is none.
        voxel_size, along: pixel pitch, and which axes count, as for `Gradient`: along=(0,) with dim=3 is what couples
            the slices of a volume.
        rtol: accuracy of `prox`, relative to |x - prox(x)|, but no finer than a gap can show (at most 3.5e-4 |x| in
            float32, 1.5e-8 |x| in float64). 0 runs all iterations without looking, and compiles.
        iterations: limit of `prox`; it warns where that was not enough for rtol.
        check_every: iterations of `prox` between two looks at the gap.

    Raises:
        TypeError, ValueError: arguments of the wrong kind or out of range; (when used) x has other axes.

    Source: Rudin, Osher and Fatemi 1992; prox: Beck and Teboulle 2009, "Fast gradient-based algorithms for constrained
    total variation image denoising", without their constraint; momentum of Chambolle and Dossal 2015 with a = 3;
    restart where the dual objective got worse between two checks, after O'Donoghue and Candes 2015.
    """

    def __init__(
        self,
        weight: float | Tensor = 1.0,
        dim: int = 2,
        *,
        isotropic: bool = True,
        channel_dim: int | None = None,
        voxel_size: float | tuple[float, ...] = 1.0,
        along: tuple[int, ...] | None = None,
        rtol: float = 1e-2,
        iterations: int = 1000,
        check_every: int = 10,
    ) -> None:
        super().__init__(weight)
        require_positive("rtol", rtol, zero_allowed=True)
        require_count("iterations", iterations)
        require_count("check_every", check_every)
        self.gradient = Gradient(dim, channel_dim, voxel_size, along=along)
        channels = () if channel_dim is None else (channel_dim + 1 if channel_dim > 0 else channel_dim,)
        self.axis = (1, *channels) if isotropic else channels
        self.rtol, self.iterations, self.check_every = rtol, iterations, check_every

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * sample_sum(self._size(self.gradient(x)))

    @property
    def terms(self) -> tuple[tuple[LinearOperator | None, L1 | GroupL1], ...]:
        """The gradient under an L1 norm of its groups, with the weight."""
        penalty = GroupL1(self.weight, self.axis) if self.axis else L1(self.weight)
        return ((self.gradient, penalty),)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        t = threshold_tensor(scaled_step(self.weight, step, x), x)
        with torch.no_grad():
            point = self._denoise(x.detach(), t.detach())
        if not needs_graph(x, t):
            return point.z
        result: Tensor = ImplicitProx.apply(  # type: ignore[no-untyped-call]
            x, t, point.z, lambda g: self._pull_back(point, g)
        )
        return result

    def _size(self, field: Tensor) -> Tensor:
        """Norm of every group, with length 1 along the axes of a group."""
        return group_norm(field, self.axis) if self.axis else field.abs()

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Real inner product in every group."""
        product = a.real * b.real + a.imag * b.imag if a.is_complex() else a * b
        return product.sum(self.axis, keepdim=True) if self.axis else product

    def _denoise(self, x: Tensor, t: Tensor) -> _Point:
        """argmin_z t TV(z) + |z - x|^2 / 2 through its dual: min over |q| <= t of |x - grad^H q|^2 / 2."""
        unit = binary_scale(x)
        x, t = x / unit, (t / unit).unsqueeze(1)
        floor = t.clamp_min(torch.finfo(t.dtype).tiny)
        tau = self.gradient.norm_bound**-2
        q = ahead = self.gradient(torch.zeros_like(x))
        age = torch.zeros_like(t)
        least, slack = _visible_error(x, t, self.gradient.norm_bound), 1 + 2 * torch.finfo(t.dtype).eps
        energy = error = moved = torch.full_like(least, torch.inf)
        done, found = error < 0, (x, q)
        for k in range(1, self.iterations + 1):
            ahead = torch.add(ahead, self.gradient(x - self.gradient.adjoint(ahead)), alpha=tau)
            new = ahead * (t / torch.maximum(self._size(ahead), floor))
            age = age + 1
            ahead = torch.addcmul(new, ((age - 1) / (age + 3)).to(new.dtype), new - q)
            q = new
            last = k == self.iterations
            if last or (self.rtol > 0 and k % self.check_every == 0):
                z = x - self.gradient.adjoint(q)
                found = (_keep(done, found[0], z), _keep(done, found[1], q))
                if self.rtol == 0:
                    break
                error = torch.where(done, error, self._distance(z, q, t))
                moved = torch.where(done, moved, norm(x - z))
                done = ~(error > torch.maximum(self.rtol * moved, least))  # NaN is done: it must show, not run on
                if last or bool(done.all()):
                    break
                before, energy = energy, norm(z)
                age = torch.where(expand(energy > slack * before, age), 0, age)
        if self.rtol > 0 and not bool(done.all()):
            self._warn(float((error / moved)[~done].max()))
        return _Point(found[0] * unit, found[1] * unit.unsqueeze(1), t * unit.unsqueeze(1))

    def _distance(self, z: Tensor, q: Tensor, t: Tensor) -> Tensor:
        """Upper bound of |z - z*|, (B,): sqrt(2 gap), as the primal objective is 1-strongly convex."""
        slope = self.gradient(z)
        gap = sample_sum(t * self._size(slope) - self._dot(slope, q))  # group by group: no cancellation of totals
        return (2 * gap.clamp_min(0)).sqrt()

    def _warn(self, reached: float) -> None:
        warnings.warn(
            f"TotalVariation.prox reached accuracy {reached:.1e} > rtol = {self.rtol:g} "
            f"in {self.iterations} iterations; raise iterations or loosen rtol",
            stacklevel=4,
        )

    def _pull_back(self, point: _Point, g: Tensor) -> tuple[Tensor, Tensor]:
        """The prox's symmetric Jacobian times g, and <g, dz/dt>, (B,).

        At the solution q = P(v), v = q + tau grad z. Groups with |v| <= t keep grad z = 0; in the others q = t n with
        n = v / |v|. Hence dz = g - grad^H u, where u has no part along n and solves, on such fields,
        (kappa + grad grad^H) u = grad g with kappa = |grad z| / t in the second kind of groups and 0 in the first;
        and dz/dt = -J grad^H n over the second kind. (At t = 0 there is only a one-sided derivative in t; this is it
        unless x has flat patches that would move at once.)
        """
        gradient, t = self.gradient, point.t
        tau = gradient.norm_bound**-2
        v = torch.add(point.q, gradient(point.z), alpha=tau)
        size = self._size(v)
        moving = size > t
        normal = torch.where(moving, v / torch.where(moving, size, 1), 0)
        free = ~moving | (t > 0)
        kappa = torch.where(moving & free, (size - t) / (tau * torch.where(t > 0, t, 1)), 0)

        def tangential(u: Tensor) -> Tensor:
            return torch.where(free, u - normal * self._dot(normal, u), 0)

        def system(u: Tensor) -> Tensor:
            return kappa * u + tangential(gradient(gradient.adjoint(u)))

        eps = torch.finfo(t.dtype).eps
        u = cg(
            system,
            tangential(gradient(g)),
            rtol=max(self.rtol / 100, 10 * eps),
            iterations=self.iterations,
            preconditioner=lambda r: r / (kappa + 1 / (2 * tau)),
        ).x
        to_x = g - gradient.adjoint(u)
        return to_x, -sample_sum(self._dot(normal, gradient(to_x)))


def _keep(done: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """What was found for samples that are done, the new for the others."""
    return torch.where(expand(done, new), old, new)


def _visible_error(x: Tensor, t: Tensor, operator_norm: float) -> Tensor:
    """The least |z - z*| that a duality gap of t |L z|_1 + |z - x|^2 / 2 shows through its rounding, (B,).

    Rounding leaves a gap of about eps t |L| |x|_1, and the error is bounded by the root of twice the gap. It is not
    taken for more than sqrt(eps) |x|.

    Args:
        x: what is denoised, (B, *signal).
        t: step * weight, B numbers.
        operator_norm: |L|.
    """
    eps = torch.finfo(t.dtype).eps
    return torch.minimum(eps**0.5 * norm(x), (2 * eps * operator_norm * t.reshape(-1) * sample_sum(x.abs())).sqrt())
