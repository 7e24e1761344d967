"""The regularization weight without ground truth: discrepancy principle, SURE, GCV, L-curve."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from invreg._check import require_count, require_positive
from invreg.algorithms.loop import Algorithm
from invreg.algorithms.reconstruction import Reconstruction, Status
from invreg.interfaces import LinearOperator, Regularizer
from invreg.linalg import inner
from invreg.noise import Gaussian
from invreg.problem import Problem
from invreg.random import draw

LEAST_FREEDOM = 0.1
"""Of the measurements that a fit must leave free for cross-validation to mean something."""


@dataclass(frozen=True, kw_only=True)
class Discrepancy:
    """The weight at which chi-square meets the number of measurements: |A x - y|^2 / sigma^2 = tau * count.

    Needs the right sigma in the problem's noise. Found by bisection of the logarithm, warm-started.

    Args:
        tau: > 0; a little above 1 forgives an underestimated sigma.
        evaluations: reconstructions at most.
        rtol: tolerance on chi-square over its target.

    Source: Morozov 1966.
    """

    tau: float = 1.0
    evaluations: int = 16
    rtol: float = 1e-2

    def __post_init__(self) -> None:
        require_positive("tau", self.tau)
        require_positive("rtol", self.rtol)
        require_count("evaluations", self.evaluations, least=3)


@dataclass(frozen=True, kw_only=True)
class SURE:
    """The weight of least predicted risk E |A x - A x_true|^2, estimated without bias by Stein's lemma.

    Needs the right sigma in the problem's noise. The divergence is one random probe, by a finite difference along it;
    the same probe for all weights, so that the curve is smooth. Its square length is the number of measurements, so
    that a fit that keeps all of the data has that divergence exactly.

    Args:
        grid: weights on the first, logarithmic grid, >= 3.
        refinements: golden-section evaluations around its least.
        probe: length of the finite difference, in units of sigma.
        seed: of the probe.

    Source: Stein 1981; Monte-Carlo divergence: Ramani, Blu and Unser 2008; for inverse problems, in the measurement
    domain: Deledalle et al. 2014.
    """

    grid: int = 8
    refinements: int = 6
    probe: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _check_grid(self.grid, self.refinements, self.probe)


@dataclass(frozen=True, kw_only=True)
class GCV:
    """The weight of least generalised cross-validation |A x - y|^2 / (count - divergence)^2; needs no sigma.

    A fit that leaves less than a tenth of the count as degrees of freedom is not scored (infinity): near interpolation
    the quotient is 0 / 0, which fewer measurements than unknowns always reach at small weights.

    Args:
        grid, refinements, seed: as for `SURE`.
        probe: length of the finite difference, relative to the root mean square of y.

    Source: Golub, Heath and Wahba 1979; random trace: Girard 1989.
    """

    grid: int = 8
    refinements: int = 6
    probe: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        _check_grid(self.grid, self.refinements, self.probe)


@dataclass(frozen=True, kw_only=True)
class LCurve:
    """The weight of greatest curvature of (log misfit, log R); needs no sigma, and a prior whose value is its penalty.

    R is the prior's value over the weight, which is right only if all of the prior scales with the weight; a constraint
    that the images obey adds nothing and does no harm.

    Args:
        grid: weights on the logarithmic grid, >= 8.

    Source: Hansen 1992; curvature by the circle through three neighbours.
    """

    grid: int = 12

    def __post_init__(self) -> None:
        require_count("grid", self.grid, least=8)


Rule = Discrepancy | SURE | GCV | LCurve


@dataclass(frozen=True, eq=False)
class WeightChoice:
    """A chosen weight and how it came about.

    Args:
        weight: the choice, for the whole batch.
        reconstruction: the reconstruction at that weight.
        weights: all that were tried, in order, (K,).
        scores: what the rule made of each, (K,): chi-square over its target, risk or cross-validation per measured
            number, curvature.
        rule: the rule.
        interior: False if the choice lies at an end of the bracket, or the discrepancy was not met: then look.
    """

    weight: float
    reconstruction: Reconstruction
    weights: Tensor
    scores: Tensor
    rule: Rule
    interior: bool


def choose_weight(
    problem: Problem,
    make_prior: Callable[[float], Any],
    algorithm: Algorithm[Any, Any],
    rule: Rule,
    *,
    bracket: tuple[float, float] | None = None,
    x0: Tensor | None = None,
) -> WeightChoice:
    """Choose one weight for a batch of problems, without ground truth.

    Only sampled entries count, complex ones twice (`problem.count`).

    Args:
        problem: a linear operator under Gaussian noise.
        make_prior: weight -> prior.
        algorithm: solves misfit + prior; give it enough iterations, the rules trust its images.
        rule: `Discrepancy`, `SURE`, `GCV` or `LCurve`.
        bracket: least and greatest weight to try; default 1e-6 to 1 times the weight at which the prior alone would
            outweigh the data, told from the back-projected image.
        x0: first image.

    Raises:
        TypeError: `rule` is none of these; the misfit is not quadratic; or the rule needs a prior with a value.
        ValueError: the bracket is not 0 < least < greatest.
        KeyboardInterrupt: a reconstruction was interrupted: half a search chooses nothing.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a Discrepancy(), SURE(), GCV() or LCurve(), got {rule!r}")
    if not problem.is_quadratic:
        raise TypeError(
            f"{type(rule).__name__} needs a LinearOperator and Gaussian noise, got "
            f"{type(problem.operator).__name__} and {type(problem.noise).__name__}"
        )
    low, high = _usual_bracket(problem, make_prior) if bracket is None else bracket
    require_positive("bracket[0]", low)
    require_positive("bracket[1]", high)
    if low >= high:
        raise ValueError(f"bracket must be (least, greatest) with least < greatest, got {bracket}")
    search = _Search(problem, make_prior, algorithm, x0)
    if isinstance(rule, Discrepancy):
        return _by_discrepancy(search, rule, low, high)
    if isinstance(rule, LCurve):
        return _by_curvature(search, rule, low, high)
    return _by_least(search, rule, low, high)


