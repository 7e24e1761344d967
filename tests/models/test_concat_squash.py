"""Concat-squash layers: gain and offset by time."""

import pytest
import torch

from invreg.models import ConcatSquash
from invreg.solvers import odeint


def test_one_layer_is_what_its_formula_says() -> None:
    torch.manual_seed(0)
    field = ConcatSquash(2, ()).double()
    t, y = torch.tensor(0.7, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    layer, gain, offset = field.layers[0], field.gains[0], field.offsets[0]
    at = t[None]
    assert torch.allclose(field(t, y), layer(y) * torch.sigmoid(gain(at)) + offset(at))


def test_each_sample_may_have_its_own_time() -> None:
    torch.manual_seed(0)
    field = ConcatSquash(2, (4, 3)).double()
    y = torch.randn(3, 2, dtype=torch.float64)
    times = torch.tensor([[0.1], [0.5], [0.9]], dtype=torch.float64)
    each = torch.stack([field(times[i, 0], y[i]) for i in range(3)])
    assert torch.allclose(field(times, y), each)
    assert odeint(field, y, [0.0, 1.0], per_sample=True).ys.shape == (2, 3, 2)


def test_widths_that_are_no_counts_are_named() -> None:
    with pytest.raises(ValueError, match="widths of layers must be >= 1, got 0"):
        ConcatSquash(2, (4, 0))
