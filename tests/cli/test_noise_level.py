"""Where the noise level comes from, and that estimates find it."""

import math

import pytest
import torch

from invreg.cli.noise_level import NoiseLevel, mean_level, noise_level
from invreg.io import Image, KSpace, Sinogram
from invreg.random import draw


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(0))


def said(record: KSpace | Sinogram | Image, given: float | None) -> tuple[float | torch.Tensor | None, str]:
    level = noise_level(record, given)
    return level.sigma, level.source


def test_the_user_wins_over_the_file_and_the_file_over_an_estimate() -> None:
    data = noise(1, 2, 32, 32, dtype=torch.complex64)
    record = KSpace(data, noise_sigma=0.7)
    assert said(record, 0.3) == (0.3, "--sigma")
    assert said(record, None) == (0.7, "noise scan of the file")
    assert "estimated" in noise_level(KSpace(data), None).source


def test_corners_of_kspace_give_sigma_of_each_real_component() -> None:
    data = 0.02 * noise(2, 4, 96, 96, dtype=torch.complex64)
    data[:, :, 40:56, 40:56] += 50  # signal at the centre
    mask = torch.zeros(1, 1, 96, 1, dtype=torch.bool)
    mask[:, :, ::2] = True
    found = noise_level(KSpace(data * mask, mask=mask), None)
    assert found.sigma == pytest.approx(0.02, rel=0.05)
    assert found.source == "estimated from the outermost sampled k-space"


def test_counts_give_the_level_of_every_ray() -> None:
    counts = torch.tensor([[[400.0, 0.0], [100.0, 10_000.0]]])
    record = Sinogram(torch.zeros(1, 2, 2), torch.zeros(2), counts=counts, photons=1e4)
    found = noise_level(record, None)
    torch.testing.assert_close(found.sigma, torch.tensor([[[0.05, math.sqrt(2)], [0.1, 0.01]]]))
    assert found.source == "photon counts of the file"


def test_smooth_sinograms_and_images_hide_no_noise() -> None:
    ramp = torch.linspace(0, 5, 200)
    sinogram = Sinogram((ramp + 0.03 * noise(1, 40, 200)), torch.arange(40) * 0.05)
    assert noise_level(sinogram, None).sigma == pytest.approx(0.03, rel=0.05)
    plane = ramp[:64, None] * 3 + ramp[:64]
    assert noise_level(Image(plane[None] + 0.2 * noise(1, 64, 64)), None).sigma == pytest.approx(0.2, rel=0.05)
    complex_plane = plane[None] + 0.2 * noise(1, 64, 64, dtype=torch.complex64)
    assert noise_level(Image(complex_plane), None).sigma == pytest.approx(0.2, rel=0.05)


def test_no_noise_and_too_little_data_are_unknown() -> None:
    assert said(Image(torch.ones(1, 32, 32)), None) == (None, "unknown: no noise found")
    assert said(Image(torch.ones(1, 3, 3)), None) == (None, "unknown: too few entries without signal")


def test_mean_level_carries_the_same_information() -> None:
    sigma = torch.tensor([1.0, 2.0, 4.0])
    assert mean_level(sigma) == pytest.approx((3 / (1 + 1 / 4 + 1 / 16)) ** 0.5)
    assert NoiseLevel(torch.full((5,), 0.3), "").number() == pytest.approx(0.3)
    with pytest.raises(ValueError, match="sigma must be finite and > 0"):
        noise_level(Image(torch.ones(1, 9, 9)), 0.0)
