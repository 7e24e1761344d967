import math

import pytest
import torch
from torch import Tensor

from invreg.algorithms import FISTA, PDHG, ProximalGradient, Status
from invreg.noise import Gaussian, Poisson, TransmissionPoisson
from invreg.operators import Blur, MatrixSensing, gaussian_kernel
from invreg.problem import Problem
from invreg.random import draw
from invreg.regularizers import L1, NonNegative, SumOfTerms, Tikhonov, TotalVariation


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def conditioned(n: int, last: float) -> Tensor:
    """A square matrix with singular values from 1 to 10^last."""
    u, v = torch.linalg.qr(noise(n, n))[0], torch.linalg.qr(noise(n, n, seed=1))[0]
    return u * torch.logspace(0, last, n).double() @ v


def lasso(n: int = 40) -> tuple[Problem, L1]:
    matrix = conditioned(n, -2)
    truth = noise(1, n, seed=2) * (torch.arange(n) % 5 == 0)
    y = truth @ matrix.mT + 0.01 * noise(1, n, seed=3)
    return Problem(MatrixSensing(matrix), y), L1(3e-3)


def lasso_solution(problem: Problem, weight: float, near: Tensor) -> Tensor:
    """The exact minimiser, from the signs of a near one: its optimality conditions are checked."""
    matrix, y = problem.operator.matrix, problem.y[0]
    support = near[0].abs() > 1e-6
    signs = near[0][support].sign()
    part = matrix[:, support]
    x = torch.zeros_like(near)
    x[0, support] = torch.linalg.solve(part.mT @ part, part.mT @ y - weight * signs)
    slope = matrix.mT @ (y - matrix @ x[0])
    assert torch.equal(x[0][support].sign(), signs)
    assert (slope[~support].abs() <= weight).all()
    return x


def test_fista_solves_an_ill_conditioned_lasso() -> None:
    problem, prior = lasso()
    near = FISTA(iterations=6000, rtol=0.0).solve(problem, prior).x
    best = float(problem.misfit(x := lasso_solution(problem, 3e-3, near)) + prior(x))
    result = FISTA(iterations=1000, rtol=0.0).solve(problem, prior)
    plain = ProximalGradient(iterations=1000, rtol=0.0).solve(problem, prior)
    gap, plain_gap = (float(r.history.objective[-1]) - best for r in (result, plain))
    assert -1e-12 <= gap <= 1e-8
    assert plain_gap > 100 * abs(gap)


def test_fista_keeps_the_rate_of_its_theory() -> None:
    """F(x_k) - F* <= 2 |x0 - x*|^2 L / (k + 1)^2 for the classical momentum, a constant more for a = 3."""
    problem, prior = lasso()
    best = FISTA(iterations=6000, rtol=0.0).solve(problem, prior)
    record = FISTA(iterations=200, rtol=0.0, restart=False, check_every=1).solve(problem, prior).history
    gap = record.objective[:, 0] - best.history.objective[-1, 0]
    k = record.checked.double()
    bound = 3**2 / 2 * best.x.square().sum() * 1.02 / (k + 2) ** 2
    assert (gap <= bound).all()


@pytest.mark.parametrize("a", [3.0, 5.5])
def test_momentum_is_k_minus_1_over_k_plus_a(a: float) -> None:
    problem, prior = lasso()
    run = FISTA(iterations=50, a=a, restart=False).iterate(problem, prior)
    before = run.state.x
    for k, state in enumerate(run, start=1):
        expected = state.x + (k - 1) / (k + a) * (state.x - before)
        torch.testing.assert_close(state.ahead, expected, rtol=1e-12, atol=1e-14)
        before = state.x


def test_restart_makes_a_strongly_convex_problem_converge_linearly() -> None:
    problem = Problem(MatrixSensing(conditioned(30, -1.5)), noise(1, 30, seed=4))
    exact = torch.linalg.solve(problem.operator.matrix, problem.y[0])
    errors = [
        float((FISTA(iterations=1000, rtol=0.0, restart=restart).solve(problem, None).x[0] - exact).norm())
        for restart in (True, False)
    ]
    assert errors[0] < 1e-3 * errors[1]


@pytest.mark.parametrize("algorithm", [FISTA(iterations=400, rtol=0.0), ProximalGradient(iterations=400, rtol=0.0)])
def test_the_image_scales_with_the_data(algorithm: FISTA) -> None:
    matrix = conditioned(20, -1).float()
    y = noise(1, 20, seed=5).float()
    for scale in (1e-6, 1e6):
        plain = algorithm.solve(Problem(MatrixSensing(matrix), y), L1(0.02)).x
        scaled = algorithm.solve(Problem(MatrixSensing(matrix), y * scale), L1(0.02 * scale)).x
        assert float((scaled / scale - plain).norm() / plain.norm()) < 1e-5


@pytest.mark.parametrize("algorithm", [FISTA(iterations=2000, rtol=0.0), ProximalGradient(iterations=2000, rtol=0.0)])
@pytest.mark.parametrize(("weight", "solution"), [(0.5, 2.0), (1.0, 1.5), (2.0, 1.0), (5.0, 0.5)])
def test_a_quadratic_has_its_known_minimiser(algorithm: FISTA, weight: float, solution: float) -> None:
    problem = Problem(MatrixSensing(torch.eye(1).double()), torch.full((1, 1), 3.0).double())
    assert float(algorithm.solve(problem, Tikhonov(weight)).x) == pytest.approx(solution, abs=1e-9)


