"""No measurement at all: what remains of a problem then is the prior."""

from __future__ import annotations

import torch
from torch import Tensor

from invreg.interfaces import LinearOperator
from invreg.operators.fourier import DiagonalSpectrum


class Unmeasured(LinearOperator):
    """A = 0 on the grid of the signal, of which nothing is sampled: samplers then draw from the prior itself.

    `Problem(Unmeasured((64, 64)), torch.zeros(8, 64, 64))` asks for eight real images; y tells their dtype and device.

    Args:
        signal_shape: of one sample.
    """

    def __init__(self, signal_shape: tuple[int, ...]) -> None:
        super().__init__(signal_shape, signal_shape)
        self.register_buffer("mask", torch.zeros((1,) * (1 + len(signal_shape)), dtype=torch.bool))

    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        return torch.where(self.mask, x, 0)  # not zeros_like: it keeps the graph that methods such as DPS ask for

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_measurement(y)
        return torch.where(self.mask, y, 0)

    def normal(self, x: Tensor) -> Tensor:
        return self(x)

    def solve_normal(self, b: Tensor, shift: Tensor) -> Tensor:
        """(A^H A + shift)^-1 b = b / shift."""
        self.check_signal(b)
        return b / shift

    def spectrum(self) -> DiagonalSpectrum:
        """All singular values are 0."""
        return DiagonalSpectrum(self.mask.to(torch.get_default_dtype()))

    def sampled(self) -> Tensor:
        return self.mask
