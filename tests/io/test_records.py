"""The records and their checks."""

import pickle
from typing import Any

import pytest
import torch

from invreg.io import Image, KSpace, Sinogram, centre_crop
from invreg.io.records import fields_from_json, sampled, to_json

K = torch.ones(2, 3, 4, 5, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"data": K.real}, TypeError, "complex k-space"),
        ({"data": K[0]}, ValueError, r"\(B, coil, \[z,\] y, x\)"),
        ({"data": K[:0]}, ValueError, "not be empty"),
        ({"data": K * torch.nan}, ValueError, "finite"),
        ({"mask": torch.ones(5)}, TypeError, "mask must be bool"),
        ({"mask": torch.ones(5, dtype=torch.bool)}, ValueError, "broadcast"),
        ({"mask": torch.zeros(1, 1, 1, 5, dtype=torch.bool)}, ValueError, "samples nothing"),
        ({"mask": torch.arange(5).view(1, 1, 1, 5) > 1}, ValueError, "multiply it by the mask"),
        ({"maps": K[:, :2]}, ValueError, "maps must be"),
        ({"maps": K.to(torch.complex128)}, TypeError, r"use maps\.to\(torch\.complex64\)"),
        ({"calibration": K[..., :2]}, ValueError, "calibration must be"),
        ({"noise_covariance": torch.eye(2)}, ValueError, r"\(3, 3\)"),
        ({"noise_sigma": 0.0}, ValueError, "> 0"),
        ({"noise_sigma": torch.zeros(1, 1, 4, 1)}, ValueError, "> 0"),
        ({"noise_sigma": torch.ones(4)}, ValueError, "broadcast"),
        ({"voxel_size": (1.0, 2.0, 3.0)}, ValueError, "2 entries"),
        ({"voxel_size": (1.0, 0.0)}, ValueError, "> 0"),
        ({"affine": torch.eye(3)}, ValueError, r"\(4, 4\)"),
        ({"affine": torch.zeros(4, 4)}, ValueError, "invertible"),
        ({"affine": torch.eye(4), "voxel_size": (1.0, 2.0)}, ValueError, "steps of the affine"),
        ({"crop": (5, 5)}, ValueError, "within"),
        ({"crop": (5,)}, ValueError, "within"),
        ({"slices": 3}, ValueError, "divide"),
        ({"slices": 0}, ValueError, ">= 1"),
    ],
)
def test_k_space_that_does_not_fit_is_refused(fields: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        KSpace(**({"data": K} | fields))


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"data": K[:, 0]}, TypeError, "real"),
        ({"data": torch.ones(3, 4)}, ValueError, r"\(B, angles, detectors\)"),
        ({"angles": torch.ones(2)}, ValueError, r"angles must be \(3,\)"),
        ({"angles": torch.full((3,), torch.inf)}, ValueError, "finite"),
        ({"detector_pitch": -1.0}, ValueError, "> 0"),
        ({"counts": torch.ones(3, 4)}, ValueError, "counts must be"),
        ({"photons": 0.0}, ValueError, "> 0"),
        ({"photons": torch.ones(4)}, ValueError, "broadcast"),
    ],
)
def test_a_sinogram_that_does_not_fit_is_refused(fields: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Sinogram(**({"data": torch.ones(2, 3, 4), "angles": torch.arange(3.0)} | fields))


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"data": torch.ones(2, 3, 4, dtype=torch.int32)}, TypeError, "floating point"),
        ({"data": torch.ones(3, 4)}, ValueError, r"\(B, \[z,\] y, x\)"),
        ({"units": "hu"}, ValueError, "units must be one of"),
        ({"data": torch.ones(2, 3, 4, 5), "slices": 2}, ValueError, "2D"),
    ],
)
def test_an_image_that_does_not_fit_is_refused(fields: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Image(**({"data": torch.ones(2, 3, 4)} | fields))


@pytest.mark.parametrize(("full", "n"), [((6, 7), (4, 4)), ((5, 8), (4, 5)), ((4, 4), (4, 4))])
def test_a_crop_keeps_the_voxel_of_frequency_zero_in_the_middle(full: tuple[int, int], n: tuple[int, int]) -> None:
    x = torch.zeros(1, *full)
    x[0, full[0] // 2, full[1] // 2] = 1
    assert centre_crop(x, n)[0, n[0] // 2, n[1] // 2] == 1
    with pytest.raises(ValueError, match="within"):
        centre_crop(x, (full[0] + 1, 1))


def test_cropping_keeps_every_voxel_at_its_place_in_the_world() -> None:
    affine = torch.tensor([[0, -2.0, 0, 5], [3.0, 0, 0, 6], [0, 0, 4.0, 7], [0, 0, 0, 1]], dtype=torch.float64)
    scan = KSpace(
        torch.ones(2, 1, 7, 8, dtype=torch.complex64), voxel_size=(2.0, 3.0), affine=affine, crop=(4, 5), slices=2
    )
    x = torch.zeros(2, 7, 8)
    x[1, 3, 4] = 1
    image = scan.image(x, "arbitrary")
    b, y, w = torch.nonzero(image.data)[0].tolist()
    assert (b, y, w) == (1, 2, 2)
    assert image.affine is not None
    assert torch.equal(
        image.affine @ torch.tensor([w, y, b, 1.0]).double(), affine @ torch.tensor([4, 3, 1, 1.0]).double()
    )
    assert image.slices == 2
    with pytest.raises(ValueError, match=r"x must be \(B, 7, 8\)"):
        scan.image(x[:, 1:])


def test_magnitude_and_reading_an_image_as_k_space() -> None:
    image = Image(torch.tensor([[[3 + 4j, 0], [0, 0]]]), voxel_size=(1.0, 2.0))
    assert image.abs().data.tolist() == [[[5, 0], [0, 0]]]
    real = Image(-torch.ones(1, 2, 2), "HU")
    assert real.abs() is real
    scan = image.as_kspace()
    assert scan.mask is not None
    assert scan.mask[0, 0].tolist() == [[True, False], [False, False]]
    with pytest.raises(TypeError, match="k-space is complex"):
        real.as_kspace()
    assert sampled(K) is None


def test_the_detector_offset_is_counted_from_the_axis() -> None:
    sinogram = Sinogram(torch.ones(1, 2, 10), torch.arange(2.0), 0.5, 6.0)
    assert sinogram.detector_offset == pytest.approx((4.5 - 6) * 0.5)


def test_records_can_be_pickled() -> None:
    back = pickle.loads(pickle.dumps(KSpace(K, meta={"a": 1})))
    assert torch.equal(back.data, K)
    assert back.meta == {"a": 1}


@pytest.mark.parametrize("meta", [{"a": object()}, {"a": float("nan")}, {"a": {1, 2}}])
def test_meta_that_is_not_plain_is_refused_when_written(meta: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="plain finite values"):
        to_json(Image(torch.ones(1, 2, 2), meta=meta))


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"invreg": 1, "kind": "x"}', '{"invreg": 1, "kind": "Image", "meta": 3}', "x"]
)
def test_text_that_is_no_header_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        fields_from_json(text)
