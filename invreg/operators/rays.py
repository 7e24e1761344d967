"""What the ray transforms share: their geometry, the projection along lines, and an adjoint that autograd knows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invreg._check import require_same_precision
from invreg.interfaces import LinearOperator
from invreg.operators.joseph import (
    as_channels,
    check_offset,
    check_point,
    chunks,
    from_channels,
    padded_rows,
    project_lines,
    run_kernel,
    use_compiled,
)


class RayTransform(LinearOperator):
    """Line integrals (B, Ny, Nx) -> (B, A, D), real or complex, by Joseph's method.

    Args:
        shape: (Ny, Nx).
        angles: (A,), as `check_angles` gives them.
        detectors: D.
        pixel_size, detector_pitch, detector_offset: mm.
        centre_of_rotation: (x, y) in mm from the image centre.
        compile: as in `ParallelBeam`.
    """

    angles: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        angles: Tensor,
        detectors: int,
        *,
        pixel_size: float,
        detector_pitch: float,
        detector_offset: float,
        centre_of_rotation: tuple[float, float],
        compile: bool | None,
    ) -> None:
        super().__init__((int(shape[0]), int(shape[1])), (angles.numel(), detectors))
        self.image_shape = int(shape[0]), int(shape[1])
        self.detectors = detectors
        self.pixel_size, self.detector_pitch = float(pixel_size), float(detector_pitch)
        self.detector_offset = check_offset("detector_offset", detector_offset)
        self.centre_of_rotation = check_point("centre_of_rotation", centre_of_rotation)
        self.compile_kernels = compile
        wide = angles.double()
        self.register_buffer("angles", angles.clone())
        self.register_buffer("cos", wide.cos().to(angles.dtype))
        self.register_buffer("sin", wide.sin().to(angles.dtype))

    @property
    def offsets(self) -> Tensor:
        """Detector positions, (D,), mm."""
        return self._offsets(self.cos.dtype, self.cos.device)

    def forward(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        require_same_precision("x", x, "angles", self.cos)
        return from_channels(matched(as_channels(x), self._project, self._backproject), x)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_measurement(y)
        require_same_precision("y", y, "angles", self.cos)
        return from_channels(matched(as_channels(y), self._backproject, self._project), y)

    @abstractmethod
    def _normals(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the normal of every ray, (A, D), or of every view, (A, 1)."""

    @abstractmethod
    def _distances(self) -> Tensor:
        """Of every ray from the image centre along its normal, (A, D), mm."""

    @abstractmethod
    def _backproject(self, sinogram: Tensor) -> Tensor:
        """The transpose of `_project`, (C, A, D) -> (C, Ny, Nx)."""

    def _offsets(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        index = torch.arange(self.detectors, dtype=dtype, device=device)
        return (index - (self.detectors - 1) / 2) * self.detector_pitch + self.detector_offset

    def _length(self) -> Tensor:
        """Of every ray in a row (or column) of pixels, (A, D) or (A, 1), mm."""
        cos, sin = self._normals()
        return self.pixel_size / torch.maximum(cos.abs(), sin.abs())

    def _project(self, image: Tensor) -> Tensor:
        """(C, Ny, Nx) -> (C, A, D)."""
        rows = padded_rows(image)
        ny, nx = self.image_shape
        angles, count = self.angles.numel(), rows.starts.numel()
        cos, sin = self._normals()
        steep = cos.abs() >= sin.abs()
        main, side = torch.where(steep, cos, sin), torch.where(steep, sin, cos)
        # a line is main * u + side * v = s with u across the rows, v along them, both from the image centre
        across, along = torch.where(steep, nx, ny), torch.where(steep, ny, nx)
        slope = -side / main
        start = 1 + (across - 1) / 2.0 + slope * ((count - along) / 2.0)  # of `count` rows only `along` are real
        position = start + self._distances() / (main * self.pixel_size)
        base = torch.where(steep, 0, rows.turned).to(torch.int32)
        channels = image.shape[0]
        compiled = use_compiled(self.compile_kernels, channels * angles * self.detectors * count, image.device)
        parts = [
            run_kernel(
                project_lines,
                self.compile_kernels,
                compiled,
                rows.image,
                position[part],
                slope[part],
                base[part],
                rows.coordinates,
                rows.starts,
                rows.last,
            )
            for part in chunks(angles, count * self.detectors, channels, compiled)
        ]
        return torch.cat(parts, 1) * self._length()


class MatchedPair(torch.autograd.Function):
    """A linear map whose backward pass is its transpose, differentiable as often as you like."""

    @staticmethod
    def forward(x: Tensor, apply: Callable[[Tensor], Tensor], transpose: Callable[[Tensor], Tensor]) -> Tensor:
        return apply(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.pair = inputs[1:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        apply, transpose = ctx.pair
        return matched(gradient, transpose, apply), None, None


class FunctionalPair(MatchedPair):
    """The same with forward mode and vmap, which a compiler's tracing does not take."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return matched(tangent, *ctx.pair)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        apply: Callable[[Tensor], Tensor],
        transpose: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, int]:
        """More channels: both maps treat each alike."""
        assert in_dims[0] is not None
        stacked = x.movedim(in_dims[0], 0)
        out = matched(stacked.flatten(0, 1), apply, transpose)
        return out.reshape(*stacked.shape[:2], *out.shape[1:]), 0


def matched(x: Tensor, apply: Callable[[Tensor], Tensor], transpose: Callable[[Tensor], Tensor]) -> Tensor:
    """apply(x), with `transpose` as its vector-Jacobian product. Both are real: complex x go in as two channels."""
    pair = MatchedPair if torch.compiler.is_compiling() else FunctionalPair
    out: Tensor = pair.apply(x, apply, transpose)  # type: ignore[no-untyped-call]
    return out
