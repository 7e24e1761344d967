"""Convolution with a point spread function, circular or valid, and two such functions."""

import math
from collections.abc import Sequence
from types import EllipsisType

import torch
from torch import Tensor

from invreg._check import require_batch, require_finite, require_positive, require_same_precision, require_tensor
from invreg.interfaces import LinearOperator
from invreg.operators.fourier import CUTOFF, DiagonalSpectrum


class _Convolution:
    """What circular and valid blur share: the kernel's layout and products with its transfer function."""

    def __init__(self, kernel: Tensor, signal_shape: tuple[int, ...], per_sample: bool) -> None:
        require_tensor("kernel", kernel)
        if not (kernel.is_floating_point() or kernel.is_complex()):
            raise TypeError(f"kernel must be floating point or complex, got {kernel.dtype}; use kernel.float()")
        self.dim = kernel.ndim - per_sample
        if not 1 <= self.dim <= len(signal_shape):
            raise ValueError(
                f"kernel must have 1 to {len(signal_shape)} axes for signals {signal_shape}"
                f"{' behind the batch axis' if per_sample else ''}, got {tuple(kernel.shape)}"
            )
        self.size = tuple(kernel.shape[kernel.ndim - self.dim :])
        self.grid = tuple(signal_shape[len(signal_shape) - self.dim :])
        if any(k > n or k == 0 for k, n in zip(self.size, self.grid, strict=True)):
            raise ValueError(f"kernel must be no larger than the image {self.grid}, got {self.size}; crop it")
        require_finite("kernel", kernel)
        self.leading = len(signal_shape) - self.dim

    def transfer(self, kernel: Tensor) -> Tensor:
        """The Fourier transform of the kernel with its centre moved to the origin, (B or 1, 1, ..., *grid)."""
        axes = tuple(range(-self.dim, 0))
        pad = [p for k, n in zip(reversed(self.size), reversed(self.grid), strict=True) for p in (0, n - k)]
        padded = torch.nn.functional.pad(kernel, pad)
        padded = padded.roll([-((k - 1) // 2) for k in self.size], axes)
        batch = kernel.shape[: kernel.ndim - self.dim] or (1,)
        transfer: Tensor = torch.fft.fftn(padded, dim=axes)
        return transfer.reshape(*batch, *(1,) * self.leading, *self.grid)


def _check(name: str, value: Tensor, kernel: Tensor, transfer: Tensor) -> None:
    require_same_precision(name, value, "kernel", kernel)
    require_batch(name, value, transfer.shape[0], "kernel")


def _filter(x: Tensor, transfer: Tensor, dim: int, real: bool) -> Tensor:
    """Multiply x by `transfer` in the Fourier domain of its last `dim` axes; half of it is enough for real signals."""
    axes = tuple(range(-dim, 0))
    if real and not x.is_complex():
        half = transfer[..., : transfer.shape[-1] // 2 + 1]
        filtered: Tensor = torch.fft.irfftn(half * torch.fft.rfftn(x, dim=axes), s=x.shape[-dim:], dim=axes)
    else:
        filtered = torch.fft.ifftn(transfer * torch.fft.fftn(x, dim=axes), dim=axes)
    return filtered


class Blur(LinearOperator):
    """Circular convolution over the last axes: y[i] = sum_j kernel[j] x[i - (j - c) mod N], c = (k - 1) // 2.

    A true convolution (the kernel is mirrored against x); entry c of a kernel of size k is its centre.

    Args:
        kernel: real or complex, (k_1, ..., k_dim), or (B, k_1, ..., k_dim) if `per_sample`. A gradient reaches it
            through this operator; after changing its values make a new operator.
        signal_shape: of one sample, (..., n_1, ..., n_dim). The last dim axes are blurred, dim being the kernel's
            number of axes; axes in front of them (channels, slices) are blurred each by itself.
        per_sample: whether the kernel's first axis is the batch.

    A real kernel takes real and complex signals, a complex kernel takes complex ones. (A^H A + shift) x = b is solved
    in closed form.

    Raises:
        TypeError: kernel is not a floating point or complex tensor, or of another precision than the signal.
        ValueError: kernel has too many axes, is larger than the image, or holds NaN or Inf.
    """

    kernel: Tensor
    transfer: Tensor

    def __init__(self, kernel: Tensor, signal_shape: tuple[int, ...], *, per_sample: bool = False) -> None:
        layout = _Convolution(kernel, tuple(signal_shape), per_sample)
        super().__init__(signal_shape, signal_shape)
        self.dim = layout.dim
        self.register_buffer("kernel", kernel)
        self.register_buffer("transfer", layout.transfer(kernel))

    def _multiply(self, name: str, x: Tensor, transfer: Tensor) -> Tensor:
        _check(name, x, self.kernel, self.transfer)
        return _filter(x, transfer, self.dim, not self.kernel.is_complex())

    def _power(self) -> Tensor:
        return self.transfer.real.square() + self.transfer.imag.square()

    def forward(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        return self._multiply("x", x, self.transfer)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_measurement(y)
        return self._multiply("y", y, self.transfer.conj())

    def normal(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        return self._multiply("x", x, self._power())

    def solve_normal(self, b: Tensor, shift: Tensor) -> Tensor:
        """(A^H A + shift)^-1 b: division by |transfer|^2 + shift in the Fourier domain."""
        self.check_signal(b)
        return self._multiply("b", b, 1 / (self._power() + shift))

    def spectrum(self) -> DiagonalSpectrum:
        """The singular values are the moduli of the transfer function, the singular vectors complex exponentials."""
        axes = tuple(range(-self.dim, 0))
        transfer = torch.fft.fftshift(self.transfer, axes)
        size = transfer.abs()
        kept = size > CUTOFF * size.amax(axes, keepdim=True)
        singular = torch.where(kept, size, 0)
        return DiagonalSpectrum(singular, torch.where(kept, transfer, 1) / torch.where(kept, size, 1), self.dim)


class ValidBlur(LinearOperator):
    """Convolution over the last axes, kept where the kernel lies within the image: nothing is assumed outside it.

    y[i] = sum_j kernel[j] x[i + k - 1 - j], i < n - k + 1, as `scipy.signal.convolve(x, kernel, "valid")`. The adjoint
    is the full correlation.

    Args:
        kernel, signal_shape, per_sample: as in `Blur`; the measurement is (..., n_1 - k_1 + 1, ...).

    Raises:
        TypeError, ValueError: as in `Blur`.
    """

    kernel: Tensor
    transfer: Tensor

    def __init__(self, kernel: Tensor, signal_shape: tuple[int, ...], *, per_sample: bool = False) -> None:
        signal_shape = tuple(signal_shape)
        layout = _Convolution(kernel, signal_shape, per_sample)
        left = signal_shape[: layout.leading]
        valid = tuple(n - k + 1 for k, n in zip(layout.size, layout.grid, strict=True))
        super().__init__(signal_shape, (*left, *valid))
        self.dim = layout.dim
        # the circular convolution puts its first entry free of wrapping at k - 1 - c, c = (k - 1) // 2
        first = [k - 1 - (k - 1) // 2 for k in layout.size]
        self._window: tuple[EllipsisType | slice, ...] = (
            ...,
            *(slice(f, f + v) for f, v in zip(first, valid, strict=True)),
        )
        ends = zip(reversed(first), reversed(layout.size), strict=True)
        self._padding = [p for f, k in ends for p in (f, k - 1 - f)]
        self.register_buffer("kernel", kernel)
        self.register_buffer("transfer", layout.transfer(kernel))

    def forward(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        _check("x", x, self.kernel, self.transfer)
        return _filter(x, self.transfer, self.dim, not self.kernel.is_complex())[self._window]

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_measurement(y)
        _check("y", y, self.kernel, self.transfer)
        padded = torch.nn.functional.pad(y, self._padding)
        return _filter(padded, self.transfer.conj(), self.dim, not self.kernel.is_complex())


def gaussian_kernel(
    sigma: float | Sequence[float],
    *,
    dim: int = 2,
    spacing: float | Sequence[float] = 1.0,
    truncate: float = 4.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A Gaussian point spread function, sampled at pixel centres, of sum 1 and odd size.

    Args:
        sigma: standard deviation, > 0, mm; one for all axes or one for each, in the order [z,] y, x.
        dim: number of axes.
        spacing: pixel size, > 0, mm; one or one for each axis. The default 1 makes sigma a number of pixels.
        truncate: half width in standard deviations, rounded up to whole pixels.
        dtype: of the result.

    Returns:
        The kernel, dim axes of size 2 ceil(truncate sigma / spacing) + 1.

    Raises:
        ValueError: sigma, spacing or truncate is not > 0, or there is not one for each axis.
    """
    require_positive("truncate", truncate)
    kernel = torch.ones((), dtype=torch.float64)
    for wide, pixel in zip(_each("sigma", sigma, dim), _each("spacing", spacing, dim), strict=True):
        half = math.ceil(truncate * wide / pixel)
        position = torch.arange(-half, half + 1, dtype=torch.float64) * (pixel / wide)
        profile = torch.exp(-position.square() / 2)
        kernel = kernel[..., None] * (profile / profile.sum())
    return kernel.to(dtype)


def _each(name: str, value: float | Sequence[float], dim: int) -> tuple[float, ...]:
    """One number for each of `dim` axes, all > 0."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * dim
    if len(values) != dim:
        raise ValueError(f"{name} must be one number or one for each of {dim} axes, got {len(values)}")
    for one in values:
        require_positive(name, one)
    return values


def motion_kernel(length: float, angle: float, *, spacing: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The point spread function of straight uniform motion during the exposure: a line segment about the centre.

    Each entry is the share of the segment that lies within its pixel, exactly, so the sum is 1 at any angle.

    Args:
        length: of the motion, > 0, mm.
        angle: of the motion, radians, from the x axis (along a row) towards the y axis (down the rows).
        spacing: pixel size, > 0, mm. The default 1 makes length a number of pixels.
        dtype: of the result.

    Returns:
        The kernel, (k, k), k odd, just large enough.

    Raises:
        ValueError: length or spacing is not > 0.
    """
    require_positive("length", length)
    require_positive("spacing", spacing)
    reach = length / spacing / 2
    run = (math.sin(angle), math.cos(angle))
    half = max(math.ceil(reach * max(abs(run[0]), abs(run[1])) - 0.5 - 1e-9), 0)
    index = torch.arange(-half, half + 1, dtype=torch.float64)
    enter = torch.full((len(index), len(index)), -reach, dtype=torch.float64)
    leave = -enter
    for axis, speed in enumerate(run):  # the part of the segment between each pixel's two sides, axis by axis
        centre = index[:, None] if axis == 0 else index[None, :]
        if abs(speed) < 1e-12:
            inside = centre.abs() < 0.5
            leave = torch.where(inside, leave, enter)
            continue
        sides = torch.stack([(centre - 0.5) / speed, (centre + 0.5) / speed])
        enter = torch.maximum(enter, sides.amin(0))
        leave = torch.minimum(leave, sides.amax(0))
    share = (leave - enter).clamp_min(0)
    return (share / share.sum()).to(dtype)
