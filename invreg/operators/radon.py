"""Two-dimensional parallel-beam tomography: line integrals by Joseph's method, with the exact adjoint."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from invreg.operators.joseph import (
    check_angles,
    check_grid,
    chunks,
    gather_parallel,
    padded_views,
    pixel_axes,
    run_kernel,
    use_compiled,
)
from invreg.operators.rays import RayTransform


class ParallelBeam(RayTransform):
    """Parallel-beam sinograms: (B, Ny, Nx) -> (B, A, D), real or complex.

    Pixel (i, j) has its centre at x = (j - (Nx - 1) / 2) pixel_size, y = (i - (Ny - 1) / 2) pixel_size (y downwards),
    for N odd and even. Detector d of view a measures the line (x - cx) cos(a) + (y - cy) sin(a) = s_d with
    s_d = (d - (D - 1) / 2) detector_pitch + detector_offset. An image in 1/mm gives plain numbers.

    The matrix entry is (pixel_size / m) max(0, 1 - |s_d - t| / (m pixel_size)), m = max(|cos a|, |sin a|), t the pixel
    centre's own s: Joseph's projector, for any pitch. Both directions gather, so they are deterministic; memory
    beyond image and sinogram is a bounded work space, and per view a few numbers are kept.

    Args:
        shape: (Ny, Nx).
        angles: (A,), radians, any set; a tensor's precision becomes the operator's.
        detectors: D; default ceil of the image's diagonal in pitches.
        pixel_size, detector_pitch: mm, > 0; the pitch defaults to the pixel size.
        detector_offset: mm, by which all detectors are shifted. For a rotation axis seen at detector index c, use
            ((D - 1) / 2 - c) * detector_pitch.
        centre_of_rotation: (x, y) in mm from the image centre.
        compile: True compiles the kernels on first use (some seconds, once a process), False never does, None does for
            large problems where a compiler is at hand.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or value.

    Warns:
        UserWarning: angles beyond 2 pi, which look like degrees.

    Source: Joseph 1982, "An improved algorithm for reprojecting rays through pixel images".
    """

    def __init__(
        self,
        shape: tuple[int, int],
        angles: Tensor | Sequence[float],
        detectors: int | None = None,
        *,
        pixel_size: float = 1.0,
        detector_pitch: float | None = None,
        detector_offset: float = 0.0,
        centre_of_rotation: tuple[float, float] = (0.0, 0.0),
        compile: bool | None = None,
    ) -> None:
        values = check_angles(angles)
        pitch = pixel_size if detector_pitch is None else detector_pitch
        check_grid(shape, 1 if detectors is None else detectors, {"pixel_size": pixel_size, "detector_pitch": pitch})
        count = math.ceil(math.hypot(*shape) * pixel_size / pitch) if detectors is None else detectors
        super().__init__(
            shape,
            values,
            count,
            pixel_size=pixel_size,
            detector_pitch=pitch,
            detector_offset=detector_offset,
            centre_of_rotation=centre_of_rotation,
            compile=compile,
        )

    def _centre_shift(self) -> Tensor:
        """S of the image centre in every view, (A,), mm."""
        cx, cy = self.centre_of_rotation
        return -(cx * self.cos + cy * self.sin)

    def _normals(self) -> tuple[Tensor, Tensor]:
        return self.cos[:, None], self.sin[:, None]

    def _distances(self) -> Tensor:
        return self.offsets - self._centre_shift()[:, None]

    def _backproject(self, sinogram: Tensor) -> Tensor:
        ratio = self.pixel_size / self.detector_pitch
        taps = max(1, math.ceil(2 * ratio))
        views, starts, last = padded_views(sinogram * self._length(), taps)
        middle = (self.detectors - 1) / 2 - self.detector_offset / self.detector_pitch
        shift = middle + self._centre_shift() / self.detector_pitch
        cos, sin = self.cos * ratio, self.sin * ratio
        reach = torch.maximum(cos.abs(), sin.abs())
        y, x = pixel_axes(self.image_shape, sinogram)
        channels, angles, pixels = sinogram.shape[0], self.angles.numel(), y.numel() * x.numel()
        compiled = use_compiled(self.compile_kernels, channels * angles * pixels, sinogram.device)
        total = sinogram.new_zeros(channels, y.numel(), x.numel())
        for part in chunks(angles, pixels, channels, compiled):
            total = total + run_kernel(
                gather_parallel,
                self.compile_kernels,
                compiled,
                views[:, part].flatten(1),
                cos[part],
                sin[part],
                shift[part],
                reach[part],
                starts[: part.stop - part.start],
                y,
                x,
                last,
                taps,
            )
        return total

    def extra_repr(self) -> str:
        return f"shape={self.image_shape}, angles={self.angles.numel()}, detectors={self.detectors}"
