"""Samples of posteriors and priors: their moments, their independence of batches, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from sampler_problems import C128, F64, Counted, gauss8, gmm2, measured, noise, seeded
from torch import Tensor

from invreg.algorithms import (
    DDNM,
    DDRM,
    DDS,
    DPS,
    FISTA,
    DiffPIR,
    PredictorCorrector,
    Sampler,
    Status,
    iterate_posterior,
    posterior,
    sample_prior,
)
from invreg.algorithms.posterior import chain_generator
from invreg.diagnostics import chi_square
from invreg.interfaces import Denoiser, LinearOperator
from invreg.models.oracles import GaussianOracle
from invreg.operators import Mask, MatrixSensing, Sense
from invreg.problem import Problem
from invreg.testing import relative_gap

SAMPLER = DDS(iterations=8)


def several() -> Problem:
    toy = gauss8()
    return measured(toy.problem.operator, toy.prior.sample(3, seeded(1)), 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", [SAMPLER, PredictorCorrector(iterations=8, t_min=1e-3)], ids=type)
@pytest.mark.parametrize("batch", [1, 3, 8, 100])
def test_a_sample_does_not_depend_on_how_many_are_made_beside_it(sampler: Sampler[Any], batch: int) -> None:
    toy = gauss8()
    wanted = posterior(sampler, toy.problem, toy.prior, samples=10, batch=4, keep=True).samples
    found = posterior(sampler, toy.problem, toy.prior, samples=7, batch=batch, keep=True).samples
    assert wanted is not None
    assert found is not None
    assert found.shape == (7, 1, 8)
    assert relative_gap(found, wanted[:7]) < 1e-10


def test_each_of_several_problems_has_chains_of_its_own() -> None:
    toy, problem = gauss8(), several()
    found = posterior(SAMPLER, problem, toy.prior, samples=4, seed=5, keep=True)
    assert found.samples is not None
    assert found.samples.shape == (4, 3, 8)
    assert found.chi_square.shape == (4, 3)
    assert found.status == ((Status.COMPLETE,) * 3,) * 4
    for k in (0, 3):
        generators = [chain_generator(5, k, b) for b in range(3)]
        one = DDS(iterations=8, generator=generators).solve(problem, toy.prior).x
        assert relative_gap(found.samples[k], one) < 1e-10


def test_operators_that_differ_by_sample_will_do() -> None:
    prior = GaussianOracle(torch.zeros(4, 5, dtype=C128), torch.eye(20, dtype=C128))
    operator = Sense(noise(2, 3, 4, 5, dtype=C128))
    problem = measured(operator, prior.sample(2, seeded(1)), 0.1)
    for sampler in (DDS(iterations=4), DDRM(iterations=4), DPS(iterations=4)):
        found = posterior(sampler, problem, prior, samples=3)
        assert found.mean.shape == (2, 4, 5)
        assert found.std.dtype == F64


def test_mean_and_spread_are_those_of_the_samples_whether_they_are_kept_or_not() -> None:
    toy = gauss8()
    kept = posterior(SAMPLER, toy.problem, toy.prior, samples=11, batch=4, keep=True)
    thrown = posterior(SAMPLER, toy.problem, toy.prior, samples=11, batch=4)
    assert kept.samples is not None
    assert thrown.samples is None
    for found in (kept, thrown):
        assert relative_gap(found.mean, kept.samples.mean(0)) < 1e-12
        assert relative_gap(found.std, kept.samples.std(0)) < 1e-12
    wanted = torch.stack([chi_square(toy.problem, one) for one in kept.samples])
    assert relative_gap(kept.chi_square, wanted) < 1e-12


def test_the_spread_of_complex_images_is_that_of_both_parts_together() -> None:
    prior = GaussianOracle(torch.zeros(4, dtype=C128), 0.5 * torch.eye(4, dtype=C128))  # 0.25 in each part
    problem = Problem(MatrixSensing(torch.zeros(1, 4, dtype=C128)), torch.zeros(1, 1, dtype=C128))
    found = posterior(DDS(iterations=3, eta=0.0), problem, prior, samples=20, batch=20, keep=True)
    assert found.samples is not None
    parts = (found.samples.real.var(0) + found.samples.imag.var(0)).sqrt()
    assert relative_gap(found.std, parts) < 1e-12


def test_what_is_known_grows_batch_by_batch() -> None:
    toy = gauss8()
    run = iterate_posterior(SAMPLER, toy.problem, toy.prior, samples=10, batch=4)
    assert len(run) == 3
    with pytest.raises(ValueError, match="no sample is finished yet"):
        run.posterior()
    assert [found.moments.count for found in run] == [4, 8, 10]
    assert len(iterate_posterior(SAMPLER, several(), toy.prior, samples=10, batch=4)) == 10


def test_the_record_says_how_the_samples_were_made() -> None:
    toy = gauss8()
    found = posterior(SAMPLER, toy.problem, toy.prior, samples=2, seed=9)
    assert found.settings["algorithm"] == "DDS"
    assert found.settings["prior"] == "GaussianOracle"
    assert found.settings["samples"] == 2
    assert found.settings["seed"] == 9


def test_seeds_samples_and_problems_each_have_noise_of_their_own() -> None:
    draws = {
        float(torch.randn((), generator=chain_generator(seed, sample, problem)))
        for seed in range(4)
        for sample in range(4)
        for problem in range(4)
    }
    assert len(draws) == 64
    assert torch.equal(chain_generator(3, 1, 2).get_state(), chain_generator(3, 1, 2).get_state())


def test_the_mean_of_many_samples_is_near_that_of_the_exact_posterior() -> None:
    toy = gauss8()
    found = posterior(DiffPIR(iterations=100), toy.problem, toy.prior, samples=400, batch=400)
    error = (found.mean[0] - toy.exact.mean).norm()
    assert float(error / toy.exact.covariance.trace().sqrt()) < 0.4
    start = (toy.prior.mean - toy.exact.mean).norm()
    assert float(error) < 0.4 * float(start)


def test_predictor_and_corrector_scatter_as_the_posterior_does() -> None:
    prior = GaussianOracle(torch.full((6,), 0.2, dtype=F64), 0.25 * torch.eye(6, dtype=F64))
    mask = torch.tensor([True, True, True, False, False, False])
    problem = measured(Mask(mask), prior.sample(1, seeded(1)), 0.3)
    exact = prior.posterior(problem)
    found = posterior(PredictorCorrector(iterations=80, t_min=1e-3), problem, prior, samples=200, batch=200)
    wanted = exact.covariance.diagonal().sqrt()
    assert 0.9 < float((found.std[0] / wanted).mean()) < 1.12
    assert float(((found.mean[0] - exact.mean) / wanted).abs().max()) < 0.25


@pytest.mark.parametrize("sampler", [DDNM(iterations=3), DDRM(iterations=3)], ids=type)
def test_a_decomposition_is_computed_once_for_all_batches_until_the_operator_changes(sampler: Sampler[Any]) -> None:
    toy = gauss8()
    counted = Counted(MatrixSensing(toy.problem.operator.matrix.clone()))  # type: ignore[union-attr]
    problem = Problem(counted, toy.problem.y, toy.problem.noise)

    def asked(samples: int) -> int:
        """How often A is asked for, beside twice for each batch: for its misfit and for whether A is the same."""
        counted.calls()
        posterior(sampler, problem, toy.prior, samples=samples, batch=2)
        return counted.calls()[0] - 2 * ((samples + 1) // 2)

    assert asked(5) > 0
    assert asked(5) == 0
    counted.inner.matrix.mul_(2)  # type: ignore[union-attr]
    found = posterior(sampler, problem, toy.prior, samples=2, keep=True).samples
    wanted = posterior(
        sampler, Problem(counted.inner, problem.y, problem.noise), toy.prior, samples=2, keep=True
    ).samples
    assert found is not None and wanted is not None
    assert torch.equal(found, wanted)


class Plain(LinearOperator):
    """gain * matrix, known neither as parameters nor as buffers."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix.shape[1:], matrix.shape[:1])
        self.matrix, self.gain = matrix.clone(), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x @ self.matrix.mT

    def adjoint(self, y: Tensor) -> Tensor:
        return self.gain * y @ self.matrix


