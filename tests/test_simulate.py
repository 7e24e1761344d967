"""Simulated scans: off the grid, with the physics they claim, and each refusal."""

import math

import pytest
import torch
from torch import Tensor

from invreg.assets import head_slice
from invreg.metrics import psnr
from invreg.operators.fourier import centred_ifft
from invreg.simulate import cartesian_mask, coil_maps, ct_scan, head_ct, mri_scan


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("lines", [64, 65, 192])
def test_equispaced_mask_takes_every_line_of_its_step_and_the_calibration(lines: int) -> None:
    mask = cartesian_mask(lines, 4, 12, generator=seeded())
    centre = torch.arange(lines // 2 - 6, lines // 2 + 6)
    assert bool(mask[centre].all())
    outside = mask.clone()
    outside[centre] = False
    steps = outside.nonzero()[:, 0].remainder(4).unique()
    assert len(steps) == 1
    assert lines / 4 <= int(mask.sum()) <= lines / 4 + 12


@pytest.mark.parametrize("pattern", ["random", "variable-density"])
def test_random_masks_sample_as_many_lines_as_the_acceleration_says(pattern: str) -> None:
    mask = cartesian_mask(192, 3, 16, pattern, seeded())  # type: ignore[arg-type]
    assert int(mask.sum()) == 64
    assert bool(mask[88:104].all())
    assert not torch.equal(mask, cartesian_mask(192, 3, 16, pattern, seeded(1)))  # type: ignore[arg-type]
    assert torch.equal(mask, cartesian_mask(192, 3, 16, pattern, seeded()))  # type: ignore[arg-type]


def test_variable_density_is_denser_near_the_centre() -> None:
    masks = torch.stack([cartesian_mask(128, 4, 0, "variable-density", seeded(k)) for k in range(200)]).float()
    inner, outer = masks[:, 44:84].mean(), torch.cat([masks[:, :20], masks[:, -20:]], 1).mean()
    assert float(inner) > 3 * float(outer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lines": 0}, "lines must be >= 1"),
        ({"acceleration": 0.5}, "acceleration from 1"),
        ({"calibration": 99}, "calibration must be <= 64"),
        ({"pattern": "spiral"}, "pattern must be"),
        ({"pattern": "random", "calibration": 40}, "calibration must be at most lines / acceleration"),
    ],
)
def test_impossible_masks_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cartesian_mask(**({"lines": 64, "acceleration": 4, "calibration": 8} | arguments))  # type: ignore[arg-type]


def test_coil_fields_obey_maxwell_in_the_plane_and_sum_to_one() -> None:
    maps = coil_maps((48, 48), (200.0, 200.0), 6)
    assert maps.shape == (1, 6, 48, 48)
    torch.testing.assert_close(maps.abs().square().sum(1), torch.ones(1, 48, 48))
    # the loops are turned copies of each other, so turning the grid by half a turn exchanges opposite coils
    centred = maps[0, :, 1:, 1:].abs()
    torch.testing.assert_close(centred[:3].flip(-1, -2), centred[3:], atol=2e-3, rtol=0)


def test_each_coil_is_strongest_on_its_own_side() -> None:
    maps = coil_maps((48, 48), (200.0, 200.0), 8)[0].abs()
    y, x = torch.meshgrid(torch.arange(48.0) - 24, torch.arange(48.0) - 24, indexing="ij")
    inside = (x**2 + y**2) < 20**2
    for k in range(8):
        angle = 2 * math.pi * (k + 0.5) / 8
        side = x * math.cos(angle) + y * math.sin(angle)
        weight = maps[k] * inside
        assert float((weight * side).sum() / weight.sum()) > 3


def full_scan(**options: object) -> tuple[Tensor, Tensor]:
    slice_ = head_slice()
    matrix = (96, 96)
    mask = torch.ones(96, dtype=torch.bool)
    scan = mri_scan(slice_.image, slice_.voxel_size, mask, matrix=matrix, generator=seeded(), **options)  # type: ignore[arg-type]
    return (scan.maps.conj() * centred_ifft(scan.kspace)).sum(1), scan.truth


def test_complete_scan_without_noise_shows_the_truth_but_not_exactly() -> None:
    image, truth = full_scan(sigma=0.0)
    quality = float(psnr(image, truth))
    assert quality > 55  # the truth is fair
    assert quality < 120  # and the simulation is not the reconstruction's own operator


def test_truth_does_not_depend_on_how_fine_the_hidden_grid_is() -> None:
    _, coarse = full_scan(sigma=0.0, oversampling=3)
    _, fine = full_scan(sigma=0.0, oversampling=6)
    assert float(psnr(coarse, fine)) > 45


