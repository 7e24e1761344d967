import pytest
import torch
from torch import Tensor

from invreg.algorithms import ADMM, FISTA, PDHG
from invreg.noise import Gaussian, Poisson, TransmissionPoisson
from invreg.operators import Blur, MaskedFourier, MatrixSensing, gaussian_kernel
from invreg.operators.nonlinear import PhaseRetrieval
from invreg.problem import Problem
from invreg.random import draw
from invreg.regularizers import L1, RED, Box, NonNegative, SumOfTerms, Tikhonov, TotalVariation


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def deblurring(sigma: float = 0.1) -> Problem:
    image = torch.zeros(1, 12, 12).double()
    image[:, 3:9, 4:8], image[:, 6:, 6:] = 1.0, -0.5
    operator = Blur(gaussian_kernel(0.5, dtype=torch.float64), (12, 12))
    return Problem(operator, operator(image) + 0.1 * noise(1, 12, 12), Gaussian(sigma))


def objective(problem: Problem, prior: TotalVariation, x: Tensor) -> float:
    return float(problem.misfit(x) + prior(x))


@pytest.mark.parametrize("sigma", [0.1, pytest.param(1e-3, marks=pytest.mark.slow)])
def test_three_algorithms_reach_one_total_variation_objective(sigma: float) -> None:
    problem, weight = deblurring(sigma), 0.06 / sigma**2
    prior = TotalVariation(weight, rtol=1e-5, iterations=2000)
    found = {
        "PDHG": PDHG(iterations=700, rtol=0.0).solve(problem, prior).x,
        "ADMM": ADMM(iterations=300, rtol=0.0).solve(problem, prior).x,
        "FISTA": FISTA(iterations=12, rtol=0.0).solve(problem, prior).x,
    }
    values = {name: objective(problem, prior, x) for name, x in found.items()}
    least = min(values.values())
    assert {name: v / least - 1 for name, v in values.items() if v > least * (1 + 1e-6)} == {}


@pytest.mark.parametrize("algorithm", [PDHG(iterations=800, rtol=0.0), ADMM(iterations=300, rtol=0.0)])
def test_total_variation_with_a_constraint_obeys_it_and_is_optimal(algorithm: PDHG | ADMM) -> None:
    problem, total = deblurring(1.0), TotalVariation(0.06)
    x = algorithm.solve(problem, SumOfTerms(total, NonNegative())).x
    assert (x >= 0).all()
    other = PDHG(iterations=1500, rtol=0.0, adaptive=False).solve(problem, SumOfTerms(NonNegative(), total)).x
    assert objective(problem, total, x) == pytest.approx(objective(problem, total, other), rel=1e-5)
    # no feasible direction among many goes down
    value = objective(problem, total, x)
    for seed in range(20):
        moved = (x + 0.01 * noise(1, 12, 12, seed=seed)).clamp_min(0)
        assert objective(problem, total, moved) >= value


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize(("weight", "solution"), [(0.5, 2.0), (1.0, 1.5), (2.0, 1.0), (5.0, 0.5)])
def test_a_quadratic_has_its_known_minimiser(adaptive: bool, weight: float, solution: float) -> None:
    problem = Problem(MatrixSensing(torch.eye(1).double()), torch.full((1, 1), 3.0).double())
    x = PDHG(iterations=500, rtol=0.0, adaptive=adaptive).solve(problem, Tikhonov(weight)).x
    assert float(x) == pytest.approx(solution, abs=1e-8)


def lasso() -> tuple[Problem, L1]:
    u, v = torch.linalg.qr(noise(20, 20))[0], torch.linalg.qr(noise(20, 20, seed=1))[0]
    matrix = u * torch.logspace(0, -1, 20).double() @ v
    return Problem(MatrixSensing(matrix), noise(1, 20, seed=2)), L1(0.05)


def mri() -> tuple[Problem, TotalVariation]:
    operator = MaskedFourier(noise(12, 12) > -0.3)
    image = deblurring().y.to(torch.complex128)
    y = operator(image) + 0.02 * operator(noise(1, 12, 12, dtype=torch.complex128, seed=3))
    return Problem(operator, y, Gaussian(0.02)), TotalVariation(20.0)


