"""K-space from a file as problems to solve, one slice at a time."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from invreg import config
from invreg._check import unknown_name
from invreg.cli.noise_level import NoiseLevel
from invreg.interfaces import LinearOperator
from invreg.io.records import Image, KSpace
from invreg.mri import SensitivityMaps, espirit
from invreg.operators import MaskedFourier, Sense, SoftSense, centred_ifft

ENOUGH = 0.9
"""Share of the calibration lines' energy where the coil maps are not 0; whole heads have 0.98 and more."""


class MRI:
    """A multi-coil or single-coil Cartesian scan.

    Args:
        record: what was read.
        operator: `NAME[:key=value,...]` or None: SENSE for several coils, the Fourier transform for one.
        maps: coil maps of another file, (B or 1, coil, [z,] y, x), or None: those of the file, else ESPIRiT's.
        device: where to compute.

    Raises:
        ValueError: maps that do not fit, an operator that is not for k-space, or data without a measurement.
    """

    kind = "mri"
    prior, algorithm, iterations = "wavelet", "fista", 100
    unregularized = 10
    positive = False

    def __init__(self, record: KSpace, operator: str | None, maps: Tensor | None, device: torch.device) -> None:
        self.record, self.device = record, device
        self.count = record.data.shape[0]
        self.dim = len(record.spatial)
        coils = record.data.shape[1]
        spec = config.parse(operator or ("sense" if coils > 1 else "fourier"))
        cls = config.choose("operator", spec.name, config.OPERATORS)
        if cls not in (Sense, SoftSense, MaskedFourier):
            raise ValueError(f"operator of k-space must be sense, soft-sense or fourier, got {spec.name}")
        if cls is MaskedFourier and coils > 1:
            raise ValueError(f"fourier takes one coil, got {coils}; use sense or soft-sense")
        self.cls: Any = cls
        self.channel_dim = 1 if cls is SoftSense else None  # the map sets of an image, (B, set, [z,] y, x)
        self.maps = record.maps if maps is None else maps
        if self.maps is not None:
            self._check_maps(self.maps)
        self.options = _map_options(spec.options, spec.name, cls, estimated=self.maps is None)
        self._holes = ""
        self._latest: tuple[int, LinearOperator] | None = None
        self.scale, self.scale_rule = self._scale()

    def _check_maps(self, maps: Tensor) -> None:
        coils, spatial = self.record.data.shape[1], self.record.spatial
        if self.cls is not Sense:
            raise ValueError(f"maps from a file go with sense, got {self.cls.__name__}; leave --maps away")
        if maps.ndim != self.record.data.ndim or maps.shape[0] not in (1, self.count):
            raise ValueError(
                f"maps must be (1 or {self.count}, {coils}, {', '.join(map(str, spatial))}), got {tuple(maps.shape)}"
            )
        if maps.shape[1] != coils:
            raise ValueError(f"maps must have {coils} coils as the k-space, got {maps.shape[1]}")
        if tuple(maps.shape[2:]) != spatial:
            raise ValueError(f"maps must be on the k-space's grid {spatial}, got {tuple(maps.shape[2:])}")

    def _scale(self) -> tuple[float, str]:
        """One scale for the whole file, from its strongest slice."""
        energy = torch.stack([one.abs().square().sum() for one in self.record.data])
        strongest = int(energy.argmax())
        if not float(energy[strongest]) > 0:
            raise ValueError("data must hold a measurement, got zeros only")
        size = self.operator(strongest).adjoint(self.raw(strongest)).abs().flatten()
        scale = float(size.kthvalue(max(1, round(0.99 * size.numel()))).values)
        if not scale > 0:
            raise ValueError("coil maps must cover the object, got a back-projection that is zero nearly everywhere")
        where = "" if self.count == 1 else f" of slice {strongest}, the strongest"
        return scale, f"99th percentile of |A^H y|{where}"

    def mask(self, index: int) -> Tensor | None:
        """What is sampled in a slice, (1, 1, [z,] y, x) with axes of size 1, or None: everything."""
        mask = self.record.mask
        return None if mask is None else mask[index if mask.shape[0] > 1 else 0][None].to(self.device)

    def raw(self, index: int) -> Tensor:
        """A slice's measurement in the units of the file."""
        data = self.record.data[index : index + 1].to(self.device)
        return data[:, 0] if self.cls is MaskedFourier else data

    def y(self, index: int) -> Tensor:
        """A slice's measurement, divided by the scale."""
        return self.raw(index) / self.scale

    def operator(self, index: int) -> LinearOperator:
        """The forward model of a slice; coil maps are estimated here."""
        if self._latest is None or self._latest[0] != index:
            self._latest = (index, self._operator(index))
        return self._latest[1]

    def _operator(self, index: int) -> LinearOperator:
        mask = self.mask(index)
        if self.cls is MaskedFourier:
            shape = self.record.spatial
            full = torch.ones(shape, dtype=torch.bool, device=self.device) if mask is None else mask[:, 0]
            return MaskedFourier(full, self.dim, shape=shape)
        if self.maps is not None:
            maps = self.maps[index if self.maps.shape[0] > 1 else 0][None]
            return Sense(maps.to(self.device, self.record.data.dtype), mask, self.dim)
        return self._estimated(index, mask)

    def _estimated(self, index: int, mask: Tensor | None) -> LinearOperator:
        lines = self.record.calibration
        if lines is None:
            kspace, sampled = self.record.data[index : index + 1].to(self.device), mask
        else:
            kspace, sampled = lines[index if lines.shape[0] > 1 else 0][None].to(self.device), None
        found = espirit(kspace, sampled, **self.options)
        self._holes = _holes(found, kspace)
        return SoftSense(found.sets, mask, self.dim) if self.cls is SoftSense else Sense(found.maps, mask, self.dim)

    def sigma(self, index: int, level: NoiseLevel) -> float | Tensor | None:
        """The noise level of a slice in units of the scaled measurement."""
        if not isinstance(level.sigma, Tensor):
            return None if level.sigma is None else level.sigma / self.scale
        one = level.sigma[index if level.sigma.shape[0] > 1 else 0][None].to(self.device) / self.scale
        return one[:, 0] if self.cls is MaskedFourier else one

    def start(self, index: int) -> Tensor | None:
        """No first image: zeros do."""
        return None

    def covered(self, index: int, x: Tensor) -> Tensor:
        """An image with 0 where no coil map reaches: nothing was measured there, only the prior spoke."""
        operator = self.operator(index)
        if isinstance(operator, Sense):
            return x * (operator.maps != 0).any(1)
        return x * (operator.maps != 0).any(2) if isinstance(operator, SoftSense) else x

    def image(self, x: Tensor) -> Image:
        """Reconstructions in the units of the file, (B, [z,] y, x), with the scan's geometry."""
        if self.cls is SoftSense:
            x = x.abs().square().sum(1).sqrt().to(x.dtype)
        return self.record.image(x)

    def water(self) -> tuple[float, float] | None:
        """No attenuation."""
        return None

    def about(self) -> dict[str, Any]:
        """What was decided, for the record."""
        source = "none" if self.cls is MaskedFourier else "given" if self.maps is not None else "ESPIRiT"
        lines = "separate lines" if self.record.calibration is not None else "the scan's own centre"
        options = "".join(f", {key} {value}" for key, value in self.options.items())
        return {
            "operator": self.cls.__name__,
            "coil maps": f"{source} from {lines}{options}{self._holes}" if source == "ESPIRiT" else source,
        }


