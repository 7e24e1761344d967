"""DiffPIR against its published steps."""

import pytest
import torch
from sampler_problems import (
    F64,
    KEPT,
    Counted,
    Recorded,
    dense,
    gauss8,
    measured,
    network_denoiser,
    noise,
    seeded,
    steps_of,
)

from invreg.algorithms import DiffPIR, UniformSteps
from invreg.operators import Blur
from invreg.problem import Problem
from invreg.testing import relative_gap


@pytest.mark.parametrize(("strength", "zeta"), [(1.0, 1.0), (7.0, 0.3), (3.0, 0.0)])
def test_the_steps_are_the_published_ones(strength: float, zeta: float) -> None:
    """Alg. 1 in the variance-preserving space, with the data step by a dense solve."""
    steps, sigma, shape = 20, 0.2, (5, 4)
    prior = network_denoiser()
    operator = Blur(noise(3, 3, seed=2) / 3, shape)
    problem = measured(operator, noise(1, *shape, seed=3), sigma)
    sampler = DiffPIR(iterations=steps, schedule=UniformSteps(), strength=strength, zeta=zeta, generator=seeded(7))
    got = sampler.solve(problem, prior).x

    A, y = dense(operator, noise(1, *shape)), problem.y.flatten()
    generator, times = seeded(7), steps_of(steps)
    x = (1 - KEPT[times[0]]).sqrt() * torch.randn(1, *shape, dtype=F64, generator=generator)
    for i, t in enumerate(times):
        a = KEPT[t]
        e = prior.network(x[:, None], torch.tensor([t], dtype=F64))[:, 0]
        x0 = (x - (1 - a).sqrt() * e) / a.sqrt()
        if i + 1 == steps:
            break  # the last step leaves the data out
        rho = strength * sigma**2 * a / (1 - a)
        solved = torch.linalg.solve(A.mT @ A + rho * torch.eye(20, dtype=F64), A.mT @ y + rho * x0.flatten())
        x0 = solved.reshape(x0.shape)
        e = (x - a.sqrt() * x0) / (1 - a).sqrt()
        b = KEPT[times[i + 1]]
        n = torch.randn(1, *shape, dtype=F64, generator=generator) if zeta else 0
        x = b.sqrt() * x0 + (1 - b).sqrt() * ((1 - zeta) ** 0.5 * e + zeta**0.5 * n)
    assert relative_gap(got, x0) < 1e-8


def test_a_strong_prior_is_hardly_moved_by_the_data() -> None:
    toy = gauss8()
    weak, strong = (
        DiffPIR(iterations=20, strength=strength, generator=seeded(0)).solve(toy.repeated(200), toy.prior).x
        for strength in (1.0, 1e6)
    )
    residual = [float((toy.problem.operator(x) - toy.problem.y).square().mean().sqrt()) for x in (weak, strong)]
    assert residual[0] < 0.5 * residual[1]


def test_a_step_costs_one_denoising_and_one_normal_more_than_its_iterations_and_the_last_none() -> None:
    toy = gauss8()
    counted, prior = Counted(toy.problem.operator), Recorded(toy.prior)  # type: ignore[arg-type]
    sampler = DiffPIR(iterations=4, check_every=100, generator=seeded(0))
    run = sampler.iterate(Problem(counted, toy.problem.y, toy.problem.noise), prior)
    counted.calls()
    found = [counted.calls() for _ in run]
    assert found[:3] == [(0, 0, 6)] * 3
    assert found[3] == (1, 0, 0)  # the misfit, for the record
    assert len(prior.levels) == 4
