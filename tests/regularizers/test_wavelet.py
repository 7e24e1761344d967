"""Tests of `invreg.regularizers.wavelet` beyond the laws."""

import pytest
import torch

from invreg.operators import Wavelet
from invreg.random import draw
from invreg.regularizers import WaveletL1


def test_a_constant_image_costs_nothing_and_stays() -> None:
    x = torch.full((1, 16, 16), 2.0, dtype=torch.float64)
    prior = WaveletL1(Wavelet((16, 16), "db4", 1), 0.5)
    assert float(prior(x)) <= 1e-9
    torch.testing.assert_close(prior.prox(x, 1.0), x)


def test_the_approximation_is_counted_on_demand() -> None:
    x = torch.full((1, 16, 16), 2.0, dtype=torch.float64)
    prior = WaveletL1(Wavelet((16, 16), "haar", 2), 0.5, penalize_approximation=True)
    torch.testing.assert_close(prior(x), torch.tensor([0.5 * 16 * 8.0], dtype=torch.float64))
    torch.testing.assert_close(prior.prox(x, 1.0), x - 0.5 / 4)


def test_prox_thresholds_haar_details() -> None:
    x = torch.tensor([[1.0, 3.0, 5.0, 5.2]], dtype=torch.float64)
    z = WaveletL1(Wavelet((4,), "haar", 1), 1.0).prox(x, 0.5)
    half = 0.5 / 2**0.5  # a detail is a difference over sqrt(2)
    torch.testing.assert_close(z, torch.tensor([[1 + half, 3 - half, 5.1, 5.1]], dtype=torch.float64))


def test_value_is_the_sum_of_moduli_of_the_details() -> None:
    x = draw(torch.empty(2, 9, 7, dtype=torch.complex128), torch.Generator().manual_seed(0))
    wavelet = Wavelet((9, 7), "db2", 2)
    y = wavelet(x).abs()
    want = y.flatten(1).sum(1) - y[wavelet.approximation].flatten(1).sum(1)
    torch.testing.assert_close(WaveletL1(wavelet, 0.3)(x), 0.3 * want)


def test_it_needs_a_wavelet() -> None:
    with pytest.raises(TypeError, match="wavelet must be a Wavelet such as .* got str"):
        WaveletL1("db4")  # type: ignore[arg-type]
