"""Patches of images: where they come from, how they are varied, and that they follow from their number."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invreg.training.patches import ImageSet, Patches, Variation, tiles

PLAIN = Variation(flips=False, turns=False, zoom=0.0, gain=0.0, phase=False)


def numbered(*shape: int) -> Tensor:
    """Every pixel with a value of its own."""
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)


def test_a_patch_that_is_not_varied_is_a_square_of_an_image() -> None:
    whole = numbered(2, 9, 7)
    (found,) = Patches(whole, size=4, batch=50, steps=1, variation=PLAIN)[0]
    assert found.shape == (50, 4, 4)
    for one in found:
        n, rest = divmod(int(one[0, 0]), 63)
        y, x = divmod(rest, 7)
        assert torch.equal(one, whole[n, y : y + 4, x : x + 4])
    corners = {int(one[0, 0]) for one in found}
    assert len(corners) > 20
    assert any(corner >= 63 for corner in corners)


def test_flips_and_turns_are_the_eight_symmetries_of_the_square() -> None:
    turned = Variation(zoom=0.0, gain=0.0)
    whole = numbered(1, 3, 3)
    (found,) = Patches(whole, size=3, batch=200, steps=1, variation=turned)[0]
    kinds, counts = found.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 8
    assert int(counts.min()) > 10
    assert set(kinds[0].tolist()) == set(range(9))


def test_batches_follow_from_their_number_alone() -> None:
    whole = torch.randn(3, 20, 20, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    make = partial(Patches, whole, size=8, batch=4, steps=6, variation=Variation(smooth_phase=1.0))
    one, other = make(seed=3), make(seed=3)
    other[0]
    assert torch.equal(one[4][0], other[4][0])
    assert torch.equal(one[-2][0], other[4][0])
    assert not torch.equal(one[4][0], one[3][0])
    assert not torch.equal(one[4][0], make(seed=4)[4][0])
    assert one.settings == other.settings
    assert one.settings != make(seed=4).settings
    assert one.settings["images"] != Patches(whole + 1, size=8).settings["images"]
    with pytest.raises(IndexError, match="index must be within 0 to 5, got 6"):
        one[6]


def test_every_pixel_is_as_likely_whatever_the_size_of_its_image() -> None:
    small, large = torch.zeros(8, 8), torch.ones(24, 24)
    (found,) = Patches([small, large], size=8, batch=2000, steps=1, variation=PLAIN)[0]
    assert float(found.mean()) == pytest.approx(0.9, abs=0.03)


def test_gains_are_within_their_range_and_balanced() -> None:
    (found,) = Patches(torch.ones(1, 8, 8), size=4, batch=500, steps=1, variation=Variation(gain=0.25))[0]
    assert 0.8 - 1e-6 <= float(found.min()) < 0.81
    assert 1.24 < float(found.max()) <= 1.25 + 1e-6
    assert abs(float(found.log().mean())) < 0.02


def test_a_zoom_keeps_constants_and_slopes() -> None:
    ramp = torch.arange(40, dtype=torch.float64).expand(40, 40)
    zoomed = Variation(flips=False, turns=False, zoom=0.5, gain=0.0)
    (found,) = Patches(ramp[None], size=12, batch=100, steps=1, variation=zoomed)[0]
    assert float(found.std(-2).max()) < 1e-9
    slopes = (found[:, 0, 7] - found[:, 0, 4]) / 3  # inside, where borders do not tell
    assert float(((slopes - 1).abs() < 1e-9).double().mean()) == pytest.approx(0.5, abs=0.15)
    assert 0.6 < float(slopes.min()) < 0.75
    assert 1.35 < float(slopes.max()) < 1.55


def test_complex_images_keep_their_magnitude_under_any_phase() -> None:
    whole = torch.polar(torch.full((1, 16, 16), 2.0, dtype=torch.float64), torch.zeros(1, 16, 16, dtype=torch.float64))
    bent = Variation(flips=False, turns=False, zoom=0.0, gain=0.0, smooth_phase=1.0)
    (found,) = Patches(whole, size=16, batch=100, steps=1, variation=bent)[0]
    assert found.dtype == torch.complex128
    torch.testing.assert_close(found.abs(), torch.full_like(found.real, 2.0))
    assert float((found / 2).mean().abs()) < 0.2
    assert float((found[:, 0, 0] / found[:, -1, -1]).angle().abs().max()) > 0.5
    (stiff,) = Patches(whole, size=16, batch=5, steps=1)[0]
    assert float(stiff.angle().std((-2, -1)).max()) < 1e-9
    real = Patches(whole.real, size=16, batch=2, steps=1, variation=Variation(gain=0.0, smooth_phase=1.0))[0][0]
    torch.testing.assert_close(real, torch.full_like(real, 2.0))


def test_channels_are_varied_together() -> None:
    plane = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    (found,) = Patches(torch.stack([plane, 2 * plane])[None], size=8, batch=20, steps=1)[0]
    assert found.shape == (20, 2, 8, 8)
    torch.testing.assert_close(found[:, 1], 2 * found[:, 0])


def test_patches_of_air_are_drawn_anew() -> None:
    half = torch.zeros(1, 8, 40)
    half[..., 20:] = 1
    share = []
    for least in (0.0, 0.3):
        (found,) = Patches(half, size=8, batch=300, steps=1, variation=PLAIN, least=least)[0]
        share.append(float((found == 0).all((1, 2)).float().mean()))
    assert share[0] > 0.3
    assert share[1] == 0
    nothing = Patches(torch.zeros(1, 8, 8), size=8, batch=2, steps=1, least=0.3)
    assert float(nothing[0][0].abs().max()) == 0  # rather than searching for ever


def test_images_are_not_written_into() -> None:
    whole = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(0))
    kept = whole.clone()
    (found,) = Patches(whole, size=12, batch=8, steps=1, variation=PLAIN)[0]
    found.zero_()
    assert torch.equal(whole, kept)


def test_tiles_cover_an_image_evenly() -> None:
    found = tiles([numbered(10, 4), numbered(4, 4)], 4)
    assert found.shape == (4, 4, 4)
    assert found[:, 0, 0].tolist() == [0, 12, 24, 0]
    assert found[2, -1, -1] == 39


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ([], {}, "images must be at least one, got none"),
        ([np.zeros((9, 9))], {}, r"images\[0\] must be a torch.Tensor, got ndarray"),
        (
            torch.zeros(2, 9, 9, dtype=torch.int64),
            {},
            r"images\[0\] must be floating point or complex, got torch.int64",
        ),
        ([torch.zeros(9, 9), torch.zeros(9, 9).double()], {}, "images must be of one dtype"),
        (torch.zeros(9), {}, r"images\[0\] must be \(y, x\) or \(C, y, x\)"),
        ([torch.zeros(9, 9), torch.zeros(1, 9, 9)], {}, r"images\[1\] must be \(y, x\) or"),
        ([torch.zeros(9, 9), torch.zeros(9, 7)], {}, r"images\[1\] must have 8 pixels along both axes, got \(9, 7\)"),
        (torch.full((1, 9, 9), math.nan), {}, r"images\[0\] must be finite"),
        (torch.zeros(1, 9, 9), {"size": 0}, "size must be >= 1, got 0"),
        (torch.zeros(1, 9, 9), {"seed": -1}, "seed must be >= 0"),
        (torch.zeros(1, 9, 9), {"least": -1.0}, "least must be finite and >= 0"),
    ],
)
def test_bad_input_is_named(given: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        Patches(given, **{"size": 8, **options})


def test_bad_variations_are_named() -> None:
    with pytest.raises(ValueError, match="zoom must be finite and >= 0, got -1"):
        Variation(zoom=-1)
    with pytest.raises(TypeError, match="flips must be true or false, got 3"):
        Variation(flips=3)  # type: ignore[arg-type]


def image_set(*counts: int) -> ImageSet:
    files = tuple(k for k, count in enumerate(counts) for _ in range(count))
    return ImageSet(tuple(torch.full((8, 8), float(k)) for k in range(len(files))), files, size=8)


def test_whole_files_are_held_out_where_there_are_enough() -> None:
    kept, held_out = image_set(2, 2, 2, 2).split(0.5, seed=0)
    assert held_out is not None
    assert len(kept) == len(held_out) == 4
    out = {int(one[0, 0]) for one in held_out.tensors[0]}
    assert all((2 * k in out) == (2 * k + 1 in out) for k in range(4))
    assert out | {int(one[0, 0]) for one in kept.images} == set(range(8))
    assert kept.info["held out"] == 4


def test_of_one_file_the_last_slices_are_held_out() -> None:
    kept, held_out = image_set(10).split(0.2, seed=0)
    assert held_out is not None
    assert held_out.tensors[0][:, 0, 0].tolist() == [8, 9]
    assert len(kept) == 8
    assert image_set(10).split(0.0, seed=0)[1] is None
    with pytest.raises(ValueError, match=r"fraction must be within \[0, 1\), got 1"):
        image_set(10).split(1.0, seed=0)


def test_sigma_data_is_the_root_mean_square_of_real_components() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 64, 64, dtype=torch.complex64, generator=generator)  # variance 1/2 a component
    found = ImageSet(tuple(noise), (0,) * 4, variation=Variation(zoom=0.0, gain=0.0)).constants["sigma_data"]
    assert found == pytest.approx(math.sqrt(0.5), rel=0.02)
