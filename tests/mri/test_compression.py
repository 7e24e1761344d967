import pytest
import torch
from torch import Tensor

from invreg.mri import compress_coils, compression_matrix, mix_coils
from invreg.operators import Sense
from invreg.random import draw
from invreg.testing import relative_gap


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def test_linearly_dependent_coils_compress_without_loss() -> None:
    kspace = mix_coils(random(2, 3, 8, 9), random(2, 8, 3, seed=1))
    compressed, matrix = compress_coils(kspace, 3)
    assert compressed.shape == (2, 3, 8, 9)
    assert relative_gap(mix_coils(compressed, matrix.mH), kspace) <= 1e-12
    assert float(compressed.norm()) == pytest.approx(float(kspace.norm()), rel=1e-12)


def test_rows_are_orthonormal_and_strongest_first() -> None:
    compressed, matrix = compress_coils(random(2, 5, 8, 9), 4)
    identity = torch.eye(4, dtype=torch.complex128).expand(2, 4, 4)
    assert relative_gap(matrix @ matrix.mH, identity) <= 1e-14
    energy = compressed.abs().square().sum((2, 3))
    assert bool((energy.diff(dim=1) <= 0).all())


def test_kept_energy_is_that_of_the_singular_values() -> None:
    kspace = random(2, 5, 8, 9)
    values = torch.linalg.svdvals(kspace.flatten(2)).square()
    for coils in (1, 3, 5):
        got = compress_coils(kspace, coils)[0].abs().square().sum((1, 2, 3))
        assert torch.allclose(got, values[:, :coils].sum(1))


def test_energy_chooses_the_smallest_number_of_coils_that_suffices() -> None:
    kspace = random(2, 6, 8, 9) * torch.tensor([1.0, 2, 4, 8, 16, 32])[:, None, None]
    for energy in (0.5, 0.9, 0.99, 0.999):
        compressed, matrix = compress_coils(kspace, energy=energy)
        total = kspace.abs().square().sum((1, 2, 3))
        assert bool((compressed.abs().square().sum((1, 2, 3)) >= energy * total).all())
        fewer = compress_coils(kspace, max(1, matrix.shape[1] - 1))[0]
        assert matrix.shape[1] == 1 or not bool((fewer.abs().square().sum((1, 2, 3)) >= energy * total).all())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_all_energy_means_the_rank_and_not_rounding_noise(dtype: torch.dtype) -> None:
    kspace = mix_coils(random(1, 3, 16, 16, dtype=dtype), random(8, 3, seed=1, dtype=dtype))
    assert compress_coils(kspace, energy=1.0)[1].shape == (1, 3, 8)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_matrix_does_not_depend_on_the_scale_of_the_data(scale: float) -> None:
    kspace = random(2, 5, 8, 9, dtype=torch.complex64)
    assert relative_gap(compression_matrix(kspace * scale, 3), compression_matrix(kspace, 3)) <= 1e-4


def test_white_noise_stays_white() -> None:
    matrix = compression_matrix(random(1, 6, 8, 9), 3)
    noise = mix_coils(random(1, 6, 40000, seed=3), matrix)[0]
    covariance = noise @ noise.mH / 40000
    assert (covariance - 2 * torch.eye(3)).abs().max() <= 0.06


def test_compressed_data_and_maps_describe_the_same_image() -> None:
    maps = mix_coils(random(1, 2, 6, 7), random(1, 5, 2, seed=1))
    x = random(1, 6, 7, seed=2)
    compressed, matrix = compress_coils(Sense(maps)(x), 2)
    few = Sense(mix_coils(maps, matrix))
    assert relative_gap(few(x), compressed) <= 1e-12
    assert relative_gap(few.normal(x), Sense(maps).normal(x)) <= 1e-12


def test_silent_coils_are_no_trouble() -> None:
    compressed, _ = compress_coils(torch.zeros(1, 3, 4, 4, dtype=torch.complex64), 2)
    assert bool((compressed == 0).all())


def test_bad_arguments_are_named() -> None:
    kspace = random(1, 3, 4, 4)
    with pytest.raises(TypeError, match="kspace must be complex"):
        compress_coils(kspace.real, 2)
    with pytest.raises(ValueError, match="add a batch axis"):
        compress_coils(kspace[0, :, 0], 2)
    with pytest.raises(ValueError, match="kspace must be finite"):
        compress_coils(kspace * torch.nan, 2)
    with pytest.raises(ValueError, match="give either coils or energy, got coils=None and energy=None"):
        compress_coils(kspace)
    with pytest.raises(ValueError, match="give either coils or energy"):
        compress_coils(kspace, 2, energy=0.9)
    with pytest.raises(ValueError, match="coils must be at most 3, the number of coils, got 4"):
        compress_coils(kspace, 4)
    with pytest.raises(ValueError, match="energy must be > 0 and <= 1, got 99"):
        compress_coils(kspace, energy=99)
    with pytest.raises(ValueError, match="data has 3 coils but matrix mixes 4"):
        mix_coils(kspace, random(1, 2, 4))
    with pytest.raises(ValueError, match=r"data must be \(B, coil, ...\)"):
        mix_coils(kspace, random(2, 2, 3))
    with pytest.raises(TypeError, match="matrix is torch.complex64 but data is torch.complex128".replace(".", r"\.")):
        mix_coils(kspace, random(1, 2, 3, dtype=torch.complex64))
