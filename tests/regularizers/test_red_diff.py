"""RED-Diff: its gradient, its noise levels, its weights and what it refuses."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invreg.interfaces import Denoiser
from invreg.models.denoiser import NetworkDenoiser
from invreg.models.noise_path import VariancePreserving
from invreg.models.oracles import GaussianOracle
from invreg.noise import Gaussian
from invreg.operators import Mask, MaskedFourier
from invreg.problem import Problem
from invreg.random import draw
from invreg.regularizers import REDDiff
from invreg.regularizers.red_diff import (
    clipped,
    constant,
    linear,
    logarithmic,
    published_weight,
    root,
    square,
    two_thirds,
)
from invreg.testing import relative_gap

F64, C128 = torch.float64, torch.complex128


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), seeded(seed))


def oracle(dtype: torch.dtype = F64) -> GaussianOracle:
    root = noise(6, 6, dtype=dtype, seed=1) / 3
    return GaussianOracle(noise(6, dtype=dtype, seed=2), root @ root.mH)


def gradient(prior: REDDiff, x: Tensor) -> Tensor:
    point = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(prior(point).sum(), point)
    return found


@pytest.mark.parametrize("dtype", [F64, C128, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("weighting", "value"),
    [
        (linear, 2.5),
        (root, math.sqrt(2.5)),
        (square, 6.25),
        (logarithmic, math.log(3.5)),
        (clipped, 1.0),
        (two_thirds, 2.5 ** (2 / 3)),
        (constant, 1.0),
    ],
    ids=lambda f: getattr(f, "__name__", ""),
)
def test_the_gradient_is_the_weighted_difference_of_noises(
    weighting: Callable[[float], float], value: float, dtype: torch.dtype
) -> None:
    sigma, weight, D = 2.5, 0.7, oracle(dtype)
    x, n = noise(2, 6, dtype=dtype, seed=3), noise(2, 6, dtype=dtype, seed=4)
    prior = REDDiff(D, weight, weighting=weighting, sigma_max=sigma, sigma_min=0.1, generator=seeded(4))
    noisy = x + sigma * n
    taken_for = (noisy - D(noisy, sigma)) / sigma
    assert weighting(sigma) == pytest.approx(value)
    got = gradient(prior, x)
    assert got.dtype == dtype
    assert relative_gap(got, weight * value * (taken_for - n)) < (1e-5 if dtype == torch.float32 else 1e-12)


def test_a_small_level_is_clipped_to_itself() -> None:
    assert clipped(0.3) == 0.3


def test_the_spread_is_part_of_the_noise() -> None:
    D, x = oracle(), noise(2, 6, seed=3)
    generator = seeded(4)
    first, second = (torch.randn(2, 6, dtype=F64, generator=generator) for _ in range(2))
    prior = REDDiff(D, 1.0, sigma_max=0.5, sigma_min=0.5, spread=0.2, generator=seeded(4))
    wanted = x + 0.2 * first - D(x + 0.2 * first + 0.5 * second, 0.5)
    assert relative_gap(gradient(prior, x), wanted) < 1e-12


def test_on_average_it_is_the_gradient_of_minus_the_smoothed_log_density() -> None:
    """E[x - D(x + sigma n)] = -sigma^2 grad of E log p_sigma(x + sigma n), a linear map for a Gaussian."""
    D, sigma = oracle(), 0.8
    x = noise(1, 6, seed=3)
    prior = REDDiff(D, 1.0, sigma_max=sigma, sigma_min=sigma, generator=seeded(4))
    found = gradient(prior, x.expand(40000, 6)).mean(0)
    total = D.covariance + sigma**2 * torch.eye(6, dtype=F64)
    wanted = sigma**2 * torch.linalg.solve(total, x[0] - D.mean)
    assert torch.allclose(found, wanted, atol=0.02)


def test_the_network_is_not_differentiated() -> None:
    class Blind(Denoiser):
        def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            assert not torch.is_grad_enabled()
            return x.sin()

    x = noise(1, 6)
    found = gradient(REDDiff(Blind(), 1.0, sigma_max=1.0, sigma_min=1.0, generator=seeded(1)), x)
    assert relative_gap(found, x - (x + noise(1, 6, seed=1)).sin()) < 1e-12


def test_a_sample_of_its_own_generator_does_not_depend_on_the_batch() -> None:
    x = noise(3, 6)
    together = gradient(REDDiff(oracle(), generator=[seeded(i) for i in range(3)]), x)
    alone = gradient(REDDiff(oracle(), generator=[seeded(2)]), x[2:])
    assert relative_gap(together[2:], alone) < 1e-12


def test_the_weight_may_be_learned() -> None:
    weight = torch.tensor(0.5, dtype=F64, requires_grad=True)
    x = noise(2, 6, seed=3)
    value = REDDiff(oracle(), weight, generator=seeded(4))(x).sum()
    (found,) = torch.autograd.grad(value, weight)
    assert float(found) == pytest.approx(float(value.detach()) / 0.5)


def test_levels_fall_by_equal_steps_of_a_variance_preserving_diffusion() -> None:
    prior = REDDiff(oracle())
    assert prior.sigma == prior.sigma_max
    assert prior.at(0.0).sigma == pytest.approx(prior.sigma_max)
    for progress in (0.0, 0.25, 0.5, 0.9):
        t = 1 + (1e-3 - 1) * progress
        kept = math.exp(-(0.1 * t + 19.9 * t * t / 2))
        assert prior.at(progress).sigma == pytest.approx(math.sqrt((1 - kept) / kept), rel=1e-9)
    assert prior.at(1.0).sigma == pytest.approx(prior.sigma_min)
    assert prior.sigma_min == pytest.approx(0.010486, rel=1e-3)
    assert prior.sigma_max == pytest.approx(152.2, rel=1e-3)


def test_levels_keep_to_what_the_denoiser_was_made_for() -> None:
    path = VariancePreserving()
    prior = REDDiff(NetworkDenoiser(torch.nn.Identity(), path))
    assert (prior.sigma_min, prior.sigma_max) == pytest.approx(path.sigma_range)
    narrow = REDDiff(oracle(), sigma_min=0.5, sigma_max=2.0)
    assert narrow.at(0.0).sigma == pytest.approx(2.0)
    assert narrow.at(1.0).sigma == pytest.approx(0.5)
    assert 0.5 < narrow.at(0.7).sigma < narrow.at(0.3).sigma < 2.0


def test_annealing_shares_everything_but_the_level() -> None:
    prior = REDDiff(oracle(), generator=seeded(0))
    other = prior.at(0.5)
    assert other.denoiser is prior.denoiser
    assert other.generator is prior.generator
    assert prior.sigma == prior.sigma_max
    assert not other.exact


@pytest.mark.parametrize("complex_valued", [False, True])
def test_the_published_weight_makes_their_means_our_sums(complex_valued: bool) -> None:
    """m / sigma^2 times lambda / d: the ratio of their two gradients is that of ours."""
    seen = noise(5, 4) > 0
    m, d = int(seen.sum()), 20
    if complex_valued:
        problem = Problem(MaskedFourier(seen), torch.zeros(2, 5, 4, dtype=C128), Gaussian(0.3))
    else:
        problem = Problem(Mask(seen), torch.zeros(2, 5, 4, dtype=F64), Gaussian(0.3))
    found = published_weight(problem, torch.zeros_like(problem.y), 0.25)
    assert found == pytest.approx(0.25 * m / d / 0.09)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: REDDiff(torch.nn.Identity()), TypeError, "denoiser must be a Denoiser, got Identity"),  # type: ignore[arg-type]
        (lambda: REDDiff(oracle(), -1.0), ValueError, "weight must be"),
        (lambda: REDDiff(oracle(), sigma_max=0.0), ValueError, "sigma_max must be"),
        (lambda: REDDiff(oracle(), sigma_min=-1.0), ValueError, "sigma_min must be"),
        (lambda: REDDiff(oracle(), sigma_min=2.0, sigma_max=1.0), ValueError, "sigma_max must be >= sigma_min = 2.0"),
        (lambda: REDDiff(oracle(), spread=-0.1), ValueError, "spread must be"),
        (
            lambda: REDDiff(NetworkDenoiser(torch.nn.Identity(), VariancePreserving()), sigma_max=1000.0),
            ValueError,
            "sigma_max must be within what the denoiser is made for",
        ),
    ],
)
def test_a_wrong_argument_is_refused(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
