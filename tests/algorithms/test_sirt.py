import pytest
import torch
from torch import Tensor

from invreg.algorithms import SIRT
from invreg.operators import MaskedFourier, MatrixSensing, ValidBlur, motion_kernel
from invreg.operators.nonlinear import PhaseRetrieval
from invreg.problem import Problem
from invreg.random import draw
from invreg.regularizers import L1


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def rays() -> Tensor:
    return noise(14, 6).abs()


def test_a_consistent_image_is_a_fixed_point() -> None:
    operator, x = MatrixSensing(rays()), noise(2, 6, seed=1)
    result = SIRT(iterations=5, rtol=0.0).solve(Problem(operator, operator(x)), None, x)
    torch.testing.assert_close(result.x, x, rtol=1e-12, atol=1e-12)


def test_one_step_is_the_published_one() -> None:
    matrix, x, y = rays(), noise(1, 6, seed=1), noise(1, 14, seed=2)
    state = next(SIRT(relaxation=1.5).iterate(Problem(MatrixSensing(matrix), y), None, x))
    step = matrix.mT @ ((y[0] - matrix @ x[0]) / matrix.sum(1)) / matrix.sum(0)
    torch.testing.assert_close(state.x[0], x[0] + 1.5 * step)


@pytest.mark.parametrize("relaxation", [1.0, 1.9])
def test_it_converges_to_least_squares_weighted_by_row_sums(relaxation: float) -> None:
    matrix, y = rays(), noise(2, 14, seed=2)
    result = SIRT(iterations=4000, rtol=0.0, relaxation=relaxation).solve(Problem(MatrixSensing(matrix), y), None)
    root = matrix.sum(1).rsqrt()
    expected = torch.linalg.lstsq(root[:, None] * matrix, (root * y).mT).solution.mT
    torch.testing.assert_close(result.x, expected, rtol=1e-6, atol=1e-7)


def test_relaxation_may_approach_two_because_one_bounds_the_spectrum() -> None:
    matrix = rays()
    root = matrix.sum(1).rsqrt()[:, None] * matrix * matrix.sum(0).rsqrt()
    assert float(torch.linalg.matrix_norm(root, 2)) == pytest.approx(1.0)


def test_positive_images_stay_positive_and_optimal() -> None:
    matrix, y = rays(), noise(2, 14, seed=2)
    x = SIRT(iterations=4000, rtol=0.0, positive=True).solve(Problem(MatrixSensing(matrix), y), None).x
    assert (x >= 0).all()
    assert (x == 0).any()
    gradient = ((x @ matrix.mT - y) / matrix.sum(1)) @ matrix
    assert (gradient >= -1e-7).all()
    assert float((gradient * x).abs().max()) < 1e-7


def test_unseen_pixels_and_empty_rays_stay_as_they_were() -> None:
    matrix = rays()
    matrix[:, 2], matrix[5] = 0, 0
    x0 = torch.full((1, 6), 0.75).double()
    x = SIRT(iterations=50).solve(Problem(MatrixSensing(matrix), noise(1, 14, seed=2)), None, x0).x
    assert x.isfinite().all()
    assert float(x[0, 2]) == 0.75


def test_negative_sums_of_the_size_of_rounding_are_no_negative_entries() -> None:
    operator = ValidBlur(motion_kernel(9, 0.5), (32, 32))  # by a fast transform
    y = operator(noise(1, 32, 32).abs().float())
    assert float(operator.adjoint(torch.ones_like(y)).min()) < 0
    assert SIRT(iterations=5).solve(Problem(operator, y), None).x.isfinite().all()


def test_what_it_cannot_do_is_named() -> None:
    problem = Problem(MatrixSensing(rays()), noise(1, 14))
    with pytest.raises(ValueError, match="relaxation must be < 2, got 2.0"):
        SIRT(relaxation=2.0)
    with pytest.raises(ValueError, match="relaxation must be finite and > 0"):
        SIRT(relaxation=0.0)
    with pytest.raises(TypeError, match="SIRT takes no prior, got L1"):
        SIRT().solve(problem, L1())
    with pytest.raises(ValueError, match="without negative entries"):
        SIRT().solve(Problem(MatrixSensing(-rays()), noise(1, 14)), None)
    fourier = MaskedFourier(torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="SIRT needs real measurements, got torch.complex128"):
        SIRT().solve(Problem(fourier, noise(1, 4, 4, dtype=torch.complex128)), None)
    bent = Problem(PhaseRetrieval(MatrixSensing(rays())), noise(1, 14).abs())
    with pytest.raises(TypeError, match="SIRT needs a LinearOperator, got PhaseRetrieval"):
        SIRT().solve(bent, None, torch.zeros(1, 6).double())
