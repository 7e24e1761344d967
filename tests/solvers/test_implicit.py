import math
from functools import lru_cache

import numpy as np
import pytest
import torch

from invreg.solvers import AutoSwitch, Checkpointed, Direct, Fixed, Status, Tsit5, Vern7, odeint
from invreg.solvers.implicit import KVAERNO3, KVAERNO5, ImplicitEuler, Kvaerno3, Kvaerno5, Trapezoid
from invreg.solvers.linear import GMRES

F64 = torch.float64
EXACT = 1e-15  # tolerance of Newton where finite differences are taken
zero = torch.zeros((), dtype=F64)
METHODS = [ImplicitEuler, Trapezoid, Kvaerno3, Kvaerno5]
each_method = pytest.mark.parametrize("Method", METHODS)
each_pair = pytest.mark.parametrize("Method", [Kvaerno3, Kvaerno5])
each_tableau = pytest.mark.parametrize("table", [KVAERNO3, KVAERNO5], ids=["kvaerno3", "kvaerno5"])
both_solvers = pytest.mark.parametrize("linear", [None, GMRES(rtol=1e-13)], ids=["dense", "gmres"])


@pytest.fixture(scope="module", autouse=True)
def _forward_mode_is_loaded():
    """Torch compiles its forward derivatives at the first use, which takes seconds."""
    torch.func.jvp(torch.tanh, (zero,), (zero,))


def oscillator(t, y):
    return torch.stack([y[1], (1 - y[0] ** 2) * y[1] - y[0]])


def driven(t, y):
    return torch.stack([y[0] * torch.cos(t) + 0.3 * torch.sin(3 * t) * y[1], -y[1] * y[0] * t + torch.exp(-t)])


def van_der_pol(t, y):
    return torch.stack([y[1], 1000 * (1 - y[0] ** 2) * y[1] - y[0]])


def robertson(t, y):
    a, b, c = 0.04 * y[0], 3e7 * y[1] ** 2, 1e4 * y[1] * y[2]
    return torch.stack([-a + c, a - b - c, b])


# field, y0, end, y(end), size of each component for atol; the values are those of the Bari test set
STIFF = {
    "van der pol": (van_der_pol, [2.0, 0.0], 2000.0, [1.706167732170469, -0.8928097010248125e-3], [1.0, 1.0]),
    "robertson": (
        robertson,
        [1.0, 0.0, 0.0],
        1e11,
        [0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050],
        [1e-6, 1e-10, 1.0],
    ),
}


def solved(name, method, tolerance):
    """The error at the end in units of the tolerance, and the solution."""
    field, y0, end, wanted, size = STIFF[name]
    atol = tolerance * torch.tensor(size, dtype=F64)
    with torch.no_grad():
        solution = odeint(field, torch.tensor(y0, dtype=F64), [0.0, end], method=method, rtol=tolerance, atol=atol)
    wanted = torch.tensor(wanted, dtype=F64)
    return ((solution.ys[-1] - wanted).abs() / (atol + tolerance * wanted.abs())).max().item(), solution


@lru_cache
def exact(field, start, *ts):
    y0 = torch.tensor(start, dtype=F64)
    return odeint(field, y0, ts, method=Vern7(), rtol=1e-12, atol=1e-14).ys


def slope_of(errors):
    return math.log2(errors[-2] / errors[-1])


def matrix(table):
    A = np.diag([0.0, *[table.gamma] * (len(table.a) - 1)])
    for i, row in enumerate(table.a):
        A[i, :i] = row
    return A


def dense(table, theta):
    return np.array([sum(b * theta ** (p + 1) for p, b in enumerate(row)) for row in table.dense])


def conditions(A, order):
    """Rows that weights of this order have to satisfy where A c = c^2 / 2, and what they give at theta = 1."""
    c = A.sum(1)
    rows = [(c**0, 1, 1), (c, 2, 2), (c**2, 3, 3), (c**3, 4, 4), (A @ c**2, 12, 4), (c**4, 5, 5)]
    rows += [(c * (A @ c**2), 15, 5), (A @ c**3, 20, 5), (A @ A @ c**2, 60, 5)]
    return [(row, density, power) for row, density, power in rows if power <= order]


@each_tableau
def test_coefficients_satisfy_the_order_conditions(table):
    A = matrix(table)
    c = A.sum(1)
    np.testing.assert_allclose(c, table.c, atol=1e-15)
    np.testing.assert_allclose(A @ c, c**2 / 2, atol=1e-15)
    b = A[-1]
    for weights, order in ((b, table.order), (b - np.array(table.error), table.error_order)):
        for row, density, _ in conditions(A, order):
            assert abs(row @ weights - 1 / density) < 1e-15


