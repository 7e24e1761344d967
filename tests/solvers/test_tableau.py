from collections.abc import Iterator
from functools import cache
from math import fsum, prod

import numpy as np
import pytest

from invreg.solvers.tableau import (
    BOSH3,
    DOPRI5,
    DOPRI5_SHAMPINE,
    DOPRI8,
    EULER,
    FEHLBERG2,
    HEUN,
    HEUN3,
    MIDPOINT,
    RALSTON,
    RK4,
    RK38,
    TSIT5,
    VERN7,
    Tableau,
)

TABLEAUX = {
    "euler": EULER,
    "heun": HEUN,
    "midpoint": MIDPOINT,
    "ralston": RALSTON,
    "heun3": HEUN3,
    "fehlberg2": FEHLBERG2,
    "rk4": RK4,
    "rk38": RK38,
    "bosh3": BOSH3,
    "dopri5": DOPRI5,
    "dopri5_shampine": DOPRI5_SHAMPINE,
    "tsit5": TSIT5,
    "dopri8": DOPRI8,
    "vern7": VERN7,
}
# largest defects measured: of a step 1.4e-14, Tsit5's; of dense output 2e-13, Dopri8's, from coefficients near 700
ROUNDING = 1e-13
DENSE_ROUNDING = 1e-12
VIOLATION = 1e-8  # smallest defect of the next order: 3e-7, of the dense output of Vern7

Tree = tuple["Tree", ...]  # the subtrees at the root, sorted

each_tableau = pytest.mark.parametrize("tableau", TABLEAUX.values(), ids=TABLEAUX.keys())
each_pair = pytest.mark.parametrize(
    "tableau", [t for t in TABLEAUX.values() if t.error], ids=[n for n, t in TABLEAUX.items() if t.error]
)


def forests(size: int, largest: int) -> Iterator[Tree]:
    """Multisets of trees with `size` nodes in all, none with more than `largest`, perhaps repeated."""
    if size == 0:
        yield ()
    for first in range(min(size, largest), 0, -1):
        for tree in trees(first):
            for rest in forests(size - first, first):
                yield (tree, *rest)


@cache
def trees(order: int) -> tuple[Tree, ...]:
    return tuple(sorted({tuple(sorted(forest)) for forest in forests(order - 1, order - 1)}))


@cache
def nodes(tree: Tree) -> int:
    return 1 + sum(nodes(t) for t in tree)


@cache
def density(tree: Tree) -> int:
    return nodes(tree) * prod(density(t) for t in tree)


def matrix(tableau: Tableau) -> np.ndarray:
    rows = (*tableau.a, *tableau.extra_a)
    A = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        assert len(row) == i
        A[i, :i] = row
    return A


def padded(weights: tuple[float, ...], tableau: Tableau) -> np.ndarray:
    return np.concatenate([weights, np.zeros(len(tableau.extra_c))])


def polynomials(tableau: Tableau) -> np.ndarray:
    degree = max(len(row) for row in tableau.dense)
    return np.array([[*row, *[0.0] * (degree - len(row))] for row in tableau.dense])


def dense_weights(tableau: Tableau, theta: float) -> np.ndarray:
    coefficients = polynomials(tableau)
    return coefficients @ theta ** np.arange(1.0, coefficients.shape[1] + 1)


def defects(tableau: Tableau, weights: np.ndarray, theta: float, order: int) -> float:
    """Largest defect of the conditions of one order, for the solution at t + theta dt."""
    A, known = matrix(tableau), {}

    def phi(tree: Tree) -> np.ndarray:
        if tree not in known:
            known[tree] = prod((A @ phi(t) for t in tree), start=np.ones(len(A)))
        return known[tree]

    return max(abs(phi(t) @ weights - theta**order / density(t)) for t in trees(order))


def stability_size(tableau: Tableau) -> float:
    s = tableau.stages
    A, v, coefficients = matrix(tableau)[:s, :s], np.ones(s), [1.0]
    for _ in range(s):
        coefficients.append(float(np.dot(tableau.b, v)))
        v = A @ v
    R = np.polynomial.Polynomial(np.array(coefficients) * (-1.0) ** np.arange(s + 1))
    crossings = np.concatenate([(R - 1).roots(), (R + 1).roots()])
    crossings = np.sort(crossings[np.abs(crossings.imag) < 1e-9].real)
    return next(float(x) for x in crossings if x > 1e-3 and abs(R(x + 1e-4)) > 1)


def test_there_are_as_many_trees_as_known():
    assert [len(trees(n)) for n in range(1, 10)] == [1, 1, 2, 4, 9, 20, 48, 115, 286]


