"""Noise levels, the two ways to go down one, and what all samplers have in common."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from sampler_problems import (
    C128,
    F64,
    KEPT,
    Recorded,
    flat,
    gauss8,
    generators,
    gmm2,
    matrix,
    measured,
    network_denoiser,
    noise,
    seeded,
    steps_of,
)
from torch import Tensor

from invreg.algorithms import (
    DDNM,
    DDRM,
    DDS,
    DPS,
    DiffPIR,
    DiffusionSampler,
    Karras,
    Status,
    UniformSteps,
    sample_prior,
)
from invreg.algorithms.renoise import Level, ancestral, mixed_noise
from invreg.interfaces import Denoiser
from invreg.models.oracles import GaussianOracle, MixtureOracle
from invreg.noise import Gaussian, Poisson
from invreg.operators import Mask, PhaseRetrieval, Sense
from invreg.problem import Problem
from invreg.random import Generator
from invreg.regularizers import L1
from invreg.testing import relative_gap

Make = Callable[[Generator], DiffusionSampler]
SAMPLERS: dict[str, Make] = {
    "DDS": lambda g: DDS(iterations=12, generator=g),
    "DDS with a fixed gamma": lambda g: DDS(iterations=12, gamma=2.0, eta=0.5, generator=g),
    "DDS by ancestral steps": lambda g: DDS(iterations=12, eta=None, generator=g),
    "DiffPIR": lambda g: DiffPIR(iterations=12, zeta=0.4, strength=3.0, generator=g),
    "DDNM+": lambda g: DDNM(iterations=12, generator=g),
    "DDNM": lambda g: DDNM(iterations=12, noise_aware=False, generator=g),
    "DDRM": lambda g: DDRM(iterations=12, eta_b=0.8, generator=g),
    "DPS": lambda g: DPS(iterations=12, weight=0.3, generator=g),
}


# --- schedules


def test_karras_levels_fall_evenly_in_a_root() -> None:
    levels = Karras(sigma_min=0.1, sigma_max=8.0, rho=3.0).sigmas(5, (0.0, math.inf))
    assert levels[0] == pytest.approx(8.0)
    assert levels[-1] == pytest.approx(0.1)
    steps = [a ** (1 / 3) - b ** (1 / 3) for a, b in pairwise(levels)]
    assert steps == pytest.approx([steps[0]] * 4)


def test_karras_keeps_to_what_the_denoiser_was_made_for_unless_told_otherwise() -> None:
    assert Karras().sigmas(3, (0.0, math.inf))[::2] == pytest.approx((20.0, 0.005))
    assert Karras().sigmas(3, (0.02, 10.0))[::2] == pytest.approx((10.0, 0.02))
    assert Karras(sigma_max=5.0).sigmas(1, (0.02, 10.0)) == pytest.approx((5.0,))
    with pytest.raises(ValueError, match=r"sigma must stay within .* 0.02 to 10, got 0.02 to 20"):
        Karras(sigma_max=20.0).sigmas(3, (0.02, 10.0))
    with pytest.raises(ValueError, match="sigma_max must be > sigma_min, got 0.001 and 0.005; give both"):
        Karras(sigma_max=0.001).sigmas(3, (0.0, 10.0))


@pytest.mark.parametrize("count", [1, 20, 50, 1000])
def test_uniform_steps_are_those_of_the_publications(count: int) -> None:
    wanted = [float(((1 - KEPT[k]) / KEPT[k]).sqrt()) for k in steps_of(count)]
    assert UniformSteps().sigmas(count, (0.0, math.inf)) == pytest.approx(wanted, rel=1e-9)


def test_uniform_steps_reach_far_up_for_every_count() -> None:
    for count in (300, 600, 999):
        levels = UniformSteps().sigmas(count, (0.0, math.inf))
        assert len(levels) == count
        assert all(a > b for a, b in pairwise(levels))
        assert levels[0] > 100
        assert levels[-1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Karras(sigma_min=0.0), ValueError, "sigma_min must be finite and > 0"),
        (lambda: Karras(sigma_min=2.0, sigma_max=1.0), ValueError, "sigma_max must be > sigma_min = 2.0, got 1.0"),
        (lambda: Karras(rho=-1.0), ValueError, "rho must be"),
        (lambda: Karras(rho="7"), TypeError, "rho must be a number"),
        (lambda: UniformSteps(steps=1), ValueError, "steps must be >= 2"),
        (lambda: UniformSteps(beta_last=1.0), ValueError, "beta_last must be from"),
        (lambda: UniformSteps(beta_first=0.0), ValueError, "beta_first must be"),
        (lambda: UniformSteps(steps=10).sigmas(11, (0.0, 99.0)), ValueError, "iterations must be <= steps = 10"),
        (lambda: UniformSteps().sigmas(10, (0.1, 999.0)), ValueError, r"use Karras\(sigma_min=..., sigma_max=...\)"),
        (lambda: DDS(iterations=0), ValueError, "iterations must be >= 1"),
        (lambda: DDS(gamma=0.0), ValueError, "gamma must be"),
        (lambda: DDS(rtol=0.1), ValueError, "rtol must be 0"),
        (lambda: DDS(generator=3), TypeError, "generator must be a torch.Generator, or one for each sample, got 3"),
        (lambda: DDS(schedule=Karras), TypeError, r"schedule must be one such as Karras\(\)"),
        (lambda: DDS(eta=1.5), ValueError, "eta must be from 0 to 1, got 1.5"),
        (lambda: DDS(inner_iterations=0), ValueError, "inner_iterations must be"),
        (lambda: DDS(rounds=0), ValueError, "rounds must be"),
        (lambda: DDS(rho=-1.0), ValueError, "rho must be"),
        (
            lambda: DDS(regularizer=object()),
            TypeError,
            "regularizer must have terms or a prox, .*, got object",
        ),
        (lambda: DiffPIR(strength=0.0), ValueError, "strength must be"),
        (lambda: DiffPIR(zeta=-0.1), ValueError, "zeta must be"),
        (lambda: DDNM(eta=2.0), ValueError, "eta must be from 0 to 1, got 2.0"),
        (lambda: DDRM(eta_b=2.0), ValueError, "eta_b must be from 0 to 1, got 2.0"),
        (lambda: DDRM(eta=True), TypeError, "eta must be a number"),
        (lambda: DPS(weight=0.0), ValueError, "weight must be"),
    ],
)
def test_a_wrong_number_is_refused(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# --- the two ways down


@pytest.mark.parametrize("dtype", [F64, C128], ids=str)
def test_an_ancestral_draw_has_the_moments_of_the_bridge(dtype: torch.dtype) -> None:
    """x_lower given x_sigma and x_0: Gaussian conditioning of two points of a random walk."""
    sigma, lower = 1.5, 0.6
    x0, noisy = noise(1, dtype=dtype), noise(1, dtype=dtype, seed=1)
    gain = lower**2 / sigma**2
    draws = flat(ancestral(x0.expand(1, 200000), noisy.expand(1, 200000), Level(sigma, lower), seeded(2))[0, :, None])
    mean = flat((x0 + gain * (noisy - x0))[:, None])[0]
    assert torch.allclose(draws.mean(0), mean, rtol=0, atol=0.01)
    assert torch.allclose(draws.var(0), torch.full_like(mean, lower**2 * (1 - gain)), rtol=0.02)


def test_an_ancestral_draw_is_the_step_of_ddpm() -> None:
    """Ho et al. eq. 7 with beta tilde, in the scaled space of a variance-preserving diffusion."""
    t, s = 500, 460
    a, b = KEPT[t], KEPT[s]
    beta = 1 - a / b
    x0, x, z = noise(1, 9), noise(1, 9, seed=1), noise(1, 9, seed=2)
    mean = (b.sqrt() * beta * x0 + (a / b).sqrt() * (1 - b) * x) / (1 - a)
    wanted = mean + ((1 - b) / (1 - a) * beta).sqrt() * z
    level = Level(float(((1 - a) / a).sqrt()), float(((1 - b) / b).sqrt()))
    assert relative_gap(b.sqrt() * ancestral(x0, x / a.sqrt(), level, seeded(2)), wanted) < 1e-12


def test_mixed_noise_has_the_shares_it_is_told() -> None:
    centre, direction, z = noise(2, 5), noise(2, 5, seed=1), noise(2, 5, seed=2)
    got = mixed_noise(centre, direction, 2.0, 0.6, seeded(2))
    assert relative_gap(got, centre + 2 * (0.8 * direction + 0.6 * z)) < 1e-14
    assert relative_gap(mixed_noise(centre, direction, 2.0, 1.0, seeded(2)), centre + 2 * z) < 1e-14
    assert relative_gap(mixed_noise(centre, direction, 2.0, 0.5, seeded(2), 0.1), centre + 0.2 * direction + z) < 1e-14


def test_no_noise_is_drawn_where_none_is_fresh() -> None:
    generator = seeded(3)
    before = generator.get_state()
    x = mixed_noise(noise(1, 4), noise(1, 4, seed=1), 0.5, 0.0, generator)
    assert torch.equal(generator.get_state(), before)
    assert relative_gap(x, noise(1, 4) + 0.5 * noise(1, 4, seed=1)) < 1e-15


# --- all samplers


def real_problem(batch: int = 3) -> tuple[Problem, Denoiser]:
    toy = gauss8()
    x = toy.prior.sample(batch, seeded(1))
    return measured(toy.problem.operator, x, 0.1), toy.prior  # type: ignore[arg-type]


def complex_problem(batch: int = 3) -> tuple[Problem, Denoiser]:
    """Coils and lines of each sample's own."""
    prior = GaussianOracle(torch.zeros(4, 6, dtype=C128), torch.eye(24, dtype=C128) / 2)
    lines = torch.zeros(batch, 1, 4, 1, dtype=torch.bool)
    for i in range(batch):
        lines[i, 0, [i % 4, 2, 3]] = True
    operator = Sense(noise(batch, 2, 4, 6, dtype=C128) / 2, lines)
    return measured(operator, prior.sample(batch, seeded(1)), 0.1), prior


