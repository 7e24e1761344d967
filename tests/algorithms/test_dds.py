"""DDS against its published steps, where these are right, and against what they should be, where not."""

from collections.abc import Callable

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

from invreg.algorithms import DDS, DiffPIR, UniformSteps, sample_prior
from invreg.algorithms.renoise import Level
from invreg.interfaces import Denoiser, LinearOperator, Regularizer
from invreg.models.oracles import GaussianOracle
from invreg.noise import Gaussian
from invreg.operators import Mask, Sense
from invreg.problem import Problem
from invreg.regularizers import L1, TotalVariation
from invreg.testing import relative_gap


def plain_cg(apply: Callable[[Tensor], Tensor], b: Tensor, x: Tensor, steps: int) -> Tensor:
    """Conjugate gradients of one sample by the textbook, with complex inner products."""
    r = b - apply(x)
    p, rho = r, torch.vdot(r.flatten(), r.flatten()).real
    for _ in range(steps):
        q = apply(p)
        alpha = rho / torch.vdot(p.flatten(), q.flatten()).real
        x, r = x + alpha * p, r - alpha * q
        rho, last = torch.vdot(r.flatten(), r.flatten()).real, rho
        p = r + rho / last * p
    return x


def coils(batch: int = 2) -> tuple[Sense, Problem]:
    mask = torch.tensor([True, False, True, True, False, False])[:, None]
    operator = Sense(noise(1, 3, 6, 5, dtype=C128, seed=5) / 2, mask)
    return operator, measured(operator, noise(batch, 6, 5, dtype=C128, seed=6), 0.07)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_the_steps_are_the_published_ones_in_the_plane(gamma: float) -> None:
    """Alg. 1 in the variance-preserving space, with the right-hand side made complex before A^H y is added."""
    steps, eta = 20, 0.5
    operator, problem = coils(1)
    prior = network_denoiser("real2")
    sampler = DDS(iterations=steps, schedule=UniformSteps(), gamma=gamma, eta=eta, generator=seeded(7))
    got = sampler.solve(problem, prior).x

    generator, times = seeded(7), steps_of(steps)
    back = operator.adjoint(problem.y)

    def draw_two() -> Tensor:
        return torch.view_as_complex(torch.randn(1, 6, 5, 2, dtype=F64, generator=generator))

    x = (1 - KEPT[times[0]]).sqrt() * draw_two()
    for i, t in enumerate(times):
        a = KEPT[t]
        out = prior.network(torch.stack([x.real, x.imag], 1), torch.tensor([t], dtype=F64))
        e = torch.complex(out[:, 0], out[:, 1])
        x0 = (x - (1 - a).sqrt() * e) / a.sqrt()
        x0 = plain_cg(lambda v: v + gamma * operator.adjoint(operator(v)), x0 + gamma * back, x0, 5)
        if i + 1 < steps:
            b = KEPT[times[i + 1]]
            x = b.sqrt() * x0 + (1 - b).sqrt() * (eta * draw_two() + (1 - eta**2) ** 0.5 * e)
    assert relative_gap(got, x0) < 1e-8


class AlongZ(LinearOperator):
    """Differences of neighbouring slices, none behind the last."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.diff(x, dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.nn.functional.pad(y, (0, 0, 0, 0, 1, 0)) - torch.nn.functional.pad(y, (0, 0, 0, 0, 0, 1))


class VariationAlongZ(Regularizer[Tensor]):
    """weight * |D_z x|_1."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.diff(x, dim=1).abs().flatten(1).sum(1)

    @property
    def terms(self) -> tuple[tuple[LinearOperator, L1]]:
        return ((AlongZ(), L1(self.weight)),)


