"""Several regularizers at once: summed, or by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from invreg.interfaces import LinearOperator, Proximal, Regularizer, Splitting

T = TypeVar("T")


class SumOfTerms(Regularizer[Tensor]):
    """R_1(x) + ... + R_n(x), such as total variation and non-negativity; every part keeps its own weight.

    The prox of a sum is not the sum of the proxes, nor one after the other, so it has none: algorithms that split
    (PDHG, ADMM) take it by its `terms`, those that need only a gradient as it is. It is `exact` if all parts are, and
    `finite` and `cheap` likewise; it has no `weight`.

    Args:
        parts: two or more.

    Raises:
        TypeError: a part is not a Regularizer.
        ValueError: fewer than two parts.
    """

    def __init__(self, *parts: Regularizer[Tensor]) -> None:
        super().__init__()
        del self.weight  # the parts have theirs: one more would be a second way to say the same
        for part in parts:
            if not isinstance(part, Regularizer):
                raise TypeError(f"parts must be Regularizers, got {type(part).__name__}")
        if len(parts) < 2:
            raise ValueError(f"parts must be two or more, got {len(parts)}")
        self.parts = nn.ModuleList(parts)
        # class variables of all others; here they depend on the parts
        self.__dict__["exact"] = all(part.exact for part in parts)
        self.__dict__["finite"] = all(part.finite for part in parts)
        self.__dict__["cheap"] = all(part.cheap for part in parts)

    def _parts(self) -> list[Regularizer[Tensor]]:
        return [part for part in self.parts if isinstance(part, Regularizer)]

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (part(x) for part in self._parts())
        for other in others:
            first = first + other
        return first

    def at(self, progress: float) -> Regularizer[Tensor]:
        parts = self._parts()
        now = [part.at(progress) for part in parts]
        return self if all(a is b for a, b in zip(now, parts, strict=True)) else SumOfTerms(*now)

    @property
    def terms(self) -> tuple[tuple[LinearOperator | None, Proximal], ...]:
        """The terms of all parts, in their order: a part's own splitting, else the part itself.

        Raises:
            TypeError: a part has neither terms nor prox.
        """
        found: list[tuple[LinearOperator | None, Proximal]] = []
        for part in self._parts():
            if isinstance(part, Splitting):
                found.extend(part.terms)
            elif isinstance(part, Proximal):
                found.append((None, part))
            else:
                raise TypeError(
                    f"{type(part).__name__} has neither terms nor prox; use an algorithm that needs only its gradient"
                )
        return tuple(found)


def named_terms(regularizers: Mapping[str, Regularizer[T]], x: T, progress: float = 1.0) -> dict[str, Tensor]:
    """The regularizers of something as terms of a training objective: each (), the mean over independent problems.

    Args:
        regularizers: by the names of the terms.
        x: what they are about: a Solution, an image.
        progress: from 0 to 1, how much of the training is done; see `Regularizer.at`.
    """
    return {name: one.at(progress)(x).mean() for name, one in regularizers.items()}
