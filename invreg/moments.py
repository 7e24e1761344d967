"""Mean and standard deviation of samples that come one batch at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from invreg._check import require_tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Pixel-wise mean and spread of draws that are seen once: `moments = moments.add(draws)`, from `Moments()` on.

    Nothing is squared before the mean is taken off, so that a small spread about a large mean keeps its digits.
    The variance of a complex pixel is E|x - mean|^2, the sum of those of its two parts. Half precision is summed in
    single precision.

    Args:
        count: how many draws were seen.

    Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    count: int = 0
    _mean: Tensor | None = field(default=None, repr=False)
    _squares: Tensor | None = field(default=None, repr=False)

    @torch.no_grad()
    def add(self, draws: Tensor) -> Moments:
        """With further draws, (N, *shape), seen; one draw for each of B problems is x[None], (1, B, *signal).

        Raises:
            TypeError: draws are of integers.
            ValueError: draws have another shape than those before.
        """
        require_tensor("draws", draws)
        if not (draws.is_floating_point() or draws.is_complex()):
            raise TypeError(f"draws must be floating point or complex, got {draws.dtype}; use draws.float()")
        if draws.ndim < 1:
            raise ValueError("draws must be (N, *shape), got a number; use x[None]")
        if len(draws) == 0:
            return self
        draws = draws.float() if draws.dtype in (torch.float16, torch.bfloat16) else draws
        mean = draws.mean(0)
        return self.merge(Moments(len(draws), mean, _square(draws - mean).sum(0)))

    @torch.no_grad()
    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of draws together.

        Raises:
            ValueError: their draws have different shapes.
        """
        if self._mean is None or self._squares is None:
            return other
        if other._mean is None or other._squares is None:
            return self
        if self._mean.shape != other._mean.shape:
            raise ValueError(f"draws must be (N, *{tuple(self._mean.shape)}), got (N, *{tuple(other._mean.shape)})")
        count = self.count + other.count
        gap = other._mean - self._mean
        mean = self._mean + gap * (other.count / count)
        squares = self._squares + other._squares + _square(gap) * (self.count * other.count / count)
        return Moments(count, mean, squares)

    @property
    def mean(self) -> Tensor:
        """Of the draws, (*shape); ValueError before the first."""
        if self._mean is None:
            raise ValueError("mean needs a draw, got none yet; add some first")
        return self._mean

    @property
    def variance(self) -> Tensor:
        """Unbiased, real, (*shape); ValueError before the second draw."""
        if self._squares is None or self.count < 2:
            raise ValueError(f"a spread needs 2 draws or more, got {self.count}; add some first")
        return self._squares / (self.count - 1)

    @property
    def std(self) -> Tensor:
        """The root of `variance`."""
        return self.variance.sqrt()


def _square(x: Tensor) -> Tensor:
    return x.real.square() + x.imag.square() if x.is_complex() else x.square()
