"""Neural ODEs: what their objectives are made of, and that they learn."""

import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from invreg.models import MLP, CubicDrift, TimeMLP
from invreg.regularizers import Exponential, LocalHeuristic, SolverError, SolverStiffness
from invreg.solvers import PI, Bosh3, Solver, odeint
from invreg.training import fit
from invreg.training.neural_ode import NeuralODE, Supervised, TrajectoryFit
from invreg.training.smoothness import TaylorDerivative

TIGHT = Solver(rtol=1e-6, atol=1e-6)


class Decay(nn.Module):
    """dy/dt = -rate y."""

    def __init__(self, rate: float = 1.0) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * y


def test_the_output_is_the_head_of_the_last_state_of_what_the_encoder_gave() -> None:
    torch.manual_seed(0)
    encoder, head = MLP(3, (), 2).double(), MLP(2, (), 4).double()
    model = NeuralODE(Decay(), encoder=encoder, head=head, span=(0.5, 1.5), solver=Solver(rtol=1e-10, atol=1e-10))
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = head(encoder(x) * torch.exp(torch.tensor(-1.0, dtype=torch.float64)))
    assert torch.allclose(model(x).output, expected, rtol=1e-8)
    later = model(x, end=2.5).output
    assert torch.allclose(later, head(encoder(x) * torch.exp(torch.tensor(-2.0, dtype=torch.float64))), rtol=1e-8)


def test_any_function_that_solves_will_do() -> None:
    y0 = torch.ones(1, 1, dtype=torch.float64)
    assert torch.allclose(NeuralODE(Decay(), solver=odeint)(y0).output, NeuralODE(Decay())(y0).output)


def test_the_parts_of_a_model_rebuild_it() -> None:
    model = NeuralODE(TimeMLP(2, (3,)), head=MLP(2, (), 1), span=(0.0, 2.0), solver=TIGHT)
    again = NeuralODE(**model.config)  # type: ignore[arg-type]
    again.load_state_dict(model.state_dict())
    x = torch.ones(3, 2)
    assert torch.equal(again(x).output, model(x).output)
    assert pickle.loads(pickle.dumps(TIGHT)) == TIGHT != Solver()


def test_terms_are_the_loss_and_the_regularizers_by_name() -> None:
    torch.manual_seed(0)
    model = NeuralODE(TimeMLP(2, (5,)), head=MLP(2, (), 3), solver=TIGHT)
    x, labels = torch.randn(8, 2), torch.randint(3, (8,))
    regularizers = {
        "error": SolverError(schedule=Exponential(4.0, 1.0)),
        "stiffness": SolverStiffness(0.1),
        "local": LocalHeuristic(generator=torch.Generator().manual_seed(0)),
        "smooth": TaylorDerivative(0.01),
    }
    objective = Supervised(model, regularizers=regularizers)
    first, last = objective((x, labels), 0.0), objective((x, labels), 1.0)
    assert list(first) == ["data", "error", "stiffness", "local", "smooth"]
    assert all(term.shape == () and term.requires_grad for term in first.values())
    assert float(first["error"].detach()) == pytest.approx(4 * float(last["error"].detach()), rel=1e-6)
    solution = model(x).solution
    assert torch.allclose(first["data"], nn.functional.cross_entropy(model.head(solution.ys[-1]), labels))
    assert torch.allclose(last["error"], SolverError()(solution))


@pytest.mark.parametrize("per_sample", [False, True])
def test_terms_of_steps_of_each_sample_are_means(per_sample: bool) -> None:
    torch.manual_seed(0)
    solver = replace(TIGHT, per_sample=per_sample)
    model = NeuralODE(TimeMLP(2, (5,)), head=MLP(2, (), 3), solver=solver)
    objective = Supervised(model, regularizers={"error": SolverError(), "smooth": TaylorDerivative()})
    terms = objective((torch.randn(8, 2), torch.randint(3, (8,))), 0.0)
    assert all(term.shape == () for term in terms.values())


