import numpy as np
import pytest
import torch
from problems import ALL
from torch import Tensor

from invreg.solvers import Fixed, Status, Vern7, odeint
from invreg.solvers.implicit import (
    KVAERNO3,
    KVAERNO5,
    ImplicitEuler,
    ImplicitRungeKutta,
    ImplicitTableau,
    Kvaerno3,
    Kvaerno5,
    Trapezoid,
)

F64 = torch.float64
zero = torch.zeros((), dtype=F64)
each_tableau = pytest.mark.parametrize("table", [KVAERNO3, KVAERNO5], ids=["kvaerno3", "kvaerno5"])
pytestmark = pytest.mark.usefixtures("forward_mode")


def matrix(table: ImplicitTableau) -> np.ndarray:
    A = np.diag([0.0, *[table.gamma] * (len(table.a) - 1)])
    for i, row in enumerate(table.a):
        A[i, :i] = row
    return A


def dense(table: ImplicitTableau, theta: float) -> np.ndarray:
    return np.array([sum(b * theta ** (p + 1) for p, b in enumerate(row)) for row in table.dense])


def conditions(A: np.ndarray, order: int) -> list[tuple[np.ndarray, int, int]]:
    """Rows that weights of this order have to satisfy where A c = c^2 / 2, and what they give at theta = 1."""
    c = A.sum(1)
    rows = [(c**0, 1, 1), (c, 2, 2), (c**2, 3, 3), (c**3, 4, 4), (A @ c**2, 12, 4), (c**4, 5, 5)]
    rows += [(c * (A @ c**2), 15, 5), (A @ c**3, 20, 5), (A @ A @ c**2, 60, 5)]
    return [(row, density, power) for row, density, power in rows if power <= order]


@each_tableau
def test_coefficients_satisfy_the_order_conditions(table: ImplicitTableau) -> None:
    A = matrix(table)
    c = A.sum(1)
    np.testing.assert_allclose(c, table.c, atol=1e-15)
    np.testing.assert_allclose(A @ c, c**2 / 2, atol=1e-15)
    b = A[-1]
    for weights, order in ((b, table.order), (b - np.array(table.error), table.error_order)):
        for row, density, _ in conditions(A, order):
            assert abs(row @ weights - 1 / density) < 1e-15


@each_tableau
def test_dense_coefficients_satisfy_the_order_conditions_and_stay_bounded(table: ImplicitTableau) -> None:
    A = matrix(table)
    for theta in (0.1, 0.35, 0.5, 0.8, 1.0):
        w = dense(table, theta)
        for row, density, power in conditions(A, table.dense_order):
            assert abs(row @ w - theta**power / density) < 1e-13
        assert abs(w[0] - w[1:] @ np.linalg.solve(A[1:, 1:], A[1:, 0])) < 1e-13
    np.testing.assert_allclose(dense(table, 1.0), A[-1], atol=1e-14)
    assert max(np.abs(dense(table, theta)).max() for theta in np.linspace(0, 1, 21)) < 2


def test_fixed_steps_of_the_simple_methods_go_far_beyond_the_stability_of_explicit_ones() -> None:
    y0 = torch.tensor([0.0], dtype=F64)
    for method in (ImplicitEuler(), Trapezoid()):
        ys = odeint(lambda t, y: -1e3 * (y - torch.cos(t)), y0, [0.0, 1.0], method=method, controller=Fixed(0.02)).ys
        torch.testing.assert_close(ys[-1], torch.cos(zero + 1)[None], rtol=0, atol=0.02 if method.order == 1 else 0.3)


def without_root(t: Tensor, y: Tensor) -> Tensor:
    return 1 + y**2  # the tangent: a long implicit step has no solution


def test_newton_that_does_not_converge_is_a_rejection_not_a_wrong_result() -> None:
    y0 = torch.zeros(1, dtype=F64)
    assert Kvaerno5().step(without_root, zero, 5.0, y0).error().isnan().all()
    assert Kvaerno5().step(without_root, zero, 5.0, y0).y.isnan().all()

    def field(t: Tensor, y: Tensor) -> Tensor:
        return 1 + 0.9 * torch.sin(50 * y) * y**2

    wanted = odeint(field, y0, [0.0, 1.2], method=Vern7(), rtol=1e-12, atol=1e-14).ys[-1]
    solution = odeint(field, y0, [0.0, 1.2], method=Kvaerno5(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(solution.ys[-1], wanted, rtol=1e-5, atol=0)


def test_newton_that_does_not_converge_ends_a_solve_with_fixed_steps() -> None:
    y0 = torch.zeros(1, dtype=F64)
    for method in (ImplicitEuler(), Trapezoid(), Kvaerno3()):
        solution = odeint(without_root, y0, [0.0, 10.0], method=method, controller=Fixed(5.0), throw=False)
        assert solution.status == (Status.NONFINITE,)
        assert solution.ys[-1].isnan().all()


@pytest.mark.parametrize("Method", [ImplicitEuler, Trapezoid, Kvaerno3, Kvaerno5])
def test_one_sample_that_does_not_converge_leaves_the_others_alone(Method: type[ImplicitRungeKutta]) -> None:
    t, y = torch.zeros(2, 1, dtype=F64), torch.zeros(2, 1, dtype=F64)
    step = Method().step(without_root, t, torch.tensor([[5.0], [0.1]], dtype=F64), y)
    assert step.y[0].isnan().all()
    torch.testing.assert_close(step.y[1], torch.tan(torch.tensor([0.1], dtype=F64)), rtol=0.02, atol=0)


def test_linear_problems_need_one_iteration_and_its_confirmation() -> None:
    calls = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        calls.append(t)
        return -50 * y

    with torch.no_grad():
        Kvaerno5().step(field, zero, 0.1, torch.ones(3, dtype=F64), -50 * torch.ones(3, dtype=F64))
    assert len(calls) == 2 * 6 + 1  # six stages, and one call for the Jacobian


def test_single_precision_converges_to_its_own_resolution() -> None:
    field, y0 = ALL["van der Pol, mu = 1000"].field, torch.tensor([2.0, 0.0])
    solution = odeint(field, y0, [0.0, 10.0], method=Kvaerno5(), rtol=1e-4, atol=1e-5)
    wanted = odeint(field, y0.double(), [0.0, 10.0], method=Kvaerno5(), rtol=1e-8, atol=1e-10).ys[-1]
    torch.testing.assert_close(solution.ys[-1].double(), wanted, rtol=1e-3, atol=1e-5)


def test_the_tolerance_of_newton_lies_between_0_and_1() -> None:
    with pytest.raises(ValueError, match="tolerance must be between 0 and 1, got 0"):
        Kvaerno5(tolerance=0)
