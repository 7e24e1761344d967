"""Filtered back-projection of parallel-beam and fan-beam sinograms, full or short scan."""

from __future__ import annotations

import math
import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from invreg._check import require_positive, require_same_precision, require_tensor, unknown_name
from invreg.operators.fanbeam import FanBeam
from invreg.operators.joseph import (
    as_channels,
    chunks,
    from_channels,
    gather_parallel,
    padded_views,
    pixel_axes,
    run_kernel,
    use_compiled,
)
from invreg.operators.radon import ParallelBeam

Window = Literal["ramp", "shepp-logan", "cosine", "hamming", "hann"]
MISSING_GAP = math.radians(18.0)  # a gap between views is taken for missing views beyond this and 4 median gaps


def filtered_backprojection(
    operator: ParallelBeam | FanBeam,
    y: Tensor,
    window: Window = "ramp",
    *,
    cutoff: float = 1.0,
    angle_weights: Tensor | None = None,
) -> Tensor:
    """The image whose line integrals are y, by filtering every view and smearing it back.

    The ramp is the Fourier transform of the band-limited kernel's samples, so its mean is right, and views are padded
    with zeros to more than twice their length, so they do not wrap around. Fan-beam views are weighted by
    the cosine of the fan angle and back-projected with the inverse square of the distance; scans short of a full turn
    get Parker's weights. Views count by the angle they stand for: half the way to either neighbour, on a half circle
    for parallel beams (where opposite views are the same lines), on the full circle for fans. A gap of missing views
    counts for nothing. The back-projection interpolates linearly between detectors at each pixel's centre; it is not
    the operator's adjoint, whose hats vary in width and would blur and ripple.

    Args:
        operator: the geometry.
        y: sinograms, (B, A, D), real or complex, of an image in 1/mm: pure numbers.
        window: what multiplies the ramp |f| up to the cutoff: "ramp" is 1, "hann" is the smoothest.
        cutoff: in Nyquist frequencies of the detector, 0 < cutoff <= 1.
        angle_weights: (A,), radians, overrides the angle each view stands for; they sum to pi for parallel beams,
            2 pi for a full fan. A fan's weights still get Parker's or the factor 1/2 of a full scan.

    Returns:
        (B, Ny, Nx), 1/mm.

    Raises:
        TypeError, ValueError: a wrong operator, measurement, window, cutoff or angle_weights.

    Warns:
        UserWarning: a fan-beam scan shorter than half a turn and the fan: the image is incomplete.

    Source: Kak and Slaney 1988, "Principles of Computerized Tomographic Imaging", eq. 61 of ch. 3 (kernel) and
    sections 3.4.1 (arc), 3.4.2 (panel); Parker 1982, "Optimal short scan convolution reconstruction for fanbeam CT",
    eq. 12, with the fan angle widened to what the scan covers.
    """
    if not isinstance(operator, (ParallelBeam, FanBeam)):
        raise TypeError(f"operator must be a ParallelBeam or a FanBeam, got {type(operator).__name__}")
    require_tensor("y", y)
    operator.check_measurement(y)
    require_same_precision("y", y, "the operator's angles", operator.angles)
    if window not in get_args(Window):
        raise ValueError(unknown_name("window", str(window), get_args(Window)))
    require_positive("cutoff", cutoff)
    if cutoff > 1:
        raise ValueError(f"cutoff must be <= 1, in Nyquist frequencies of the detector, got {cutoff}")
    if angle_weights is not None and tuple(angle_weights.shape) != tuple(operator.angles.shape):
        raise ValueError(f"angle_weights must be {tuple(operator.angles.shape)}, got {tuple(angle_weights.shape)}")
    views = as_channels(y)
    if isinstance(operator, ParallelBeam):
        weights = view_angles(operator.angles, math.pi) if angle_weights is None else angle_weights
        filtered = _filter(views, operator.detector_pitch, window, cutoff)
        image = _smear_parallel(operator, filtered * weights.to(views)[:, None])
    else:
        weights = view_angles(operator.angles, 2 * math.pi) if angle_weights is None else angle_weights
        image = _fan(operator, views * (scan_weights(operator).to(views) * weights.to(views)[:, None]), window, cutoff)
    return from_channels(image, y)


def view_angles(angles: Tensor, period: float) -> Tensor:
    """The angle that each view stands for, (A,): half the way to either neighbour modulo `period`.

    Missing views, a gap of more than 18 degrees and four median gaps, count for nothing: there the cell is as long as
    on its other side.

    Args:
        angles: (A,), radians, in any order, repeated at will.
        period: pi or 2 pi.
    """
    order, gaps = _circle(angles, period)
    if _has_gap(gaps):
        missing = int(gaps.argmax())
        before, after = (missing - 1) % gaps.numel(), (missing + 1) % gaps.numel()
        half = (gaps[before] + gaps[after]) / 2
        gaps[missing] = torch.minimum(gaps[missing], half)
    cells = (gaps + gaps.roll(1)) / 2
    weights = torch.empty_like(cells)
    weights[order] = cells
    return weights.to(angles.dtype)


