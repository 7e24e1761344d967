import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from invreg.solvers import AutoSwitch, Checkpointed, Direct, Fixed, Status, Tsit5, Vern7, odeint
from invreg.solvers.linear import GMRES
from invreg.solvers.rosenbrock import ALPHA, GAMMA, GAMMAS, A, C, H, Rodas5P, Rosenbrock23

F64 = torch.float64
zero = torch.zeros((), dtype=F64)
each_method = pytest.mark.parametrize("method", [Rosenbrock23(), Rodas5P()], ids=lambda m: type(m).__name__)
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


def oregonator(t, y):
    return torch.stack(
        [
            77.27 * (y[1] + y[0] * (1 - 8.375e-6 * y[0] - y[1])),
            (y[2] - (1 + y[0]) * y[1]) / 77.27,
            0.161 * (y[0] - y[2]),
        ]
    )


def hires(t, y):
    a, b, c, d, e, f, g, h = y.unbind()
    return torch.stack(
        [
            -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
            1.71 * a - 8.75 * b,
            -10.03 * c + 0.43 * d + 0.035 * e,
            8.32 * b + 1.71 * c - 1.12 * d,
            -1.745 * e + 0.43 * f + 0.43 * g,
            -280 * f * h + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
            280 * f * h - 1.81 * g,
            -280 * f * h + 1.81 * g,
        ]
    )


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
    "oregonator": (
        oregonator,
        [1.0, 2.0, 3.0],
        360.0,
        [1.000814870318523, 1228.178521549917, 132.0554942846706],
        [1.0, 1.0, 1.0],
    ),
    "hires": (
        hires,
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0057],
        321.8122,
        [
            0.7371312573325668e-3,
            0.1442485726316185e-3,
            0.5888729740967575e-4,
            0.1175651343283149e-2,
            0.2386356198831331e-2,
            0.6238968252742796e-2,
            0.2849998395185769e-2,
            0.2850001604814231e-2,
        ],
        [1e-3] * 8,
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


def radau(name, tolerance):
    """The same error of SciPy's Radau."""
    field, y0, end, wanted, size = STIFF[name]
    atol = tolerance * np.array(size)
    found = solve_ivp(
        lambda t, y: field(t, torch.from_numpy(y)).numpy(), (0, end), y0, method="Radau", rtol=tolerance, atol=atol
    )
    return (np.abs(found.y[:, -1] - wanted) / (atol + tolerance * np.abs(wanted))).max()


@lru_cache
def exact(field, start, *ts):
    y0 = torch.tensor(start, dtype=F64)
    return odeint(field, y0, ts, method=Vern7(), rtol=1e-12, atol=1e-14).ys


def slope_of(errors):
    return math.log2(errors[-2] / errors[-1])


@each_method
@pytest.mark.parametrize("field", [oscillator, driven])
def test_steps_have_their_order(method, field):
    y0 = torch.tensor([1.0, 0.5], dtype=F64)
    wanted = exact(field, tuple(y0.tolist()), 0.0, 2.0)[-1]
    errors = []
    for n in (48, 96):
        ys = odeint(field, y0, [0.0, 2.0], method=method, controller=Fixed(2 / n)).ys
        errors.append((ys[-1] - wanted).norm().item())
    assert method.order - 0.3 < slope_of(errors) < method.order + 0.7  # the error of order 5 is small at first


@each_method
@pytest.mark.parametrize("field", [oscillator, driven])
def test_values_between_steps_have_their_order(method, field):
    y0, thetas = torch.tensor([1.0, 0.5], dtype=F64), (0.15, 0.5, 0.85)
    errors = []
    for h in (0.02, 0.01):
        step = method.step(field, zero, h, y0)
        wanted = exact(field, tuple(y0.tolist()), 0.0, *[theta * h for theta in thetas])[1:]
        errors.append(max((step.at(theta) - y).norm().item() for theta, y in zip(thetas, wanted, strict=True)))
    assert slope_of(errors) > method.dense_order + 1 - 0.3  # of one step


@each_method
@pytest.mark.parametrize("field", [oscillator, driven])
def test_error_estimate_has_the_order_that_the_controllers_assume(method, field):
    y0 = torch.tensor([1.0, 0.5], dtype=F64)
    errors = [method.step(field, zero, h, y0).error().norm().item() for h in (0.04, 0.02)]
    assert abs(slope_of(errors) - (min(method.order, method.error_order) + 1)) < 0.3


@each_method
def test_values_between_steps_meet_the_ends(method):
    y0 = torch.tensor([1.0, 0.5], dtype=F64)
    step = method.step(driven, zero + 0.3, 0.2, y0)
    torch.testing.assert_close(step.at(0.0), y0)
    torch.testing.assert_close(step.at(1.0), step.y)
    theta = torch.tensor([[0.25], [0.5]], dtype=F64)
    torch.testing.assert_close(step.at(theta), torch.stack([step.at(0.25), step.at(0.5)]))
    torch.testing.assert_close(step.slope(), driven(zero + 0.5, step.y))


