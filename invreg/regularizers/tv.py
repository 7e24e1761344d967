"""Total variation, isotropic or anisotropic, of real and complex images and volumes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_count, require_positive
from invreg.interfaces import LinearOperator, Regularizer
from invreg.linalg import cg, expand, inner, norm
from invreg.operators.gradient import Gradient
from invreg.regularizers.norms import (
    GroupL1,
    ImplicitProx,
    group_norm,
    needs_graph,
    sample_sum,
    scaled_step,
    threshold_tensor,
)


class TotalVariation(Regularizer[Tensor]):
    """weight * sum over pixels of |grad x|: forward differences, none across the border.

    Isotropic: at each pixel the Euclidean norm over directions and channels. Anisotropic: over channels only, summed
    over directions. Complex entries count with their modulus, so that TV(exp(i phi) x) = TV(x).

    `prox` minimises the dual by fast projected gradient with restart. A sample stops at the first check where the
    duality gap guarantees |z - z*| <= rtol |x|; it depends on x and step alone. Gradients pass through `prox`
    implicitly (once), by one solve with conjugate gradients.

    Args:
        weight: >= 0, a number or a 0-d tensor, which may require a gradient; per pixel or per mm as voxel_size says.
        dim: number of spatial axes, 1 to 3.
        isotropic: couple the directions.
        channel_dim: axis of (B, ...) that holds channels, which share their edges; None if there is none.
        voxel_size: pixel pitch, as for `Gradient`.
        rtol: accuracy of `prox`, relative to |x|; 0 runs all iterations without looking, and compiles.
        iterations: limit of `prox`; it warns where that was not enough for rtol.
        check_every: iterations of `prox` between two looks at the gap.

    Raises:
        TypeError, ValueError: arguments of the wrong kind or out of range; (when used) x has other axes.

    Source: Rudin, Osher and Fatemi 1992; prox: Beck and Teboulle 2009, "Fast gradient-based algorithms for constrained
    total variation image denoising", without their constraint; momentum of Chambolle and Dossal 2015 with a = 3;
    restart where the dual grew between two checks, after O'Donoghue and Candes 2015.
    """

    def __init__(
        self,
        weight: float | Tensor = 1.0,
        dim: int = 2,
        *,
        isotropic: bool = True,
        channel_dim: int | None = None,
        voxel_size: float | tuple[float, ...] = 1.0,
        rtol: float = 1e-3,
        iterations: int = 1000,
        check_every: int = 10,
    ) -> None:
        super().__init__(weight)
        require_positive("rtol", rtol, zero_allowed=True)
        require_count("iterations", iterations)
        require_count("check_every", check_every)
        self.gradient = Gradient(dim, channel_dim, voxel_size)
        channels = () if channel_dim is None else (channel_dim + 1 if channel_dim > 0 else channel_dim,)
        self.axis = ((1, *channels) if isotropic else channels) or None
        self.rtol, self.iterations, self.check_every = rtol, iterations, check_every

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * sample_sum(self._size(self.gradient(x)))

    @property
    def terms(self) -> tuple[tuple[LinearOperator | None, L1 | GroupL1], ...]:
        """weight * |.|_(2,1) of the gradient."""
        penalty = L1(self.weight) if self.axis is None else GroupL1(self.weight, self.axis)
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
        return field.abs() if self.axis is None else group_norm(field, self.axis)

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Real inner product in every group."""
        product = a.real * b.real + a.imag * b.imag if a.is_complex() else a * b
        return product if self.axis is None else product.sum(self.axis, keepdim=True)

    def _denoise(self, x: Tensor, t: Tensor) -> _Point:
        """argmin_z t TV(z) + |z - x|^2 / 2 through its dual: max over |q| <= t of -|x - grad^H q|^2 / 2."""
        size = norm(x)
        unit = torch.exp2(torch.frexp(size).exponent)  # a power of two: squares neither under- nor overflow, exactly
        x, size = x / expand(unit, x), size / unit
        t = (t / expand(unit, x)).unsqueeze(1)
        floor = t.clamp_min(torch.finfo(t.dtype).tiny)
        tau = self.gradient.norm_bound**-2
        q = ahead = self.gradient(torch.zeros_like(x))
        z, best, error = x, q, torch.full_like(size, torch.inf)
        age, energy, done = torch.zeros_like(t + size.reshape(t.shape[0] if False else -1, *(1,) * x.ndim)), error, error < 0
        for k in range(1, self.iterations + 1):
            ahead = torch.add(ahead, self.gradient(x - self.gradient.adjoint(ahead)), alpha=tau)
            new = ahead * (t / torch.maximum(self._size(ahead), floor))
            age = age + 1
            ahead = new + (age - 1) / (age + 3) * (new - q)
            q = new
            if k % self.check_every == 0 and self.rtol > 0:
                now = x - self.gradient.adjoint(q)
