"""Continuous normalizing flows: closed forms of linear fields, normalisation, there and back, estimators, learning."""

import math

import pytest
import torch
from torch import Tensor, nn

from invreg.models import ConcatSquash
from invreg.regularizers import SolverError
from invreg.solvers import Solver
from invreg.training import Shuffled, fit
from invreg.training.cnf import CNF, NegativeLogLikelihood, log_density
from invreg.training.smoothness import JacobianNorm, KineticEnergy, TaylorDerivative

TIGHT = Solver(rtol=1e-9, atol=1e-9)


class LinearField(nn.Module):
    """dy/dt = A y."""

    def __init__(self, A: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(A)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y @ self.A.T


def matrix(d: int) -> Tensor:
    return 0.5 * torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(d))


def bent(d: int, trace: str = "exact") -> CNF:
    torch.manual_seed(0)
    return CNF(ConcatSquash(d, (8,)).double(), d, trace=trace, solver=Solver(rtol=1e-7, atol=1e-7))  # type: ignore[arg-type]


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_a_linear_field_has_the_log_determinant_of_its_exponential(d: int, per_sample: bool) -> None:
    A = matrix(d)
    model = CNF(LinearField(A), d, end=0.7, solver=Solver(rtol=1e-9, atol=1e-9, per_sample=per_sample))
    x = torch.randn(6, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flowed = model(x)
    ahead = torch.matrix_exp(0.7 * A)
    assert torch.allclose(flowed.points, x @ ahead.T, atol=1e-7)
    assert torch.allclose(flowed.log_det, 0.7 * A.trace().expand(6), atol=1e-7)
    covariance = torch.linalg.inv(ahead) @ torch.linalg.inv(ahead).T
    exact = torch.distributions.MultivariateNormal(torch.zeros(d, dtype=torch.float64), covariance).log_prob(x)
    assert torch.allclose(model.log_prob(x), exact, atol=1e-6)


def test_gradients_of_the_density_are_those_of_the_closed_form() -> None:
    model = CNF(LinearField(matrix(2)), 2, solver=TIGHT)
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    A = model.field.A
    assert isinstance(A, nn.Parameter)
    found = torch.autograd.grad(model.log_prob(x).sum(), [x, A])
    z = x @ torch.matrix_exp(A).T
    exact = (A.trace() - z.square().sum(1) / 2 - math.log(2 * math.pi)).sum()
    for one, other in zip(found, torch.autograd.grad(exact, [x, A]), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("d", [1, 2])
def test_the_density_integrates_to_one(d: int) -> None:
    model = bent(d)
    axis = torch.linspace(-8, 8, 161 if d == 1 else 81, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
    with torch.no_grad():
        total = model.log_prob(points).exp().sum() * (axis[1] - axis[0]) ** d
    assert float(total) == pytest.approx(1, abs=1e-4)


def test_samples_go_back_to_the_noise_they_came_from() -> None:
    model = bent(2)
    x = model.sample(50, torch.Generator().manual_seed(3))
    noise = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert not x.requires_grad
    assert x.dtype == torch.float64
    assert torch.allclose(model(x).points, noise, atol=1e-5)


def test_samples_have_the_density_that_is_claimed() -> None:
    A = matrix(2)
    model = CNF(LinearField(A), 2, solver=TIGHT)
    x = model.sample(20000, torch.Generator().manual_seed(0))
    back = torch.matrix_exp(-A)
    assert torch.allclose(x.T.cov(), back @ back.T, atol=0.15)


@pytest.mark.parametrize("trace", ["rademacher", "gaussian"])
def test_hutchinsons_estimate_is_unbiased(trace: str) -> None:
    exact, estimated = bent(2), bent(2, trace)
    x = torch.tensor([[0.5, -1.0]], dtype=torch.float64).expand(4000, 2)
    with torch.no_grad():
        wanted = exact.log_prob(x[:1])
        found = estimated.log_prob(x, torch.Generator().manual_seed(0))
    assert float(found.std()) > 0
    assert float(found.mean()) == pytest.approx(float(wanted), abs=4 * float(found.std()) / 4000**0.5)


def test_noise_is_drawn_once_a_solve_from_the_generator_given() -> None:
    model = bent(3, "rademacher")
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, two, other = (model.log_prob(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_terms_are_the_likelihood_and_the_regularizers_by_name() -> None:
    model = bent(2)
    x = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    penalties = {
        "error": SolverError(),
        "kinetic": KineticEnergy(field=model.field, features=2),
        "jacobian": JacobianNorm(field=model.field, features=2),
        "taylor": TaylorDerivative(field=model.field, features=2),
    }
    objective = NegativeLogLikelihood(model, penalties)
    terms = objective((x,), 0.5)
    assert list(terms) == ["data", *penalties]
    assert all(term.shape == () and term.requires_grad for term in terms.values())
    assert torch.allclose(terms["data"], -model.log_prob(x).mean())
    with torch.no_grad():
        scores = objective.score((x,))
    assert torch.allclose(scores["nats"], terms["data"])
    assert float(scores["evaluations"]) == int(model(x).solution.stats.nfe)


def test_an_estimated_score_is_the_same_each_time() -> None:
    objective = NegativeLogLikelihood(bent(2, "rademacher"))
    x = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(objective.score((x,))["nats"], objective.score((x,))["nats"])


def test_a_flow_learns_the_scale_of_its_data() -> None:
    x = 3 * torch.randn(256, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = CNF(LinearField(torch.zeros(1, 1, dtype=torch.float64)), 1, solver=Solver())
    objective = NegativeLogLikelihood(model)
    fit(objective, Shuffled(x, size=256, epochs=20, seed=0), torch.optim.SGD(model.parameters(), lr=0.3))
    A = model.field.A
    assert isinstance(A, nn.Parameter)
    assert float(A.detach()) == pytest.approx(-math.log(float(x.square().mean().sqrt())), abs=0.02)


def test_arguments_that_do_not_fit_are_named() -> None:
    field = LinearField(matrix(2))
    with pytest.raises(ValueError, match='trace must be "exact", "rademacher" or "gaussian", got \'fast\''):
        CNF(field, 2, trace="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="end must be finite and > 0, got 0"):
        CNF(field, 2, end=0)
    with pytest.raises(ValueError, match=r"points must be \(B, 2\), got \(4, 3\)"):
        CNF(field, 2).log_prob(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="number must be >= 1, got 0"):
        CNF(field, 2).sample(0)
    with pytest.raises(ValueError, match="regularizers must not be called 'data'"):
        NegativeLogLikelihood(CNF(field, 2), {"data": SolverError()})


def test_the_parts_of_a_model_rebuild_it() -> None:
    model = bent(2)
    again = CNF(**model.config)  # type: ignore[arg-type]
    x = torch.ones(3, 2, dtype=torch.float64)
    assert torch.equal(log_density(again(x)), log_density(model(x)))
