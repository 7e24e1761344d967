import math
from dataclasses import FrozenInstanceError
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from invreg.interfaces import Denoiser
from invreg.linalg import expand
from invreg.random import draw
from invreg.sde import SDE, VE, VP, SubVP

ALL = (VE(), VP(), SubVP(), VE(0.02, 5.0), VP(0.2, 10.0))


class GaussianDenoiser(Denoiser):
    """Of independent pixels, mean 0.2, variance 0.25 in each real component."""

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=x.real.dtype)
        sigma = expand(sigma, x) if sigma.ndim else sigma
        return 0.2 + 0.25 / (0.25 + sigma**2) * (x - 0.2)


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sde", ALL, ids=str)
def test_scale_and_std_solve_the_equations_of_the_moments(sde: SDE) -> None:
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64).requires_grad_()
    scale, variance = sde.scale(t), sde.std(t).square()
    fall = torch.autograd.grad((scale + 0 * t).sum(), t, retain_graph=True)[0]
    (growth,) = torch.autograd.grad(variance.sum(), t)
    rate, diffusion = sde.rate(t), sde.diffusion(t)
    torch.testing.assert_close(fall, rate * scale)
    torch.testing.assert_close(growth, 2 * rate * variance + diffusion**2)


def test_the_diffusions_are_those_of_their_paper() -> None:
    assert float(VE(0.01, 50).std(0.5)) == pytest.approx(0.01 * math.sqrt(5000))
    assert float(VP().scale(1.0)) == pytest.approx(math.exp(-0.25 * 19.9 - 0.05))
    assert float(VP().std(0.3) ** 2 + VP().scale(0.3) ** 2) == pytest.approx(1)
    assert float(SubVP().std(0.4)) == pytest.approx(float(VP().std(0.4)) ** 2)


@pytest.mark.parametrize("sde", ALL, ids=str)
def test_time_is_the_inverse_of_sigma(sde: SDE) -> None:
    t = torch.tensor([1e-5, 1e-3, 0.1, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(sde.time(sde.sigma(t)), t, rtol=1e-8, atol=1e-12)
    assert bool((sde.sigma(t).diff() > 0).all())


@pytest.mark.parametrize("sde", ALL, ids=str)
def test_transitions_compose(sde: SDE) -> None:
    (a, c), (b, d), (whole, spread) = sde.transition(0.1, 0.4), sde.transition(0.4, 0.9), sde.transition(0.1, 0.9)
    torch.testing.assert_close(a * b, whole)
    torch.testing.assert_close((b * c).square() + d.square(), spread.square())


@pytest.mark.parametrize("sde", ALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_score_is_that_of_the_perturbed_gaussian(sde: SDE, dtype: torch.dtype) -> None:
    x, t = noise(3, 4, dtype=dtype), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    scale, std = sde.scale(t)[:, None], sde.std(t)[:, None]
    wanted = -(x - 0.2 * scale) / (0.25 * scale**2 + std**2)
    torch.testing.assert_close(sde.score(GaussianDenoiser(), x, t), wanted)
    for i in range(3):
        torch.testing.assert_close(sde.score(GaussianDenoiser(), x[i : i + 1], float(t[i])), wanted[i : i + 1])


@pytest.mark.parametrize("sde", [VE(), VP(), SubVP()], ids=str)
def test_perturbed_images_have_their_scale_and_std(sde: SDE) -> None:
    x = sde.perturb(torch.full((1, 200_000), 2.0).double(), 0.3, torch.Generator().manual_seed(0))
    assert float(x.mean()) == pytest.approx(2 * float(sde.scale(0.3)), abs=0.01)
    assert float(x.std()) == pytest.approx(float(sde.std(0.3)), rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_prior_density_is_that_of_the_normal_law(dtype: torch.dtype) -> None:
    x = noise(2, 3, dtype=dtype)
    parts = torch.view_as_real(x) if x.is_complex() else x
    normal = torch.distributions.Normal(torch.zeros(()).double(), VE().std(1.0))
    torch.testing.assert_close(VE().prior_log_density(x), normal.log_prob(parts).flatten(1).sum(1))
    assert float(VP().prior_mean(GaussianDenoiser(), x)[0, 0].real) == pytest.approx(
        0.2 * float(VP().scale(1.0)), rel=1e-4
    )


def test_times_fall_over_the_levels_that_the_denoiser_knows() -> None:
    times = VE(0.01, 50).times(5, (0.0, math.inf), 1e-5)
    assert times[0] == 1 and times[-1] == pytest.approx(1e-5)
    assert all(a > b for a, b in pairwise(times))
    assert VE(0.01, 50).times(5) == times
    narrow = VP().times(10, (0.1, 30.0))
    assert float(VP().sigma(narrow[0])) == pytest.approx(30)
    assert float(VP().sigma(narrow[-1])) == pytest.approx(0.1)


@pytest.mark.parametrize("make", [VP, SubVP])
def test_a_rate_may_stay_the_same(make: type[VP] | type[SubVP]) -> None:
    """With beta = b, B = b t: scale^2 = e^(-b t)."""
    sde = make(3.0, 3.0)
    t = torch.tensor([1e-4, 0.3, 1.0], dtype=torch.float64)
    torch.testing.assert_close(sde.scale(t).square(), torch.exp(-3 * t))
    torch.testing.assert_close(sde.time(sde.sigma(t)), t)
    with pytest.raises(ValueError, match=r"beta_max must be >= beta_min = 3.0, got 2.0"):
        make(3.0, 2.0)


def test_diffusions_refuse_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"sigma_max must be > sigma_min = 2, got 1"):
        VE(2, 1)
    with pytest.raises(ValueError, match="beta_min must be finite and > 0"):
        VP(beta_min=-1.0)
    with pytest.raises(ValueError, match="must overlap with the noise levels that the denoiser was made for, 80 to 90"):
        VE().times(4, (80.0, 90.0))
    with pytest.raises(ValueError, match="t_min must be within 0 and 1, got 2"):
        VE().times(4, t_min=2.0)
    with pytest.raises(FrozenInstanceError):
        VE().sigma_min = 1.0  # type: ignore[misc]
