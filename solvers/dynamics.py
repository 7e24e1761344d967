"""The user's field as the solvers call it: one tensor in, one out, checked once, calls counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Guard = Callable[[Callable[[Tensor, Tensor], Tensor]], Callable[[Tensor, Tensor], Tensor]]
State = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]
Structured = tuple[Tensor, ...] | dict[str, Tensor]


@dataclass(frozen=True)
class Structure:
    """How a tuple or dict of tensors lies in one flat tensor: (N,), or (B, N) where axis 0 of each is the batch."""

    keys: tuple[str, ...] | None  # None: a tuple
    shapes: tuple[tuple[int, ...], ...]  # without the batch where there is one
    dtypes: tuple[torch.dtype, ...]
    batched: bool
    named: type[tuple[Tensor, ...]] | None = None  # a tuple with names

    def pack(self, leaves: Sequence[Tensor]) -> Tensor:
        """(*batch, *shape) each -> (*batch, N)."""
        start = 1 if self.batched else 0
        return torch.cat([leaf.flatten(start) if leaf.ndim > start else leaf[..., None] for leaf in leaves], dim=-1)

    def unpack(self, flat: Tensor) -> Structured:
        """(..., N) -> each (..., *shape), in the dtype that came in."""
        sizes = [torch.Size(shape).numel() for shape in self.shapes]
        leaves = tuple(
            _as_dtype(part.reshape((*flat.shape[:-1], *shape)), dtype)
            for part, shape, dtype in zip(torch.split(flat, sizes, dim=-1), self.shapes, self.dtypes, strict=True)
        )
        if self.keys is not None:
            return dict(zip(self.keys, leaves, strict=True))
        return leaves if self.named is None else self.named(*leaves)

    def name(self, i: int) -> str:
        """The key of the i-th leaf, as shown in errors."""
        return repr(i if self.keys is None else self.keys[i])


def _as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    return (x.real if x.is_complex() and not dtype.is_complex else x).to(dtype)


def structure_of(y0: State, batched: bool) -> Structure | None:
    """The structure of an initial state; None for a single tensor.

    Raises:
        TypeError: not tensors, or not floating point or complex. ValueError: empty, or batch sizes or devices differ.
    """
    if isinstance(y0, Tensor):
        _require_inexact("y0", y0)
        return None
    if not isinstance(y0, (Mapping, tuple, list)):
        raise TypeError(f"y0 must be a tensor or a tuple or dict of tensors, got {type(y0).__name__}")
    leaves = leaves_of(y0)
    if not leaves:
        raise ValueError("y0 must hold at least one tensor, got an empty container")
    for name, leaf in zip(y0 if isinstance(y0, Mapping) else range(len(leaves)), leaves, strict=True):
        _require_inexact(f"y0[{name!r}]", leaf)
    if len({leaf.device for leaf in leaves}) > 1:
        raise ValueError(f"y0 must lie on one device, got {sorted({str(leaf.device) for leaf in leaves})}")
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if batched and (len(sizes) > 1 or None in sizes):
        shapes = [tuple(leaf.shape) for leaf in leaves]
        raise ValueError(f"y0 must have one batch size, axis 0, for per_sample steps, got shapes {shapes}")
    start = 1 if batched else 0
    return Structure(
        keys=tuple(y0) if isinstance(y0, Mapping) else None,
        shapes=tuple(tuple(leaf.shape[start:]) for leaf in leaves),
        dtypes=tuple(leaf.dtype for leaf in leaves),
        batched=batched,
        named=type(y0) if isinstance(y0, tuple) and hasattr(y0, "_fields") else None,
    )


def leaves_of(y: Any) -> list[Tensor]:
    """The tensors of a state in order."""
    if isinstance(y, Tensor):
        return [y]
    return list(y.values()) if isinstance(y, Mapping) else list(y)


def _require_inexact(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"{name} must be floating point or complex, got {x.dtype}; use {name}.float()")


class Kept:
    """Looks at slopes as they come, and refuses a field that overwrites one that the method still needs."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._version = 0

    def __call__(self, slope: Tensor) -> Tensor:
        if self._last is not None and self._last._version != self._version:
            raise RuntimeError(
                "field overwrote the tensor that it had returned before, which the method still needs: return a new "
                "one, such as its clone()"
            )
        self._last = None if slope.is_inference() else slope
        self._version = 0 if self._last is None else slope._version
        return slope


