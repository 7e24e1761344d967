"""Image quality against a reference, as the field computes it: PSNR, SSIM, NRMSE, and RMSE in Hounsfield units.

Rules that hold for all:

- Complex images are compared by magnitude.
- One item of the batch is one image (B, y, x) or one volume (B, z, y, x); the result is one number each, (B,). A stack
  of slices of one scan is a volume: pass `slices[None]`.
- `data_range` is by default the largest value of the item's reference, over the whole volume, as fastMRI does.
- PSNR and NRMSE are taken over the volume; SSIM slice by slice with the volume's data range, then averaged.
- Everything is computed in double precision and returned in it.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from invreg._check import require_finite, require_positive, require_tensor


def psnr(
    x: Tensor, reference: Tensor, *, data_range: float | Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Peak signal-to-noise ratio in dB: 10 log10(data_range^2 / mean |x - reference|^2).

    Args:
        x, reference: images (B, y, x) or volumes (B, z, y, x), real or complex (then their magnitudes).
        data_range: the peak, > 0, a number or (B,); default the largest value of each reference.
        mask: True where pixels count, broadcasts to the images; default everywhere.

    Returns:
        Decibels, (B,); infinite where both agree.

    Raises:
        TypeError, ValueError: shapes that differ, NaN or Inf, an empty mask, or a reference without a positive value.

    Source: the definition that skimage and fastMRI use (Zbontar et al. 2018, "fastMRI", sec. 5).
    """
    image, truth, weights = _prepared(x, reference, mask)
    peak = _data_range(data_range, truth)
    error = _mean((image - truth).square(), weights)
    return 10 * torch.log10(peak.square() / error)


