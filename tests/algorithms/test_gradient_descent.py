import pytest
import torch
from torch import Tensor

from invreg.algorithms import GradientDescent
from invreg.algorithms.smooth import backtrack
from invreg.interfaces import Denoiser, Regularizer
from invreg.noise import Poisson
from invreg.operators import MatrixSensing
from invreg.operators.nonlinear import PhaseRetrieval
from invreg.problem import Problem
from invreg.random import draw
from invreg.regularizers import RED, Box, NonNegative, PlugAndPlay, SumOfTerms, Tikhonov


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


class Halving(Denoiser):
    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return x / 2


def problem() -> Problem:
    return Problem(MatrixSensing(noise(12, 6)), noise(2, 12, seed=1))


def ridge(p: Problem, weight: float) -> Tensor:
    matrix = p.operator.matrix
    return torch.linalg.solve(matrix.mT @ matrix + weight * torch.eye(6).double(), (p.y @ matrix).mT).mT


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("weight", [None, 0.7])
def test_descent_reaches_the_ridge_solution(momentum: float, weight: float | None) -> None:
    p = problem()
    prior = None if weight is None else Tikhonov(weight)
    result = GradientDescent(iterations=1500, momentum=momentum, rtol=0.0).solve(p, prior)
    torch.testing.assert_close(result.x, ridge(p, weight or 0.0), rtol=1e-6, atol=1e-7)


def test_steps_found_by_trial_never_raise_the_objective() -> None:
    record = GradientDescent(iterations=100, rtol=0.0, check_every=1).solve(problem(), Tikhonov(50.0)).history
    assert (record.objective[1:] <= record.objective[:-1] * (1 + 1e-12)).all()


def test_one_step_is_a_gradient_step() -> None:
    p, x0 = problem(), noise(2, 6, seed=2)
    state = next(GradientDescent(step_size=0.1).iterate(p, Tikhonov(0.5), x0))
    torch.testing.assert_close(state.x, x0 - 0.1 * (p.misfit_gradient(x0) + 0.5 * x0))


def test_a_surrogate_prior_needs_a_step_size_and_then_works() -> None:
    p, prior = problem(), RED(Halving(), 0.1, 2.0)  # the gradient is 2 (x - x / 2) = x
    with pytest.raises(ValueError, match="step_size must be given with RED"):
        GradientDescent().solve(p, prior)
    result = GradientDescent(iterations=3000, step_size=0.02, rtol=0.0).solve(p, prior)
    torch.testing.assert_close(result.x, ridge(p, 1.0), rtol=1e-6, atol=1e-7)


def test_a_nonlinear_problem_is_solved_from_nearby() -> None:
    operator = PhaseRetrieval(MatrixSensing(noise(40, 6)))
    truth = noise(2, 6, seed=3)
    p = Problem(operator, operator(truth))
    result = GradientDescent(iterations=2000, momentum=0.5, rtol=0.0).solve(p, None, truth + 0.1 * noise(2, 6, seed=4))
    torch.testing.assert_close(result.x, truth, rtol=1e-4, atol=1e-4)


def test_poisson_noise_is_descended() -> None:
    operator = MatrixSensing(noise(12, 6).abs())
    y = (30 * operator(noise(2, 6, seed=1).abs())).round()
    record = GradientDescent(iterations=300, rtol=0.0, check_every=1).solve(
        Problem(operator, y, Poisson(30.0)), None, torch.ones(2, 6).double()
    )
    objective = record.history.objective
    assert objective.isfinite().all()
    assert (objective[1:] <= objective[:-1] + 1e-10 * objective[0]).all()


def test_momentum_does_not_leave_the_domain_of_the_likelihood() -> None:
    y = torch.tensor([[0.0, 5.0, 1.0]]).double()
    p = Problem(MatrixSensing(torch.eye(3).double()), y, Poisson())
    record = GradientDescent(momentum=0.9, iterations=300, rtol=0.0, check_every=1).solve(
        p, None, torch.full((1, 3), 4.0).double()
    )
    assert record.history.objective.isfinite().all()
    torch.testing.assert_close(record.x, y, rtol=0, atol=1e-2)


def test_a_sample_rests_where_no_step_can_be_judged() -> None:
    z, rest = torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([[2.0], [2.0]]).double()

    def value(x: Tensor) -> Tensor:
        return torch.where(x < 0, torch.inf, x.square() / 2).sum(1)

    x, _ = backtrack(value, lambda s: z - s * z, z, z, torch.ones(2).double(), 3, rest)
    assert x.tolist() == [[2.0], [0.0]]


@pytest.mark.parametrize("prior", [NonNegative(), Box(-1000.0, 3000.0), SumOfTerms(Tikhonov(), NonNegative())])
def test_a_constraint_is_refused(prior: Regularizer[Tensor]) -> None:
    for algorithm in (GradientDescent(), GradientDescent(step_size=0.1)):
        with pytest.raises(TypeError, match="finite everywhere, got .* with a constraint; ProximalGradient .* PDHG"):
            algorithm.solve(problem(), prior)


def test_wrong_options_and_priors_are_named() -> None:
    with pytest.raises(ValueError, match="momentum must be < 1, got 1.0"):
        GradientDescent(momentum=1.0)
    with pytest.raises(ValueError, match="momentum must be finite and >= 0"):
        GradientDescent(momentum=-0.1)
    with pytest.raises(ValueError, match="step_size must be finite and > 0"):
        GradientDescent(step_size=-1.0)
    with pytest.raises(ValueError, match="trials must be"):
        GradientDescent(trials=0)
    with pytest.raises(TypeError, match="GradientDescent needs a prior with a gradient, got PlugAndPlay"):
        GradientDescent().solve(problem(), PlugAndPlay(Halving()))