def test_without_prior_least_squares_are_solved() -> None:
    matrix = noise(15, 6)
    problem = Problem(MatrixSensing(matrix), noise(2, 15, seed=1), Gaussian(noise(2, 15, seed=2).abs() + 0.5))
    sigma = problem.noise.sigma
    expected = torch.stack(
        [torch.linalg.lstsq(matrix / sigma[i, :, None], problem.y[i] / sigma[i]).solution for i in (0, 1)]
    )
    torch.testing.assert_close(FISTA(iterations=3000, rtol=0.0).solve(problem, None).x, expected)


def poisson() -> Problem:
    operator, model = MatrixSensing(noise(20, 10).abs()), Poisson(40.0, 1.0)
    clean = operator(noise(3, 10, seed=1).abs())
    return Problem(operator, model.sample(clean, torch.Generator().manual_seed(2)), model)


def test_steps_found_by_trial_lower_a_poisson_objective() -> None:
    problem, start = poisson(), torch.ones(3, 10).double()
    record = ProximalGradient(iterations=200, rtol=0.0, check_every=1).solve(problem, NonNegative(), start).history
    slack = 1e-10 * record.objective[0]
    assert record.objective.isfinite().all()
    assert (record.objective[1:] <= record.objective[:-1] + slack).all()


def test_poisson_reconstruction_meets_its_optimality_conditions() -> None:
    problem, start = poisson(), torch.ones(3, 10).double()
    x = FISTA(iterations=1500, rtol=0.0).solve(problem, NonNegative(), start).x
    gradient = problem.misfit_gradient(x)
    scale = float(problem.misfit_gradient(start).abs().max())
    assert (x >= 0).all()
    assert float((x - (x - gradient / scale).clamp_min(0)).abs().max()) < 1e-5


@pytest.mark.parametrize("restart", [True, False])
def test_every_image_obeys_the_constraint_under_few_counts(restart: bool) -> None:
    """Where all trials of a step fail, the extrapolated point from which they started must not be the result."""
    source = torch.Generator().manual_seed(8)
    matrix = torch.rand(60, 40, generator=source).double()
    truth = torch.rand(1, 40, generator=source).double() * (torch.rand(1, 40, generator=source) < 0.3)
    Poisson(0.3).sample(truth @ matrix.mT, source)
    truth = 0.5 * torch.rand(1, 40, generator=source).double() * (torch.rand(1, 40, generator=source) < 0.3)
    model, operator = TransmissionPoisson(20.0), MatrixSensing(matrix)
    problem = Problem(operator, model.sample(operator(truth), source), model)
    run = FISTA(iterations=300, rtol=0.0, restart=restart).iterate(
        problem, NonNegative(), torch.full((1, 40), 0.5).double()
    )
    assert min(float(state.x.min()) for state in run) >= 0


def test_total_variation_leaves_no_bias_where_fista_says_converged() -> None:
    x = torch.zeros(1, 12, 12).double()
    x[:, 3:9, 3:9] = 1
    operator = Blur(gaussian_kernel(1.0, dtype=torch.float64), (12, 12))
    problem = Problem(operator, operator(x) + 0.01 * noise(1, 12, 12))
    prior = TotalVariation(0.002)
    best = PDHG(iterations=500, rtol=0.0, check_every=500).solve(problem, prior).history.objective[-1]
    result = FISTA(rtol=1e-4).solve(problem, prior)
    assert result.status == (Status.CONVERGED,)
    assert float(result.history.objective[-1] / best) - 1 < 1e-5


def test_a_given_step_size_is_used() -> None:
    problem = Problem(MatrixSensing(torch.eye(2).double()), torch.ones(1, 2).double())
    state = next(ProximalGradient(step_size=0.25).iterate(problem, None))
    torch.testing.assert_close(state.x, torch.full((1, 2), 0.25).double())


def test_a_zero_operator_leaves_the_first_image() -> None:
    problem = Problem(MatrixSensing(torch.zeros(3, 2).double()), torch.ones(1, 3).double())
    assert torch.equal(FISTA().solve(problem, None, torch.ones(1, 2).double()).x, torch.ones(1, 2).double())


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="a must be > 2"):
        FISTA(a=2.0)
    for kind in (FISTA, ProximalGradient):
        with pytest.raises(ValueError, match="step_size must be finite and > 0"):
            kind(step_size=0.0)
        with pytest.raises(ValueError, match="step_size must be"):
            kind(step_size=math.nan)
        with pytest.raises(ValueError, match="trials must be"):
            kind(trials=0)


@pytest.mark.parametrize("kind", [FISTA, ProximalGradient])
def test_a_prior_without_prox_is_refused(kind: type[FISTA]) -> None:
    problem, _ = lasso()
    with pytest.raises(TypeError, match=f"{kind.__name__} needs a prior with a prox, got SumOfTerms; GradientDescent"):
        kind().solve(problem, SumOfTerms(L1(), NonNegative()))
    with pytest.raises(TypeError, match=r"got float; priors are found in invreg\.regularizers"):
        kind().solve(problem, 0.1)


def test_a_first_image_outside_the_domain_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite at x0"):
        FISTA().solve(poisson(), NonNegative(), torch.full((3, 10), -5.0).double())
