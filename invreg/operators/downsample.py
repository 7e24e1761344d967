"""Coarser detectors: an anti-aliasing blur, then every f-th pixel."""

import math
from types import EllipsisType

import torch
from torch import Tensor

from invreg._check import require_count
from invreg.interfaces import LinearOperator
from invreg.operators.blur import Blur


class Downsample(LinearOperator):
    """Circular blur, then every f-th entry, i = f // 2, f // 2 + f, ...: y = S K x.

    Args:
        signal_shape: of one sample, (..., n_1, ..., n_dim).
        factor: f, one or one for each of the last axes; must divide them. One number means all axes that the kernel
            has, or all of the signal's without a kernel: write (2, 2) so that channels or slices stay.
        kernel: as in `Blur`; default the mean over a block of f entries, as of a detector with larger pixels: then
            y is the mean of each block, in torch's default precision (use `.to(dtype)`).

    (A^H A + shift) x = b is solved in closed form: A A^H is a circular convolution on the coarse grid whose
    transfer function is the mean of |K|^2 over aliased frequencies.

    Raises:
        TypeError: factor is not an int or a tuple of ints.
        ValueError: factor does not divide the signal, or the kernel does not fit it.

    Source: Zhao et al. 2016, "Fast single image super-resolution using a new analytical solution for l2-l2 problems",
    here by the Woodbury identity.
    """

    def __init__(
        self, signal_shape: tuple[int, ...], factor: int | tuple[int, ...], kernel: Tensor | None = None
    ) -> None:
        signal_shape = tuple(signal_shape)
        if not isinstance(factor, tuple):
            factor = (factor,) * (len(signal_shape) if kernel is None else kernel.ndim)
        for one in factor:
            require_count("factor", one)
        if kernel is not None and kernel.ndim != len(factor):
            raise ValueError(f"kernel must have one axis for each of {len(factor)} factors, got {tuple(kernel.shape)}")
        grid = signal_shape[len(signal_shape) - len(factor) :]
        if len(factor) > len(signal_shape) or any(n % f for n, f in zip(grid, factor, strict=True)):
            raise ValueError(f"factor must divide the last axes of the signal {signal_shape}, got {factor}")
        if kernel is None:
            kernel = torch.full(factor, 1 / math.prod(factor))
        coarse = tuple(n // f for n, f in zip(grid, factor, strict=True))
        super().__init__(signal_shape, (*signal_shape[: len(signal_shape) - len(factor)], *coarse))
        self.factor = factor
        self.blur = Blur(kernel, signal_shape)
        self._kept: tuple[EllipsisType | slice, ...] = (..., *(slice(f // 2, None, f) for f in factor))

    def forward(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        return self.blur(x)[self._kept]

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_measurement(y)
        assert self.signal_shape is not None
        fine = y.new_zeros(y.shape[0], *self.signal_shape)
        fine[self._kept] = y
        return self.blur.adjoint(fine)

    def solve_normal(self, b: Tensor, shift: Tensor) -> Tensor:
        """(A^H A + shift)^-1 b = (b - A^H (A A^H + shift)^-1 A b) / shift."""
        axes = tuple(range(-len(self.factor), 0))
        coarse = torch.fft.fftn(self(b), dim=axes) / (self._aliased_power() + shift)
        solved = torch.fft.ifftn(coarse, dim=axes)
        return (b - self.adjoint(solved if b.is_complex() else solved.real)) / shift

    def _aliased_power(self) -> Tensor:
        """The transfer function of A A^H on the coarse grid: |K|^2 averaged over the frequencies that fold together."""
        transfer = self.blur.transfer
        power = transfer.real.square() + transfer.imag.square()
        for axis, f in enumerate(self.factor, start=power.ndim - len(self.factor)):
            folded = (*power.shape[:axis], f, power.shape[axis] // f, *power.shape[axis + 1 :])
            power = power.reshape(folded).mean(axis)
        return power