def nrmse(x: Tensor, reference: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Normalised root mean square error |x - reference| / |reference|; its square is fastMRI's NMSE.

    Args:
        x, reference, mask: as in `psnr`.

    Returns:
        (B,), infinite where the reference is zero.

    Raises:
        TypeError, ValueError: as in `psnr`.
    """
    image, truth, weights = _prepared(x, reference, mask)
    return (_mean((image - truth).square(), weights) / _mean(truth.square(), weights)).sqrt()


def ssim(
    x: Tensor,
    reference: Tensor,
    *,
    data_range: float | Tensor | None = None,
    mask: Tensor | None = None,
    window: int = 7,
) -> Tensor:
    """Structural similarity with a uniform window, K1 = 0.01, K2 = 0.03 and sample covariances.

    The mean runs over the pixels whose whole window lies inside the image; with a mask, over those of them that are
    also inside the mask. Volumes are compared slice by slice with the volume's data range.

    Args:
        x, reference, data_range, mask: as in `psnr`.
        window: odd side of the window in pixels, at most the image's sides; 7 as fastMRI and skimage.

    Returns:
        (B,), at most 1.

    Raises:
        TypeError, ValueError: as in `psnr`; an even or too large window; a mask that lies within the border.

    Source: Wang et al. 2004, "Image quality assessment", with the window and covariances of skimage and fastMRI.
    """
    image, truth, weights = _prepared(x, reference, mask)
    if isinstance(window, bool) or not isinstance(window, int) or window < 1 or window % 2 == 0:
        raise ValueError(f"window must be an odd int >= 1, got {window!r}")
    if min(image.shape[-2:]) < window:
        raise ValueError(f"window must be at most the image's sides {tuple(image.shape[-2:])}, got {window}")
    peak = _data_range(data_range, truth).reshape(-1, *(1,) * (image.ndim - 1))
    similarity = _similarity_map(image, truth, peak, window)
    if weights is None:
        return similarity.flatten(1).mean(1)
    border = window // 2
    inner = weights[..., border : weights.shape[-2] - border, border : weights.shape[-1] - border]
    if not bool(inner.flatten(1).any(1).all()):
        raise ValueError(f"mask must have pixels at least {border} from the border, where windows fit; got none")
    return _mean(similarity, inner)


def rmse_hu(
    x: Tensor, reference: Tensor, *, window: tuple[float, float] | None = None, mask: Tensor | None = None
) -> Tensor:
    """Root mean square error of CT images in Hounsfield units.

    Args:
        x, reference: real images in HU, (B, [z,] y, x).
        window: (centre, width) in HU: both images are clipped to it first; default no clipping.
        mask: as in `psnr`.

    Returns:
        HU, (B,).

    Raises:
        TypeError, ValueError: as in `psnr`; complex images; a width that is not positive.
    """
    if isinstance(x, Tensor) and isinstance(reference, Tensor) and (x.is_complex() or reference.is_complex()):
        raise TypeError("x and reference must be real images in HU, got complex ones")
    if window is not None:
        low, high = _window_ends(*window)
        x, reference = x.clamp(low, high), reference.clamp(low, high)
    image, truth, weights = _signed(x, reference, mask)
    return _mean((image - truth).square(), weights).sqrt()


def hu_window(hu: Tensor, center: float = 40.0, width: float = 400.0) -> Tensor:
    """A CT image as a viewer shows it: the HU window mapped to 0..1, values outside clipped.

    PSNR and SSIM of CT are taken after it with `data_range=1`: values outside the window are not seen.

    Args:
        hu: image in HU, real, any shape.
        center, width: of the window in HU; soft tissue 40 and 400, brain 40 and 80, bone 400 and 1800.

    Raises:
        ValueError: width <= 0.
    """
    low, high = _window_ends(center, width)
    return (hu.clamp(low, high) - low) / (high - low)


def _window_ends(center: float, width: float) -> tuple[float, float]:
    require_positive("width", width)
    return center - width / 2, center + width / 2


def _prepared(x: Tensor, reference: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Checked magnitudes in double precision, and the mask as large as they are."""
    require_tensor("x", x)
    require_tensor("reference", reference)
    return _signed(x.abs() if x.is_complex() else x, reference.abs() if reference.is_complex() else reference, mask)


def _signed(x: Tensor, reference: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    require_tensor("x", x)
    require_tensor("reference", reference)
    if x.shape != reference.shape:
        raise ValueError(f"x must have the shape of reference, {tuple(reference.shape)}, got {tuple(x.shape)}")
    if x.ndim not in (3, 4) or x.numel() == 0:
        raise ValueError(
            f"x must be (B, y, x) or (B, z, y, x) and not empty, got {tuple(x.shape)}; add a batch axis with x[None]"
        )
    require_finite("x", x)
    require_finite("reference", reference)
    if mask is not None:
        require_tensor("mask", mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, got {mask.dtype}; use mask > 0")
        try:
            mask = mask.expand(x.shape)
        except RuntimeError:
            raise ValueError(f"mask must broadcast to {tuple(x.shape)}, got {tuple(mask.shape)}") from None
        if not bool(mask.flatten(1).any(1).all()):
            raise ValueError("mask must select at least one pixel of every image, got none")
    return x.double(), reference.double(), mask


def _data_range(data_range: float | Tensor | None, truth: Tensor) -> Tensor:
    if data_range is None:
        peak = truth.flatten(1).amax(1)
        if not bool((peak > 0).all()):
            raise ValueError("reference must have a positive value to serve as data_range; give data_range")
        return peak
    if isinstance(data_range, Tensor):
        if data_range.shape not in ((), (truth.shape[0],)) or not bool((data_range > 0).all()):
            raise ValueError(f"data_range must be > 0, a number or ({truth.shape[0]},), got {data_range}")
        return data_range.to(truth).expand(truth.shape[0])
    require_positive("data_range", data_range)
    return truth.new_full((truth.shape[0],), float(data_range))


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over all but the batch axis where weights are True, (B,)."""
    if weights is None:
        return values.flatten(1).mean(1)
    return (values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)


def _similarity_map(x: Tensor, y: Tensor, peak: Tensor, window: int) -> Tensor:
    """SSIM of every window that fits, (B, [z,] y - window + 1, x - window + 1)."""
    count = window * window
    unbiased = count / (count - 1) if count > 1 else 1.0

    def local_mean(a: Tensor) -> Tensor:
        flat = avg_pool2d(a.reshape(-1, 1, *a.shape[-2:]), window, stride=1)
        return flat.reshape(*a.shape[:-2], *flat.shape[-2:])

    # about the item's mean, which changes no covariance but saves digits
    shift = y.flatten(1).mean(1).reshape(peak.shape)
    a, b = x - shift, y - shift
    mean_a, mean_b = local_mean(a), local_mean(b)
    variance_a = unbiased * (local_mean(a * a) - mean_a**2)
    variance_b = unbiased * (local_mean(b * b) - mean_b**2)
    covariance = unbiased * (local_mean(a * b) - mean_a * mean_b)
    mean_x, mean_y = mean_a + shift, mean_b + shift
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * covariance + c2) / (variance_a + variance_b + c2)
