"""A sinogram from a file as problems to solve, one slice at a time."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from invreg import config
from invreg._check import require_positive
from invreg.algorithms import filtered_backprojection
from invreg.cli.noise_level import NoiseLevel
from invreg.interfaces import LinearOperator
from invreg.io import mu_to_hu
from invreg.io.records import Image, Sinogram
from invreg.operators import FanBeam, ParallelBeam

MU_WATER = 0.02  # 1/mm
_SAY_PITCH = "write parallel-beam:detector_pitch=MM"


class CT:
    """A parallel-beam or fan-beam scan.

    Without a detector pitch, in the file or as an option of the operator, the pixels have size 1 and the image is in
    units of 1/pixel.

    Args:
        record: what was read.
        operator: `NAME[:key=value,...]` or None: a parallel beam.
        size: pixels along each side of the image; default what the file says, else the number of detectors.
        pixel_size: mm; default the detector pitch (for a fan beam demagnified to the centre).
        mu_water: attenuation of water, 1/mm: the scale; default 0.02.
        centre: where the rotation axis falls on the detector, a cell counted from 0; default the file's.
        device: where to compute.

    Raises:
        TypeError, ValueError: an operator that is not for sinograms, numbers out of range, or one thing stated twice.
    """

    kind = "ct"
    prior, algorithm, iterations = "tv", "pdhg:balance=0.1", 200  # the balance that ray transforms with TV drift to
    unregularized = 20  # of 5 to 100, near the least error in HU of the simulated head at 5e3 and 5e4 photons
    positive = True
    dim = 2
    channel_dim: int | None = None

    def __init__(
        self,
        record: Sinogram,
        operator: str | None,
        size: int | None,
        pixel_size: float | None,
        mu_water: float | None,
        centre: float | None,
        device: torch.device,
    ) -> None:
        spec = config.parse(operator or "parallel-beam")
        cls = config.choose("operator", spec.name, config.OPERATORS)
        if cls not in (ParallelBeam, FanBeam):
            raise ValueError(f"operator of a sinogram must be parallel-beam or fan-beam, got {spec.name}")
        flags = {
            "size": ("shape", size),
            "pixel-size": ("pixel_size", pixel_size),
            "centre": ("detector_offset", centre),
        }
        for flag, (key, value) in flags.items():
            if value is not None and key in spec.options:
                raise ValueError(f"--{flag} says the same as {spec.name}:{key}; leave one of them away")
        self.device, self.count = device, record.data.shape[0]
        self.record, self.centre_source = _stated(record, spec, centre)
        self.mu_water = MU_WATER if mu_water is None else mu_water
        require_positive("mu_water", self.mu_water)
        self.physical = self.record.detector_pitch is not None
        # without a pitch the unit of length is a pixel and there is no attenuation of water in it
        self.scale = self.mu_water if self.physical else self._largest()
        self.scale_rule = "mu_water" if self.physical else "99.9th percentile of y per detector"
        self._operator = self._build(cls, spec, size, pixel_size)
        self.pixel_size = self._operator.pixel_size

    def _largest(self) -> float:
        data = self.record.data.flatten()
        largest = float(data.kthvalue(max(1, round(0.999 * data.numel()))).values) / self.record.data.shape[-1]
        if not largest > 0:
            raise ValueError("data must hold positive line integrals, got none; is it a sinogram after the logarithm?")
        return largest

    def _build(self, cls: Any, spec: config.Spec, size: int | None, pixel_size: float | None) -> ParallelBeam | FanBeam:
        record = self.record
        detectors = record.data.shape[-1]
        pitch = record.detector_pitch if record.detector_pitch is not None else 1.0
        if size is None:
            stored = record.meta.get("image_size")
            size = stored if isinstance(stored, int) and stored > 0 else detectors
        if pixel_size is None:
            pixel_size = pitch
            if cls is FanBeam:  # the pitch as seen at the centre of rotation
                source = spec.options.get("source_origin")
                detector = spec.options.get("origin_detector")
                if isinstance(source, int | float) and isinstance(detector, int | float) and source + detector > 0:
                    pixel_size = pitch * source / (source + detector)
        offset = record.detector_offset
        given = {
            "shape": (size, size),
            "angles": record.angles.to(record.data.dtype),
            "detectors": detectors,
            "pixel_size": pixel_size,
            "detector_pitch": pitch,
            "detector_offset": offset if offset is not None else self._offset_in_cells(),
        }
        options = {key: value for key, value in spec.options.items() if key != "detector_pitch"}  # the record has it
        made = config.build(cls, spec.name, options, given)
        assert isinstance(made, ParallelBeam | FanBeam)
        return made.to(self.device)

    def _offset_in_cells(self) -> float:
        centre = self.record.centre_of_rotation
        return 0.0 if centre is None else (self.record.data.shape[-1] - 1) / 2 - centre

    def _centre(self) -> str:
        """The cell that the operator has, and where it comes from."""
        operator = self._operator
        cell = (operator.detectors - 1) / 2 - operator.detector_offset / operator.detector_pitch
        return f"{cell:.6g} ({self.centre_source})"

    def _pitch(self) -> float:
        """Of the detector, as seen at the centre of rotation."""
        operator = self._operator
        if isinstance(operator, FanBeam):
            return (
                operator.detector_pitch * operator.source_origin / (operator.source_origin + operator.origin_detector)
            )
        return operator.detector_pitch

    def _cut(self) -> str | None:
        """A warning where the image is smaller than what the detector, or the file, says that was seen."""
        operator = self._operator
        stored = self.record.meta.get("image_size")
        cells = stored if isinstance(stored, int) and stored > 0 else operator.detectors
        image, seen = min(operator.image_shape) * self.pixel_size, cells * self._pitch()
        if image > 0.99 * seen:
            return None
        unit = "mm" if self.physical else "detector cells"
        return (
            f"WARNING: {image:.4g} {unit} of the {seen:.4g} that the scan saw; what lies outside streaks into it: "
            f"give --pixel-size {seen / min(operator.image_shape):.4g} for the same size, or a larger --size"
        )

    def operator(self, index: int) -> LinearOperator:
        """The forward model, the same for all slices."""
        return self._operator

    def raw(self, index: int) -> Tensor:
        """A slice's line integrals."""
        return self.record.data[index : index + 1].to(self.device)

    def y(self, index: int) -> Tensor:
        """A slice's line integrals, divided by the scale."""
        return self.raw(index) / self.scale

    def sigma(self, index: int, level: NoiseLevel) -> float | Tensor | None:
        """The noise level of a slice in units of the scaled line integrals."""
        if not isinstance(level.sigma, Tensor):
            return None if level.sigma is None else level.sigma / self.scale
        return level.sigma[index if level.sigma.shape[0] > 1 else 0][None].to(self.device) / self.scale

    def start(self, index: int) -> Tensor | None:
        """Filtered back-projection without its negative values: iterations from it need not find the bulk first."""
        return filtered_backprojection(self._operator, self.y(index)).clamp_min(0)

    def covered(self, index: int, x: Tensor) -> Tensor:
        """The image as it is: every pixel is measured."""
        return x

    def image(self, x: Tensor) -> Image:
        """Reconstructions (B, y, x), attenuation in 1/mm, as HU; without a pitch as they are."""
        meta = dict(self.record.meta)
        if not self.physical:
            return Image(x, "arbitrary", meta=meta, slices=self.count)
        hu = mu_to_hu(x, self.mu_water)
        return Image(hu, "HU", (self.pixel_size, self.pixel_size), self._affine(), self.count, meta)

    def water(self) -> tuple[float, float] | None:
        """The scale is the attenuation of water, where it is known."""
        return (1.0, 0.0) if self.physical else None

    def _affine(self) -> Tensor | None:
        """Of a stack, whose slices lie a row of the detector apart: its middle at 0, x to the left, y to the back."""
        if self.count == 1:
            return None
        ny, nx = self._operator.image_shape
        steps = torch.tensor([-self.pixel_size, -self.pixel_size, self._pitch()], dtype=torch.float64)  # to RAS+
        affine = torch.diag(torch.cat([steps, steps.new_ones(1)]))
        affine[:3, 3] = -steps * torch.tensor([nx - 1, ny - 1, self.count - 1]) / 2
        return affine

    def about(self) -> dict[str, Any]:
        """What was decided, for the record."""
        return {
            "operator": type(self._operator).__name__,
            "image": list(self._operator.signal_shape or ()),
            "pixel size (mm)": self.pixel_size if self.physical else f"unknown: no detector pitch; {_SAY_PITCH}",
            "field of view": self._cut(),
            "centre of rotation": self._centre(),
            "angles (degrees)": [
                round(math.degrees(float(self.record.angles.min())), 4),
                round(math.degrees(float(self.record.angles.max())), 4),
            ],
            "units": f"HU with mu_water = {self.mu_water} / mm" if self.physical else "1 / pixel",
        }


def _stated(record: Sinogram, spec: config.Spec, centre: float | None) -> tuple[Sinogram, str]:
    """The record with the pitch and the centre that the user states, and where the centre comes from, in words."""
    if "detector_pitch" in spec.options:
        record = replace(record, detector_pitch=spec.options["detector_pitch"])
    if centre is not None:
        last = record.data.shape[-1] - 1
        if not 0 <= centre <= last:
            raise ValueError(f"centre must be a cell of the detector, 0 to {last}, got {centre}")
        return replace(record, centre_of_rotation=float(centre)), "given"
    if "detector_offset" in spec.options:
        return record, "given"
    if record.centre_of_rotation is None:
        reason = record.meta.get("centre_of_rotation")
        return record, "assumed: the middle, --centre sets it" + (f"; {reason}" if isinstance(reason, str) else "")
    return record, "estimated" if record.meta.get("centre_of_rotation") == "estimated" else "given by the file"
