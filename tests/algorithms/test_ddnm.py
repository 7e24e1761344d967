"""DDNM and DDNM+ against their published steps, coordinate by coordinate."""

import math

import pytest
import torch
from sampler_problems import (
    C128,
    F64,
    KEPT,
    Counted,
    Recorded,
    dense,
    gauss8,
    matrix,
    measured,
    network_denoiser,
    noise,
    seeded,
    steps_of,
)

from invreg.algorithms import DDNM, DDRM, UniformSteps
from invreg.interfaces import LinearOperator
from invreg.models.oracles import GaussianOracle
from invreg.noise import Gaussian
from invreg.operators import Blur, Mask, MaskedFourier, MatrixSensing
from invreg.problem import Problem
from invreg.testing import relative_gap


def test_without_regard_to_noise_the_steps_are_the_published_ones() -> None:
    """Eq. 13 with the pseudoinverse: x0' = x0 - A^+ (A x0 - y)."""
    steps, eta, shape = 20, 0.85, (4, 5)
    prior, operator = network_denoiser(), matrix(8, shape)
    problem = measured(operator, noise(1, *shape, seed=3), 0.3)
    got = DDNM(iterations=steps, schedule=UniformSteps(), eta=eta, noise_aware=False, generator=seeded(7)).solve(
        problem, prior
    )

    A = operator.matrix
    generator, times = seeded(7), steps_of(steps)
    x = (1 - KEPT[times[0]]).sqrt() * torch.randn(1, *shape, dtype=F64, generator=generator)
    for i, t in enumerate(times):
        a = KEPT[t]
        e = prior.network(x[:, None], torch.tensor([t], dtype=F64))[:, 0]
        x0 = (x - (1 - a).sqrt() * e) / a.sqrt()
        x0 = x0 - (torch.linalg.pinv(A) @ (A @ x0.flatten() - problem.y[0])).reshape(x0.shape)
        if i + 1 < steps:
            b = KEPT[times[i + 1]]
            n = torch.randn(1, *shape, dtype=F64, generator=generator)
            x = b.sqrt() * x0 + (1 - b).sqrt() * (eta * n + math.sqrt(1 - eta**2) * e)
    assert relative_gap(got.x, x0) < 1e-8
    assert relative_gap(operator(got.x), problem.y) < 1e-10


@pytest.mark.parametrize("eta", [0.0, 0.85, 1.0])
def test_with_regard_to_noise_the_steps_are_the_published_ones(eta: float) -> None:
    """Eq. 17 to 19, with the level of each singular value, in the variance-preserving space."""
    steps, sigma, shape = 20, 0.3, (4, 5)
    prior, operator = network_denoiser(), matrix(8, shape)
    problem = measured(operator, noise(1, *shape, seed=3), sigma)
    got = DDNM(iterations=steps, schedule=UniformSteps(), eta=eta, generator=seeded(7)).solve(problem, prior)

    U, s, Vh = torch.linalg.svd(operator.matrix)
    data = U.mT @ problem.y[0] / s
    generator, times = seeded(7), steps_of(steps)
    x = (1 - KEPT[times[0]]).sqrt() * torch.randn(1, *shape, dtype=F64, generator=generator)
    for i, t in enumerate(times):
        a, b = KEPT[t], KEPT[times[i + 1]] if i + 1 < steps else torch.ones((), dtype=F64)
        e = prior.network(x[:, None], torch.tensor([t], dtype=F64))[:, 0]
        x0 = (x - (1 - a).sqrt() * e) / a.sqrt()
        c, ce = Vh @ x0.flatten(), Vh @ e.flatten()
        level, root = float((1 - b).sqrt()), float(b.sqrt())
        z = Vh @ torch.randn(1, *shape, dtype=F64, generator=generator).flatten() if level else torch.zeros(20)
        new = torch.empty(20, dtype=F64)
        for k in range(20):
            if k >= 8:  # not measured
                new[k] = root * c[k] + level * (eta * z[k] + math.sqrt(1 - eta**2) * ce[k])
                continue
            own = root * sigma / float(s[k])  # what the data bring along
            if own <= level:
                new[k] = root * data[k] + math.sqrt(level**2 - own**2) * z[k]
            else:
                share = level * math.sqrt(1 - eta**2) / own
                new[k] = root * (c[k] + share * (data[k] - c[k])) + level * eta * z[k]
        x = (Vh.mT @ new).reshape(x.shape)
    assert relative_gap(got.x, x) < 1e-8


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_exact_data_end_in_the_range_as_without_regard_to_noise(eta: float) -> None:
    toy = gauss8()
    A = toy.problem.operator
    clean = A(toy.prior.sample(20, seeded(1)))
    problem = Problem(A, clean, Gaussian(1e-9))
    with_regard, without = (
        DDNM(iterations=15, eta=eta, noise_aware=aware, generator=seeded(2)).solve(problem, toy.prior).x
        for aware in (True, False)
    )
    assert relative_gap(A(without), clean) < 1e-10
    # the last step, to level 0, leaves data of any noise out: they are as far as the level before
    assert relative_gap(A(with_regard), clean) < 2e-2
    if eta == 1:
        again = DDNM(iterations=15, eta=1.0, generator=seeded(2)).iterate(problem, toy.prior)
        blind = DDNM(iterations=15, eta=1.0, noise_aware=False, generator=seeded(2)).iterate(problem, toy.prior)
        for k, (a, b) in enumerate(zip(again, blind, strict=True)):
            assert k == 14 or relative_gap(a.noisy, b.noisy) < 1e-7


