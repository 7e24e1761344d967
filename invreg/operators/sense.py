"""Multi-coil Cartesian MRI: SENSE, and soft-SENSE with several sets of coil maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Self

import torch
from torch import Tensor, nn

from invreg._check import require_batch, require_complex, require_finite, require_same_precision, require_tensor
from invreg.interfaces import LinearOperator
from invreg.operators.fourier import (
    sampling_mask,
    shift_phases,
    varying_axes,
)

CACHE_ENTRIES = 2**18  # 2 MiB of complex64: coil images that stay in a CPU's cache between their two transforms
DEVICE_ENTRIES = 2**27  # 1 GiB of complex64: elsewhere as many coils at once as memory allows


class _MultiCoil(LinearOperator, ABC):
    """M F S with coil maps S, the centred orthonormal transform F and a mask M.

    F = P fftn P with the phases P of `shift_phases`, so no entry is ever moved. P joins the image, which is as small
    as one coil, and the mask; in A^H A the second P cancels, and axes along which M is constant need no transform.
    """

    maps: Tensor
    mask: Tensor | None
    phase: Tensor

    def __init__(self, maps: Tensor, mask: Tensor | None, dim: int, layout: tuple[str, ...]) -> None:
        _check_maps(maps, dim, layout)
        spatial = tuple(maps.shape[-dim:])
        super().__init__((*maps.shape[1 : -dim - 1], *spatial), (maps.shape[-dim - 1], *spatial))
        self.dim = dim
        if isinstance(maps, nn.Parameter):
            self.maps = maps
        else:
            self.register_buffer("maps", maps)
        if mask is not None:
            require_tensor("mask", mask)
        sampled = None if mask is None else sampling_mask(mask.to(maps.device), spatial, ("B", "1"))
        if sampled is not None and sampled.shape[0] > 1 and maps.shape[0] not in (1, sampled.shape[0]):
            raise ValueError(
                f"mask and maps must have one batch size or 1, got {sampled.shape[0]} masks and {maps.shape[0]} maps"
            )
        self.register_buffer("mask", sampled)
        self.register_buffer("phase", shift_phases(spatial, maps.dtype, maps.device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        # phases that were rounded to single precision would not be of modulus 1 in double
        self.phase = shift_phases(tuple(self.maps.shape[-self.dim :]), self.maps.dtype, self.maps.device)
        return self

    @abstractmethod
    def _spread(self, x: Tensor, maps: Tensor) -> Tensor:
        """Coil images of x for some of the coils, (B, coil, *spatial)."""

    @abstractmethod
    def _gather(self, coils: Tensor, maps: Tensor) -> Tensor:
        """The adjoint of `_spread`: the sum over those coils, (B, *signal)."""

    def forward(self, x: Tensor) -> Tensor:
        self._check_signal(x)
        axes = tuple(range(-self.dim, 0))
        weight = self._weight()
        modulated = self.phase * x
        if torch.is_grad_enabled() and (x.requires_grad or self.maps.requires_grad):
            # writing the coils piece by piece would copy the whole gradient once for each piece
            whole: Tensor = torch.fft.fftn(self._spread(modulated, self.maps), dim=axes, norm="ortho").mul_(weight)
            return whole
        y = x.new_empty(x.shape[0], *self.maps.shape[-self.dim - 1 :])
        for start, count in self._pieces(x):
            coils = self._spread(modulated, self.maps.narrow(-self.dim - 1, start, count))
            y.narrow(1, start, count).copy_(torch.fft.fftn(coils, dim=axes, norm="ortho").mul_(weight))
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        self._check_measurement(y)
        axes = tuple(range(-self.dim, 0))
        weight = self._weight().conj().resolve_conj()
        total: Tensor | None = None
        for start, count in self._pieces(y):
            coils = torch.fft.ifftn(y.narrow(1, start, count) * weight, dim=axes, norm="ortho")
            part = self._gather(coils, self.maps.narrow(-self.dim - 1, start, count))
            total = part if total is None else total.add_(part)
        assert total is not None
        return total * self.phase.conj()

    def normal(self, x: Tensor) -> Tensor:
        self._check_signal(x)
        axes = () if self.mask is None else varying_axes(self.mask, self.dim)
        modulated = self.phase * x if axes else x
        total: Tensor | None = None
        for start, count in self._pieces(x):
            maps = self.maps.narrow(-self.dim - 1, start, count)
            coils = self._spread(modulated, maps)
            if axes and self.mask is not None:
                coils = torch.fft.fftn(coils, dim=axes, norm="ortho").mul_(self.mask)
                coils = torch.fft.ifftn(coils, dim=axes, norm="ortho")
            part = self._gather(coils, maps)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total * self.phase.conj() if axes else total

    def sampled(self) -> Tensor | None:
        return self.mask

    def _weight(self) -> Tensor:
        """The second phase with the mask, one coil's size."""
        return self.phase if self.mask is None else self.phase * self.mask

    def _pieces(self, like: Tensor) -> Iterator[tuple[int, int]]:
        """(first coil, how many) so that a piece's coil images stay small."""
        coils = self.maps.shape[-self.dim - 1]
        one = like.shape[0] * like.shape[-self.dim :].numel()
        at_once = max(1, (CACHE_ENTRIES if like.device.type == "cpu" else DEVICE_ENTRIES) // max(one, 1))
        for start in range(0, coils, at_once):
            yield start, min(at_once, coils - start)

    def _check_signal(self, x: Tensor) -> None:
        require_complex("x", x)
        self.check_signal(x)
        self._check_agrees("x", x)

    def _check_measurement(self, y: Tensor) -> None:
        require_complex("y", y)
        coils = self.maps.shape[-self.dim - 1]
        if y.ndim == self.dim + 2 and y.shape[1] != coils:
            raise ValueError(
                f"y has {y.shape[1]} coils but maps have {coils}; "
                "compress both with one matrix, or estimate maps from this scan"
            )
        self.check_measurement(y)
        self._check_agrees("y", y)

    def _check_agrees(self, name: str, value: Tensor) -> None:
        require_same_precision(name, value, "maps", self.maps)
        require_batch(name, value, self.maps.shape[0], "maps")
        if self.mask is not None:
            require_batch(name, value, self.mask.shape[0], "mask")

    def extra_repr(self) -> str:
        return f"signal={self.signal_shape}, measurement={self.measurement_shape}"


def _check_maps(maps: Tensor, dim: int, layout: tuple[str, ...]) -> None:
    require_tensor("maps", maps)
    if isinstance(dim, bool) or dim not in (2, 3):
        raise ValueError(f"dim must be 2 for images or 3 for volumes, got {dim!r}")
    require_complex("maps", maps)
    wanted = (*layout, *("z", "y", "x")[3 - dim :])
    if maps.ndim != len(wanted):
        raise ValueError(
            f"maps must be ({', '.join(wanted)}) for dim={dim}, got {tuple(maps.shape)}; Sense takes one set of maps, "
            "SoftSense several, dim=3 is for volumes, maps[None] adds a batch axis"
        )
    if not maps.numel():
        raise ValueError(f"maps must hold at least one coil and one voxel, got {tuple(maps.shape)}")
    require_finite("maps", maps.detach())


class Sense(_MultiCoil):
    """Multi-coil Cartesian MRI: image (B, [z,] y, x) -> zero-filled k-space (B, coil, [z,] y, x), both complex.

    y_c = M F (s_c x), F the centred orthonormal transform. `normal` never shifts, skips transforms along fully sampled
    axes, and works through the coils in pieces, so that its memory beyond maps and image stays bounded.

    Args:
        maps: coil sensitivities, (B or 1, coil, [z,] y, x), complex; may be a Parameter.
        mask: what is sampled, bool, ([z,] y, x) or (B or 1, 1, [z,] y, x), axes of size 1 broadcast; None samples all.
        dim: 2 for images, 3 for volumes, where all three axes are transformed. Slices of a 2D scan are a batch.

    Raises:
        TypeError: maps are not complex, mask is not bool; signals that are real or of another precision.
        ValueError: shapes that do not fit, NaN or Inf in maps, a mask that samples nothing, another number of coils.

    Source: Pruessmann et al. 2001, "Advances in sensitivity encoding with arbitrary k-space trajectories".
    """

    def __init__(self, maps: Tensor, mask: Tensor | None = None, dim: int = 2) -> None:
        super().__init__(maps, mask, dim, ("B", "coil"))

    def _spread(self, x: Tensor, maps: Tensor) -> Tensor:
        return maps * x.unsqueeze(1)

    def _gather(self, coils: Tensor, maps: Tensor) -> Tensor:
        return (maps.conj() * coils).sum(1)


class SoftSense(_MultiCoil):
    """SENSE with several sets of maps, one image each: (B, sets, [z,] y, x) -> (B, coil, [z,] y, x), both complex.

    y_c = M F sum_s s_(s, c) x_s. A second set takes up what one set of maps cannot explain, such as aliasing into a
    field of view smaller than the object.

    Args:
        maps: coil sensitivities, (B or 1, sets, coil, [z,] y, x), complex; may be a Parameter.
        mask, dim: as in `Sense`.

    Raises:
        TypeError, ValueError: as in `Sense`.

    Source: Uecker et al. 2014, "ESPIRiT - an eigenvalue approach to autocalibrating parallel MRI", eq. 12.
    """

    def __init__(self, maps: Tensor, mask: Tensor | None = None, dim: int = 2) -> None:
        super().__init__(maps, mask, dim, ("B", "sets", "coil"))

    def _spread(self, x: Tensor, maps: Tensor) -> Tensor:
        return (maps * x.unsqueeze(2)).sum(1)

    def _gather(self, coils: Tensor, maps: Tensor) -> Tensor:
        return (maps.conj() * coils.unsqueeze(1)).sum(2)
