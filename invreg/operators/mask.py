"""Inpainting: only some entries are seen, the others read zero."""

import torch
from torch import Tensor

from invreg._check import require_batch, require_tensor
from invreg.interfaces import LinearOperator
from invreg.operators.fourier import DiagonalSpectrum


class Mask(LinearOperator):
    """y = x where the mask is True and 0 elsewhere, on the full grid; a projection, A^H A = A.

    Args:
        mask: bool, broadcasts to (B, *signal_shape); a leading axis of size B gives each sample its own.
        signal_shape: of one sample; default the mask's own shape. `Mask(lines, (coils, ny, nx))` with lines
            (ny, nx) masks every coil alike.

    Unseen entries of x are not read: a NaN there does not spread.

    Raises:
        TypeError: mask is not a bool tensor.
        ValueError: mask does not broadcast to (B, *signal_shape), or sees nothing of some sample.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, signal_shape: tuple[int, ...] | None = None) -> None:
        require_tensor("mask", mask)
        if mask.dtype != torch.bool:
            raise TypeError(
                f"mask must be bool, got {mask.dtype}; use mask != 0, and Gaussian(sigma=tensor) for weights"
            )
        shape = tuple(mask.shape) if signal_shape is None else tuple(signal_shape)
        trailing = tuple(mask.shape[-len(shape) :]) if shape else ()
        fits = mask.ndim <= len(shape) + 1 and all(
            m in (1, n) for m, n in zip(reversed(trailing), reversed(shape), strict=False)
        )
        if not fits:
            raise ValueError(f"mask must broadcast to (B, *signal_shape) = (B, *{shape}), got {tuple(mask.shape)}")
        per_sample = mask.flatten(1) if mask.ndim == len(shape) + 1 else mask.reshape(1, -1)
        if not bool(per_sample.any(1).all()):
            raise ValueError("mask must see at least one entry of every sample, got one that is False everywhere")
        super().__init__(shape, shape)
        self.register_buffer("mask", mask.clone())

    def forward(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        self._check_batch("x", x)
        return torch.where(self.mask, x, 0)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_measurement(y)
        self._check_batch("y", y)
        return torch.where(self.mask, y, 0)

    def normal(self, x: Tensor) -> Tensor:
        return self(x)

    def solve_normal(self, b: Tensor, shift: Tensor) -> Tensor:
        """(A^H A + shift)^-1 b = b / (mask + shift)."""
        self.check_signal(b)
        self._check_batch("b", b)
        return b / (self.mask + shift)

    def spectrum(self) -> DiagonalSpectrum:
        """The singular values are 1 and 0, the singular vectors unit vectors."""
        assert self.signal_shape is not None
        mask = self.mask if self.mask.ndim > len(self.signal_shape) else self.mask[None]
        return DiagonalSpectrum(mask.to(torch.get_default_dtype()))

    def sampled(self) -> Tensor:
        return self.mask

    def _check_batch(self, name: str, value: Tensor) -> None:
        if self.mask.ndim == value.ndim:
            require_batch(name, value, self.mask.shape[0], "mask")
