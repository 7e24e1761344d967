"""Batches that take time to make: the next one is made while a step is taken."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic

from invreg.training.batches import Batch, Batches, require_batches


class Ahead(Generic[Batch]):
    """The batches of another, of which one more is made ahead by a thread.

    Args:
        whole: the batches; making one must not depend on those before it.

    Raises:
        TypeError, ValueError: whole is no sequence, or an empty one.
    """

    def __init__(self, whole: Batches[Batch]) -> None:
        require_batches(whole)
        self.whole = whole
        self._maker = ThreadPoolExecutor(1, "batches")
        self._coming: tuple[int, Future[Batch]] | None = None

    def __len__(self) -> int:
        return len(self.whole)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Those of `whole`."""
        found: Mapping[str, Any] = getattr(self.whole, "settings", {})
        return found

    def __getitem__(self, index: int, /) -> Batch:
        index = range(len(self))[index]
        coming, self._coming = self._coming, None
        made = coming[1] if coming is not None and coming[0] == index else None
        if index + 1 < len(self):
            made = made or self._maker.submit(self.whole.__getitem__, index)
            self._coming = index + 1, self._maker.submit(self.whole.__getitem__, index + 1)
        return self.whole[index] if made is None else made.result()


class Chained(Generic[Batch]):
    """One sequence of batches behind the other, such as large images after small ones.

    Args:
        parts: one or more.
    """

    def __init__(self, *parts: Batches[Batch]) -> None:
        if not parts:
            raise ValueError("parts must be at least one, got none")
        for part in parts:
            require_batches(part)
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def settings(self) -> Mapping[str, Any]:
        """Those of the parts."""
        return {str(i): dict(getattr(part, "settings", {})) for i, part in enumerate(self.parts)}

    def __getitem__(self, index: int, /) -> Batch:
        index = range(len(self))[index]
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise AssertionError  # range() has refused it
