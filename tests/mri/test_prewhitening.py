import pytest
import torch
from torch import Tensor

from invreg.mri import noise_covariance, prewhiten, whitening_matrix
from invreg.noise import Gaussian
from invreg.random import draw
from invreg.testing import relative_gap


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def test_whitening_makes_the_covariance_two_on_the_diagonal() -> None:
    root = random(5, 5)
    covariance = root @ root.mH
    matrix = whitening_matrix(covariance)
    assert relative_gap(matrix @ covariance @ matrix.mH, 2 * torch.eye(5, dtype=torch.complex128)) <= 1e-12
    assert torch.equal(matrix, matrix.tril())


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
def test_whitened_noise_has_standard_deviation_one_in_each_real_component(scale: float) -> None:
    mix = random(4, 4, seed=1)
    matrix = whitening_matrix(noise_covariance(scale * mix @ random(4, 50000, seed=2)))
    white = prewhiten((scale * mix @ random(4, 50000, seed=3))[None], matrix)
    for component in (white.real, white.imag):
        assert torch.allclose(component.std(dim=2), torch.ones(1, 4, dtype=torch.float64), atol=0.02)
    covariance = white[0] @ white[0].mH / 50000
    assert (covariance - 2 * torch.eye(4)).abs().max() <= 0.05
    nll = Gaussian(sigma=1.0).nll(torch.zeros_like(white), white)
    assert float(nll) / (4 * 50000) == pytest.approx(1.0, abs=0.02)  # half for each of 2 real components


def test_single_precision_whitens_very_unequal_coils() -> None:
    gains = torch.tensor([1e-9, 1e-6, 1e-3])[:, None]
    noise = gains * random(3, 20000, dtype=torch.complex64)
    white = prewhiten(noise[None], whitening_matrix(noise_covariance(noise)))[0]
    assert relative_gap(white @ white.mH / 20000, 2 * torch.eye(3, dtype=torch.complex64)) <= 1e-4


def test_covariance_is_estimated_and_scales_with_the_bandwidth() -> None:
    noise = random(3, 100)
    want = torch.einsum("is,js->ij", noise, noise.conj()) / 100
    assert relative_gap(noise_covariance(noise), want) <= 1e-14
    assert relative_gap(noise_covariance(noise, bandwidth_ratio=0.25), want / 4) <= 1e-14


def test_bad_arguments_are_named() -> None:
    noise = random(3, 100)
    with pytest.raises(TypeError, match="noise must be complex"):
        noise_covariance(noise.real)
    with pytest.raises(ValueError, match=r"noise must be \(coil, samples\), got \(1, 3, 100\)"):
        noise_covariance(noise[None])
    with pytest.raises(ValueError, match="noise must be finite"):
        noise_covariance(noise * torch.inf)
    with pytest.raises(ValueError, match="bandwidth_ratio must be finite and > 0"):
        noise_covariance(noise, bandwidth_ratio=0.0)
    with pytest.raises(ValueError, match="at least as many samples as coils, got 2 samples of 3 coils"):
        noise_covariance(noise[:, :2])
    with pytest.raises(ValueError, match=r"only zeros in coil \[1\]; leave those coils out"):
        noise_covariance(noise * torch.tensor([1.0, 0, 1])[:, None])
    with pytest.raises(ValueError, match="linearly dependent; compress the coils first"):
        whitening_matrix(noise_covariance(torch.cat((noise, noise[:1]))))
    with pytest.raises(ValueError, match="covariance must be Hermitian"):
        whitening_matrix(random(3, 3))
    with pytest.raises(ValueError, match=r"covariance must be \(..., coil, coil\), got \(3, 2\)"):
        whitening_matrix(random(3, 2))
    with pytest.raises(TypeError, match="covariance must be complex"):
        whitening_matrix(torch.eye(3))
    with pytest.raises(ValueError, match="covariance must be finite"):
        whitening_matrix(random(3, 3) * torch.nan)
    matrix = whitening_matrix(noise_covariance(noise))
    with pytest.raises(ValueError, match=r"matrix \(coil, coil\), got \(1, 4, 8\) and \(3, 3\)"):
        prewhiten(random(1, 4, 8), matrix)
    with pytest.raises(TypeError, match="matrix is torch.complex128 but kspace is torch.complex64".replace(".", r"\.")):
        prewhiten(random(1, 3, 8, dtype=torch.complex64), matrix)
