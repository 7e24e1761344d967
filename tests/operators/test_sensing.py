import math

import pytest
import torch
from scipy.linalg import hadamard

from invreg.lanczos import operator_norm
from invreg.linalg import solve_normal
from invreg.operators import HadamardSensing, MatrixSensing, bernoulli_matrix, gaussian_matrix, hadamard_sensing
from invreg.random import draw
from invreg.testing import relative_gap


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def test_measurement_is_the_matrix_times_the_flattened_signal() -> None:
    matrix, x = noise(5, 6), noise(2, 2, 3, dtype=torch.complex128, seed=1)
    want = torch.stack([matrix.to(torch.complex128) @ one.flatten() for one in x])
    assert relative_gap(MatrixSensing(matrix, (2, 3))(x), want) < 1e-14


def test_adjoint_conjugates_the_matrix() -> None:
    matrix, y = noise(5, 6, dtype=torch.complex128), noise(1, 5, dtype=torch.complex128, seed=1)
    assert relative_gap(MatrixSensing(matrix).adjoint(y)[0], matrix.mH @ y[0]) < 1e-14


def test_gradient_reaches_the_matrix() -> None:
    x, y = noise(1, 4, seed=1), noise(1, 3, seed=2)
    matrix = noise(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: (MatrixSensing(m)(x), MatrixSensing(m).adjoint(y)), matrix)


@pytest.mark.parametrize("make", [gaussian_matrix, bernoulli_matrix])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_random_matrices_keep_the_mean_energy(make: object, dtype: torch.dtype) -> None:
    assert callable(make)
    matrix = make(200, 300, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert matrix.dtype == dtype
    assert matrix.shape == (200, 300)
    assert float(matrix.abs().square().sum(0).mean()) == pytest.approx(1, rel=0.02)
    again = make(200, 300, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert torch.equal(matrix, again)


def test_bernoulli_entries_are_fair_signs() -> None:
    matrix = bernoulli_matrix(400, 100, generator=torch.Generator().manual_seed(0)) * 20
    assert torch.allclose(matrix.abs(), torch.ones(400, 100))
    assert abs(float(matrix.mean())) < 4 / math.sqrt(40000)


@pytest.mark.parametrize("shape", [(1,), (2,), (16,), (4, 8)])
def test_fast_hadamard_measurement_is_the_dense_one(shape: tuple[int, ...]) -> None:
    n = math.prod(shape)
    generator = torch.Generator().manual_seed(0)
    operator = hadamard_sensing(shape, max(1, n // 2), generator=generator)
    dense = torch.from_numpy(hadamard(n)).double()[operator.rows] * operator.signs
    dense = dense / math.sqrt(len(operator.rows))  # sqrt(n / m) times the orthonormal H / sqrt(n)
    x = noise(3, *shape)
    assert relative_gap(operator(x), x.flatten(1) @ dense.T) < 1e-14
    y = noise(3, len(operator.rows), dtype=torch.complex128)
    assert relative_gap(operator.adjoint(y).flatten(1), y @ dense.to(y.dtype)) < 1e-14


def test_hadamard_sensing_serves_both_precisions() -> None:
    operator = hadamard_sensing((8,), 3, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        x = noise(2, 8, dtype=dtype)
        assert operator(x).dtype == dtype
        assert operator.normal(x).dtype == dtype


def test_hadamard_sensing_of_all_rows_is_unitary() -> None:
    operator = hadamard_sensing((16,), 16, generator=torch.Generator().manual_seed(0))
    x = noise(2, 16)
    assert relative_gap(operator.normal(x), x) < 1e-14


def test_hadamard_normal_equations_are_solved_in_closed_form() -> None:
    operator = hadamard_sensing((4, 8), 11, generator=torch.Generator().manual_seed(0))
    b = noise(2, 4, 8, dtype=torch.complex128)
    shift = torch.tensor([0.01, 3.0], dtype=torch.float64).reshape(2, 1, 1)
    x = solve_normal(operator, b, shift).x
    assert relative_gap(operator.normal(x) + shift * x, b) < 1e-12


def test_hadamard_norm_is_the_root_of_the_undersampling() -> None:
    operator = hadamard_sensing((64,), 16, generator=torch.Generator().manual_seed(0))
    assert float(operator_norm(operator, noise(1, 64))) == pytest.approx(2.0, rel=1e-9)


def test_wrong_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"matrix must be \(m, n\), got \(3,\)"):
        MatrixSensing(torch.ones(3))
    with pytest.raises(ValueError, match=r"matrix must have 6 columns for signals \(2, 3\), got 5"):
        MatrixSensing(torch.ones(4, 5), (2, 3))
    with pytest.raises(ValueError, match="matrix must be finite"):
        MatrixSensing(torch.full((2, 2), float("inf")))
    with pytest.raises(TypeError, match="matrix must be floating point or complex, got torch.int64"):
        MatrixSensing(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match="x is torch.float64 but matrix is torch.float32"):
        MatrixSensing(torch.ones(2, 2))(torch.ones(1, 2, dtype=torch.float64))
    with pytest.raises(TypeError, match="x is torch.float32 but matrix is torch.complex64"):
        MatrixSensing(torch.ones(2, 2, dtype=torch.complex64))(torch.ones(1, 2))
    with pytest.raises(ValueError, match="rows must be >= 1"):
        gaussian_matrix(0, 3)
    with pytest.raises(ValueError, match="columns must be >= 1"):
        bernoulli_matrix(3, 0)


def test_wrong_hadamard_choices_are_refused() -> None:
    signs = torch.ones(8)
    with pytest.raises(ValueError, match="signal_shape must hold a power of 2 entries"):
        hadamard_sensing((3, 4), 2)
    with pytest.raises(ValueError, match="count must be <= 8, the size of the signal, got 9"):
        hadamard_sensing((8,), 9)
    with pytest.raises(ValueError, match="rows must be distinct"):
        HadamardSensing(torch.tensor([1, 1]), signs)
    with pytest.raises(ValueError, match="indices from 0 to 7"):
        HadamardSensing(torch.tensor([8]), signs)
    with pytest.raises(ValueError, match=r"signs must be 8 real numbers \+-1"):
        HadamardSensing(torch.tensor([1]), 2 * signs)
    with pytest.raises(TypeError, match="rows must be int64, got torch.float32"):
        HadamardSensing(torch.tensor([1.0]), signs)