@each_tableau
def test_dense_coefficients_satisfy_the_order_conditions_and_stay_bounded(table):
    A = matrix(table)
    for theta in (0.1, 0.35, 0.5, 0.8, 1.0):
        w = dense(table, theta)
        for row, density, power in conditions(A, table.dense_order):
            assert abs(row @ w - theta**power / density) < 1e-13
        assert abs(w[0] - w[1:] @ np.linalg.solve(A[1:, 1:], A[1:, 0])) < 1e-13
    np.testing.assert_allclose(dense(table, 1.0), A[-1], atol=1e-14)
    assert max(np.abs(dense(table, theta)).max() for theta in np.linspace(0, 1, 21)) < 2


@each_method
@pytest.mark.parametrize("field", [oscillator, driven])
def test_steps_have_their_order(Method, field):
    y0 = torch.tensor([1.0, 0.5], dtype=F64)
    wanted = exact(field, tuple(y0.tolist()), 0.0, 2.0)[-1]
    errors = []
    for n in (24, 48):
        ys = odeint(field, y0, [0.0, 2.0], method=Method(tolerance=1e-12), controller=Fixed(2 / n)).ys
        errors.append((ys[-1] - wanted).norm().item())
    assert abs(slope_of(errors) - Method().order) < 0.3


@each_method
@pytest.mark.parametrize("field", [oscillator, driven])
def test_values_between_steps_have_their_order(Method, field):
    y0, thetas = torch.tensor([1.0, 0.5], dtype=F64), (0.15, 0.5, 0.85)
    errors = []
    for h in (0.04, 0.02):
        step = Method(tolerance=EXACT).step(field, zero, h, y0)
        wanted = exact(field, tuple(y0.tolist()), 0.0, *[theta * h for theta in thetas])[1:]
        errors.append(max((step.at(theta) - y).norm().item() for theta, y in zip(thetas, wanted, strict=True)))
    assert slope_of(errors) > Method().dense_order + 1 - 0.3  # of one step


@each_pair
@pytest.mark.parametrize("field", [oscillator, driven])
def test_error_estimate_has_its_order(Method, field):
    y0 = torch.tensor([1.0, 0.5], dtype=F64)
    method = Method(tolerance=EXACT)
    errors = [method.step(field, zero, h, y0).error().norm().item() for h in (0.04, 0.02)]
    assert abs(slope_of(errors) - (method.error_order + 1)) < 0.3


@each_method
def test_values_between_steps_meet_the_ends(Method):
    y0 = torch.tensor([1.0, 0.5], dtype=F64)
    step = Method().step(driven, zero + 0.3, 0.2, y0)
    torch.testing.assert_close(step.at(0.0), y0)
    torch.testing.assert_close(step.at(1.0), step.y)
    theta = torch.tensor([[0.25], [0.5]], dtype=F64)
    torch.testing.assert_close(step.at(theta), torch.stack([step.at(0.25), step.at(0.5)]))
    torch.testing.assert_close(step.slope(), driven(zero + 0.5, step.y), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("Method", [ImplicitEuler, Kvaerno3, Kvaerno5])
def test_stiff_decay_is_damped_at_once_and_between(Method):
    step = Method().step(lambda t, y: -1e8 * y, zero, 1.0, torch.ones(1, dtype=F64))
    assert step.y.abs().item() < 1e-6
    assert max(step.at(theta).abs().item() for theta in (0.1, 0.3, 0.5, 0.7, 0.9)) < 1


@each_pair
@pytest.mark.parametrize(("name", "bound"), [("robertson", 2), pytest.param("van der pol", 10, marks=pytest.mark.slow)])
def test_stiff_problems_are_solved_to_a_multiple_of_the_tolerance(Method, name, bound):
    error, solution = solved(name, Method(), 1e-3)
    assert solution.success
    assert error < bound


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [1e-5, 1e-7, 1e-8])
@pytest.mark.parametrize(("name", "bound"), [("van der pol", 40), ("robertson", 4)])
def test_kvaerno5_solves_stiff_problems_at_every_tolerance(name, bound, tolerance):
    assert solved(name, Kvaerno5(), tolerance)[0] < bound


def test_switching_to_an_implicit_method_solves_robertson():
    error, solution = solved("robertson", AutoSwitch(Tsit5(), Kvaerno5()), 1e-3)
    assert error < 2
    assert set(solution.steps.method.tolist()) == {0, 1}


def test_fixed_steps_of_the_simple_methods_go_far_beyond_the_stability_of_explicit_ones():
    y0 = torch.tensor([0.0], dtype=F64)
    for method in (ImplicitEuler(), Trapezoid()):
        ys = odeint(lambda t, y: -1e3 * (y - torch.cos(t)), y0, [0.0, 1.0], method=method, controller=Fixed(0.02)).ys
        torch.testing.assert_close(ys[-1], torch.cos(zero + 1)[None], rtol=0, atol=0.02 if method.order == 1 else 0.3)


