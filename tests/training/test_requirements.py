"""Parts of a training that do not go together are told so, from recipes too."""

from typing import Any

import pytest
import torch
from torch import nn

from invreg import config
from invreg.models import MLP, SeriesEncoder, TimeMLP
from invreg.solvers import NoisySolver
from invreg.training import (
    CNF,
    EvidenceBound,
    LatentODE,
    NegativeLogLikelihood,
    NeuralODE,
    NeuralSDE,
    Supervised,
    TrajectoryFit,
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
