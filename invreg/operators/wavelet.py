"""The orthogonal wavelet transform of images and volumes of any size."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from invreg._check import require_count, unknown_name
from invreg.interfaces import LinearOperator


class Wavelet(LinearOperator):
    """Periodised orthogonal discrete wavelet transform: exactly orthonormal, W^H W = W W^H = I, for every shape.

    The coefficients have the shape of the signal. On each axis the low band comes first; the coarsest approximation is
    in the corner `approximation`, around it the details, the finest outermost (Mallat's layout). Real or complex.

    An axis of odd length n is transformed up to its last sample, which joins the low band as it is; an axis of length
    1 stays as it is. Where every length is divisible by 2^levels, the coefficients are those of PyWavelets in its mode
    "periodization".

    Each level multiplies every axis by its n x n matrix: one library call per axis, faster than strided filters up to
    about a thousand samples an axis; the cost grows as n times the number of samples.

    Args:
        shape: the signal's shape without batch, with its channel axis if there is one.
        wavelet: name of an orthogonal wavelet of PyWavelets: haar, db1 to db38, sym2 to sym20, coif1 to coif17.
        levels: how often the approximation is split again; default as often as the shortest axis is not shorter than
            the filter, but at least once.
        channel_dim: axis of (B, *shape) that holds channels, which are not transformed; None if there is none.

    Raises:
        TypeError, ValueError: an unknown or not orthogonal wavelet, levels beyond 1-pixel approximations, more than
            three spatial axes.

    Source: Mallat 1989, "A theory for multiresolution signal decomposition"; Daubechies 1988 for the filters.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        wavelet: str = "db4",
        levels: int | None = None,
        channel_dim: int | None = None,
    ) -> None:
        super().__init__(tuple(shape), tuple(shape))
        for n in shape:
            require_count("shape", n)
        self.wavelet = wavelet
        self.axes = _spatial_axes(len(shape), channel_dim)
        filters = _filter(wavelet)
        lengths = tuple(shape[a - 1] for a in self.axes)
        most = max((min(lengths) - 1).bit_length(), 1)
        if levels is None:
            levels = min(max((min(lengths) // max(len(filters) - 1, 1)).bit_length() - 1, 1), most)
        require_count("levels", levels)
        if levels > most:
            raise ValueError(f"levels must be <= {most} for shape {tuple(shape)}, got {levels}")
        self.levels = levels
        # lengths of the block that each level splits, and last of the coarsest approximation
        self.lengths = [lengths]
        for _ in range(levels):
            self.lengths.append(tuple((n + 1) // 2 for n in self.lengths[-1]))
        for n in sorted(set(itertools.chain(*self.lengths[:-1]))):
            # the bits of double precision as integers: `.to` moves them to a device but never rounds them
            self.register_buffer(f"matrix_{n}", _matrix(filters, n).view(torch.int64), persistent=False)

    @property
    def approximation(self) -> tuple[slice, ...]:
        """Where in (B, *shape) the coarsest approximation is."""
        index = [slice(None)] * (len(self.signal_shape or ()) + 1)
        for axis, n in zip(self.axes, self.lengths[-1], strict=True):
            index[axis] = slice(0, n)
        return tuple(index)

    def forward(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        planes = _planes(x)
        out = block = self._apply_level(planes, self.lengths[0], adjoint=False)
        for lengths in self.lengths[1:-1]:
            corner = self._corner(block, lengths)
            block = self._apply_level(corner, lengths, adjoint=False)
            self._corner(out, lengths).copy_(block)
        return _from_planes(out, x)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_measurement(y)
        out = _planes(y)
        for lengths in reversed(self.lengths[1:-1]):
            block = self._apply_level(self._corner(out, lengths), lengths, adjoint=True)
            out = out.clone() if out is y else out
            self._corner(out, lengths).copy_(block)
        return _from_planes(self._apply_level(out, self.lengths[0], adjoint=True), y)

    def normal(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        return x.clone()

    def solve_normal(self, b: Tensor, shift: Tensor) -> Tensor:
        """b / (1 + shift), as W^H W = I."""
        return b / (1 + shift)

    def _corner(self, planes: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """The block of the given lengths that starts at the origin."""
        for axis, n in zip(self.axes, lengths, strict=True):
            planes = planes.narrow(axis, 0, n)
        return planes

    def _apply_level(self, block: Tensor, lengths: tuple[int, ...], adjoint: bool) -> Tensor:
        """Split (or join) the block once along every axis."""
        for axis, n in zip(self.axes, lengths, strict=True):
            if n > 1:
                matrix = self.get_buffer(f"matrix_{n}").view(torch.float64).to(block.dtype)
                block = _along(matrix.mT if adjoint else matrix, block, axis)
        return block


def _spatial_axes(dimensions: int, channel_dim: int | None) -> tuple[int, ...]:
    """The axes of (B, *shape) that are not the channels'."""
    channel = None
    if channel_dim is not None:
        if isinstance(channel_dim, bool) or not isinstance(channel_dim, int):
            raise TypeError(f"channel_dim must be an int or None, got {type(channel_dim).__name__}")
        if not -dimensions - 1 < channel_dim < dimensions + 1 or channel_dim == 0:
            raise ValueError(f"channel_dim must lie within the {dimensions} axes of shape, got {channel_dim}")
        channel = channel_dim % (dimensions + 1)
    axes = tuple(a for a in range(1, dimensions + 1) if a != channel)
    if not 1 <= len(axes) <= 3:
        raise ValueError(f"shape must have 1 to 3 spatial axes, got {len(axes)}; name a channel axis by channel_dim")
    return axes


def _filter(name: str) -> list[float]:
    """The low-pass decomposition filter of an orthogonal wavelet."""
    import pywt

    if not isinstance(name, str):
        raise TypeError(f"wavelet must be a name such as 'db4', got {type(name).__name__}")
    if name not in pywt.wavelist(kind="discrete"):
        orthogonal = [n for n in pywt.wavelist(kind="discrete") if pywt.Wavelet(n).orthogonal and n != "dmey"]
        raise ValueError(unknown_name("wavelet", name, orthogonal))
    wavelet = pywt.Wavelet(name)
    taps = torch.tensor(wavelet.dec_lo, dtype=torch.float64)
    square = torch.nn.functional.conv1d(taps[None, None], taps[None, None], padding=len(taps) - 1)[0, 0]
    even = square[(len(taps) - 1) % 2 :: 2]
    even[len(even) // 2] -= 1
    if not wavelet.orthogonal or float(even.abs().max()) > 1e-8:
        raise ValueError(f"wavelet must be orthogonal: haar, db*, sym* or coif*, got {name!r}")
    return [float(v) for v in taps]


def _matrix(low: list[float], n: int) -> Tensor:
    """One level on n samples, (n, n), orthogonal: low band, the odd sample if there is one, high band; float64."""
    half, taps = n // 2, len(low)
    high = [(-1) ** (k + 1) * low[taps - 1 - k] for k in range(taps)]
    rows = torch.arange(half)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    if n % 2:
        matrix[half, n - 1] = 1
    for k in range(taps if half else 0):
        columns = (2 * rows + taps // 2 - k) % (2 * half)
        matrix[rows, columns] += low[k]
        matrix[n - half + rows, columns] += high[k]
    # printed taps are orthonormal to 1e-11 at worst; one step towards the nearest orthogonal matrix squares that
    return 1.5 * matrix - 0.5 * matrix @ (matrix.mT @ matrix)


def _along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """Multiply one axis of x by a square matrix."""
    if axis == x.ndim - 1:
        return x @ matrix.mT
    shape = x.shape
    return (matrix @ x.reshape(-1, shape[axis], shape[axis + 1 :].numel())).reshape(shape)


def _planes(x: Tensor) -> Tensor:
    """Real x as it is; of complex x the real and imaginary parts stacked along the batch, as the matrices are real."""
    return torch.cat([x.real, x.imag]) if x.is_complex() else x


def _from_planes(planes: Tensor, like: Tensor) -> Tensor:
    return torch.complex(*planes.chunk(2)) if like.is_complex() else planes