def test_coefficients_of_rodas5p_fit_together():
    s = len(ALPHA)
    lower = lambda rows: np.array([[*row, *[0.0] * (s - len(row))] for row in rows])  # noqa: E731
    Gamma = np.linalg.inv(np.eye(s) / GAMMA - lower(C))  # Hairer, Wanner II, (IV.7.25)
    np.testing.assert_allclose(Gamma.sum(1), GAMMAS, atol=1e-13)
    np.testing.assert_allclose((lower(A) @ Gamma).sum(1), ALPHA, atol=1e-13)
    weights, alpha = np.array([*A[-1], 1.0]) @ Gamma, np.array(ALPHA)
    for k in range(5):
        np.testing.assert_allclose(weights @ alpha**k, 1 / (k + 1), atol=1e-12)
    end = np.array([*A[-1], 1.0])  # y1 - y0; the slope at the start is that of the exact solution to first order
    np.testing.assert_allclose((end + np.array(H[0])) @ Gamma @ np.ones(s), 1 + (np.array(H[0]) @ Gamma).sum())


@each_method
def test_stiff_decay_is_damped_at_once(method):
    step = method.step(lambda t, y: -1e8 * y, zero, 1.0, torch.ones(1, dtype=F64))
    assert step.y.abs().item() < 1e-6
    assert max(step.at(theta).abs().item() for theta in (0.1, 0.3, 0.5, 0.7, 0.9)) < 4


@pytest.mark.parametrize("name", ["van der pol", "robertson", "hires"])
def test_rodas5p_errs_at_most_ten_times_what_radau_or_the_tolerance_allow(name):
    error, solution = solved(name, Rodas5P(), 1e-3)
    assert solution.success
    assert error < 10 * max(radau(name, 1e-3), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7, 1e-8])
@pytest.mark.parametrize("name", STIFF)
def test_rodas5p_errs_at_most_ten_times_at_every_tolerance(name, tolerance):
    assert solved(name, Rodas5P(), tolerance)[0] < 10 * max(radau(name, tolerance), 1.0)


# the oregonator amplifies local errors: a global error of 0.1 there is 100 tolerances
@pytest.mark.parametrize(
    ("name", "bound"),
    [("van der pol", 10), ("robertson", 2), ("hires", 10), pytest.param("oregonator", 200, marks=pytest.mark.slow)],
)
def test_rosenbrock23_solves_stiff_problems_at_loose_tolerances(name, bound):
    error, solution = solved(name, Rosenbrock23(), 1e-3)
    assert solution.success
    assert error < bound


@pytest.mark.parametrize("name", ["van der pol", "robertson"])
def test_switching_needs_at_most_twice_the_work_of_the_best_of_the_two(name):
    def work(solution):
        dynamics = solution.problem.dynamics
        return dynamics.calls + len(STIFF[name][1]) * dynamics.jacobians

    alone, switched = solved(name, Rosenbrock23(), 1e-3), solved(name, AutoSwitch(Tsit5(), Rosenbrock23()), 1e-3)
    assert switched[1].success
    assert switched[0] < max(10, 2 * alone[0])
    assert work(switched[1]) < 2 * work(alone[1])
    assert set(switched[1].steps.method.tolist()) == {0, 1}


def test_switching_stays_explicit_where_nothing_is_stiff():
    y0 = torch.tensor([1.0, 0.5], dtype=F64)
    solution = odeint(oscillator, y0, [0.0, 10.0], method=AutoSwitch(Tsit5(), Rosenbrock23()), rtol=1e-4)
    assert not solution.steps.method.any()


def net(W, t, y):
    return torch.tanh(W @ y * (1 + 0.5 * t.cos())) - 3 * y**3


def leaves():
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0.5, -0.2], dtype=F64)
    return y.requires_grad_(), torch.randn(2, 2, dtype=F64, generator=generator).requires_grad_()


@each_method
@both_solvers
def test_gradients_of_a_step_reach_time_state_and_parameters(method, linear):
    y, W = leaves()
    t = torch.tensor(0.1, dtype=F64, requires_grad=True)

    def outputs(t, y, W):
        step = type(method)(linear=linear).step(lambda t, y: net(W, t, y), t, 0.3, y)
        stiffness = [step.stiffness(False)] if linear is None else []  # its power iteration is a constant
        return step.y, step.slope(), step.at(0.4), step.error() * 100, *stiffness

    assert torch.autograd.gradcheck(outputs, (t, y, W), fast_mode=True)
    if linear is None:
        assert torch.autograd.gradgradcheck(outputs, (t, y, W), fast_mode=True)


@each_method
@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()], ids=["direct", "checkpointed"])
def test_gradients_of_a_solve_reach_start_times_and_parameters(method, adjoint):
    y, W = leaves()
    between = torch.tensor(0.5, dtype=F64, requires_grad=True)

    def outputs(y, W, between):
        ts = torch.stack([zero, between, zero + 0.9])
        solution = odeint(lambda t, y: net(W, t, y), y, ts, method=method, controller=Fixed(0.3), adjoint=adjoint)
        return solution.ys, solution.steps.error * 100, solution.steps.stiffness

    assert torch.autograd.gradcheck(outputs, (y, W, between), fast_mode=True)


