"""Brownian paths: one story at every refinement, with the statistics that it should have."""

import math
import random
import re
import tracemalloc
from itertools import pairwise

import pytest
import torch
import torchsde
from scipy import stats
from torch import Tensor

from invreg.solvers import SOSRI, BrownianPath, Fixed, Milstein, VirtualBrownianTree, sdeint
from invreg.solvers.brownian import joined, path_of

MANY = 4000  # entries of a path, where its statistics are looked at
Part = tuple[float, Tensor, Tensor]


def tree(
    shape: tuple[int, ...] = (3,),
    t0: float = 0.0,
    t1: float = 1.0,
    *,
    seed: int = 5,
    cell: float | None = None,
    knots: tuple[float, ...] = (),
    area: bool = True,
    dtype: torch.dtype = torch.float64,
) -> VirtualBrownianTree:
    return VirtualBrownianTree(t0, t1, shape, seed=seed, cell=cell, knots=knots, area=area, dtype=dtype)


def part(path: BrownianPath, a: float, b: float) -> Part:
    return (b - a, *path.with_area(a, b))


def close(one: Tensor, other: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def require_normal(values: Tensor, variance: float) -> None:
    assert stats.kstest((values.flatten() / math.sqrt(variance)).numpy(), "norm").pvalue > 1e-3


LAYOUTS: dict[str, dict[str, object]] = {
    "one cell": {},
    "cells": {"cell": 0.125},
    "shorter last cell": {"cell": 0.3},
    "knots": {"knots": (0.2, 0.55)},
    "cells from knots": {"knots": (0.2, 0.55), "cell": 0.15},
    "a cell beyond the end": {"cell": 7.0},
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
SPLITS = {
    "halves": (0.0, 0.5, 1.0),
    "dyadic": (0.0, 0.125, 0.25, 0.5, 0.96875, 1.0),
    "arbitrary": (0.0, 0.0123, 0.2, 1 / 3, 0.55, math.pi / 4, 0.999, 1.0),
    "within": (0.111, 0.112, 0.4, 0.901),
    "nearly nothing": (0.3, 0.3 + 1e-7, 0.3 + 3e-7, 0.4),
}
splits = pytest.mark.parametrize("times", SPLITS.values(), ids=SPLITS)


# --- one path


@layouts
@splits
def test_increments_of_parts_add_up_to_that_of_the_whole(layout: dict[str, object], times: tuple[float, ...]) -> None:
    for area in (True, False):
        path = tree(area=area, **layout)  # type: ignore[arg-type]
        whole = path(times[0], times[-1])
        close(torch.stack([path(a, b) for a, b in pairwise(times)]).sum(0), whole)


@layouts
@splits
def test_areas_of_parts_join_to_that_of_the_whole(layout: dict[str, object], times: tuple[float, ...]) -> None:
    path = tree(**layout)  # type: ignore[arg-type]
    total = part(path, times[0], times[1])
    for a, b in pairwise(times[1:]):
        total = joined(total, part(path, a, b))
    whole = path.with_area(times[0], times[-1])
    close(total[1], whole[0])
    close(total[2], whole[1], 1e-9)  # times are told apart to 2^-32 of a cell


def test_joining_is_what_integrals_do() -> None:
    # the integral of W(s) - W(a) over an interval of length h is h (w / 2 + H)
    (a, w1, h1), (b, w2, h2) = first, second = [(0.3, *torch.randn(2, 4)), (1.1, *torch.randn(2, 4))]
    length, w, h = joined(first, second)
    whole = a * (w1 / 2 + h1) + b * (w1 + w2 / 2 + h2)
    close(length * (w / 2 + h), whole, 1e-6)
    close(w, w1 + w2, 1e-6)


@layouts
def test_the_increment_is_the_same_with_its_area_and_alone(layout: dict[str, object]) -> None:
    path = tree(**layout)  # type: ignore[arg-type]
    for a, b in ((0.0, 1.0), (0.1, 0.7), (0.25, 0.5), (0.3, 0.31)):
        close(path(a, b), path.with_area(a, b)[0], 1e-14)


@layouts
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2100,), (2, 0)])
def test_values_do_not_depend_on_the_order_of_questions(layout: dict[str, object], shape: tuple[int, ...]) -> None:
    shuffle = random.Random(0)
    times = [0.0, *sorted(shuffle.random() for _ in range(8)), 0.25, 0.5, 1.0]
    spans = [(min(one), max(one)) for one in (shuffle.sample(times, 2) for _ in range(12))]
    path = tree(shape, **layout)  # type: ignore[arg-type]
    want = {span: [one.clone() for one in path.with_area(*span)] for span in spans}
    asked = [*spans, *spans]
    shuffle.shuffle(asked)
    for a, b in asked:
        fresh = path if shuffle.random() < 0.7 else tree(shape, **layout)  # type: ignore[arg-type]
        if shuffle.random() < 0.5:
            fresh(a, b)
        w, area = fresh.with_area(a, b)
        assert torch.equal(w, want[a, b][0]) and torch.equal(area, want[a, b][1])
        assert w.shape == area.shape == shape


