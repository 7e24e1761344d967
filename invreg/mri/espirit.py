"""ESPIRiT: coil sensitivity maps from the fully sampled centre of k-space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import (
    require_batch,
    require_complex,
    require_count,
    require_finite,
    require_positive,
    require_tensor,
)
from invreg.mri.compression import compression_matrix

MAX_COLUMNS = 4096  # of the calibration matrix; its Gram matrix is decomposed in full, at a cost that grows cubed
KERNEL = 6  # size of the patches, where the calibration region is twice as large
PIECE_ENTRIES = 2**22  # 32 MiB of complex64: coil x coil matrices held at a time


@dataclass(frozen=True, eq=False)
class SensitivityMaps:
    """What `espirit` found.

    Args:
        sets: maps of every set, strongest first, (B, sets, coil, [z,] y, x), complex, for `SoftSense`.
        eigenvalues: 0 to 1 for each set before the crop, (B, sets, [z,] y, x); near 1 where the coils see the object.
        calibration: sizes of the centred region that was used, ([z,] y, x).
    """

    sets: Tensor
    eigenvalues: Tensor
    calibration: tuple[int, ...]

    @property
    def maps(self) -> Tensor:
        """The first set, (B, coil, [z,] y, x), for `Sense`."""
        return self.sets[:, 0]


def find_calibration(mask: Tensor, *, largest: int | None = None, least: int = 1) -> tuple[int, ...]:
    """Sizes of the largest centred box of k-space that is fully sampled.

    A box of size m along an axis of size N covers the indices N // 2 - m // 2 to N // 2 - m // 2 + m - 1. Sizes are
    counted up to `largest` only, so that one long fully sampled line does not win over a compact region.

    Args:
        mask: what is sampled, bool, ([z,] y, x).
        largest: cap of the size along each axis; default none.
        least: smallest size along each axis that is of use.

    Returns:
        One size for each axis of the mask, each from `least` to `largest`.

    Raises:
        TypeError: mask is not bool.
        ValueError: no such box exists.
    """
    require_tensor("mask", mask)
    require_count("least", least)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}; use mask != 0")
    if mask.ndim not in (1, 2, 3):
        raise ValueError(f"mask must be (x), (y, x) or (z, y, x), got {tuple(mask.shape)}")
    full = mask
    volume = torch.ones((), dtype=torch.int64, device=mask.device)
    sizes = []
    for axis, n in enumerate(mask.shape):
        outward = sorted(range(n), key=lambda i, c=n // 2: 2 * (c - i) if i < c else 2 * (i - c) + 1)  # type: ignore[misc]
        # in this order the centred boxes are the prefixes, so a running minimum tests all of them at once
        full = full.index_select(axis, torch.tensor(outward, device=mask.device)).to(torch.uint8).cummin(axis).values
        size = torch.arange(1, n + 1, device=mask.device).clamp_max(n if largest is None else largest)
        volume = volume.unsqueeze(-1) * torch.where(size >= least, size, 0)
        sizes.append(size)
    volume = volume * full
    best = int(volume.argmax())
    if not int(volume.flatten()[best]):
        wanted = " x ".join([str(least)] * mask.ndim)
        raise ValueError(
            f"mask has no fully sampled centre of at least {wanted}; coil maps need calibration lines: "
            "give a smaller kernel, or give maps of another scan"
        )
    where = torch.unravel_index(torch.tensor(best), mask.shape)
    return tuple(int(size[int(i)]) for size, i in zip(sizes, where, strict=True))


@torch.no_grad()
def espirit(
    kspace: Tensor,
    mask: Tensor | None = None,
    *,
    calibration: int = 24,
    kernel: int | None = None,
    threshold: float = 0.03,
    crop: float = 0.95,
    sets: int = 1,
) -> SensitivityMaps:
    """Coil sensitivity maps as eigenvectors of the k-space consistency operator, at every voxel.

    All patches of the calibration region span a subspace of low rank. Projecting every patch of a k-space onto it is,
    in image space, one coil x coil matrix at each voxel, whose eigenvectors to eigenvalue 1 are the sensitivities.

    The rules for what is left open: maps have norm 1 over the coils at every voxel. The phase of each is such that its
    inner product with the first virtual coil of `compression_matrix` of the calibration region is real and positive.
    Where a set's eigenvalue is below `crop` its maps are 0.

    Time grows with voxels * coil^3, and the eigenvectors of (coil * kernel^d)^2 are needed once, so that in 3D more
    than 18 coils at kernel 6, or 32 at kernel 5, are refused: see `compress_coils`. Best on prewhitened data.
    The result carries no gradient.

    Args:
        kspace: centred, zero where not sampled, (B, coil, [z,] y, x), complex; a volume is one three-dimensional
            problem.
        mask: what is sampled, bool, ([z,] y, x) or (B or 1, 1, [z,] y, x); default where kspace is not 0. The region
            is one that all items of the batch share.
        calibration: largest size of the calibration region along each axis.
        kernel: size of the patches along each axis; default half of the region's shortest side, 2 to 6. Larger ones are
            too many entries for the patches that a small region holds: their span misses signal, and `crop` the object.
        threshold: singular values of the calibration matrix below this share of the largest are noise; noisy data
            wants more, 0.05, noise-free data less, 0.01.
        crop: eigenvalue below which maps are 0, 0 to 1; 0 keeps all.
        sets: how many sets of maps, 1 to the number of coils; 2 takes up aliasing of an object larger than the image.

    Raises:
        TypeError: kspace is not complex, mask is not bool.
        ValueError: wrong shapes, NaN or Inf, no calibration region, or too many coils for the kernel.

    Source: Uecker et al. 2014, "ESPIRiT - an eigenvalue approach to autocalibrating parallel MRI", eqs. 6 to 10.
    """
    _check(kspace, calibration, kernel, threshold, crop, sets)
    dim = kspace.ndim - 2
    region = find_calibration(_common_mask(kspace, mask), largest=calibration, least=kernel or 2)
    kernel = kernel or max(2, min(KERNEL, min(region) // 2))
    _check_columns(kernel, kspace.shape[1], dim)
    centre = kspace
    for axis, m in enumerate(region, start=2):
        centre = centre.narrow(axis, kspace.shape[axis] // 2 - m // 2, m)
    scale = centre.abs().flatten(1).amax(1).reshape(-1, *(1,) * (dim + 1))
    if not bool((scale > 0).all()):
        raise ValueError("kspace is 0 in the calibration region of at least one item of the batch; check the mask")
    centre = centre / scale
    lags = _lag_kernels(_signal_subspace(centre, kernel, threshold), kernel, kspace.shape[1], dim)
    maps, eigenvalues = _eigenmaps(lags, tuple(kspace.shape[2:]), kernel, sets)
    maps = maps * _phases(maps, compression_matrix(centre, 1)[:, 0].conj())
    maps = torch.where((eigenvalues >= crop).unsqueeze(2), maps, 0)
    return SensitivityMaps(maps, eigenvalues, region)


def _check(kspace: Tensor, calibration: int, kernel: int | None, threshold: float, crop: float, sets: int) -> None:
    require_tensor("kspace", kspace)
    require_complex("kspace", kspace)
    if kspace.ndim not in (4, 5):
        raise ValueError(f"kspace must be (B, coil, y, x) or (B, coil, z, y, x), got {tuple(kspace.shape)}")
    require_finite("kspace", kspace)
    if kernel is not None:
        require_count("kernel", kernel)
    require_count("calibration", calibration, least=2 if kernel is None else kernel)
    require_positive("threshold", threshold, zero_allowed=True)
    require_positive("crop", crop, zero_allowed=True)
    coils = kspace.shape[1]
    require_count("sets", sets)
    if sets > coils:
        raise ValueError(f"sets must be at most the number of coils, {coils}, got {sets}")
    if threshold >= 1 or crop > 1:
        raise ValueError(f"threshold must be < 1 and crop <= 1, got {threshold} and {crop}")


def _check_columns(kernel: int, coils: int, dim: int) -> None:
    columns = coils * kernel**dim
    if columns > MAX_COLUMNS:
        raise ValueError(
            f"kernel {kernel} with {coils} coils makes {columns} columns, more than {MAX_COLUMNS}; "
            "use compress_coils first, or a smaller kernel"
        )


def _common_mask(kspace: Tensor, mask: Tensor | None) -> Tensor:
    """What all items of the batch sample, ([z,] y, x)."""
    grid = kspace.shape[2:]
    if mask is None:
        return (kspace != 0).any(1).all(0)
    require_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}; use mask != 0")
    full = mask if mask.ndim == kspace.ndim else mask[None, None]
    fits = full.ndim == kspace.ndim and full.shape[1] == 1
    if not fits or any(m not in (1, n) for m, n in zip(full.shape[2:], grid, strict=True)):
        raise ValueError(f"mask must be {tuple(grid)} or (B, 1, *{tuple(grid)}), got {tuple(mask.shape)}")
    require_batch("kspace", kspace, full.shape[0], "mask")
    return full[:, 0].all(0).expand(grid).to(kspace.device)


def _signal_subspace(centre: Tensor, kernel: int, threshold: float) -> Tensor:
    """The projection onto the span of all patches, (B, n, n), n = kernel^d * coil in the order (patch, coil)."""
    patches = centre
    dim = centre.ndim - 2
    for axis in range(2, dim + 2):
        patches = patches.unfold(axis, kernel, 1)  # (B, coil, *positions, *patch)
    patches = patches.permute(2, 0, *range(3, dim + 2), *range(dim + 2, 2 * dim + 2), 1)
    batch, columns = centre.shape[0], kernel**dim * centre.shape[1]
    gram = centre.new_zeros(batch, columns, columns)
    for rows in patches:  # one slab at a time: all patches of a volume would not fit
        a = rows.reshape(batch, -1, columns)
        gram += a.mT @ a.conj()
    values, vectors = torch.linalg.eigh(gram)
    keep = values > threshold**2 * values[:, -1:]
    vectors = vectors * keep.unsqueeze(1)
    projection: Tensor = vectors @ vectors.mH
    return projection


def _lag_kernels(projection: Tensor, kernel: int, coils: int, dim: int) -> Tensor:
    """The projection averaged over all patches that hold a sample: its k-space kernels by lag.

    Returns:
        (B, Lz, Ly, Lx, coil, coil), L = 2 kernel - 1 (1 along a z axis that is not there), lag 0 in the middle.
    """
    batch = projection.shape[0]
    patch = (kernel,) * dim
    blocks = projection.reshape(batch, *patch, coils, *patch, coils).movedim(dim + 1, -2)
    lags = projection.new_zeros(batch, *(2 * kernel - 1,) * dim, coils, coils)
    for flat in range(kernel**dim):
        at = [flat // kernel**i % kernel for i in reversed(range(dim))]
        window = lags
        block = blocks
        for axis, i in enumerate(at, start=1):
            window = window.narrow(axis, kernel - 1 - i, kernel)
            block = block.select(1, i)
        window += block  # lag m - l of entries (l, m)
    lags = lags * float(kernel) ** -dim
    return lags if dim == 3 else lags.unsqueeze(1)


def _eigenmaps(lags: Tensor, grid: tuple[int, ...], kernel: int, sets: int) -> tuple[Tensor, Tensor]:
    """The coil x coil matrix of every voxel as a short Fourier series in the lags, and its leading eigenvectors.

    Returns:
        maps (B, sets, coil, *grid) and eigenvalues (B, sets, *grid).
    """
    batch, coils = lags.shape[0], lags.shape[-1]
    volume = grid if len(grid) == 3 else (1, *grid)
    waves = [_waves(n, kernel if lags.shape[1 + i] > 1 else 1, lags) for i, n in enumerate(volume)]
    maps = lags.new_empty(batch, sets, coils, *volume)
    eigenvalues = lags.real.new_empty(batch, sets, *volume)
    rows = max(1, PIECE_ENTRIES // (batch * volume[2] * coils**2))
    for z in range(volume[0]):
        plane = torch.einsum("l,blyxcd->byxcd", waves[0][z], lags)
        for top in range(0, volume[1], rows):
            part = torch.einsum("jm,bmxcd->bjxcd", waves[1][top : top + rows], plane)
            matrices = torch.einsum("im,bjmcd->bjicd", waves[2], part)
            values, vectors = torch.linalg.eigh(matrices)
            bottom = top + part.shape[1]
            eigenvalues[:, :, z, top:bottom] = values[..., -sets:].flip(-1).movedim(-1, 1)
            maps[:, :, :, z, top:bottom] = vectors[..., -sets:].flip(-1).permute(0, 4, 3, 1, 2)
    return maps.reshape(batch, sets, coils, *grid), eigenvalues.reshape(batch, sets, *grid)


def _waves(n: int, kernel: int, like: Tensor) -> Tensor:
    """exp(-2 pi i lag (index - n // 2) / n), (n, 2 kernel - 1)."""
    lag = torch.arange(1 - kernel, kernel, device=like.device)
    place = torch.arange(n, device=like.device) - n // 2
    angle = (place[:, None] * lag).remainder(n).double() * (-2 * math.pi / n)
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype)


def _phases(maps: Tensor, reference: Tensor) -> Tensor:
    """Factors of modulus 1 that make <reference, maps> real and positive, (B, sets, 1, *grid)."""
    along = reference.reshape(reference.shape[0], 1, -1, *(1,) * (maps.ndim - 3))
    overlap = (along.conj() * maps).sum(2, keepdim=True)
    factors: Tensor = torch.where(overlap == 0, 1, overlap.sgn().conj())
    return factors
