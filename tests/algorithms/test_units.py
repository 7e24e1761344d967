"""Images, data and noise s times as large, the denoiser `Calibrated` to them: every result is s times as large."""

from collections.abc import Callable

import pytest
import torch
from sampler_problems import C128, F64, matrix, measured, network_denoiser, noise, seeded
from torch import Tensor

from invreg.algorithms import (
    DDNM,
    DDRM,
    DDS,
    DPS,
    HQS,
    DiffPIR,
    Karras,
    PredictorCorrector,
    UniformSteps,
    Variational,
    sample_prior,
)
from invreg.interfaces import Denoiser, LinearOperator
from invreg.models import Calibrated, NetworkDenoiser, Slices, Tiles
from invreg.models.noise_path import DiscreteVariancePreserving, linear_alphas
from invreg.models.oracles import GaussianOracle
from invreg.noise import Gaussian, Poisson, TransmissionPoisson
from invreg.operators import MaskedFourier, MatrixSensing
from invreg.problem import Problem
from invreg.regularizers import PlugAndPlay, REDDiff, TotalVariation, published_weight
from invreg.regularizers.red_diff import clipped, logarithmic
from invreg.testing import relative_gap

Solve = Callable[[Problem, Denoiser, float], Tensor]


def descent(problem: Problem, regularizer: REDDiff, s: float) -> Tensor:
    return Variational(iterations=10, step_size=0.1 * s).solve(problem, regularizer).x


SOLVERS: dict[str, Solve] = {
    "DDS": lambda problem, d, s: DDS(generator=seeded()).solve(problem, d).x,
    "DDS, fixed gamma": lambda problem, d, s: DDS(gamma=2.0, eta=0.5, generator=seeded()).solve(problem, d).x,
    "DDS with a regularizer": lambda problem, d, s: (
        DDS(regularizer=TotalVariation(weight=3 / s), generator=seeded()).solve(problem, d).x
    ),
    "DiffPIR": lambda problem, d, s: DiffPIR(generator=seeded()).solve(problem, d).x,
    "DDNM": lambda problem, d, s: DDNM(generator=seeded()).solve(problem, d).x,
    "DDRM": lambda problem, d, s: DDRM(generator=seeded()).solve(problem, d).x,
    "DPS": lambda problem, d, s: DPS(iterations=100, generator=seeded()).solve(problem, d).x,
    "HQS": lambda problem, d, s: HQS().solve(problem, PlugAndPlay(d)).x,
    "predictor and corrector": lambda problem, d, s: (
        PredictorCorrector(iterations=50, generator=seeded()).solve(problem, d).x
    ),
    "draws of the prior": lambda problem, d, s: sample_prior(DDS(generator=seeded()), d, torch.zeros_like(problem.y)),
    "RED-Diff": lambda problem, d, s: descent(problem, REDDiff(d, generator=seeded()), s),
    "RED-Diff, clipped": lambda problem, d, s: descent(
        problem, REDDiff(d, published_weight(problem, problem.y), weighting=clipped, generator=seeded()), s
    ),
    "RED-Diff, logarithmic": lambda problem, d, s: descent(
        problem, REDDiff(d, published_weight(problem, problem.y), weighting=logarithmic, generator=seeded()), s
    ),
}


def case(operator: LinearOperator, dtype: torch.dtype, s: float) -> Problem:
    problem = measured(operator, noise(2, 4, 6, dtype=dtype, seed=3), 0.1)
    return Problem(operator, s * problem.y, Gaussian(0.1 * s))


@pytest.mark.parametrize("s", [1e3, 1e-3])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_result_does_not_depend_on_the_unit(name: str, s: float) -> None:
    root = noise(24, 24, dtype=C128, seed=1) / 5
    prior = GaussianOracle(noise(1, 4, 6, dtype=C128, seed=2)[0], root @ root.mH)
    operator = MaskedFourier(noise(4, 6, seed=4) > 0)
    plain, scaled = (
        SOLVERS[name](case(operator, C128, one), Calibrated(prior, one) if one != 1 else prior, one) for one in (1.0, s)
    )
    # Adam divides even a gradient that is rounding by its size
    assert relative_gap(scaled, s * plain) < (1e-6 if name.startswith("RED-Diff") else 1e-10)