def test_steer_draws_the_end_of_the_flow_in_training_only() -> None:
    model = NeuralODE(Decay(), solver=TIGHT)
    objective = Supervised(model, nn.functional.mse_loss, steer=0.5)
    batch = (torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    ends = torch.stack([-objective(batch, 0.0, generator)["data"].detach().log() / 2 for _ in range(100)])
    assert float(ends.min()) > 0.5 - 1e-4
    assert float(ends.max()) < 1.5 + 1e-4
    assert float(ends.mean()) == pytest.approx(1.0, abs=0.08)
    assert float(ends.std()) == pytest.approx(1 / 12**0.5, abs=0.04)
    once, twice = (objective(batch, 0.0, torch.Generator().manual_seed(1))["data"] for _ in range(2))
    assert torch.equal(once, twice)
    with torch.no_grad():
        score = objective.score(batch)
    assert float(score["loss"]) == pytest.approx(float(torch.exp(torch.tensor(-2.0))), rel=1e-4)


def test_scores_are_loss_work_and_accuracy_of_classes() -> None:
    model = NeuralODE(Decay(), head=None)
    labels = torch.tensor([0, 1, 1])
    x = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]], dtype=torch.float64)
    scores = Supervised(model).score((x, labels))
    assert float(scores["accuracy"]) == pytest.approx(2 / 3)
    assert float(scores["evaluations"]) == int(model(x).solution.stats.nfe)
    assert set(Supervised(model, nn.functional.mse_loss).score((x, x))) == {"loss", "evaluations"}


def test_a_classifier_learns_circles_that_no_line_divides() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(256, 2, generator=generator) - 1
    labels = (x.square().sum(1) < 0.5).long()
    torch.manual_seed(0)
    solver = Solver(method=Bosh3(), rtol=1e-2, atol=1e-2)
    model = NeuralODE(TimeMLP(3, (16,)), encoder=MLP(2, (), 3), head=MLP(3, (), 2), solver=solver)
    objective = Supervised(model, regularizers={"error": SolverError(0.001)})
    fit(objective, [(x, labels)] * 50, torch.optim.Adam(model.parameters(), lr=0.2), generator)
    assert float(objective.score((x, labels))["accuracy"]) > 0.8  # one class for all: 0.6


def test_a_trajectory_is_fitted_at_the_times_it_was_observed() -> None:
    times = [0.0, 0.2, 0.5, 1.0]
    y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    targets = y0[:, None] * torch.exp(-2 * torch.tensor(times[1:], dtype=torch.float64))[:, None]
    field = Decay(1.0)
    objective = TrajectoryFit(field, times, {"error": SolverError(1e-7)}, TIGHT)
    fit(objective, [(y0, targets)] * 60, torch.optim.Adam(field.parameters(), lr=0.2))
    assert float(field.rate.detach()) == pytest.approx(2.0, abs=0.02)
    with torch.no_grad():
        scores = objective.score((y0, targets))
    assert float(scores["data"]) < 1e-4
    assert set(scores) == {"data", "evaluations"}


def test_a_fixed_step_solver_is_a_solver_too() -> None:
    solver = Solver(controller=PI(first_step=0.1))
    drift = CubicDrift()
    objective = TrajectoryFit(drift, [0.0, 0.5], {}, solver)
    assert objective((torch.ones(2, 2), torch.ones(2, 1, 2)), 0.0)["data"].requires_grad


def test_arguments_that_do_not_fit_are_named() -> None:
    model = NeuralODE(Decay())
    with pytest.raises(ValueError, match=r"span must be two different times, got \(1.0, 1.0\)"):
        NeuralODE(Decay(), span=(1.0, 1.0))
    with pytest.raises(ValueError, match="steer must be below the length of the span, 1.0, got 1.0"):
        Supervised(model, steer=1.0)
    with pytest.raises(ValueError, match="steer must be finite and >= 0, got -0.5"):
        Supervised(model, steer=-0.5)
    with pytest.raises(ValueError, match="regularizers must not be called 'data'"):
        Supervised(model, regularizers={"data": SolverError()})
    with pytest.raises(ValueError, match="times must hold the start and at least one more, got 1"):
        TrajectoryFit(Decay(), [0.0])
    y0 = torch.ones(2, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"targets must be \(2, 2, 1\).*got \(2, 3, 1\)"):
        TrajectoryFit(Decay(), [0.0, 1.0, 2.0])((y0, torch.ones(2, 3, 1)), 0.0)
