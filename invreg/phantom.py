"""Ellipse phantoms in closed form: their image, their sinograms and their k-space, for tests and simulations.

Coordinates are in mm, x along columns and y along rows: pixel (i, j) of an (Ny, Nx) image has its centre at
x = (j - (Nx - 1) / 2) pixel_size, y = (i - (Ny - 1) / 2) pixel_size, so y grows downwards on the screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_count, require_positive, require_tensor


@dataclass(frozen=True)
class Ellipse:
    """An ellipse of constant value; values add where ellipses overlap.

    Args:
        value: added inside, for CT in 1/mm; complex for MRI.
        semi_axes: (a, b) in mm, > 0.
        centre: (x, y) in mm.
        angle: from the x axis to the axis of length a, turning towards the y axis, in radians.

    Raises:
        ValueError: a semi-axis is not positive.
    """

    value: complex
    semi_axes: tuple[float, float]
    centre: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0

    def __post_init__(self) -> None:
        for length in self.semi_axes:
            require_positive("semi_axes", float(length))


# value, a, b, x0, y0, angle in degrees, with y upwards: Toft 1996, "The Radon Transform", table B.1 ("modified")
_TOFT = (
    (1.0, 0.6900, 0.9200, 0.00, 0.0000, 0.0),
    (-0.8, 0.6624, 0.8740, 0.00, -0.0184, 0.0),
    (-0.2, 0.1100, 0.3100, 0.22, 0.0000, -18.0),
    (-0.2, 0.1600, 0.4100, -0.22, 0.0000, 18.0),
    (0.1, 0.2100, 0.2500, 0.00, 0.3500, 0.0),
    (0.1, 0.0460, 0.0460, 0.00, 0.1000, 0.0),
    (0.1, 0.0460, 0.0460, 0.00, -0.1000, 0.0),
    (0.1, 0.0460, 0.0230, -0.08, -0.6050, 0.0),
    (0.1, 0.0230, 0.0230, 0.00, -0.6060, 0.0),
    (0.1, 0.0230, 0.0460, 0.06, -0.6050, 0.0),
)


def shepp_logan(field_of_view: float = 2.0, peak: float = 1.0) -> tuple[Ellipse, ...]:
    """The Shepp-Logan head phantom with Toft's contrasts, upright on the screen.

    Args:
        field_of_view: side of the square that the published table calls [-1, 1]^2, in mm; for an N x N image use
            N * pixel_size.
        peak: value of the skull; brain is 0.2 peak.

    Returns:
        Ten ellipses. The published y axis points upwards, ours downwards: y0 and the angles change their sign.

    Source: Shepp and Logan 1974, table 1 (geometry); Toft 1996, "The Radon Transform", table B.1 (values).
    """
    require_positive("field_of_view", field_of_view)
    r = field_of_view / 2
    return tuple(
        Ellipse(peak * value, (r * a, r * b), (r * x, -r * y), -math.radians(degrees))
        for value, a, b, x, y, degrees in _TOFT
    )


def rasterise(
    ellipses: Sequence[Ellipse],
    shape: tuple[int, int],
    pixel_size: float = 1.0,
    supersampling: int = 8,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The phantom as an image of pixel averages.

    Args:
        ellipses: the phantom.
        shape: (Ny, Nx).
        pixel_size: in mm.
        supersampling: samples along each side of a pixel that its average is taken over.
        dtype: of the result; must be complex where a value is.

    Returns:
        (Ny, Nx); add the batch axis with [None].
    """
    _check_shape(shape)
    require_positive("pixel_size", pixel_size)
    require_count("supersampling", supersampling)
    if not dtype.is_complex and any(isinstance(ellipse.value, complex) for ellipse in ellipses):
        raise TypeError(f"dtype must be complex for complex values, got {dtype}; use dtype=torch.complex64")
    ny, nx = shape
    y, x = (_centres(n * supersampling, pixel_size / supersampling) for n in (ny, nx))
    image = torch.zeros(shape, dtype=dtype)
    for ellipse in ellipses:
        a, b = ellipse.semi_axes
        reach = max(a, b)
        # only the rows and columns of pixels that the ellipse may touch
        i, j = (_touched(n, pixel_size, c, reach) for n, c in ((ny, ellipse.centre[1]), (nx, ellipse.centre[0])))
        if i.start >= i.stop or j.start >= j.stop:
            continue
        fine_y = y[i.start * supersampling : i.stop * supersampling, None] - ellipse.centre[1]
        fine_x = x[None, j.start * supersampling : j.stop * supersampling] - ellipse.centre[0]
        cos, sin = math.cos(ellipse.angle), math.sin(ellipse.angle)
        u, v = (fine_x * cos + fine_y * sin) / a, (fine_y * cos - fine_x * sin) / b
        inside = (u * u + v * v <= 1).float()
        covered = torch.nn.functional.avg_pool2d(inside[None, None], supersampling)[0, 0]
        image[i, j] += ellipse.value * covered.to(dtype)
    return image


