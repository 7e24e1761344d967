import math

import pytest
import torch
from torch import Tensor

from invreg.algorithms.probability_flow import log_likelihood, probability_flow
from invreg.interfaces import Denoiser
from invreg.linalg import expand
from invreg.random import draw
from invreg.sde import SDE, VE, VP, SubVP

ALL = (VE(), VP(), SubVP())


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


class CorrelatedGaussian(Denoiser):
    """N(mean, covariance) of flat signals; a complex one has it in real and imaginary part alike."""

    mean: Tensor
    covariance: Tensor

    def __init__(self, dtype: torch.dtype = torch.float64, d: int = 16) -> None:
        super().__init__()
        grid = torch.arange(d)
        self.register_buffer("covariance", 0.25 * 0.7 ** (grid[:, None] - grid).abs().double())
        self.register_buffer("mean", torch.full((d,), 0.2, dtype=dtype))
        self.values, self.vectors = torch.linalg.eigh(self.covariance)

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=x.real.dtype)
        sigma = expand(sigma, x) if sigma.ndim else sigma
        vectors = self.vectors.to(x.dtype)
        return self.mean + ((x - self.mean) @ vectors * (self.values / (self.values + sigma**2))) @ vectors.T

    def sample(self, n: int) -> Tensor:
        root = torch.linalg.cholesky(self.covariance).to(self.mean.dtype)
        return self.mean + noise(n, len(self.mean), dtype=self.mean.dtype, seed=5) @ root.T

    def log_prob(self, x: Tensor) -> Tensor:
        law = torch.distributions.MultivariateNormal(self.mean.real, self.covariance)
        if not x.is_complex():
            return law.log_prob(x)
        zero = torch.distributions.MultivariateNormal(torch.zeros_like(self.mean.real), self.covariance)
        return law.log_prob(x.real) + zero.log_prob(x.imag)


@pytest.mark.parametrize("sde", ALL, ids=str)
def test_the_likelihood_of_a_gaussian_is_exact(sde: SDE) -> None:
    prior = CorrelatedGaussian()
    x = prior.sample(12)
    found = log_likelihood(prior, x, sde, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, prior.log_prob(x), rtol=0, atol=0.02)


def test_the_likelihood_of_complex_images_is_over_both_parts() -> None:
    prior = CorrelatedGaussian(torch.complex128, d=5)
    x = prior.sample(4)
    torch.testing.assert_close(log_likelihood(prior, x), prior.log_prob(x), rtol=0, atol=0.01)


def test_random_signs_estimate_the_likelihood_without_bias() -> None:
    prior = CorrelatedGaussian()
    x = prior.sample(1)
    generators = [torch.Generator().manual_seed(i) for i in range(60)]
    found = log_likelihood(prior, x.expand(60, -1), probes=1, generator=generators, rtol=1e-4, atol=1e-4)
    assert float(found.mean()) == pytest.approx(float(prior.log_prob(x)), abs=4 * float(found.std()) / math.sqrt(60))
    alone = log_likelihood(prior, x, probes=1, generator=torch.Generator().manual_seed(7), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[7:8], alone)


@pytest.mark.parametrize("sde", ALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_flow_carries_noise_to_the_images_of_the_gaussian(sde: SDE, dtype: torch.dtype) -> None:
    prior = CorrelatedGaussian(dtype, d=6)
    z = noise(8, 6, dtype=dtype)
    # the flow keeps the quantiles of each principal component
    vectors = prior.vectors.to(dtype)
    wanted = prior.mean + (z @ vectors * prior.values.sqrt()) @ vectors.T
    found = probability_flow(prior, z, sde)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.01)
    torch.testing.assert_close(probability_flow(prior, z[2:3], sde), found[2:3])


def test_the_flow_keeps_to_the_levels_of_the_denoiser_and_leaves_no_graph() -> None:
    class Narrow(CorrelatedGaussian):
        seen: tuple[float, ...] = ()

        @property
        def sigma_range(self) -> tuple[float, float]:
            return 0.05, 40.0

        def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            level = torch.as_tensor(sigma)
            self.seen = (*self.seen, float(level.min()), float(level.max()))
            return super().forward(x, sigma)

    prior = Narrow()
    probability_flow(prior, noise(2, 16), VE())
    assert min(prior.seen) >= 0.05 * (1 - 1e-5) and max(prior.seen) <= 40 * (1 + 1e-5)
    assert not log_likelihood(prior, noise(1, 16)).requires_grad


def test_the_flow_refuses_what_is_no_denoiser_or_no_diffusion() -> None:
    with pytest.raises(TypeError, match="denoiser must be a Denoiser"):
        probability_flow(torch.nn.Identity(), noise(1, 3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sde must be an SDE such as VP"):
        log_likelihood(CorrelatedGaussian(), noise(1, 16), VP)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="noise must be floating point or complex"):
        probability_flow(CorrelatedGaussian(), torch.ones(1, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match="probes must be >= 1, got 0"):
        log_likelihood(CorrelatedGaussian(), noise(1, 16), probes=0)
