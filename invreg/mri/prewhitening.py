"""Prewhitening: coil noise made uncorrelated and of known size by a noise scan."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invreg._check import require_complex, require_finite, require_positive, require_same_precision, require_tensor


def noise_covariance(noise: Tensor, *, bandwidth_ratio: float = 1.0) -> Tensor:
    """Covariance of the coils' noise, E[n n^H], from a scan without signal.

    Args:
        noise: (coil, samples), complex, of mean 0; flatten several readouts into `samples`.
        bandwidth_ratio: noise power per sample of the scan to be whitened over that of the noise scan. Power is
            proportional to the bandwidth, so this is (dwell time of the noise scan) / (dwell time of the scan), over
            the receiver's relative noise bandwidth if it is known, as Gadgetron's noise adjustment has it.

    Returns:
        Hermitian, (coil, coil).

    Raises:
        TypeError: noise is not complex.
        ValueError: wrong shape, NaN or Inf, fewer samples than coils, or a coil that records nothing.
    """
    require_tensor("noise", noise)
    require_complex("noise", noise)
    if noise.ndim != 2:
        raise ValueError(f"noise must be (coil, samples), got {tuple(noise.shape)}")
    require_finite("noise", noise)
    require_positive("bandwidth_ratio", bandwidth_ratio)
    coils, samples = noise.shape
    if samples < coils:
        raise ValueError(f"noise must have at least as many samples as coils, got {samples} samples of {coils} coils")
    silent = (noise == 0).all(1).nonzero().flatten().tolist()
    if silent:
        raise ValueError(f"noise must be there in every coil, got only zeros in coil {silent}; leave those coils out")
    scale = noise.abs().amax()
    unit = noise / scale  # so that squares neither under- nor overflow before they are summed
    return (unit @ unit.mH) / samples * (scale.square() * bandwidth_ratio)


def whitening_matrix(covariance: Tensor) -> Tensor:
    """W = sqrt(2) L^-1 with covariance = L L^H.

    Noise n of this covariance has E[(W n)(W n)^H] = 2 I: real and imaginary part of every coil have variance 1. That
    is `Gaussian(sigma=1)` by this package's convention E|n|^2 = 2 sigma^2.

    Args:
        covariance: of the noise, Hermitian positive definite, (..., coil, coil), complex.

    Returns:
        Lower triangular, (..., coil, coil).

    Raises:
        TypeError: covariance is not complex.
        ValueError: covariance is not square, Hermitian and positive definite.

    Source: Pruessmann et al. 2001, "Advances in sensitivity encoding with arbitrary k-space trajectories", appendix A.
    """
    require_tensor("covariance", covariance)
    require_complex("covariance", covariance)
    if covariance.ndim < 2 or covariance.shape[-1] != covariance.shape[-2]:
        raise ValueError(f"covariance must be (..., coil, coil), got {tuple(covariance.shape)}")
    require_finite("covariance", covariance)
    power = covariance.diagonal(dim1=-2, dim2=-1).real
    skew = (covariance - covariance.mH).abs().amax()
    if not bool((power > 0).all()) or bool(skew > 1e-3 * power.amax()):
        raise ValueError("covariance must be Hermitian with a positive diagonal; make it with noise_covariance")
    each = power.sqrt()
    correlation = covariance / (each.unsqueeze(-1) * each.unsqueeze(-2))
    factor, failed = torch.linalg.cholesky_ex(correlation)
    smallest = factor.diagonal(dim1=-2, dim2=-1).real.amin()
    if bool(failed.any()) or bool(smallest < 10 * torch.finfo(power.dtype).eps ** 0.5):
        raise ValueError(
            "covariance must be positive definite, got coils whose noise is linearly dependent; "
            "compress the coils first, or give more noise samples"
        )
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    matrix: Tensor = math.sqrt(2.0) * inverse / each.unsqueeze(-2)
    return matrix


def prewhiten(kspace: Tensor, matrix: Tensor) -> Tensor:
    """Whitened k-space W y, shaped as kspace. Coil maps whiten in the same way.

    Args:
        kspace: (B, coil, ...), complex.
        matrix: from `whitening_matrix`, (coil, coil).

    Raises:
        TypeError: precisions differ.
        ValueError: shapes that do not fit.
    """
    require_tensor("kspace", kspace)
    require_tensor("matrix", matrix)
    require_same_precision("matrix", matrix, "kspace", kspace)
    if kspace.ndim < 3 or matrix.ndim != 2 or matrix.shape != (kspace.shape[1], kspace.shape[1]):
        raise ValueError(
            f"kspace must be (B, coil, ...) and matrix (coil, coil), "
            f"got {tuple(kspace.shape)} and {tuple(matrix.shape)}"
        )
    return (matrix @ kspace.flatten(2)).reshape(kspace.shape)
