"""Simulated scans of real images, made off the reconstruction's grid and without its operators.

An MRI scan is the Fourier transform of a finer and turned copy of a slice under Biot-Savart coil fields and a smooth
phase; a CT scan is made of Poisson counts of rays that are sampled densely through a finer image.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from invreg._check import require_count, require_finite, require_positive, require_tensor
from invreg.io.records import Image
from invreg.noise import Gaussian, Poisson, line_integrals

Pattern = Literal["equispaced", "random", "variable-density"]


@dataclass(frozen=True, eq=False)
class MRIScan:
    """A simulated multi-coil Cartesian scan.

    Args:
        kspace: zero where not sampled, (1, coil, y, x), complex64; orthonormal on the reconstruction's grid.
        mask: sampled entries, (1, 1, y, 1), bool; phase encoding runs along y.
        truth: magnitude of the band-limited object on the reconstruction's grid, (1, y, x): what a complete scan
            without noise would show, its Gibbs ringing included.
        maps: the coil sensitivities that were used, at the grid's points, (1, coil, y, x); squares sum to 1.
        noise: a scan of noise alone, (1, coil, samples), complex64.
        sigma: standard deviation of each real component of the noise.
        voxel_size: (y, x) in mm.
    """

    kspace: Tensor
    mask: Tensor
    truth: Tensor
    maps: Tensor
    noise: Tensor
    sigma: float
    voxel_size: tuple[float, float]


@dataclass(frozen=True, eq=False)
class CTScan:
    """A simulated parallel-beam transmission scan.

    Args:
        counts: photons counted, (1, angles, detectors), float32.
        sinogram: line integrals made of them by `line_integrals`, (1, angles, detectors).
        sigma: their standard deviations, (1, angles, detectors).
        angles: (angles,), float64, radians.
        detector_spacing: mm.
        photons: expected counts without object.
        truth: area averages of the attenuation over the reconstruction's pixels, (1, y, x), 1/mm.
        voxel_size: (y, x) in mm.
    """

    counts: Tensor
    sinogram: Tensor
    sigma: Tensor
    angles: Tensor
    detector_spacing: float
    photons: float
    truth: Tensor
    voxel_size: tuple[float, float]


def cartesian_mask(
    lines: int,
    acceleration: float,
    calibration: int = 24,
    pattern: Pattern = "equispaced",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Which phase-encoding lines are sampled, with fully sampled calibration lines around the centre, lines // 2.

    Args:
        lines: number of phase-encoding lines.
        acceleration: >= 1. "equispaced" samples every acceleration-th line (rounded to an int) from a random one and
            the calibration lines besides, as scanners do, so that more than lines / acceleration are sampled;
            "random" (uniform) and "variable-density" (denser at the centre, falling as the square of the distance)
            sample round(lines / acceleration) lines, calibration included.
        calibration: number of calibration lines, 0 to lines.
        pattern: how the others are chosen.
        generator: source of the choice.

    Returns:
        (lines,), bool.

    Raises:
        TypeError, ValueError: a number out of range, an unknown pattern, or fewer lines than calibration needs.
    """
    require_count("lines", lines)
    require_count("calibration", calibration, least=0)
    require_positive("acceleration", acceleration)
    if calibration > lines or not 1 <= acceleration <= lines:
        raise ValueError(
            f"calibration must be <= {lines} and acceleration from 1 to {lines}, got {calibration} and {acceleration}"
        )
    position = torch.arange(lines) - lines // 2
    mask = (position >= -(calibration // 2)) & (position < calibration - calibration // 2)
    if pattern == "equispaced":
        every = round(acceleration)
        start = int(torch.randint(every, (), generator=generator))
        mask[start::every] = True
        return mask
    if pattern not in ("random", "variable-density"):
        raise ValueError(f"pattern must be 'equispaced', 'random' or 'variable-density', got {pattern!r}")
    wanted = round(lines / acceleration) - calibration
    if wanted < 0:
        raise ValueError(
            f"calibration must be at most lines / acceleration = {lines / acceleration:g}, got {calibration}"
        )
    density = torch.ones(lines) if pattern == "random" else (1 - position.abs() / (lines / 2 + 1)) ** 2
    if wanted:
        mask[torch.multinomial(density.masked_fill(mask, 0), wanted, generator=generator)] = True
    return mask


def coil_maps(shape: tuple[int, int], field_of_view: tuple[float, float], coils: int = 8) -> Tensor:
    """Sensitivities of loop coils around the head, their squares summing to 1 at every point.

    The loops stand on an ellipse 15 % larger than the one inscribed in the field of view, face its centre, and
    receive B1- = Bx - i By of a unit current, by the law of Biot and Savart over 64 straight segments.

    Args:
        shape: (y, x) of the grid, its centre at index N // 2.
        field_of_view: (y, x) in mm.
        coils: how many.

    Returns:
        (1, coil, y, x), complex64.

    Source: Haacke et al. 1999, "Magnetic Resonance Imaging", ch. 27 (reciprocity) with the law of Biot and Savart.
    """
    require_count("coils", coils)
    height, width = field_of_view
    y, x = torch.meshgrid(_centred(96, height), _centred(96, width), indexing="ij")
    points = torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 1, 3)
    loop_radius = 0.5 * math.pi * max(height, width) * 1.15 / coils * 1.2
    fields = []
    for k in range(coils):
        angle = 2 * math.pi * (k + 0.5) / coils
        centre = torch.tensor([0.575 * width * math.cos(angle), 0.575 * height * math.sin(angle), 0.0])
        normal = torch.tensor([math.cos(angle), math.sin(angle), 0.0])
        tangent = torch.tensor([-math.sin(angle), math.cos(angle), 0.0])
        turn = torch.linspace(0, 2 * math.pi, 65)[:, None]
        wire = (centre + 0.1 * loop_radius * normal).double() + loop_radius * (
            turn.cos() * tangent + turn.sin() * torch.tensor([0.0, 0.0, 1.0])
        ).double()
        segment, middle = wire[1:] - wire[:-1], (wire[1:] + wire[:-1]) / 2
        reach = points - middle
        distance = reach.norm(dim=-1, keepdim=True)
        field = (torch.cross(segment.expand_as(reach), reach, dim=-1) / distance**3).sum(1)
        fields.append(torch.complex(field[:, 0], -field[:, 1]).reshape(96, 96))
    coarse = torch.view_as_real(torch.stack(fields)).movedim(-1, 1)  # smooth, so a coarse grid carries it
    grid = _sampling_grid(shape, (1.0, 1.0), (shape[0] / 96, shape[1] / 96), (96, 96))
    fine = grid_sample(
        coarse, grid.expand(coils, -1, -1, -1), mode="bicubic", padding_mode="border", align_corners=True
    )
    maps = torch.complex(fine[:, 0], fine[:, 1])[None]
    return (maps / maps.abs().square().sum(1, keepdim=True).sqrt()).to(torch.complex64)


def mri_scan(
    image: Tensor,
    voxel_size: tuple[float, float],
    mask: Tensor,
    *,
    field_of_view: tuple[float, float] = (240.0, 240.0),
    matrix: tuple[int, int] = (192, 192),
    coils: int = 8,
    sigma: float = 0.01,
    rotation: float = 0.06,
    shift: tuple[float, float] = (1.3, -0.8),
    oversampling: int = 3,
    generator: torch.Generator | None = None,
) -> MRIScan:
    """Scan a magnitude image with several coils on a Cartesian grid.

    The image is interpolated (cubic), turned and shifted onto a grid `oversampling` times finer than the
    reconstruction's; coil fields and phase are evaluated there; the Fourier transform is taken there and cut to the
    reconstruction's matrix. The reconstruction knows neither the fine grid nor the coil fields.

    Args:
        image: magnitude, (1, y, x), real, about 0 to 1.
        voxel_size: of the image, (y, x) in mm.
        mask: sampled phase-encoding lines, (matrix[0],), bool, as `cartesian_mask` makes it.
        field_of_view: (y, x) in mm.
        matrix: (y, x) of k-space and of the reconstruction.
        coils: how many.
        sigma: standard deviation of the noise in each real component of k-space, >= 0, in units of the image:
            the transform is orthonormal, so each coil's image has it too.
        rotation: of the object, radians.
        shift: of the object, (y, x) in mm.
        oversampling: how much finer the object's grid is.
        generator: source of the noise.

    Raises:
        TypeError, ValueError: shapes that do not fit, an empty mask, or numbers out of range.
    """
    _check_image(image)
    require_count("oversampling", oversampling)
    require_positive("sigma", sigma, zero_allowed=True)
    if mask.dtype != torch.bool or mask.shape != (matrix[0],) or not bool(mask.any()):
        raise ValueError(
            f"mask must be bool, ({matrix[0]},), and sample something, got {mask.dtype} {tuple(mask.shape)}"
        )
    fine = (matrix[0] * oversampling, matrix[1] * oversampling)
    pixel = (field_of_view[0] / fine[0], field_of_view[1] / fine[1])
    grid = _sampling_grid(fine, pixel, voxel_size, (image.shape[-2], image.shape[-1]), rotation, shift)
    body = grid_sample(image.double()[None], grid.double(), mode="bicubic", align_corners=True)[0, 0].clamp_min(0)
    object_ = body * torch.exp(1j * _smooth_phase(fine))
    sensitivities = coil_maps(fine, field_of_view, coils)[0].to(torch.complex128)
    clean = torch.stack([_cut_spectrum(one * object_, matrix) for one in sensitivities])[None].to(torch.complex64)
    lines = mask[None, None, :, None]
    noise = Gaussian(sigma) if sigma else None
    kspace = (clean if noise is None else noise.sample(clean, generator)) * lines
    blank = torch.zeros(1, coils, 2048, dtype=torch.complex64)
    return MRIScan(
        kspace=kspace,
        mask=lines,
        truth=_image_of(_cut_spectrum(object_, matrix)).abs().to(torch.float32)[None],
        maps=coil_maps(matrix, field_of_view, coils),
        noise=blank if noise is None else noise.sample(blank, generator),
        sigma=sigma,
        voxel_size=(field_of_view[0] / matrix[0], field_of_view[1] / matrix[1]),
    )


def ct_scan(
    attenuation: Tensor,
    voxel_size: tuple[float, float],
    angles: Tensor,
    *,
    coarsening: int = 2,
    photons: float = 5e4,
    rays: int = 3,
    generator: torch.Generator | None = None,
) -> CTScan:
    """Scan an attenuation image with parallel beams and count photons.

    Every detector counts what `rays` rays spread over its width let through; each ray is integrated in steps of at
    most a pixel through the bilinear interpolation of the fine image. The reconstruction's pixels are `coarsening`
    times larger, and so is the detectors' pitch.

    Args:
        attenuation: (1, N, N), 1/mm, >= 0, N a multiple of `coarsening`.
        voxel_size: of that image, (y, x) in mm, both the same.
        angles: (angles,), radians.
        coarsening: how much larger the reconstruction's pixels are.
        photons: expected counts of a detector without object.
        rays: per detector.
        generator: source of the counts.

    Raises:
        TypeError, ValueError: shapes that do not fit, or numbers out of range.
    """
    _check_image(attenuation)
    require_tensor("angles", angles)
    require_count("coarsening", coarsening)
    require_count("rays", rays)
    require_positive("photons", photons)
    side = attenuation.shape[-1]
    if attenuation.shape[-2] != side or side % coarsening or not math.isclose(voxel_size[0], voxel_size[1]):
        raise ValueError(
            "attenuation must be square, with square pixels and a side that is a multiple of "
            f"coarsening = {coarsening}, got {tuple(attenuation.shape)} with pixels {voxel_size} mm"
        )
    if bool((attenuation < 0).any()):
        raise ValueError(f"attenuation must be >= 0, got {float(attenuation.min()):g}; clip HU below -1000 first")
    pixel = voxel_size[0]
    pitch = pixel * coarsening
    detectors = math.ceil(math.sqrt(2) * side / coarsening)
    offsets = (torch.arange(detectors * rays, dtype=torch.float64) - (detectors * rays - 1) / 2) * pitch / rays
    transmitted = []
    for angle in angles.double().tolist():
        through = torch.exp(-_line_integrals(attenuation.double(), pixel, angle, offsets))
        transmitted.append(through.reshape(detectors, rays).mean(1))
    clean = torch.stack(transmitted)[None].to(torch.float32)
    counts = Poisson(photons).sample(clean, generator)
    sinogram, sigma = line_integrals(counts, photons)
    return CTScan(
        counts=counts,
        sinogram=sinogram,
        sigma=sigma,
        angles=angles.double(),
        detector_spacing=pitch,
        photons=photons,
        truth=avg_pool2d(attenuation.float()[None], coarsening)[0],
        voxel_size=(pitch, pitch),
    )


def head_ct() -> Image:
    """The CT slice of a head that the pydicom package carries, 512 x 512 pixels of 0.431 mm, in HU.

    It is read from pydicom's installed files through this package's own DICOM reader; nothing is downloaded.

    Raises:
        RuntimeError: this pydicom does not carry the file.
    """
    from pydicom.data import get_testdata_file

    from invreg.io import read

    path = get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)
    if not isinstance(path, str):
        raise RuntimeError("pydicom carries no J2K_pixelrep_mismatch.dcm; install pydicom >= 3.0 from its wheel")
    record = read(path)
    if not isinstance(record, Image):
        raise RuntimeError(f"{path} must hold an image, got {type(record).__name__}")
    return record