def net(W, t, y):
    return torch.tanh(W @ y * (1 + 0.5 * t.cos())) - 3 * y**3


def leaves():
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0.5, -0.2], dtype=F64)
    return y.requires_grad_(), torch.randn(2, 2, dtype=F64, generator=generator).requires_grad_()


@pytest.mark.parametrize(
    ("Method", "linear"),
    [*((one, None) for one in METHODS), *((one, GMRES(rtol=1e-13)) for one in (ImplicitEuler, Trapezoid, Kvaerno3))],
)
def test_gradients_of_a_step_reach_time_state_and_parameters(Method, linear):
    y, W = leaves()
    t = torch.tensor(0.1, dtype=F64, requires_grad=True)

    def outputs(t, y, W):
        step = Method(linear=linear, tolerance=EXACT).step(lambda t, y: net(W, t, y), t, 0.2, y)
        error, stiffness = step.error(), step.stiffness(False)
        extra = [] if error is None else [error * 100]
        return step.y, step.slope(), step.at(0.4), *extra, *([stiffness] if linear is None else [])

    assert torch.autograd.gradcheck(outputs, (t, y, W), fast_mode=True)


@each_method
def test_second_derivatives_of_a_step_are_exact(Method):
    y, W = leaves()
    t = torch.tensor(0.1, dtype=F64, requires_grad=True)

    def end(t, y, W):
        return Method(tolerance=EXACT).step(lambda t, y: net(W, t, y), t, 0.2, y).y

    assert torch.autograd.gradgradcheck(end, (t, y, W), fast_mode=True)


@each_method
@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()], ids=["direct", "checkpointed"])
def test_gradients_of_a_solve_reach_start_times_and_parameters(Method, adjoint):
    y, W = leaves()
    between = torch.tensor(0.2, dtype=F64, requires_grad=True)

    def outputs(y, W, between):
        ts = torch.stack([zero, between, zero + 0.3])
        solution = odeint(
            lambda t, y: net(W, t, y), y, ts, method=Method(tolerance=EXACT), controller=Fixed(0.15), adjoint=adjoint
        )
        error = [] if solution.steps.error is None else [solution.steps.error * 100]
        return solution.ys, solution.steps.stiffness, *error

    assert torch.autograd.gradcheck(outputs, (y, W, between), fast_mode=True)


@each_method
def test_values_do_not_depend_on_whether_gradients_are_wanted(Method):
    y, W = leaves()
    steps = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            steps.append(Method().step(lambda t, y: net(W, t, y), zero, 0.2, y))
    assert torch.equal(steps[0].y, steps[1].y)


@each_method
@both_solvers
def test_a_batch_is_stepped_as_each_of_its_samples_alone(Method, linear):
    method = Method(linear=linear)
    W = leaves()[1].detach()
    y = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([[0.0], [0.3], [0.5], [1.0], [0.0]], dtype=F64)
    dt = torch.tensor([[0.1], [0.2], [0.0], [-0.001], [3.0]], dtype=F64)

    def field(t, y):
        return torch.tanh(y @ W.T * (1 + 0.5 * t.cos())) - 30 * y**3

    step = method.step(field, t, dt, y)
    for i in range(5):
        alone = method.step(field, t[i, 0], dt[i, 0].item(), y[i])
        torch.testing.assert_close(step.y[i], alone.y, rtol=1e-11, atol=1e-13, equal_nan=True)
        torch.testing.assert_close(step.at(0.3)[i], alone.at(0.3), rtol=1e-11, atol=1e-13, equal_nan=True)
        torch.testing.assert_close(step.stiffness(True)[i], alone.stiffness(False))
        if alone.error() is not None:
            torch.testing.assert_close(step.error()[i], alone.error(), rtol=1e-9, atol=1e-12, equal_nan=True)
        if i != 2:
            torch.testing.assert_close(step.slope()[i], alone.slope(), rtol=1e-9, atol=1e-11, equal_nan=True)
    assert step.y[:4].isfinite().all()
    assert torch.equal(step.y[2], y[2])  # a step of length 0
    torch.testing.assert_close(step.slope()[2], field(t[2], y[2]))


