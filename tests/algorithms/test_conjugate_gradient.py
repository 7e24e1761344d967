import pytest
import torch
from torch import Tensor

from invreg.algorithms import ConjugateGradient, Status
from invreg.noise import Gaussian, Poisson
from invreg.operators import Gradient, MatrixSensing
from invreg.problem import Problem
from invreg.random import draw
from invreg.regularizers import L1, Box, NonNegative, SumOfTerms, Tikhonov, TotalVariation


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_least_squares_agree_with_a_dense_solve(dtype: torch.dtype, weight: float) -> None:
    matrix, y = noise(15, 8, dtype=dtype), noise(3, 15, dtype=dtype, seed=1)
    sigma = noise(3, 15, seed=2).abs() + 0.3
    result = ConjugateGradient(iterations=40, rtol=0.0).solve(
        Problem(MatrixSensing(matrix), y, Gaussian(sigma)), Tikhonov(weight) if weight else None
    )
    for i in range(3):
        weighted = matrix / sigma[i, :, None] ** 2
        hessian = matrix.mH @ weighted + weight * torch.eye(8).to(dtype)
        expected = torch.linalg.solve(hessian, weighted.mH @ y[i])
        torch.testing.assert_close(result.x[i], expected, rtol=1e-8, atol=1e-9)


def test_tikhonov_with_a_gradient_agrees_with_a_dense_solve() -> None:
    matrix, y, gradient = noise(20, 16), noise(1, 20, seed=1), Gradient(2)
    result = ConjugateGradient(iterations=60, rtol=0.0).solve(
        Problem(MatrixSensing(matrix, (4, 4)), y), Tikhonov(2.0, gradient)
    )
    basis = gradient.normal(torch.eye(16).double().reshape(16, 4, 4)).reshape(16, 16)
    expected = torch.linalg.solve(matrix.mT @ matrix + 2.0 * basis, matrix.mT @ y[0]).reshape(1, 4, 4)
    torch.testing.assert_close(result.x, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("weight", "solution"), [(0.5, 2.0), (1.0, 1.5), (2.0, 1.0), (5.0, 0.5)])
def test_a_quadratic_has_its_known_minimiser(weight: float, solution: float) -> None:
    problem = Problem(MatrixSensing(torch.eye(1).double()), torch.full((1, 1), 3.0).double())
    assert float(ConjugateGradient().solve(problem, Tikhonov(weight)).x) == pytest.approx(solution, abs=1e-12)


def test_as_many_steps_as_distinct_eigenvalues_are_needed() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1.0, 2.0, 2.0, 5.0]).double())
    y = noise(1, 5)
    x = ConjugateGradient(iterations=3, rtol=0.0).solve(Problem(MatrixSensing(matrix), y), None).x
    torch.testing.assert_close(x, y / matrix.diagonal(), rtol=1e-10, atol=1e-12)


def test_a_solved_sample_rests_while_others_go_on() -> None:
    matrix = torch.diag(torch.logspace(0, -1, 6).double())
    y = torch.stack([torch.zeros(6).double(), matrix[0], noise(6)])
    result = ConjugateGradient(iterations=200, rtol=0.0).solve(Problem(MatrixSensing(matrix), y), None)
    assert result.x.isfinite().all()
    torch.testing.assert_close(result.x, y / matrix.diagonal(), rtol=1e-8, atol=1e-10)


def test_a_first_image_is_used_and_ends_the_loop_if_it_solves() -> None:
    matrix, x0 = noise(8, 4), noise(1, 4, seed=1)
    operator = MatrixSensing(matrix)
    result = ConjugateGradient(check_every=1, rtol=1e-8).solve(Problem(operator, operator(x0)), None, x0)
    assert result.iterations == 1
    assert result.status == (Status.CONVERGED,)
    torch.testing.assert_close(result.x, x0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_image_scales_with_the_data(dtype: torch.dtype, scale: float) -> None:
    operator, y = MatrixSensing(noise(15, 8, dtype=dtype)), noise(1, 15, dtype=dtype, seed=1)
    plain = ConjugateGradient(iterations=8, rtol=0.0).solve(Problem(operator, y), Tikhonov(0.5)).x
    scaled = ConjugateGradient(iterations=8, rtol=0.0).solve(Problem(operator, y * scale), Tikhonov(0.5)).x
    torch.testing.assert_close(scaled / scale, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "prior",
    [
        L1(0.1),
        TotalVariation(0.1),
        NonNegative(),
        Box(0.0, 1.0),
        Box(-1000.0, 3000.0),  # so wide that no probe leaves it
        SumOfTerms(Tikhonov(), NonNegative()),
        SumOfTerms(Tikhonov(), Box(-1000.0, 3000.0)),
    ],
)
def test_a_prior_that_is_not_quadratic_is_refused(prior: L1) -> None:
    operator = MatrixSensing(noise(20, 16), (4, 4))
    with pytest.raises(TypeError, match=f"needs no prior or Tikhonov, got {type(prior).__name__}; FISTA and PDHG"):
        ConjugateGradient().solve(Problem(operator, noise(1, 20)), prior)


def test_a_sum_of_quadratics_is_quadratic() -> None:
    matrix, y = noise(10, 4), noise(1, 10, seed=1)
    x = ConjugateGradient().solve(Problem(MatrixSensing(matrix), y), SumOfTerms(Tikhonov(0.5), Tikhonov(1.5))).x
    expected = torch.linalg.solve(matrix.mT @ matrix + 2 * torch.eye(4).double(), matrix.mT @ y[0])[None]
    torch.testing.assert_close(x, expected)


def test_other_noise_is_refused() -> None:
    operator = MatrixSensing(noise(10, 4).abs())
    with pytest.raises(
        TypeError, match="ConjugateGradient needs a LinearOperator and Gaussian noise, got Matr.*Poisson"
    ):
        ConjugateGradient().solve(Problem(operator, torch.ones(1, 10).double(), Poisson()), None)