def _holes(found: SensitivityMaps, kspace: Tensor) -> str:
    """What to say where the maps leave out much of what the calibration lines see; nothing where they do not."""
    centre = torch.zeros_like(kspace)
    inside, lines = centre, kspace
    for axis, m in enumerate(found.calibration, start=2):
        first = kspace.shape[axis] // 2 - m // 2
        inside, lines = inside.narrow(axis, first, m), lines.narrow(axis, first, m)
    inside.copy_(lines)
    energy = centred_ifft(centre, len(found.calibration)).abs().square().sum(1)
    reached = (found.sets != 0).any(2).any(1)
    share = float((energy * reached).sum() / energy.sum())
    if share >= ENOUGH:
        return ""
    voxels = float(reached.double().mean())
    return (
        f"; WARNING: they reach {voxels:.0%} of the voxels, with {share:.0%} of the signal; the image is 0 elsewhere: "
        f"the calibration region of {' x '.join(map(str, found.calibration))} is small for the kernel, or noisy; give "
        "--maps, more calibration lines, or kernel=2 or crop=0.8 as options of --operator"
    )


def _map_options(options: Mapping[str, Any], name: str, cls: Any, *, estimated: bool) -> dict[str, Any]:
    """Options of `espirit` from those of the operator, with two sets for soft-sense."""
    if cls is MaskedFourier and options:
        raise ValueError(f"fourier takes no options, got {', '.join(options)}; leave them away")
    known = {"calibration", "kernel", "threshold", "crop"} | ({"sets"} if cls is SoftSense else set())
    for key in options:
        if key not in known:
            raise ValueError(unknown_name(f"option of {name}", key, known))
    if options and not estimated:
        raise ValueError(f"{', '.join(options)} of {name} are for maps that ESPIRiT estimates, but the maps are given")
    return ({"sets": 2} if cls is SoftSense else {}) | dict(options)