def network_problem(batch: int = 3) -> tuple[Problem, Denoiser]:
    x = noise(batch, 6, 6, seed=4).float()
    network = network_denoiser().float()
    return measured(matrix(20, (6, 6), dtype=torch.float32), x, 0.1), network


def alone(problem: Problem, i: int) -> Problem:
    operator = problem.operator
    if isinstance(operator, Sense):
        own = Sense(operator.maps[i : i + 1], operator.mask[i : i + 1])
        return Problem(own, problem.y[i : i + 1], problem.noise)
    return Problem(operator, problem.y[i : i + 1], problem.noise)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    ("make", "bound"),
    [(real_problem, 1e-10), (complex_problem, 1e-10), (network_problem, 1e-4)],
    ids=["real", "complex", "network"],
)
def test_a_chain_does_not_depend_on_its_batch(
    make: Callable[[], tuple[Problem, Denoiser]], bound: float, name: str
) -> None:
    problem, prior = make()
    together = SAMPLERS[name](generators(3)).solve(problem, prior)
    assert together.status == (Status.COMPLETE,) * 3
    for i in range(3):
        one = SAMPLERS[name](generators(1, 100 + i)).solve(alone(problem, i), prior).x
        assert relative_gap(together.x[i : i + 1], one) < bound


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex64, C128], ids=str)
def test_the_precision_and_kind_of_the_signal_are_kept(dtype: torch.dtype, name: str) -> None:
    prior = GaussianOracle(torch.zeros(12, dtype=dtype), torch.eye(12, dtype=dtype))
    problem = measured(matrix(5, (12,), dtype=dtype), prior.sample(2, seeded(0)), 0.1)
    x = SAMPLERS[name](seeded(0)).solve(problem, prior).x
    assert x.dtype == dtype
    assert x.shape == (2, 12)
    assert bool(x.isfinite().all())


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_gives_the_same_chain_again_and_nothing_is_written_into(name: str) -> None:
    problem, prior = real_problem()
    y = problem.y.clone()
    first, second = (SAMPLERS[name](seeded(3)).solve(problem, prior).x for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(problem.y, y)
    assert not first.requires_grad


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_denoises_once_at_the_level_of_the_schedule(name: str) -> None:
    problem, prior = real_problem()
    recorded = Recorded(prior)
    SAMPLERS[name](seeded(3)).solve(problem, recorded)
    assert recorded.levels == pytest.approx(Karras().sigmas(12, (0.0, math.inf)))


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_interrupted_chain_leaves_a_clean_image(name: str) -> None:
    """The noisy image of the first step has a standard deviation of 18, the clean one none of that."""
    toy = gmm2()
    run = SAMPLERS[name](seeded(3)).iterate(toy.repeated(50), toy.prior)
    next(run)
    assert float(run.state.noisy.std()) > 5
    found = run.reconstruction()
    assert torch.equal(found.x, run.state.x)
    assert set(found.status) == {Status.INTERRUPTED}
    assert float(found.x.abs().max()) < 3


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", [Karras(sigma_min=1e-6, sigma_max=1e4), UniformSteps()])
def test_the_ends_of_a_schedule_give_no_nan(schedule: Karras | UniformSteps, name: str) -> None:
    toy = gmm2()
    for iterations in (2, 12) if name == "DPS" else (1, 2, 12):
        sampler = replace(SAMPLERS[name](seeded(3)), schedule=schedule, iterations=iterations)
        assert bool(sampler.solve(toy.repeated(3), toy.prior).x.isfinite().all())


def test_a_first_image_is_where_the_chain_begins() -> None:
    problem, prior = real_problem()
    x0 = torch.full((3, 8), 5.0, dtype=F64)
    run = DDS(iterations=3, generator=seeded(1)).iterate(problem, prior, x0)
    assert torch.equal(run.state.x, x0)
    assert torch.allclose(run.state.noisy, x0 + 20 * noise(3, 8, seed=1))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_prior_that_is_no_denoiser_is_refused(name: str) -> None:
    problem, _ = real_problem()
    with pytest.raises(TypeError, match=r"needs a Denoiser, got L1; FISTA, PDHG and ADMM take regularizers"):
        SAMPLERS[name](None).solve(problem, L1())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "DPS"])
