"""Perceptrons: shapes, time as a feature, and what they are in closed form."""

import pytest
import torch
from torch import Tensor, nn

from invreg.models import MLP, CubicDrift, EntrywiseMLP, TimeMLP
from invreg.solvers import odeint


def test_a_perceptron_without_hidden_layers_is_linear() -> None:
    net = MLP(3, (), 2).double()
    x = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = net.layers[0]
    assert isinstance(layer, nn.Linear)
    assert torch.allclose(net(x), x @ layer.weight.T + layer.bias)
    assert net(x).shape == (5, 4, 2)


def test_tanh_lies_between_the_layers_and_not_behind_the_last() -> None:
    net = MLP(2, (4,), 1).double()
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inner, outer = net.layers
    assert torch.equal(net(x), outer(torch.tanh(inner(x))))


@pytest.mark.parametrize("features", [1, 3])
def test_time_is_a_feature_of_every_layer(features: int) -> None:
    torch.manual_seed(0)
    field = TimeMLP(features, (7, 5)).double()
    widths = [one.weight.shape for one in field.layers if isinstance(one, nn.Linear)]
    assert widths == [(7, features + 1), (5, 8), (features, 6)]
    t, y = torch.tensor(0.3, dtype=torch.float64), torch.randn(4, features, dtype=torch.float64)
    each = field(torch.full((4, 1), 0.3, dtype=torch.float64), y)
    assert torch.equal(field(t, y), each)
    assert not torch.allclose(field(t + 1, y), each)
    assert torch.equal(field(t, y.expand(2, 4, features))[1], each)


def test_an_autonomous_field_does_not_see_the_time() -> None:
    field = TimeMLP(2, (5,), timed=False)
    y = torch.ones(3, 2)
    assert torch.equal(field(torch.tensor(0.0), y), field(torch.tensor(1.0), y))


def test_a_bounded_field_moves_no_entry_faster_than_one() -> None:
    field = TimeMLP(2, (5,), bounded=True)
    slope = field(torch.tensor(0.0), 1e6 * torch.ones(3, 2))
    assert float(slope.detach().abs().max()) <= 1
    assert float(TimeMLP(2, ())(torch.tensor(0.0), 1e6 * torch.ones(3, 2)).detach().abs().max()) > 1


def test_the_cubic_drift_is_a_perceptron_of_cubes() -> None:
    drift = CubicDrift(2, 5).double()
    y = torch.tensor([[0.5, -2.0]], dtype=torch.float64)
    expected = drift.outer(torch.tanh(drift.inner(torch.tensor([[0.125, -8.0]], dtype=torch.float64))))
    assert torch.allclose(drift(torch.tensor(0.0), y), expected)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("field", [TimeMLP(2, (5,)), CubicDrift()])
def test_fields_are_what_solvers_take(field: nn.Module, per_sample: bool) -> None:
    y0 = torch.ones(3, 2)
    ys: Tensor = odeint(field, y0, [0.0, 0.5], per_sample=per_sample).ys
    assert ys.shape == (2, 3, 2)


def test_widths_that_are_no_counts_are_named() -> None:
    with pytest.raises(ValueError, match="widths of layers must be >= 1, got 0"):
        TimeMLP(2, (0,))
    with pytest.raises(TypeError, match="widths of layers must be an int, got float"):
        MLP(2, (3.0,), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("hidden", [0, 5])
def test_entries_of_an_entrywise_perceptron_depend_on_their_own_only(hidden: int) -> None:
    torch.manual_seed(0)
    noise, y = EntrywiseMLP(4, hidden).double(), torch.randn(4, dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda x: noise(torch.zeros(()), x))(y)
    assert torch.equal(jacobian, jacobian.diagonal().diag())
    assert bool((jacobian.diagonal() != 0).all())
    assert noise(torch.zeros(()), torch.randn(3, 4, dtype=torch.float64)).shape == (3, 4)
    with pytest.raises(ValueError, match="hidden must be an integer >= 0"):
        EntrywiseMLP(4, -1)