@pytest.mark.parametrize("s", [1e3, 1e-3])
def test_the_gradient_of_red_diff_does_not_depend_on_the_unit(s: float) -> None:
    prior = GaussianOracle(torch.zeros(6, dtype=F64), torch.eye(6, dtype=F64))
    for progress in (0.0, 0.5, 1.0):
        pulls = []
        for one in (1.0, s):
            x = (one * noise(2, 6, seed=3)).requires_grad_()
            value = REDDiff(Calibrated(prior, one), weighting=clipped, generator=seeded()).at(progress)(x).sum()
            pulls.append(torch.autograd.grad(value, x)[0])
        assert relative_gap(s * pulls[1], pulls[0]) < 1e-12


@pytest.mark.parametrize("s", [0.5, 1e3])
def test_uniform_steps_go_with_a_calibrated_network(s: float) -> None:
    operator, network = matrix(10, (4, 6)), network_denoiser()
    sampler = DDS(schedule=UniformSteps(), generator=seeded())
    plain = sampler.solve(case(operator, F64, 1.0), network).x
    sampler = DDS(schedule=UniformSteps(), generator=seeded())
    scaled = sampler.solve(case(operator, F64, s), Calibrated(network, s)).x
    assert relative_gap(scaled, s * plain) < 1e-10


@pytest.mark.parametrize("s", [1e3, 1e-3])
@pytest.mark.parametrize("kind", [Poisson, TransmissionPoisson])
def test_counts_stay_when_the_unit_of_the_image_changes(kind: type[Poisson | TransmissionPoisson], s: float) -> None:
    """DPS under noise of counts: photons per unit take the unit, or the operator where it gives line integrals."""
    A, prior = matrix(12, (8,)), GaussianOracle(torch.ones(8, dtype=F64), 0.01 * torch.eye(8, dtype=F64))
    A.matrix.abs_()
    y, found = kind(50.0).sample(A(prior.sample(1, seeded(1))), seeded(2)), []
    for one in (1.0, s):
        problem = Problem(A, y, Poisson(50.0 / one))
        if kind is TransmissionPoisson:
            problem = Problem(MatrixSensing(A.matrix / one), y, TransmissionPoisson(50.0))
        sampler = DPS(iterations=50, weight=0.1, generator=seeded())
        found.append(sampler.solve(problem, Calibrated(prior, one)).x)
    assert float(y.mean()) > 1 and relative_gap(found[1], s * found[0]) < 1e-10


@pytest.mark.parametrize("buffer", [False, True])
def test_a_denoiser_may_have_a_scale_of_its_own(buffer: bool) -> None:
    class Scaled(Denoiser):
        scale: Tensor | float

        def __init__(self) -> None:
            super().__init__()
            if buffer:
                self.register_buffer("scale", torch.tensor(2.0))
            else:
                self.scale = 2.0

        def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            return self.scale * x

    assert Scaled().image_scale == 1.0
    assert Calibrated(Scaled(), 3.0).image_scale == 3.0
    assert float(Calibrated(Scaled(), 3.0)(torch.ones(1, 1), 1.0)) == 2.0


def test_the_size_of_a_denoiser_passes_through_what_wraps_it() -> None:
    network = NetworkDenoiser(torch.nn.Identity(), DiscreteVariancePreserving(linear_alphas()))
    assert network.image_scale == 1.0
    assert Calibrated(Calibrated(network, 3.0), 4.0).image_scale == pytest.approx(12.0)
    each = Calibrated(network, torch.tensor([1.0, 4.0, 16.0]))
    assert each.image_scale == pytest.approx(4.0)
    assert Slices(Calibrated(network, 3.0)).image_scale == Tiles(Calibrated(network, 3.0), 8, 2).image_scale == 3.0
    low, high = each.sigma_range
    assert Karras().sigmas(2, each.sigma_range, each.image_scale) == pytest.approx((min(80.0, high), low))