def test_noise_has_the_stated_level_in_kspace_and_noise_scan() -> None:
    slice_ = head_slice(1)
    scan = mri_scan(
        slice_.image,
        slice_.voxel_size,
        torch.ones(96, dtype=torch.bool),
        matrix=(96, 96),
        sigma=0.05,
        generator=seeded(),
    )
    clean = mri_scan(slice_.image, slice_.voxel_size, torch.ones(96, dtype=torch.bool), matrix=(96, 96), sigma=0.0)
    for noise in (scan.noise, scan.kspace - clean.kspace):
        level = (noise.abs().square().mean() / 2).sqrt()
        assert float(level) == pytest.approx(0.05, rel=0.02)


def test_lines_outside_the_mask_are_zero_and_image_phase_is_not() -> None:
    slice_ = head_slice(2)
    mask = cartesian_mask(96, 3, 12, generator=seeded())
    scan = mri_scan(slice_.image, slice_.voxel_size, mask, matrix=(96, 96), generator=seeded())
    assert bool((scan.kspace[:, :, ~mask] == 0).all())
    assert bool((scan.kspace[:, :, mask] != 0).all())
    image, _ = full_scan(sigma=0.0)
    inside = image.abs() > 0.2
    assert float(image[inside].angle().std()) > 0.3


def test_bad_scans_are_refused() -> None:
    image = torch.ones(1, 10, 10)
    every = torch.ones(192, dtype=torch.bool)
    with pytest.raises(ValueError, match="sample something"):
        mri_scan(image, (1.0, 1.0), ~every)
    with pytest.raises(ValueError, match=r"mask must be bool, \(192,\)"):
        mri_scan(image, (1.0, 1.0), every[:5])
    with pytest.raises(ValueError, match="image must be real"):
        mri_scan(image[0], (1.0, 1.0), every)
    with pytest.raises(ValueError, match="image must be finite"):
        mri_scan(image * torch.nan, (1.0, 1.0), every)
    angles = torch.zeros(1)
    with pytest.raises(ValueError, match="attenuation must be square"):
        ct_scan(torch.ones(1, 8, 10), (1.0, 1.0), angles)
    with pytest.raises(ValueError, match="attenuation must be >= 0"):
        ct_scan(-torch.ones(1, 8, 8), (1.0, 1.0), angles)


def test_disk_casts_the_chord_of_the_circle() -> None:
    size, pixel, radius, mu = 128, 0.5, 20.0, 0.02
    axis = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) * pixel
    disk = mu * ((axis[:, None] - 3) ** 2 + (axis + 5) ** 2 < radius**2).double()  # centre y = 3, x = -5
    angles = torch.tensor([0.0, 0.4, math.pi / 2, 2.5], dtype=torch.float64)
    scan = ct_scan(disk[None], (pixel, pixel), angles, photons=1e9, generator=seeded())
    s = (torch.arange(scan.sinogram.shape[-1], dtype=torch.float64) - (scan.sinogram.shape[-1] - 1) / 2) * 1.0
    offset = s - (-5 * angles.cos() + 3 * angles.sin())[:, None]
    chord = 2 * mu * (radius**2 - offset**2).clamp_min(0).sqrt()
    error = (scan.sinogram[0].double() - chord).norm() / chord.norm()
    assert float(error) < 0.02
    assert scan.truth.shape == (1, 64, 64)
    assert float(scan.truth.double().sum()) * 4 == pytest.approx(float(disk.sum()), rel=1e-6)
    assert scan.voxel_size == (1.0, 1.0)


def test_counts_scatter_as_their_square_root() -> None:
    scan = ct_scan(torch.zeros(1, 32, 32), (1.0, 1.0), torch.arange(40) * 0.1, photons=400.0, generator=seeded())
    assert float(scan.counts.mean()) == pytest.approx(400, rel=0.01)
    assert float(scan.counts.std()) == pytest.approx(20, rel=0.05)
    assert float(scan.sigma.mean()) == pytest.approx(0.05, rel=0.02)


def test_head_ct_is_read_in_hounsfield_units() -> None:
    pytest.importorskip("pydicom")
    record = head_ct()
    assert record.units == "HU"
    assert tuple(record.data.shape) == (1, 512, 512)
    assert record.voxel_size == pytest.approx((0.431, 0.431))
    brain = record.data[0, 330:380, 230:280]
    assert 10 < float(brain.median()) < 60