@each_tableau
def test_every_coefficient_is_a_float_and_every_stage_has_its_row(tableau):
    s, e = tableau.stages, len(tableau.extra_c)
    assert len(tableau.a) == len(tableau.c) == s and len(tableau.extra_a) == e and len(tableau.dense) == s + e
    assert tableau.error is None or len(tableau.error) == s
    tuples = [*tableau.a, *tableau.extra_a, *tableau.dense, tableau.b, tableau.c, tableau.extra_c, tableau.error or ()]
    assert all(type(x) is float for row in tuples for x in row)


@each_tableau
def test_rows_sum_to_the_abscissae(tableau):
    c = np.array([*tableau.c, *tableau.extra_c])
    np.testing.assert_allclose(matrix(tableau).sum(axis=1), c, rtol=0, atol=3e-14)


@each_tableau
def test_step_has_its_order_and_no_more(tableau):
    b = padded(tableau.b, tableau)
    for order in range(1, tableau.order + 1):
        assert defects(tableau, b, 1.0, order) < ROUNDING
    assert defects(tableau, b, 1.0, tableau.order + 1) > VIOLATION


@each_pair
def test_embedded_solution_has_its_order_and_no_more(tableau):
    b_hat = padded(tableau.b, tableau) - padded(tableau.error, tableau)
    for order in range(1, tableau.error_order + 1):
        assert defects(tableau, b_hat, 1.0, order) < ROUNDING
    assert defects(tableau, b_hat, 1.0, tableau.error_order + 1) > VIOLATION


@each_tableau
def test_error_weights_and_their_order_come_together(tableau):
    assert (tableau.error is None) == (tableau.error_order is None)
    assert tableau.error_order is None or tableau.error_order < tableau.order


@each_tableau
def test_dense_output_has_its_order_and_no_more(tableau):
    assert tableau.dense_order >= tableau.order - 1
    thetas = (0.1, 0.25, 0.5, 0.7, 0.9)
    for theta in thetas:
        for order in range(1, tableau.dense_order + 1):
            assert defects(tableau, dense_weights(tableau, theta), theta, order) < DENSE_ROUNDING
    beyond = tableau.dense_order + 1
    assert max(defects(tableau, dense_weights(tableau, theta), theta, beyond) for theta in thetas) > VIOLATION


@each_tableau
def test_dense_output_ends_in_the_step(tableau):
    end = [fsum(row) for row in tableau.dense]
    np.testing.assert_allclose(end, padded(tableau.b, tableau), rtol=0, atol=2e-14)


@each_tableau
def test_dense_output_starts_with_the_slope_there(tableau):
    first = [row[0] if row else 0.0 for row in tableau.dense]
    assert first == [1.0, *[0.0] * (len(first) - 1)]


@pytest.mark.parametrize(("name", "stage"), [("bosh3", 3), ("dopri5", 6), ("tsit5", 6), ("dopri8", 13), ("vern7", 10)])
def test_dense_output_ends_with_the_slope_there(name, stage):
    tableau = TABLEAUX[name]
    coefficients = polynomials(tableau)
    slopes = coefficients @ np.arange(1.0, coefficients.shape[1] + 1)
    np.testing.assert_allclose(slopes, np.eye(len(slopes))[stage], rtol=0, atol=3e-12)
    assert (*tableau.a, *tableau.extra_a)[stage] == (tableau.b[:-1] if tableau.fsal else tableau.b)


@each_tableau
def test_dense_output_has_moderate_weights(tableau):
    assert max(np.abs(dense_weights(tableau, theta)).max() for theta in np.linspace(0, 1, 21)) < 20


def test_some_methods_are_fsal():
    assert {name for name, tableau in TABLEAUX.items() if tableau.fsal} == {
        "bosh3",
        "dopri5",
        "dopri5_shampine",
        "tsit5",
        "dopri8",
    }


@pytest.mark.parametrize("name", ["dopri5", "dopri5_shampine", "tsit5", "dopri8", "vern7"])
def test_stiffness_is_estimated_between_stages_of_equal_abscissa_and_other_argument(name):
    tableau = TABLEAUX[name]
    later, earlier = tableau.stiffness_pair
    assert later > earlier and tableau.c[later] == tableau.c[earlier] == 1.0
    assert np.abs(matrix(tableau)[later] - matrix(tableau)[earlier]).max() > 0.1


@each_tableau
def test_stability_size_is_where_the_stability_polynomial_leaves_one(tableau):
    assert tableau.stability_size == pytest.approx(stability_size(tableau), abs=1e-3)


def test_the_two_error_estimates_of_dormand_and_prince_differ():
    assert DOPRI5.error != DOPRI5_SHAMPINE.error
    assert DOPRI5.a == DOPRI5_SHAMPINE.a and DOPRI5.dense == DOPRI5_SHAMPINE.dense
