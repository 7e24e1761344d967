"""Simplified Newton iterations for the stages of an implicit step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .linear import Inverse
from .method import real_dtype

ITERATIONS = 10  # of a stage, at most
ROUNDING = 100  # resolutions of the dtype: displacements that stagnate below are rounding errors
SLOW = 0.3  # contraction above which displacements count as stagnating
RATE_FLOOR = 0.02  # least contraction with which the first displacement of a stage is judged
DIVERGING = 2.0  # a displacement that is as many times longer than the one before ends the iterations

Residual = Callable[[Tensor], Tensor]
Linearize = Callable[[Tensor], Inverse]  # from the argument of a stage


class Newton:
    """Solves the stages of one step, all with the same approximate inverse; not differentiable.

    An iteration is judged by its displacement d: once the error that is left, |d| r / (1 - r) with the contraction r
    from one displacement to the next, is below `tolerance` relative to every component of y, the stage is done.
    Displacements that are rounding errors of the largest component and shrink no more also do. The contraction is
    carried from stage to stage. A stage that at this rate would not be done in 10 iterations gets a new Jacobian where
    it is, which the later stages keep. Each sample of per-sample steps is judged, and stops, on its own.

    Args:
        inverse: of I - gamma dt J at the start.
        y: state at the start of the step.
        samples: whether the samples step on their own.
        gamma: the weight of z in the argument of its stage.
        tolerance: as above.
    """

    def __init__(self, inverse: Inverse, y: Tensor, samples: bool, gamma: float, tolerance: float) -> None:
        self.inverse, self.samples, self.gamma = inverse, samples, gamma
        self.size = y.abs()
        limits = torch.finfo(real_dtype(y))
        self.tiny, self.rounding = limits.tiny, ROUNDING * limits.eps
        self.tolerance = max(tolerance, 4 * limits.eps)
        blocks = y.shape[:1] if samples else ()
        self.contraction = torch.ones(blocks, dtype=self.size.dtype, device=y.device)
        self.failed = torch.zeros(blocks, dtype=torch.bool, device=y.device)
        self.hopeless = False

    def solve(self, residual: Residual, linearize: Linearize, known: Tensor, guess: Tensor) -> Tensor:
        """z with residual(z) = dt f(known + gamma z) - z = 0; NaN in samples where this or an earlier stage failed.

        One value is read from the device for each iteration.
        """
        if self.hopeless:
            return torch.full_like(guess, torch.nan)
        z, active, before = guess, ~self.failed, self.contraction
        renewed = recent = torch.zeros_like(active)
        for k in range(ITERATIONS):
            shift = self.inverse.solve(residual(z))
            z = torch.where(self._spread(active, z), z + shift, z)
            moved, coarse = self._displacement(shift, known, z)
            if k:
                rate = moved / before.clamp_min(self.tiny)
                self.contraction = torch.where(active, rate.clamp_max(DIVERGING), self.contraction)
            done = self._done(moved, coarse, k)
            slow = self._slow(moved, k)
            lost = ~moved.isfinite() | (slow & renewed & ~recent & (self.contraction >= DIVERGING))
            lost = lost | torch.full_like(lost, k == ITERATIONS - 1)
            self.failed = self.failed | (active & lost & ~done)
            active = active & ~done & ~lost
            recent = slow & active & ~recent  # the iteration after tells nothing of the new rate
            going, renew, self.hopeless = torch.stack([active.any(), recent.any(), self.failed.all()]).tolist()
            if not going:
                break
            if renew:
                fresh = linearize(torch.add(known, z, alpha=self.gamma))
                self.inverse = _Mixed(self._spread(recent, z), fresh, self.inverse) if self.samples else fresh
                renewed = renewed | recent
            before = moved
        return torch.where(self._spread(self.failed, z), torch.nan, z)

    def _done(self, moved: Tensor, coarse: Tensor, k: int) -> Tensor:
        """Whether the error after a displacement is small enough."""
        rate = self.contraction if k else self.contraction.clamp_min(RATE_FLOOR)
        left = torch.where(rate < 1, moved * rate / (1 - rate).clamp_min(self.tiny), torch.inf)
        done = (left <= self.tolerance) | (moved == 0)
        return done | ((rate > SLOW) & (coarse <= self.rounding)) if k else done

    def _slow(self, moved: Tensor, k: int) -> Tensor:
        """Whether the iterations that are left would not do."""
        if not k:
            return torch.zeros_like(self.failed)
        return ~(moved * self.contraction ** (ITERATIONS - 1 - k) <= self.tolerance)

    def _displacement(self, shift: Tensor, known: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The largest displacement relative to its component, and relative to the largest component."""
        size = torch.maximum(self.size, torch.add(known, z, alpha=self.gamma).abs())
        moved = shift.abs() * self.gamma
        top = self._largest(size).clamp_min(self.tiny)
        return self._largest(moved / size.clamp_min(self.tiny)), self._largest(moved) / top

    def _largest(self, x: Tensor) -> Tensor:
        if not x.numel():
            return x.new_zeros(x.shape[:1] if self.samples else ())
        return x.reshape(x.shape[0], -1).amax(1) if self.samples else x.amax()

    def _spread(self, x: Tensor, y: Tensor) -> Tensor:
        return x.reshape(-1, *([1] * (y.ndim - 1))) if self.samples else x


class _Mixed(Inverse):
    """One inverse for some samples, another for the rest."""

    def __init__(self, mask: Tensor, first: Inverse, second: Inverse) -> None:
        self.mask, self.first, self.second = mask, first, second

    def solve(self, b: Tensor) -> Tensor:
        return torch.where(self.mask, self.first.solve(b), self.second.solve(b))
