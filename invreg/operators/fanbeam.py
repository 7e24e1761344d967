"""Two-dimensional fan-beam tomography, flat or curved detector: line integrals by Joseph's method, exact adjoint."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from invreg._check import require_positive
from invreg.operators.joseph import (
    check_angles,
    check_grid,
    chunks,
    gather_fan,
    padded_views,
    pixel_axes,
    run_kernel,
    use_compiled,
)
from invreg.operators.rays import RayTransform


class FanBeam(RayTransform):
    """Fan-beam sinograms: (B, Ny, Nx) -> (B, A, D), real or complex.

    In view a the source is at centre + source_origin (sin a, -cos a) and the foot of the central ray at
    centre - origin_detector (sin a, -cos a). Detector d lies at u_d = (d - (D - 1) / 2) detector_pitch +
    detector_offset, along (cos a, sin a) on a flat panel or along the arc around the source. Its ray has the fan angle
    gamma, tan(gamma) = u / (source_origin + origin_detector) on a panel, gamma = u / (...) on an arc, and is the line
    with normal angle a - gamma at distance source_origin sin(gamma) from the centre of rotation. Axes as in
    `ParallelBeam`; for source_origin -> infinity it becomes `ParallelBeam`.

    The matrix entry of a ray and a pixel is Joseph's, (pixel_size / m) max(0, 1 - e / (m pixel_size)), with the ray's
    own m = max(|cos|, |sin|) and the pixel centre's distance e from it; the adjoint gathers, for every pixel, the
    detectors whose rays pass within m pixel_size.

    Args:
        shape: (Ny, Nx).
        angles: (A,), radians, any set; a tensor's precision becomes the operator's.
        detectors: D.
        source_origin: distance of source and centre of rotation, mm; the source must stay outside the image.
        origin_detector: distance of centre of rotation and detector, mm, >= 0.
        pixel_size: mm, > 0.
        detector_pitch: mm on the panel or along the arc; default the pixel size magnified to the detector.
        detector_offset: mm, by which all detectors are shifted.
        centre_of_rotation: (x, y) in mm from the image centre.
        curved: False for a flat panel, True for an arc around the source (equal angles).
        compile: as in `ParallelBeam`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or value; the source inside the image; an arc beyond
            half a turn.

    Warns:
        UserWarning: angles beyond 2 pi, which look like degrees.

    Source: Joseph 1982; Kak and Slaney 1988, section 3.4, for the geometry.
    """

    fan_cos: Tensor
    fan_sin: Tensor
    geometry: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        angles: Tensor | Sequence[float],
        detectors: int,
        *,
        source_origin: float,
        origin_detector: float,
        pixel_size: float = 1.0,
        detector_pitch: float | None = None,
        detector_offset: float = 0.0,
        centre_of_rotation: tuple[float, float] = (0.0, 0.0),
        curved: bool = False,
        compile: bool | None = None,
    ) -> None:
        values = check_angles(angles)
        require_positive("source_origin", source_origin)
        require_positive("origin_detector", origin_detector, zero_allowed=True)
        distance = float(source_origin + origin_detector)
        pitch = pixel_size * distance / source_origin if detector_pitch is None else detector_pitch
        check_grid(shape, detectors, {"pixel_size": pixel_size, "detector_pitch": pitch})
        super().__init__(
            shape,
            values,
            detectors,
            pixel_size=pixel_size,
            detector_pitch=pitch,
            detector_offset=detector_offset,
            centre_of_rotation=centre_of_rotation,
            compile=compile,
        )
        self.source_origin, self.origin_detector = float(source_origin), float(origin_detector)
        self.curved = curved
        ratio = self._offsets(torch.float64) / distance
        fan = ratio if curved else ratio.atan()
        widest = float(fan.abs().max())
        if widest >= math.pi / 2:
            raise ValueError(f"the half-fan must be below 90 degrees, got {math.degrees(widest):.4g}; check the pitch")
        self.taps = self._most_taps(widest)
        self.register_buffer("fan_cos", fan.cos().to(values.dtype))
        self.register_buffer("fan_sin", fan.sin().to(values.dtype))
        # distance of the source in pixels, detectors per unit of tangent (or of angle), index of the central ray
        middle = (detectors - 1) / 2 - self.detector_offset / pitch
        geometry = (source_origin / pixel_size, distance / pitch, middle)
        self.register_buffer("geometry", torch.tensor(geometry, dtype=values.dtype))

    @property
    def fan_angles(self) -> Tensor:
        """Angle gamma of each detector's ray with the central ray, (D,), radians."""
        return torch.atan2(self.fan_sin, self.fan_cos)

    def _most_taps(self, widest: float) -> int:
        """The most detectors whose rays can pass within a pixel of a pixel centre.

        Rays within a pixel of a point at distance r from the source lie within asin(pixel / r) of its direction;
        the nearest point of the image at fan angle gamma is where that ray enters the circle around all pixels.
        """
        ny, nx = self.image_shape
        cx, cy = self.centre_of_rotation
        reach_x, reach_y = ((n - 1) / 2 * self.pixel_size + abs(c) for n, c in ((nx, cx), (ny, cy)))
        radius = math.hypot(reach_x, reach_y)
        if self.source_origin <= radius + self.pixel_size:
            raise ValueError(
                f"source_origin must exceed {radius + self.pixel_size:.6g} mm, where the image reaches, "
                f"got {self.source_origin:g}; check the units (mm) and pixel_size"
            )
        nearest = self.source_origin - radius  # at any fan angle, so the bound is safe
        half = math.asin(min(1.0, self.pixel_size / nearest))
        seen = min(widest, math.asin(min(1.0, (radius + self.pixel_size) / self.source_origin)))
        if self.curved:
            angular = 2 * half
        else:
            low, high = seen - 2 * half, seen  # the steepest piece of the tangent that a detector can lie on
            angular = math.tan(high) - math.tan(max(low, -math.pi / 2 + 1e-6))
        width = angular * (self.source_origin + self.origin_detector) / self.detector_pitch
        return min(math.ceil(width + 1e-6), self.detectors)

    def _normals(self) -> tuple[Tensor, Tensor]:
        cos, sin = self.cos[:, None], self.sin[:, None]
        return cos * self.fan_cos + sin * self.fan_sin, sin * self.fan_cos - cos * self.fan_sin

    def _distances(self) -> Tensor:
        cx, cy = self.centre_of_rotation
        cos, sin = self._normals()
        return self.source_origin * self.fan_sin + cx * cos + cy * sin

    def _backproject(self, sinogram: Tensor) -> Tensor:
        views, starts, last = padded_views(sinogram * self._length(), self.taps)
        fan = torch.nn.functional.pad(torch.stack([self.fan_cos, self.fan_sin]), (self.taps, self.taps))
        y, x = pixel_axes(self.image_shape, sinogram)
        cx, cy = self.centre_of_rotation
        y, x = y - cy / self.pixel_size, x - cx / self.pixel_size
        channels, angles, pixels = sinogram.shape[0], self.angles.numel(), y.numel() * x.numel()
        compiled = use_compiled(self.compile_kernels, channels * angles * pixels * 2, sinogram.device)
        total = sinogram.new_zeros(channels, y.numel(), x.numel())
        for part in chunks(angles, pixels, channels, compiled=False):
            total = total + run_kernel(
                gather_fan,
                self.compile_kernels,
                compiled,
                views[:, part].flatten(1),
                self.cos[part],
                self.sin[part],
                starts[: part.stop - part.start],
                fan,
                self.geometry,
                y,
                x,
                last,
                self.taps,
                self.curved,
            )
        return total

    def extra_repr(self) -> str:
        kind = "arc" if self.curved else "panel"
        return f"shape={self.image_shape}, angles={self.angles.numel()}, detectors={self.detectors} ({kind})"
