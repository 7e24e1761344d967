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
    counts for nothing. A detector that sees all of the image on one side of the axis only (an extended field of view)
    needs a full turn; lines measured twice are then shared smoothly between their two rays. The back-projection
    interpolates linearly between detectors at each pixel's centre; it is not the operator's adjoint, whose hats vary in
    width and would blur and ripple.

    Args:
        operator: the geometry.
        y: sinograms, (B, A, D), real or complex, of an image in 1/mm: pure numbers.
        window: what multiplies the ramp |f| up to the cutoff: "ramp" is 1, "hann" is the smoothest.
        cutoff: in Nyquist frequencies of the detector, 0 < cutoff <= 1.
        angle_weights: (A,), radians, overrides the angle each view stands for; they sum to pi for parallel beams,
            2 pi for a full fan. The shares of rays that measure one line still multiply them.

    Returns:
        (B, Ny, Nx), 1/mm.

    Raises:
        TypeError, ValueError: a wrong operator, measurement, window, cutoff or angle_weights.

    Warns:
        UserWarning: the image is incomplete: a fan-beam scan shorter than half a turn and the fan, or a detector that
            does not see the whole image on one side in less than a full turn.

    Source: Kak and Slaney 1988, "Principles of Computerized Tomographic Imaging", eq. 61 of ch. 3 (kernel) and
    sections 3.4.1 (arc), 3.4.2 (panel); Parker 1982, "Optimal short scan convolution reconstruction for fanbeam CT",
    eq. 12, with the fan angle widened to what the scan covers; shares of an offset detector after Wang 2002, "X-ray
    micro-CT with a displaced detector array", with sin^2 in place of its (1 + sin) / 2 of another argument.
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
    if angle_weights is not None:
        require_tensor("angle_weights", angle_weights)
    if angle_weights is not None and tuple(angle_weights.shape) != tuple(operator.angles.shape):
        raise ValueError(f"angle_weights must be {tuple(operator.angles.shape)}, got {tuple(angle_weights.shape)}")
    views, shares = as_channels(y), offset_shares(operator)
    period = math.pi if isinstance(operator, ParallelBeam) and shares is None else 2 * math.pi
    weights = view_angles(operator.angles, period) if angle_weights is None else angle_weights
    if isinstance(operator, ParallelBeam):
        if shares is not None:  # given weights sum to pi, those of a full turn to 2 pi
            views = views * (shares if angle_weights is None else 2 * shares).to(views)
        image = _parallel(operator, views * weights.to(views)[:, None], window, cutoff)
    else:
        rays = scan_weights(operator) if shares is None else shares
        image = _fan(operator, views * (rays.to(views) * weights.to(views)[:, None]), window, cutoff)
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


def offset_shares(operator: ParallelBeam | FanBeam) -> Tensor | None:
    """Shares of the rays of an offset detector among the two that measure the same line in a full turn, (D,).

    They rise as sin^2 from 0 at the end of the detector's short side to 1 at the same distance on the other, beyond
    which a line is measured once. None where both sides reach the circle within the image, or neither does more so than
    the other, or the scan is not a full turn.

    Warns:
        UserWarning: one side does not reach that circle in less than a full turn, or not even the axis.
    """
    offsets = operator.offsets.detach().double()
    pitch, sides = operator.detector_pitch, (-float(offsets.min()), float(offsets.max()))
    short, radius = min(sides), min(operator.image_shape) / 2 * operator.pixel_size
    if isinstance(operator, FanBeam):  # where the ray that touches the circle meets the detector
        sine = radius / operator.source_origin
        reach = math.asin(sine) if operator.curved else math.tan(math.asin(sine))
        radius = reach * (operator.source_origin + operator.origin_detector)
    if short >= radius - pitch or max(sides) - short <= pitch:
        return None
    full = not _has_gap(_circle(operator.angles, 2 * math.pi)[1])
    if not full or short < 0:
        warnings.warn(
            f"the detector reaches {short:.4g} mm on one side of the axis and {max(sides):.4g} mm on the other, but "
            f"the image needs {radius:.4g} mm on both, or on one in a full turn; expect artefacts where it is cut",
            UserWarning,
            stacklevel=3,
        )
        return None
    inward = offsets if sides[1] > sides[0] else -offsets
    return (math.pi / 4 * (1 + inward / max(short, 1e-9 * pitch)).clamp(0, 2)).sin().square()


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


def _widened(operator: ParallelBeam | FanBeam, views: Tensor) -> tuple[Tensor, int]:
    """Views with zeros on the short side, as far as the long side reaches, and how many of them lie in front.

    The ramp spreads a view beyond its end, and pixels are read there in the views that do not see them.
    """
    ends = operator.offsets[[0, -1]].tolist()
    more = round(abs(ends[0] + ends[1]) / operator.detector_pitch)
    front = more if ends[0] + ends[1] > 0 else 0
    return torch.nn.functional.pad(views, (front, more - front)), front


def _parallel(operator: ParallelBeam, views: Tensor, window: Window, cutoff: float) -> Tensor:
    """Weighted views filtered and back-projected by linear interpolation at pixel centres, (C, Ny, Nx)."""
    ratio = operator.pixel_size / operator.detector_pitch
    views, front = _widened(operator, views)
    views = _filter(views, operator.detector_pitch, window, cutoff)
    padded, starts, last = padded_views(views, 2)
    cx, cy = operator.centre_of_rotation
    middle = front + (operator.detectors - 1) / 2 - operator.detector_offset / operator.detector_pitch
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
    views, front = _widened(operator, views * operator.fan_cos)
    geometry = operator.geometry + front * operator.geometry.new_tensor([0, 0, 1])
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
            geometry,
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
