"""Compressed sensing: measurements that each see the whole signal, by a dense matrix or a fast transform."""

import math

import torch
from torch import Tensor

from invreg._check import require_count, require_finite, require_same_precision, require_tensor
from invreg.interfaces import LinearOperator


class MatrixSensing(LinearOperator):
    """y = M x with a dense matrix and the signal flattened.

    Args:
        matrix: M, real or complex, (m, n), n = prod(signal_shape). A gradient reaches it.
        signal_shape: of one sample; default (n,).

    A real matrix takes real and complex signals, a complex one takes complex signals. The measurement is (B, m).

    Raises:
        TypeError: matrix is not a floating point or complex tensor, or of another precision than the signal.
        ValueError: matrix is not (m, n) with n = prod(signal_shape), or holds NaN or Inf.
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor, signal_shape: tuple[int, ...] | None = None) -> None:
        require_tensor("matrix", matrix)
        if not (matrix.is_floating_point() or matrix.is_complex()):
            raise TypeError(f"matrix must be floating point or complex, got {matrix.dtype}; use matrix.float()")
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise ValueError(f"matrix must be (m, n), got {tuple(matrix.shape)}")
        shape = (matrix.shape[1],) if signal_shape is None else tuple(signal_shape)
        if math.prod(shape) != matrix.shape[1]:
            raise ValueError(f"matrix must have {math.prod(shape)} columns for signals {shape}, got {matrix.shape[1]}")
        require_finite("matrix", matrix)
        super().__init__(shape, (matrix.shape[0],))
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        require_same_precision("x", x, "matrix", self.matrix)
        return _rows(x.flatten(1), self.matrix.mT)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_measurement(y)
        require_same_precision("y", y, "matrix", self.matrix)
        assert self.signal_shape is not None
        return _rows(y, self.matrix.conj()).reshape(-1, *self.signal_shape)


def _rows(x: Tensor, matrix: Tensor) -> Tensor:
    """X @ matrix; a real matrix meets the two parts of a complex x one by one, without a complex copy of itself."""
    if x.is_complex() and not matrix.is_complex():
        return torch.complex(x.real @ matrix, x.imag @ matrix)
    return x @ matrix


def gaussian_matrix(
    rows: int, columns: int, *, dtype: torch.dtype = torch.float32, generator: torch.Generator | None = None
) -> Tensor:
    """A random sensing matrix with independent normal entries, E|entry|^2 = 1 / rows, so that E|M x|^2 = |x|^2.

    Args:
        rows: m, the number of measurements.
        columns: n, the size of the signal.
        dtype: real or complex; complex entries are circular.
        generator: source of the entries; the matrix is made on its device.

    Returns:
        (m, n).

    Raises:
        TypeError, ValueError: rows or columns is not an int >= 1.
    """
    _check_size(rows, columns)
    device = None if generator is None else generator.device
    return torch.randn(rows, columns, dtype=dtype, device=device, generator=generator) / math.sqrt(rows)


def bernoulli_matrix(
    rows: int, columns: int, *, dtype: torch.dtype = torch.float32, generator: torch.Generator | None = None
) -> Tensor:
    """A random sensing matrix of independent fair signs, entries +-1 / sqrt(rows), so that E|M x|^2 = |x|^2.

    Args:
        rows, columns, dtype, generator: as in `gaussian_matrix`.

    Returns:
        (m, n).

    Raises:
        TypeError, ValueError: rows or columns is not an int >= 1.
    """
    _check_size(rows, columns)
    device = None if generator is None else generator.device
    signs = torch.randint(0, 2, (rows, columns), device=device, generator=generator) * 2 - 1
    return signs.to(dtype) / math.sqrt(rows)


def _check_size(rows: int, columns: int) -> None:
    require_count("rows", rows)
    require_count("columns", columns)


class HadamardSensing(LinearOperator):
    """y = sqrt(n / m) R H D x: random signs, the orthonormal Walsh-Hadamard transform, a choice of its rows.

    Behaves like a random matrix of m rows with E|y|^2 = |x|^2 at n log n operations and n bytes.

    Args:
        rows: which of the n coefficients (natural order) are measured, int64, (m,), distinct.
        signs: +-1, as many as the signal has entries; any dtype.
        signal_shape: of one sample; n = prod(signal_shape) must be a power of 2. Default (n,).

    (A^H A + shift) x = b is solved in closed form, since A A^H = n / m.

    Raises:
        TypeError: rows or signs is not a tensor, or rows does not hold integers.
        ValueError: n is not a power of 2, rows are out of range or repeated, or signs are not +-1.
    """

    rows: Tensor
    signs: Tensor

    def __init__(self, rows: Tensor, signs: Tensor, signal_shape: tuple[int, ...] | None = None) -> None:
        require_tensor("rows", rows)
        require_tensor("signs", signs)
        if rows.dtype != torch.int64:
            raise TypeError(f"rows must be int64, got {rows.dtype}; use rows.long()")
        shape = (signs.numel(),) if signal_shape is None else tuple(signal_shape)
        n = math.prod(shape)
        if n < 1 or n & (n - 1):
            raise ValueError(f"signal_shape must hold a power of 2 entries, got {shape}; pad the signal")
        if signs.is_complex() or signs.numel() != n or not bool((signs.abs() == 1).all()):
            raise ValueError(f"signs must be {n} real numbers +-1, got {signs.numel()} numbers or others")
        if rows.ndim != 1 or not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= n:
            raise ValueError(f"rows must be (m,) indices from 0 to {n - 1}, got {tuple(rows.shape)} or others")
        if bool((rows.sort().values.diff() == 0).any()):
            raise ValueError("rows must be distinct, got repeated ones; use rows.unique()")
        super().__init__(shape, (len(rows),))
        self.register_buffer("rows", rows.clone())
        self.register_buffer("signs", signs.reshape(-1).to(torch.int8))  # of no precision: fits every signal
        self.gain = n / len(rows)

    def forward(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        scale = math.sqrt(self.gain / self.signs.shape[0])
        return _hadamard(x.flatten(1) * self.signs).index_select(1, self.rows) * scale

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_measurement(y)
        assert self.signal_shape is not None
        n = self.signs.shape[0]
        full = y.new_zeros(y.shape[0], n).index_copy(1, self.rows, y * math.sqrt(self.gain / n))
        return (_hadamard(full) * self.signs).reshape(-1, *self.signal_shape)

    def solve_normal(self, b: Tensor, shift: Tensor) -> Tensor:
        """(A^H A + shift)^-1 b: A^H A is n / m times a projection."""
        seen = self.normal(b) / self.gain
        return (b - seen) / shift + seen / (self.gain + shift)


def _hadamard(x: Tensor) -> Tensor:
    """The unscaled Walsh-Hadamard transform of each row of (B, n), n a power of 2, in natural order."""
    batch, n = x.shape
    width = 1
    while width < n:
        pairs = x.reshape(batch, -1, 2, width)
        first, second = pairs.unbind(2)
        x = torch.stack((first + second, first - second), 2).reshape(batch, n)
        width *= 2
    return x


def hadamard_sensing(
    signal_shape: tuple[int, ...], count: int, *, generator: torch.Generator | None = None
) -> HadamardSensing:
    """A random `HadamardSensing` with `count` measurements; rows and signs are uniform.

    Args:
        signal_shape: of one sample, a power of 2 entries.
        count: m, 1 to n.
        generator: source of rows and signs; the operator is made on its device.

    Raises:
        TypeError, ValueError: count is not an int from 1 to n, or n is not a power of 2.
    """
    n = math.prod(signal_shape)
    require_count("count", count)
    if count > n:
        raise ValueError(f"count must be <= {n}, the size of the signal, got {count}")
    device = None if generator is None else generator.device
    rows = torch.randperm(n, device=device, generator=generator)[:count].sort().values
    signs = torch.randint(0, 2, (n,), device=device, generator=generator) * 2 - 1
    return HadamardSensing(rows, signs, signal_shape)