class SliceWise(Denoiser):
    """A prior of slices on (B, z, y, x)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network_denoiser()

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self.inner(x.flatten(0, 1), sigma).reshape(x.shape)


def test_the_steps_are_the_published_ones_in_a_volume() -> None:
    """Alg. 4: one round of ADMM in each step, splits and duals live on; the pull towards D, which it lacks, is off."""
    steps, eta, rho, weight, shape = 20, 0.85, 10.0, 0.04, (4, 5, 3)
    prior = SliceWise()
    A = matrix(25, shape)
    problem = measured(A, noise(1, *shape, seed=3), 1.0)
    sampler = DDS(
        iterations=steps,
        schedule=UniformSteps(),
        gamma=1e15,
        eta=eta,
        regularizer=VariationAlongZ(weight),
        rho=rho,
        generator=seeded(7),
    )
    got = sampler.solve(problem, prior).x

    generator, times, D = seeded(7), steps_of(steps), AlongZ()
    x = (1 - KEPT[times[0]]).sqrt() * torch.randn(1, *shape, dtype=F64, generator=generator)
    z = u = torch.zeros(1, 3, 5, 3, dtype=F64)
    for i, t in enumerate(times):
        a = KEPT[t]
        e = prior.inner.network(x.flatten(0, 1)[:, None], torch.full((4,), t, dtype=F64)).reshape(x.shape)
        x0 = (x - (1 - a).sqrt() * e) / a.sqrt()
        x0 = plain_cg(
            lambda v: A.adjoint(A(v)) + rho * D.adjoint(D(v)), A.adjoint(problem.y) + rho * D.adjoint(z - u), x0, 5
        )
        v = D(x0) + u
        z = v.sign() * (v.abs() - weight / rho).clamp_min(0)
        u = v - z
        if i + 1 < steps:
            b = KEPT[times[i + 1]]
            n = torch.randn(1, *shape, dtype=F64, generator=generator)
            x = b.sqrt() * x0 + (1 - b).sqrt() * (eta * n + (1 - eta**2) ** 0.5 * e)
    assert relative_gap(got, x0) < 1e-6


def test_the_data_step_is_the_prox_where_the_authors_program_solves_another_system() -> None:
    """Theirs adds gamma (1 + i) A^H y, and conjugates nothing in its inner products."""
    operator, problem = coils()
    gamma, D = 5.0, noise(2, 6, 5, dtype=C128, seed=8)
    sampler = DDS(gamma=gamma, inner_iterations=60)
    x, _ = sampler.consistent(problem, D, D, Level(1.0, 0.5), None)

    def system(v: Tensor) -> Tensor:
        return v + gamma * operator.adjoint(operator(v))

    right = D + gamma * operator.adjoint(problem.y)
    assert relative_gap(system(x), right) < 1e-10
    theirs = D + gamma * (1 + 1j) * operator.adjoint(problem.y)
    assert relative_gap(system(x), theirs) > 0.5


def test_every_iteration_of_the_data_step_comes_closer_at_a_pace_of_each_samples_own() -> None:
    operator, problem = coils()
    scaled = Problem(operator, problem.y * torch.tensor([1.0, 1e-4]).reshape(2, 1, 1, 1), problem.noise)
    D = noise(2, 6, 5, dtype=C128, seed=8) * torch.tensor([1.0, 1e-4]).reshape(2, 1, 1)

    def after(steps: int) -> Tensor:
        return DDS(gamma=5.0, inner_iterations=steps).consistent(scaled, D, D, Level(1.0, 0.5), None)[0]

    exact = after(80)
    gaps = torch.tensor([[relative_gap(after(n)[i], exact[i]) for i in range(2)] for n in (1, 2, 3, 5, 8)])
    assert bool((gaps[1:] < gaps[:-1]).all())
    one = Problem(operator, scaled.y[1:], scaled.noise)
    alone = DDS(gamma=5.0, inner_iterations=3).consistent(one, D[1:], D[1:], Level(1.0, 0.5), None)[0]
    assert relative_gap(after(3)[1:], alone) < 1e-12


def test_a_large_gamma_makes_the_image_agree_with_the_data() -> None:
    toy = gauss8()
    sampler = DDS(iterations=10, gamma=1e10, inner_iterations=30, generator=seeded(0))
    x = sampler.solve(toy.problem, toy.prior).x
    assert relative_gap(toy.problem.operator(x), toy.problem.y) < 1e-6


def test_with_all_noise_fresh_it_is_diffpir_up_to_the_last_step() -> None:
    toy = gauss8()
    problem = toy.repeated(3)
    one = DDS(iterations=12, generator=seeded(0)).iterate(problem, toy.prior)
    two = DiffPIR(iterations=12, generator=seeded(0)).iterate(problem, toy.prior)
    states = list(zip(one, two, strict=True))
    for a, b in states[:-1]:
        assert relative_gap(a.noisy, b.noisy) < 1e-12
    last = states[-1]
    assert relative_gap(last[0].x, last[1].x) > 1e-9
    assert relative_gap(last[1].x, toy.prior(states[-2][1].noisy, 0.005)) < 1e-12


@pytest.mark.parametrize("inner", [1, 5])
def test_a_step_costs_one_denoising_and_one_normal_more_than_its_iterations(inner: int) -> None:
    operator, problem = coils()
    counted = Counted(operator)
    prior = Recorded(network_denoiser("real2"))
    sampler = DDS(iterations=6, inner_iterations=inner, schedule=UniformSteps(), check_every=100, generator=seeded(0))
    run = sampler.iterate(Problem(counted, problem.y, problem.noise), prior)
    assert counted.calls() == (0, 1, 0)  # A^H y, once
    for k in range(5):
        next(run)
        assert counted.calls() == (0, 0, inner + 1)
        assert len(prior.levels) == k + 1


@pytest.mark.parametrize("rounds", [1, 3])
def test_with_a_regularizer_each_round_costs_that(rounds: int) -> None:
    operator, problem = coils()
    counted = Counted(operator)
    sampler = DDS(iterations=6, regularizer=TotalVariation(0.1), rho=1.0, rounds=rounds, generator=seeded(0))
    run = sampler.iterate(Problem(counted, problem.y, problem.noise), network_denoiser("real2"))
    counted.calls()
    next(run)
    assert counted.calls() == (0, 0, 6 * rounds)


def test_levels_of_each_sample_and_measurement_are_taken_with_their_mean_precision() -> None:
    A = matrix(5, (8,))
    sigma = torch.tensor([[0.1] * 5, [0.1, 0.2, 0.3, 0.4, 0.5]], dtype=F64)
    problem = Problem(A, noise(2, 5), Gaussian(sigma))
    D = noise(2, 8, seed=2)
    x, _ = DDS(gamma=3.0, inner_iterations=30).consistent(problem, D, D, Level(1.0, 0.5), None)
    variance = 3.0 / (sigma**-2).mean(1)
    for i in range(2):
        W = torch.diag(sigma[i] ** -2)
        H = A.matrix.mT @ W @ A.matrix + torch.eye(8, dtype=F64) / variance[i]
        wanted = torch.linalg.solve(H, A.matrix.mT @ W @ problem.y[i] + D[i] / variance[i])
        assert relative_gap(x[i], wanted) < 1e-9


def test_many_rounds_solve_the_data_step_with_the_regularizer() -> None:
    """Whatever rho is: the optimality condition of misfit + |x - D|^2 / (2 v) + R."""
    shape, D = (3, 4, 2), noise(1, 3, 4, 2, seed=4)
    problem = measured(matrix(9, shape), noise(1, *shape, seed=3), 0.5)
    prior = VariationAlongZ(0.4)
    found = []
    for rho in (None, 1.0):
        sampler = DDS(regularizer=prior, rho=rho, rounds=400, inner_iterations=5)
        memory = sampler.remember(problem, torch.zeros_like(D))
        found.append(sampler.consistent(problem, D, D, Level(0.8, 0.5), memory)[0])
    assert relative_gap(found[0], found[1]) < 1e-5
    x = found[0]

    def objective(x: Tensor) -> float:
        return float(problem.misfit(x) + (x - D).square().sum() / (2 * 0.64) + prior(x))

    least = objective(x)
    for seed in range(50):
        for size in (1e-1, 1e-2, 1e-3):
            assert objective(x + size * noise(1, *shape, seed=seed)) >= least - 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, C128], ids=str)
def test_total_variation_in_the_plane_flattens_what_the_prior_lets_pass(dtype: torch.dtype) -> None:
    """The prior knows nothing, half of the pixels are seen: what R sees of the samples falls with its weight."""
    prior = GaussianOracle(torch.zeros(6, 6, dtype=dtype), torch.eye(36, dtype=dtype))
    problem = measured(Mask(noise(6, 6) > 0), noise(2, 6, 6, dtype=dtype, seed=1), 0.1)
    sizes = []
    for weight in (0.0, 1.0, 100.0):
        sampler = DDS(iterations=15, regularizer=TotalVariation(weight), generator=seeded(0))
        x = sampler.solve(problem, prior).x
        assert x.dtype == dtype
        sizes.append(TotalVariation()(x))
    assert bool((sizes[1] < sizes[0]).all())
    assert bool((sizes[2] < sizes[1]).all())


def test_nothing_measured_and_a_regularizer_go_together() -> None:
    prior = GaussianOracle(torch.zeros(4, 4, dtype=F64), torch.eye(16, dtype=F64))
    sampler = DDS(iterations=10, regularizer=TotalVariation(0.1), generator=seeded(0))
    assert bool(sample_prior(sampler, prior, torch.zeros(2, 4, 4, dtype=F64)).isfinite().all())


def test_a_faint_regularizer_lets_data_that_are_weakly_seen_be_met() -> None:
    """Singular values from 1 to 0.01, as in tomography: the splits must not hold x where it was."""
    A = matrix(16, (4, 4))
    U, _, V = torch.linalg.svd(A.matrix)
    A.matrix = U @ torch.diag(torch.logspace(0, -2, 16, dtype=F64)) @ V
    prior = GaussianOracle(torch.zeros(4, 4, dtype=F64), torch.eye(16, dtype=F64))
    truth = prior.sample(8, seeded(1))
    problem = Problem(A, A(truth) + 1e-3 * noise(8, 16, seed=2), Gaussian(1e-3))
    options = {"iterations": 30, "inner_iterations": 16}
    plain = DDS(**options, generator=seeded(0)).solve(problem, prior).x
    both = DDS(**options, generator=seeded(0), regularizer=TotalVariation(1e-6)).solve(problem, prior).x
    missed = [float((2 * problem.misfit(x) / problem.count).mean()) for x in (plain, both)]
    assert 0.9 < missed[1] / missed[0] < 1.1, missed


@pytest.mark.parametrize("eta", [1.0, None])
def test_a_regularizer_of_no_weight_leaves_draws_as_wide_as_without(eta: float | None) -> None:
    prior, like = (
        GaussianOracle(torch.zeros(4, 4, dtype=F64), torch.eye(16, dtype=F64)),
        torch.zeros(100, 4, 4, dtype=F64),
    )
    plain = sample_prior(DDS(eta=eta, generator=seeded(0)), prior, like).std()
    both = sample_prior(DDS(eta=eta, generator=seeded(0), regularizer=TotalVariation(1e-9)), prior, like).std()
    assert 0.96 < float(both / plain) < 1.01