@pytest.mark.parametrize("name", ["lasso", "deblurring", "mri"])
def test_balancing_is_never_much_worse_than_fixed_steps(name: str) -> None:
    problem, prior = {"lasso": lasso(), "deblurring": (deblurring(), TotalVariation(6.0)), "mri": mri()}[name]
    values: dict[bool, dict[int, float]] = {True: {}, False: {}}
    for adaptive in (True, False):
        run = PDHG(iterations=1200, rtol=0.0, adaptive=adaptive).iterate(problem, prior)
        for state in run:
            if run.iteration in {50, 100, 200, 1200}:
                values[adaptive][run.iteration] = objective(problem, prior, state.x)
    best = min(values[True][1200], values[False][1200])
    for iterations in (50, 100, 200):
        gap = {adaptive: values[adaptive][iterations] - best for adaptive in (True, False)}
        assert gap[True] <= 2 * gap[False] + 1e-9 * best, iterations


@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_the_image_scales_with_the_data(scale: float) -> None:
    problem, prior = lasso()
    plain = PDHG(iterations=100, rtol=0.0).solve(problem, prior).x
    scaled = PDHG(iterations=100, rtol=0.0).solve(
        Problem(problem.operator, problem.y * scale), L1(prior.weight * scale)
    )
    torch.testing.assert_close(scaled.x / scale, plain, rtol=1e-6, atol=1e-8)


def test_operators_of_any_scale_converge() -> None:
    problem, prior = lasso()
    expected = FISTA(iterations=3000, rtol=0.0).solve(problem, prior).x
    for scale in (1e-3, 1e3):
        operator = MatrixSensing(problem.operator.matrix * scale)
        scaled = Problem(operator, problem.y * scale, Gaussian(scale))
        x = PDHG(iterations=2000, rtol=0.0).solve(scaled, prior).x
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)


def test_poisson_noise_by_its_prox_agrees_with_fista() -> None:
    operator, model = MatrixSensing(noise(20, 10).abs()), Poisson(40.0, 1.0)
    y = model.sample(operator(noise(2, 10, seed=1).abs()), torch.Generator().manual_seed(2))
    problem = Problem(operator, y, model)
    x = PDHG(iterations=2000, rtol=0.0).solve(problem, NonNegative()).x
    peer = FISTA(iterations=1500, rtol=0.0).solve(problem, NonNegative(), torch.ones(2, 10).double()).x
    torch.testing.assert_close(problem.misfit(x), problem.misfit(peer), rtol=1e-5, atol=1e-6)


def test_no_prior_and_a_zero_operator_do_no_harm() -> None:
    problem, _ = lasso()
    exact = torch.linalg.solve(problem.operator.matrix, problem.y[0])[None]
    torch.testing.assert_close(PDHG(iterations=3000, rtol=0.0).solve(problem, None).x, exact, rtol=1e-4, atol=1e-4)
    nothing = Problem(MatrixSensing(torch.zeros(3, 2).double()), torch.ones(1, 3).double())
    start = torch.ones(1, 2).double()
    assert torch.equal(PDHG().solve(nothing, None, start).x, start)
    assert torch.equal(PDHG().solve(nothing, Box(0.0, 0.5), start).x, start / 2)


def test_what_it_cannot_do_is_named() -> None:
    problem, _ = lasso()
    with pytest.raises(ValueError, match="balance must be finite and > 0"):
        PDHG(balance=0.0)
    bent = Problem(PhaseRetrieval(problem.operator), problem.y.abs())
    with pytest.raises(
        TypeError, match="PDHG needs a LinearOperator and a noise model with a prox, got PhaseRetrieval"
    ):
        PDHG().solve(bent, None, torch.zeros(1, 20).double())
    counts = Problem(problem.operator, problem.y.abs(), TransmissionPoisson(10.0))
    with pytest.raises(TypeError, match="got MatrixSensing and TransmissionPoisson; FISTA"):
        PDHG().solve(counts, None)

    from invreg.interfaces import Denoiser

    class Same(Denoiser):
        def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            return x

    with pytest.raises(TypeError, match="PDHG needs a prior with terms or a prox, got RED; GradientDescent"):
        PDHG().solve(problem, RED(Same(), 0.1))
