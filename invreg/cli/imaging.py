"""An image from a file as problems to solve: denoising, deblurring, inpainting, super-resolution."""

from typing import Any

import torch
from torch import Tensor

from invreg import config
from invreg._check import require_count, unknown_name
from invreg.cli.noise_level import NoiseLevel
from invreg.interfaces import LinearOperator
from invreg.io.records import Image
from invreg.operators import Blur, Downsample, Mask, gaussian_kernel


class Imaging:
    """A photograph-like measurement.

    Args:
        record: what was read.
        operator: `mask` (denoising; `mask:zeros=true` takes zeros for missing pixels), `blur:sigma=S` (Gaussian,
            pixels), or `downsample:factor=F`; None is `mask`.
        device: where to compute.

    Raises:
        ValueError: an operator that is not for images, an unknown option, or an image that is zero.
        TypeError: an option that is missing or of the wrong kind.
    """

    kind = "image"
    prior, algorithm, iterations = "tv", "fista", 100
    unregularized = 10
    positive = False
    channel_dim: int | None = None

    def __init__(self, record: Image, operator: str | None, device: torch.device) -> None:
        self.record, self.device = record, device
        self.count = record.data.shape[0]
        spec = config.parse(operator or "mask")
        cls = config.choose("operator", spec.name, config.OPERATORS)
        known = {Mask: {"zeros"}, Blur: {"sigma"}, Downsample: {"factor"}}
        if cls not in known:
            raise ValueError(f"operator of an image must be mask, blur or downsample, got {spec.name}")
        for key in spec.options:
            if key not in known[cls]:
                raise ValueError(unknown_name(f"option of {spec.name}", key, known[cls]))
        self.cls: Any = cls
        self.spec = spec
        self.dim = record.data.ndim - 1
        self._check_options()
        self.scale, self.scale_rule = self._scale(), "99th percentile of |A^H y|"

    def _check_options(self) -> None:
        needed = {Blur: "sigma", Downsample: "factor"}.get(self.cls)
        if needed is not None and needed not in self.spec.options:
            raise TypeError(f"{self.spec.name} needs {needed}; write {self.spec.name}:{needed}=VALUE")
        if self.cls is Downsample:
            factors = self._factors()
            for factor in factors:
                require_count("factor", factor)
            if len(factors) != self.dim:
                raise ValueError(f"factor must be one number or {self.dim}, one for each image axis, got {factors}")

    def _factors(self) -> tuple[int, ...]:
        """How much finer each axis becomes."""
        factor = self.spec.options["factor"]
        return factor if isinstance(factor, tuple) else (factor,) * self.dim

    def _scale(self) -> float:
        size = torch.cat([self.operator(i).adjoint(self.raw(i)).abs().flatten() for i in range(self.count)])
        scale = float(size.kthvalue(max(1, round(0.99 * size.numel()))).values)
        if not scale > 0:
            raise ValueError("data must hold an image, got zeros nearly everywhere")
        return scale

    def operator(self, index: int) -> LinearOperator:
        """The forward model of a slice."""
        shape = tuple(self.record.data.shape[1:])
        real = self.record.data.real.dtype
        if self.cls is Blur:
            kernel = gaussian_kernel(self.spec.options["sigma"], dim=self.dim, dtype=real)
            return Blur(kernel, shape).to(self.device)
        if self.cls is Downsample:
            factors = self._factors()
            fine = tuple(n * f for n, f in zip(shape, factors, strict=True))
            return Downsample(fine, factors).to(device=self.device, dtype=real)
        seen = self.raw(index) != 0 if self.spec.options.get("zeros") else torch.ones(shape, dtype=torch.bool)
        return Mask(seen, shape).to(self.device)

    def raw(self, index: int) -> Tensor:
        """A slice as it was read."""
        return self.record.data[index : index + 1].to(self.device)

    def y(self, index: int) -> Tensor:
        """A slice, divided by the scale."""
        return self.raw(index) / self.scale

    def sigma(self, index: int, level: NoiseLevel) -> float | Tensor | None:
        """The noise level in units of the scaled image."""
        return None if level.sigma is None else level.sigma / self.scale

    def start(self, index: int) -> Tensor | None:
        """No first image: zeros do."""
        return None

    def covered(self, index: int, x: Tensor) -> Tensor:
        """The image as it is: every pixel is measured."""
        return x

    def image(self, x: Tensor) -> Image:
        """Reconstructions with the geometry of the file, finer where they are."""
        fine = [n / m for n, m in zip(self.record.data.shape[1:], x.shape[1:], strict=True)]
        size = self.record.voxel_size
        voxel_size = None if size is None else tuple(s * f for s, f in zip(size, fine, strict=True))
        affine = self.record.affine
        if any(f != 1 for f in fine):
            affine = None
        return Image(x, self.record.units, voxel_size, affine, self.record.slices, dict(self.record.meta))

    def water(self) -> tuple[float, float] | None:
        """What HU are, over the scale; other units say nothing of water."""
        return (1000 / self.scale, -1000 / self.scale) if self.record.units == "HU" else None

    def about(self) -> dict[str, Any]:
        """What was decided, for the record."""
        return {"operator": self.cls.__name__, "options": dict(self.spec.options)}
