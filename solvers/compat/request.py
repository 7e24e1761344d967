"""What a call of torchdiffeq's interface asks for, once it was checked: one flat state, one field, one solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..arguments import nearest
from ..controller import Norm
from ..dynamics import Kept
from ..warn import warn_user

Field = Callable[[Tensor, Tensor], Tensor]  # (t, y) -> dy/dt, or the value of an event
Callback = Callable[[Tensor, Any, Tensor], object]  # (t0, y0, dt), dt > 0


@dataclass(frozen=True)
class Leaves:
    """How a tuple of tensors lies in one flat tensor, in one dtype."""

    shapes: tuple[torch.Size, ...]

    @property
    def sizes(self) -> list[int]:
        """The number of entries of each."""
        return [shape.numel() for shape in self.shapes]

    def pack(self, leaves: Iterable[Tensor]) -> Tensor:
        """The flat tensor, (N,), in the dtype to which those of the leaves promote."""
        return torch.cat([leaf.reshape(-1) for leaf in leaves])

    def unpack(self, flat: Tensor) -> tuple[Tensor, ...]:
        """(..., N) -> each (..., *shape), views."""
        parts = torch.split_with_sizes(flat, self.sizes, dim=-1)
        return tuple(part.reshape((*flat.shape[:-1], *shape)) for part, shape in zip(parts, self.shapes, strict=True))


CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


@dataclass(frozen=True)
class Callbacks:
    """What the field wants to be told; y0 comes flat and is handed on as the user knows it."""

    step: Callback | None = None
    accept: Callback | None = None
    reject: Callback | None = None
    leaves: Leaves | None = None

    @property
    def wanted(self) -> bool:
        """Whether there is anything to tell."""
        return self.step is not None or self.accept is not None or self.reject is not None

    def tell(self, callback: Callback | None, t: Tensor, y: Tensor, dt: float | Tensor) -> None:
        """Call one of them, if it is there."""
        if callback is None:
            return
        length = dt.detach().abs() if isinstance(dt, Tensor) else t.new_tensor(abs(dt))
        callback(t.detach(), y if self.leaves is None else self.leaves.unpack(y), length)


@dataclass(frozen=True, eq=False)
class Request:
    """A checked call. Times run as the user's do, forwards or backwards."""

    field: Field
    y0: Tensor
    t: Tensor  # (T,), strictly monotone; in event mode only t[0] and the direction count
    rtol: float | Tensor
    atol: float | Tensor
    norm: Norm
    options: Mapping[str, Any]  # without the norm, and without any that the solver does not know
    callbacks: Callbacks
    condition: Field | None = None  # changes sign at the event; None: no event mode

    @property
    def time_dtype(self) -> torch.dtype:
        """In which the field gets t."""
        return self.y0.dtype.to_real()

    @property
    def sign(self) -> float:
        """+1 where time runs forwards, else -1."""
        return -1.0 if self.t.shape[0] > 1 and bool(self.t[0] > self.t[1]) else 1.0


class Solver(ABC):
    """A named way to solve a request: a frozen dataclass."""

    name: str  # torchdiffeq's name of the class, which its warnings show
    options: ClassVar[tuple[str, ...]]  # that it knows
    callbacks: ClassVar[tuple[str, ...]]  # that it serves

    @abstractmethod
    def trajectory(self, request: Request) -> Tensor:
        """The states at request.t, (T, *y0)."""

    @abstractmethod
    def until_event(self, request: Request) -> tuple[Tensor, Tensor]:
        """The time of the event, (), without gradient, and the states at the start and there, (2, *y0)."""

    def known(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that this solver has; warns of others."""
        unused = {key: value for key, value in options.items() if key not in self.options}
        if unused:
            near = {key: nearest(key, self.options) for key in unused}
            hints = [f"did you mean {good!r} for {bad!r}?" for bad, good in near.items() if good]
            message = "; ".join([f"{self.name}: Unexpected arguments {unused}", *hints])
            warn_user(message)
        return {key: value for key, value in options.items() if key in self.options}


class FlatField:
    """The user's function on one tensor, its result brought to the shape and dtype of the state."""

    def __init__(self, func: Callable[..., Any], leaves: Leaves | None) -> None:
        self.func = func
        self.leaves = leaves
        self._kept = Kept()

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        t = t.to(y.dtype.to_real())
        if self.leaves is None:
            slope = self._kept(self.func(t, y))
        else:
            slope = self.leaves.pack(self.func(t, self.leaves.unpack(y)))
        if slope.shape != y.shape:
            slope = slope.reshape(y.shape) if slope.numel() == y.numel() else slope.expand_as(y)
        return slope if slope.dtype == y.dtype else slope.to(y.dtype)


class FlatCondition:
    """The user's event function on one tensor: several events are one that ends with the first of them."""

    def __init__(self, event_fn: Callable[..., Tensor], t0: Tensor, y0: Any, leaves: Leaves | None) -> None:
        self.event_fn = event_fn
        self.leaves = leaves
        with torch.no_grad():
            self.signs = event_fn(t0, y0).sign()

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        value = self.event_fn(t, y if self.leaves is None else self.leaves.unpack(y))
        return (value * self.signs).min()
