"""Coil compression: fewer virtual coils that keep almost all of the signal."""

from __future__ import annotations

import torch
from torch import Tensor

from invreg._check import require_complex, require_count, require_finite, require_same_precision, require_tensor


@torch.no_grad()
def compression_matrix(kspace: Tensor, coils: int | None = None, *, energy: float | None = None) -> Tensor:
    """The virtual coils of largest energy, by singular value decomposition over the coils.

    Of all matrices with as many orthonormal rows, it keeps the most energy of k-space; white noise stays white. The
    phase of each row makes its largest entry real and positive, so that a scan always gives the same matrix.

    Args:
        kspace: (B, coil, ...), complex: all of it, or its calibration region.
        coils: how many virtual coils, 1 to the number of coils.
        energy: instead, the smallest number that keeps this share of every item's energy, 0 to 1, as 0.99. One item
            decides for its whole batch.

    Returns:
        Orthonormal rows, strongest first, (B, virtual coil, coil). No gradient.

    Raises:
        TypeError: kspace is not complex.
        ValueError: neither or both of coils and energy, or one out of range; NaN or Inf.

    Source: Huang et al. 2008, "A software channel compression technique for faster reconstruction with many channels".
    """
    require_tensor("kspace", kspace)
    require_complex("kspace", kspace)
    if kspace.ndim < 3:
        raise ValueError(
            f"kspace must be (B, coil, ...), got {tuple(kspace.shape)}; add a batch axis with kspace[None]"
        )
    require_finite("kspace", kspace)
    if (coils is None) == (energy is None):
        raise ValueError(f"give either coils or energy, got coils={coils} and energy={energy}")
    if coils is not None:
        require_count("coils", coils)
        if coils > kspace.shape[1]:
            raise ValueError(f"coils must be at most {kspace.shape[1]}, the number of coils, got {coils}")
    flat = kspace.flatten(2)
    largest = flat.abs().amax((1, 2), keepdim=True)
    flat = flat / torch.where(largest > 0, largest, 1)  # so that no square under- or overflows
    values, vectors = torch.linalg.eigh(flat @ flat.mH)
    count = coils if coils is not None else _enough(values.flip(-1), energy)
    rows = vectors.flip(-1)[..., :count].mH
    first = rows.gather(-1, rows.abs().argmax(-1, keepdim=True))
    matrix: Tensor = rows * first.sgn().conj()
    return matrix


def _enough(values: Tensor, energy: float | None) -> int:
    """How many of the values, largest first, (B, coil), hold the share `energy` of each item's sum."""
    if energy is None or not 0 < energy <= 1:
        raise ValueError(f"energy must be > 0 and <= 1, got {energy}")
    kept = values.clamp_min(0).double().cumsum(-1)
    # a share of 1 asks for what is above rounding, not for directions that hold none of the signal
    rounding = values.shape[-1] * torch.finfo(values.dtype).eps
    short = kept < min(energy, 1 - rounding) * kept[:, -1:]
    return min(int(short.sum(-1).max()) + 1, values.shape[-1])


def compress_coils(kspace: Tensor, coils: int | None = None, *, energy: float | None = None) -> tuple[Tensor, Tensor]:
    """Compress k-space to virtual coils: (compressed, matrix) with compressed = `mix_coils(kspace, matrix)`.

    Args:
        kspace, coils, energy: as in `compression_matrix`.

    Returns:
        compressed k-space (B, virtual coil, ...) and the matrix (B, virtual coil, coil), which compresses coil maps
        and further scans of the same coils alike.

    Raises:
        TypeError, ValueError: as in `compression_matrix`.
    """
    matrix = compression_matrix(kspace, coils, energy=energy)
    return mix_coils(kspace, matrix), matrix


def mix_coils(data: Tensor, matrix: Tensor) -> Tensor:
    """Apply a matrix to the coil axis: out[b, v, ...] = sum over c of matrix[b, v, c] data[b, c, ...].

    Args:
        data: k-space or maps, (B, coil, ...), complex.
        matrix: (B or 1, virtual coil, coil) or (virtual coil, coil), complex.

    Raises:
        TypeError: precisions differ.
        ValueError: another number of coils or items.
    """
    require_tensor("data", data)
    require_tensor("matrix", matrix)
    require_same_precision("matrix", matrix, "data", data)
    full = matrix if matrix.ndim == 3 else matrix[None]
    if full.ndim != 3 or data.ndim < 2 or full.shape[0] not in (1, data.shape[0]):
        raise ValueError(
            f"data must be (B, coil, ...) and matrix (B or 1, virtual coil, coil), "
            f"got {tuple(data.shape)} and {tuple(matrix.shape)}"
        )
    if full.shape[2] != data.shape[1]:
        raise ValueError(
            f"data has {data.shape[1]} coils but matrix mixes {full.shape[2]}; they must be the same coils"
        )
    return (full @ data.reshape(*data.shape[:2], -1)).reshape(data.shape[0], full.shape[1], *data.shape[2:])
