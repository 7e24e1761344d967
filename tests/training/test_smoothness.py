"""Penalties on the path of a solution: closed forms of linear equations, gradients, what they refuse."""

import math

import pytest
import torch
from torch import Tensor, nn

from invreg.models import ConcatSquash
from invreg.solvers import PI, Backsolve, Checkpointed, Direct, Interpolating, Reversible, ReversibleHeun, odeint
from invreg.training.smoothness import JacobianNorm, KineticEnergy, TaylorDerivative

FINE = PI(max_step=0.04)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_derivatives_of_an_exponential_are_integrated_with_their_gradient(order: int, per_sample: bool) -> None:
    a = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    solution = odeint(lambda t, y: a * y, y0, [0.0, 1.0], rtol=1e-8, atol=1e-8, controller=FINE, per_sample=per_sample)
    value = TaylorDerivative(2.0, order=order)(solution)
    each = 2 * a ** (2 * order) * y0[:, 0] ** 2 * (torch.exp(2 * a) - 1) / (2 * a)
    exact = each if per_sample else each.mean()
    assert value.shape == exact.shape
    assert torch.allclose(value, exact, rtol=1e-3)
    found, wanted = (torch.autograd.grad(one.sum(), a)[0] for one in (value, exact))
    assert torch.allclose(found, wanted, rtol=2e-3)


def test_gradients_to_parameters_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    field = ConcatSquash(2, (4,)).double()
    y0 = torch.randn(3, 2, dtype=torch.float64)
    penalty = TaylorDerivative(order=2)

    def value() -> Tensor:
        return penalty(odeint(field, y0, [0.0, 1.0], controller=PI(first_step=0.25, max_step=0.25)))

    weight = field.layers[0].weight
    assert isinstance(weight, nn.Parameter)
    (gradient,) = torch.autograd.grad(value(), weight)
    with torch.no_grad():
        weight[0, 0] += 1e-5
        above = value()
        weight[0, 0] -= 2e-5
        below = value()
    assert float(gradient[0, 0]) == pytest.approx(float(above - below) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_kinetic_energy_of_a_rotation_is_constant(per_sample: bool) -> None:
    speed = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    y0 = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    solution = odeint(lambda t, y: speed * y @ turn, y0, [0.0, 2.0], rtol=1e-8, atol=1e-8, per_sample=per_sample)
    energy = KineticEnergy()(solution)
    exact = 9 * 2 * torch.tensor([1.0, 4.0], dtype=torch.float64)
    assert torch.allclose(energy, exact if per_sample else exact.mean(), rtol=1e-6)
    (gradient,) = torch.autograd.grad(energy.sum(), speed)
    assert float(gradient) == pytest.approx(float(2 * exact.mean() / 3) * len(energy.reshape(-1)), rel=1e-6)


def test_the_mean_of_the_jacobian_estimate_is_its_squared_norm() -> None:
    turn = torch.tensor([[0.0, 3.0], [-3.0, 0.0]])
    solution = odeint(lambda t, y: y @ turn, torch.ones(4000, 2), [0.0, 2.0])
    estimate = JacobianNorm(generator=torch.Generator().manual_seed(0))
    # |n J|^2 = 9 |n|^2: 9 times a chi square with two degrees of freedom
    assert float(estimate(solution)) == pytest.approx(2 * 9 * 2, rel=0.06)


def test_continuous_adjoints_do_as_well() -> None:
    a = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    y0, penalty = torch.ones(2, 1, dtype=torch.float64), TaylorDerivative()
    found = []
    for adjoint in (Direct(), Checkpointed(), Backsolve(), Interpolating()):
        solution = odeint(lambda t, y: a * y, y0, [0.0, 1.0], rtol=1e-9, atol=1e-9, adjoint=adjoint)
        found.append(float(torch.autograd.grad(penalty(solution), a)[0]))
    assert found[1:] == [pytest.approx(found[0], rel=1e-7)] * 3


def test_time_may_run_backwards() -> None:
    y0 = torch.ones(1, 1, dtype=torch.float64)
    solution = odeint(lambda t, y: -y, y0, [1.0, 0.0], rtol=1e-8, atol=1e-8, controller=FINE)
    assert float(KineticEnergy()(solution)) == pytest.approx((math.exp(2) - 1) / 2, rel=1e-3)


def test_only_the_features_named_count() -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([y[..., :2] * 0.5, 100 * y[..., 2:] + 1], -1)

    def half(t: Tensor, y: Tensor) -> Tensor:
        return 0.5 * y

    y0 = torch.tensor([[1.0, 2.0, 0.0]], dtype=torch.float64)
    whole = odeint(field, y0, [0.0, 0.1], rtol=1e-6, atol=1e-6)
    part = odeint(half, y0[:, :2], [0.0, 0.1], rtol=1e-6, atol=1e-6)
    for make in (TaylorDerivative, KineticEnergy):
        assert float(make(field=half, features=2)(whole)) == pytest.approx(float(make()(part)), rel=1e-3)
    one = JacobianNorm(field=half, features=2, generator=torch.Generator().manual_seed(0))(whole)
    other = JacobianNorm(generator=torch.Generator().manual_seed(0))(part)
    assert float(one) == pytest.approx(float(other), rel=1e-6)
    with pytest.raises(ValueError, match="field and features must be given together"):
        KineticEnergy(features=2)


def test_what_has_no_path_or_no_gradient_is_refused() -> None:
    a = torch.tensor(-1.0, requires_grad=True)
    y0 = torch.ones(2, 1)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return a * y

    with pytest.raises(RuntimeError, match="keeps no states along the path"):
        KineticEnergy()(odeint(field, y0, [0.0, 1.0], method=ReversibleHeun(), adjoint=Reversible()))
    with pytest.raises(RuntimeError, match="must reach its last time"):
        KineticEnergy()(odeint(field, y0, [0.0, 1.0], rtol=1e-6, max_steps=2, throw=False))
    with pytest.raises(TypeError, match="y0 must be one tensor"):
        KineticEnergy()(odeint(lambda t, y: (a * y[0],), (y0,), [0.0, 1.0]))
    with pytest.raises(ValueError, match="order must be >= 1"):
        TaylorDerivative(order=0)