def _check_image(image: Tensor) -> None:
    require_tensor("image", image)
    if image.ndim != 3 or image.shape[0] != 1 or image.is_complex():
        raise ValueError(f"image must be real, (1, y, x), got {image.dtype} {tuple(image.shape)}")
    require_finite("image", image)


def _centred(count: int, extent: float) -> Tensor:
    """Positions of grid points with the centre at index count // 2, in double precision."""
    return (torch.arange(count, dtype=torch.float64) - count // 2) * (extent / count)


def _sampling_grid(
    shape: tuple[int, int],
    pixel: tuple[float, float],
    source_pixel: tuple[float, float],
    source: tuple[int, int],
    rotation: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """Where grid_sample (aligned corners) must look in the source for each point of a grid, (1, y, x, 2).

    Both centres are at index N // 2; the grid's points are turned and shifted against the source.
    """
    y, x = torch.meshgrid(
        _centred(shape[0], shape[0] * pixel[0]) - shift[0],
        _centred(shape[1], shape[1] * pixel[1]) - shift[1],
        indexing="ij",
    )
    cosine, sine = math.cos(rotation), math.sin(rotation)
    row = (cosine * y - sine * x) / source_pixel[0] + source[0] // 2
    column = (sine * y + cosine * x) / source_pixel[1] + source[1] // 2
    return torch.stack([2 * column / (source[1] - 1) - 1, 2 * row / (source[0] - 1) - 1], -1)[None]


def _smooth_phase(shape: tuple[int, int]) -> Tensor:
    """A smooth phase of a few radians over the field of view, (y, x): shim and eddy currents, as a polynomial."""
    v, u = torch.meshgrid(_centred(shape[0], 2.0), _centred(shape[1], 2.0), indexing="ij")
    return 0.4 + 0.9 * u - 0.6 * v + 0.8 * (u * u - v * v) + 0.5 * u * v - 0.7 * u * v * v


def _cut_spectrum(image: Tensor, matrix: tuple[int, int]) -> Tensor:
    """The central part of an image's spectrum, scaled so that the orthonormal transform on `matrix` gives the image."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(image), norm="forward"))
    (fine_y, fine_x), (n_y, n_x) = spectrum.shape, matrix
    top, left = fine_y // 2 - n_y // 2, fine_x // 2 - n_x // 2
    cut: Tensor = spectrum[top : top + n_y, left : left + n_x] * math.sqrt(n_y * n_x)
    return cut


def _image_of(kspace: Tensor) -> Tensor:
    image: Tensor = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(kspace), norm="ortho"))
    return image


def _line_integrals(image: Tensor, pixel: float, angle: float, offsets: Tensor) -> Tensor:
    """Integrals of the bilinear interpolation of a square image along x cos + y sin = offset, shaped as offsets."""
    side = image.shape[-1]
    half = (side - 1) / 2 * pixel
    reach = math.sqrt(2) * side / 2 * pixel
    steps = math.ceil(math.sqrt(2) * side)
    t = (torch.arange(steps, dtype=torch.float64) + 0.5) * (2 * reach / steps) - reach
    x = offsets[:, None] * math.cos(angle) - t * math.sin(angle)
    y = offsets[:, None] * math.sin(angle) + t * math.cos(angle)
    grid = torch.stack([x, y], -1)[None] / half
    values = grid_sample(image.float()[None], grid.float(), mode="bilinear", align_corners=True)[0, 0]
    total: Tensor = values.sum(1, dtype=torch.float64) * (2 * reach / steps)
    return total
