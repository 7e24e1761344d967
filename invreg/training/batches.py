"""What is trained on: batches by number, so that a training that was broken off goes on with the one that is due."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from invreg._check import require_count, require_tensor
from invreg._store import update_digest
from invreg.training.parallel import rank as own_rank
from invreg.training.parallel import world as all_ranks

Batch = TypeVar("Batch")
Batch_co = TypeVar("Batch_co", covariant=True)


class Batches(Protocol[Batch_co]):
    """As many steps as its length; [k] is the k-th batch, the same whenever it is asked for. A list is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Batch_co: ...


class Shuffled:
    """Rows of tensors in a new random order each epoch.

    Args:
        tensors: with the samples along axis 0, N of them in each.
        size: samples of a batch; the last one of an epoch has fewer where N is no multiple.
        epochs: how often each sample comes.
        steps: number of batches, in place of epochs.
        seed: the order of an epoch follows from seed and the epoch's number.
        drop_last: leave out batches with fewer samples.

    Raises:
        TypeError, ValueError: no tensors, of different N, or counts below 1; both or none of epochs and steps; fewer
            samples than `size` with drop_last.
    """

    def __init__(
        self,
        *tensors: Tensor,
        size: int,
        epochs: int | None = None,
        steps: int | None = None,
        seed: int,
        drop_last: bool = False,
    ) -> None:
        if not tensors:
            raise ValueError("tensors must be at least one, got none")
        for number, tensor in enumerate(tensors):
            require_tensor(f"tensor {number}", tensor)
        lengths = [len(tensor) if tensor.ndim else 0 for tensor in tensors]
        if len(set(lengths)) > 1 or not lengths[0]:
            raise ValueError(f"tensors must have the same number of samples, at least one, along axis 0, got {lengths}")
        require_count("size", size)
        if (epochs is None) == (steps is None):
            raise ValueError(f"one of epochs and steps must be given, got {epochs} and {steps}")
        require_count("epochs" if steps is None else "steps", (epochs if steps is None else steps) or 0)
        require_count("seed", seed, least=0)
        if drop_last and size > lengths[0]:
            raise ValueError(f"size must be <= {lengths[0]}, the number of samples, with drop_last, got {size}")
        self.tensors, self.size, self.seed, self.drop_last = tensors, size, seed, drop_last
        self.samples = lengths[0]
        self.per_epoch = self.samples // size if drop_last else -(-self.samples // size)
        self.steps = self.per_epoch * (epochs or 0) if steps is None else steps
        self._known: tuple[int, Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int, /) -> tuple[Tensor, ...]:
        epoch, place = divmod(range(len(self))[index], self.per_epoch)
        rows = self._order(epoch)[place * self.size : (place + 1) * self.size]
        return tuple(tensor[rows.to(tensor.device)] for tensor in self.tensors)

    @property
    def settings(self) -> dict[str, Any]:
        """What the batches follow from, of the data a digest, made when it is first asked for."""
        names = ("samples", "size", "steps", "seed", "drop_last")
        return {**{name: getattr(self, name) for name in names}, "data": self._digest}

    @cached_property
    def _digest(self) -> str:
        total = hashlib.blake2b(digest_size=8)
        for tensor in self.tensors:
            update_digest(total, "data", tensor)
        return total.hexdigest()

    def _order(self, epoch: int) -> Tensor:
        if self._known[0] != epoch:
            mixed = hashlib.blake2b(f"{self.seed}/{epoch}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(mixed, "big") >> 1)
            self._known = (epoch, torch.randperm(self.samples, generator=generator))
        return self._known[1]


class Share(Generic[Batch]):
    """The part of each batch that one of several processes takes; together they take all of it.

    Args:
        whole: the batches, the same in every process.
        rank, world: number of this process and how many there are; default those of torch.distributed.
        part: (batch, rank, world) -> part; the default cuts every tensor of the batch along axis 0 and leaves what is
            no tensor.

    Raises:
        ValueError: on access, a batch that cannot be cut into equal parts: their mean would not be that of the batch.
    """

    def __init__(
        self,
        whole: Batches[Batch],
        rank: int | None = None,
        world: int | None = None,
        part: Callable[[Batch, int, int], Batch] | None = None,
    ) -> None:
        self.whole = whole
        self.rank = own_rank() if rank is None else rank
        self.world = all_ranks() if world is None else world
        require_count("world", self.world)
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank must be within 0 to {self.world - 1}, got {self.rank}")
        self._part: Callable[[Any, int, int], Any] = part_of if part is None else part

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int, /) -> Batch:
        try:
            part: Batch = self._part(self.whole[index], self.rank, self.world)
        except ValueError as error:
            raise ValueError(f"batch {index}: {error}") from error
        return part


def part_of(batch: Any, rank: int, world: int) -> Any:
    """The rank-th of `world` equal parts of a batch: of each tensor in its tuples, lists, dicts and dataclasses.

    Raises:
        ValueError: a tensor without axes, or with a number of samples that `world` does not divide.
    """
    if isinstance(batch, Tensor):
        samples = batch.shape[0] if batch.ndim else 0
        if samples == 0 or samples % world:
            shown = f"{samples} samples" if batch.ndim else "a tensor without axes"
            raise ValueError(f"{world} processes cannot share {shown} equally; change the size, or drop the last batch")
        return batch[rank * (samples // world) : (rank + 1) * (samples // world)]
    if isinstance(batch, dict):
        return {key: part_of(one, rank, world) for key, one in batch.items()}
    if isinstance(batch, list):
        return [part_of(one, rank, world) for one in batch]
    if isinstance(batch, tuple):
        parts = [part_of(one, rank, world) for one in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        values = {f.name: part_of(getattr(batch, f.name), rank, world) for f in dataclasses.fields(batch) if f.init}
        return dataclasses.replace(batch, **values)
    return batch


def require_batches(batches: object) -> None:
    """Raise TypeError unless batches can be counted and asked for by number; ValueError if there are none."""
    if not (hasattr(type(batches), "__len__") and hasattr(type(batches), "__getitem__")):
        raise TypeError(
            f"batches must be a sequence, asked for by number so that training can be resumed, got "
            f"{type(batches).__name__}; use a list, or Shuffled(...)"
        )
    if not len(batches):  # type: ignore[arg-type]
        raise ValueError("batches must be at least one, got none")