class _Search:
    """Reconstructions at several weights, each started from the last."""

    def __init__(
        self, problem: Problem, make_prior: Callable[[float], Any], algorithm: Algorithm[Any, Any], x0: Tensor | None
    ) -> None:
        self.problem, self.make_prior, self.algorithm = problem, make_prior, algorithm
        self.x0 = x0
        self.tried: dict[float, tuple[Reconstruction, float]] = {}

    def solve(self, weight: float) -> Reconstruction:
        return _solve(self.algorithm, self.problem, self.make_prior(weight), self.x0)

    def record(self, weight: float, result: Reconstruction, score: float) -> float:
        self.tried[weight] = (result, score)
        self.x0 = result.x
        return score

    def chosen(self, weight: float, rule: Rule, interior: bool) -> WeightChoice:
        weights = list(self.tried)
        scores = [score for _, score in self.tried.values()]
        return WeightChoice(
            weight,
            self.tried[weight][0],
            torch.tensor(weights, dtype=torch.float64),
            torch.tensor(scores, dtype=torch.float64),
            rule,
            interior,
        )


def _solve(algorithm: Algorithm[Any, Any], problem: Problem, prior: Any, x0: Tensor | None) -> Reconstruction:
    """`algorithm.solve` that passes an interrupt on, since its image so far must not be scored."""
    result = algorithm.solve(problem, prior, x0)
    if Status.INTERRUPTED in result.status:
        raise KeyboardInterrupt
    return result


def _by_discrepancy(search: _Search, rule: Discrepancy, low: float, high: float) -> WeightChoice:
    target = rule.tau * float(search.problem.count.sum())

    def excess(weight: float) -> float:
        """Chi-square over its target, which grows with the weight."""
        result = search.solve(weight)
        return search.record(weight, result, 2 * float(search.problem.misfit(result.x).sum()) / target)

    if excess(high) < 1:  # from above, so that every start is smoother than the goal
        return search.chosen(high, rule, False)
    if excess(low) > 1:
        return search.chosen(low, rule, False)
    for _ in range(rule.evaluations - 2):
        middle = math.sqrt(low * high)
        score = excess(middle)
        if abs(score - 1) <= rule.rtol:
            break
        low, high = (middle, high) if score < 1 else (low, middle)
    weight = min(search.tried, key=lambda w: abs(search.tried[w][1] - 1))
    return search.chosen(weight, rule, abs(search.tried[weight][1] - 1) <= 10 * rule.rtol)


def _by_least(search: _Search, rule: SURE | GCV, low: float, high: float) -> WeightChoice:
    score = _risk(search, rule)
    grid = _grid(low, high, rule.grid)
    scores = [score(weight) for weight in reversed(grid)][::-1]
    best = min(range(len(grid)), key=scores.__getitem__)
    left, right = math.log(grid[max(best - 1, 0)]), math.log(grid[min(best + 1, len(grid) - 1)])
    golden = (math.sqrt(5) - 1) / 2
    inside: dict[float, float] = {}
    for _ in range(rule.refinements):
        a, b = right - golden * (right - left), left + golden * (right - left)
        for point in (a, b):
            key = next((p for p in inside if abs(p - point) < 1e-9), None)
            if key is None:
                inside[point] = score(math.exp(point))
        values = [next(v for p, v in inside.items() if abs(p - point) < 1e-9) for point in (a, b)]
        left, right = (left, b) if values[0] <= values[1] else (a, right)
    weight = min(search.tried, key=lambda w: search.tried[w][1])
    if search.tried[weight][1] == math.inf:
        raise ValueError(f"bracket must hold weights that leave {LEAST_FREEDOM:.0%} of the data free for GCV, got none")
    return search.chosen(weight, rule, grid[0] < weight < grid[-1])


