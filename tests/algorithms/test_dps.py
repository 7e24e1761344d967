"""DPS against its published steps, and chains that do not feel their batch."""

import pytest
import torch
from sampler_problems import (
    C128,
    F64,
    KEPT,
    Counted,
    Recorded,
    gauss8,
    generators,
    matrix,
    measured,
    network_denoiser,
    noise,
    seeded,
    steps_of,
)
from torch import Tensor

from invreg.algorithms import DPS, Karras, Status, UniformSteps
from invreg.algorithms.renoise import Level
from invreg.interfaces import Denoiser, LinearOperator, Noise
from invreg.models.oracles import GaussianOracle
from invreg.noise import Gaussian, Poisson
from invreg.operators import Mask, MaskedFourier, PhaseRetrieval
from invreg.problem import Problem
from invreg.random import Generator
from invreg.testing import relative_gap


def test_the_steps_are_the_published_ones() -> None:
    """Alg. 1 in the variance-preserving space with the norm of each sample; what is returned is the last x0."""
    steps, weight, shape = 20, 0.7, (4, 5)
    prior, operator = network_denoiser(), matrix(8, shape)
    problem = measured(operator, noise(2, *shape, seed=3), 0.1)
    sampler = DPS(iterations=steps, schedule=UniformSteps(), weight=weight, generator=generators(2))
    got = sampler.solve(problem, prior).x

    times = steps_of(steps)
    for sample, generator in enumerate(generators(2)):  # type: ignore[arg-type]

        def fresh(generator: torch.Generator = generator) -> Tensor:
            return torch.randn(1, *shape, dtype=F64, generator=generator)

        x = (1 - KEPT[times[0]]).sqrt() * fresh()
        for i, t in enumerate(times):
            a = KEPT[t]
            x = x.detach().requires_grad_()
            e = prior.network(x[:, None], torch.tensor([t], dtype=F64))[:, 0]
            x0 = (x - (1 - a).sqrt() * e) / a.sqrt()
            residual = torch.linalg.vector_norm(problem.y[sample] - operator.matrix @ x0.flatten())
            (gradient,) = torch.autograd.grad(residual, x)
            if i + 1 == steps:
                break
            b = KEPT[times[i + 1]]
            beta = 1 - a / b  # of the respaced chain
            mean = (b.sqrt() * beta * x0 + (a / b).sqrt() * (1 - b) * x) / (1 - a)
            x = mean + ((1 - b) / (1 - a) * beta).sqrt() * fresh() - weight * gradient
        assert relative_gap(got[sample], x0[0].detach()) < 1e-8


def test_a_chain_does_not_feel_its_batch_where_the_authors_does() -> None:
    """Their gradient is that of the norm of all residuals together, smaller the more chains there are."""
    toy = gauss8()
    problem = toy.repeated(4)
    sampler = DPS(iterations=5, generator=seeded(0))
    run = sampler.iterate(problem, toy.prior)
    noisy, level = run.state.noisy, run.state.sigmas[0]
    guidance = sampler.estimate(problem, toy.prior, noisy, Level(level, level / 2), None).memory
    point = noisy.clone().requires_grad_()
    whole = torch.linalg.vector_norm(problem.y - problem.operator(toy.prior(point, level)))
    (theirs,) = torch.autograd.grad(whole, point)
    ratio = guidance.flatten(1).norm(dim=1) / theirs.norm(dim=1)
    own = torch.linalg.vector_norm(problem.y - problem.operator(toy.prior(noisy, level)), dim=1)
    scale = ((1 + level**2) * (1 + level**2 / 4)) ** 0.5
    assert torch.allclose(ratio, scale * whole.detach() / own, rtol=1e-10)
    assert bool((ratio > scale * 1.2).all())


class Exponential(LinearOperator):
    """Not linear, in spite of its base, so that the general way is taken through Poisson noise."""

    def __init__(self) -> None:
        super().__init__((4,), (4,))

    def forward(self, x: Tensor) -> Tensor:
        return x.exp()

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y)


