"""Parts of a training that do not go together are told so, from recipes too."""

from typing import Any

import pytest
import torch
from torch import nn

from invreg import config
from invreg.models import MLP, SeriesEncoder, TimeMLP
from invreg.regularizers import SolverError
from invreg.solvers import NoisySolver
from invreg.training import (
    CNF,
    Average,
    EvidenceBound,
    ForcedFit,
    LatentODE,
    NegativeLogLikelihood,
    NeuralODE,
    NeuralSDE,
    Supervised,
    TrajectoryFit,
    iterate,
)

FIELD = TimeMLP(2, [4])


@pytest.mark.parametrize(
    "make",
    [
        lambda solver: NeuralODE(FIELD, solver=solver),
        lambda solver: TrajectoryFit(FIELD, [0.0, 1.0], solver=solver),
        lambda solver: LatentODE(SeriesEncoder(1, 4, 2), FIELD, MLP(2, [], 1), solver=solver),
        lambda solver: CNF(FIELD, 2, solver=solver),
    ],
    ids=["NeuralODE", "TrajectoryFit", "LatentODE", "CNF"],
)
def test_ordinary_equations_refuse_solvers_of_others(make: Any) -> None:
    with pytest.raises(
        TypeError, match="solver must be one without noise, got NoisySolver; use Solver, or a NeuralSDE"
    ):
        make(NoisySolver())
    with pytest.raises(TypeError, match=r"solver must be a Solver or a function of \(field, y0, ts\), got str"):
        make("tsit5")


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (Supervised, "Supervised must be a NeuralODE"),
        (lambda model: EvidenceBound(model, torch.arange(3.0)), "EvidenceBound must be a LatentODE"),
        (NegativeLogLikelihood, "NegativeLogLikelihood must be a CNF"),
    ],
    ids=["Supervised", "EvidenceBound", "NegativeLogLikelihood"],
)
def test_objectives_refuse_models_of_others(make: Any, wanted: str) -> None:
    for model in (NeuralSDE(FIELD, FIELD), nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=f"model of {wanted}, got {type(model).__name__}; choose the objective"):
            make(model)


def test_recipes_that_mix_them_are_told_so() -> None:
    field = {"name": "time-mlp", "features": 2, "hidden": [4]}
    with pytest.raises(TypeError, match="neural-ode: solver must be one without noise, got NoisySolver"):
        config.part("model", {"name": "neural-ode", "field": field, "solver": "noisy-solver"})
    model = config.part("model", {"name": "neural-sde", "drift": field, "diffusion": field, "solver": {"rtol": 0.1}})
    assert model.solver == NoisySolver(rtol=0.1)
    with pytest.raises(TypeError, match="supervised: model of Supervised must be a NeuralODE, got NeuralSDE"):
        config.part("objective", "supervised", {"model": model})


def test_a_scheduler_of_another_optimizer_is_refused() -> None:
    model = nn.Linear(1, 1)
    optimizer, other = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    with pytest.raises(ValueError, match="scheduler must be made for the optimizer that is passed"):
        iterate(lambda *_: {}, [0], optimizer, scheduler=torch.optim.lr_scheduler.StepLR(other, 1))


def test_an_average_of_another_model_is_refused_before_the_first_step() -> None:
    model = nn.Linear(1, 1)
    both = nn.ModuleDict({"model": model})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="average must be made of the model that is passed"):
        iterate(lambda *_: {}, [0], optimizer, model=both, average=Average(model))


def test_no_regularizer_is_called_as_the_sum_is() -> None:
    with pytest.raises(ValueError, match="regularizers must not be called 'total'"):
        Supervised(NeuralODE(FIELD), regularizers={"total": SolverError()})


def test_fields_must_be_modules() -> None:
    with pytest.raises(TypeError, match=r"field must be a torch.nn.Module, got function"):
        NeuralODE(lambda t, y: y)  # type: ignore[arg-type]


def test_classes_that_the_output_has_not_are_named() -> None:
    model = NeuralODE(FIELD, head=MLP(2, (), 2))
    with pytest.raises(ValueError, match=r"target does not fit the output of the model, \(3, 2\) of .*out of bounds"):
        Supervised(model)((torch.zeros(3, 2), torch.tensor([0, 1, 7])), 0.0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Supervised(NeuralODE(FIELD), regularizers=SolverError()), "regularizers must be a mapping from names"),
        (lambda: TimeMLP(2, 50), r"hidden must be a list of widths, got 50; write \[50\]"),
        (lambda: NeuralODE(FIELD, span=1), "span must be two different times, got 1"),
        (lambda: ForcedFit(FIELD, 0.5), "forcing must be AdaptiveForcing.. or a function of progress, got 0.5"),
    ],
)
def test_arguments_of_another_kind_are_named(make: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        make()
