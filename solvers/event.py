"""Events: when a function of the state changes its sign, found on the dense output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Event:
    """Something that happens where `condition(t, y, *args)` passes through zero.

    Args:
        condition: gives a real scalar (), or (B,) where samples step on their own; y as the field gets it.
        terminal: whether the solve ends there.
        direction: +1: only where it rises through zero; -1: only where it falls; 0: both.
    """

    condition: Callable[..., Tensor]
    terminal: bool = True
    direction: int = 0

    def __post_init__(self) -> None:
        if not callable(self.condition):
            raise TypeError(
                f"condition must be callable as condition(t, y, *args), got {type(self.condition).__name__}"
            )
        if self.direction not in {-1, 0, 1}:
            raise ValueError(f"direction must be -1, 0 or 1, got {self.direction}")

    def happened(self, before: float, after: float) -> bool:
        """Whether the condition passed zero between two values; a start at zero does not count."""
        rises, falls = before < 0 <= after, before > 0 >= after
        return (rises and self.direction >= 0) or (falls and self.direction <= 0)


def locate(condition: Callable[[float], float], before: float, after: float, tolerance: float) -> float:
    """The root of a condition in [0, 1] that is `before` at 0 and `after`, of other sign, at 1.

    The Illinois form of the false position, safeguarded by bisection: one evaluation an iteration.
    """
    low, high, at_low, at_high = 0.0, 1.0, before, after
    for i in range(100):
        if at_high == 0 or high - low <= tolerance:
            break
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        if i % 3 == 2 or not low < middle < high:
            middle = 0.5 * (low + high)
        value = condition(middle)
        if (value < 0) == (before < 0) and value != 0:
            low, at_low, at_high = middle, value, at_high if i % 3 == 2 else 0.5 * at_high
        else:
            high, at_high, at_low = middle, value, at_low if i % 3 == 2 else 0.5 * at_low
    return high
