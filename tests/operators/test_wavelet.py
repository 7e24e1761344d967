"""Orthogonal wavelets against PyWavelets."""

import numpy as np
import pytest
import pywt
import torch

from invreg.operators import Wavelet


@pytest.mark.parametrize("name", ["haar", "db4", "sym5", "coif1"])
def test_coefficients_are_those_of_pywavelets(name: str) -> None:
    x = torch.randn(2, 32, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = Wavelet((32, 48), name, levels=2)(x)
    for one, coefficients in zip(x, got, strict=True):
        wanted = pywt.wavedec2(one.numpy(), name, mode="periodization", level=2)
        array, _ = pywt.coeffs_to_array(wanted)
        assert np.allclose(np.abs(coefficients.numpy()), np.abs(array), atol=1e-10)


@pytest.mark.parametrize("shape", [(17,), (31, 20), (1, 9), (12, 15, 10)])
def test_transform_is_orthonormal_for_every_shape(shape: tuple[int, ...]) -> None:
    wavelet = Wavelet(shape, "db2")
    n = int(np.prod(shape))
    matrix = wavelet(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).reshape(n, n)
    assert torch.allclose(matrix @ matrix.T, torch.eye(n, dtype=torch.float64), atol=1e-12)


def test_biorthogonal_wavelets_are_refused() -> None:
    with pytest.raises(ValueError, match="orthogonal"):
        Wavelet((32, 32), "bior2.2")
    with pytest.raises(ValueError, match="db4"):
        Wavelet((32, 32), "db44")
