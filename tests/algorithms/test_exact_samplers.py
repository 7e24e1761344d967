"""Samplers that are fed the exact score of a posterior draw from that posterior, as far as samples can tell."""

from collections.abc import Callable
from statistics import median

import pytest
import torch
from sampler_problems import TOYS, Toy, seeded
from torch import Tensor

from invreg.algorithms import PredictorCorrector, probability_flow, sample_prior
from invreg.diagnostics import chi_square, coverage, mode_weights, std_ratio
from invreg.models.oracles import MixtureOracle
from invreg.random import draw
from invreg.sample_distance import sampling_floor, sliced_wasserstein
from invreg.sde import VE, VP

Draw = Callable[[Toy, Tensor, torch.Generator], Tensor]
COUNT = {"gauss8": 600, "gmm2": 1000, "gmm16": 600, "mri16": 60}
SAMPLERS: dict[str, Draw] = {
    "flow": lambda toy, like, g: probability_flow(toy.exact, draw(like, g), VP()),
    "exploding flow": lambda toy, like, g: probability_flow(toy.exact, draw(like, g), VE(0.01, 50.0)),
    "predictor and corrector": lambda toy, like, g: sample_prior(
        PredictorCorrector(iterations=300, sde=VP(), generator=g), toy.exact, like
    ),
}


def drawn(name: str, toy: Toy, count: int, seed: int) -> Tensor:
    like = toy.exact.sample(1, seeded(0)).expand(count, *toy.exact.sample(1, seeded(0)).shape[1:])
    return SAMPLERS[name](toy, like, seeded(seed))


@pytest.mark.slow
@pytest.mark.parametrize("problem", TOYS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_draws_are_at_the_sampling_floor(sampler: str, problem: str) -> None:
    toy, count = TOYS[problem](), COUNT[problem]
    floor = sampling_floor(toy.exact.sample, count, repeats=8, directions=128, generator=seeded(7)).mean
    ratios, weights, chis, covered, spreads = [], [], [], [], []
    for seed in range(5):
        x, exact = drawn(sampler, toy, count, seed), toy.exact.sample(count, seeded(100 + seed))
        ratios.append(float(sliced_wasserstein(x, exact, 128, generator=seeded(1000 + seed)) / floor))
        wide = toy.repeated(count)
        chis.append(float(chi_square(wide, x).mean() / chi_square(wide, exact).mean()))
        covered.append(float(coverage(x[:, None], exact).mean()))
        spreads.append(float(std_ratio(x, exact)))
        if isinstance(toy.exact, MixtureOracle):
            found = mode_weights(x, toy.exact.means) - mode_weights(exact, toy.exact.means)
            weights.append(float(found.abs().max()))
    assert median(ratios) <= 1.5, ratios
    assert abs(median(chis) - 1) <= 0.1, chis
    assert 0.86 <= median(covered) <= 0.94, covered
    assert abs(median(spreads) - 1) <= 0.1, spreads
    assert not weights or median(weights) <= 0.05, weights