class Dynamics:
    """dy/dt as a function of one tensor; `calls` counts evaluations.

    Args:
        field: the user's `field(t, y, *args)`.
        args: what is passed on to it.
        structure: how its state lies in one tensor; None: it is one tensor.
        time_dtype: the dtype in which it gets t.
    """

    def __init__(
        self, field: Callable[..., Any], args: tuple[Any, ...], structure: Structure | None, time_dtype: torch.dtype
    ) -> None:
        self.field = field
        self.args = args
        self.structure = structure
        self.time_dtype = time_dtype
        self.calls = 0
        self.seconds = 0.0  # that the checked evaluation took
        self._kept = Kept()
        self.jacobians = 0  # counted by the stiff methods
        self.solves = 0

    @property
    def diffusions(self) -> int:
        """Evaluations of the diffusion, where there is one."""
        return 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self._kept(self.evaluate(t, y))

    def evaluate(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt without counting, for programs that are compiled."""
        slope = self.raw(t, y)
        return slope if self.structure is None else self.structure.pack(leaves_of(slope))

    def raw(self, t: Tensor, y: Tensor) -> Any:
        """What the field returns, as it returns it."""
        if t.dtype != self.time_dtype:
            t = t.to(self.time_dtype)
        if self.structure is None:
            return self.field(t, y, *self.args)
        if self.structure.batched and t.ndim:
            t = t.reshape(-1)  # a state of several tensors has no one shape to broadcast to
        return self.field(t, self.structure.unpack(y), *self.args)

    @property
    def fields(self) -> tuple[Callable[..., Any], ...]:
        """The user's functions."""
        return (self.field,)

    def first(self, t: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """All that the functions give at the start, checked; the slope is the first. Raises as `checked`."""
        return (self.checked(t, y),)

    def over(self, t: float, end: float) -> Callable[[Tensor, Tensor], Tensor]:
        """The dynamics as a step between two times evaluates them."""
        return self

    def again(self, t: float, end: float, guard: Guard | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        """The same for a step that is taken again, not counted; `guard` wraps the functions."""
        return self.evaluate if guard is None else guard(self.evaluate)

    def snap(self, t: float, end: float) -> float:
        """Where a step from t that may go to `end` should go."""
        return end

    def checked(self, t: Tensor, y: Tensor, name: str = "field") -> Tensor:
        """dy/dt, refusing a field that does not fit the state; `name` is what errors call it.

        Raises:
            TypeError, ValueError: it returns the wrong kind, shape, dtype or device.
        """
        self.calls += 1
        begun = time.perf_counter()
        slope = self.raw(t, y)
        self.seconds = time.perf_counter() - begun
        if self.structure is None:
            require_like(name, slope, y)
            return slope  # type: ignore[no-any-return]
        _require_structure(name, slope, self.structure)
        like = leaves_of(self.structure.unpack(y))
        for i, (one, other) in enumerate(zip(leaves_of(slope), like, strict=True)):
            require_like(f"{name}, part {self.structure.name(i)},", one, other)
        return self.structure.pack(leaves_of(slope))


def _require_structure(name: str, slope: object, structure: Structure) -> None:
    if structure.keys is not None:
        if not isinstance(slope, Mapping) or tuple(slope) != structure.keys:
            got = tuple(slope) if isinstance(slope, Mapping) else type(slope).__name__
            raise TypeError(
                f"{name} must return a dict with the keys of y0, {structure.keys}, in that order, got {got}"
            )
    elif not isinstance(slope, (tuple, list)) or len(slope) != len(structure.shapes):
        got = f"{len(slope)} tensors" if isinstance(slope, (tuple, list)) else type(slope).__name__
        raise TypeError(f"{name} must return a tuple of {len(structure.shapes)} tensors as y0 is, got {got}")


def require_like(name: str, slope: object, y: Tensor) -> None:
    """Raise unless a slope has the kind, shape, dtype and device of the state."""
    if not isinstance(slope, Tensor):
        raise TypeError(f"{name} must return a tensor as y0 is, got {type(slope).__name__}")
    if slope.shape != y.shape:
        raise ValueError(f"{name} must return the shape of the state, {tuple(y.shape)}, got {tuple(slope.shape)}")
    if slope.dtype != y.dtype and not torch.is_autocast_enabled(y.device.type):
        raise TypeError(
            f"{name} must return the dtype of the state, {y.dtype}, got {slope.dtype}; cast y0 or the result"
        )
    if slope.device != y.device:
        raise ValueError(f"{name} must return a tensor on {y.device}, where the state is, got {slope.device}")
