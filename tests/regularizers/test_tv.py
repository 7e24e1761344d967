"""Tests of `invreg.regularizers.tv` beyond the laws."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from invreg.linalg import inner
from invreg.random import draw
from invreg.regularizers import GroupL1, TotalGeneralizedVariation, TotalVariation
from invreg.testing import relative_gap


def signal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def taut_string(y: list[float], t: float) -> list[float]:
    """argmin_z sum (z - y)^2 / 2 + t sum |z_(k+1) - z_k|, exactly: the slopes of the shortest path from the first to
    the last cumulative sum of y within a tube of half width t.
    """
    n = len(y)
    total = np.concatenate([[0.0], np.cumsum(y)])
    lower, upper = total - t, total + t
    lower[[0, n]] = upper[[0, n]] = total[[0, n]]
    z: list[float] = []
    start, height = 0, 0.0
    while start < n:
        steepest_floor, flattest_ceiling = -np.inf, np.inf
        floor = ceiling = start
        knot, level = n, total[n]
        for j in range(start + 1, n + 1):
            down, up = (lower[j] - height) / (j - start), (upper[j] - height) / (j - start)
            if down > flattest_ceiling:
                knot, level = ceiling, upper[ceiling]
                break
            if up < steepest_floor:
                knot, level = floor, lower[floor]
                break
            if down >= steepest_floor:
                steepest_floor, floor = down, j
            if up <= flattest_ceiling:
                flattest_ceiling, ceiling = up, j
        z += [(level - height) / (knot - start)] * (knot - start)
        start, height = knot, level
    return z


def smoothed_minimum(objective: Callable[[Tensor, float], Tensor], start: Tensor) -> NDArray[np.float64]:
    """Minimise objective(z, smoothing) by L-BFGS with ever less smoothing: nothing in common with a dual method."""
    z = start.numpy().ravel()
    for epsilon in (1e-2, 1e-4, 1e-6, 1e-8):

        def fun(v: NDArray[np.float64], epsilon: float = epsilon) -> tuple[float, NDArray[np.float64]]:
            u = torch.from_numpy(v).reshape(start.shape).requires_grad_()
            value = objective(u, epsilon)
            (gradient,) = torch.autograd.grad(value, u)
            return float(value.detach()), gradient.numpy().ravel()

        z = minimize(fun, z, jac=True, method="L-BFGS-B", options={"maxiter": 20000, "ftol": 1e-15, "gtol": 1e-9}).x
    return np.asarray(z).reshape(start.shape)


def differences(z: Tensor) -> tuple[Tensor, Tensor]:
    """Forward differences of (..., y, x), zero at the end."""
    dy, dx = torch.zeros_like(z), torch.zeros_like(z)
    dy[..., :-1, :] = z[..., 1:, :] - z[..., :-1, :]
    dx[..., :, :-1] = z[..., :, 1:] - z[..., :, :-1]
    return dy, dx


@pytest.mark.parametrize("t", [0.0, 0.05, 0.5, 3.0, 1000.0])
@pytest.mark.parametrize("isotropic", [True, False])
def test_prox_in_one_dimension_is_the_taut_string(t: float, isotropic: bool) -> None:
    x = signal(2, 40) + torch.linspace(0, 3, 40, dtype=torch.float64).round()
    got = TotalVariation(t, 1, isotropic=isotropic, rtol=1e-6, iterations=50000).prox(x, 1.0)
    want = torch.tensor([taut_string(row.tolist(), t) for row in x], dtype=torch.float64)
    assert relative_gap(got, want) <= 1e-6


def test_taut_string_of_a_step_is_known() -> None:
    assert taut_string([0.0, 0.0, 1.0, 1.0], 0.5) == [0.25, 0.25, 0.75, 0.75]
    assert taut_string([0.0, 0.0, 1.0, 1.0], 5.0) == [0.5] * 4


@pytest.mark.parametrize("kind", ["real", "complex", "colour"])
@pytest.mark.parametrize("isotropic", [True, False])
def test_prox_is_the_minimum_that_a_smoothing_method_finds(kind: str, isotropic: bool) -> None:
    # complex entries are pairs of real ones here, and so are colours: both share their edges
    x = signal(2 if kind != "real" else 1, 5, 4)
    t = 0.4

    def objective(z: Tensor, epsilon: float) -> Tensor:
        dy, dx = (d.square().sum(0) for d in differences(z))
        parts = [dy + dx] if isotropic else [dy, dx]
        return (z - x).square().sum() / 2 + t * sum((p + epsilon**2).sqrt().sum() for p in parts)

    want = torch.from_numpy(smoothed_minimum(objective, x))
    tv = TotalVariation(
        t, isotropic=isotropic, channel_dim=1 if kind == "colour" else None, rtol=1e-7, iterations=20000
    )
    if kind == "complex":
        z = tv.prox(torch.complex(x[0], x[1])[None], 1.0)[0]
        got = torch.stack([z.real, z.imag])
    else:
        got = tv.prox(x[None] if kind == "colour" else x, 1.0).reshape(x.shape)
    assert relative_gap(got, want) <= 1e-4


def test_value_of_a_step_is_its_height_times_its_length() -> None:
    x = torch.zeros(1, 6, 8)
    x[..., 3:] = 2.5
    assert TotalVariation(2.0)(x).tolist() == [2.0 * 2.5 * 6]
    assert TotalVariation(2.0, isotropic=False)(x).tolist() == [2.0 * 2.5 * 6]
    assert TotalVariation(2.0, voxel_size=(1.0, 0.5))(x).tolist() == [2 * 2.0 * 2.5 * 6]


def test_value_of_a_diagonal_ramp_tells_isotropic_from_anisotropic() -> None:
    n = torch.arange(5, dtype=torch.float64)
    x = (n[:, None] + n[None, :])[None]
    border = 2 * 4  # the last row and column have one difference each
    torch.testing.assert_close(TotalVariation()(x), torch.tensor([16 * 2**0.5 + border], dtype=torch.float64))
    torch.testing.assert_close(TotalVariation(isotropic=False)(x), torch.tensor([32.0 + border], dtype=torch.float64))


def test_prox_of_a_step_lowers_its_contrast_by_weight_over_width() -> None:
    x = torch.zeros(1, 4, 10, dtype=torch.float64)
    x[..., 4:] = 1.0
    z = TotalVariation(0.3, rtol=1e-8, iterations=20000).prox(x, 1.0)
    want = torch.where(x > 0, torch.full_like(x, 1 - 0.3 / 6), 0.3 / 4)
    torch.testing.assert_close(z, want, rtol=0, atol=1e-7)


def test_value_of_a_disk_is_near_its_perimeter() -> None:
    n, radius = 256, 80.0
    axis = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    distance = (axis[:, None] ** 2 + axis[None, :] ** 2).sqrt()
    disk = (radius + 8 - distance).clamp(0, 16) / 16  # an edge of sixteen pixels' width, which differences resolve
    value = float(TotalVariation()(disk[None]))
    assert abs(value / (2 * torch.pi * radius) - 1) <= 1e-2


def test_prox_of_a_disk_lowers_it_by_twice_the_weight_over_the_radius() -> None:
    n, radius, t = 64, 20.0, 1.0
    axis = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    disk = (axis[:, None] ** 2 + axis[None, :] ** 2 <= radius**2).double()[None]
    z = TotalVariation(t, rtol=1e-2, iterations=5000).prox(disk, 1.0)
    assert abs(1 - float(z[0, n // 2, n // 2]) - 2 * t / radius) <= 0.01


def test_prox_keeps_the_mean_and_ends_in_a_constant() -> None:
    x = signal(1, 6, 5)
    tv = TotalVariation(10.0, rtol=1e-4, iterations=50000)
    torch.testing.assert_close(tv.prox(x, 0.01).mean(), x.mean())
    torch.testing.assert_close(tv.prox(x, 1.0), x.mean().expand(1, 6, 5), rtol=0, atol=1e-4 * float(x.norm()))


def test_total_variation_of_a_complex_image_does_not_change_with_its_phase() -> None:
    x = signal(1, 16, 16)
    tv = TotalVariation()
    for phase in (0.0, 0.3, torch.pi / 4, 2.0):
        turned = x * torch.exp(torch.tensor(1j * phase, dtype=torch.complex128))
        torch.testing.assert_close(tv(turned), tv(x), rtol=1e-13, atol=0)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_prox_scales_with_the_data(scale: float, dtype: torch.dtype) -> None:
    x = signal(1, 12, 10, dtype=dtype)
    tv = TotalVariation(0.2)
    scaled = tv.prox(scale * x, scale)
    assert scaled.isfinite().all()
    assert relative_gap(scaled / scale, tv.prox(x, 1.0)) <= 1e-5


@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-3, 1e-4])
def test_prox_is_as_accurate_as_it_says(rtol: float) -> None:
    x = signal(3, 12, 10, dtype=torch.complex128) * torch.tensor([1.0, 10.0, 0.1]).reshape(3, 1, 1)
    want = TotalVariation(0.5, rtol=1e-7, iterations=20000).prox(x, 1.0)
    got = TotalVariation(0.5, rtol=rtol, iterations=20000).prox(x, 1.0)
    assert ((got - want).flatten(1).norm(dim=1) <= rtol * x.flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-2), (torch.float32, 5e-2)])
def test_a_small_step_is_as_accurate_as_a_large_one(dtype: torch.dtype, bound: float) -> None:
    """Within FISTA a step moves x by a thousandth of it; an error relative to |x| would swallow the move."""
    x = torch.zeros(1, 16, 16, dtype=torch.float64)
    x[:, 4:12, 4:12] = 1
    want = TotalVariation(1e-3, rtol=1e-5, iterations=20000).prox(x, 1.0)
    got = TotalVariation(1e-3).prox(x.to(dtype), 1.0).double()
    assert float((got - want).norm()) <= bound * float((x - want).norm())


def test_prox_does_not_see_a_constant_added() -> None:
    x = signal(1, 12, 10)
    tv = TotalVariation(0.5)
    want = tv.prox(x, 1.0)
    assert float((tv.prox(x + 1000, 1.0) - 1000 - want).norm()) <= 1e-2 * float((x - want).norm())


@pytest.mark.filterwarnings("error")
def test_a_constant_with_rounding_is_its_own_prox_without_complaint() -> None:
    x = 1 + 1e-16 * signal(1, 12, 10)
    torch.testing.assert_close(TotalVariation(1.0).prox(x.sqrt(), 1.0), x)


def test_the_warning_tells_the_accuracy_of_a_batch_with_a_zero_sample() -> None:
    x = signal(2, 12, 10)
    x[1] = 0
    for prior in (TotalVariation(1.0, rtol=1e-6, iterations=7), TotalGeneralizedVariation(1.0, iterations=7)):
        with pytest.warns(UserWarning, match=r"reached accuracy \d"):
            prior.prox(x, 1.0)


def test_prox_warns_when_its_iterations_end_before_its_accuracy() -> None:
    x = signal(1, 12, 10)
    with pytest.warns(UserWarning, match=r"TotalVariation.prox reached accuracy .* > rtol = 1e-06 in 7 iterations"):
        TotalVariation(1.0, rtol=1e-6, iterations=7).prox(x, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TotalVariation(1.0, rtol=0.0, iterations=7).prox(x, 1.0)


def test_prox_shows_nan_and_does_not_run_on() -> None:
    x = signal(2, 6, 5)
    x[1, 2, 2] = torch.nan
    z = TotalVariation(0.3).prox(x, 1.0)
    assert z[1].isnan().any()
    assert relative_gap(z[:1], TotalVariation(0.3).prox(x[:1], 1.0)) <= 1e-12


def test_prox_at_weight_zero_has_the_one_sided_derivative_in_the_weight() -> None:
    x, direction = signal(1, 6, 5), signal(1, 6, 5, seed=1)
    weight = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    tv = TotalVariation(weight, rtol=1e-8)
    (gradient,) = torch.autograd.grad(inner(tv.prox(x, 1.0), direction).sum(), weight)
    h = 1e-5
    moved = TotalVariation(h, rtol=1.5e-8, iterations=20000).prox(x, 1.0)
    torch.testing.assert_close(gradient, inner(moved - x, direction).sum() / h, rtol=1e-3, atol=0)


def test_its_terms_are_the_gradient_and_a_norm_of_it() -> None:
    x = signal(2, 3, 6, 5)
    for isotropic in (True, False):
        for channel_dim, image in ((1, x), (-1, x.movedim(1, -1)), (None, x[:, 0])):
            tv = TotalVariation(0.7, isotropic=isotropic, channel_dim=channel_dim)
            ((operator, penalty),) = tv.terms
            assert operator is not None
            torch.testing.assert_close(penalty(operator(image)), tv(image))


def test_the_weight_of_its_terms_follows_its_own() -> None:
    tv = TotalVariation(0.7)
    tv.weight = torch.tensor(0.2, requires_grad=True)
    ((_, penalty),) = tv.terms
    assert isinstance(penalty, GroupL1)
    assert penalty.weight is tv.weight


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": -1.0}, "rtol must be finite and >= 0"),
        ({"iterations": 0}, "iterations must be >= 1"),
        ({"check_every": 0}, "check_every must be >= 1"),
        ({"dim": 5}, "dim must be 1, 2 or 3"),
        ({"channel_dim": 7}, "channel_dim must lie within the 4 axes"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TotalVariation(1.0, **options)  # type: ignore[arg-type]


def test_a_volume_is_not_read_as_channels() -> None:
    with pytest.raises(ValueError, match="give channel_dim"):
        TotalVariation()(torch.zeros(1, 3, 4, 5))


@pytest.mark.slow
def test_value_and_prox_compile_with_inductor() -> None:
    x = signal(1, 32, 32, dtype=torch.float32)
    tv = TotalVariation(0.3, rtol=0.0, iterations=1)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(tv, fullgraph=True)(x), tv(x))
    torch.testing.assert_close(torch.compile(tv.prox, fullgraph=True)(x, 1.0), tv.prox(x, 1.0))
