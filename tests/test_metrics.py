"""Image quality: against skimage's definitions, closed forms, and each refusal."""

import math

import numpy as np
import pytest
import torch

from invreg.metrics import hu_window, nrmse, psnr, rmse_hu, ssim


def pair(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.rand(shape, generator=generator, dtype=torch.float64)
    return reference + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64), reference


def test_metrics_agree_with_skimage_slice_by_slice() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    x, reference = pair(3, 40, 31)
    for k in range(3):
        a, b = x[k].numpy(), reference[k].numpy()
        peak = b.max()
        assert float(psnr(x, reference)[k]) == pytest.approx(metrics.peak_signal_noise_ratio(b, a, data_range=peak))
        wanted = metrics.structural_similarity(b, a, win_size=7, data_range=peak)
        assert float(ssim(x, reference)[k]) == pytest.approx(wanted, abs=1e-12)
        assert float(nrmse(x, reference)[k]) == pytest.approx(metrics.normalized_root_mse(b, a))


def test_ssim_of_a_volume_averages_slices_with_the_range_of_the_volume_as_fastmri() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    x, reference = pair(4, 20, 24)
    reference[2] *= 3
    x[2] *= 3
    wanted = np.mean(
        [
            metrics.structural_similarity(reference[k].numpy(), x[k].numpy(), data_range=float(reference.max()))
            for k in range(4)
        ]
    )
    assert float(ssim(x[None], reference[None])) == pytest.approx(float(wanted), abs=1e-12)
    assert float(psnr(x[None], reference[None])) == pytest.approx(
        metrics.peak_signal_noise_ratio(reference.numpy(), x.numpy(), data_range=float(reference.max()))
    )


def test_complex_images_are_compared_by_magnitude() -> None:
    x, reference = pair(2, 16, 16)
    phase = torch.exp(1j * torch.linspace(0, 3, 16, dtype=torch.float64))
    for metric in (psnr, ssim, nrmse):
        torch.testing.assert_close(metric(x * phase, reference * phase.conj()), metric(x.abs(), reference))


def test_known_offset_gives_the_known_numbers() -> None:
    reference = torch.full((1, 8, 8), 2.0)
    x = reference + 0.2
    assert float(psnr(x, reference)) == pytest.approx(20.0, abs=1e-5)
    assert float(nrmse(x, reference)) == pytest.approx(0.1, rel=1e-6)
    assert float(rmse_hu(x, reference)) == pytest.approx(0.2, rel=1e-6)
    assert math.isinf(float(psnr(reference, reference)))
    assert float(ssim(reference, reference)) == pytest.approx(1.0)


def test_mask_leaves_out_what_it_hides() -> None:
    x, reference = pair(1, 24, 24)
    mask = torch.zeros(1, 24, 24, dtype=torch.bool)
    mask[:, 6:18, 6:18] = True
    spoiled = torch.where(mask, x, 99.0)
    cut = (slice(None), slice(6, 18), slice(6, 18))
    peak = float(reference.max())
    assert float(psnr(spoiled, reference, mask=mask)) == pytest.approx(
        float(psnr(x[cut], reference[cut], data_range=peak))
    )
    assert float(nrmse(spoiled, reference, mask=mask)) == pytest.approx(float(nrmse(x[cut], reference[cut])))
    inner = torch.zeros_like(mask)
    inner[:, 9:15, 9:15] = True  # windows of 7 around these stay within the unspoiled part
    assert float(ssim(spoiled, reference, mask=inner)) == pytest.approx(
        float(ssim(x[cut], reference[cut], data_range=peak))
    )


def test_ssim_of_a_large_offset_keeps_its_digits_in_single_precision_input() -> None:
    x, reference = pair(1, 20, 20)
    want = ssim(x + 1000, reference + 1000, data_range=1.0)
    got = ssim((x + 1000).float(), (reference + 1000).float(), data_range=1.0)
    torch.testing.assert_close(got, want, atol=1e-3, rtol=0)


def test_hounsfield_window_clips_and_scales() -> None:
    hu = torch.tensor([[[-1000.0, -160.0, 40.0, 240.0, 3000.0]]])
    torch.testing.assert_close(hu_window(hu), torch.tensor([[[0.0, 0.0, 0.5, 1.0, 1.0]]]))
    assert float(rmse_hu(hu, hu + 10_000, window=(40, 400))) == pytest.approx(math.sqrt((2 * 400**2 + 200**2) / 5))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor"),
        ({"x": torch.ones(1, 9, 8)}, ValueError, "x must have the shape of reference"),
        ({"x": torch.ones(9, 9), "reference": torch.ones(9, 9)}, ValueError, "add a batch axis"),
        ({"x": torch.full((1, 9, 9), torch.nan)}, ValueError, "x must be finite"),
        ({"mask": torch.zeros(1, 9, 9, dtype=torch.bool)}, ValueError, "mask must select at least one pixel"),
        ({"mask": torch.ones(1, 9, 9)}, TypeError, "mask must be bool"),
        ({"mask": torch.ones(1, 7, 9, dtype=torch.bool)}, ValueError, "mask must broadcast"),
        ({"reference": torch.zeros(1, 9, 9)}, ValueError, "give data_range"),
        ({"data_range": 0.0}, ValueError, "data_range must be finite and > 0"),
        ({"data_range": torch.ones(3)}, ValueError, "data_range must be > 0, a number or"),
        ({"window": 6}, ValueError, "window must be an odd int"),
        ({"window": 11}, ValueError, "window must be at most the image's sides"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], kind: type[Exception], message: str) -> None:
    whole = {"x": torch.ones(1, 9, 9), "reference": torch.ones(1, 9, 9)} | arguments
    with pytest.raises(kind, match=message):
        ssim(**whole)  # type: ignore[arg-type]


def test_mask_within_the_border_has_no_windows() -> None:
    mask = torch.zeros(1, 9, 9, dtype=torch.bool)
    mask[:, 0, 0] = True
    with pytest.raises(ValueError, match="where windows fit"):
        ssim(torch.ones(1, 9, 9), torch.ones(1, 9, 9), mask=mask)


def test_rmse_in_hu_refuses_complex_images_and_empty_windows() -> None:
    x = torch.ones(1, 4, 4)
    with pytest.raises(TypeError, match="real images in HU"):
        rmse_hu(x.to(torch.complex64), x)
    with pytest.raises(ValueError, match="width must be finite and > 0"):
        hu_window(x, 40, 0)