@pytest.mark.parametrize("change", ["tensor", "entry", "number", "data"])
def test_an_operator_that_changes_in_any_way_is_decomposed_anew(change: str) -> None:
    toy = gauss8()
    matrix: Tensor = toy.problem.operator.matrix  # type: ignore[union-attr, assignment]
    operator: Any = MatrixSensing(matrix.clone()) if change == "data" else Plain(matrix)
    problem, sampler = Problem(operator, toy.problem.y, toy.problem.noise), DDRM(iterations=3)
    before = posterior(sampler, problem, toy.prior, samples=2, keep=True).samples
    if change == "number":
        operator.gain = 2.0
    elif change == "entry":
        operator.matrix[0, 0] *= 1 + 1e-6
    else:
        operator.matrix.data.copy_(2 * matrix)
    same = Plain(getattr(operator, "gain", 1.0) * operator.matrix)
    found, wanted = (
        posterior(sampler, replace(problem, operator=one), toy.prior, samples=2, keep=True).samples
        for one in (operator, same)
    )
    assert before is not None and found is not None and wanted is not None
    assert relative_gap(found, wanted) < 1e-12
    assert relative_gap(found, before) > 1e-9


def test_a_first_image_is_given_to_every_chain() -> None:
    toy = gauss8()
    x0 = torch.full((1, 8), 1e3, dtype=F64)
    near = posterior(DDS(iterations=1), toy.problem, toy.prior, samples=3, keep=True)
    far = posterior(DDS(iterations=1), toy.problem, toy.prior, x0, samples=3, keep=True)
    assert near.samples is not None
    assert far.samples is not None
    assert bool(((far.samples - near.samples).abs() > 0.1).any(2).all())