def ray_integrals(ellipses: Sequence[Ellipse], theta: Tensor, s: Tensor) -> Tensor:
    """Integrals along the lines x cos(theta) + y sin(theta) = s.

    Args:
        ellipses: the phantom, real values.
        theta: directions of the lines' normals, radians.
        s: signed distances from the origin, mm; broadcasts with theta.

    Returns:
        value times mm, broadcast shape of theta and s, in their precision.

    Raises:
        TypeError: a value is complex.

    Source: Kak and Slaney 1988, "Principles of Computerized Tomographic Imaging", section 3.1.
    """
    require_tensor("theta", theta)
    require_tensor("s", s)
    wide_theta, wide_s = theta.double(), s.double()
    total = torch.zeros_like(wide_theta * wide_s)
    for ellipse in ellipses:
        value = complex(ellipse.value)
        if value.imag:
            raise TypeError(f"values must be real for line integrals, got {value}; project both parts by themselves")
        a, b = ellipse.semi_axes
        square = (a * torch.cos(wide_theta - ellipse.angle)) ** 2 + (b * torch.sin(wide_theta - ellipse.angle)) ** 2
        distance = wide_s - ellipse.centre[0] * torch.cos(wide_theta) - ellipse.centre[1] * torch.sin(wide_theta)
        total += 2 * value.real * a * b / square * (square - distance**2).clamp_min(0).sqrt()
    return total.to(torch.promote_types(theta.dtype, s.dtype))


def parallel_sinogram(ellipses: Sequence[Ellipse], angles: Tensor, offsets: Tensor) -> Tensor:
    """The parallel-beam sinogram: line integrals along x cos(angle) + y sin(angle) = offset.

    Args:
        ellipses: the phantom, real values.
        angles: (A,), radians.
        offsets: detector positions, (D,), mm.

    Returns:
        (A, D), value times mm.
    """
    return ray_integrals(ellipses, angles[:, None], offsets[None, :])


def fan_sinogram(
    ellipses: Sequence[Ellipse],
    angles: Tensor,
    offsets: Tensor,
    source_origin: float,
    origin_detector: float = 0.0,
    curved: bool = False,
) -> Tensor:
    """The fan-beam sinogram. The source of view `angle` is at source_origin * (sin(angle), -cos(angle)).

    Args:
        ellipses: the phantom, real values.
        angles: (A,), radians.
        offsets: detector positions u, (D,), mm, measured along the panel in the direction (cos(angle), sin(angle)), or
            along the arc, from the foot of the central ray.
        source_origin, origin_detector: distances from the centre of rotation, the origin, mm.
        curved: False for a flat panel, True for an arc around the source.

    Returns:
        (A, D), value times mm. The ray at fan angle gamma, tan(gamma) = u / (source_origin + origin_detector) on a
        panel and gamma = u / (...) on an arc, is the line with theta = angle - gamma, s = source_origin sin(gamma).

    Source: Kak and Slaney 1988, section 3.4.
    """
    require_positive("source_origin", source_origin)
    require_positive("origin_detector", origin_detector, zero_allowed=True)
    ratio = offsets.double() / (source_origin + origin_detector)
    gamma = ratio if curved else torch.atan(ratio)
    found = ray_integrals(ellipses, angles.double()[:, None] - gamma[None, :], source_origin * torch.sin(gamma)[None])
    return found.to(torch.promote_types(angles.dtype, offsets.dtype))