def test_other_seeds_give_other_paths_and_a_generator_gives_the_seed() -> None:
    values = [tree(seed=seed)(0.0, 0.7) for seed in (0, 1, 2, -1, 2**61)]
    assert len({tuple(one.tolist()) for one in values}) == 5
    drawn = [VirtualBrownianTree(0.0, 1.0, (3,), generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert drawn[0].seed == drawn[1].seed != drawn[2].seed
    assert torch.equal(drawn[0](0.0, 0.7), drawn[1](0.0, 0.7))


def test_without_a_generator_the_seed_is_torchs_and_looking_draws_no_more() -> None:
    torch.manual_seed(11)
    first = VirtualBrownianTree(0.0, 1.0, (2,))
    state = torch.get_rng_state()
    first(0.1, 0.9)
    first.with_area(0.1, 0.9)
    assert torch.equal(torch.get_rng_state(), state)
    second = VirtualBrownianTree(0.0, 1.0, (2,))
    torch.manual_seed(11)
    assert VirtualBrownianTree(0.0, 1.0, (2,)).seed == first.seed != second.seed


def test_cells_of_equal_length_are_equal_in_trees_of_any_end() -> None:
    short, long = tree(cell=0.25), tree(t1=40.0, cell=0.25)
    for a, b in ((0.0, 0.25), (0.3, 0.9), (0.0, 1.0)):
        assert torch.equal(short(a, b), long(a, b))


def test_an_empty_interval_has_no_increment_and_no_area() -> None:
    path = tree()
    for t in (0.0, 0.4, 1.0):
        assert not path(t, t).any()
        w, area = path.with_area(t, t)
        assert not w.any() and not area.any() and w.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_have_the_dtype_of_the_path(dtype: torch.dtype) -> None:
    path = tree(dtype=dtype, cell=0.25)
    assert path(0.1, 0.6).dtype == dtype
    assert {one.dtype for one in path.with_area(0.1, 0.6)} == {dtype}
    w = path(0.0, 0.37) + path(0.37, 1.0)
    close(w, path(0.0, 1.0), 1e-6 if dtype == torch.float32 else 1e-13)
    assert VirtualBrownianTree(0.0, 1.0, (2,), seed=1)(0.0, 1.0).dtype == torch.get_default_dtype()


@pytest.mark.parametrize("cell", [1e-3, 1e-5, 0.3])
def test_a_path_far_from_zero_keeps_its_laws(cell: float) -> None:
    # times near 10^4 are 2e-12 apart, which is more than 2^-32 of a cell
    start = 1e4
    path = tree((2000,), start, start + 64 * cell, cell=cell)
    added = start
    for _ in range(20):
        added += cell
    whole = path.with_area(start, added)
    total = part(path, start, start + cell)
    for i in range(1, 20):
        total = joined(total, part(path, start + i * cell, start + (i + 1) * cell))
    close(total[1], whole[0], 1e-2 * math.sqrt(cell))
    require_normal(path(start, start + cell), cell)
    require_normal(path(start + 2.5 * cell, start + 5.25 * cell), 2.75 * cell)
    for a, b in ((start, start + 0.7 * cell), (start + 1.3 * cell, start + 9.9 * cell)):
        assert a < path.snap(a, b) <= b


def test_times_that_were_added_up_find_the_cell() -> None:
    path, t = tree(cell=0.1), 0.0
    for i in range(10):
        end = t + 0.1
        close(path(t, end), path(i / 10, (i + 1) / 10), 0.0)
        t = end


def test_the_memory_stays_after_thousands_of_questions() -> None:
    path, shuffle = tree((50,), cell=0.25), random.Random(1)

    def ask(times: int) -> None:
        for _ in range(times):
            i = shuffle.randrange(127)
            path.with_area(i / 128, (i + 1) / 128)

    ask(1500)
    held = [len(path._halves), len(path._blocks)]
    tracemalloc.start()
    try:
        ask(50)
        before = tracemalloc.get_traced_memory()[0]
        ask(500)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 20_000
    assert [len(path._halves), len(path._blocks)] == held == [33, 2]


# --- snap


@layouts
def test_snapped_times_lie_in_the_interval_and_not_far_below_its_end(layout: dict[str, object]) -> None:
    path, shuffle = tree(**layout), random.Random(2)  # type: ignore[arg-type]
    for _ in range(200):
        a = shuffle.random()
        b = a + (1 - a) * shuffle.random() * 10 ** -shuffle.uniform(0, 6)
        t = path.snap(a, b)
        assert a + 0.69 * (b - a) < t <= b


def test_snapped_times_are_coarse() -> None:
    path = tree()
    for a, b in ((0.0, 0.3), (0.1, 0.9), (0.30001, 0.4), (0.123, 0.124)):
        t = path.snap(a, b)
        bits = next(k for k in range(33) if (t * 2**k).is_integer())
        assert 2.0**-bits > 0.3 * (b - a) / 2  # a coarsest node of the last 0.3 of the interval
    knotted = tree(cell=0.15, knots=(0.2, 0.55))
    assert knotted.snap(0.0, 0.21) == 0.2
    assert knotted.snap(0.1, 0.6) in {0.5, 0.55}


def test_a_step_below_the_resolution_goes_nowhere() -> None:
    path = tree()
    assert path.snap(0.5, 0.5 + 1e-12) == 0.5


def test_paths_that_are_no_trees_snap_nowhere() -> None:
    assert path_of(torchsde.BrownianInterval(0.0, 1.0, size=(2, 3)), (2, 3)).snap(0.1, 0.37) == 0.37


# --- statistics


@layouts
@pytest.mark.parametrize("area", [True, False])
@pytest.mark.parametrize("span", [(0.0, 1.0), (0.0, 0.15), (0.25, 0.5), (0.1, 0.83), (0.4, 0.4001)])
def test_increments_are_normal_with_the_length_as_variance(
    layout: dict[str, object], area: bool, span: tuple[float, float]
) -> None:
    w = tree((MANY,), area=area, **layout)(*span)  # type: ignore[arg-type]
    length = span[1] - span[0]
    require_normal(w, length)
    assert float(w.var()) == pytest.approx(length, rel=0.09)  # four standard deviations
    assert abs(float(w.mean())) < 4 * math.sqrt(length / MANY)


@layouts
@pytest.mark.parametrize("span", [(0.0, 1.0), (0.0, 0.15), (0.25, 0.5), (0.1, 0.83)])
def test_areas_are_normal_independent_of_increments_with_a_twelfth_of_the_length(
    layout: dict[str, object], span: tuple[float, float]
) -> None:
    w, area = tree((MANY,), **layout).with_area(*span)  # type: ignore[arg-type]
    length = span[1] - span[0]
    require_normal(area, length / 12)
    assert float(area.var()) == pytest.approx(length / 12, rel=0.09)
    assert abs(correlation(w, area)) < 4 / math.sqrt(MANY)
    # independent, and not uncorrelated only
    assert abs(correlation(w.square(), area.square())) < 0.09


@layouts
@pytest.mark.parametrize("area", [True, False])
def test_disjoint_increments_and_areas_are_independent(layout: dict[str, object], area: bool) -> None:
    path = tree((MANY,), area=area, **layout)  # type: ignore[arg-type]
    times = (0.0, 0.1, 0.15, 0.2, 0.3, 0.5, 0.53, 0.6, 0.75, 0.9, 1.0)
    rows = [path.with_area(a, b) if area else (path(a, b),) for a, b in pairwise(times)]
    found = torch.corrcoef(torch.stack([one for row in rows for one in row]))
    assert float((found - torch.eye(len(found))).abs().max()) < 4.5 / math.sqrt(MANY)


@layouts
def test_the_covariance_of_two_times_is_the_earlier_one(layout: dict[str, object]) -> None:
    path = tree((MANY,), **layout)  # type: ignore[arg-type]
    times = torch.tensor([0.07, 0.2, 0.3, 0.5, 0.55, 0.8, 1.0], dtype=torch.float64)
    w = torch.stack([path(0.0, t) for t in times.tolist()])
    want = torch.minimum(times[:, None], times)
    deviation = torch.sqrt((want.square() + times[:, None] * times) / MANY)
    assert float(((w @ w.T / MANY - want) / deviation).abs().max()) < 4.5


def test_the_area_is_that_of_the_path_in_between() -> None:
    path, n = tree((64,)), 1024
    w = torch.stack([path(k / n, (k + 1) / n) for k in range(n)]).cumsum(0)
    mean = (w.sum(0) - w[-1] / 2) / n  # of the polygon, off by a deviation of 1 / sqrt(12) / n
    increment, area = path.with_area(0.0, 1.0)
    close(w[-1], increment)
    assert float((mean - increment / 2 - area).abs().max()) < 5 / math.sqrt(12) / n


def test_entries_samples_and_seeds_are_independent() -> None:
    values = torch.stack([tree((8, 8), seed=seed)(0.0, 0.625).flatten() for seed in range(400)])
    assert float((torch.corrcoef(values.T) - torch.eye(64)).abs().max()) < 5 / 20
    require_normal(values, 0.625)


def test_neighbouring_seeds_and_cells_are_independent() -> None:
    cells = torch.stack([tree((MANY,), seed=seed, cell=1.0, t1=4.0)(k, k + 1) for seed in (0, 1, 2) for k in range(4)])
    assert float((torch.corrcoef(cells) - torch.eye(12)).abs().max()) < 4.5 / math.sqrt(MANY)


# --- paths of torchsde


def interval(area: str, size: tuple[int, ...] = (2, 3), entropy: int = 4) -> torchsde.BrownianInterval:
    return torchsde.BrownianInterval(
        0.0, 1.0, size=size, dtype=torch.float64, entropy=entropy, levy_area_approximation=area
    )


def test_a_path_of_torchsdes_serves_and_tells_its_area_where_it_can() -> None:
    path = path_of(interval("space-time", (MANY, 1)), (MANY, 1))
    w, area = path.with_area(0.0, 1.0)
    assert torch.equal(w, path(0.0, 1.0))
    require_normal(w, 1.0)
    require_normal(area, 1 / 12)
    total = joined(part(path, 0.0, 0.3), part(path, 0.3, 1.0))
    close(total[1], w)
    close(total[2], area)


def test_a_path_of_torchsdes_gives_the_solution_that_belongs_to_it() -> None:
    y0 = torch.ones(2, 3, dtype=torch.float64)
    for motion, method, tolerance in (
        (interval("space-time"), SOSRI(), 2e-3),
        (interval("none"), Milstein(derivative_free=True), 3e-2),
    ):
        solution = sdeint(
            lambda t, y: torch.zeros_like(y), lambda t, y: 0.3 * y, y0, [0.0, 1.0], method=method, path=motion,
            controller=Fixed(1 / 32),
        )  # fmt: skip
        close(solution.ys[-1], y0 * torch.exp(0.3 * motion(0.0, 1.0) - 0.045), tolerance)


def test_a_path_of_torchsdes_without_area_is_refused_where_it_is_needed() -> None:
    y0 = torch.ones(2, 3, dtype=torch.float64)
    path = path_of(interval("none"), (2, 3))
    close(path(0.0, 0.4) + path(0.4, 1.0), path(0.0, 1.0))
    for motion in (interval("none"), torchsde.BrownianPath(0.0, torch.zeros(2, 3, dtype=torch.float64))):
        with pytest.raises(
            ValueError, match=r"path must tell its space-time Levy area, which this method needs: use a"
        ):
            sdeint(lambda t, y: -y, lambda t, y: y, y0, [0.0, 1.0], method=SOSRI(), path=motion)


# --- errors


@pytest.mark.parametrize(
    ("edges", "knots"),
    [((0.0, 0.0), ()), ((1.0, 0.0), ()), ((0.0, math.nan), ()), ((0.0, math.inf), ()), ((0.0, 1.0), (0.5, 0.2)),
     ((0.0, 1.0), (1.5,)), ((0.0, 1.0), (0.0,))],
)  # fmt: skip
def test_ends_and_knots_have_to_increase(edges: tuple[float, float], knots: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="t0, knots and t1 must be finite and increasing, got"):
        VirtualBrownianTree(*edges, (2,), knots=knots)


@pytest.mark.parametrize("cell", [0.0, -0.1, math.nan, math.inf])
def test_cells_have_a_length(cell: float) -> None:
    with pytest.raises(ValueError, match=f"cell must be > 0, got {cell}"):
        VirtualBrownianTree(0.0, 1.0, (2,), cell=cell)


def test_too_many_cells_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cell must leave fewer than 2\^31 cells, got \d+ of length 1e-10"):
        VirtualBrownianTree(0.0, 1.0, (2,), cell=1e-10)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_values_have_to_be_real_numbers(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"dtype must be real and floating point, got {dtype}"):
        VirtualBrownianTree(0.0, 1.0, (2,), dtype=dtype)


@pytest.mark.parametrize("span", [(0.5, 0.4), (-0.1, 0.5), (0.5, 1.1), (math.nan, 0.5)])
def test_times_out_of_order_or_beyond_the_ends_are_refused(span: tuple[float, float]) -> None:
    message = re.escape(f"a and b must be in order and between 0.0 and 1.0, got {span[0]} and {span[1]}")
    for ask in (tree(), tree().with_area):
        with pytest.raises(ValueError, match=message):
            ask(*span)


def test_a_tree_without_areas_tells_none() -> None:
    with pytest.raises(ValueError, match="path must tell its space-time Levy area: make it with area=True"):
        tree(area=False).with_area(0.0, 1.0)


def test_a_path_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"path must have values of shape \(2, 3\), as the noise has, got \(3,\)"):
        path_of(tree(), (2, 3))
    with pytest.raises(ValueError, match=r"path must have values of shape \(2, 4\), got \(2, 3\)"):
        path_of(interval("none"), (2, 4))


def test_what_is_no_path_is_refused() -> None:
    with pytest.raises(TypeError, match="path must be a BrownianPath, or a Brownian motion of torchsde, got float"):
        path_of(0.5, (2,))
