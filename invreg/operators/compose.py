"""Several measurements of one signal, one under the other."""

import functools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from invreg.interfaces import LinearOperator


class Stack(LinearOperator):
    """Linear operators one under the other: y = (A_1 x, A_2 x, ...), flattened into one tensor (B, m_1 + m_2 + ...).

    The parts share one dtype: complex as soon as one of them is. `split(y)` gives the parts back in their shapes,
    `join(parts)` makes y of measured ones.

    Args:
        operators: at least one, of one signal shape, each with a known measurement shape.

    Raises:
        TypeError: one of them is not a LinearOperator (for intensities use PhaseRetrieval(Stack(...))).
        ValueError: there is none, signal shapes differ, or a measurement shape is not known.
    """

    def __init__(self, *operators: LinearOperator) -> None:
        if not operators:
            raise ValueError("operators must be at least one, got none")
        signal: tuple[int, ...] | None = None
        shapes = []
        for i, operator in enumerate(operators):
            if not isinstance(operator, LinearOperator):
                raise TypeError(f"operators[{i}] must be a LinearOperator, got {type(operator).__name__}")
            if operator.measurement_shape is None:
                raise ValueError(
                    f"operators[{i}] must have a measurement_shape, got {type(operator).__name__} that fits any; "
                    "compose it with an operator of known shape"
                )
            if signal is not None and operator.signal_shape not in (None, signal):
                raise ValueError(f"operators must share one signal shape, got {signal} and {operator.signal_shape}")
            signal = operator.signal_shape if signal is None else signal
            shapes.append(operator.measurement_shape)
        self._sizes = [math.prod(shape) for shape in shapes]
        self._shapes = shapes
        super().__init__(signal, (sum(self._sizes),))
        self.operators = nn.ModuleList(operators)

    @property
    def _parts(self) -> list[LinearOperator]:
        return [cast(LinearOperator, operator) for operator in self.operators]

    def forward(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        return torch.cat([operator(x).flatten(1) for operator in self._parts], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        return _sum([operator.adjoint(part) for operator, part in zip(self._parts, self.split(y), strict=True)])

    def normal(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        return _sum([operator.normal(x) for operator in self._parts])

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """The parts of a measurement, each (B, *measurement of its operator)."""
        self.check_measurement(y)
        parts = torch.split(y, self._sizes, 1)
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, self._shapes, strict=True))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The measurement (B, m_1 + m_2 + ...) made of its parts, each (B, *measurement of its operator).

        Raises:
            ValueError: the number of parts or the shape of one is wrong.
        """
        if len(parts) != len(self._shapes):
            raise ValueError(f"parts must be {len(self._shapes)}, one for each operator, got {len(parts)}")
        for operator, part in zip(self._parts, parts, strict=True):
            operator.check_measurement(part)
        return torch.cat([part.flatten(1) for part in parts], 1)

    def sampled(self) -> Tensor | None:
        masks = [operator.sampled() for operator in self._parts]
        known = [mask for mask in masks if mask is not None]
        if not known:
            return None
        flat = []
        for mask, shape in zip(masks, self._shapes, strict=True):
            full = known[0].new_ones(1, *shape) if mask is None else mask
            batch = full.shape[0] if full.ndim == len(shape) + 1 else 1
            flat.append(full.expand(batch, *shape).flatten(1))
        batch = max(mask.shape[0] for mask in flat)
        return torch.cat([mask.expand(batch, -1) for mask in flat], 1)


def _sum(parts: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)