def test_what_is_not_quadratic_is_refused_with_what_takes_it(name: str) -> None:
    others = "DPS and Variational with REDDiff take any operator and noise"
    prior = gauss8().prior
    A = matrix(5, (8,))
    bent = Problem(PhaseRetrieval(A), torch.ones(1, 5, dtype=F64), Gaussian(0.1))
    with pytest.raises(
        TypeError,
        match=f"{name.split(maxsplit=1)[0].rstrip('+')} needs a LinearOperator .* got PhaseRetrieval .*{others}",
    ):
        SAMPLERS[name](None).solve(bent, prior, torch.zeros(1, 8, dtype=F64))
    counts = Problem(A, torch.ones(1, 5, dtype=F64), Poisson())
    with pytest.raises(TypeError, match=f"and Gaussian noise, got MatrixSensing and Poisson; {others}"):
        SAMPLERS[name](None).solve(counts, prior)


@pytest.mark.parametrize("name", ["DDNM", "DDNM+", "DDRM"])
def test_levels_that_vary_are_refused_by_what_treats_coordinates_one_by_one(name: str) -> None:
    problem = Problem(matrix(5, (8,)), torch.ones(1, 5, dtype=F64), Gaussian(torch.linspace(0.1, 0.2, 5, dtype=F64)))
    with pytest.raises(ValueError, match=r"needs one noise level .* got sigma of shape \(5,\); DDS and DiffPIR take"):
        SAMPLERS[name](None).solve(problem, gauss8().prior)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_level_may_be_a_number_or_a_tensor_of_any_axes(name: str) -> None:
    prior = GaussianOracle(torch.zeros(3, 4, dtype=F64), torch.eye(12, dtype=F64))
    y = torch.ones(2, 5, dtype=F64)
    found = [
        SAMPLERS[name](seeded(0)).solve(Problem(matrix(5, (3, 4)), y, Gaussian(sigma)), prior).x
        for sigma in (0.1, torch.tensor(0.1, dtype=F64), torch.full((1, 1), 0.1, dtype=F64))
    ]
    assert relative_gap(found[1], found[0]) < 1e-12
    assert relative_gap(found[2], found[0]) < (
        1e-3 if name in ("DDS", "DiffPIR", "DDS with a fixed gamma", "DDS by ancestral steps") else 1e-12
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_beyond_what_the_denoiser_was_made_for_are_refused(name: str) -> None:
    problem, network = network_problem()
    sampler = replace(SAMPLERS[name](None), schedule=Karras(sigma_max=1000.0))
    with pytest.raises(ValueError, match="sigma must stay within what the denoiser is made for, 0.01"):
        sampler.solve(problem, network)


# --- limits


@pytest.mark.slow(seconds=5)
@pytest.mark.parametrize("method", ["DDS", "DiffPIR"])
@pytest.mark.parametrize(("eta", "rel"), [(0.0, 0.015), (0.5, 0.025), (0.85, 0.025), (1.0, 0.025), (None, 0.03)])
def test_draws_of_the_prior_are_as_narrow_as_the_share_of_fresh_noise_makes_them(
    eta: float | None, rel: float, method: str
) -> None:
    """A linear denoiser in many steps: (1 + sqrt(1 - eta^2)) / 2 of the variance, all of it by ancestral steps."""
    prior = GaussianOracle(torch.zeros(8, dtype=F64), torch.eye(8, dtype=F64))
    zeta = None if eta is None else eta**2
    sampler = {
        "DDS": DDS(iterations=200, eta=eta, generator=seeded(0)),
        "DiffPIR": DiffPIR(iterations=200, zeta=zeta, generator=seeded(0)),
    }[method]
    found = float(sample_prior(sampler, prior, torch.zeros(1500, 8, dtype=F64)).square().mean().sqrt())
    wanted = 1.0 if eta is None else math.sqrt((1 + math.sqrt(1 - eta**2)) / 2)
    assert found == pytest.approx(wanted, rel=rel)


@pytest.mark.parametrize("sampler", [DDS(eta=None, generator=seeded(1)), DiffPIR(zeta=None, generator=seeded(1))])
def test_without_a_share_of_fresh_noise_steps_are_ancestral_about_the_consistent_image(
    sampler: DDS | DiffPIR,
) -> None:
    problem, prior = real_problem()
    noisy, level = noise(3, 8, seed=2), Level(0.7, 0.4)
    estimate = sampler.estimate(problem, prior, noisy, level, None)
    wanted = ancestral(estimate.consistent, noisy, level, seeded(1))
    assert torch.equal(sampler.renoise(problem, estimate, noisy, level), wanted)


@pytest.mark.parametrize(
    "sampler",
    [
        DDS(iterations=60, eta=0.0, generator=seeded(0)),
        DiffPIR(iterations=60, zeta=0.0, generator=seeded(0)),
        DDNM(iterations=60, eta=0.0, generator=seeded(0)),
        DDRM(iterations=60, eta=0.0, generator=seeded(0)),
        DPS(iterations=150, generator=seeded(0)),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_where_nothing_is_measured_the_prior_is_drawn(sampler: DiffusionSampler) -> None:
    prior, count = gmm2().prior, 600
    assert isinstance(prior, MixtureOracle)
    x = sample_prior(sampler, prior, torch.zeros(count, 2, dtype=F64))
    exact = prior.sample(20000, seeded(1))
    shares = [torch.cdist(one, prior.means).argmin(1).bincount(minlength=4) / len(one) for one in (x, exact)]
    assert torch.allclose(shares[0], shares[1], atol=4 * math.sqrt(0.25 * 0.75 / count))
    assert torch.allclose(x.mT.cov(), prior.covariance, atol=0.08)


@pytest.mark.parametrize(
    "make",
    [
        lambda g: DDS(iterations=20, eta=0.4, generator=g),
        lambda g: DiffPIR(iterations=20, zeta=0.4, generator=g),
        lambda g: DDNM(iterations=20, eta=1.0, generator=g),
        lambda g: DDRM(iterations=20, eta=1.0, generator=g),
    ],
    ids=["DDS", "DiffPIR", "DDNM", "DDRM"],
)
def test_data_of_infinite_noise_are_as_good_as_none(make: Make) -> None:
    """With eta < 1, DDNM+ and DDRM take the data themselves for noise, whatever their level."""
    prior = gauss8().prior
    useless = Problem(matrix(5, (8,)), torch.ones(3, 5, dtype=F64), Gaussian(1e9))
    x = make(seeded(0)).solve(useless, prior).x
    assert relative_gap(x, sample_prior(make(seeded(0)), prior, torch.zeros(3, 8, dtype=F64))) < 1e-7


@pytest.mark.parametrize("dtype", [F64, C128], ids=str)
def test_an_image_seen_whole_is_denoised(dtype: torch.dtype) -> None:
    """A = I and a Gaussian prior of independent entries: the mean is that of the posterior, the spread near it."""
    variance, sigma = 0.5, 0.4
    prior = GaussianOracle(torch.full((2,), 0.3, dtype=dtype), variance * torch.eye(2, dtype=dtype))
    power = sigma**2 * (2 if dtype.is_complex else 1)
    y = noise(1, 2, dtype=dtype).expand(1000, 2)
    mean = 0.3 + variance / (variance + power) * (y[0] - 0.3)
    spread = math.sqrt(variance * power / (variance + power))
    problem = Problem(Mask(torch.ones(2, dtype=torch.bool)), y, Gaussian(sigma))
    for sampler in (DDS(iterations=100, generator=seeded(0)), DiffPIR(iterations=100, generator=seeded(0))):
        x = sampler.solve(problem, prior).x
        assert float((x.mean(0) - mean).abs().max()) < 0.15 * spread
        assert 0.6 < float((flat(x).var(0).mean() * (2 if dtype.is_complex else 1)).sqrt()) / spread < 1.1


def test_no_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """No number is read from a tensor between the checks."""
    problem, prior = complex_problem()
    for name, make in SAMPLERS.items():
        run = make(seeded(0)).iterate(problem, prior)
        next(run)

        def read(*_: object, name: str = name) -> None:
            raise AssertionError(f"{name} read a tensor")

        with monkeypatch.context() as patch:
            for method in ("item", "__bool__", "__float__", "__int__", "tolist", "nonzero", "cpu", "numpy"):
                patch.setattr(Tensor, method, read)
            next(run)
            next(run)
        assert run.iteration == 3
