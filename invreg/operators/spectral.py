"""Singular value decompositions A = U S V^H of operators that have a cheap one, and of small ones by brute force."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from invreg.interfaces import LinearOperator
from invreg.operators.fourier import CUTOFF
from invreg.random import draw

MOST_ENTRIES = 1024
"""Of a signal whose operator is decomposed by brute force."""
BLOCK = 256
"""Columns of a matrix that are computed at once."""


class Spectrum(Protocol):
    """A = U S V^H in coordinates of the signal; where a singular value is 0, nothing was measured.

    `singular` holds the singular values, real and >= 0, and broadcasts to the coordinates, (B, *n).
    """

    @property
    def singular(self) -> Tensor: ...

    def analyse(self, x: Tensor) -> Tensor:
        """V^H x: (B, *signal) -> (B, *n); an isometry."""
        ...

    def synthesise(self, c: Tensor) -> Tensor:
        """V c: (B, *n) -> (B, *signal), the inverse of `analyse`."""
        ...

    def measured(self, y: Tensor) -> Tensor:
        """U^H y in the signal's coordinates, (B, *measurement) -> (B, *n); 0 where the singular value is 0."""
        ...


@runtime_checkable
class Decomposable(Protocol):
    """A faculty of a LinearOperator: its singular value decomposition."""

    def spectrum(self) -> Spectrum: ...


@dataclass(frozen=True, eq=False)
class DenseSpectrum:
    """The decomposition of a matrix, or of one for each sample.

    Args:
        singular: (n,) or (B, n), zeros behind the rank.
        left: U, (m, n) or (B, m, n), zero columns behind the rank.
        right: V, (n, n) or (B, n, n).
        shape: of the signal.
    """

    singular: Tensor
    left: Tensor
    right: Tensor
    shape: tuple[int, ...]

    def analyse(self, x: Tensor) -> Tensor:
        return _rows(x.flatten(1), self.right.conj().to(x.dtype))

    def synthesise(self, c: Tensor) -> Tensor:
        return _rows(c, self.right.mT.to(c.dtype)).reshape(-1, *self.shape)

    def measured(self, y: Tensor) -> Tensor:
        c = _rows(y.flatten(1).to(torch.promote_types(y.dtype, self.left.dtype)), self.left.conj())
        return c if self.right.is_complex() or not c.is_complex() else c.real


def _rows(x: Tensor, matrix: Tensor) -> Tensor:
    """Every row of (B, k) times the matrix (k, n), or times its own of (B, k, n)."""
    return x @ matrix if matrix.ndim == 2 else (x[:, None] @ matrix)[:, 0]


def spectrum_of(operator: LinearOperator, like: Tensor) -> Spectrum:
    """The operator's own decomposition if it has one, else that of its matrix; of each sample's where they differ.

    A real signal under a complex operator has the matrix of real and imaginary parts, so that V stays real.

    Args:
        operator: A.
        like: a signal, (B, *signal), for shape, dtype and device.

    Raises:
        TypeError: it has none, and the signal is too large for brute force.
    """
    if isinstance(operator, Decomposable):
        return operator.spectrum()
    shape = tuple(like.shape[1:])
    n = like[0].numel()
    if n > MOST_ENTRIES:
        raise TypeError(
            f"{type(operator).__name__} has no known singular value decomposition, and {n} entries are too many "
            f"to find one (at most {MOST_ENTRIES}); use DDS or DiffPIR, which need none"
        )
    matrix = _matrix(operator, like)
    if matrix.is_complex() and not like.is_complex():
        return _RealView(_dense(torch.cat([matrix.real, matrix.imag], -2), shape))
    return _dense(matrix, shape)


def _matrix(operator: LinearOperator, like: Tensor) -> Tensor:
    """The matrix of A, (m, n), or of each sample's, (B, m, n)."""
    batch, n = like.shape[0], like[0].numel()
    size = BLOCK
    if batch > 1:
        probe = operator(draw(like[:1], torch.Generator().manual_seed(0)).expand_as(like)).flatten(1)
        tolerance = 100 * torch.finfo(probe.dtype).eps * float(probe.abs().max())
        if bool(((probe - probe[:1]).abs() > tolerance).any()):
            units = torch.eye(n, dtype=like.dtype, device=like.device).reshape(n, 1, *like.shape[1:])
            return torch.stack([operator(unit.expand_as(like)).flatten(1) for unit in units], -1)
        size = batch  # what it holds for each sample fits no other batch
    units = torch.eye(-(-n // size) * size, n, dtype=like.dtype, device=like.device)
    blocks = torch.split(units.reshape(-1, *like.shape[1:]), size)
    return torch.cat([operator(block).flatten(1) for block in blocks])[:n].mT


def _dense(matrix: Tensor, shape: tuple[int, ...]) -> DenseSpectrum:
    """Of a matrix (m, n), or of several (B, m, n)."""
    m, n = matrix.shape[-2:]
    left, singular, right = torch.linalg.svd(matrix, full_matrices=m < n)  # else V is square as it is
    kept = singular > CUTOFF * singular[..., :1]
    missing = n - kept.shape[-1]
    values = torch.nn.functional.pad(torch.where(kept, singular, 0), (0, missing))
    columns = torch.nn.functional.pad(torch.where(kept[..., None, :], left, 0), (0, missing))
    return DenseSpectrum(values, columns, right.mH, shape)


@dataclass(frozen=True, eq=False)
class _RealView:
    """A decomposition over the real and imaginary parts of complex measurements."""

    inner: DenseSpectrum

    @property
    def singular(self) -> Tensor:
        return self.inner.singular

    def analyse(self, x: Tensor) -> Tensor:
        return self.inner.analyse(x)

    def synthesise(self, c: Tensor) -> Tensor:
        return self.inner.synthesise(c)

    def measured(self, y: Tensor) -> Tensor:
        y = y.flatten(1)
        return self.inner.measured(torch.cat([y.real, y.imag], 1))
