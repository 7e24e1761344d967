"""The tableaus of stochastic methods, against the conditions of strong order 1.5 and the stability that they claim."""

import math

import numpy as np
import pytest

from invreg.solvers import SOSRA, SOSRA2, SOSRI, SOSRI2, SRA1, SRA3, SRIW1, SRIW2
from invreg.solvers import stochastic_tableau as tableaux
from invreg.solvers.stochastic_tableau import Additive, Diagonal, Matrix

ADDITIVE = {"SRA1": tableaux.SRA1, "SRA3": tableaux.SRA3, "SOSRA": tableaux.SOSRA, "SOSRA2": tableaux.SOSRA2}
DIAGONAL = {"SRIW1": tableaux.SRIW1, "SRIW2": tableaux.SRIW2, "SOSRI": tableaux.SOSRI, "SOSRI2": tableaux.SOSRI2}
BOTH: dict[str, Additive | Diagonal] = {**ADDITIVE, **DIAGONAL}
every_one = pytest.mark.parametrize("table", BOTH.values(), ids=BOTH)
Conditions = dict[str, tuple[float, float]]  # name -> value, and what it should be


def square(rows: Matrix) -> np.ndarray:
    """The lower triangle that the rows are, as a matrix."""
    full = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        assert len(row) == i, "a row for each stage, with the stages before it"
        full[i, :i] = row
    return full


def order_conditions(table: Additive | Diagonal) -> Conditions:
    """Roessler 2010, theorem 4.1 (SRA, 8 conditions) and 5.2 (SRI, 25)."""
    e = np.ones(len(table.alpha))
    alpha = np.array(table.alpha)
    a0, b0 = square(table.a0) @ e, square(table.b0) @ e
    shared: Conditions = {
        "alpha e": (alpha @ e, 1.0),
        "alpha A0 e": (alpha @ a0, 1 / 2),
        "alpha B0 e": (alpha @ b0, 1.0),
        "alpha (B0 e)^2": (alpha @ b0**2, 3 / 2),
    }
    betas = [np.array(one) for one in (table.beta1, table.beta2)]
    if isinstance(table, Additive):
        c1 = np.array(table.c1)
        wanted = {"beta e": (e, (1.0, 0.0)), "beta c1": (c1, (1.0, -1.0))}
    else:
        betas += [np.array(one) for one in (table.beta3, table.beta4)]
        a1, b1 = square(table.a1), square(table.b1)
        shared["beta1 A1 B0 e / 2 + beta3 A1 B0 e / 3"] = (
            betas[0] @ a1 @ b0 / 2 + betas[2] @ a1 @ b0 / 3,
            0.0,
        )
        wanted = {
            "beta e": (e, (1.0, 0.0, 0.0, 0.0)),
            "beta B1 e": (b1 @ e, (0.0, 1.0, 0.0, 0.0)),
            "beta A1 e": (a1 @ e, (1.0, 0.0, -1.0, 0.0)),
            "beta (B1 e)^2": ((b1 @ e) ** 2, (1.0, 0.0, -1.0, 2.0)),
            "beta B1 B1 e": (b1 @ b1 @ e, (0.0, 0.0, 0.0, 1.0)),
        }
    for name, (vector, values) in wanted.items():
        for k, (beta, value) in enumerate(zip(betas, values, strict=True)):
            shared[f"{name}, {k + 1}"] = (beta @ vector, value)
    return shared


@every_one
def test_the_conditions_of_strong_order_three_halves_hold(table: Additive | Diagonal) -> None:
    conditions = order_conditions(table)
    assert len(conditions) == (8 if isinstance(table, Additive) else 25)
    for name, (value, want) in conditions.items():
        assert value == pytest.approx(want, abs=2e-13), name


@every_one
def test_stages_lie_at_the_times_that_their_weights_add_up_to(table: Additive | Diagonal) -> None:
    e = np.ones(len(table.alpha))
    np.testing.assert_allclose(table.c0, square(table.a0) @ e, rtol=0, atol=1e-14)
    if isinstance(table, Diagonal):
        np.testing.assert_allclose(table.c1, square(table.a1) @ e, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["SRA3", "SRIW2"])