@pytest.mark.parametrize(
    "sampler",
    [DDS(), DiffPIR(), DDNM(), DDRM(), DPS(iterations=50), PredictorCorrector(iterations=100)],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, C128], ids=str)
def test_every_sampler_draws_from_a_prior(sampler: Sampler[Any], dtype: torch.dtype) -> None:
    prior = GaussianOracle(torch.full((3, 4), 7.0, dtype=dtype), 0.25 * torch.eye(12, dtype=dtype))
    x = sample_prior(sampler, prior, torch.zeros(50, 3, 4, dtype=dtype))
    assert x.shape == (50, 3, 4)
    assert x.dtype == dtype
    assert float((x.mean() - 7).abs()) < 0.1
    assert 0.2 < float((x - x.mean()).abs().square().mean().sqrt()) < 0.6


def test_nan_is_an_error_unless_it_is_asked_for() -> None:
    class Broken(Denoiser):
        def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            return x + float("nan")

    toy = gmm2()
    with pytest.raises(RuntimeError, match="DDS met NaN or Inf; use a smaller weight"):
        posterior(SAMPLER, toy.problem, Broken(), samples=2)
    found = posterior(SAMPLER, toy.problem, Broken(), samples=2, throw=False)
    assert found.status == ((Status.NOT_FINITE,),) * 2


def test_what_is_no_sampler_or_no_count_is_refused() -> None:
    toy = gauss8()
    with pytest.raises(TypeError, match=r"algorithm must be a sampler such as DDS\(\), got FISTA, whose result"):
        posterior(FISTA(), toy.problem, toy.prior)  # type: ignore[arg-type]
    for name in ("samples", "batch"):
        with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
            posterior(SAMPLER, toy.problem, toy.prior, **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must be >= 0"):
        posterior(SAMPLER, toy.problem, toy.prior, seed=-1)
    with pytest.raises(TypeError, match="problem must be a Problem"):
        posterior(SAMPLER, 3, toy.prior)  # type: ignore[arg-type]
