"""Denoisers in other units, by slices and by tiles, give what the denoiser itself gives where that is known."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invreg.interfaces import Denoiser
from invreg.models.adapted import Calibrated, Slices, Tiles, calibration
from invreg.models.oracles import GaussianOracle, StationaryOracle
from invreg.models.pretrained import from_pretrained, save_pretrained
from invreg.random import draw
from invreg.testing import relative_gap

F64, C128 = torch.float64, torch.complex128


class Local(Denoiser):
    """A convolution of reach 2 that depends on sigma, and remembers how many images it saw at once."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
        self.seen: list[int] = []

    @property
    def config(self) -> Mapping[str, object]:
        return {}

    @property
    def sigma_range(self) -> tuple[float, float]:
        return 0.1, 10.0

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.seen.append(len(x))
        level = torch.as_tensor(sigma, dtype=x.real.dtype).reshape(-1, 1, 1, 1)
        parts = (x.real, x.imag) if x.is_complex() else (x,)
        found = [nn.functional.conv2d(p[:, None], self.kernel.to(p.dtype), padding=2) / (1 + level) for p in parts]
        return (torch.complex(*found) if x.is_complex() else found[0])[:, 0]


def images(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return draw(torch.zeros(shape, dtype=dtype), torch.Generator().manual_seed(1))


def gaussian(dtype: torch.dtype = F64, scale: float = 1.0, offset: float = 0.0) -> GaussianOracle:
    root = draw(torch.zeros(1, 4, 4, dtype=dtype), torch.Generator().manual_seed(2))[0]
    mean = draw(torch.zeros(1, 2, 2, dtype=dtype), torch.Generator().manual_seed(3))[0]
    return GaussianOracle(scale * mean + offset, scale**2 * root @ root.mH)


@pytest.mark.parametrize("dtype", [F64, C128], ids=str)
def test_a_calibrated_oracle_is_the_oracle_of_the_calibrated_prior(dtype: torch.dtype) -> None:
    x = images(3, 2, 2, dtype=dtype)
    made, wanted = Calibrated(gaussian(dtype), 1000.0, -200.0), gaussian(dtype, 1000.0, -200.0)
    for sigma in (30.0, torch.tensor(400.0, dtype=F64), torch.tensor([1.0, 50.0, 2000.0], dtype=F64)):
        assert relative_gap(made(1000 * x, sigma), wanted(1000 * x, sigma)) < 1e-12


def test_each_sample_may_have_its_own_scale_and_offset() -> None:
    x, scales, offsets = images(3, 2, 2), [0.5, 2.0, 30.0], [1.0, 0.0, -4.0]
    made = Calibrated(gaussian(), torch.tensor(scales, dtype=F64), torch.tensor(offsets, dtype=F64))
    for sigma in (torch.tensor(0.7, dtype=F64), torch.tensor([0.1, 1.0, 9.0], dtype=F64)):
        levels = sigma.expand(3)
        wanted = torch.cat([gaussian(F64, scales[i], offsets[i])(x[i : i + 1], levels[i]) for i in range(3)])
        assert relative_gap(made(x, sigma), wanted) < 1e-12


def test_a_calibrated_range_of_noise_suits_every_sample() -> None:
    assert Calibrated(Local(), 100.0).sigma_range == (10.0, 1000.0)
    assert Calibrated(Local(), torch.tensor([1.0, 4.0])).sigma_range == pytest.approx((0.4, 10.0))
    assert Calibrated(gaussian(), 3.0).sigma_range == (0.0, float("inf"))
    assert Slices(Local()).sigma_range == Tiles(Local(), 8, 2).sigma_range == (0.1, 10.0)


def test_calibration_scales_with_the_image_and_hardly_sees_a_few_bright_pixels() -> None:
    x = torch.rand(2, 100, 100, generator=torch.Generator().manual_seed(0), dtype=F64)
    found = calibration(x)
    assert torch.allclose(found, torch.full((2,), 0.99, dtype=F64), atol=5e-3)
    assert torch.allclose(calibration(700 * x * torch.exp(torch.tensor(1j)), reference=2.0), 350 * found)
    bright = x.clone()
    bright[:, :3, :3] = 1e6
    assert torch.allclose(calibration(bright), found, rtol=2e-3)
    assert calibration(x, quantile=1.0).tolist() == x.flatten(1).amax(1).tolist()


def test_calibration_undoes_the_units_of_the_image() -> None:
    oracle = StationaryOracle(torch.full((64, 64), 0.04, dtype=F64))
    x = oracle.sample(4, torch.Generator().manual_seed(0))
    reference = float(calibration(oracle.sample(50, torch.Generator().manual_seed(1))[None].flatten(1, 2))[0])
    made = Calibrated(oracle, calibration(1e3 * x, reference=reference))
    gap = relative_gap(made(1e3 * x, 100.0), 1e3 * oracle(x, 0.1))
    assert gap < 0.02


@pytest.mark.parametrize("axis", [-3, -2, -1, 1, 2, 3])
@pytest.mark.parametrize("batch", [None, 1, 4])
def test_slices_are_denoised_one_by_one(axis: int, batch: int | None) -> None:
    inner, x = Local(), images(2, 3, 4, 5)
    sigma = torch.tensor([0.2, 3.0], dtype=F64)
    wanted = torch.stack([Local()(one, sigma) for one in x.unbind(axis)], axis)
    assert torch.allclose(Slices(inner, axis, batch)(x, sigma), wanted, rtol=0, atol=1e-13)
    assert max(inner.seen) <= (batch or 10)
    same = torch.stack([Local()(one, 0.5) for one in x.unbind(axis)], axis)
    assert torch.allclose(Slices(inner, axis, batch)(x, 0.5), same, rtol=0, atol=1e-13)


def test_complex_volumes_with_a_scale_of_each_sample_go_slice_by_slice() -> None:
    x = images(2, 3, 4, 4, dtype=C128)
    made = Calibrated(Slices(Local()), torch.tensor([2.0, 5.0], dtype=F64))
    wanted = torch.cat([Calibrated(Slices(Local()), s)(x[i : i + 1], 0.5) for i, s in enumerate((2.0, 5.0))])
    assert relative_gap(made(x, 0.5), wanted) < 1e-14


@pytest.mark.parametrize("shape", [(2, 30, 41), (1, 16, 16), (2, 9, 50), (1, 17, 23)])
@pytest.mark.parametrize("batch", [1, 3])
def test_tiles_with_a_margin_of_the_reach_are_the_whole_image(shape: tuple[int, ...], batch: int) -> None:
    x, sigma = images(*shape), torch.linspace(0.2, 2.0, shape[0], dtype=F64)
    made = Tiles(Local(), 16, 7, margin=2, batch=batch)
    assert torch.allclose(made(x, sigma), Local()(x, sigma), rtol=0, atol=1e-12)
    assert torch.allclose(made(x, 0.5), Local()(x, 0.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "overlap", "margin"), [(8, 0, 0), (8, 1, 0), (8, 3, 1), (8, 7, 3), ((5, 9), 4, 0)])
def test_weights_of_tiles_sum_to_one_whatever_the_overlap(
    size: int | tuple[int, int], overlap: int, margin: int
) -> None:
    class Same(Denoiser):
        def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            return x

    for dtype in (F64, C128):
        x = images(2, 3, 21, 34, dtype=dtype)
        assert torch.allclose(Tiles(Same(), size, overlap, margin=margin)(x, 1.0), x, rtol=0, atol=1e-13)


def test_tiles_blend_without_a_step() -> None:
    class Level(Denoiser):
        """A different constant for every tile: the worst seam there is."""

        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            self.count += 1
            return torch.full_like(x, float(self.count % 2))

    found = Tiles(Level(), 32, 16)(torch.zeros(1, 1, 128, dtype=F64), 1.0)[0, 0]
    assert found.amin() < 0.01 and found.amax() > 0.99
    assert found.diff().abs().amax() < 1.6 / 16  # the slope of sin^2 is at most pi / 2 of its length's inverse


def test_tiles_of_volumes_have_three_axes() -> None:
    class Mean(Denoiser):
        def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            assert x.shape[-3:] == (4, 5, 6)
            return 2 * x

    x = images(1, 7, 11, 6)
    assert torch.allclose(Tiles(Mean(), (4, 5, 6), 2)(x, 1.0), 2 * x)


@pytest.mark.parametrize("make", [lambda d: Calibrated(d, 3.0, 1.0), Slices, lambda d: Tiles(d, 8, 3, margin=1)])
def test_gradients_pass_and_arguments_stay_as_they_were(make: Callable[[Denoiser], Denoiser]) -> None:
    x = images(1, 2, 9, 9).requires_grad_()
    x = x[:, 0] if not isinstance(make(Local()), Slices) else x
    before = x.detach().clone()
    (gradient,) = torch.autograd.grad(make(Local())(x, 0.5).square().sum(), x)
    assert bool(gradient.isfinite().all()) and float(gradient.abs().sum()) > 0
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize("make", [lambda d: Calibrated(d, 3.0, 1.0), Slices, lambda d: Tiles(d, 8, 3, margin=1)])
def test_a_folder_holds_them(make: Callable[[Denoiser], Denoiser], tmp_path: Path) -> None:
    classes: dict[str, type[Any]] = {"local": Local, "calibrated": Calibrated, "slices": Slices, "tiles": Tiles}
    made = make(Local())
    save_pretrained(made, tmp_path / "m", classes)
    found = from_pretrained(tmp_path / "m", classes)
    x = images(1, 3, 9, 9) if isinstance(made, Slices) else images(1, 9, 9)
    assert torch.equal(found(x, 0.5), made(x, 0.5))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Calibrated(nn.Identity(), 1.0), TypeError, "denoiser must be a Denoiser, got Identity"),
        (lambda: Calibrated(Local(), 0.0), ValueError, "scale must be finite and > 0"),
        (lambda: Calibrated(Local(), torch.tensor([1.0, -1.0])), ValueError, "scale must be finite and > 0 for every"),
        (lambda: Calibrated(Local(), torch.ones(1, 1)), TypeError, r"scale must be real and \(\) or \(B,\)"),
        (lambda: Calibrated(Local(), torch.tensor([1.0, 1e3])), ValueError, "noise levels that suit every sample"),
        (lambda: Calibrated(Local(), 1.0, "0"), TypeError, "offset must be a number"),
        (lambda: Calibrated(Local(), 1.0, 1j)(images(1, 4, 4), 1.0), TypeError, "offset must be real for real"),
        (lambda: Calibrated(Local(), torch.ones(2))(images(3, 4, 4), 1.0), ValueError, "around Slices or Tiles"),
        (lambda: Calibrated(Local(), torch.ones(2)).config, TypeError, "cannot be saved; use numbers"),
        (lambda: calibration(images(1, 4), quantile=99.0), ValueError, "quantile must be within 0 and 1"),
        (lambda: calibration(torch.zeros(1, 4)), ValueError, "entries other than 0"),
        (lambda: calibration(torch.full((1, 4), torch.nan)), ValueError, "x must be finite"),
        (lambda: calibration(torch.ones(1, 4).int()), ValueError, "x must be floating point"),
        (lambda: Slices(Local(), 0), ValueError, "axis must not be 0"),
        (lambda: Slices(Local(), 1.0), TypeError, "axis must be an int"),
        (lambda: Slices(Local(), -3, 0), ValueError, "batch must be >= 1"),
        (lambda: Slices(Local())(images(2, 4, 4), 1.0), ValueError, "x must have an axis -3 besides its batch"),
        (lambda: Slices(Local())(images(2, 3, 4, 4), torch.ones(6)), ValueError, r"sigma must be \(\) or \(2,\)"),
        (lambda: Tiles(Local(), 8, 8), ValueError, "overlap must be < size, got 8 and 8"),
        (lambda: Tiles(Local(), 8, 4, margin=2), ValueError, "margin must be < overlap / 2 = 2, got 2"),
        (lambda: Tiles(Local(), 8, -1), ValueError, "overlap must be >= 0"),
        (lambda: Tiles(Local(), 8, 2)(images(1, 4), 1.0), ValueError, "a batch and 2 axes or more"),
    ],
)
def test_bad_input_is_named(make: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()
