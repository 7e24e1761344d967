"""The running mean of weights."""

import pytest
import torch
from torch import nn

from invreg.training import Average


def test_the_mean_follows_the_formula() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    average = Average(model, decay=0.8)
    expected = float(model.weight.detach())
    for step, value in enumerate([1.0, -2.0, 0.5, 3.0], start=1):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(model, step)
        decay = min(0.8, step / (step + 9))
        expected = decay * expected + (1 - decay) * value
    (found,) = average.module.parameters()
    assert float(found) == pytest.approx(expected, abs=1e-12)
    assert not found.requires_grad


def test_constant_weights_are_their_mean_and_buffers_are_copied() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = Average(model, decay=0.5)
    model(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    average.update(model, 1)
    for name, value in model.state_dict().items():
        assert torch.allclose(average.module.state_dict()[name], value), name
    assert not average.module.training


def test_the_mean_is_less_noisy_than_its_last_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(200, 1, bias=False)
    average = Average(model, decay=0.99)
    for step in range(1, 501):
        with torch.no_grad():
            model.weight.normal_(generator=generator)
        average.update(model, step)
    (mean,) = average.module.parameters()
    assert float(mean.std()) < 0.15 * float(model.weight.detach().std())


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"decay must be within \[0, 1\), got"):
        Average(nn.Linear(1, 1), decay)
