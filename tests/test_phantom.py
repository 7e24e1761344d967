"""The ellipse phantoms: image, sinograms and k-space agree with each other and with textbook answers."""

import math

import pytest
import torch

from invreg.operators import centred_ifft
from invreg.phantom import Ellipse, fan_sinogram, kspace, parallel_sinogram, rasterise, ray_integrals, shepp_logan
from invreg.testing import relative_gap


def test_shepp_logan_has_the_published_values() -> None:
    n = 256
    image = rasterise(shepp_logan(n), (n, n), dtype=torch.float64)

    def at(x: float, y_up: float) -> float:
        return float(image[round((1 - y_up) * n / 2 - 0.5), round((1 + x) * n / 2 - 0.5)])

    assert at(0, -0.9) == pytest.approx(1.0)  # skull
    assert at(0, 0.75) == pytest.approx(0.2)  # brain
    assert at(0.22, 0) == pytest.approx(0.0, abs=1e-12)  # right ventricle
    assert at(-0.22, 0) == pytest.approx(0.0, abs=1e-12)  # left ventricle
    assert at(0, 0.35) == pytest.approx(0.3)  # large tumour, in the upper half
    assert at(0.95, 0.95) == 0
    # the ventricles lean apart towards the top: the right one's upper tip is further right
    assert at(0.30, 0.25) == pytest.approx(0.0, abs=1e-12)
    assert at(0.30, -0.25) == pytest.approx(0.2)


@pytest.mark.parametrize("shape", [(64, 64), (63, 80)])
def test_rasterised_ellipses_keep_their_mass_and_centre(shape: tuple[int, int]) -> None:
    ellipse = Ellipse(2.0, (9.0, 5.0), (3.3, -4.1), 0.7)
    image = rasterise([ellipse], shape, 0.8, dtype=torch.float64)
    y, x = ((torch.arange(n).double() - (n - 1) / 2) * 0.8 for n in shape)
    mass = float(image.sum()) * 0.8**2
    assert mass == pytest.approx(2 * math.pi * 45, rel=1e-3)
    assert float((image.sum(0) * x).sum() / image.sum()) == pytest.approx(3.3, abs=5e-3)
    assert float((image.sum(1) * y).sum() / image.sum()) == pytest.approx(-4.1, abs=5e-3)
    covariance = float((image * y[:, None] * x[None]).sum() / image.sum() + 3.3 * 4.1)
    assert covariance == pytest.approx((81 - 25) / 4 * math.sin(0.7) * math.cos(0.7), rel=2e-2)


def test_an_ellipse_beyond_the_image_is_clipped() -> None:
    image = rasterise([Ellipse(1.0, (4.0, 4.0), (10.0, 0.0)), Ellipse(1.0, (1.0, 1.0), (99.0, 0.0))], (16, 16))
    assert image[:, -1].max() == 1
    assert image[:, :12].max() == 0


def test_parallel_sinogram_of_a_disk_is_its_chord() -> None:
    angles, offsets = torch.linspace(0, 3, 5).double(), torch.linspace(-12, 12, 49).double()
    sinogram = parallel_sinogram([Ellipse(0.5, (4.0, 4.0), (3.0, -2.0))], angles, offsets)
    distance = offsets[None] - 3 * angles.cos()[:, None] + 2 * angles.sin()[:, None]
    assert torch.allclose(sinogram, (16 - distance**2).clamp_min(0).sqrt(), atol=1e-12)


def test_every_view_of_a_sinogram_holds_the_mass() -> None:
    offsets = torch.linspace(-1, 1, 20001).double()
    views = parallel_sinogram(shepp_logan(), torch.linspace(0, 6, 7).double(), offsets).sum(1) * 1e-4
    mass = sum(complex(e.value).real * math.pi * e.semi_axes[0] * e.semi_axes[1] for e in shepp_logan())
    assert torch.allclose(views, torch.full_like(views, mass), rtol=1e-5)


