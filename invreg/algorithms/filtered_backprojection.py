"""Filtered back-projection of parallel, flat-panel and arc fan-beam sinograms, short scans included."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from invreg._check import require_same_precision, require_tensor, unknown_name
from invreg.interfaces import LinearOperator
from invreg.operators.fanbeam import FanBeam
from invreg.operators.radon import ParallelBeam

WINDOWS = ("ramp", "shepp-logan", "cosine", "hamming", "hann")
CHUNK = 2**19  # entries of one temporary


def filtered_backprojection(
    operator: LinearOperator, y: Tensor, *, window: str = "ramp", cutoff: float = 1.0
) -> Tensor:
    """The analytic inverse of line integrals: filter every view, then sum what each pixel sees of it.

    Every pixel takes the linear interpolation of the filtered view: the matched adjoint would smooth once more.

    - The ramp filter is the Fourier transform of its band-limited kernel, so that no constant is lost.
    - Views are weighted by half the angle to their neighbours on either side, so any set of angles will do; X
    - Fan beams: cosine weight before the filter, inverse square distance after it; a full turn counts every line
      twice; less than a full turn is weighted after Parker over the range that was measured.

    Args:
        operator: a `ParallelBeam` or `FanBeam`.
        y: sinograms, (B, A, D), real or complex line integrals.
        window: "ramp" (none), "shepp-logan", "cosine", "hamming" or "hann".
        cutoff: fraction of the Nyquist frequency at which the window ends, 0 < cutoff <= 1.

    Returns:
        Images, (B, Ny, Nx), in units of y per mm.

    Raises:
        TypeError: another operator, or another precision than its angles.
        ValueError: an unknown window, a cutoff out of range, y of another shape.

    Source: Kak and Slaney 1988, sections 3.3 and 3.4; Parker 1982, "Optimal short scan convolution reconstruction",
    with the overscan of Silver 2000.
    """
    if not isinstance(operator, ParallelBeam | FanBeam):
        raise TypeError(
            f"operator must be ParallelBeam or FanBeam, got {type(operator).__name__}; for others use SIRT or FISTA"
        )
    require_tensor("y", y)
    operator.check_measurement(y)
    require_same_precision("y", y, "angles", operator.angles)
    if window not in WINDOWS:
        raise ValueError(unknown_name("window", window, WINDOWS))
    if not 0 < cutoff <= 1:
        raise ValueError(f"cutoff must lie in (0, 1], got {cutoff}")
    if y.is_complex():
        parts = [filtered_backprojection(operator, part, window=window, cutoff=cutoff) for part in (y.real, y.imag)]
        return torch.complex(parts[0], parts[1])
    if isinstance(operator, FanBeam):
        return _fan(operator, y, window, cutoff)
    weights = _neighbour_weights(operator.angles, math.pi)[0]
    views = _filtered(y, operator.detector_pitch, window, cutoff) * weights[:, None]
    return _sum_views(operator, views)


def _fan(operator: FanBeam, y: Tensor, window: str, cutoff: float) -> Tensor:
    distance = operator.source_origin + operator.origin_detector
    gamma = operator.fan_angles
    weights, covered, first = _neighbour_weights(operator.angles, 2 * math.pi)
    if covered > 2 * math.pi - 1e-3:
        redundancy = torch.full_like(y[0], 0.5)
    else:
        redundancy = _parker((operator.angles - first).remainder(2 * math.pi)[:, None], gamma, covered)
    views = y * operator.source_origin * operator.fan_cos * redundancy * weights[:, None]
    if operator.curved:
        views = _filtered(views, operator.detector_pitch / distance, window, cutoff, curved=True)
    else:  # as if the panel stood at the centre of rotation
        views = _filtered(views, operator.detector_pitch * operator.source_origin / distance, window, cutoff)
        views = views * operator.source_origin
    return _sum_views(operator, views)


def _filtered(y: Tensor, pitch: float, window: str, cutoff: float, *, curved: bool = False) -> Tensor:
    """Each view convolved with the ramp kernel of its pitch; on an arc with that of Kak and Slaney eq. 3.108."""
    detectors = y.shape[-1]
    length = 1 << (2 * detectors - 1).bit_length()
    n = torch.arange(length, dtype=torch.float64, device=y.device)
    n = torch.minimum(n, length - n)  # circular distance
    odd = n.remainder(2) == 1
    spread = torch.sin(n * pitch) if curved else n * pitch
    kernel = torch.where(odd, -1 / (math.pi * torch.where(odd, spread, 1)).square(), 0)
    kernel[0] = 1 / (4 * pitch**2)
    kernel = torch.where(n < detectors, kernel, 0)  # farther than any two detectors: never used
    response = torch.fft.rfft(kernel).real * _window(window, cutoff, length, y.device) * pitch
    spectrum = torch.fft.rfft(y, n=length) * response.to(y.dtype)
    views: Tensor = torch.fft.irfft(spectrum, n=length)
    return views[..., :detectors]


def _window(name: str, cutoff: float, length: int, device: torch.device) -> Tensor:
    """The window at the frequencies of `rfft`, 1 at zero and ending at `cutoff`."""
    f = torch.arange(length // 2 + 1, dtype=torch.float64, device=device) / (length // 2) / cutoff
    shapes = {
        "ramp": torch.ones_like(f),
        "shepp-logan": torch.sinc(f / 2),
        "cosine": torch.cos(math.pi * f / 2),
        "hamming": 0.54 + 0.46 * torch.cos(math.pi * f),
        "hann": 0.5 + 0.5 * torch.cos(math.pi * f),
    }
    return torch.where(f <= 1 + 1e-9, shapes[name], 0)


def _neighbour_weights(angles: Tensor, period: float) -> tuple[Tensor, float, float]:
    """Angle that each view stands for, (A,), the angle covered in all, and where the covered range begins."""
    turned, order = angles.double().remainder(period).sort()
    if turned.numel() == 1:
        return torch.full_like(angles, period), period, float(turned[0])
    gaps = torch.diff(turned, append=turned[:1] + period)  # gap i follows view i
    measured = gaps > 1e-6 * period  # views that coincide share what they stand for
    typical = gaps[measured].median()
    missing = (gaps > 3 * typical) & (gaps > period / 12)
    before = gaps.roll(1)
    missing_before = missing.roll(1)
    # at the edge of a missing wedge a view stands for as much outside as inside
    outer = torch.where(missing, torch.where(missing_before, typical, before), gaps)
    inner = torch.where(missing_before, torch.where(missing, typical, gaps), before)
    weights = torch.empty_like(gaps)
    weights[order] = (outer + inner) / 2
    covered = period - float((gaps - typical)[missing].sum())
    begin = float(turned[(int(gaps.argmax()) + 1) % turned.numel()]) if bool(missing.any()) else float(turned[0])
    if bool(missing.any()) and period < 4:  # a parallel beam needs all of pi; fan beams are judged by Parker's range
        warnings.warn(
            f"views cover {math.degrees(covered):.1f} of {math.degrees(period):.0f} degrees; "
            "filtered back-projection will show streaks, use a regularized method",
            stacklevel=4,
        )
    return weights.to(angles.dtype), covered, begin


def _parker(beta: Tensor, gamma: Tensor, covered: float) -> Tensor:
    """Weights, (A, D), by which the two measurements of a line sum to 1; beta counts from the first view.

    The line of (beta, gamma) is that of (beta + pi - 2 gamma, -gamma).
    """
    delta = (covered - math.pi) / 2
    widest = float(gamma.abs().max())
    if delta < widest - 1e-3:
        warnings.warn(
            f"a short scan needs {math.degrees(math.pi + 2 * widest):.1f} degrees, the views cover "
            f"{math.degrees(covered):.1f}; expect artefacts",
            stacklevel=5,
        )
        delta = widest
    early, late = (delta + gamma).clamp_min(1e-6), (delta - gamma).clamp_min(1e-6)
    rise = torch.sin(math.pi / 4 * (beta / early).clamp(0, 2)).square()
    fall = torch.sin(math.pi / 4 * ((math.pi + 2 * delta - beta) / late).clamp(0, 2)).square()
    return torch.where(beta < 2 * early, rise, torch.where(beta > math.pi + 2 * gamma, fall, 1))


def _sum_views(operator: ParallelBeam | FanBeam, views: Tensor) -> Tensor:
    """What each pixel sees of the filtered views, (B, A, D) -> (B, Ny, Nx), a few views at a time."""
    ny, nx = operator.image_shape
    pad = torch.nn.functional.pad(views, (1, 2))  # zero beside the detector
    cx, cy = operator.centre_of_rotation
    like = views
    y = ((torch.arange(ny, dtype=like.dtype, device=like.device) - (ny - 1) / 2) * operator.pixel_size - cy)[:, None]
    x = ((torch.arange(nx, dtype=like.dtype, device=like.device) - (nx - 1) / 2) * operator.pixel_size - cx)[None]
    at_once = max(1, CHUNK // (ny * nx * views.shape[0]))
    total = views.new_zeros(views.shape[0], ny, nx)
    for start in range(0, views.shape[1], at_once):
        part = slice(start, start + at_once)
        cos, sin = operator.cos[part, None, None], operator.sin[part, None, None]
        position, factor = _seen(operator, x * cos + y * sin, y * cos - x * sin)
        index = (position - operator.detector_offset) / operator.detector_pitch + (operator.detectors + 1) / 2
        index = index.clamp(0, operator.detectors + 1)
        left = index.floor()
        where = left.long().flatten(1).expand(views.shape[0], -1, -1)
        low = pad[:, part].gather(2, where).reshape(total.shape[0], -1, ny, nx)
        high = pad[:, part].gather(2, where + 1).reshape(total.shape[0], -1, ny, nx)
        seen = torch.lerp(low, high, (index - left)[None])
        total = total + (seen if factor is None else seen * factor).sum(1)
    return total


def _seen(operator: ParallelBeam | FanBeam, along: Tensor, depth: Tensor) -> tuple[Tensor, Tensor | None]:
    """Where on the detector a pixel is seen, mm, and the factor of its distance.

    Args:
        operator: the geometry.
        along: pixel coordinate along the detector, (A, Ny, Nx).
        depth: pixel coordinate away from the source.
    """
    if isinstance(operator, ParallelBeam):
        return along, None
    distance = operator.source_origin + operator.origin_detector
    away = operator.source_origin + depth
    if operator.curved:
        return distance * torch.atan2(along, away), 1 / (away.square() + along.square())
    return distance * along / away, 1 / away.square()
