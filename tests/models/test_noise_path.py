"""What a network sees of x and is told of the noise level, for every way in which networks are trained."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invreg.models.noise_path import (
    EDM,
    DiscreteVariancePreserving,
    NoisePath,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    linear_alphas,
)

F64 = torch.float64
SIGMAS = torch.tensor([0.02, 0.3, 1.0, 8.0, 40.0], dtype=F64)
PATHS = [
    EDM(0.7),
    VarianceExploding(),
    VarianceExploding(logarithm=True),
    VariancePreserving(),
    DiscreteVariancePreserving(linear_alphas()),
    RectifiedFlow(),
    RectifiedFlow(multiplier=1000, reverse=True),
]


def name(path: NoisePath) -> str:
    return repr(path)


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_time_rises_or_falls_strictly_with_the_noise(path: NoisePath) -> None:
    low, high = path.sigma_range
    sigmas = torch.logspace(math.log10(low), math.log10(high), 200, dtype=F64)
    steps = path.time(sigmas).diff()
    assert bool((steps > 0).all()) or bool((steps < 0).all())
    assert 0 < low < high < math.inf


def test_the_input_of_edm_has_unit_variance_and_a_quarter_of_the_logarithm_is_told() -> None:
    path = EDM(0.7)
    assert torch.allclose(path.scale(SIGMAS) ** 2 * (SIGMAS**2 + 0.49), torch.ones_like(SIGMAS))
    assert torch.allclose(torch.exp(4 * path.time(SIGMAS)), SIGMAS)


def test_exploding_paths_show_x_itself() -> None:
    assert torch.equal(VarianceExploding().scale(SIGMAS), torch.ones_like(SIGMAS))
    assert torch.equal(VarianceExploding().time(SIGMAS), SIGMAS)
    assert torch.equal(VarianceExploding(logarithm=True).time(SIGMAS), SIGMAS.log())


def test_the_continuous_path_inverts_its_integral_of_rates() -> None:
    path = VariancePreserving(0.2, 15.0, multiplier=10.0)
    t = torch.tensor([1e-6, 0.01, 0.5, 1.0], dtype=F64)
    B = 0.2 * t + 14.8 * t**2 / 2
    sigma = torch.expm1(B).sqrt()
    assert torch.allclose(path.time(sigma), 10 * t, rtol=1e-12, atol=0)
    assert torch.allclose(path.scale(sigma), torch.exp(-B / 2))
    assert path.sigma_range[1] == pytest.approx(float(sigma[-1]))


def test_the_discrete_path_tells_whole_steps_at_their_noise_and_fractions_between() -> None:
    alphas = linear_alphas(50)
    path = DiscreteVariancePreserving(alphas)
    a = torch.tensor(alphas, dtype=F64)
    sigma = ((1 - a) / a).sqrt()
    assert torch.allclose(path.time(sigma), torch.arange(50, dtype=F64), atol=1e-10)
    assert torch.allclose(path.scale(sigma), a.sqrt())
    between = (sigma[:-1] * sigma[1:]).sqrt()
    assert torch.allclose(path.time(between), torch.arange(49, dtype=F64) + 0.5, atol=1e-10)
    assert path.time(torch.tensor([0.0, 1e9], dtype=F64)).tolist() == [0.0, 49.0]


def test_the_linear_rates_are_those_of_the_paper() -> None:
    alphas = linear_alphas()
    assert len(alphas) == 1000
    assert alphas[0] == pytest.approx(1 - 1e-4)
    assert alphas[-1] == pytest.approx(math.exp(-sum(-math.log1p(-(1e-4 + k * 0.0199 / 999)) for k in range(1000))))


def test_a_last_step_without_signal_is_left_out() -> None:
    path = DiscreteVariancePreserving([0.9, 0.5, 0.1, 0.0])
    assert path.sigma_range[1] == pytest.approx(3.0)
    assert path.time(torch.tensor([3.0])).tolist() == [2.0]


def test_half_precision_leaves_the_table_of_steps_as_it_is() -> None:
    path = DiscreteVariancePreserving(linear_alphas())
    before = path.time(SIGMAS)
    assert torch.equal(path.bfloat16().time(SIGMAS), before)
    assert torch.equal(path.half().time(SIGMAS), before)


def test_the_straight_path_is_a_mixture_of_signal_and_noise() -> None:
    t = torch.tensor([0.01, 0.5, 0.9], dtype=F64)
    sigma = t / (1 - t)
    assert torch.allclose(RectifiedFlow().scale(sigma), 1 - t)
    assert torch.allclose(RectifiedFlow(multiplier=1000).time(sigma), 1000 * t)
    assert torch.allclose(RectifiedFlow(reverse=True).time(sigma), 1 - t)


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_a_path_is_built_again_from_its_config(path: NoisePath) -> None:
    again = type(path)(**path.config)
    assert torch.equal(again.time(SIGMAS), path.time(SIGMAS))
    assert torch.equal(again.scale(SIGMAS), path.scale(SIGMAS))
    assert again.sigma_range == path.sigma_range


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_time_and_scale_keep_the_precision(path: NoisePath) -> None:
    sigma: Tensor = SIGMAS.float()
    assert path.time(sigma).dtype == path.scale(sigma).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EDM(0.0), "sigma_data must be finite and > 0"),
        (lambda: EDM(0.5, 2.0, 1.0), "sigma_max must be > sigma_min = 2.0, got 1.0"),
        (lambda: VarianceExploding(0.0), "sigma_min must be"),
        (lambda: VariancePreserving(1.0, 0.5), "beta_max must be > beta_min"),
        (lambda: VariancePreserving(t_min=1.0), "t_min < 1"),
        (lambda: VariancePreserving(multiplier=-1.0), "multiplier must be"),
        (lambda: DiscreteVariancePreserving([0.5]), "two numbers or more that fall between 1 and 0, got 1"),
        (lambda: DiscreteVariancePreserving([0.5, 0.6]), "fall between 1 and 0"),
        (lambda: DiscreteVariancePreserving([]), "fall between 1 and 0"),
        (lambda: DiscreteVariancePreserving([1.0, 0.5]), "fall between 1 and 0"),
        (lambda: RectifiedFlow(0.5, 0.5), "t_min and t_max must rise within 0 and 1"),
        (lambda: RectifiedFlow(multiplier=0.0), "multiplier must be"),
        (lambda: linear_alphas(1), "steps must be >= 2"),
    ],
)
def test_bad_input_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
