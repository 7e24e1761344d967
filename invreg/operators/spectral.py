"""Singular value decompositions A = U S V^H of operators that have a cheap one, and of small ones by brute force."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invreg.interfaces import Decomposable, LinearOperator, Spectrum
from invreg.operators.fourier import CUTOFF

MOST_ENTRIES = 4096
"""Of a signal whose operator is decomposed by brute force."""


@dataclass(frozen=True, eq=False)
class DenseSpectrum:
    """The decomposition of a matrix.

    Args:
        singular: (n,), zeros behind the rank.
        left: U, (m, n), zero columns behind the rank.
        right: V, (n, n).
        shape: of the signal.
    """

    singular: Tensor
    left: Tensor
    right: Tensor
    shape: tuple[int, ...]

    def analyse(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.right.conj().to(x.dtype)

    def synthesise(self, c: Tensor) -> Tensor:
        return (c @ self.right.mT.to(c.dtype)).reshape(-1, *self.shape)

    def measured(self, y: Tensor) -> Tensor:
        c = y.flatten(1).to(torch.promote_types(y.dtype, self.left.dtype)) @ self.left.conj()
        return c if self.right.is_complex() or not c.is_complex() else c.real


def spectrum_of(operator: LinearOperator, like: Tensor) -> Spectrum:
    """The operator's own decomposition if it has one, else that of its matrix.

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
    basis = torch.eye(n, dtype=like.dtype, device=like.device).reshape(n, *shape)
    rows = torch.cat([operator(one) for one in torch.split(basis, 256)]).flatten(1)
    if rows.is_complex() and not like.is_complex():
        return _RealView(_dense(torch.cat([rows.real, rows.imag], 1).mT, shape))
    return _dense(rows.mT, shape)


def _dense(matrix: Tensor, shape: tuple[int, ...]) -> DenseSpectrum:
    """Of a matrix (m, n)."""
    n = matrix.shape[1]
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = singular > CUTOFF * singular[0]
    complete = torch.linalg.svd(right[kept], full_matrices=True).Vh if not bool(kept.all()) or len(kept) < n else right
    rank = int(kept.sum())
    vectors = torch.cat([right[kept], complete[rank:]]).mH if rank < n else right.mH
    values, columns = singular.new_zeros(n), left.new_zeros(matrix.shape[0], n)
    values[:rank], columns[:, :rank] = singular[kept], left[:, kept]
    return DenseSpectrum(values, columns, vectors, shape)


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
