"""What makes a learned reconstruction suspect."""

import math

import pytest
import torch

from invreg.algorithms import judge
from invreg.noise import Gaussian, Poisson
from invreg.operators import Mask
from invreg.problem import Problem


def problem(residual: torch.Tensor, sigma: float) -> tuple[Problem, torch.Tensor]:
    """A denoising problem, and an image that is off by the residual."""
    x = torch.ones_like(residual)
    operator = Mask(torch.ones(residual.shape[1:], dtype=torch.bool), tuple(residual.shape[1:]))
    return Problem(operator, x + residual, Gaussian(sigma)), x


def test_chi_square_is_the_mean_square_residual_over_the_noise() -> None:
    residual = torch.tensor([[0.1, -0.1, 0.2, 0.0]], dtype=torch.float64)
    found = judge(*problem(residual, 0.1))
    assert float(found.chi_square) == pytest.approx((1 + 1 + 4 + 0) / 4)
    found = judge(*problem(residual.to(torch.complex128) * (1 + 1j), 0.1))
    assert float(found.chi_square) == pytest.approx((1 + 1 + 4 + 0) / 4)


def test_residuals_far_from_the_noise_are_named_with_what_may_be_wrong() -> None:
    residual = torch.tensor([[0.1], [0.03], [0.2]], dtype=torch.float64).expand(3, 8)
    found = judge(*problem(residual, 0.1))
    assert found.passed == (True, False, False)
    assert found.reasons[1] == ("chi-square 0.09 < 0.3: it explains the noise, too, or the noise level is too large",)
    assert "chi-square 4 > 1.5: it does not explain the data" in found.reasons[2][0]


def test_a_residual_that_is_no_number_is_a_reason() -> None:
    made, x = problem(torch.full((1, 4), 0.1, dtype=torch.float64), 0.1)
    assert judge(made, x * math.nan).reasons == (("NaN or Inf in the image",),)


def test_nan_where_nothing_is_measured_and_nan_in_the_reference_are_reasons() -> None:
    mask = torch.tensor([True, True, True, False])
    x, y = torch.ones(3, 4), torch.tensor([1.1, 0.9, 1.1, 0.0]).expand(3, 4)
    made, reference = Problem(Mask(mask), y, Gaussian(0.1)), torch.ones(3, 4)
    assert judge(made, x, reference).passed == (True, True, True)
    x[0, 3], reference[1, 3] = math.nan, math.inf
    found = judge(made, x, reference)
    assert found.passed == (False, False, True)
    assert found.reasons[0] == ("NaN or Inf in the image",)
    reference[1, 3] = math.nan
    assert judge(made, x, reference).reasons[1] == ("NaN or Inf in the image without a learned prior",)


def test_disagreement_is_of_magnitudes_and_relative_to_the_reference() -> None:
    made, x = problem(torch.full((2, 4), 0.1, dtype=torch.complex128), 0.1 / math.sqrt(2))
    reference = torch.stack([x[0] * 1j, x[1] / 2])
    found = judge(made, x, reference)
    torch.testing.assert_close(found.disagreement, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert found.passed == (True, False)
    assert "100% apart from the image without a learned prior, above 25%" in found.reasons[1][0]
    assert bool(judge(made, x).disagreement.isnan().all())
    assert judge(made, x).passed == (True, True)


def test_a_reference_of_zeros_disagrees_with_all_but_zeros() -> None:
    made, x = problem(torch.full((1, 4), 0.1, dtype=torch.float64), 0.1)
    assert judge(made, x, 0 * x).disagreement.tolist() == [math.inf]
    assert judge(made, 0 * x, 0 * x).disagreement.tolist() == [0.0]


def test_pixels_that_the_prior_has_not_seen_are_a_reason() -> None:
    made, x = problem(torch.full((1, 4), 0.1, dtype=torch.float64), 0.1)
    trained = (0.8, 2.2)
    assert judge(made, x, pixel_size=(0.8, 2.2), trained_sizes=trained).passed == (True,)
    assert judge(made, x, pixel_size=None, trained_sizes=trained).passed == (True,)
    assert judge(made, x, pixel_size=(9.0,)).passed == (True,)
    found = judge(made, x, pixel_size=(1.0, 2.5), trained_sizes=trained)
    assert found.reasons == (("pixels of 2.5 mm, but the prior has seen 0.8 to 2.2 mm only",),)


def test_other_noise_is_judged_by_its_deviance() -> None:
    x = torch.full((1, 4000), 50.0, dtype=torch.float64)
    noise = Poisson(1.0)
    y = noise.sample(x, torch.Generator().manual_seed(0))
    found = judge(Problem(Mask(torch.ones(4000, dtype=torch.bool), (4000,)), y, noise), x)
    assert float(found.chi_square) == pytest.approx(1, abs=0.1)


def test_bad_arguments_are_named() -> None:
    made, x = problem(torch.full((1, 4), 0.1, dtype=torch.float64), 0.1)
    with pytest.raises(ValueError, match="x must be"):
        judge(made, x[:, :3])
    with pytest.raises(ValueError, match="reference must be"):
        judge(made, x, x[:, :3])
    with pytest.raises(ValueError, match="reference must have the batch size of x, 1, got 2"):
        judge(made, x, torch.cat([x, x]))
    several, _ = problem(torch.full((2, 4), 0.1, dtype=torch.float64), 0.1)
    with pytest.raises(ValueError, match="x must have the batch size of y, 2, got 1"):
        judge(several, x)
    with pytest.raises(TypeError, match="reference"):
        judge(made, x, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pixel_size must be"):
        judge(made, x, pixel_size=(0.0,), trained_sizes=(1, 2))
    with pytest.raises(ValueError, match="trained_sizes must be"):
        judge(made, x, pixel_size=(1.0,), trained_sizes=(-1, 2))
