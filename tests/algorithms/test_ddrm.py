"""DDRM against its published rules, coordinate by coordinate."""

import math

import pytest
import torch
from sampler_problems import (
    C128,
    F64,
    KEPT,
    Counted,
    Recorded,
    gauss8,
    matrix,
    measured,
    network_denoiser,
    noise,
    seeded,
    steps_of,
)
from torch import Tensor

from invreg.algorithms import DDRM, UniformSteps
from invreg.models.oracles import GaussianOracle
from invreg.noise import Gaussian
from invreg.operators import Blur, Mask
from invreg.problem import Problem
from invreg.testing import relative_gap


@pytest.mark.parametrize(("eta", "eta_b"), [(0.85, 1.0), (0.5, 0.7), (0.0, 0.0)])
def test_the_steps_are_the_published_ones(eta: float, eta_b: float) -> None:
    """Eq. 7 and 8 in x0 + sigma n, as they are written; the denoiser is called in its variance-preserving space."""
    steps, sigma, shape = 20, 0.3, (4, 5)
    prior, operator = network_denoiser(), matrix(8, shape)
    problem = measured(operator, noise(1, *shape, seed=3), sigma)
    sampler = DDRM(iterations=steps, schedule=UniformSteps(), eta=eta, eta_b=eta_b, generator=seeded(7))
    got = sampler.solve(problem, prior).x

    U, s, Vh = torch.linalg.svd(operator.matrix)
    data, own = U.mT @ problem.y[0] / s, [sigma / float(one) for one in s]
    generator, times = seeded(7), steps_of(steps)
    levels = [float(((1 - KEPT[t]) / KEPT[t]).sqrt()) for t in times] + [0.0]

    def fresh() -> Tensor:
        return Vh @ torch.randn(1, *shape, dtype=F64, generator=generator).flatten()

    z = fresh()
    x = torch.stack(
        [data[k] + math.sqrt(levels[0] ** 2 - own[k] ** 2) * z[k] if k < 8 else levels[0] * z[k] for k in range(20)]
    )
    for i, t in enumerate(times):
        a, now, lower = KEPT[t], levels[i], levels[i + 1]
        image = (Vh.mT @ x).reshape(1, 1, *shape)
        e = prior.network(a.sqrt() * image, torch.tensor([t], dtype=F64))
        c = Vh @ (image - now * e).flatten()
        z = fresh() if lower else torch.zeros(20, dtype=F64)
        new = torch.empty(20, dtype=F64)
        for k in range(20):
            if k >= 8:
                new[k] = c[k] + math.sqrt(1 - eta**2) * lower * (x[k] - c[k]) / now + eta * lower * z[k]
            elif lower < own[k]:
                new[k] = c[k] + math.sqrt(1 - eta**2) * lower * (data[k] - c[k]) / own[k] + eta * lower * z[k]
            else:
                spread = math.sqrt(lower**2 - (own[k] * eta_b) ** 2)
                new[k] = (1 - eta_b) * c[k] + eta_b * data[k] + spread * z[k]
        x = new
    assert relative_gap(got.flatten(), Vh.mT @ x) < 1e-8


def test_the_first_image_has_the_data_and_what_they_lack_of_the_first_level() -> None:
    sigma = 0.5
    prior = GaussianOracle(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    A = Mask(torch.tensor([True, False]))
    y = torch.tensor([[3.0, 0.0]], dtype=F64).expand(20000, 2)
    run = DDRM(iterations=5, generator=seeded(0)).iterate(Problem(A, y, Gaussian(sigma)), prior)
    x = run.state.noisy
    assert torch.allclose(x.mean(0), torch.tensor([3.0, 0.0], dtype=F64), atol=0.5)
    wanted = torch.tensor([math.sqrt(400 - 0.25), 20.0], dtype=F64)
    assert torch.allclose(x.std(0), wanted, rtol=0.02)


def test_coordinates_of_real_images_under_a_blur_stay_real_and_at_the_right_level() -> None:
    """The Fourier coordinates are complex; the image at every level has the noise of that level in every pixel."""
    operator = Blur(torch.tensor([[0.05, 0.2, 0.05], [0.1, 0.4, 0.1], [0.0, 0.1, 0.0]], dtype=F64), (5, 6))
    prior = GaussianOracle(torch.zeros(5, 6, dtype=F64), 1e-12 * torch.eye(30, dtype=F64))
    problem = Problem(operator, 0.1 * noise(2000, 5, 6), Gaussian(0.1))  # data of the image 0
    run = DDRM(iterations=10, generator=seeded(0)).iterate(problem, prior)
    for k, state in enumerate(run):
        if k < 9:
            assert not state.noisy.is_complex()
            level = state.sigmas[k + 1]
            assert float(state.noisy.std()) == pytest.approx(level, rel=0.02)


def test_complex_data_bring_noise_of_their_level_in_each_part() -> None:
    prior = GaussianOracle(torch.zeros(3, dtype=C128), 1e-12 * torch.eye(3, dtype=C128))
    A = Mask(torch.tensor([True, True, False]))
    y = torch.where(torch.tensor([True, True, False]), 0.2 * noise(20000, 3, dtype=C128), 0)
    run = DDRM(iterations=10, generator=seeded(0)).iterate(Problem(A, y, Gaussian(0.2)), prior)
    for k, state in enumerate(run):
        if k < 9:
            parts = torch.view_as_real(state.noisy).std((0, 2))
            assert torch.allclose(parts, torch.full_like(parts, state.sigmas[k + 1]), rtol=0.02)


def test_a_step_costs_one_denoising_and_no_operator() -> None:
    toy = gauss8()
    counted, prior = Counted(toy.problem.operator), Recorded(toy.prior)  # type: ignore[arg-type]
    run = DDRM(iterations=5, check_every=100).iterate(Problem(counted, toy.problem.y, toy.problem.noise), prior)
    counted.calls()
    for _ in range(4):
        next(run)
    assert counted.calls() == (0, 0, 0)
    assert len(prior.levels) == 4
