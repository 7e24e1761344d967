"""Derivatives of fields against their closed forms and torch's Jacobians."""

import pytest
import torch
from torch import Tensor

from invreg.models import ConcatSquash, TimeMLP
from invreg.models.derivatives import slope_and_product, slope_and_trace, time_derivative
from invreg.solvers import odeint

T = torch.tensor(0.3, dtype=torch.float64)


def field_and_points() -> tuple[ConcatSquash, Tensor, Tensor]:
    torch.manual_seed(0)
    field = ConcatSquash(3, (8,)).double()
    y = torch.randn(4, 3, dtype=torch.float64)
    return field, y, torch.stack([torch.func.jacrev(lambda one: field(T, one))(row) for row in y])


def test_time_derivatives_are_total_ones() -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return t**2 * y

    t, y = torch.tensor(0.5, dtype=torch.float64), torch.tensor([[2.0]], dtype=torch.float64)
    # y' = t^2 y, y'' = (2 t + t^4) y, y''' = (2 + 4 t^3) y + (2 t + t^4) t^2 y
    expected = [0.25, 1.0625, 2.5 + 1.0625 * 0.25]
    for order, factor in enumerate(expected, 1):
        assert float(time_derivative(field, t, y, order)) == pytest.approx(2 * factor, rel=1e-12)


def test_the_derivative_of_a_network_is_that_of_its_solution() -> None:
    torch.manual_seed(0)
    field = TimeMLP(2, (8,)).double()
    y0 = torch.randn(3, 2, dtype=torch.float64)
    h = 1e-3
    ends = odeint(field, y0, [0.0, h, 2 * h, 3 * h], rtol=1e-12, atol=1e-12).ys
    second = (2 * ends[0] - 5 * ends[1] + 4 * ends[2] - ends[3]) / h**2
    found = time_derivative(field, torch.zeros((), dtype=torch.float64), y0, 2)
    assert torch.allclose(found, second, atol=1e-4)


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("leaf", [False, True])
def test_products_and_traces_are_those_of_the_jacobian(leaf: bool, recording: bool) -> None:
    field, y, jacobians = field_and_points()
    noise = torch.randn(4, 3, dtype=torch.float64)
    with torch.set_grad_enabled(recording):
        slope, product = slope_and_product(field, T, y.clone().requires_grad_(leaf), noise)
        same, trace = slope_and_trace(field, T, y.clone().requires_grad_(leaf))
        estimate = slope_and_trace(field, T, y, noise)[1]
    assert torch.allclose(slope, field(T, y))
    assert torch.allclose(same, slope)
    assert torch.allclose(product, torch.einsum("bi,bij->bj", noise, jacobians))
    assert torch.allclose(trace, jacobians.diagonal(dim1=1, dim2=2).sum(1))
    assert torch.allclose(estimate, torch.einsum("bi,bij,bj->b", noise, jacobians, noise))
    assert {one.requires_grad for one in (slope, product, same, trace, estimate)} == {recording}


def test_traces_have_gradients_of_state_and_parameters() -> None:
    field, y, _ = field_and_points()
    y.requires_grad_()

    def value(y: Tensor) -> Tensor:
        return slope_and_trace(field, T, y)[1]

    assert torch.autograd.gradcheck(value, y)
    weight = field.layers[0].weight
    assert isinstance(weight, Tensor)
    (gradient,) = torch.autograd.grad(value(y).sum(), weight)
    with torch.no_grad():
        weight[0, 0] += 1e-5
        above = float(value(y).sum())
        weight[0, 0] -= 2e-5
        below = float(value(y).sum())
    assert float(gradient[0, 0]) == pytest.approx((above - below) / 2e-5, rel=1e-6)


def test_a_constant_field_has_no_divergence() -> None:
    y = torch.randn(4, 3)
    slope, trace = slope_and_trace(lambda t, y: torch.ones_like(y), T, y)
    assert torch.equal(slope, torch.ones(4, 3))
    assert torch.equal(trace, torch.zeros(4))
