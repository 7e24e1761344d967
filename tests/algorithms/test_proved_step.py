"""Plug-and-play with a learned proximal network: where it is proved to converge it does, elsewhere it is told."""

import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invreg.algorithms import FISTA, HQS, PDHG, Algorithm
from invreg.algorithms.admm import ADMM
from invreg.algorithms.proved_step import check_step, safe_step_size
from invreg.algorithms.proximal_gradient import ProximalGradient
from invreg.interfaces import LinearOperator
from invreg.models.icnn import ConvexMLP
from invreg.noise import Gaussian, Poisson
from invreg.problem import Problem
from invreg.random import draw
from invreg.regularizers import NonNegative, SumOfTerms, Tikhonov
from invreg.regularizers.learned import LearnedProximal, RelaxedLearnedProximal

SIGMA = 0.5


class Matrix(LinearOperator):
    """x -> A x for vectors."""

    def __init__(self, entries: Tensor) -> None:
        super().__init__((entries.shape[1],), (entries.shape[0],))
        self.entries = nn.Buffer(entries)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.entries.T

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.entries


class Counting(Matrix):
    """Counts how often it is asked."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=torch.float64), torch.Generator().manual_seed(seed))


def problem() -> Problem:
    operator = Matrix(noise(3, 4, seed=1))  # fewer measurements than unknowns
    return Problem(operator, operator(noise(2, 4, seed=2)) + SIGMA * noise(2, 3, seed=3), Gaussian(SIGMA))


def lipschitz() -> float:
    operator = problem().operator
    assert isinstance(operator, Matrix)
    return float(torch.linalg.matrix_norm(operator.entries, 2)) ** 2 / SIGMA**2


def network() -> ConvexMLP:
    """Expansive in places, so that its penalty is not convex."""
    torch.manual_seed(0)
    net = ConvexMLP(4, 16, 2, beta=5.0, strong_convexity=0.1).double().requires_grad_(False)
    for weight in net.nonnegative():
        weight.copy_(torch.rand_like(weight) / weight[0].numel() ** 0.5)
    slopes = torch.func.vmap(torch.func.hessian(lambda x: net.value(x[None])[0]))(noise(200, 4))
    assert float(torch.linalg.eigvalsh(slopes).max()) > 1.2
    return net


def test_the_safe_step_is_below_the_inverse_lipschitz_constant() -> None:
    step = safe_step_size(problem(), noise(2, 4), 0.9)
    assert 0.85 / lipschitz() < step <= 0.9 / lipschitz()


def test_proximal_gradient_converges_to_a_fixed_point_at_the_safe_step() -> None:
    task = problem()
    step = safe_step_size(task, noise(2, 4))
    prior = LearnedProximal(network()).at_step(step)
    x = ProximalGradient(iterations=400, step_size=step).solve(task, prior, noise(2, 4)).x
    torch.testing.assert_close(prior.prox(x - step * task.misfit_gradient(x), step), x, rtol=0, atol=1e-4)
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad((task.misfit(point) + prior(point)).sum(), point)
    assert float(slope.abs().max()) <= 1e-3 * float(task.misfit_gradient(noise(2, 4)).abs().max())


def test_proximal_gradient_never_raises_the_objective_at_the_safe_step() -> None:
    task = problem()
    step = safe_step_size(task, noise(2, 4))
    prior = LearnedProximal(network(), rtol=1e-10).at_step(step)
    states = ProximalGradient(iterations=10, step_size=step).iterate(task, prior, noise(2, 4))
    objective = torch.stack([task.misfit(state.x) + prior(state.x) for state in states])
    assert bool((objective.diff(dim=0) <= 1e-9 * objective[:-1].abs()).all())


def test_admm_converges_to_the_fixed_point_of_proximal_gradient_at_the_safe_penalty() -> None:
    task = problem()
    step = safe_step_size(task, noise(2, 4))
    prior = LearnedProximal(network()).at_step(step)
    algorithm = ADMM(iterations=3000, rho=1 / step, relaxation=1.0, balance=False, inner_iterations=20)
    x = algorithm.solve(task, prior, noise(2, 4)).x
    torch.testing.assert_close(prior.prox(x - step * task.misfit_gradient(x), step), x, rtol=0, atol=1e-4)


@pytest.mark.slow(seconds=20)
def test_a_relaxed_prior_keeps_its_weight_at_a_safe_step() -> None:
    task = problem()
    step = safe_step_size(task, noise(2, 4))
    prior = RelaxedLearnedProximal(network(), step=1.0, rtol=1e-7)
    x = ProximalGradient(iterations=120, step_size=step).solve(task, prior, noise(2, 4)).x
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad((task.misfit(point) + prior(point)).sum(), point)
    assert float(slope.abs().max()) <= 1e-2 * float(task.misfit_gradient(noise(2, 4)).abs().max())


def test_a_step_outside_the_proof_is_told() -> None:
    task, like = problem(), noise(2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_step(task, like, safe_step_size(task, like, 0.9)) == pytest.approx(0.9)
    with pytest.warns(UserWarning, match=r"proved for a step < 1 / L = .*ADMM: rho > L.*got 1; use prior.at_step"):
        assert check_step(task, like, 1.0) >= lipschitz()


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (ProximalGradient(iterations=1, step_size=1.0), r"got 1; use prior.at_step"),
        (ADMM(iterations=1, rho=1.0, balance=False, relaxation=1.0), r"ADMM: rho > L"),
        (ADMM(iterations=1, rho=1.0), r"proved for balance=False and relaxation=1 only"),
        (FISTA(iterations=1, step_size=1.0), r"no other term only, got FISTA"),
        (PDHG(iterations=1), r"no other term only, got PDHG"),
        (HQS(iterations=1), r"no other term only, got HQS"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_every_algorithm_tells_the_line_that_called_it(algorithm: Algorithm[Any, Any], message: str) -> None:
    prior, start = LearnedProximal(network()).at_step(1.0), noise(2, 4)
    with pytest.warns(UserWarning, match="convergence") as seen:
        algorithm.iterate(problem(), prior, start)
    assert {one.filename for one in seen} == {__file__}
    assert any(re.search(message, str(one.message)) for one in seen)


def test_several_terms_and_other_misfits_are_told_too() -> None:
    prior = LearnedProximal(network()).at_step(1.0)
    with pytest.warns(UserWarning, match="no other term only, got several terms"):
        ADMM(rho=1.0).iterate(problem(), SumOfTerms(NonNegative(), prior), noise(2, 4))
    counts = Problem(Matrix(torch.eye(4).double()), torch.ones(2, 4).double(), Poisson())
    with pytest.warns(UserWarning, match="no other term only, got a misfit that is not quadratic"):
        ProximalGradient(step_size=1.0).iterate(counts, prior, torch.ones(2, 4).double())


def test_the_curvature_that_is_known_is_not_computed_again() -> None:
    task, prior = problem(), LearnedProximal(network())
    calls = []
    for one in (Tikhonov(1.0), prior):  # the classical prior warns of nothing and computes it once
        counted = Counting(task.operator.entries)  # type: ignore[union-attr]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ProximalGradient().iterate(Problem(counted, task.y, task.noise), one, noise(2, 4))
        calls.append(counted.calls)
    assert calls[0] == calls[1] > 0


def test_a_value_that_did_not_converge_is_told_at_the_line_that_asked() -> None:
    prior = LearnedProximal(network(), rtol=1e-12, iterations=1)
    with pytest.warns(UserWarning, match="the value of LearnedProximal reached accuracy") as seen:
        prior(noise(2, 4))
    assert seen[0].filename == __file__


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"margin must be within \(0, 1\), got 1"):
        safe_step_size(problem(), noise(2, 4), 1)
    with pytest.raises(TypeError, match="Gaussian noise"):
        safe_step_size(Problem(Matrix(torch.eye(4).double()), torch.ones(1, 4).double(), Poisson()), noise(1, 4))
    with pytest.raises(ValueError, match="operator must not be zero"):
        safe_step_size(Problem(Matrix(torch.zeros(4, 4).double()), torch.ones(1, 4).double()), noise(1, 4))
    with pytest.raises(ValueError, match="step must be finite and > 0"):
        check_step(problem(), noise(2, 4), 0.0)


@pytest.mark.parametrize("together", [False, True])
def test_the_history_leaves_a_penalty_out_that_takes_many_proxes(together: bool, monkeypatch) -> None:
    learned = LearnedProximal(network()).at_step(safe_step_size(problem(), noise(2, 4)))
    prior = SumOfTerms(learned, Tikhonov(0.1)) if together else learned
    asked: list[Tensor] = []
    monkeypatch.setattr(LearnedProximal, "forward", lambda self, x: asked.append(x))
    step = learned.step / float(learned.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ADMM(iterations=5, rho=1 / step, balance=False, relaxation=1.0).solve(problem(), prior)
    assert not asked
    assert bool(found.history.penalty.isnan().all())
    assert bool(found.history.misfit.isfinite().all())
