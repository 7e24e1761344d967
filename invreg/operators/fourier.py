"""Centred orthonormal Fourier transforms, and single-coil Cartesian MRI made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_batch, require_complex, require_tensor
from invreg.interfaces import LinearOperator

CUTOFF = 1e-5
"""Singular values below this fraction of the largest count as 0."""


def centred_fft(x: Tensor, dim: int = 2) -> Tensor:
    """Orthonormal Fourier transform over the last `dim` axes with the origin of both sides at index N // 2.

    y[k] = prod(N)^(-1/2) sum_n x[n] exp(-2 pi i (k - N // 2) (n - N // 2) / N), for N odd or even.

    Args:
        x: (..., [z,] [y,] x), real or complex; any axes may stand in front.
        dim: 1, 2 or 3.

    Returns:
        Complex, shaped as x.
    """
    axes = _axes(dim)
    y: Tensor = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(x, axes), dim=axes, norm="ortho"), axes)
    return y


def centred_ifft(y: Tensor, dim: int = 2) -> Tensor:
    """The inverse and adjoint of `centred_fft`, (..., [z,] [y,] x) complex."""
    axes = _axes(dim)
    x: Tensor = torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(y, axes), dim=axes, norm="ortho"), axes)
    return x


def _axes(dim: int) -> tuple[int, ...]:
    if isinstance(dim, bool) or dim not in (1, 2, 3):
        raise ValueError(f"dim must be 1, 2 or 3, the number of transformed axes, got {dim!r}")
    return tuple(range(-dim, 0))


def shift_phases(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """P such that the centred transform is P * fftn(P * x): both shifts without moving an entry, for any N.

    (k - c)(n - c) = k n - c k - c n + c^2 with c = N // 2, so P[n] = prod over axes of exp(i pi (2 c n - c^2) / N).

    Args:
        shape: of the transformed axes.
        dtype, device: of the result, a complex dtype.

    Returns:
        Phases of modulus 1, `shape`.
    """
    phases = torch.ones((), dtype=torch.complex128, device=device)
    for axis, n in enumerate(shape):
        c = n // 2
        turns = (2 * c * torch.arange(n, device=device) - c * c).remainder(2 * n)  # integers, so nothing is lost
        angle = turns.double() * (math.pi / n)
        along = [1] * len(shape)
        along[axis] = n
        phases = phases * torch.polar(torch.ones_like(angle), angle).reshape(along)
    return phases.to(dtype)


def sampling_mask(mask: Tensor, spatial: tuple[int, ...], leading: tuple[str, ...]) -> Tensor:
    """Check a k-space mask and shrink every axis along which it is constant to size 1.

    Args:
        mask: bool, (*spatial) or (B or 1, 1, ..., *spatial) with one axis for each name in `leading`; axes of size 1
            broadcast.
        spatial: the sizes of the k-space grid.
        leading: names of the axes in front of the spatial ones; only the first, the batch, may differ from 1.

    Returns:
        Bool, (B or 1, 1, ..., *spatial or 1).

    Raises:
        TypeError: mask is not a bool tensor.
        ValueError: mask has another shape, or samples nothing in some item of the batch.
    """
    require_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}; use mask != 0")
    dim = len(spatial)
    full = mask.reshape(*(1,) * len(leading), *mask.shape) if mask.ndim == dim else mask
    fits = full.ndim == dim + len(leading) and all(s == 1 for s in full.shape[1 : len(leading)])
    if not fits or any(m not in (1, n) for m, n in zip(full.shape[-dim:], spatial, strict=True)):
        sizes = ", ".join(map(str, spatial))
        raise ValueError(f"mask must be ({sizes}) or ({', '.join((*leading, sizes))}), got {tuple(mask.shape)}")
    if not bool(full.flatten(1).any(1).all()):
        raise ValueError("mask samples nothing in at least one item of the batch; at least one entry must be True")
    for axis in (0, *range(-dim, 0)):
        first = full.narrow(axis, 0, 1)
        if full.shape[axis] > 1 and bool((full == first).all()):
            full = first
    return full.clone()


def varying_axes(mask: Tensor, dim: int) -> tuple[int, ...]:
    """Which of the last `dim` axes a mask from `sampling_mask` varies along.

    Along the others F^H M F is the identity, so a normal operator need not transform them.
    """
    return tuple(axis for axis in range(-dim, 0) if mask.shape[axis] > 1)


class Fourier(LinearOperator):
    """The centred orthonormal Fourier transform over the last `dim` axes; axes in front of them are left alone.

    Args:
        dim: 1, 2 or 3.

    Unitary, so A^H A is the identity. Signal and measurement are complex, (B, ..., [z,] [y,] x).

    Raises:
        ValueError: dim is not 1, 2 or 3.
        TypeError: a real signal comes in; use `x.to(torch.complex64)`.
    """

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.dim = len(_axes(dim))

    def forward(self, x: Tensor) -> Tensor:
        self._check("x", x)
        return centred_fft(x, self.dim)

    def adjoint(self, y: Tensor) -> Tensor:
        self._check("y", y)
        return centred_ifft(y, self.dim)

    def normal(self, x: Tensor) -> Tensor:
        self._check("x", x)
        return x.clone()

    def solve_normal(self, b: Tensor, shift: Tensor) -> Tensor:
        """(A^H A + shift)^-1 b = b / (1 + shift)."""
        self._check("b", b)
        return b / (1 + shift)

    def _check(self, name: str, value: Tensor) -> None:
        require_complex(name, value)
        if value.ndim < self.dim + 1:
            raise ValueError(
                f"{name} must be (B, ..., {self.dim} transformed axes), got {tuple(value.shape)}; "
                f"add a batch axis with {name}[None]"
            )

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class MaskedFourier(LinearOperator):
    """Single-coil Cartesian MRI: the centred orthonormal Fourier transform, zero where the mask does not sample.

    Image (B, [z,] y, x) -> k-space of the same shape, both complex, of any precision.

    Args:
        mask: bool, ([z,] y, x), or (B or 1, [z,] y, x) where samples differ.
        dim: 2 or 3; 1 for lines.
        shape: sizes of the grid; needed only where the mask has an axis of size 1 that shall broadcast.

    Raises:
        TypeError: mask is not bool; a real signal comes in.
        ValueError: mask has another shape or samples nothing.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, dim: int = 2, *, shape: tuple[int, ...] | None = None) -> None:
        require_tensor("mask", mask)
        grid = tuple(mask.shape[-len(_axes(dim)) :]) if shape is None else tuple(shape)
        if len(grid) != dim or mask.ndim < dim:
            raise ValueError(
                f"mask and shape must have {dim} spatial axes (dim={dim}), got {tuple(mask.shape)}, {shape}"
            )
        super().__init__(grid, grid)
        self.dim = dim
        self.register_buffer("mask", sampling_mask(mask, grid, ("B",)))

    def forward(self, x: Tensor) -> Tensor:
        self._check_signal("x", x)
        return centred_fft(x, self.dim).mul_(self.mask)

    def adjoint(self, y: Tensor) -> Tensor:
        require_complex("y", y)
        self.check_measurement(y)
        require_batch("y", y, self.mask.shape[0], "mask")
        return centred_ifft(y * self.mask, self.dim)

    def normal(self, x: Tensor) -> Tensor:
        self._check_signal("x", x)
        return self._filter(x, self.mask)

    def solve_normal(self, b: Tensor, shift: Tensor) -> Tensor:
        """(A^H A + shift)^-1 b = F^H (M + shift)^-1 F b."""
        self._check_signal("b", b)
        return self._filter(b, 1 / (self.mask + shift))

    def _filter(self, x: Tensor, weight: Tensor) -> Tensor:
        """F^H diag(weight) F x: a circular convolution, which no shift of x changes, so only the weight is shifted.

        Axes along which the mask is constant need no transform.
        """
        axes = varying_axes(self.mask, self.dim)
        if not axes:
            return x * weight
        spectrum = torch.fft.fftn(x, dim=axes, norm="ortho") * torch.fft.ifftshift(weight, axes)
        filtered: Tensor = torch.fft.ifftn(spectrum, dim=axes, norm="ortho")
        return filtered

    def spectrum(self) -> DiagonalSpectrum:
        """The singular values are 1 and 0, the right singular vectors complex exponentials."""
        return DiagonalSpectrum(self.mask.to(torch.get_default_dtype()), None, self.dim, measured_there=True)

    def sampled(self) -> Tensor:
        return self.mask

    def _check_signal(self, name: str, value: Tensor) -> None:
        require_complex(name, value)
        self.check_signal(value)
        require_batch(name, value, self.mask.shape[0], "mask")

    def extra_repr(self) -> str:
        return f"shape={self.signal_shape}"


@dataclass(frozen=True, eq=False)
class DiagonalSpectrum:
    """A = diag(s phase) in the coordinates themselves, or in those of the centred Fourier transform.

    A real signal has complex Fourier coordinates; what the samplers do to them keeps their symmetry, so that the real
    part of what `synthesise` gives is all of it.

    Args:
        singular: s >= 0, broadcasts to (B, *signal).
        phase: of modulus 1, shaped as singular; None for 1.
        transformed: how many last axes the transform takes, 0 for none.
        measured_there: whether measurements are in Fourier coordinates already.
    """

    singular: Tensor
    phase: Tensor | None = None
    transformed: int = 0
    measured_there: bool = False

    def analyse(self, x: Tensor) -> Tensor:
        return centred_fft(x, self.transformed) if self.transformed else x

    def synthesise(self, c: Tensor) -> Tensor:
        return centred_ifft(c, self.transformed) if self.transformed else c

    def measured(self, y: Tensor) -> Tensor:
        c = y if self.measured_there else self.analyse(y)
        return torch.where(self.singular > 0, c if self.phase is None else c * self.phase.conj(), 0)
