"""The noise level of a measurement: from the file, from the user, or estimated from what holds next to no signal."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_positive
from invreg.io.records import Image, KSpace, Sinogram

FEWEST = 64  # entries that an estimate needs


@dataclass(frozen=True, eq=False)
class NoiseLevel:
    """A standard deviation of each real component of the noise, in the units of the data.

    Args:
        sigma: a number, or a tensor that broadcasts to the data; None if unknown.
        source: where it comes from, in words.
    """

    sigma: float | Tensor | None
    source: str

    def number(self) -> float | None:
        """One number for all entries."""
        if isinstance(self.sigma, Tensor):
            return mean_level(self.sigma)
        return self.sigma


def mean_level(sigma: Tensor) -> float:
    """The one noise level that carries as much information as these: the root of the harmonic mean of variances."""
    return float(sigma.double().pow(-2).mean().pow(-0.5))


def noise_level(record: KSpace | Sinogram | Image, given: float | None) -> NoiseLevel:
    """The noise level of a record: the user's number, else the file's, else an estimate.

    Raises:
        ValueError: the given number is not positive.
    """
    if given is not None:
        require_positive("sigma", given)
        return NoiseLevel(given, "--sigma")
    if isinstance(record, KSpace):
        if record.noise_sigma is not None:
            return NoiseLevel(record.noise_sigma, "noise scan of the file")
        return _estimate(record.data[_outer(record)], "estimated from the outermost sampled k-space")
    if isinstance(record, Sinogram):
        if record.counts is not None and record.photons is not None:
            sigma = (record.counts.clamp_min(0.5)).rsqrt()
            return NoiseLevel(sigma.to(record.data.dtype), "photon counts of the file")
        bend = record.data[..., 2:] - 2 * record.data[..., 1:-1] + record.data[..., :-2]
        return _estimate(bend / math.sqrt(6), "estimated from second differences along the detector")
    x = record.data
    twist = x[..., 1:, 1:] - x[..., :-1, 1:] - x[..., 1:, :-1] + x[..., :-1, :-1]
    return _estimate(twist / 2, "estimated from mixed differences of neighbouring pixels")


def _outer(record: KSpace) -> Tensor:
    """Sampled entries of the corners of k-space, else of its rim, bool, shaped as the data."""
    distance = [
        ((torch.arange(n, device=record.data.device) - n // 2).abs() / (n / 2)).reshape(
            *(n if axis == k else 1 for k in range(len(record.spatial)))
        )
        for axis, n in enumerate(record.spatial)
    ]
    nearest, farthest = distance[0], distance[0]
    for one in distance[1:]:
        nearest, farthest = torch.minimum(nearest, one), torch.maximum(farthest, one)
    measured = record.data != 0
    corners = measured & (nearest > 0.85)
    return corners if int(corners.sum()) >= FEWEST else measured & (farthest > 0.9)


def _estimate(values: Tensor, source: str) -> NoiseLevel:
    """A robust standard deviation from the median magnitude, exact for Gaussian noise alone."""
    size = values.abs().flatten()
    if size.numel() < FEWEST:
        return NoiseLevel(None, "unknown: too few entries without signal")
    # the median of |n| is sigma sqrt(2 log 2) for complex noise (Rayleigh) and 0.67449 sigma for real noise
    sigma = float(size.median()) / (math.sqrt(2 * math.log(2)) if values.is_complex() else 0.6744897501960817)
    return NoiseLevel(sigma, source) if sigma > 0 else NoiseLevel(None, "unknown: no noise found")
