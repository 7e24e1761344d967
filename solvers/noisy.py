"""What the methods for stochastic equations share: a step along a path, its error, its stiffness."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from .method import Method, Step
from .runge_kutta import require_one_of, stiffness_ratio
from .stochastic_tableau import Additive, Diagonal
from .sums import weighted

Estimate = Literal["embedded", "sum"]
Pair = tuple[Tensor, Tensor, Tensor, Tensor]


class NoisyStep(Step):
    """A step along a Brownian path: its end, and its error and stiffness when asked for.

    Args:
        start: where it began.
        y: where it ended.
        error: gives the estimate; None: there is none.
        pair: slopes and states of two stages at one time.
    """

    def __init__(
        self,
        start: Tensor,
        y: Tensor,
        error: Callable[[], Tensor] | None = None,
        pair: Pair | None = None,
    ) -> None:
        self.start, self.y, self.estimate, self.pair = start, y, error, pair
        self._error: Tensor | None = None

    def slope(self) -> None:
        return None

    def error(self) -> Tensor | None:
        if self._error is None and self.estimate is not None:
            self._error = self.estimate()
        return self._error

    def stiffness(self, samples: bool) -> Tensor | None:
        if self.pair is None:
            return None
        later, earlier, there, here = self.pair
        return stiffness_ratio(later - earlier, there - here, "rms", samples)

    def at(self, theta: float | Tensor) -> Tensor:
        """On the chord: a solution between steps is a shorter step, which follows the path."""
        part = theta.to(self.y.dtype) if isinstance(theta, Tensor) else theta
        return self.start + (self.y - self.start) * part


class StochasticMethod(Method):
    """What methods for stochastic equations share: they begin each step anew, and have no dense output of their own."""

    order = 1
    dense_order = 1
    error_order = 1

    @property
    def stability_size(self) -> float | None:
        """None: not known. Overridden where the method has one."""
        return None

    @property
    def has_stiffness(self) -> bool:
        """Overridden by methods whose late stages share a time."""
        return False


class Roessler(StochasticMethod):
    """What Roessler's methods share, for additive noise and for diagonal noise; a class states its numbers."""

    order = 2
    noise_order = 1.5
    needs_area = True
    estimate: Estimate = "embedded"

    def __post_init__(self) -> None:
        require_one_of("estimate", self.estimate, ("embedded", "sum"))

    @property
    @abstractmethod
    def table(self) -> Additive | Diagonal:
        """The numbers of the method."""

    @property
    def stability_size(self) -> float | None:
        return self.table.stability_size

    @property
    def has_stiffness(self) -> bool:
        return self.table.stiffness_pair is not None


def error_of(
    estimate: Estimate, alpha: Sequence[float], slopes: Sequence[Tensor], terms: int, h: float, noise: Tensor
) -> Tensor:
    """The difference to Euler's step with noise of order 1, or sums of absolute values as StochasticDiffEq has them."""
    if estimate == "sum":
        return weighted([h] * terms, slopes).abs() + noise.abs()
    return weighted([h * (alpha[0] - 1), *(h * one for one in alpha[1:])], slopes) + noise


def pair_of(pair: tuple[int, int] | None, slopes: Sequence[Tensor], states: Sequence[Tensor]) -> Pair | None:
    """Slopes and states of the two stages that a stiffness estimate compares."""
    if pair is None:
        return None
    later, earlier = pair
    return slopes[later], slopes[earlier], states[later], states[earlier]
