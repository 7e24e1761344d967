"""Random images: the same for the same number, within their range, and of the brains they are cut from."""

from functools import partial

import pytest
import torch
from torch import Tensor

from invreg.training.random_contrast import magnetic_resonance
from invreg.training.random_ct import computed_tomography
from invreg.training.random_images import Anatomy, Paint, RandomImages, phantom, smooth_field


def ball(radius: float, n: int = 40) -> Tensor:
    at = torch.arange(n) - n / 2 + 0.5
    z, y, x = torch.meshgrid(at, at, at, indexing="ij")
    return (z.square() + y.square() + x.square() < radius**2).float()


def brain() -> Anatomy:
    """A ball of white matter in one of grey matter, in fluid."""
    whole, grey, white = ball(14), ball(12) - ball(8), ball(8)
    return Anatomy.of(0.2 * whole + 0.3 * grey + 0.8 * white, grey, white, 2.0)


def test_an_anatomy_knows_its_fluid_and_its_distance() -> None:
    volume = brain().volume
    assert volume.shape == (5, 40, 40, 40)
    torch.testing.assert_close(volume[1:4].sum(0), ball(14))
    centre, corner = volume[:, 20, 20, 20], volume[:, 20, 20, 0]
    assert centre[4] == 0
    assert 5 / 32 <= corner[4] <= 7 / 32  # 19.5 from the centre, the ball ends at 14


@pytest.mark.parametrize("paint", [magnetic_resonance, computed_tomography])
def test_batches_follow_from_their_number_alone(paint: Paint) -> None:
    make = partial(RandomImages, [brain()], size=24, batch=3, steps=5, paint=paint)
    one, other = make(seed=4), make(seed=4)
    torch.testing.assert_close(one[3][0], other[3][0], rtol=0, atol=0)
    assert not torch.equal(one[3][0], one[2][0])
    assert not torch.equal(one[3][0], make(seed=5)[3][0])
    torch.testing.assert_close(one[-1][0], one[4][0], rtol=0, atol=0)
    assert one.settings == other.settings != make(seed=5).settings
    with pytest.raises(IndexError, match="index must be within 0 to 4, got 5"):
        one[5]


def test_magnetic_resonance_is_complex_and_about_one() -> None:
    (images,) = RandomImages([brain()], size=32, batch=40, steps=1, paint=magnetic_resonance)[0]
    assert images.shape == (40, 32, 32)
    assert images.dtype == torch.complex64
    assert 0.5 < float(images.abs().flatten(1).amax(1).median()) < 1.3
    assert float(images.abs().max()) < 4
    angles = torch.angle(images.flatten(1).sum(1))  # of whole images: any is as likely as any other
    assert float(torch.polar(torch.ones_like(angles), angles).mean().abs()) < 0.4


def test_computed_tomography_is_air_water_and_bone() -> None:
    (images,) = RandomImages([brain()], size=32, batch=40, steps=1, paint=computed_tomography, phantoms=0.0)[0]
    assert images.dtype == torch.float32
    assert float(images.min()) >= 0
    assert 1.5 < float(images.max()) < 4
    assert float(((images > 0.98) & (images < 1.1)).float().mean()) > 0.05
    assert float((images < 0.05).float().mean()) > 0.01


def test_without_anatomies_all_are_phantoms() -> None:
    (images,) = RandomImages([], size=16, batch=4, steps=1, paint=magnetic_resonance)[0]
    assert bool(images.isfinite().all())
    assert float(images.abs().amax((1, 2)).min()) > 0


def test_smooth_fields_have_unit_variance_and_their_scale() -> None:
    g = torch.Generator().manual_seed(0)
    fields = torch.stack([smooth_field(64, g, 8.0) for _ in range(200)])
    assert 0.95 < float(fields.square().mean()) < 1.05
    near = (fields[..., :-1] * fields[..., 1:]).mean()
    far = (fields[..., :-32] * fields[..., 32:]).mean()
    assert near > 0.95
    assert abs(float(far)) < 0.05


def test_phantoms_are_finite_and_not_negative() -> None:
    g = torch.Generator().manual_seed(0)
    images = torch.stack([phantom(32, g) for _ in range(20)])
    assert bool(images.isfinite().all())
    assert float(images.min()) >= 0


def test_bad_input_is_named() -> None:
    make = partial(RandomImages, [brain()], paint=magnetic_resonance)
    with pytest.raises(ValueError, match="phantoms must be from 0 to 1, got 2"):
        make(phantoms=2)
    with pytest.raises(ValueError, match=r"pixel must be two sizes > 0 that do not fall, got \(2, 1\)"):
        make(pixel=(2, 1))
    with pytest.raises(ValueError, match="grey must be"):
        Anatomy.of(ball(3), ball(3, 20), ball(3), 1.0)
