import pytest
import torch
from torch import Tensor

from invreg.algorithms import FISTA, HQS
from invreg.interfaces import Denoiser
from invreg.noise import Gaussian, Poisson
from invreg.operators import MatrixSensing
from invreg.problem import Problem
from invreg.random import draw
from invreg.regularizers import L1, NonNegative, PlugAndPlay, SumOfTerms


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


class Smoothing(Denoiser):
    """Mean of three neighbours, the stronger the greater sigma is."""

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        level = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1).square()
        mean = (x.roll(1, 1) + x + x.roll(-1, 1)) / 3
        return (x + level * mean) / (1 + level)


@pytest.mark.parametrize("sigma", [1.0, 0.01])
def test_denoising_approaches_soft_thresholding_as_the_coupling_grows(sigma: float) -> None:
    y = 2 * noise(2, 50)
    problem, prior = Problem(MatrixSensing(torch.eye(50).double()), y, Gaussian(sigma)), L1(0.5 / sigma**2)
    exact = y.sign() * (y.abs() - 0.5).clamp_min(0)
    errors = [
        float(
            (HQS(iterations=n, last=last, inner_iterations=1, rtol=0.0).solve(problem, prior).x - exact).norm()
            / exact.norm()
        )
        for n, last in ((30, 10.0), (150, 100.0), (750, 1000.0))
    ]
    assert errors[0] < 0.1
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3


def test_an_invertible_operator_approaches_the_lasso_solution() -> None:
    u, v = torch.linalg.qr(noise(20, 20))[0], torch.linalg.qr(noise(20, 20, seed=1))[0]
    problem = Problem(MatrixSensing(u * torch.logspace(0, -0.5, 20).double() @ v), noise(1, 20, seed=2))
    peer = FISTA(iterations=2000, rtol=0.0).solve(problem, L1(0.1)).x
    x = HQS(iterations=300, last=100.0, rtol=0.0).solve(problem, L1(0.1)).x
    assert float((x - peer).norm() / peer.norm()) < 0.02


def test_a_denoiser_takes_the_place_of_the_prior() -> None:
    line = torch.linspace(0, 6, 64).double().sin()[None]
    matrix = noise(48, 64) / 8
    operator = MatrixSensing(matrix)
    problem = Problem(operator, operator(line) + 0.05 * noise(1, 48, seed=3), Gaussian(0.05))
    result = HQS(first=1e-3, last=0.1, iterations=30, inner_iterations=30).solve(problem, PlugAndPlay(Smoothing(), 5.0))
    unregularized = torch.linalg.lstsq(matrix, problem.y[0]).solution[None]
    assert float((result.x - line).norm()) < 0.5 * float((unregularized - line).norm())
    assert result.history.penalty.isnan().all()


def test_coupling_grows_geometrically_from_first_to_last() -> None:
    steps: list[float] = []

    class Recording:
        def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
            steps.append(float(torch.as_tensor(step).max()))
            return x

    problem = Problem(MatrixSensing(2 * torch.eye(3).double()), noise(1, 3), Gaussian(0.5))
    HQS(iterations=5, first=0.01, last=1.0, rtol=0.0).solve(problem, Recording())
    rho = torch.tensor(steps).double().reciprocal() / 16  # |A|^2 / sigma^2 = 16
    torch.testing.assert_close(rho, torch.logspace(-2, 0, 5).double(), rtol=0.02, atol=0)


def test_what_it_cannot_do_is_named() -> None:
    problem = Problem(MatrixSensing(torch.eye(3).double()), noise(1, 3).abs())
    with pytest.raises(ValueError, match="last must be >= first = 0.1, got 0.01"):
        HQS(first=0.1, last=0.01)
    with pytest.raises(ValueError, match="first must be finite and > 0"):
        HQS(first=0.0)
    with pytest.raises(ValueError, match="inner_iterations must be"):
        HQS(inner_iterations=0)
    with pytest.raises(TypeError, match="HQS needs a prior with a prox, got SumOfTerms; PDHG"):
        HQS().solve(problem, SumOfTerms(L1(), NonNegative()))
    with pytest.raises(TypeError, match="HQS needs a prior with a prox, got NoneType"):
        HQS().solve(problem, None)
    with pytest.raises(TypeError, match="got MatrixSensing and Poisson; FISTA takes any"):
        HQS().solve(Problem(problem.operator, problem.y, Poisson()), L1())
