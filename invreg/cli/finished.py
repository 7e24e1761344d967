"""A slice that is done: its image, and what was found out about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from invreg.algorithms.reconstruction import Reconstruction, Status


@dataclass(frozen=True, eq=False)
class Finished:
    """A slice in scaled units.

    Args:
        result: the image and its record; of many samples their mean, and the record of the first.
        std: standard deviation of the samples, real, (1, *signal); None where there are fewer than two.
        about: plain words and numbers for the sidecar.
    """

    result: Reconstruction
    std: Tensor | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether it was not interrupted."""
        return Status.INTERRUPTED not in self.result.status

    @property
    def samples(self) -> int:
        """Of which it is the mean; 0 where it is none of samples, or of a part of one."""
        return int(self.about.get("samples", 0))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it should not be believed as it is."""
        return tuple(self.about.get("trust", {}).get("reasons", ()))