def _circle(angles: Tensor, period: float) -> tuple[Tensor, Tensor]:
    """The order of the angles on a circle, and the gap after each in that order, both (A,)."""
    around = angles.detach().double().remainder(period)
    # views one turn apart must not end up at both ends of the circle by a rounding error
    around = torch.where(around > period - 1e-6, around - period, around)
    ordered, order = around.sort()
    return order, torch.cat([ordered[1:], ordered[:1] + period]) - ordered


def _has_gap(gaps: Tensor) -> bool:
    typical = gaps[gaps > 1e-6].median()
    return bool((gaps.max() > MISSING_GAP) & (gaps.max() > 4 * typical)) and gaps.numel() > 2


def scan_weights(operator: FanBeam) -> Tensor:
    """Shares of every ray among those that measure the same line, (A, D): 1/2 for a full turn, else Parker's weights.

    Ray (a, gamma) and ray (a + pi - 2 gamma, -gamma) are one line; their shares sum to 1.

    Warns:
        UserWarning: the scan is shorter than half a turn and the fan that the image needs.
    """
    angles, gamma = operator.angles.detach().double(), operator.fan_angles.detach().double()
    order, gaps = _circle(angles, 2 * math.pi)
    if not _has_gap(gaps):
        return torch.full((angles.numel(), gamma.numel()), 0.5, dtype=torch.float64, device=angles.device)
    first = angles[order[(gaps.argmax() + 1) % gaps.numel()]]
    turned = (angles - first + 1e-6).remainder(2 * math.pi) - 1e-6
    length = float(turned.max())
    half = (length - math.pi) / 2
    ny, nx = operator.image_shape
    radius = min(ny, nx) / 2 * operator.pixel_size
    needed = min(float(gamma.abs().max()), math.asin(radius / operator.source_origin))
    if half < needed - float(gaps.median()):
        warnings.warn(
            f"the scan covers {math.degrees(length):.4g} degrees, but the image needs "
            f"{math.degrees(math.pi + 2 * needed):.4g}; expect artefacts, or use an iterative method",
            UserWarning,
            stacklevel=3,
        )
    beta, fan = turned[:, None], gamma[None]
    rise, fall = half + fan, half - fan
    begin = (math.pi / 4 * (beta / rise.clamp_min(1e-9)).clamp(0, 2)).sin().square()
    end = (math.pi / 4 * ((length - beta) / fall.clamp_min(1e-9)).clamp(0, 2)).sin().square()
    share = torch.ones_like(begin)
    share = torch.where((rise > 0) & (beta < 2 * rise), begin, share)
    return torch.where((fall > 0) & (beta > length - 2 * fall), end, share)


def _filter(views: Tensor, pitch: float, window: Window, cutoff: float, arc: float | None = None) -> Tensor:
    """Views convolved with the ramp, (C, A, D).

    Args:
        views: (C, A, D).
        pitch: distance of detectors.
        window, cutoff: as in `filtered_backprojection`.
        arc: angle between detectors of an arc, whose kernel is multiplied by (gamma / sin gamma)^2.
    """
    detectors = views.shape[-1]
    length = 2 ** math.ceil(math.log2(max(2 * detectors, 64)))
    n = torch.arange(length, dtype=torch.float64, device=views.device)
    n = torch.minimum(n, length - n)  # distance on the circle of the transform
    odd = n % 2 == 1
    kernel = torch.where(odd, -1 / (math.pi * pitch * torch.where(odd, n, 1)) ** 2, 0)
    kernel = torch.where(n == 0, 1 / (4 * pitch**2), kernel)
    if arc is not None:
        gamma = n * arc
        known = (n > 0) & (n < detectors)  # beyond them nothing is read
        kernel = torch.where(known, kernel * (gamma / torch.where(known, gamma.sin(), 1)) ** 2, kernel)
    response = torch.fft.rfft(kernel).real * pitch
    frequency = torch.linspace(0, 1, response.numel(), dtype=torch.float64, device=views.device) / cutoff
    response = response * _window(window, frequency) * (frequency <= 1)
    spectrum = torch.fft.rfft(views, n=length) * response.to(views.dtype)
    filtered: Tensor = torch.fft.irfft(spectrum, n=length)
    return filtered[..., :detectors]


