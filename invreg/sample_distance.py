"""How far two sets of samples lie apart, and how far two exact sets would by chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_count, require_finite, require_positive, require_tensor
from invreg.random import draw

BLOCK = 2**24  # numbers worked on at a time
Source = torch.Generator | None


@torch.no_grad()
def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 256, p: float = 2.0, generator: Source = None) -> Tensor:
    """Sliced Wasserstein distance of two sample sets, (), in the units of the samples.

    The p-th root of the mean over random unit directions u of W_p^p between the projections <u, a> and <u, b>. On each
    line it is exact, also for sets of different size: the two quantile functions are steps, and are integrated so.

    Args:
        a, b: (N, *signal) and (M, *signal).
        directions: how many.
        p: >= 1.
        generator: of the directions.

    Raises:
        TypeError, ValueError: shapes or kinds that differ, NaN or Inf, p < 1.

    Source: Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures", def. 4 (the mean over the
    sphere by Monte Carlo).
    """
    first, second = pair(a, b, ("a", "b"))
    require_count("directions", directions)
    require_positive("p", p)
    if p < 1:
        raise ValueError(f"p must be >= 1, got {p}")
    total = first.new_zeros(())
    for u in directions_of(first, len(first) + len(second), directions, generator):
        total = total + line_cost(u @ first.T, u @ second.T, p).sum()
    return (total / directions) ** (1 / p)


def line_cost(a: Tensor, b: Tensor, p: float) -> Tensor:
    """W_p^p on each of n lines, (n,), of projections (n, N) and (n, M)."""
    a, b = a.sort(1).values, b.sort(1).values
    n, m = a.shape[1], b.shape[1]
    if n == m:
        return (a - b).abs().pow(p).mean(1)
    # in units of 1 / (n m), where both quantile functions step at whole numbers
    steps = torch.arange(1, n + 1, device=a.device) * m, torch.arange(1, m + 1, device=a.device) * n
    edges = torch.cat(steps).sort().values
    widths = torch.diff(edges, prepend=edges.new_zeros(1)).to(a.dtype) / (n * m)
    gap = a[:, (edges - 1) // m] - b[:, (edges - 1) // n]
    return gap.abs().pow(p) @ widths


@dataclass(frozen=True, eq=False)
class Floor:
    """Distances that arise by chance alone.

    Args:
        distances: one for each repetition, (R,).
    """

    distances: Tensor

    @property
    def mean(self) -> float:
        """What to divide a distance by: about 1 is then as good as exact."""
        return float(self.distances.mean())

    def quantile(self, level: float = 0.95) -> float:
        """The distance that a fraction `level` of the repetitions stays below."""
        return float(self.distances.double().quantile(level))


def sampling_floor(
    sampler: Callable[[int, Source], Tensor],
    size: int,
    *,
    repeats: int = 30,
    directions: int = 256,
    p: float = 2.0,
    generator: Source = None,
) -> Floor:
    """The sliced Wasserstein distances between pairs of exact sample sets, which no sampler can beat.

    With several modes most of it is chance in how often each is met: see `mode_weights` for a sharper test of those.

    Args:
        sampler: (n, generator) -> n exact and independent samples, (n, *signal).
        size: of each set: that of the set to be judged.
        repeats: pairs of sets.
        directions, p: as in `sliced_wasserstein`.
        generator: handed to the sampler, and source of the directions.
    """
    require_count("size", size)
    require_count("repeats", repeats)
    pairs = ((sampler(size, generator), sampler(size, generator)) for _ in range(repeats))
    return Floor(torch.stack([sliced_wasserstein(a, b, directions, p, generator) for a, b in pairs]))


def require_samples(name: str, value: Tensor) -> None:
    """Raise unless `value` is a finite, floating-point or complex tensor of one sample or more."""
    require_tensor(name, value)
    if not (value.is_floating_point() or value.is_complex()):
        raise TypeError(f"{name} must be floating point or complex, got {value.dtype}; use {name}.float()")
    if value.ndim < 1 or value.numel() == 0:
        raise ValueError(f"{name} must be (N, *signal) with N >= 1, got {tuple(value.shape)}")
    require_finite(name, value)


def flat(samples: Tensor) -> Tensor:
    """(N, *signal) as real numbers in single precision or better, (N, d)."""
    x = torch.view_as_real(samples.resolve_conj()) if samples.is_complex() else samples
    x = x.reshape(len(x), -1)
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def pair(a: Tensor, b: Tensor, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Two sample sets of one kind, `flat`, or an error that names them."""
    for name, value in zip(names, (a, b), strict=True):
        require_samples(name, value)
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"{names[0]} and {names[1]} must be of one signal shape, got {tuple(a.shape[1:])} and {tuple(b.shape[1:])}"
        )
    if a.dtype != b.dtype:
        raise TypeError(f"{names[0]} is {a.dtype} but {names[1]} is {b.dtype}; convert one of them")
    return flat(a), flat(b)


def blocks(length: int, width: int) -> Iterator[slice]:
    """Slices that cut `length` items of `width` numbers into parts of at most BLOCK numbers."""
    size = max(1, BLOCK // max(1, width))
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def total_variance(x: Tensor) -> Tensor:
    """The sum of the variances of all entries of samples (N, d), ()."""
    return torch.stack([x[:, block].var(0).sum() for block in blocks(x.shape[1], len(x))]).sum()


def directions_of(like: Tensor, samples: int, count: int, generator: Source) -> Iterator[Tensor]:
    """Random unit rows, (n, d), for samples (N, d); so many at a time that the projections of `samples` fit."""
    d = like.shape[1]
    for block in blocks(count, max(d, samples)):
        u = draw(like.new_empty(block.stop - block.start, d), generator)
        yield u / torch.linalg.vector_norm(u, dim=1, keepdim=True)