@pytest.mark.parametrize("eta", [0.3, 0.85, 1.0])
def test_it_is_ddrm_with_all_weight_on_good_data(eta: float) -> None:
    """From the same noisy image on: the two differ in nothing but where they begin."""
    toy = gauss8()
    problem = toy.repeated(5)
    one = DDNM(iterations=15, eta=eta, generator=seeded(2)).iterate(problem, toy.prior)
    two = DDRM(iterations=15, eta=eta, eta_b=1.0, generator=seeded(2)).iterate(problem, toy.prior)
    two.state = one.state
    for a, b in zip(one, two, strict=True):
        assert relative_gap(a.noisy, b.noisy) < 1e-11


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("kind", ["mask", "blur", "fourier", "real matrix"])
def test_a_cheap_decomposition_and_that_of_the_matrix_give_one_chain(kind: str, aware: bool) -> None:
    complex_valued = kind in ("fourier", "real matrix")
    dtype = C128 if complex_valued else F64
    operator: LinearOperator
    if kind == "mask":
        operator = Mask(noise(4, 5) > 0)
    elif kind == "blur":
        operator = Blur(torch.tensor([[0.1, 0.4, 0.1], [0.0, 0.3, 0.1]], dtype=F64), (4, 5))
    elif kind == "fourier":
        operator = MaskedFourier(noise(4, 5) > 0)
    else:
        operator = matrix(7, (4, 5))
    prior = GaussianOracle(torch.zeros(4, 5, dtype=dtype), torch.eye(20, dtype=dtype))
    problem = measured(operator, noise(2, 4, 5, dtype=dtype, seed=3), 0.1)
    A = MatrixSensing(dense(operator, noise(1, 4, 5, dtype=dtype)).contiguous(), (4, 5))
    plain = Problem(A, problem.y.flatten(1), problem.noise)
    first, second = (
        DDNM(iterations=12, noise_aware=aware, generator=seeded(1)).solve(one, prior).x for one in (problem, plain)
    )
    assert relative_gap(first, second) < 1e-9


def test_a_step_costs_one_denoising_and_no_operator() -> None:
    toy = gauss8()
    counted, prior = Counted(toy.problem.operator), Recorded(toy.prior)  # type: ignore[arg-type]
    for sampler in (DDNM(iterations=5, check_every=100), DDNM(iterations=5, check_every=100, noise_aware=False)):
        run = sampler.iterate(Problem(counted, toy.problem.y, toy.problem.noise), prior)
        counted.calls()
        prior.levels.clear()
        for _ in range(4):
            next(run)
        assert counted.calls() == (0, 0, 0)
        assert len(prior.levels) == 4
