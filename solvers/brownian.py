"""A Brownian path that tells the same story at every refinement: a virtual tree, drawn anew where it is looked at."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from threading import Lock
from typing import Any

import torch
from torch import Tensor

DEPTH = 32  # halvings of a cell: times are told apart to 2^-32 of it
FULL = 1 << DEPTH
BLOCK = 1 << 12  # numbers that are drawn at once for cells in a row
WORD = (1 << 64) - 1
Node = tuple[Tensor, Tensor | None]  # increment and area
EPS = 2.0**-52
SHORTER = 0.7  # of a step, to which it may be cut so that it ends at a coarse node


class BrownianPath(ABC):
    """A Brownian motion of some shape, whose entries are independent, as a function of time.

    Attributes:
        shape: of its values.
    """

    shape: tuple[int, ...]

    @abstractmethod
    def increment(self, a: float, b: float) -> Tensor:
        """The increment W(b) - W(a), shaped as `shape`, which may be the path's own: do not write into it.

        Raises:
            ValueError: not a <= b, or beyond the ends of the path.
        """

    def __call__(self, a: float, b: float) -> Tensor:
        """The increment W(b) - W(a), shaped as `shape`. Raises as `increment`."""
        return self.increment(a, b).clone()

    @abstractmethod
    def with_area(self, a: float, b: float) -> tuple[Tensor, Tensor]:
        """The increment, and the space-time Levy area H of the interval.

        H is the mean over the interval of the path less its chord: the integral of W(s) - W(a) over it is
        (b - a) (increment / 2 + H). H is independent of the increment and has variance (b - a) / 12. Both may be the
        path's own: do not write into them.
        """

    def snap(self, a: float, b: float) -> float:
        """A time not far below b, above a, at which the path is cheap to know. May be overridden by trees."""
        return b


class VirtualBrownianTree(BrownianPath):
    """A Brownian path that is a function of seed and time, and takes constant memory.

    Time is cut into cells, whose increments are independent; inside a cell the path is known by halving, down to
    2^-32 of it, from increment and space-time Levy area of an interval to those of its halves. Nothing is stored but
    what was looked at last, so that going through the path in order is cheap and any order gives the same values.

    Args:
        t0, t1: ends of the path.
        shape: of its values.
        seed: of the path; None: drawn from `generator`. The values depend on the device, too.
        cell: length of the cells, from t0 and from each knot on; None: from knot to knot. Equal paths need equal cells.
        knots: times between t0 and t1 at which cells begin.
        area: whether the path can tell its space-time Levy area. Without it halving a cell takes one normal number
            instead of two; the increments inside the cells are other ones.
        dtype, device: of the values.
        generator: the source of the seed; None: torch's.

    Raises:
        ValueError: not t0 < t1, a cell that is not > 0, knots that are not increasing between the ends, or more than
            2^31 cells. TypeError: dtype is not real and floating.

    Source: Foster 2020, "Numerical approximations for stochastic differential equations", theorem 6.1.6; Jelincic,
    Foster and Kidger 2024, "Single-seed generation of Brownian paths and integrals". Here the tree grows from cells, so
    that a solve whose steps are the cells draws one normal number each. On the CPU, whose generators take seeds of 32
    bits, two of n halvings draw the same numbers with probability n^2 / 2^33.
    """

    def __init__(
        self,
        t0: float,
        t1: float,
        shape: Sequence[int],
        *,
        seed: int | None = None,
        cell: float | None = None,
        knots: Sequence[float] = (),
        area: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        edges = [float(t) for t in (t0, *knots, t1)]
        if not all(map(math.isfinite, edges)) or any(b <= a for a, b in pairwise(edges)):
            raise ValueError(f"t0, knots and t1 must be finite and increasing, got {edges}")
        if cell is not None and not (math.isfinite(cell) and cell > 0):
            raise ValueError(f"cell must be > 0, got {cell}")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be real and floating point, got {dtype}")
        self.t0, self.t1, self.shape, self.dtype = edges[0], edges[-1], tuple(shape), dtype
        self.device = torch.empty(0, device=device).device
        if seed is None:
            device_of_seed = None if generator is None else generator.device
            seed = int(torch.randint(1 << 62, (), generator=generator, device=device_of_seed))
        self.seed, self.area = seed, area
        self._edges = edges
        self._lengths = [b - a if cell is None else cell for a, b in pairwise(edges)]
        counts = [
            max(1, math.ceil((b - a) / one - 1e-9)) for (a, b), one in zip(pairwise(edges), self._lengths, strict=True)
        ]
        self._firsts = [sum(counts[:i]) for i in range(len(counts) + 1)]  # number of the first cell behind each edge
        if self._firsts[-1] >= 1 << 31:
            raise ValueError(f"cell must leave fewer than 2^31 cells, got {self._firsts[-1]} of length {cell}")
        self._generator = torch.Generator(self.device)
        self._seeds = [mixed(seed & WORD, kind) for kind in range(3)]
        self._last = (edges[0], 0)  # a time, and its position
        self._lock = Lock()
        numbers = math.prod(self.shape)
        self._block = max(1, min(64, BLOCK // max(numbers, 1)))
        self._usual = self._lengths[0]  # length of a cell
        self._blocks: dict[
            int, tuple[int, tuple[Tensor, ...]]
        ] = {}  # what is drawn (0: increment, 1: area) -> number and values
        self._top: tuple[int, Node] | None = None
        self._halves: list[tuple[int, tuple[Node, Node]] | None] = [None] * (DEPTH + 1)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in {"_lock", "_generator"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=Lock(), _generator=torch.Generator(state["device"]))

    def __repr__(self) -> str:
        return f"VirtualBrownianTree({self.t0}, {self.t1}, {self.shape}, seed={self.seed})"

    def increment(self, a: float, b: float) -> Tensor:
        with self._lock:
            return self._sum(a, b)

    def with_area(self, a: float, b: float) -> tuple[Tensor, Tensor]:
        if not self.area:
            raise ValueError("path must tell its space-time Levy area: make it with area=True")
        with self._lock:
            return self._sum_with_area(a, b)

    def _sum(self, a: float, b: float) -> Tensor:
        total: Tensor | None = None
        for position, size in self._nodes(*self._ends(a, b)):
            w = self._row(0, position >> DEPTH) if size == FULL else self._node(position, size)[0]
            total = w if total is None else total + w
        return self._zero() if total is None else total

    def _sum_with_area(self, a: float, b: float) -> tuple[Tensor, Tensor]:
        total: tuple[float, Tensor, Tensor] | None = None
        for position, size in self._nodes(*self._ends(a, b)):
            w, area = self._node(position, size)
            assert area is not None
            part = (self._length(position >> DEPTH) * (size / FULL), w, area)
            total = part if total is None else joined(total, part)
        return (self._zero(), self._zero()) if total is None else total[1:]

    def snap(self, a: float, b: float) -> float:
        low, high = self._position(a + SHORTER * (b - a)), self._position(b)
        if low >= high:
            return b if self._position(a) < high else a
        bits = (low ^ high).bit_length() - 1
        return self._time((high >> bits) << bits)

    def _ends(self, a: float, b: float) -> tuple[int, int]:
        slack = 1e-9 * (self.t1 - self.t0)
        if not (self.t0 - slack <= a <= b <= self.t1 + slack):
            raise ValueError(f"a and b must be in order and between {self.t0} and {self.t1}, got {a} and {b}")
        low = self._last[1] if a == self._last[0] else self._position(a)
        high = self._position(b)
        self._last = (b, high)
        return low, high

    def _position(self, t: float) -> int:
        """Cell and part of it, in 2^-32: one number that grows with time."""
        i = min(max(bisect_right(self._edges, t) - 1, 0), len(self._lengths) - 1)
        since, length = t - self._edges[i], self._lengths[i]
        cell = self._firsts[i] + max(0, int(since / length + 1e-9))
        if cell >= self._firsts[i + 1] - 1:  # the last one before an edge may be shorter
            cell = self._firsts[i + 1] - 1
            since -= (cell - self._firsts[i]) * length
            length = self._length(cell)
        else:
            since -= (cell - self._firsts[i]) * length
        part = since / length * FULL
        blur = 4 * EPS * abs(t) / length * FULL  # of a time that was added up
        if blur < 0.5:
            return (cell << DEPTH) + min(max(round(part), 0), FULL)
        low, high = max(round(part - blur) - 1, -1), min(round(part + blur), FULL)
        bits = (low ^ high).bit_length() - 1 if low >= 0 else high.bit_length()
        return (cell << DEPTH) + ((high >> bits) << bits)

    def _piece(self, cell: int) -> int:
        return min(bisect_right(self._firsts, cell) - 1, len(self._lengths) - 1)

    def _length(self, cell: int) -> float:
        i = self._piece(cell)
        if cell < self._firsts[i + 1] - 1:
            return self._lengths[i]
        return self._edges[i + 1] - self._edges[i] - (cell - self._firsts[i]) * self._lengths[i]

    def _time(self, position: int) -> float:
        cell, part = position >> DEPTH, position & (FULL - 1)
        if not part and cell in self._firsts:
            return self._edges[self._firsts.index(cell)]
        i = self._piece(cell)
        return self._edges[i] + (cell - self._firsts[i]) * self._lengths[i] + self._length(cell) * (part / FULL)

    def _nodes(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """The largest nodes that make up an interval, in order: where each begins, and its size."""
        while low < high:
            size = min(low & -low or FULL, FULL, 1 << ((high - low).bit_length() - 1))
            yield low, size
            low += size

    def _node(self, position: int, size: int) -> Node:
        """Increment and area of a node."""
        cell, level = position >> DEPTH, DEPTH - size.bit_length() + 1
        if not level:
            return self._cell(cell)
        index = (position & (FULL - 1)) // size
        key = (cell << DEPTH) + ((index >> 1) << 1) * size  # where the node above begins
        kept = self._halves[level]
        if kept is None or kept[0] != key:
            w, area = self._node(key, 2 * size)
            length = self._length(cell) * (2 * size / FULL)
            number = (cell << DEPTH) | (1 << (level - 1)) | (index >> 1)
            noise = self._draw(2, number, (1 if area is None else 2, *self.shape))
            kept = self._halves[level] = (key, halved(length, w, area, noise))
        return kept[1][index & 1]

    def _cell(self, cell: int) -> Node:
        if self._top is None or self._top[0] != cell:
            area = self._row(1, cell) if self.area else None
            self._top = (cell, (self._row(0, cell), area))
        return self._top[1]

    def _row(self, kind: int, cell: int) -> Tensor:
        """Increment (0) or area (1) of a cell, drawn for some cells at once."""
        number, row = divmod(cell, self._block)
        kept = self._blocks.get(kind)
        if kept is None or kept[0] != number:
            variance = self._usual / (12 if kind else 1)
            shape = (self._block, *self.shape) if self._block > 1 else self.shape
            drawn = self._draw(kind, number, shape, math.sqrt(variance))
            kept = self._blocks[kind] = (number, drawn.unbind() if self._block > 1 else (drawn,))
        length = self._length(cell)
        return kept[1][row] if length == self._usual else kept[1][row] * math.sqrt(length / self._usual)

    def _draw(self, kind: int, number: int, shape: tuple[int, ...], deviation: float = 1.0) -> Tensor:
        # CPU generators take 32 bits: those of cells are a permutation of their numbers, so that no two agree
        seed = permuted(self._seeds[kind], number) if kind < 2 else mixed(self._seeds[kind], number) >> 1
        self._generator.manual_seed(seed)
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext():
            drawn = torch.empty(shape, dtype=self.dtype, device=self.device)
            return drawn.normal_(0.0, deviation, generator=self._generator)

    def _zero(self) -> Tensor:
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


def mixed(state: int, word: int) -> int:
    """64 bits that look random for every state and word (the finalizer of SplitMix64, twice)."""
    for value in (word, word >> 64):
        state = (state + value + 0x9E3779B97F4A7C15) & WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & WORD
        state ^= state >> 31
    return state


def permuted(key: int, word: int) -> int:
    """32 bits that look random, a permutation of the words below 2^32 for every key (the finalizer of MurmurHash3)."""
    word = (word ^ key) & 0xFFFFFFFF
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return word ^ (word >> 16) ^ (key >> 32)


def halved(length: float, w: Tensor, area: Tensor | None, noise: Tensor) -> tuple[Node, Node]:
    """Increment and area of the halves of an interval, from those of the whole and one or two normal numbers."""
    if area is None:
        first = torch.add(w * 0.5, noise[0], alpha=math.sqrt(length / 4))
        return (first, None), (w - first, None)
    tilt = torch.add(area * 1.5, noise[0], alpha=math.sqrt(length / 16))
    first = torch.add(tilt, w, alpha=0.5)
    mean = torch.add(area * 0.25, noise[0], alpha=-0.5 * math.sqrt(length / 16))
    spread = noise[1] * math.sqrt(length / 48)
    return (first, mean + spread), (w - first, mean - spread)


def joined(first: tuple[float, Tensor, Tensor], second: tuple[float, Tensor, Tensor]) -> tuple[float, Tensor, Tensor]:
    """Length, increment and area of two intervals in a row."""
    (a, w1, area1), (b, w2, area2) = first, second
    whole = a + b
    area = torch.add(area1 * (a / whole), area2, alpha=b / whole)
    area = torch.add(area, w1, alpha=0.5 * b / whole).add_(w2, alpha=-0.5 * a / whole)
    return whole, w1 + w2, area


NO_AREA = (
    "path must tell its space-time Levy area, which this method needs: use a VirtualBrownianTree, or a "
    'BrownianInterval with levy_area_approximation="space-time"'
)


class Borrowed(BrownianPath):
    """A path of torchsde's: BrownianInterval, BrownianPath, BrownianTree.

    Args:
        motion: called with two times, and return_U where the area is needed.
        shape: of its values, of which axis 0 is the batch.
    """

    def __init__(self, motion: Any, shape: tuple[int, ...]) -> None:
        self.motion, self.shape = motion, shape
        given = tuple(getattr(motion, "shape", shape))
        if math.prod(given) != math.prod(shape):
            raise ValueError(f"path must have values of shape {shape}, got {given}")

    def increment(self, a: float, b: float) -> Tensor:
        found: Tensor = self.motion(a, b)
        return found.reshape(self.shape)

    def with_area(self, a: float, b: float) -> tuple[Tensor, Tensor]:
        try:
            w, integral = self.motion(a, b, return_U=True)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{NO_AREA} ({error})") from error
        if integral is None:
            raise ValueError(NO_AREA)
        return w.reshape(self.shape), (integral / (b - a) - w / 2).reshape(self.shape)


def path_of(path: object, shape: tuple[int, ...]) -> BrownianPath:
    """A path as the solvers take it.

    Raises:
        TypeError: it is none. ValueError: its values have another shape.
    """
    if isinstance(path, BrownianPath):
        if path.shape != shape:
            raise ValueError(f"path must have values of shape {shape}, as the noise has, got {path.shape}")
        return path
    if not callable(path):
        raise TypeError(f"path must be a BrownianPath, or a Brownian motion of torchsde, got {type(path).__name__}")
    return Borrowed(path, shape)