@pytest.mark.parametrize("kind", ["phases", "counts"])
def test_it_takes_any_operator_and_any_noise(kind: str) -> None:
    prior = GaussianOracle(torch.ones(4, dtype=F64), 0.1 * torch.eye(4, dtype=F64))
    truth = prior.sample(30, seeded(1))
    if kind == "phases":
        operator = PhaseRetrieval(matrix(12, (4,)))
        problem = Problem(operator, operator(truth), Gaussian(0.1))
    else:
        problem = Problem(Exponential(), Poisson(200.0).sample(truth.exp(), seeded(2)), Poisson(200.0))
    start = torch.ones_like(truth)
    guided, unguided = (
        DPS(iterations=60, schedule=Karras(sigma_max=1.0), weight=weight, generator=seeded(0))
        .solve(problem, prior, start)
        .x
        for weight in (0.01, 1e-9)
    )
    assert float(problem.misfit(guided).mean()) < 0.5 * float(problem.misfit(unguided).mean())


def near_zero(photons: float, count: int = 20) -> tuple[GaussianOracle, Tensor, Problem]:
    """Prior, truths and counts of images about 0.1 with a deviation of 0.1, many of them negative to the prior."""
    lag = (torch.arange(16)[:, None] - torch.arange(16)).abs()
    prior = GaussianOracle(torch.full((16,), 0.1, dtype=F64), 0.01 * torch.tensor(0.8, dtype=F64) ** lag)
    truth, noise = prior.sample(count, seeded(1)).clamp_min(0), Poisson(photons)
    return prior, truth, Problem(Mask(torch.ones(16, dtype=torch.bool)), noise.sample(truth, seeded(2)), noise)


@pytest.mark.parametrize("photons", [100.0, 1000.0])
def test_counts_guide_images_that_are_negative_somewhere(photons: float) -> None:
    prior, truth, problem = near_zero(photons)
    sampler = DPS(iterations=200, schedule=Karras(sigma_max=2.0), weight=0.05, generator=seeded(0))
    result = sampler.solve(problem, prior)
    assert bool((result.x < 0).any())
    assert result.status == (Status.COMPLETE,) * len(truth)
    error, unguided = ((one - truth).square().mean().sqrt() for one in (result.x, prior.mean))
    assert float(error) < 0.5 * float(unguided)


def test_equal_counts_are_weighed_as_under_gaussian_noise_of_any_number_of_photons() -> None:
    prior, start = near_zero(100.0)[0], torch.full((1, 16), 0.1, dtype=F64)
    seen = torch.arange(16) % 3 > 0
    found = []
    for model, count in ((Gaussian(0.1), 0.2), (Poisson(100.0, 3.0), 23.0), (Poisson(1e4, 3.0), 2003.0)):
        problem = Problem(Mask(seen), count * seen[None].double(), model)
        found.append(DPS(iterations=5, weight=0.1, generator=seeded(0)).solve(problem, prior, start).x)
    assert relative_gap(found[1], found[0]) < 1e-10
    assert relative_gap(found[2], found[0]) < 1e-10


class Bounded(Noise):
    """Gaussian noise of measurements that cannot be negative."""

    def sample(self, clean: Tensor, generator: Generator = None) -> Tensor:
        return clean

    def nll_terms(self, clean: Tensor, y: Tensor) -> Tensor:
        return torch.where(clean < 0, torch.inf, (clean - y).square() / 2)

    def nll_gradient(self, clean: Tensor, y: Tensor) -> Tensor:
        return clean - y


@pytest.mark.parametrize("bad", [torch.nan, -1.0])
def test_nan_and_a_likelihood_of_zero_are_reported(bad: float) -> None:
    class Spoilt(Denoiser):
        calls = 0

        def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            self.calls += 1
            return 0.1 * x + torch.tensor([[1.0], [bad if self.calls == 1 else 1.0]], dtype=F64)

    problem = Problem(Mask(torch.ones(4, dtype=torch.bool)), torch.ones(2, 4, dtype=F64), Bounded())
    sampler = DPS(iterations=3, schedule=Karras(sigma_max=0.1), generator=seeded(0))
    assert sampler.solve(problem, Spoilt(), throw=False).status == (Status.COMPLETE, Status.NOT_FINITE)


