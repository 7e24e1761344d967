"""The system that is integrated backwards for gradients: state, adjoint and the gradients of parameters in one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .controller import Norm, rms

Past = Callable[[Tensor], Tensor]  # t -> y(t) of the forward solve
PartsNorm = Callable[[tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True, eq=False)
class Field:
    """The forward field, and the tensors whose gradients are wanted."""

    slope: Callable[[Tensor, Tensor], Tensor]
    wanted: tuple[Tensor, ...]
    shared: bool  # whether they share a graph that outlives one evaluation

    def pulled(self, t: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        """f(t, y), and -a pulled back to y and to the wanted tensors; differentiable where an argument asks for it."""
        again = torch.is_grad_enabled() and any(one.requires_grad for one in (t, y, a))
        with torch.enable_grad():
            y = y if again and y.requires_grad else y.detach().requires_grad_()
            slope = self.slope(t, y)
        if not slope.requires_grad:
            return slope, torch.zeros_like(y), *(torch.zeros_like(one) for one in self.wanted)
        found = torch.autograd.grad(
            slope,
            (y, *self.wanted),
            -a.to(slope.dtype),
            retain_graph=self.shared or again,
            create_graph=again,
            allow_unused=True,
            materialize_grads=True,
        )
        return slope if again else slope.detach(), *found


@dataclass(frozen=True, eq=False)
class Way:
    """A piece of the way back, from one time to an earlier one, as a clock tells it that all samples share."""

    start: float
    end: float
    stops: tuple[float, ...] = ()
    jumps: dict[float, float] | None = None
    origin: Tensor | None = None  # per sample: t = origin + rate * clock, (B, 1, ..., 1)
    rate: Tensor | None = None
    batch: tuple[int, ...] = ()  # (B, 1, ..., 1), the shape in which the field of a batch gets its time
    active: Tensor | None = None  # (B, 1, ..., 1), the samples that got here

    def time(self, clock: Tensor) -> Tensor:
        """The time that the field is given."""
        if self.origin is not None and self.rate is not None:
            return self.origin + self.rate * clock
        return clock.expand(self.batch) if self.batch else clock


@dataclass(frozen=True, eq=False)
class Parts:
    """How tensors of any shapes and dtypes lie in one that is flat."""

    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]

    def pack(self, parts: Iterable[Tensor]) -> Tensor:
        """In the dtype that holds them all."""
        return torch.cat([part.reshape(-1) for part in parts])

    def unpack(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Each in its own dtype."""
        rows = zip(torch.split(flat, [shape.numel() for shape in self.shapes]), self.shapes, self.dtypes, strict=True)
        real = ((part.reshape(shape), dtype) for part, shape, dtype in rows)
        return tuple((x.real if x.is_complex() and not d.is_complex else x).to(d) for x, d in real)


@dataclass(frozen=True, eq=False)
class Augmented:
    """(y, a, *sums) -> their slopes along the way, packed; without y where the past tells it."""

    field: Field
    way: Way
    past: Past | None
    parts: Parts

    def __call__(self, clock: Tensor, flat: Tensor) -> Tensor:
        t, way, state = self.way.time(clock), self.way, self.parts.unpack(flat)
        y, a = (state[0], state[1]) if self.past is None else (self.past(t), state[0])
        if way.rate is not None:
            a = a * way.rate.to(a.dtype)
        slope, to_y, *sums = self.field.pulled(t, y, a)
        if way.rate is not None:
            slope = slope * way.rate.to(slope.dtype)
        if way.active is not None:
            slope, to_y = (torch.where(way.active, one, 0) for one in (slope, to_y))
        return self.parts.pack((slope, to_y, *sums) if self.past is None else (to_y, *sums))


@dataclass(frozen=True, eq=False)
class MixedNorm:
    """The largest of the norms of the parts of an augmented state."""

    parts: Parts
    states: int  # how many parts are states, the first ones
    state: Norm
    seminorm: bool
    own: PartsNorm | None

    def __call__(self, scaled: Tensor) -> Tensor:
        parts = self.parts.unpack(scaled)
        if self.own is not None:
            return self.own((torch.zeros((), dtype=scaled.dtype.to_real(), device=scaled.device), *parts))
        values = [self.state(part).max() for part in parts[: self.states]]
        if not self.seminorm:
            values += [rms(part) for part in parts[self.states :]]
        return torch.stack([value.double() for value in values]).max()


@dataclass(frozen=True, eq=False)
class Point:
    """A time at which gradients come in."""

    t: float  # where each sample has its own times, the row
    row: int  # of the ts that moves it
    y: Tensor | None  # the state there; None: as integrated
    gradient: Tensor | None
    active: Tensor | None = None  # (B, 1, ..., 1), the samples that got here


def spread_tolerance(value: float | Tensor, y: Tensor, states: int, flat: Tensor) -> float | Tensor:
    """A tolerance of y as one of the augmented state: the sums get the least."""
    if not isinstance(value, Tensor):
        return value
    value = value.to(flat.device, flat.dtype.to_real())
    one = value.expand(y.shape).reshape(-1)
    return torch.cat([*[one] * states, value.min().expand(flat.numel() - states * one.numel())])


def live_rows(gradient: Tensor | None) -> list[bool]:
    """Which rows of a gradient are not zero."""
    if gradient is None or not gradient.numel():
        return []
    live: list[bool] = (gradient.reshape(gradient.shape[0], -1) != 0).any(1).tolist()
    return live


def any_live(gradient: Tensor | None) -> bool:
    """Whether a gradient came in."""
    return any(live_rows(gradient))


def each(gradient: Tensor | None) -> tuple[Tensor, ...]:
    """The rows of a gradient, none where it did not come in."""
    return () if gradient is None else gradient.unbind()
