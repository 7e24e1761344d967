"""`invreg info` and `invreg list`: what a file holds, and what there is to choose from."""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from invreg import config
from invreg._check import unknown_name
from invreg.algorithms import Sampler
from invreg.cli.pipeline import DIRECT
from invreg.io import Image, KSpace, Record, Sinogram, formats, read

TOPICS = ("operators", "regularizers", "algorithms", "priors", "samplers", "formats", "models", "objectives", "data")


def describe(path: Path, format: str | None = None) -> dict[str, Any]:
    """What a file holds, in plain words and numbers.

    Args:
        path: of the file.
        format: name of its format, default told from its content.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: as `invreg.io.read`.
    """
    record = read(path, format)
    common = {
        "file": str(path),
        "holds": type(record).__name__,
        "shape": list(record.data.shape),
        "axes": _axes(record),
        "dtype": str(record.data.dtype).removeprefix("torch."),
        "largest magnitude": float(record.data.abs().max()),
    }
    if isinstance(record, KSpace):
        return common | _about_kspace(record)
    if isinstance(record, Sinogram):
        return common | _about_sinogram(record)
    return common | _about_image(record)


def _axes(record: Record) -> str:
    if isinstance(record, Sinogram):
        return "batch, angles, detectors"
    names = ["z", "y", "x"]
    if isinstance(record, KSpace):
        return ", ".join(["batch", "coil", *names[-len(record.spatial) :]])
    return ", ".join(["batch", *names[1 - record.data.ndim :]])


def _about_kspace(record: KSpace) -> dict[str, Any]:
    sampled = 1.0 if record.mask is None else float(record.mask.float().mean())
    sigma = record.noise_sigma
    return {
        "coils": record.data.shape[1],
        "sampled": f"{100 * sampled:.1f} %",
        "acceleration": round(1 / sampled, 2),
        "voxel size (mm)": _plain(record.voxel_size),
        "shown part": _plain(record.crop),
        "slices": record.slices,
        "coil maps": "in the file" if record.maps is not None else "none: ESPIRiT estimates them",
        "noise sigma": "unknown" if sigma is None else "varies" if isinstance(sigma, Tensor) else sigma,
        "meta": dict(record.meta),
    }


def _about_sinogram(record: Sinogram) -> dict[str, Any]:
    first, last = math.degrees(float(record.angles.min())), math.degrees(float(record.angles.max()))
    return {
        "angles": f"{len(record.angles)} from {first:.2f} to {last:.2f} degrees",
        "detector pitch (mm)": record.detector_pitch,
        "centre of rotation (cell)": record.centre_of_rotation,
        "photon counts": "in the file" if record.counts is not None else "none",
        "meta": dict(record.meta),
    }


def _about_image(record: Image) -> dict[str, Any]:
    data = record.data.abs() if record.data.is_complex() else record.data
    return {
        "units": record.units,
        "range": [float(data.min()), float(data.max())],
        "voxel size (mm)": _plain(record.voxel_size),
        "slices": record.slices,
        "meta": dict(record.meta),
    }


def _plain(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else list(values)


def listing(topic: str | None) -> dict[str, dict[str, str]]:
    """Names and one line each, by topic.

    Raises:
        ValueError: an unknown topic.
    """
    if topic is not None and topic not in TOPICS:
        raise ValueError(unknown_name("topic", topic, TOPICS))
    everything = {
        "operators": {name: config.summary(cls) for name, cls in sorted(config.OPERATORS.items())},
        "regularizers": {name: config.summary(cls) for name, cls in sorted(config.REGULARIZERS.items())},
        "algorithms": {
            name: config.summary(cls) for name, cls in sorted(config.ALGORITHMS.items()) if not issubclass(cls, Sampler)
        }
        | DIRECT,
        "priors": dict(config.PRIORS),
        "samplers": {name: preset.about for name, preset in config.PRESETS.items()},
        "formats": {one.name: f"{one.description} ({', '.join(one.suffixes)})" for one in formats()},
        "models": {name: config.summary(cls) for name, cls in sorted(config.MODELS.items())},
        "objectives": {name: config.summary(cls) for name, cls in sorted(config.OBJECTIVES.items())},
        "data": {name: config.summary(one) for name, one in sorted(config.DATA.items())},
    }
    return everything if topic is None else {topic: everything[topic]}