def kspace(ellipses: Sequence[Ellipse], shape: tuple[int, int], pixel_size: float = 1.0) -> Tensor:
    """The phantom's exact Fourier transform on the Cartesian grid of the centred orthonormal FFT.

    Entry (k, l) is F(nu) exp(2 pi i nu . delta) / (pixel_size^2 sqrt(Ny Nx)) with the continuous transform
    F(nu) = integral f(r) exp(-2 pi i nu . r) dr at nu = ((l - Nx // 2) / Nx, (k - Ny // 2) / Ny) / pixel_size. The FFT
    counts from pixel N // 2, whose centre lies delta = pixel_size / 2 beyond the origin for even N (0 for odd N);
    so the centred inverse FFT of this shows the phantom on the very pixels of `rasterise`, with Gibbs ringing.

    Args:
        ellipses: the phantom; values may be complex.
        shape: (Ny, Nx).
        pixel_size: in mm.

    Returns:
        (Ny, Nx), complex128; add batch and coil axes as needed.

    Source: Van de Walle et al. 2000, "Reconstruction of MR images from data acquired on a general nonregular grid by
    pseudoinverse calculation", appendix (F of an ellipse is a b J1(2 pi q) / q).
    """
    _check_shape(shape)
    require_positive("pixel_size", pixel_size)
    ny, nx = shape
    v, u = (((torch.arange(n, dtype=torch.float64) - n // 2) / (n * pixel_size)) for n in shape)
    u, v = u[None, :], v[:, None]
    total = torch.zeros(shape, dtype=torch.complex128)
    for ellipse in ellipses:
        a, b = ellipse.semi_axes
        cos, sin = math.cos(ellipse.angle), math.sin(ellipse.angle)
        q = torch.hypot(a * (u * cos + v * sin), b * (v * cos - u * sin))
        safe = torch.where(q > 1e-9, q, 1.0)
        disk = torch.where(q > 1e-9, torch.special.bessel_j1(2 * math.pi * safe) / safe, math.pi)
        shift_x, shift_y = ((c - _lead(n, pixel_size)) for c, n in zip(ellipse.centre, (nx, ny), strict=True))
        phase = -2 * math.pi * (u * shift_x + v * shift_y)
        total += ellipse.value * a * b * torch.polar(disk.abs(), phase + math.pi * (disk < 0))
    return total / (pixel_size**2 * math.sqrt(nx * ny))


def _lead(n: int, pixel_size: float) -> float:
    """Distance of the centre of pixel n // 2 from the origin."""
    return (n // 2 - (n - 1) / 2) * pixel_size


def _centres(n: int, pixel_size: float) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * pixel_size


def _touched(n: int, pixel_size: float, centre: float, reach: float) -> slice:
    """The pixels of one axis within `reach` of `centre`."""
    first = math.floor((centre - reach) / pixel_size + n / 2)
    last = math.ceil((centre + reach) / pixel_size + n / 2)
    return slice(min(max(first, 0), n), min(max(last, 0), n))


def _check_shape(shape: tuple[int, int]) -> None:
    if len(shape) != 2:
        raise ValueError(f"shape must be (Ny, Nx), got {tuple(shape)}")
    for n in shape:
        require_count("shape", n)