def test_those_of_order_three_without_noise_are(name: str) -> None:
    table = BOTH[name]
    alpha, a0 = np.array(table.alpha), square(table.a0)
    c0 = np.array(table.c0)
    assert alpha @ c0**2 == pytest.approx(1 / 3, abs=1e-15)
    assert alpha @ a0 @ c0 == pytest.approx(1 / 6, abs=1e-15)


@every_one
def test_every_row_has_a_number_for_every_stage(table: Additive | Diagonal) -> None:
    stages = len(table.alpha)
    names = ["c0", "c1", "beta1", "beta2", "a0", "b0"]
    names += ["beta3", "beta4", "a1", "b1"] if isinstance(table, Diagonal) else []
    assert {len(getattr(table, name)) for name in names} == {stages}


# --- stability and stiffness


def real_limit(table: Additive | Diagonal) -> float:
    """The least x > 0 beyond which |R(-x)| > 1 for y' = -x y without noise."""
    weights, power = [1.0], np.ones(len(table.alpha))
    for _ in table.alpha:
        weights.append(float(np.array(table.alpha) @ power))
        power = square(table.a0) @ power
    x = np.linspace(0, 20, 200_001)
    grown = np.abs(np.polynomial.polynomial.polyval(-x, weights)) > 1 + 1e-9
    return float(x[np.argmax(grown)])


@pytest.mark.parametrize("name", ["SOSRA2", "SOSRI2"])
def test_the_stability_size_is_the_real_limit_without_noise(name: str) -> None:
    table = BOTH[name]
    assert table.stability_size == pytest.approx(real_limit(table), rel=0.02)  # published to two digits


@pytest.mark.parametrize(("better", "other"), [("SOSRA", "SRA3"), ("SOSRA2", "SRA3"), ("SOSRI", "SRIW2")])
def test_optimized_methods_are_stable_farther_out(better: str, other: str) -> None:
    assert real_limit(BOTH[better]) > 2 * real_limit(BOTH[other])


@every_one
def test_stiffness_is_estimated_where_two_late_stages_lie_at_one_time(table: Additive | Diagonal) -> None:
    last, before = len(table.alpha) - 1, len(table.alpha) - 2
    coincide = math.isclose(table.c0[last], 1.0, abs_tol=1e-14) and math.isclose(table.c0[before], 1.0, abs_tol=1e-14)
    assert table.stiffness_pair == ((last, before) if coincide else None)
    assert (table.stability_size is None) == (table.stiffness_pair is None)


# --- the methods that have them


def test_methods_have_the_tableaus_of_their_names() -> None:
    for method in (SRA1(), SRA3(), SOSRA(), SOSRA2(), SRIW1(), SRIW2(), SOSRI(), SOSRI2()):
        table = BOTH[type(method).__name__]
        assert method.table is table
        assert method.has_stiffness == (table.stiffness_pair is not None)
        assert method.stability_size == table.stability_size
        assert method.noise_order == 1.5 and set(method.strong_orders.values()) == {1.5} and method.needs_area


@pytest.mark.parametrize(
    ("method", "evaluations"),
    [(SRA1(), 4), (SRA3(), 5), (SOSRA(), 6), (SOSRA2(), 5), (SRIW1(), 6), (SRIW2(), 7), (SOSRI(), 8), (SOSRI2(), 8)],
    ids=lambda one: type(one).__name__,
)
def test_a_step_takes_so_many_evaluations(method: SRA1, evaluations: int) -> None:
    assert method.evaluations == evaluations


@pytest.mark.parametrize("method", [SRA1, SOSRA2, SRIW1, SOSRI2])
def test_other_estimates_are_refused(method: type[SRA1]) -> None:
    with pytest.raises(ValueError, match="estimate must be 'embedded' or 'sum', got 'max'"):
        method(estimate="max")  # type: ignore[arg-type]
