"""Finite differences of images: the gradient and, for second-order priors, the symmetrised gradient of fields."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invreg._check import require_count, require_positive
from invreg.interfaces import LinearOperator


class _Grid:
    """Which axes of (B, ...) are space, and how far apart their pixels are.

    Args:
        dim: number of spatial axes, 1 to 3.
        channel_dim: axis of (B, ...) that holds channels, None if there is none.
        voxel_size: pixel pitch, one for all axes or one for each, in the order of the axes.
    """

    def __init__(self, dim: int, channel_dim: int | None, voxel_size: float | tuple[float, ...]) -> None:
        require_count("dim", dim)
        if dim > 3:
            raise ValueError(f"dim must be 1, 2 or 3, got {dim}")
        pitch = tuple(voxel_size) if isinstance(voxel_size, (tuple, list)) else (voxel_size,) * dim
        if len(pitch) != dim:
            raise ValueError(f"voxel_size must be one number or {dim}, one for each spatial axis, got {voxel_size}")
        for h in pitch:
            require_positive("voxel_size", h)
        self.dim = dim
        self.pitch = tuple(float(h) for h in pitch)
        self.channel: int | None = None
        if channel_dim is not None:
            ndim = dim + 2
            if isinstance(channel_dim, bool) or not isinstance(channel_dim, int):
                raise TypeError(f"channel_dim must be an int or None, got {type(channel_dim).__name__}")
            if not -ndim < channel_dim < ndim or channel_dim == 0:
                raise ValueError(f"channel_dim must lie within the {ndim} axes behind the batch, got {channel_dim}")
            self.channel = channel_dim % ndim

    @property
    def ndim(self) -> int:
        """Number of axes of an image with its batch."""
        return self.dim + (1 if self.channel is None else 2)

    @property
    def axes(self) -> tuple[int, ...]:
        """The spatial axes of (B, ...)."""
        return tuple(a for a in range(1, self.ndim) if a != self.channel)

    @property
    def layout(self) -> str:
        """The axes of an image in words."""
        names = ["z", "y", "x"][3 - self.dim :]
        if self.channel is not None:
            names.insert(self.channel - 1, "channel")
        return ", ".join(["B", *names])

    @property
    def bound(self) -> float:
        """Upper bound of the norm of all first differences together."""
        return 2 * math.sqrt(sum(h**-2 for h in self.pitch))

    def check(self, x: Tensor, owner: str, extra: int | None = None) -> None:
        """Raise ValueError unless x has the axes of an image, with `extra` components in axis 1 if that is given."""
        if extra is None:
            if x.ndim != self.ndim:
                hint = "" if self.channel is not None else "; give channel_dim, or flatten other axes into the batch"
                raise ValueError(f"x must be ({self.layout}) for {owner}, got {tuple(x.shape)}{hint}")
        elif x.ndim != self.ndim + 1 or x.shape[1] != extra:
            wanted = self.layout.replace("B", f"B, {extra}", 1)
            raise ValueError(f"the field must be ({wanted}) for {owner}, got {tuple(x.shape)}")


class Gradient(LinearOperator):
    """Forward differences along every spatial axis, zero at the last pixel of each (Neumann).

    (B, [channel,] [z,] y, x) -> (B, dim, [channel,] [z,] y, x): the derivatives stand in axis 1, in the order of the
    axes (z, y, x), and divided by the pixel pitch. The adjoint is minus the matching divergence. Real or complex.

    Args:
        dim: number of spatial axes, 1 to 3.
        channel_dim: axis of (B, ...) that holds channels, which are not differentiated; None if there is none.
        voxel_size: pixel pitch in mm or in pixels, one for all axes or one for each in their order.
        along: which spatial axes to differentiate, counted from 0 and rising, such as (0,) for z of a volume; default
            all. The result has as many entries in axis 1.

    Raises:
        TypeError, ValueError: arguments of the wrong kind or out of range; (when used) x has other axes.
    """

    def __init__(
        self,
        dim: int = 2,
        channel_dim: int | None = None,
        voxel_size: float | tuple[float, ...] = 1.0,
        *,
        along: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self._grid = _Grid(dim, channel_dim, voxel_size)
        chosen = tuple(range(dim)) if along is None else tuple(along)
        if not chosen or sorted(set(chosen)) != list(chosen) or not set(chosen) <= set(range(dim)):
            raise ValueError(f"along must be rising axes within 0 to {dim - 1}, one or more, got {along}")
        self._along = tuple((self._grid.axes[k], self._grid.pitch[k]) for k in chosen)

    @property
    def norm_bound(self) -> float:
        """Upper bound of the norm, 2 sqrt(sum 1 / h^2); the norm itself comes close to it on large images."""
        return 2 * math.sqrt(sum(h**-2 for _, h in self._along))

    def forward(self, x: Tensor) -> Tensor:
        self._grid.check(x, "Gradient")
        out = x.new_zeros((x.shape[0], len(self._along), *x.shape[1:]))
        for k, (axis, h) in enumerate(self._along):
            _forward_difference(x, out[:, k], axis, h)
        return out

    def adjoint(self, y: Tensor) -> Tensor:
        self._grid.check(y, "Gradient", len(self._along))
        out = torch.zeros_like(y[:, 0])
        for k, (axis, h) in enumerate(self._along):
            _add_forward_adjoint(y[:, k], out, axis, h)
        return out

    def normal(self, x: Tensor) -> Tensor:
        self._grid.check(x, "Gradient")
        out = torch.zeros_like(x)
        for axis, h in self._along:
            n = x.shape[axis] - 1
            slope = (x.narrow(axis, 1, n) - x.narrow(axis, 0, n)) * h**-2
            out.narrow(axis, 1, n).add_(slope)
            out.narrow(axis, 0, n).sub_(slope)
        return out


class SymmetrizedGradient(LinearOperator):
    """(J w + J w^T) / 2 of a vector field w on the grid of `Gradient`: the second differences where w = grad x.

    (B, dim, [channel,] [z,] y, x) -> (B, dim (dim + 1) / 2, [channel,] [z,] y, x). In axis 1 stand first the diagonal
    entries (zz, yy, xx), then the others (zy, zx, yx) times sqrt(2), so that Euclidean norms over axis 1 are Frobenius
    norms. The k-th component of w lives half a pixel behind the pixels along axis k, hence diagonal entries are
    backward differences (zero at the first and the last pixel) and the others forward ones (zero at the last); the
    last entry of component k along axis k, where `Gradient` is zero, is never read. So it maps the gradient of
    every affine image to exactly zero, the border included.

    Args:
        dim, channel_dim, voxel_size: as for `Gradient`; channel_dim counts in the image (B, ...).

    Raises:
        TypeError, ValueError: as for `Gradient`.
    """

    def __init__(
        self, dim: int = 2, channel_dim: int | None = None, voxel_size: float | tuple[float, ...] = 1.0
    ) -> None:
        super().__init__()
        self._grid = _Grid(dim, channel_dim, voxel_size)

    @property
    def norm_bound(self) -> float:
        """Upper bound of the norm, 2 sqrt(sum 1 / h^2)."""
        return self._grid.bound

    @property
    def components(self) -> int:
        """Number of entries of the symmetric matrix, dim (dim + 1) / 2."""
        return self._grid.dim * (self._grid.dim + 1) // 2

    def _pairs(self) -> list[tuple[int, int]]:
        return [(a, b) for a in range(self._grid.dim) for b in range(a + 1, self._grid.dim)]

    def forward(self, x: Tensor) -> Tensor:
        grid = self._grid
        grid.check(x, "SymmetrizedGradient", grid.dim)
        out = x.new_zeros((x.shape[0], self.components, *x.shape[2:]))
        for k, (axis, h) in enumerate(zip(grid.axes, grid.pitch, strict=True)):
            n = x.shape[axis + 1] - 2
            if n > 0:  # between the n + 1 entries that the gradient has along this axis
                w, target = x[:, k], out[:, k].narrow(axis, 1, n)
                target.add_(w.narrow(axis, 1, n), alpha=1 / h).sub_(w.narrow(axis, 0, n), alpha=1 / h)
        for k, (a, b) in enumerate(self._pairs(), grid.dim):
            for i, j in ((a, b), (b, a)):  # d_j w_i
                target, w = (self._inside(v, i, j) for v in (out[:, k], x[:, i]))
                axis, h = grid.axes[j], grid.pitch[j]
                n = w.shape[axis] - 1
                slope = w.narrow(axis, 1, n) - w.narrow(axis, 0, n)
                target.narrow(axis, 0, n).add_(slope, alpha=math.sqrt(0.5) / h)
        return out

    def adjoint(self, y: Tensor) -> Tensor:
        grid = self._grid
        grid.check(y, "SymmetrizedGradient", self.components)
        out = y.new_zeros((y.shape[0], grid.dim, *y.shape[2:]))
        for k, (axis, h) in enumerate(zip(grid.axes, grid.pitch, strict=True)):
            n = y.shape[axis + 1] - 2
            if n > 0:
                source, w = y[:, k].narrow(axis, 1, n), out[:, k]
                w.narrow(axis, 1, n).add_(source, alpha=1 / h)
                w.narrow(axis, 0, n).sub_(source, alpha=1 / h)
        for k, (a, b) in enumerate(self._pairs(), grid.dim):
            for i, j in ((a, b), (b, a)):
                source, w = (self._inside(v, i, j) for v in (y[:, k], out[:, i]))
                axis, h = grid.axes[j], grid.pitch[j]
                n = w.shape[axis] - 1
                source = source.narrow(axis, 0, n) * (math.sqrt(0.5) / h)
                w.narrow(axis, 1, n).add_(source)
                w.narrow(axis, 0, n).sub_(source)
        return out

    def _inside(self, v: Tensor, i: int, j: int) -> Tensor:
        """Where component i of a gradient exists along its own axis."""
        axis = self._grid.axes[i]
        return v.narrow(axis, 0, v.shape[axis] - 1)


def _forward_difference(x: Tensor, out: Tensor, axis: int, h: float) -> None:
    """Write (x[i + 1] - x[i]) / h into all but the last of `out`."""
    n = x.shape[axis] - 1
    target = out.narrow(axis, 0, n)
    target.copy_(x.narrow(axis, 1, n))
    target.sub_(x.narrow(axis, 0, n))
    if h != 1:
        target.mul_(1 / h)


def _add_forward_adjoint(y: Tensor, out: Tensor, axis: int, h: float) -> None:
    """Add the adjoint of the forward difference of one component."""
    n = y.shape[axis] - 1
    source = y.narrow(axis, 0, n)
    out.narrow(axis, 1, n).add_(source, alpha=1 / h)
    out.narrow(axis, 0, n).sub_(source, alpha=1 / h)
