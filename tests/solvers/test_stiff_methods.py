"""What must hold of every method for stiff problems: the implicit ones and the Rosenbrock ones."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from problems import ALL
from torch import Tensor

from invreg.solvers import Checkpointed, Direct, Fixed, Vern7, odeint
from invreg.solvers.adjoint import Adjoint
from invreg.solvers.implicit import ImplicitEuler, ImplicitRungeKutta, Kvaerno3, Kvaerno5, Trapezoid
from invreg.solvers.linear import GMRES
from invreg.solvers.rosenbrock import Rodas5P, Rosenbrock, Rosenbrock23

F64 = torch.float64
zero = torch.zeros((), dtype=F64)
StiffMethod = type[ImplicitRungeKutta] | type[Rosenbrock]
METHODS: list[StiffMethod] = [ImplicitEuler, Trapezoid, Kvaerno3, Kvaerno5, Rosenbrock23, Rodas5P]
each_method = pytest.mark.parametrize("Method", METHODS)
each_pair = pytest.mark.parametrize("Method", [Kvaerno3, Kvaerno5, Rosenbrock23, Rodas5P])
CONVERGED = GMRES(rtol=1e-13)
pytestmark = pytest.mark.usefixtures("forward_mode")


def converged(
    Method: StiffMethod, linear: GMRES | None = None, tolerance: float = 1e-15
) -> ImplicitRungeKutta | Rosenbrock:
    """The method, its iterations run to rounding errors, for finite differences of what it gives."""
    if issubclass(Method, ImplicitRungeKutta):
        return Method(linear=linear, tolerance=tolerance)
    return Method(linear=linear)


oscillator = ALL["E2"].field


def driven(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[0] * torch.cos(t) + 0.3 * torch.sin(3 * t) * y[1], -y[1] * y[0] * t + torch.exp(-t)])


each_field = pytest.mark.parametrize("field", [oscillator, driven], ids=["oscillator", "driven"])


def start() -> Tensor:
    return torch.tensor([1.0, 0.5], dtype=F64)


@lru_cache
def exact(field: Callable[[Tensor, Tensor], Tensor], *ts: float) -> Tensor:
    return odeint(field, start(), ts, method=Vern7(), rtol=1e-12, atol=1e-14).ys


def slope_of(errors: list[float]) -> float:
    return math.log2(errors[-2] / errors[-1])


@each_method
@each_field
def test_steps_have_their_order(Method: StiffMethod, field: Callable[[Tensor, Tensor], Tensor]) -> None:
    rosenbrock = issubclass(Method, Rosenbrock)
    wanted = exact(field, 0.0, 2.0)[-1]
    errors = []
    for n in (48, 96) if rosenbrock else (24, 48):
        ys = odeint(field, start(), [0.0, 2.0], method=converged(Method, tolerance=1e-12), controller=Fixed(2 / n)).ys
        errors.append((ys[-1] - wanted).norm().item())
    order = Method().order
    # the error of order 5 of Rodas5P is small at first
    assert order - 0.3 < slope_of(errors) < order + (0.7 if rosenbrock else 0.3)


@each_method
@each_field
def test_values_between_steps_have_their_order(Method: StiffMethod, field: Callable[[Tensor, Tensor], Tensor]) -> None:
    thetas = (0.15, 0.5, 0.85)
    errors = []
    for h in (0.02, 0.01) if issubclass(Method, Rosenbrock) else (0.04, 0.02):
        step = converged(Method).step(field, zero, h, start())
        wanted = exact(field, 0.0, *[theta * h for theta in thetas])[1:]
        errors.append(max((step.at(theta) - y).norm().item() for theta, y in zip(thetas, wanted, strict=True)))
    assert slope_of(errors) > Method().dense_order + 1 - 0.3  # of one step


@each_pair
@each_field
def test_error_estimate_has_the_order_that_the_controllers_assume(
    Method: StiffMethod, field: Callable[[Tensor, Tensor], Tensor]
) -> None:
    method = converged(Method)
    errors = [method.step(field, zero, h, start()).error().norm().item() for h in (0.04, 0.02)]
    assert abs(slope_of(errors) - (min(method.order, method.error_order) + 1)) < 0.3


@each_method
def test_values_between_steps_meet_the_ends(Method: StiffMethod) -> None:
    step = Method().step(driven, zero + 0.3, 0.2, start())
    torch.testing.assert_close(step.at(0.0), start())
    torch.testing.assert_close(step.at(1.0), step.y)
    theta = torch.tensor([[0.25], [0.5]], dtype=F64)
    torch.testing.assert_close(step.at(theta), torch.stack([step.at(0.25), step.at(0.5)]))
    torch.testing.assert_close(step.slope(), driven(zero + 0.5, step.y), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("Method", "bound"), [(ImplicitEuler, 1), (Kvaerno3, 1), (Kvaerno5, 1), (Rosenbrock23, 4), (Rodas5P, 4)]
)
def test_stiff_decay_is_damped_at_once_and_bounded_between(Method: StiffMethod, bound: float) -> None:
    step = Method().step(lambda t, y: -1e8 * y, zero, 1.0, torch.ones(1, dtype=F64))
    assert step.y.abs().item() < 1e-6
    assert max(step.at(theta).abs().item() for theta in (0.1, 0.3, 0.5, 0.7, 0.9)) < bound


def net(W: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return torch.tanh(W @ y * (1 + 0.5 * t.cos())) - 3 * y**3


def leaves() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0.5, -0.2], dtype=F64)
    return y.requires_grad_(), torch.randn(2, 2, dtype=F64, generator=generator).requires_grad_()


def outputs_of_a_step(Method: StiffMethod, linear: GMRES | None) -> Callable[..., tuple[Tensor, ...]]:
    """All that a step gives, as a function of its time, its start and the parameters of the field."""

    def outputs(t: Tensor, y: Tensor, W: Tensor) -> tuple[Tensor, ...]:
        step = converged(Method, linear).step(lambda t, y: net(W, t, y), t, 0.2, y)
        error = step.error()
        estimates = [] if error is None else [error * 100]
        if linear is None:  # the power iteration is a constant
            estimates.append(step.stiffness(False))
        return step.y, step.slope(), step.at(0.4), *estimates

    return outputs


@pytest.mark.parametrize(
    ("Method", "linear"),
    # GMRES takes long with Kvaerno5, whose code is that of Kvaerno3
    [*((one, None) for one in METHODS), *((one, CONVERGED) for one in METHODS if one is not Kvaerno5)],
)
def test_gradients_of_a_step_reach_time_state_and_parameters(Method: StiffMethod, linear: GMRES | None) -> None:
    t = torch.tensor(0.1, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(outputs_of_a_step(Method, linear), (t, *leaves()), fast_mode=True)


@each_method
def test_second_derivatives_of_a_step_are_exact(Method: StiffMethod) -> None:
    t = torch.tensor(0.1, dtype=F64, requires_grad=True)
    assert torch.autograd.gradgradcheck(outputs_of_a_step(Method, None), (t, *leaves()), fast_mode=True)


@each_method
@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()], ids=["direct", "checkpointed"])
def test_gradients_of_a_solve_reach_start_times_and_parameters(Method: StiffMethod, adjoint: Adjoint) -> None:
    y, W = leaves()
    end = 0.45 if issubclass(Method, Rosenbrock) else 0.3  # three steps, or two where they take long
    between = torch.tensor(0.2, dtype=F64, requires_grad=True)

    def outputs(y: Tensor, W: Tensor, between: Tensor) -> tuple[Tensor, ...]:
        ts = torch.stack([zero, between, zero + end])
        solution = odeint(
            lambda t, y: net(W, t, y), y, ts, method=converged(Method), controller=Fixed(0.15), adjoint=adjoint
        )
        error = [] if solution.steps.error is None else [solution.steps.error * 100]
        return solution.ys, solution.steps.stiffness, *error

    assert torch.autograd.gradcheck(outputs, (y, W, between), fast_mode=True)


@each_method
def test_values_do_not_depend_on_whether_gradients_are_wanted(Method: StiffMethod) -> None:
    y, W = leaves()
    steps = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            steps.append(Method().step(lambda t, y: net(W, t, y), zero, 0.2, y))
    assert torch.equal(steps[0].y, steps[1].y)


@each_method
@pytest.mark.parametrize("linear", [None, CONVERGED], ids=["dense", "gmres"])
def test_a_batch_is_stepped_as_each_of_its_samples_alone(Method: StiffMethod, linear: GMRES | None) -> None:
    method = Method(linear=linear)
    W = leaves()[1].detach()
    y = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([[0.0], [0.3], [0.5], [1.0], [0.0]], dtype=F64)
    dt = torch.tensor([[0.1], [0.2], [0.0], [-0.001], [3.0]], dtype=F64)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ W.T * (1 + 0.5 * t.cos())) - 30 * y**3

    def require_close(one: Tensor, other: Tensor, rtol: float, atol: float) -> None:
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol, equal_nan=True)

    step = method.step(field, t, dt, y)
    for i in range(5):
        alone = method.step(field, t[i, 0], dt[i, 0].item(), y[i])
        require_close(step.y[i], alone.y, rtol=1e-11, atol=1e-13)
        require_close(step.at(0.3)[i], alone.at(0.3), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(step.stiffness(True)[i], alone.stiffness(False))
        if alone.error() is not None:
            require_close(step.error()[i], alone.error(), rtol=1e-9, atol=1e-13)
        if i != 2 or issubclass(Method, Rosenbrock):  # an implicit step divides by its length for its slope
            require_close(step.slope()[i], alone.slope(), rtol=1e-10, atol=1e-12)
    assert step.y[:4].isfinite().all()
    assert torch.equal(step.y[2], y[2])  # a step of length 0
    torch.testing.assert_close(step.slope()[2], field(t[2], y[2]))


@each_pair
def test_samples_with_their_own_steps_are_solved(Method: StiffMethod) -> None:
    rates = torch.tensor([[1.0], [1e3], [1e6]], dtype=F64)
    solution = odeint(
        lambda t, y: -rates * (y - torch.cos(t)), torch.zeros(3, 1, dtype=F64), [0.0, 2.0], method=Method(),
        per_sample=True, rtol=1e-4, atol=1e-6,
    )  # fmt: skip
    k = rates[:, 0]
    wanted = (k**2 * math.cos(2) + k * math.sin(2) - k**2 * torch.exp(-2 * k)) / (1 + k**2)
    torch.testing.assert_close(solution.ys[-1, :, 0], wanted, rtol=0, atol=1e-3)


@each_pair
def test_gmres_gives_the_solution_of_dense(Method: StiffMethod) -> None:
    points, conduction = (15, 400) if issubclass(Method, Rosenbrock) else (10, 100)

    def heat(t: Tensor, y: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(y, (1, 1))
        return conduction * (padded[2:] - 2 * y + padded[:-2]) + torch.sin(t)

    y0 = torch.sin(torch.linspace(0, 3, points, dtype=F64))
    found = [
        odeint(heat, y0, [0.0, 0.01], method=Method(linear=linear), rtol=1e-4, atol=1e-6).ys[-1]
        for linear in (None, GMRES())
    ]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)


@each_method
def test_complex_states_are_solved_even_where_the_field_is_not_holomorphic(Method: StiffMethod) -> None:
    rate = torch.tensor([-1 + 5j, -200 + 30j], dtype=torch.complex128)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return rate * y + 0.1 * y.conj() * t + 0.1 * y.abs() ** 2

    def parts(t: Tensor, y: Tensor) -> Tensor:
        return torch.view_as_real(field(t, torch.view_as_complex(y)))

    y = torch.tensor([1 + 1j, 0.5 - 0.2j], dtype=torch.complex128)
    method = converged(Method)
    one, other = method.step(field, zero, 0.05, y), method.step(parts, zero, 0.05, torch.view_as_real(y))
    pairs = [(one.y, other.y), (one.slope(), other.slope()), (one.at(0.4), other.at(0.4))]
    if one.error() is not None:
        pairs.append((one.error(), other.error()))
    for ours, wanted in pairs:
        torch.testing.assert_close(torch.view_as_real(ours), wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one.stiffness(False), other.stiffness(False))


@each_method
def test_linear_must_be_a_linear_solver(Method: StiffMethod) -> None:
    wrong: Any = "dense"
    with pytest.raises(TypeError, match="linear must be Dense"):
        Method(linear=wrong)
