"""Filtered back-projection reads the value of a disk, whatever the scan."""

import math
import warnings

import pytest
import torch
from torch import Tensor

from invreg.algorithms.filtered_backprojection import (
    filtered_backprojection,
    offset_shares,
    scan_weights,
    view_angles,
)
from invreg.operators import FanBeam, Fourier, ParallelBeam
from invreg.phantom import Ellipse, fan_sinogram, parallel_sinogram, rasterise, shepp_logan
from invreg.testing import relative_gap

WATER = 0.02  # 1/mm
N = 96
DISK = Ellipse(WATER, (30.0, 30.0), (4.0, -6.0))


def turn(views: int, degrees: float = 180.0) -> Tensor:
    return torch.arange(views, dtype=torch.float64) * math.radians(degrees) / views


def from_disk(n: int, pixel: float = 1.0) -> Tensor:
    y, x = ((torch.arange(k).double() - (k - 1) / 2) * pixel for k in (n, n))
    return ((x - DISK.centre[0]) ** 2 + (y[:, None] - DISK.centre[1]) ** 2).sqrt()


def assert_reads_water(image: Tensor, pixel: float = 1.0) -> None:
    """The mean inside within 1 HU, every pixel within 5 HU, air nearby in the mean within 2 HU of -1000."""
    hounsfield = 1000 * (image[0] - WATER) / WATER
    distance = from_disk(image.shape[-1], pixel)
    inside = hounsfield[distance < 25]
    assert abs(float(inside.mean())) <= 1
    assert float(inside.abs().max()) <= 5
    assert abs(float(hounsfield[(distance > 33) & (distance < 38)].mean()) + 1000) <= 2


SCANS = {
    "half turn": turn(180),
    "full turn": turn(360, 360),
    "both ends": torch.linspace(0, math.pi, 181).double(),
    "negative": turn(180) - 1.5,
    "golden": turn(1)[0] + torch.arange(200).double() * math.pi * (math.sqrt(5) - 1) / 2 % math.pi,
    "uneven": torch.cat([torch.linspace(0, 1, 60)[:-1], torch.linspace(1, math.pi, 240)[:-1]]).double(),
}


@pytest.mark.parametrize("scan", SCANS)
def test_parallel_water_disk_reads_zero_hounsfield(scan: str) -> None:
    operator = ParallelBeam((N, N), SCANS[scan], 140)
    sinogram = parallel_sinogram([DISK], operator.angles, operator.offsets)[None]
    assert_reads_water(filtered_backprojection(operator, sinogram))


