"""Tests of `invreg.operators.wavelet` beyond the laws."""

import warnings

import numpy as np
import pytest
import pywt
import torch

from invreg.operators import Wavelet
from invreg.random import draw
from invreg.testing import relative_gap


def signal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return draw(torch.empty(2, *shape, dtype=dtype), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(
    ("shape", "name", "levels"),
    [((32, 48), "db4", 3), ((16, 8, 24), "sym5", 2), ((64,), "coif3", 4), ((8, 8), "haar", 3), ((4, 8), "db6", 2)],
)
def test_coefficients_are_those_of_pywavelets(
    shape: tuple[int, ...], name: str, levels: int, dtype: torch.dtype
) -> None:
    x = signal(*shape, dtype=dtype)
    axes = tuple(range(1, x.ndim))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of levels at which every coefficient sees the border
        bands = pywt.wavedecn(x.numpy(), name, "periodization", levels, axes=axes)
    want, _ = pywt.coeffs_to_array(bands, axes=axes)
    got = Wavelet(shape, name, levels)(x)
    assert np.abs(got.numpy() - want).max() <= 1e-11 * np.abs(want).max()


@pytest.mark.parametrize("shape", [(217, 181), (5, 7, 3), (1, 9), (33,)])
@pytest.mark.parametrize("name", ["haar", "db4", "sym20", "coif17"])
def test_transform_is_orthonormal_for_any_shape(shape: tuple[int, ...], name: str) -> None:
    wavelet = Wavelet(shape, name, None if min(shape) == 1 else 2)
    x = signal(*shape, dtype=torch.complex128)
    assert relative_gap(wavelet.adjoint(wavelet(x)), x) <= 1e-13
    assert relative_gap(wavelet(wavelet.adjoint(x)), x) <= 1e-13
    assert relative_gap(wavelet(x).norm(), x.norm()) <= 1e-13


def test_every_orthogonal_wavelet_of_pywavelets_is_accepted() -> None:
    for name in pywt.wavelist(kind="discrete"):
        if pywt.Wavelet(name).orthogonal and name != "dmey":
            wavelet = Wavelet((12,), name, 1)
            x = signal(12)
            assert relative_gap(wavelet.adjoint(wavelet(x)), x) <= 1e-13, name


def test_a_constant_image_has_only_an_approximation() -> None:
    wavelet = Wavelet((32, 32), "db4", 2)
    y = wavelet(torch.ones(1, 32, 32, dtype=torch.float64))
    approximation = y[wavelet.approximation]
    assert approximation.shape == (1, 8, 8)
    torch.testing.assert_close(approximation, torch.full_like(approximation, 4.0))
    assert float(y.norm() ** 2 - approximation.norm() ** 2) <= 1e-9


def test_details_of_a_polynomial_vanish_away_from_the_border() -> None:
    x = torch.arange(64, dtype=torch.float64)
    y = Wavelet((64,), "db3", 1)((x**2 - 5 * x)[None])[0]
    assert float(y[34:60].abs().max()) <= 1e-9


def test_default_levels_keep_the_filter_within_the_shortest_axis() -> None:
    assert Wavelet((256, 256), "db4").levels == pywt.dwt_max_level(256, 8)
    assert Wavelet((256, 60), "db4").levels == pywt.dwt_max_level(60, 8)
    assert Wavelet((4, 4), "db4").levels == 1


def test_channels_are_transformed_like_separate_images() -> None:
    x = signal(3, 8, 12)
    together = Wavelet((3, 8, 12), "db2", 2, channel_dim=1)(x)
    alone = Wavelet((8, 12), "db2", 2)
    for c in range(3):
        torch.testing.assert_close(together[:, c], alone(x[:, c]), rtol=0, atol=1e-13)
    last = Wavelet((8, 12, 3), "db2", 2, channel_dim=-1)(x.movedim(1, -1))
    torch.testing.assert_close(last.movedim(-1, 1), together, rtol=0, atol=1e-13)


def test_conversion_to_single_and_back_loses_nothing() -> None:
    wavelet = Wavelet((16, 16), "db4", 2)
    x = signal(16, 16)
    want = wavelet(x)
    assert torch.equal(wavelet.float().double()(x), want)


def test_normal_equations_have_a_closed_form() -> None:
    wavelet = Wavelet((9, 6), "db2", 1)
    b, shift = signal(9, 6), torch.tensor(0.3, dtype=torch.float64)
    x = wavelet.solve_normal(b, shift)
    torch.testing.assert_close(wavelet.adjoint(wavelet(x)) + shift * x, b)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((8, 8), "bior2.2"), ValueError, "wavelet must be orthogonal: haar, db"),
        (((8, 8), "dmey"), ValueError, "wavelet must be orthogonal"),
        (((8, 8), "db99"), ValueError, "unknown wavelet 'db99'; did you mean"),
        (((8, 8), 4), TypeError, "wavelet must be a name such as 'db4', got int"),
        (((8, 8), "db4", 4), ValueError, r"levels must be <= 3 for shape \(8, 8\), got 4"),
        (((8, 8), "db4", 0), ValueError, "levels must be >= 1"),
        (((2, 8, 8, 8), "db4", 1), ValueError, "name a channel axis by channel_dim"),
        (((2, 8, 8), "db4", 1, 4), ValueError, "channel_dim must lie within the 3 axes of shape, got 4"),
        (((2, 8, 8), "db4", 1, 1.0), TypeError, "channel_dim must be an int or None"),
        (((8, 0), "db4", 1), ValueError, "shape must be >= 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple[object, ...], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Wavelet(*arguments)  # type: ignore[arg-type]
