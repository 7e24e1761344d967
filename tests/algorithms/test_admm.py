import pytest
import torch
from torch import Tensor

from invreg.algorithms import ADMM, FISTA
from invreg.interfaces import Denoiser
from invreg.noise import Gaussian, Poisson
from invreg.operators import MaskedFourier, MatrixSensing
from invreg.problem import Problem
from invreg.random import draw
from invreg.regularizers import L1, RED, NonNegative, PlugAndPlay, SumOfTerms, Tikhonov


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


class Shrinking(Denoiser):
    """The most probable image under a Gaussian prior of unit variance."""

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        level = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        return x / (1 + level**2)


def problem(sigma: float = 1.0) -> Problem:
    u, v = torch.linalg.qr(noise(20, 20))[0], torch.linalg.qr(noise(20, 20, seed=1))[0]
    matrix = u * torch.logspace(0, -1, 20).double() @ v
    return Problem(MatrixSensing(matrix), noise(2, 20, seed=2), Gaussian(sigma))


@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize(("weight", "solution"), [(0.5, 2.0), (1.0, 1.5), (2.0, 1.0), (5.0, 0.5)])
def test_a_quadratic_has_its_known_minimiser(balance: bool, weight: float, solution: float) -> None:
    one = Problem(MatrixSensing(torch.eye(1).double()), torch.full((1, 1), 3.0).double())
    x = ADMM(iterations=100, rtol=0.0, balance=balance).solve(one, Tikhonov(weight)).x
    assert float(x) == pytest.approx(solution, abs=1e-9)


@pytest.mark.parametrize("sigma", [1.0, 1e-3])
@pytest.mark.parametrize("rho", [None, 0.1])
def test_lasso_agrees_with_fista(sigma: float, rho: float | None) -> None:
    p, prior = problem(sigma), L1(0.05 / sigma**2)
    x = ADMM(iterations=300, rtol=0.0, rho=None if rho is None else rho / sigma**2).solve(p, prior).x
    torch.testing.assert_close(x, FISTA(iterations=2000, rtol=0.0).solve(p, prior).x, rtol=1e-5, atol=1e-6)


def test_the_image_obeys_a_constraint_exactly_and_is_optimal() -> None:
    p, prior = problem(), SumOfTerms(NonNegative(), Tikhonov(0.1))
    x = ADMM(iterations=100, rtol=0.0).solve(p, prior).x
    gradient = p.misfit_gradient(x) + 0.1 * x
    assert (x >= 0).all()
    torch.testing.assert_close(x, (x - gradient).clamp_min(0), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_badly_chosen_penalty_is_balanced(factor: float) -> None:
    p, prior = problem(), L1(0.05)
    start = ADMM().init(p, prior, None).rho.mean()
    answer = FISTA(iterations=4000, rtol=0.0).solve(p, prior).x
    error = {
        balance: (ADMM(iterations=60, rtol=0.0, rho=float(start) * factor, balance=balance).solve(p, prior).x - answer)
        for balance in (True, False)
    }
    assert error[True].norm() <= 1e-6 * answer.norm()
    assert error[False].norm() >= 1e-3 * answer.norm()


def test_closed_form_systems_give_the_same_as_conjugate_gradients() -> None:
    operator = MaskedFourier(noise(8, 8) > -0.3)
    y = operator(noise(2, 8, 8, dtype=torch.complex128, seed=1))
    p, prior = Problem(operator, y, Gaussian(0.2)), L1(1.0)
    closed = ADMM(iterations=150, rtol=0.0).solve(p, prior).x
    split = ADMM(iterations=150, rtol=0.0).solve(p, SumOfTerms(L1(0.5), L1(0.5))).x  # two terms: conjugate gradients
    peer = FISTA(iterations=1000, rtol=0.0).solve(p, prior).x
    torch.testing.assert_close(closed, peer, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(split, peer, rtol=1e-4, atol=1e-5)


def test_plug_and_play_with_a_known_denoiser_reaches_its_prior() -> None:
    """With sigma^2 = 1 / rho the denoiser is the prox of |x|^2 / 2."""
    p = problem()
    x = ADMM(iterations=200, rtol=0.0).solve(p, PlugAndPlay(Shrinking())).x
    matrix = p.operator.matrix
    ridge = torch.linalg.solve(matrix.mT @ matrix + torch.eye(20).double(), (p.y @ matrix).mT).mT
    torch.testing.assert_close(x, ridge, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_the_image_scales_with_the_data(scale: float) -> None:
    p = problem()
    plain = ADMM(iterations=50, rtol=0.0).solve(p, L1(0.05)).x
    scaled = ADMM(iterations=50, rtol=0.0).solve(Problem(p.operator, p.y * scale), L1(0.05 * scale)).x
    torch.testing.assert_close(scaled / scale, plain, rtol=1e-6, atol=1e-8)


def test_what_it_cannot_do_is_named() -> None:
    p = problem()
    with pytest.raises(ValueError, match="rho must be finite and > 0"):
        ADMM(rho=0.0)
    with pytest.raises(ValueError, match="relaxation must be < 2, got 2.0"):
        ADMM(relaxation=2.0)
    with pytest.raises(ValueError, match="relaxation must be finite and > 0"):
        ADMM(relaxation=0.0)
    with pytest.raises(ValueError, match="inner_iterations must be"):
        ADMM(inner_iterations=0)
    with pytest.raises(TypeError, match="ADMM needs a prior, got None; ConjugateGradient"):
        ADMM().solve(p, None)
    with pytest.raises(TypeError, match="got MatrixSensing and Poisson; PDHG takes noise with a prox"):
        ADMM().solve(Problem(p.operator, p.y.abs(), Poisson()), L1())
    with pytest.raises(TypeError, match="ADMM needs a prior with terms or a prox, got RED"):
        ADMM().solve(p, RED(Shrinking(), 0.1))