def _risk(search: _Search, rule: SURE | GCV) -> Callable[[float], float]:
    """Weight -> SURE or GCV, per measured number."""
    problem = search.problem
    operator, noise = problem.operator, problem.noise
    assert isinstance(operator, LinearOperator)
    assert isinstance(noise, Gaussian)
    count = float(problem.count.sum())
    mask = operator.sampled()
    probe = draw(problem.y, torch.Generator().manual_seed(rule.seed))
    probe = probe if mask is None else probe * mask
    probe = probe * (count / inner(probe, probe).sum()).sqrt()
    if isinstance(rule, SURE):
        move = rule.probe * probe * noise.sigma
        length = rule.probe
    else:  # the scale of the noise is unknown: probe in units of the data, whitened by the relative sigma
        size = float((problem.y / noise.sigma).abs().square().sum() / count) ** 0.5
        length = rule.probe * size
        move = length * probe * noise.sigma
    moved = Problem(operator, problem.y + move, noise)
    fixed = replace(search.algorithm, rtol=0.0)  # both reconstructions must do the same iterations
    start = search.x0  # always this one: a start that depends on y would hide part of the divergence

    def score(weight: float) -> float:
        prior = search.make_prior(weight)
        result = _solve(fixed, problem, prior, start)
        other = _solve(fixed, moved, prior, start)
        change = (operator(other.x) - operator(result.x)) / noise.sigma
        # whitened: sum_i probe_i d(A x)_i / d y_i, both over sigma
        divergence = float(inner(probe, change).sum()) / length
        residual = 2 * float(problem.misfit(result.x).sum())
        if isinstance(rule, SURE):
            value = (residual - count + 2 * divergence) / count
        else:
            freedom = 1 - divergence / count
            value = residual / count / freedom**2 if freedom >= LEAST_FREEDOM else math.inf
        return search.record(weight, result, value)

    return score


def _by_curvature(search: _Search, rule: LCurve, low: float, high: float) -> WeightChoice:
    grid = _grid(low, high, rule.grid)
    points: dict[float, tuple[float, float]] = {}
    for weight in reversed(grid):
        prior = search.make_prior(weight)
        if not isinstance(prior, Regularizer) or not prior.exact:
            raise TypeError(f"LCurve needs a prior whose value is its penalty, got {type(prior).__name__}")
        result = search.solve(weight)
        penalty = float(prior(result.x).sum()) / weight
        points[weight] = (
            math.log(max(float(search.problem.misfit(result.x).sum()), 1e-300)),
            math.log(max(penalty, 1e-300)),
        )
        search.record(weight, result, 0.0)
    for before, weight, after in zip(grid, grid[1:], grid[2:], strict=False):
        curvature = _curvature(points[before], points[weight], points[after])
        search.tried[weight] = (search.tried[weight][0], curvature)
    weight = max(grid[1:-1], key=lambda w: search.tried[w][1])
    return search.chosen(weight, rule, weight not in (grid[1], grid[-2]))


def _curvature(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    """Signed inverse radius of the circle through three points, > 0 at the corner of an L."""
    twice_area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    sides = math.dist(a, b) * math.dist(b, c) * math.dist(a, c)
    return 2 * twice_area / sides if sides > 0 else 0.0


def _usual_bracket(problem: Problem, make_prior: Callable[[float], Any]) -> tuple[float, float]:
    """Weights around those at which penalty and misfit of the back-projected image balance."""
    prior = make_prior(1.0)
    if not isinstance(prior, Regularizer):
        raise TypeError(f"bracket must be given for {type(prior).__name__}, which has no value")
    back = problem.backprojection()
    image = problem.normal(back)
    scale = inner(back, back).sum() / inner(back, image).sum().clamp_min(torch.finfo(image.real.dtype).tiny)
    x = scale * back  # the best multiple of the back-projection
    penalty = float(prior(x).sum())
    misfit = float(problem.misfit(torch.zeros_like(x)).sum())
    if not (math.isfinite(penalty) and penalty > 0 and misfit > 0):
        raise ValueError("bracket must be given: the penalty of the back-projected image is zero or infinite")
    return 1e-6 * misfit / penalty, misfit / penalty


def _grid(low: float, high: float, n: int) -> list[float]:
    return [low * (high / low) ** (i / (n - 1)) for i in range(n)]


def _check_grid(grid: int, refinements: int, probe: float) -> None:
    require_count("grid", grid, least=3)
    require_count("refinements", refinements, least=0)
    require_positive("probe", probe)