@each_pair
def test_samples_with_their_own_steps_are_solved(Method):
    rates = torch.tensor([[1.0], [1e3], [1e6]], dtype=F64)
    solution = odeint(
        lambda t, y: -rates * (y - torch.cos(t)), torch.zeros(3, 1, dtype=F64), [0.0, 2.0], method=Method(),
        per_sample=True, rtol=1e-4, atol=1e-6,
    )  # fmt: skip
    k = rates[:, 0]
    wanted = (k**2 * math.cos(2) + k * math.sin(2) - k**2 * torch.exp(-2 * k)) / (1 + k**2)
    torch.testing.assert_close(solution.ys[-1, :, 0], wanted, rtol=0, atol=1e-3)


@each_pair
def test_gmres_gives_the_solution_of_dense(Method):
    def heat(t, y):
        padded = torch.nn.functional.pad(y, (1, 1))
        return 100 * (padded[2:] - 2 * y + padded[:-2]) + torch.sin(t)

    y0 = torch.sin(torch.linspace(0, 3, 10, dtype=F64))
    found = [
        odeint(heat, y0, [0.0, 0.01], method=Method(linear=linear), rtol=1e-4, atol=1e-6).ys[-1]
        for linear in (None, GMRES())
    ]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)


def without_root(t, y):
    return 1 + y**2  # the tangent: a long implicit step has no solution


def test_newton_that_does_not_converge_is_a_rejection_not_a_wrong_result():
    y0 = torch.zeros(1, dtype=F64)
    assert Kvaerno5().step(without_root, zero, 5.0, y0).error().isnan().all()
    assert Kvaerno5().step(without_root, zero, 5.0, y0).y.isnan().all()
    field = lambda t, y: 1 + 0.9 * torch.sin(50 * y) * y**2  # noqa: E731
    wanted = exact(field, (0.0,), 0.0, 1.2)[-1]
    solution = odeint(field, y0, [0.0, 1.2], method=Kvaerno5(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(solution.ys[-1], wanted, rtol=1e-5, atol=0)


def test_newton_that_does_not_converge_ends_a_solve_with_fixed_steps():
    y0 = torch.zeros(1, dtype=F64)
    for method in (ImplicitEuler(), Trapezoid(), Kvaerno3()):
        solution = odeint(without_root, y0, [0.0, 10.0], method=method, controller=Fixed(5.0), throw=False)
        assert solution.status == (Status.NONFINITE,)
        assert solution.ys[-1].isnan().all()


@each_method
def test_one_sample_that_does_not_converge_leaves_the_others_alone(Method):
    t, y = torch.zeros(2, 1, dtype=F64), torch.zeros(2, 1, dtype=F64)
    step = Method().step(without_root, t, torch.tensor([[5.0], [0.1]], dtype=F64), y)
    assert step.y[0].isnan().all()
    torch.testing.assert_close(step.y[1], torch.tan(torch.tensor([0.1], dtype=F64)), rtol=0.02, atol=0)


@each_method
def test_complex_states_are_solved_even_where_the_field_is_not_holomorphic(Method):
    rate = torch.tensor([-1 + 5j, -200 + 30j], dtype=torch.complex128)

    def field(t, y):
        return rate * y + 0.1 * y.conj() * t + 0.1 * y.abs() ** 2

    def parts(t, y):
        return torch.view_as_real(field(t, torch.view_as_complex(y)))

    y = torch.tensor([1 + 1j, 0.5 - 0.2j], dtype=torch.complex128)
    one, other = (
        Method(tolerance=EXACT).step(f, zero, 0.05, x) for f, x in ((field, y), (parts, torch.view_as_real(y)))
    )
    torch.testing.assert_close(torch.view_as_real(one.y), other.y)
    torch.testing.assert_close(torch.view_as_real(one.at(0.4)), other.at(0.4))
    torch.testing.assert_close(one.stiffness(False), other.stiffness(False))


def test_linear_problems_need_one_iteration_and_its_confirmation():
    calls = []

    def field(t, y):
        calls.append(t)
        return -50 * y

    with torch.no_grad():
        Kvaerno5().step(field, zero, 0.1, torch.ones(3, dtype=F64), -50 * torch.ones(3, dtype=F64))
    assert len(calls) == 2 * 6 + 1  # six stages, and one call for the Jacobian


def test_single_precision_converges_to_its_own_resolution():
    y0 = torch.tensor([2.0, 0.0])
    solution = odeint(van_der_pol, y0, [0.0, 10.0], method=Kvaerno5(), rtol=1e-4, atol=1e-5)
    wanted = odeint(van_der_pol, y0.double(), [0.0, 10.0], method=Kvaerno5(), rtol=1e-8, atol=1e-10).ys[-1]
    torch.testing.assert_close(solution.ys[-1].double(), wanted, rtol=1e-3, atol=1e-5)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="tolerance must be between 0 and 1, got 0"):
        Kvaerno5(tolerance=0)
    with pytest.raises(TypeError, match="linear must be Dense"):
        Kvaerno3(linear="gmres")
