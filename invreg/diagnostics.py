"""Whether samples are draws from the posterior: chi-square, coverage, spread, distances, ranks, streaming moments.

Rules that hold for all:

- A set of samples is (N, *signal), real or complex; a complex entry counts as two real numbers.
- Nothing here is differentiable, and work is done in blocks, so that memory grows with the samples and no faster.
- A distance between sample sets says nothing by itself: compare it with that between two exact sets (`sampling_floor`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_count, require_tensor
from invreg.moments import Moments
from invreg.noise import Gaussian, Poisson, TransmissionPoisson
from invreg.problem import Problem
from invreg.random import draw
from invreg.sample_distance import (
    Floor,
    Source,
    blocks,
    directions_of,
    flat,
    line_cost,
    pair,
    require_samples,
    sampling_floor,
    sliced_wasserstein,
    total_variance,
)

__all__ = [
    "Calibration",
    "Floor",
    "JointTest",
    "Moments",
    "chi_square",
    "coverage",
    "joint_test",
    "mode_weights",
    "rank_statistics",
    "sampling_floor",
    "simulation_based_calibration",
    "sliced_wasserstein",
    "std_ratio",
]


@torch.no_grad()
def chi_square(problem: Problem, x: Tensor) -> Tensor:
    """|y - A x|^2 / (m sigma^2) over the m real numbers measured, (B,): 2 misfit / count.

    Its expectation is exactly 1 for one draw x from the posterior of each y: then (x, y) has the law of truth and data.
    Below 1 the noise is fitted, too; the mean of the posterior is below 1, and any x far from the data above.
    Under Poisson noise it is the deviance per count, near 1 where most counts exceed about 5, smaller below.

    Args:
        problem: measurements under Gaussian, Poisson or TransmissionPoisson noise.
        x: one image for each measurement, (B, *signal).

    Raises:
        TypeError: another noise, whose nll has no such scale.
        ValueError: x has the wrong shape; nothing was measured.
    """
    if not isinstance(problem.noise, (Gaussian, Poisson, TransmissionPoisson)):
        raise TypeError(
            "chi_square needs Gaussian, Poisson or TransmissionPoisson noise, whose misfit has a known expectation, "
            f"got {type(problem.noise).__name__}"
        )
    problem.operator.check_signal(x)
    if x.shape[0] != problem.y.shape[0]:
        raise ValueError(f"x must have the batch size of y, {problem.y.shape[0]}, got {x.shape[0]}")
    if bool((problem.count == 0).any()):
        raise ValueError("problem must have measured something of every sample, got a count of 0")
    return 2 * problem.misfit(x) / problem.count


@torch.no_grad()
def coverage(samples: Tensor, truth: Tensor, level: float = 0.9) -> Tensor:
    """How much of each truth lies within the central interval of the samples, pixel by pixel, (B,), 0 to 1.

    The ends are the order statistics at rank (1 - level) / 2 * (K + 1) and its mirror, so that a truth that is one more
    draw of the same law is covered with probability `level` for every K where the rank is whole (K = 19, 39, 99, ...).

    Args:
        samples: K draws, (K, B, *signal), or (K, 1, *signal) if all truths share one law.
        truth: (B, *signal).
        level: within 0 and 1.

    Raises:
        TypeError, ValueError: shapes or kinds that differ, or too few samples for the level.
    """
    require_samples("samples", samples)
    require_samples("truth", truth)
    if samples.ndim < 2 or samples.shape[2:] != truth.shape[1:] or samples.shape[1] not in (1, truth.shape[0]):
        raise ValueError(
            f"samples must be (K, B or 1, *signal) for a truth of {tuple(truth.shape)}, got {tuple(samples.shape)}"
        )
    if samples.is_complex() != truth.is_complex():
        raise TypeError(f"samples and truth must both be real or both complex, got {samples.dtype} and {truth.dtype}")
    if not 0 < level < 1:
        raise ValueError(f"level must be within 0 and 1, got {level}")
    k, rank = samples.shape[0], (1 - level) / 2 * (samples.shape[0] + 1)
    if rank < 1 - 1e-9:
        raise ValueError(f"samples must be at least {math.ceil(2 / (1 - level) - 1 - 1e-9)} for level {level}, got {k}")
    draws, wanted = flat(samples.flatten(0, 1)).reshape(*samples.shape[:2], -1), flat(truth)
    below = min(int(rank + 1e-9), k - 1)
    part = max(rank - below, 0.0)
    inside = wanted.new_zeros(wanted.shape[0])
    for block in blocks(wanted.shape[1], draws.shape[0] * draws.shape[1]):
        ordered, x = draws[:, :, block].sort(0).values, wanted[:, block]
        low = torch.lerp(ordered[below - 1], ordered[below], part)
        high = torch.lerp(ordered[k - below], ordered[k - below - 1], part)
        inside = inside + ((low <= x) & (x <= high)).sum(1)
    return inside / wanted.shape[1]


@torch.no_grad()
def std_ratio(samples: Tensor, reference: Tensor) -> Tensor:
    """Root of the ratio of the total variances of two sample sets, (): below 1 where the samples are too sure.

    Args:
        samples, reference: (N, *signal) and (M, *signal), both N and M >= 2.

    Raises:
        TypeError, ValueError: shapes or kinds that differ, too few samples, or a reference that does not vary.
    """
    a, b = pair(samples, reference, ("samples", "reference"))
    if min(len(a), len(b)) < 2:
        raise ValueError(f"samples and reference must be 2 or more each, got {len(a)} and {len(b)}")
    spread, wanted = total_variance(a), total_variance(b)
    if not bool(wanted > 0):
        raise ValueError("reference must vary, got the same sample throughout")
    return (spread / wanted).sqrt()


@dataclass(frozen=True, eq=False)
class JointTest:
    """The result of `joint_test`.

    Args:
        distance: between the pairs (estimate, y) and (truth, y), without unit.
        floor: the same distance where estimate and truth were swapped at random.
        p_value: how often chance alone gives as large a distance; small says that the sampler is not exact.
        chi_square: mean of the estimates; 1 for an exact sampler.
        chi_square_truth: mean of the truths: 1 but for chance, or else the problem is not the one that made y.
    """

    distance: float
    floor: Floor
    p_value: float
    chi_square: float
    chi_square_truth: float

    @property
    def ratio(self) -> float:
        """The distance in units of its mean under chance: near 1 for an exact sampler, and 1 where nothing differs."""
        return self.distance / self.floor.mean if self.floor.mean else 1.0


@torch.no_grad()
def joint_test(
    problem: Problem,
    truth: Tensor,
    samples: Tensor,
    *,
    directions: int = 256,
    repeats: int = 99,
    generator: Source = None,
) -> JointTest:
    """Whether samples, one for each of many measurements, could be the truths behind them. Needs no known posterior.

    Given y, an exact posterior sample and the truth are two draws of one law: which is which cannot be told. The sliced
    W2 distance of (samples, y) to (truth, y) is held against the same where each pair was swapped by a fair coin, in
    the same directions: the p-value is exact at any size. Images and measurements are scaled to total variance 1 each.

    Args:
        problem: N measurements, each made of its own truth.
        truth: draws of the prior, (N, *signal).
        samples: one posterior sample for each measurement, (N, *signal), of chains that know nothing of each other.
        directions: of the distance.
        repeats: swappings; the least p-value is 1 / (repeats + 1).
        generator: of directions and coins.

    Raises:
        TypeError, ValueError: shapes that differ, fewer than 2 pairs, or as in `chi_square`.

    Source: a permutation test in the joint space, as in Lopez-Paz and Oquab 2017, "Revisiting classifier two-sample
    tests", with the distance in place of a classifier; cf. Geweke 2004, "Getting it right".
    """
    require_count("directions", directions)
    require_count("repeats", repeats)
    a, b = pair(samples, truth, ("samples", "truth"))
    y = flat(problem.y)
    if len(a) != len(b) or len(a) < 2 or len(y) != len(a):
        raise ValueError(f"samples, truth and y must be as many, 2 or more, got {len(a)}, {len(b)} and {len(y)}")
    scores = [float(chi_square(problem, x).mean()) for x in (samples, truth)]
    scale, scale_y = _unit_variance(b), _unit_variance(y)
    first, second = (torch.cat([one * scale, y * scale_y], 1) for one in (a, b))
    coins = draw(a.new_empty(repeats, len(a)), generator) > 0
    costs = a.new_zeros(repeats + 1)
    for u in directions_of(first, 2 * len(first), directions, generator):
        one, other = u @ first.T, u @ second.T
        swapped = (line_cost(torch.where(c, one, other), torch.where(c, other, one), 2) for c in coins)
        costs = costs + torch.stack([cost.sum() for cost in (line_cost(one, other, 2), *swapped)])
    distances = (costs / directions).sqrt()
    p_value = float((1 + (distances[1:] >= distances[0]).sum()) / (repeats + 1))
    return JointTest(float(distances[0]), Floor(distances[1:]), p_value, *scores)


def _unit_variance(x: Tensor) -> Tensor:
    """What brings the total variance to 1, (); 1 where nothing varies."""
    variance = total_variance(x)
    return torch.where(variance > 0, torch.where(variance > 0, variance, 1).rsqrt(), 1)


@torch.no_grad()
def rank_statistics(samples: Tensor, truth: Tensor, generator: Source = None) -> Tensor:
    """How many of the K draws lie below the truth, shaped as truth, int64, 0 to K; ties are broken by chance.

    Args:
        samples: summaries of the K posterior draws of each problem, real, (K, B, ...), such as the mean over a region.
        truth: the same summaries of the truths, (B, ...).
        generator: of the ties.

    Raises:
        TypeError, ValueError: complex summaries, or shapes that differ.
    """
    for name, value in (("samples", samples), ("truth", truth)):
        require_samples(name, value)
        if value.is_complex():
            raise TypeError(f"{name} must be real summaries, got {value.dtype}; use the magnitude, or stack the parts")
    if samples.ndim != truth.ndim + 1 or samples.shape[1:] != truth.shape:
        raise ValueError(f"samples must be (K, *{tuple(truth.shape)}), got {tuple(samples.shape)}")
    below, ties = (samples < truth).sum(0), (samples == truth).sum(0)
    noise = draw(truth.new_empty(truth.shape, dtype=torch.float64), generator)
    coin = torch.special.ndtr(noise)
    return below + torch.minimum((coin * (ties + 1)).long(), ties)


@dataclass(frozen=True, eq=False)
class Calibration:
    """The result of `simulation_based_calibration`, for each summary.

    Args:
        counts: histogram of the ranks, (bins, ...).
        statistic: chi-square against uniform ranks, (...), about bins - 1.
        p_value: probability of a larger one under uniform ranks, (...).
    """

    counts: Tensor
    statistic: Tensor
    p_value: Tensor


def simulation_based_calibration(ranks: Tensor, draws: int, bins: int | None = None) -> Calibration:
    """Whether ranks of truths among posterior draws are uniform, as they are for an exact sampler.

    Many ranks at both ends say that the draws scatter too little; many in the middle, too much; a slope, a bias.

    Args:
        ranks: of B independent problems, int64, (B, ...), from `rank_statistics`.
        draws: the K of each.
        bins: 2 to K + 1; default so many that each expects 10 ranks or more, at most 20. Bins may differ in width by
            one rank, and their expectation by as much.

    Raises:
        TypeError, ValueError: ranks are not whole numbers from 0 to K; a bin would expect fewer than 5 ranks.

    Source: Talts et al. 2018, "Validating Bayesian inference algorithms with simulation-based calibration".
    """
    require_tensor("ranks", ranks)
    require_count("draws", draws)
    if ranks.dtype != torch.int64 or ranks.ndim < 1:
        raise TypeError(f"ranks must be int64, (B, ...), got {ranks.dtype}, {tuple(ranks.shape)}")
    if bool(((ranks < 0) | (ranks > draws)).any()):
        raise ValueError(f"ranks must be from 0 to draws = {draws}, got {int(ranks.min())} to {int(ranks.max())}")
    bins = min(20, draws + 1, max(2, len(ranks) // 10)) if bins is None else bins
    require_count("bins", bins, least=2)
    if bins > draws + 1:
        raise ValueError(f"bins must be at most draws + 1 = {draws + 1}, got {bins}")
    bin_of = torch.arange(draws + 1, device=ranks.device) * bins // (draws + 1)
    expected = bin_of.bincount(minlength=bins).double() * (len(ranks) / (draws + 1))
    if float(expected.min()) < 5:
        raise ValueError(f"bins must expect 5 ranks or more each, got {float(expected.min()):.1f}; give more ranks")
    counts = torch.stack([(bin_of[ranks] == i).sum(0) for i in range(bins)])
    expected = expected.reshape(-1, *(1,) * (ranks.ndim - 1))
    statistic = ((counts - expected).square() / expected).sum(0)
    half = torch.full_like(statistic, (bins - 1) / 2)
    return Calibration(counts, statistic, torch.special.gammaincc(half, statistic / 2))


@torch.no_grad()
def mode_weights(samples: Tensor, means: Tensor) -> Tensor:
    """Which fraction of the samples lies nearest to each mode, (M,); its standard error is sqrt(w (1 - w) / N).

    Args:
        samples: (N, *signal).
        means: of the modes, (M, *signal); overlapping modes exchange samples.

    Raises:
        TypeError, ValueError: shapes or kinds that differ.
    """
    x, centres = pair(samples, means, ("samples", "means"))
    half_norm = centres.square().sum(1) / 2
    nearest = [(x[block] @ centres.T - half_norm).argmax(1) for block in blocks(len(x), x.shape[1] + len(centres))]
    return torch.cat(nearest).bincount(minlength=len(centres)).to(x.dtype) / len(x)