@pytest.mark.parametrize("window", ["shepp-logan", "cosine", "hamming", "hann"])
def test_windows_keep_the_mean_and_smooth_the_noise(window: str) -> None:
    operator = ParallelBeam((N, N), turn(180), 140)
    sinogram = parallel_sinogram([DISK], operator.angles, operator.offsets)[None]
    assert_reads_water(filtered_backprojection(operator, sinogram, window))  # type: ignore[arg-type]
    noise = torch.randn(sinogram.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    smooth = filtered_backprojection(operator, noise, window)  # type: ignore[arg-type]
    assert smooth.std() < 0.9 * filtered_backprojection(operator, noise).std()
    half = filtered_backprojection(operator, noise, window, cutoff=0.5)  # type: ignore[arg-type]
    assert half.std() < 0.6 * smooth.std()


def test_pitch_offset_and_centre_of_rotation_are_used() -> None:
    centre = (2.0, -3.0)
    operator = ParallelBeam((N, N), turn(180), 200, detector_pitch=0.7, detector_offset=0.33, centre_of_rotation=centre)
    seen = Ellipse(WATER, (30.0, 30.0), (DISK.centre[0] - centre[0], DISK.centre[1] - centre[1]))
    assert_reads_water(
        filtered_backprojection(operator, parallel_sinogram([seen], operator.angles, operator.offsets)[None])
    )


FANS = {
    "full": turn(360, 360),
    "short": turn(240, 240) + 1.0,
    "barely": torch.linspace(0, math.pi + 0.56, 230).double(),
}


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("scan", FANS)
def test_fan_water_disk_reads_zero_hounsfield(scan: str, curved: bool) -> None:
    source, detector = 175.0, 90.0
    operator = FanBeam(
        (N, N), FANS[scan], 190, source_origin=source, origin_detector=detector, detector_pitch=0.9, curved=curved
    )
    sinogram = fan_sinogram([DISK], operator.angles, operator.offsets, source, detector, curved)[None]
    assert_reads_water(filtered_backprojection(operator, sinogram))


@pytest.mark.parametrize("curved", [False, True])
def test_amplitude_of_a_wide_fan_is_right(curved: bool) -> None:  # half-fan 19 degrees
    n, source = 64, 200.0
    pixel = 2 * source * math.sin(math.radians(19)) / n
    radius = 0.8 * n * pixel / 2
    operator = FanBeam(
        (n, n), turn(360, 360), 128, source_origin=source, origin_detector=0.0, pixel_size=pixel,
        detector_pitch=1.12 * pixel / 2, curved=curved,
    )  # fmt: skip
    assert math.degrees(float(operator.fan_angles.abs().max())) > 18.9
    disk = Ellipse(1.0, (radius, radius))
    sinogram = fan_sinogram([disk], operator.angles, operator.offsets, source, 0.0, curved)[None]
    image, truth = filtered_backprojection(operator, sinogram)[0], rasterise([disk], (n, n), pixel, dtype=torch.float64)
    core = rasterise([Ellipse(1.0, (0.9 * radius, 0.9 * radius))], (n, n), pixel, dtype=torch.float64) == 1
    assert float(image[core].mean()) == pytest.approx(1, abs=2e-3)
    assert float((image * truth).sum() / truth.square().sum()) == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize(("detectors", "offset"), [(100, 20.0), (100, -20.0), (70, 30.0)])
@pytest.mark.parametrize("views", [360, 361])
def test_an_offset_detector_sees_the_whole_disk_in_a_full_turn(detectors: int, offset: float, views: int) -> None:
    operator = ParallelBeam((N, N), turn(views, 360), detectors, detector_offset=offset)
    sinogram = parallel_sinogram([DISK], operator.angles, operator.offsets)[None]
    assert_reads_water(filtered_backprojection(operator, sinogram))


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("offset", [60.0, -60.0])
def test_an_offset_fan_detector_sees_the_whole_disk_in_a_full_turn(curved: bool, offset: float) -> None:
    operator = FanBeam(
        (N, N), turn(720, 360), 160, source_origin=200.0, origin_detector=200.0, detector_pitch=1.0,
        detector_offset=offset, curved=curved,
    )  # fmt: skip
    sinogram = fan_sinogram([DISK], operator.angles, operator.offsets, 200.0, 200.0, curved)[None]
    assert_reads_water(filtered_backprojection(operator, sinogram))


def test_shares_of_an_offset_detector_sum_to_one_on_every_line() -> None:
    shares = offset_shares(ParallelBeam((96, 96), turn(360, 360), 101, detector_offset=20.0))
    assert shares is not None
    twice = shares[:61]  # from -30 to 30 mm
    torch.testing.assert_close(twice + twice.flip(0), torch.ones(61).double())
    assert (shares[61:] == 1).all()
    for offset in (0.0, 2.0):  # as far on both sides; or far enough
        assert offset_shares(ParallelBeam((96, 96), turn(360, 360), 101, detector_offset=offset)) is None


def test_an_offset_detector_is_warned_of_in_half_a_turn() -> None:
    operator = ParallelBeam((96, 96), turn(180), 100, detector_offset=20.0)
    with pytest.warns(UserWarning, match="29.5 mm on one side .* 69.5 mm on the other, .* needs 48 mm"):
        filtered_backprojection(operator, torch.zeros(1, 180, 100, dtype=torch.float64))
    blind = ParallelBeam((96, 96), turn(180, 360), 50, detector_offset=40.0)
    with pytest.warns(UserWarning, match="reaches -15.5 mm"):
        filtered_backprojection(blind, torch.zeros(1, 180, 50, dtype=torch.float64))


def test_shepp_logan_comes_back() -> None:
    operator = ParallelBeam((128, 128), turn(240), 182)
    phantom = shepp_logan(128.0)
    sinogram = parallel_sinogram(phantom, operator.angles, operator.offsets)[None]
    image, truth = filtered_backprojection(operator, sinogram)[0], rasterise(phantom, (128, 128), dtype=torch.float64)
    assert relative_gap(image, truth) <= 0.12
    inside = rasterise([Ellipse(1.0, (38.0, 51.0))], (128, 128)) == 1
    assert abs(float((image - truth)[inside].mean())) <= 5e-4


def test_result_is_linear_in_y_complex_and_batched() -> None:
    operator = ParallelBeam((20, 24), turn(30), 40)
    y = torch.randn(3, 30, 40, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    image = filtered_backprojection(operator, y)
    parts = torch.complex(filtered_backprojection(operator, y.real), filtered_backprojection(operator, y.imag))
    assert image.shape == (3, 20, 24)
    assert relative_gap(image, parts) <= 1e-12
    assert relative_gap(filtered_backprojection(operator, 1e-6 * y[1:2]), 1e-6 * image[1:2]) <= 1e-12


def test_result_is_differentiable() -> None:
    for operator in (
        ParallelBeam((3, 2), turn(3), 4),
        FanBeam((3, 2), turn(3, 360), 4, source_origin=20.0, origin_detector=3.0),
    ):
        y = torch.randn(1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert torch.autograd.gradcheck(
            lambda v, a=operator: filtered_backprojection(a, v),
            (y.requires_grad_(),),
        )


def test_views_stand_for_half_the_way_to_their_neighbours() -> None:
    assert torch.allclose(view_angles(turn(10), math.pi), torch.full((10,), math.pi / 10).double())
    weights = view_angles(torch.tensor([0.0, 0.3, 1.0, 2.0]).double(), math.pi)
    assert torch.allclose(weights, torch.tensor([(math.pi - 2 + 0.3) / 2, 0.5, 0.85, (math.pi - 1) / 2]).double())
    doubled = view_angles(turn(20, 360), math.pi)
    assert float(doubled.sum()) == pytest.approx(math.pi)
    missing = view_angles(torch.linspace(0, 2, 41).double(), math.pi)  # 65 degrees are missing
    assert torch.allclose(missing, torch.full((41,), 0.05).double())


def test_shares_of_a_line_measured_twice_sum_to_one() -> None:
    operator = FanBeam(
        (32, 32), torch.linspace(0, math.pi + 0.8, 500).double(), 51, source_origin=60.0, origin_detector=30.0,
        detector_pitch=0.9, curved=True,
    )  # fmt: skip
    share, gamma = scan_weights(operator), operator.fan_angles
    assert share.min() >= 0
    for d in (0, 10, 25, 50):
        beta = operator.angles[:200]
        opposite = beta + math.pi - 2 * gamma[d]
        seen = opposite <= float(operator.angles[-1])
        place = opposite / float(operator.angles[1])
        low = place.floor().long().clamp(0, 498)
        other = torch.lerp(share[low, 50 - d], share[low + 1, 50 - d], place - low)
        total = share[:200, d] + torch.where(seen, other, 0)
        assert float((total - 1).abs().max()) <= 1e-3


def test_a_scan_too_short_is_warned_of() -> None:
    operator = FanBeam((32, 32), turn(150, 150), 50, source_origin=60.0, origin_detector=30.0)
    with pytest.warns(UserWarning, match="expect artefacts"):
        filtered_backprojection(operator, torch.zeros(1, 150, 50, dtype=torch.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        full = FanBeam((32, 32), turn(100, 360), 50, source_origin=60.0, origin_detector=30.0)
        filtered_backprojection(full, torch.zeros(1, 100, 50, dtype=torch.float64))


def test_wrong_arguments_are_refused() -> None:
    operator = ParallelBeam((8, 8), turn(4).float(), 9)
    y = torch.zeros(1, 4, 9)
    with pytest.raises(TypeError, match="operator must be a ParallelBeam or a FanBeam, got Fourier"):
        filtered_backprojection(Fourier(), y)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="did you mean 'hann'"):
        filtered_backprojection(operator, y, "han")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cutoff must be <= 1"):
        filtered_backprojection(operator, y, cutoff=1.5)
    with pytest.raises(ValueError, match="angle_weights must be"):
        filtered_backprojection(operator, y, angle_weights=torch.ones(3))
    with pytest.raises(TypeError, match="angle_weights must be a torch.Tensor, got list"):
        filtered_backprojection(operator, y, angle_weights=[1.0] * 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="y must be"):
        filtered_backprojection(operator, y[..., :-1])
    with pytest.raises(TypeError, match="float64"):
        filtered_backprojection(operator, y.double())