def _window(window: Window, frequency: Tensor) -> Tensor:
    """The window at frequencies in units of the cutoff."""
    if window == "shepp-logan":
        return torch.sinc(frequency / 2)
    if window == "cosine":
        return (math.pi / 2 * frequency).cos()
    if window == "hamming":
        return 0.54 + 0.46 * (math.pi * frequency).cos()
    if window == "hann":
        return 0.5 + 0.5 * (math.pi * frequency).cos()
    return torch.ones_like(frequency)


def _smear_parallel(operator: ParallelBeam, views: Tensor) -> Tensor:
    """Linear interpolation at pixel centres, summed over views: hats one detector wide, (C, Ny, Nx)."""
    ratio = operator.pixel_size / operator.detector_pitch
    padded, starts, last = padded_views(views, 2)
    cx, cy = operator.centre_of_rotation
    middle = (operator.detectors - 1) / 2 - operator.detector_offset / operator.detector_pitch
    shift = middle - (cx * operator.cos + cy * operator.sin) / operator.detector_pitch
    y, x = pixel_axes(operator.image_shape, views)
    angles, pixels = operator.angles.numel(), y.numel() * x.numel()
    compiled = _compiled(operator, views, pixels)
    total = views.new_zeros(views.shape[0], y.numel(), x.numel())
    for part in chunks(angles, pixels, views.shape[0], compiled):
        total = total + run_kernel(
            gather_parallel,
            operator.compile_kernels,
            compiled,
            padded[:, part].flatten(1),
            operator.cos[part] * ratio,
            operator.sin[part] * ratio,
            shift[part],
            torch.ones_like(shift[part]),
            starts[: part.stop - part.start],
            y,
            x,
            last,
            2,
        )
    return total


def _compiled(operator: ParallelBeam | FanBeam, views: Tensor, pixels: int) -> bool:
    if views.requires_grad and torch.is_grad_enabled():
        return False
    return use_compiled(operator.compile_kernels, views.shape[0] * views.shape[1] * pixels, views.device)


def _fan(operator: FanBeam, views: Tensor, window: Window, cutoff: float) -> Tensor:
    """Weighted fan views filtered and back-projected, (C, Ny, Nx)."""
    source, pitch = operator.source_origin, operator.detector_pitch
    distance = source + operator.origin_detector
    views = views * operator.fan_cos
    if operator.curved:
        step = pitch / distance
        filtered = _filter(views, step, window, cutoff, arc=step) * source
    else:  # on a panel through the centre of rotation
        filtered = _filter(views, pitch * source / distance, window, cutoff)
    padded, starts, last = padded_views(filtered / operator.pixel_size**2, 2)
    cx, cy = operator.centre_of_rotation
    y, x = pixel_axes(operator.image_shape, views)
    y, x = y - cy / operator.pixel_size, x - cx / operator.pixel_size
    angles, pixels = operator.angles.numel(), y.numel() * x.numel()
    compiled = _compiled(operator, views, pixels)
    total = views.new_zeros(views.shape[0], y.numel(), x.numel())
    for part in chunks(angles, pixels, views.shape[0], compiled=False):
        total = total + run_kernel(
            _smear_fan,
            operator.compile_kernels,
            compiled,
            padded[:, part].flatten(1),
            operator.cos[part],
            operator.sin[part],
            starts[: part.stop - part.start],
            operator.geometry,
            y,
            x,
            last,
            operator.curved,
        )
    return total if operator.curved else total * source**2


def _smear_fan(
    views: Tensor,
    cos: Tensor,
    sin: Tensor,
    starts: Tensor,
    geometry: Tensor,
    y: Tensor,
    x: Tensor,
    last: Tensor,
    curved: bool,
) -> Tensor:
    """Linear interpolation at pixel centres over the squared distance, summed over views; arguments as in `gather_fan`.

    The distance is from the source, along the central ray for a panel.
    """
    source, scale, middle = geometry[0], geometry[1], geometry[2]
    cos, sin = cos[:, None, None], sin[:, None, None]
    across = x[None, None] * cos + y[None, :, None] * sin
    depth = source + (y[None, :, None] * cos - x[None, None] * sin)
    square = across * across + depth * depth if curved else depth * depth
    tangent = torch.atan2(across, depth) if curved else across / depth
    place = (tangent * scale + middle).clamp_min(-2.0).minimum(last)
    left = torch.floor(place)
    where = (left.to(torch.int32) + starts[:, None, None]).flatten()
    low, high = (views.index_select(1, where + k).reshape(views.shape[0], *place.shape) for k in (0, 1))
    return (torch.lerp(low, high, (place - left)[None]) / square[None]).sum(1)
