"""Tests of `invreg.regularizers.tgv` beyond the laws."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from invreg.operators import Gradient, SymmetrizedGradient
from invreg.random import draw
from invreg.regularizers import TotalGeneralizedVariation, TotalVariation
from invreg.testing import relative_gap


def signal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def ramp(*sizes: int) -> Tensor:
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in sizes), indexing="ij")
    total = torch.zeros(sizes, dtype=torch.float64)
    for slope, axis in zip((0.5, -1.0, 2.0), axes, strict=False):
        total = total + slope * axis
    return total[None] - 3


@pytest.mark.parametrize("sizes", [(9,), (6, 7), (3, 4, 5)])
def test_an_affine_image_costs_nothing_and_is_its_own_prox(sizes: tuple[int, ...]) -> None:
    x = ramp(*sizes)
    for image in (x, x * (1 - 2j)):
        tgv = TotalGeneralizedVariation(0.5, len(sizes), rtol=1e-4, iterations=20000)
        assert float(tgv(image)) <= 1e-4 * float(TotalVariation(0.5, len(sizes))(image))
        assert relative_gap(tgv.prox(image, 1.0), image) <= 1e-4


def test_value_of_a_kink_is_its_change_of_slope() -> None:
    # in one dimension w = grad x costs ratio * |change of slope|, cheaper than any w that saves at the kink
    n = torch.arange(41, dtype=torch.float64)
    x = (n - 20).abs()[None]
    for ratio in (0.5, 2.0):
        value = TotalGeneralizedVariation(3.0, 1, ratio=ratio, rtol=1e-5, iterations=20000)(x)
        torch.testing.assert_close(value, torch.tensor([3.0 * ratio * 2], dtype=torch.float64), rtol=1e-3, atol=0)


def test_value_of_a_step_far_from_the_border_is_its_height() -> None:
    x = torch.zeros(1, 41, dtype=torch.float64)
    x[:, 20:] = 1.5
    value = TotalGeneralizedVariation(2.0, 1, rtol=1e-5, iterations=20000)(x)
    torch.testing.assert_close(value, torch.tensor([3.0], dtype=torch.float64), rtol=1e-3, atol=0)


def test_value_lies_below_total_variation_and_below_that_of_the_gradient() -> None:
    x = signal(2, 6, 5)
    field = SymmetrizedGradient()(Gradient()(x))
    second = 0.3 * field.square().sum(1).sqrt().flatten(1).sum(1)
    value = TotalGeneralizedVariation(1.0, ratio=0.3)(x)
    assert (value <= TotalVariation()(x) * (1 + 1e-12)).all()
    assert (value <= second * (1 + 2e-3)).all()
    torch.testing.assert_close(
        TotalGeneralizedVariation(1.0, ratio=1e-3, rtol=1e-4)(x), second / 300, rtol=2e-2, atol=0
    )


def test_value_and_prox_are_the_minima_that_a_smoothing_method_finds() -> None:
    x = signal(1, 4, 3)
    t, ratio = 0.3, 0.7
    gradient, symmetrized = Gradient(), SymmetrizedGradient()

    def energy(z: Tensor, w: Tensor, epsilon: float) -> Tensor:
        first, second = gradient(z) - w, symmetrized(w)
        return sum(((f.square().sum(1) + epsilon**2).sqrt()).sum() * c for f, c in ((first, 1.0), (second, ratio)))

    def least(free: bool) -> tuple[float, Tensor]:
        v = np.concatenate([x.numpy().ravel(), gradient(x).numpy().ravel()])
        for epsilon in (1e-2, 1e-4, 1e-6):

            def fun(v: np.ndarray, epsilon: float = epsilon) -> tuple[float, np.ndarray]:
                u = torch.from_numpy(v).requires_grad_()
                z = u[:12].reshape(1, 4, 3) if free else x
                value = (z - x).square().sum() / 2 * free + (t if free else 1) * energy(
                    z, u[12:].reshape(1, 2, 4, 3), epsilon
                )
                (slope,) = torch.autograd.grad(value, u)
                return float(value.detach()), slope.numpy()

            found = minimize(fun, v, jac=True, method="L-BFGS-B", options={"maxiter": 20000, "ftol": 1e-15})
            v = found.x
        return float(found.fun), torch.from_numpy(v[:12].reshape(1, 4, 3))

    tgv = TotalGeneralizedVariation(t, ratio=ratio, rtol=1e-5, iterations=50000)
    assert abs(float(tgv(x)) / t - least(False)[0]) <= 1e-4 * float(TotalVariation()(x))
    assert relative_gap(tgv.prox(x, 1.0), least(True)[1]) <= 1e-4


def test_prox_is_as_accurate_as_it_says() -> None:
    x = signal(2, 6, 5) * torch.tensor([1.0, 30.0]).reshape(2, 1, 1)
    want = TotalGeneralizedVariation(0.5, rtol=1e-5, iterations=50000).prox(x, 1.0)
    for rtol in (1e-1, 1e-2, 1e-3):
        got = TotalGeneralizedVariation(0.5, rtol=rtol).prox(x, 1.0)
        assert ((got - want).flatten(1).norm(dim=1) <= rtol * x.flatten(1).norm(dim=1)).all()


def test_prox_smooths_a_noisy_ramp_without_stairs() -> None:
    # total variation breaks a ramp into flat stairs, its second order does not: the slope stays
    clean = ramp(40)
    noisy = clean + 0.3 * signal(1, 40)
    smooth = TotalGeneralizedVariation(3.0, 1).prox(noisy, 1.0)
    stairs = TotalVariation(3.0, 1).prox(noisy, 1.0)
    assert relative_gap(smooth, clean) < 0.5 * relative_gap(noisy, clean)
    flat = torch.diff(stairs).abs() < 1e-3
    assert int(flat.sum()) >= 5
    assert int((torch.diff(smooth).abs() < 1e-3).sum()) == 0


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_value_and_prox_scale_with_the_data(scale: float) -> None:
    x = signal(1, 8, 7, dtype=torch.complex64)
    tgv = TotalGeneralizedVariation(0.2, rtol=0.0, iterations=30)
    assert relative_gap(tgv(scale * x) / scale, tgv(x)) <= 1e-5
    assert relative_gap(tgv.prox(scale * x, scale) / scale, tgv.prox(x, 1.0)) <= 1e-5


def test_it_warns_when_its_iterations_end_before_its_accuracy() -> None:
    tgv = TotalGeneralizedVariation(1.0, rtol=1e-6, iterations=7)
    x = signal(1, 8, 7)
    with pytest.warns(UserWarning, match="the value reached accuracy .* > rtol = 1e-06 in 7 iterations"):
        tgv(x)
    with pytest.warns(UserWarning, match="prox reached accuracy .* > rtol = 1e-06 in 7 iterations"):
        tgv.prox(x, 1.0)


def test_a_zero_image_and_nan_end_at_once() -> None:
    tgv = TotalGeneralizedVariation()
    x = torch.zeros(2, 5, 4)
    assert (tgv(x) == 0).all()
    assert (tgv.prox(x, 1.0) == 0).all()
    x[1, 0, 0] = torch.nan
    assert tgv(x)[1].isnan()
    assert tgv.prox(x, 1.0)[1].isnan().any()
    assert (tgv.prox(x, 1.0)[0] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, "ratio must be finite and > 0"),
        ({"rtol": -1.0}, "rtol must be finite and >= 0"),
        ({"iterations": 0}, "iterations must be >= 1"),
        ({"check_every": 0}, "check_every must be >= 1"),
        ({"dim": 5}, "dim must be 1, 2 or 3"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TotalGeneralizedVariation(1.0, **options)  # type: ignore[arg-type]


def test_a_volume_is_not_read_as_channels() -> None:
    with pytest.raises(ValueError, match="give channel_dim"):
        TotalGeneralizedVariation()(torch.zeros(1, 3, 4, 5))