@each_method
@both_solvers
def test_a_batch_is_stepped_as_each_of_its_samples_alone(method, linear):
    method = type(method)(linear=linear)
    W = leaves()[1].detach()
    y = torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([[0.0], [0.3], [0.5], [1.0]], dtype=F64)
    dt = torch.tensor([[0.1], [0.2], [0.0], [-0.01]], dtype=F64)

    def field(t, y):
        return torch.tanh(y @ W.T * (1 + 0.5 * t.cos())) - 30 * y**3

    step = method.step(field, t, dt, y)
    for i in range(4):
        alone = method.step(field, t[i, 0], dt[i, 0].item(), y[i])
        torch.testing.assert_close(step.y[i], alone.y, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(step.error()[i], alone.error(), rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(step.at(0.3)[i], alone.at(0.3), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(step.slope()[i], alone.slope(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(step.stiffness(True)[i], alone.stiffness(False))
    assert torch.equal(step.y[2], y[2])  # a step of length 0


@each_method
def test_samples_with_their_own_steps_are_solved(method):
    rates = torch.tensor([[1.0], [1e3], [1e6]], dtype=F64)
    solution = odeint(
        lambda t, y: -rates * (y - torch.cos(t)), torch.zeros(3, 1, dtype=F64), [0.0, 2.0], method=method,
        per_sample=True, rtol=1e-4, atol=1e-6,
    )  # fmt: skip
    k = rates[:, 0]
    wanted = (k**2 * math.cos(2) + k * math.sin(2) - k**2 * torch.exp(-2 * k)) / (1 + k**2)
    torch.testing.assert_close(solution.ys[-1, :, 0], wanted, rtol=0, atol=1e-3)


@each_method
def test_gmres_gives_the_solution_of_dense(method):
    def heat(t, y):
        padded = torch.nn.functional.pad(y, (1, 1))
        return 400 * (padded[2:] - 2 * y + padded[:-2]) + torch.sin(t)

    y0 = torch.sin(torch.linspace(0, 3, 15, dtype=F64))
    found = [
        odeint(heat, y0, [0.0, 0.01], method=type(method)(linear=linear), rtol=1e-4, atol=1e-6).ys[-1]
        for linear in (None, GMRES())
    ]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)


def test_gmres_that_does_not_converge_rejects_the_step():
    field = lambda t, y: torch.stack([-1e4 * y[0] + y[1], y[2] * 50, -50 * y[1]])  # noqa: E731
    y0 = torch.ones(3, dtype=F64)
    short = GMRES(iterations=2)
    assert Rodas5P(linear=short).step(field, zero, 1.0, y0).error().isnan().all()
    solution = odeint(field, y0, [0.0, 1e-3], method=Rosenbrock23(linear=short), max_steps=20, throw=False)
    assert solution.status[0] in {Status.SUCCESS, Status.MAX_STEPS, Status.NONFINITE}
    assert solution.stats.rejected.item() > 0


@each_method
def test_complex_states_are_solved_even_where_the_field_is_not_holomorphic(method):
    rate = torch.tensor([-1 + 5j, -200 + 30j], dtype=torch.complex128)

    def field(t, y):
        return rate * y + 0.1 * y.conj() * t + 0.1 * y.abs() ** 2

    def parts(t, y):
        return torch.view_as_real(field(t, torch.view_as_complex(y)))

    y = torch.tensor([1 + 1j, 0.5 - 0.2j], dtype=torch.complex128)
    one, other = method.step(field, zero, 0.05, y), method.step(parts, zero, 0.05, torch.view_as_real(y))
    for name in ("y", "error", "slope"):
        a, b = (getattr(step, name) if name == "y" else getattr(step, name)() for step in (one, other))
        torch.testing.assert_close(torch.view_as_real(a), b, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.view_as_real(one.at(0.4)), other.at(0.4))
    torch.testing.assert_close(one.stiffness(False), other.stiffness(False))


@each_method
def test_work_is_counted(method):
    solution = odeint(oscillator, torch.ones(2, dtype=F64), [0.0, 1.0], method=method, controller=Fixed(0.25))
    dynamics = solution.problem.dynamics
    solves = 3 if method == Rosenbrock23() else 8
    evaluations = 2 if method == Rosenbrock23() else 8  # the slope at the end begins the next step
    assert dynamics.jacobians == 4
    assert dynamics.solves == 4 * solves
    assert 4 * evaluations <= dynamics.calls <= 4 * evaluations + 1


def test_dict_states_are_solved():
    y0 = {"x": torch.ones(2, dtype=F64), "z": torch.zeros(1, dtype=F64)}
    field = lambda t, y: {"x": -100 * y["x"] + y["z"], "z": y["x"].sum(0, keepdim=True)}  # noqa: E731
    ys = odeint(field, y0, [0.0, 1.0], method=Rodas5P(), rtol=1e-6, atol=1e-8).ys
    torch.testing.assert_close(ys["z"][-1], torch.tensor([0.0204], dtype=F64), rtol=0, atol=1e-4)


def test_linear_must_be_a_linear_solver():
    with pytest.raises(TypeError, match="linear must be Dense"):
        Rodas5P(linear="dense")