@pytest.mark.parametrize("bent", [False, True])
def test_the_level_of_gaussian_noise_does_not_change_the_chain(bent: bool) -> None:
    """The published weight goes with |y - A x|, whatever its standard deviation and whether A is linear or not."""
    A = matrix(5, (4,))
    operator = PhaseRetrieval(A) if bent else A
    prior = GaussianOracle(torch.ones(4, dtype=F64), 0.1 * torch.eye(4, dtype=F64))
    start, y = torch.zeros(2, 4, dtype=F64), operator(prior.sample(2, seeded(1)))
    found = [
        DPS(iterations=5, weight=1e-3, generator=seeded(0)).solve(Problem(operator, y, Gaussian(s)), prior, start).x
        for s in (1.0, 1e-3)
    ]
    assert relative_gap(found[0], found[1]) < 1e-12


def test_a_residual_of_zero_has_a_gradient_of_zero() -> None:
    class Constant(Denoiser):
        def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            return 0 * x

    problem = Problem(matrix(3, (4,)), torch.zeros(2, 3, dtype=F64), Gaussian(0.1))
    x = DPS(iterations=5, generator=seeded(0)).solve(problem, Constant()).x
    assert torch.equal(x, torch.zeros(2, 4, dtype=F64))


def test_a_complex_gradient_points_where_the_residual_falls() -> None:
    prior = GaussianOracle(torch.zeros(4, 5, dtype=C128), torch.eye(20, dtype=C128))
    problem = measured(MaskedFourier(noise(4, 5) > 0), prior.sample(1, seeded(1)), 1e-6)
    noisy = noise(1, 4, 5, dtype=C128, seed=2)
    sampler = DPS()
    guidance = sampler.estimate(problem, prior, noisy, Level(0.5, 0.4), None).memory

    def residual(x: Tensor) -> float:
        return float((problem.y - problem.operator(prior(x, 0.5))).norm())

    gain = (1.25 * 1.16) ** 0.5
    for i, direction in enumerate((1.0, 1j)):
        d = noise(1, 4, 5, seed=3 + i) * direction
        slope = (residual(noisy + 1e-6 * d) - residual(noisy - 1e-6 * d)) / 2e-6
        assert float((guidance.conj() * d).real.sum()) == pytest.approx(gain * slope, rel=1e-6)


def test_a_step_costs_one_denoising_one_operator_and_one_adjoint() -> None:
    toy = gauss8()
    prior = Recorded(toy.prior)
    counted = Counted(toy.problem.operator)  # type: ignore[arg-type]
    run = DPS(iterations=5, check_every=100).iterate(Problem(counted, toy.problem.y, toy.problem.noise), prior)
    counted.calls()
    for _ in range(3):
        next(run)
    assert counted.calls() == (3, 0, 0)  # autograd goes back through A
    assert len(prior.levels) == 3


def test_the_last_step_is_the_denoised_image_and_asks_for_no_gradient() -> None:
    toy = gauss8()
    run = DPS(iterations=5, generator=seeded(0)).iterate(toy.problem, toy.prior)
    for _ in range(4):
        next(run)
    noisy, level = run.state.noisy, run.state.sigmas[4]
    counted = Counted(toy.problem.operator)  # type: ignore[arg-type]
    found = run.algorithm.step(Problem(counted, toy.problem.y, toy.problem.noise), toy.prior, run.state, 1.0)
    assert torch.equal(found.x, toy.prior(noisy, level)) and torch.equal(found.noisy, found.x)
    assert counted.calls() == (0, 0, 0)


def test_a_single_step_which_would_not_look_at_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="iterations must be >= 2, got 1; the last one does not look at the data"):
        DPS(iterations=1)
    toy = gauss8()
    near, far = (
        DPS(iterations=2, generator=seeded(0)).solve(Problem(toy.problem.operator, y, toy.problem.noise), toy.prior).x
        for y in (toy.problem.y, toy.problem.y + 1)
    )
    assert relative_gap(far, near) > 1e-3


def test_the_parameters_of_the_denoiser_collect_no_gradient() -> None:
    prior = network_denoiser().requires_grad_()
    problem = measured(matrix(8, (4, 5)), noise(1, 4, 5), 0.1)
    x = DPS(iterations=3, generator=seeded(0)).solve(problem, prior).x
    assert not x.requires_grad
    assert all(p.grad is None for p in prior.parameters())