@pytest.mark.parametrize("curved", [False, True])
def test_fan_sinogram_is_the_chord_from_source_to_detector(curved: bool) -> None:
    ellipse = Ellipse(1.5, (4.0, 2.0), (1.0, 2.5), 0.6)
    angles, offsets = torch.linspace(0, 6, 9).double(), torch.linspace(-9, 9, 19).double()
    sinogram = fan_sinogram([ellipse], angles, offsets, 12.0, 6.0, curved)
    # the chord of the ray source + t (detector - source) from the quadratic equation of the ellipse
    along = torch.stack([angles.cos(), angles.sin()], -1)[:, None]
    central = torch.stack([-angles.sin(), angles.cos()], -1)[:, None]
    u = offsets[None, :, None]
    source = -12 * central
    detector = source + 18 * ((u / 18).cos() * central + (u / 18).sin() * along) if curved else 6 * central + u * along
    c, s = math.cos(0.6), math.sin(0.6)
    frame = torch.tensor([[c / 4, s / 4], [-s / 2, c / 2]]).double()
    p = (source - torch.tensor([1.0, 2.5]).double()) @ frame.T
    direction = detector - source
    d = direction @ frame.T
    a, b, k = (d * d).sum(-1), (p * d).sum(-1), (p * p).sum(-1) - 1
    chord = 2 * (b * b - a * k).clamp_min(0).sqrt() / a * direction.norm(dim=-1)
    assert torch.allclose(sinogram, 1.5 * chord, atol=1e-6)


@pytest.mark.parametrize("shape", [(32, 32), (33, 32), (31, 45)])
def test_kspace_is_the_fft_of_the_finely_rasterised_phantom(shape: tuple[int, int]) -> None:
    fine, pixel = 15, 1.7
    phantom = [*shepp_logan(40.0), Ellipse(0.3 - 0.4j, (6.0, 3.0), (8.0, -5.0), 0.9)]
    image = rasterise(phantom, (shape[0] * fine, shape[1] * fine), pixel / fine, 4, torch.complex128)

    def transform(n: int) -> torch.Tensor:
        position = (torch.arange(n * fine).double() - (n * fine - 1) / 2) / fine - (n // 2 - (n - 1) / 2)
        phase = -2 * math.pi / n * (torch.arange(n).double() - n // 2)[:, None] * position
        return torch.polar(torch.ones_like(phase), phase)

    wanted = transform(shape[0]) @ image @ transform(shape[1]).T / (fine**2 * math.sqrt(shape[0] * shape[1]))
    assert relative_gap(kspace(phantom, shape, pixel), wanted) <= 3e-3


@pytest.mark.parametrize("shape", [(64, 64), (65, 63)])
def test_inverse_fft_of_kspace_lies_on_the_pixels_of_the_raster(shape: tuple[int, int]) -> None:
    phantom = [Ellipse(1.0, (15.0, 20.0), (4.0, -3.0), 0.3)]
    image = rasterise(phantom, shape, dtype=torch.float64)
    found = centred_ifft(kspace(phantom, shape)).real
    y, x = ((torch.arange(n).double() - (n - 1) / 2) for n in shape)
    assert float((found.sum(0) * x).sum() / found.sum()) == pytest.approx(4, abs=0.05)
    assert float((found.sum(1) * y).sum() / found.sum()) == pytest.approx(-3, abs=0.05)
    assert relative_gap(found, image) < 0.12
    shifted = min(relative_gap(found, image.roll(step, axis)) for step in (-1, 1) for axis in (0, 1))
    assert relative_gap(found, image) < 0.6 * shifted


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="semi_axes must be"):
        Ellipse(1.0, (0.0, 1.0))
    with pytest.raises(ValueError, match=r"shape must be \(Ny, Nx\)"):
        rasterise(shepp_logan(), (4, 4, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pixel_size must be"):
        rasterise(shepp_logan(), (4, 4), -1.0)
    with pytest.raises(ValueError, match="field_of_view must be"):
        shepp_logan(0.0)
    with pytest.raises(TypeError, match="must be real for line integrals"):
        ray_integrals([Ellipse(1j, (1.0, 1.0))], torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="source_origin must be"):
        fan_sinogram(shepp_logan(), torch.zeros(1), torch.zeros(1), 0.0)
