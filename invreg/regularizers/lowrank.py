"""Low rank: the nuclear norm of an image series, whole or block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from invreg._check import require_count
from invreg.interfaces import Regularizer
from invreg.regularizers.norms import ImplicitProx, needs_graph, sample_sum, scaled_step, threshold_tensor


def nuclear_norm(matrices: Tensor) -> Tensor:
    """Sum of singular values, (..., rows, columns) -> (...); its gradient is U V^H on the range, 0 at rank zero."""
    values: Tensor = torch.linalg.svdvals(matrices)
    cut = torch.finfo(values.dtype).eps * max(matrices.shape[-2:]) * values[..., :1].detach()
    return torch.where(values > cut, values, 0).sum(-1)


def shrink_singular_values(matrices: Tensor, t: Tensor) -> Tensor:
    """Every singular value of (B, ..., rows, columns) lowered by t, () or (B, 1, ..., 1), but not below 0.

    Gradients (once) follow the formula for spectral functions, in which no difference of singular values is divided
    by: equal, zero and vanishing ones are harmless.

    Source: Cai, Candes and Shen 2010, "A singular value thresholding algorithm", Theorem 2.1; derivative after
    Lewis and Sendov 2001 in the rectangular form of Candes, Sing-Long and Trzasko 2013, Theorem IV.2.
    """
    with torch.no_grad():
        u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
        kept = (s - t[..., 0]).clamp_min(0) if t.ndim else (s - t).clamp_min(0)
        z: Tensor = (u * kept[..., None, :]) @ vh
    if not needs_graph(matrices, t):
        return z

    def pull_back(g: Tensor) -> tuple[Tensor, Tensor]:
        core = u.mH @ g @ vh.mH
        even, odd = (core + core.mH) / 2, (core - core.mH) / 2
        jacobian = even * _divided_difference(s, kept) + odd * _divided_sum(s, kept)
        ratio = kept / torch.where(s > 0, s, 1)
        right = u.mH @ g - core @ vh  # of g, what lies outside the row space
        left = g @ vh.mH - u @ core  # and outside the column space; a thin SVD leaves no other part
        to_x = u @ (jacobian @ vh + ratio[..., :, None] * right) + (left * ratio[..., None, :]) @ vh
        to_x = torch.where(t == 0, g, to_x)
        to_t = -((kept > 0) * torch.diagonal(core, dim1=-2, dim2=-1).real)
        return to_x, sample_sum(to_t)

    result: Tensor = ImplicitProx.apply(matrices, t, z, pull_back)  # type: ignore[no-untyped-call]
    return result


def _divided_difference(s: Tensor, kept: Tensor) -> Tensor:
    """(f(s_i) - f(s_j)) / (s_i - s_j) for f(s) = max(s - t, 0), its slope where they meet; (..., n, n)."""
    a, b = s[..., :, None], s[..., None, :]
    fa, fb = kept[..., :, None], kept[..., None, :]
    apart = a != b
    slope = (fa > 0).to(s.dtype).expand(apart.shape)
    # both kept: exactly 1, so that nothing is lost to cancellation
    mixed = torch.where(apart, (fa - fb) / torch.where(apart, a - b, 1), slope)
    return torch.where((fa > 0) & (fb > 0), 1, mixed)


def _divided_sum(s: Tensor, kept: Tensor) -> Tensor:
    """(f(s_i) + f(s_j)) / (s_i + s_j), (..., n, n); 0 where both are zero."""
    total = s[..., :, None] + s[..., None, :]
    return (kept[..., :, None] + kept[..., None, :]) / torch.where(total > 0, total, 1)


class NuclearNorm(Regularizer[Tensor]):
    """weight * sum of the singular values of a matrix.

    The matrix is x itself, (B, rows, columns), or with `channel_dim` the Casorati matrix of a series: one row for each
    channel (frame, contrast, coil), one column for each pixel.

    Args:
        weight: >= 0, a number or a 0-d tensor, which may require a gradient.
        channel_dim: axis of (B, ...) that becomes the rows; all others become the columns. None for a matrix.

    Raises:
        TypeError, ValueError: channel_dim is not an axis behind the batch; (when used) x has other axes.

    Source: Cai, Candes and Shen 2010; Casorati matrices after Liang 2007.
    """

    def __init__(self, weight: float | Tensor = 1.0, channel_dim: int | None = None) -> None:
        super().__init__(weight)
        _check_channel(channel_dim, None)
        self.channel_dim = channel_dim

    def _axis(self, x: Tensor) -> int:
        if self.channel_dim is None:
            if x.ndim != 3:
                raise ValueError(f"x must be (B, rows, columns), got {tuple(x.shape)}; give channel_dim for a series")
            return 1
        if not -x.ndim < self.channel_dim < x.ndim:
            raise ValueError(f"channel_dim {self.channel_dim} must lie within (B, ...), got x {tuple(x.shape)}")
        return self.channel_dim % x.ndim

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * nuclear_norm(x.movedim(self._axis(x), 1).flatten(2))

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """Singular value thresholding by step * weight; exact."""
        axis = self._axis(x)
        t = threshold_tensor(scaled_step(self.weight, step, x), x)
        moved = x.movedim(axis, 1)
        t = t.reshape(-1, 1, 1) if t.ndim else t
        return shrink_singular_values(moved.flatten(2), t).reshape(moved.shape).movedim(1, axis)


class LocallyLowRank(Regularizer[Tensor]):
    """weight * sum over blocks of the nuclear norm of the block's Casorati matrix, (channels, pixels of the block).

    The blocks tile the image from its first pixel and do not overlap, so the prox is exact. Blocks that reach beyond
    the last pixel are cut there: filled with zeros, which change neither norm nor prox. A grid that moves from call to
    call, as some use against block edges, would not be a proximal map and is not offered as one.

    Args:
        weight: >= 0, a number or a 0-d tensor, which may require a gradient.
        block: edge of a block in pixels, one for all spatial axes or one for each in their order.
        dim: number of spatial axes, 1 to 3.
        channel_dim: axis of (B, ...) that holds the channels (frames, contrasts, coils).

    Raises:
        TypeError, ValueError: arguments of the wrong kind or out of range; (when used) x has other axes.

    Source: Trzasko and Manduca 2011, "Local versus global low-rank promotion in dynamic MRI".
    """

    def __init__(
        self, weight: float | Tensor = 1.0, block: int | tuple[int, ...] = 8, dim: int = 2, channel_dim: int = 1
    ) -> None:
        super().__init__(weight)
        require_count("dim", dim)
        if dim > 3:
            raise ValueError(f"dim must be 1, 2 or 3, got {dim}")
        edges = (block,) * dim if isinstance(block, int) else tuple(block)
        if len(edges) != dim:
            raise ValueError(f"block must be one number or {dim}, one for each spatial axis, got {block}")
        for edge in edges:
            require_count("block", edge)
        _check_channel(channel_dim, dim + 2)
        self.block, self.dim, self.channel_dim = edges, dim, channel_dim % (dim + 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * nuclear_norm(self._split(x)).sum(1)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """Singular value thresholding of every block by step * weight; exact."""
        t = threshold_tensor(scaled_step(self.weight, step, x), x)
        blocks = shrink_singular_values(self._split(x), t.reshape(-1, 1, 1, 1) if t.ndim else t)
        return self._join(blocks, x)

    def _split(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, blocks, channels, pixels of a block)."""
        if x.ndim != self.dim + 2:
            raise ValueError(f"x must have a batch, a channel and {self.dim} spatial axes, got {tuple(x.shape)}")
        moved = x.movedim(self.channel_dim, 1)
        missing = [-n % edge for n, edge in zip(moved.shape[2:], self.block, strict=True)]
        if any(missing):
            moved = torch.nn.functional.pad(moved, [p for m in reversed(missing) for p in (0, m)])
        counts = [n // edge for n, edge in zip(moved.shape[2:], self.block, strict=True)]
        tiles = moved.reshape(*moved.shape[:2], *(v for pair in zip(counts, self.block, strict=True) for v in pair))
        where = [2 + 2 * k for k in range(self.dim)]
        tiles = tiles.permute(0, *where, 1, *(w + 1 for w in where))
        return tiles.flatten(2 + self.dim).flatten(1, self.dim)

    def _join(self, blocks: Tensor, x: Tensor) -> Tensor:
        """The inverse of `_split` for an image shaped as x."""
        sizes = x.movedim(self.channel_dim, 1).shape[2:]
        counts = [-(-n // edge) for n, edge in zip(sizes, self.block, strict=True)]
        tiles = blocks.reshape(blocks.shape[0], *counts, blocks.shape[2], *self.block)
        order = [v for k in range(self.dim) for v in (1 + k, 2 + self.dim + k)]
        moved = tiles.permute(0, 1 + self.dim, *order)
        moved = moved.reshape(*moved.shape[:2], *(c * edge for c, edge in zip(counts, self.block, strict=True)))
        for axis, n in enumerate(sizes, 2):
            moved = moved.narrow(axis, 0, n)
        return moved.movedim(1, self.channel_dim)


def _check_channel(channel_dim: int | None, ndim: int | None) -> None:
    """Raise unless it is an axis behind the batch."""
    if channel_dim is None:
        return
    if isinstance(channel_dim, bool) or not isinstance(channel_dim, int):
        raise TypeError(f"channel_dim must be an int, got {type(channel_dim).__name__}")
    if channel_dim == 0 or (ndim is not None and not -ndim < channel_dim < ndim):
        raise ValueError(f"channel_dim must be an axis of (B, ...) behind the batch, got {channel_dim}")
