"""The encoder of irregular series sees what was observed, and nothing else."""

import math

import pytest
import torch
from torch import Tensor

from invreg.models import Gaussian, SeriesEncoder


def series() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 6, 2, dtype=torch.float64, generator=generator)
    mask = torch.rand(4, 6, 2, generator=generator) < 0.5
    times = torch.tensor([0.0, 0.1, 0.4, 0.5, 0.9, 1.0], dtype=torch.float64)
    return values, mask, times


def encoder(evolving: bool = False) -> SeriesEncoder:
    torch.manual_seed(0)
    return SeriesEncoder(2, 8, 3, evolving=evolving).double()


@pytest.mark.parametrize("evolving", [False, True])
def test_what_was_not_observed_does_not_count(evolving: bool) -> None:
    values, mask, times = series()
    net = encoder(evolving)
    one = net(values, mask, times)
    other = net(torch.where(mask, values, torch.nan), mask, times)
    assert one.mean.shape == one.log_sigma.shape == (4, 3)
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.log_sigma, other.log_sigma)


def test_a_time_without_observations_may_be_left_out() -> None:
    values, mask, times = series()
    mask[:, [0, 3]] = False
    kept = mask.any(2).any(0)
    net = encoder()
    whole, part = net(values, mask, times), net(values[:, kept], mask[:, kept], times[kept])
    mask[:, 0] = True
    first = net(values, mask, times)
    assert torch.allclose(whole.mean, part.mean, atol=1e-12)
    assert not torch.allclose(first.mean, whole.mean, atol=1e-3)


def test_a_sample_does_not_depend_on_the_others_of_its_batch() -> None:
    values, mask, times = series()
    net = encoder()
    assert torch.allclose(net(values, mask, times).mean[1], net(values[1:2], mask[1:2], times).mean[0])


@pytest.mark.parametrize("evolving", [False, True])
def test_the_times_matter(evolving: bool) -> None:
    values, mask, times = series()
    net = encoder(evolving)
    assert not torch.allclose(net(values, mask, times).mean, net(values, mask, 2 * times).mean, atol=1e-4)


def test_divergence_of_gaussians_has_its_closed_form() -> None:
    mean, sigma = torch.tensor([[0.5, -1.0]]), torch.tensor([[2.0, 0.1]])
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, sigma), torch.distributions.Normal(torch.zeros(2), torch.ones(2))
    ).sum(-1)
    assert torch.allclose(Gaussian(mean, sigma.log()).divergence(), expected)
    assert float(Gaussian(torch.zeros(1, 2), torch.zeros(1, 2)).divergence()) == 0


def test_draws_have_mean_and_deviation_and_gradients_of_both() -> None:
    mean, log_sigma = torch.tensor([[2.0]]), torch.tensor([[math.log(0.5)]])
    mean.requires_grad_()
    log_sigma.requires_grad_()
    many = Gaussian(mean.expand(4000, 1), log_sigma.expand(4000, 1)).sample(torch.Generator().manual_seed(0))
    assert float(many.mean().detach()) == pytest.approx(2.0, abs=0.03)
    assert float(many.std().detach()) == pytest.approx(0.5, abs=0.02)
    to_mean, to_sigma = torch.autograd.grad(many.square().mean(), [mean, log_sigma])
    assert float(to_mean) == pytest.approx(4.0, abs=0.1)  # of mean^2 + sigma^2
    assert float(to_sigma) == pytest.approx(0.5, abs=0.1)  # 2 sigma^2


def test_series_that_do_not_fit_are_named() -> None:
    values, mask, times = series()
    net = encoder()
    with pytest.raises(ValueError, match=r"values must be \(B, T, 2\) of floating point, got \(4, 6, 1\)"):
        net(values[..., :1], mask, times)
    with pytest.raises(ValueError, match=r"mask must be \(4, 6, 2\) as values are, got \(4, 5, 2\)"):
        net(values, mask[:, 1:], times)
    with pytest.raises(ValueError, match=r"times must be increasing, \(6,\)"):
        net(values, mask, times.flip(0))
    with pytest.raises(ValueError, match="latent must be >= 1, got 0"):
        SeriesEncoder(2, 8, 0)
