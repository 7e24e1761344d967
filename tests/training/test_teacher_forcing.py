"""Teacher forcing: its limits, its rule, bounded gradients on Lorenz's attractor."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from invreg.models import MLP, TimeMLP
from invreg.solvers import Tsit5, odeint
from invreg.training import Shuffled, Training, fit, iterate
from invreg.training.teacher_forcing import (
    AdaptiveForcing,
    FlowMap,
    ForcedFit,
    bounding_alpha,
    forced,
    jacobian_norms,
    run_free,
    state_space_divergence,
)


class Lorenz(nn.Module):
    """Lorenz's equations of 1963, with rho as a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.tensor(28.0, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x, v, z = y.unbind(-1)
        return torch.stack([10 * (v - x), x * (self.rho - z) - v, x * v - 8 / 3 * z], -1)


def attractor(length: int, interval: float = 0.05, samples: int = 2) -> Tensor:
    """Trajectories on the attractor, (samples, length, 3)."""
    start = torch.tensor([[1.0, 1.0, 20.0]], dtype=torch.float64) + torch.arange(samples)[:, None] / 10
    step = FlowMap(Lorenz(), interval)
    return run_free(step, run_free(step, start, 100)[:, -1], length)


class LinearMap(nn.Module):
    """x -> factor x."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_full_forcing_predicts_one_step_and_none_runs_free() -> None:
    step = LinearMap(2.0)
    data = torch.randn(3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(forced(step, data, 1.0), 2 * data[:, :-1])
    assert torch.allclose(forced(step, data, 0.0), run_free(step, data[:, 0], 4))
    half = forced(step, data, 0.5)
    assert torch.allclose(half[:, 1], 2 * (0.5 * half[:, 0] + 0.5 * data[:, 1]))


def test_a_flow_map_is_the_flow() -> None:
    x = torch.tensor([[1.0, 2.0, 20.0]], dtype=torch.float64)
    exact = odeint(Lorenz(), x, [0.0, 0.05], rtol=1e-11, atol=1e-11).ys[-1]
    assert torch.allclose(FlowMap(Lorenz(), 0.05, steps=10)(x), exact, atol=1e-5)
    assert torch.allclose(FlowMap(Lorenz(), 0.05, method=Tsit5())(x), exact, atol=1e-3)


def test_jacobian_norms_are_largest_singular_values() -> None:
    torch.manual_seed(0)
    net = MLP(3, (8,), 3).double()
    data = torch.randn(2, 4, 3, dtype=torch.float64)
    jacobians = torch.stack([torch.autograd.functional.jacobian(net, one) for one in data.reshape(-1, 3)])
    assert torch.allclose(jacobian_norms(net, data), torch.linalg.svdvals(jacobians)[:, 0].reshape(2, 4))


@pytest.mark.parametrize(("factors", "alpha"), [([2.0, 2.0], 0.5), ([4.0, 1.0], 0.5), ([0.5, 0.5], 0.0)])
def test_the_rule_takes_the_geometric_mean_along_time(factors: list[float], alpha: float) -> None:
    assert bounding_alpha(torch.tensor([factors, [0.1, 0.1]])) == pytest.approx(alpha)


def test_forcing_rises_at_once_and_falls_slowly() -> None:
    forcing = AdaptiveForcing(first=0.0, decay=0.9, every=2)
    data = torch.ones(1, 3, 1, dtype=torch.float64)
    wild, tame = LinearMap(4.0), LinearMap(1.0)
    assert [forcing(wild, data) for _ in range(2)] == [0.0, pytest.approx(0.75)]
    assert [forcing(tame, data) for _ in range(2)] == [pytest.approx(0.75), pytest.approx(0.675)]
    again = AdaptiveForcing()
    again.load_state_dict(forcing.state_dict())
    assert float(again.alpha) == pytest.approx(0.675)
    assert int(again.batches) == 4


def gradient(alpha: float, data: Tensor) -> float:
    """Of a loss on the last state to the first, by way of all states between."""
    step = FlowMap(Lorenz(), 0.05)
    first = data[:1, :1].clone().requires_grad_()
    states = forced(step, torch.cat([first, data[:1, 1:]], 1), alpha)
    return float(torch.autograd.grad(states[:, -1].sum(), first)[0].norm())


def test_on_lorenz_gradients_explode_without_forcing_and_stay_bounded_with_it() -> None:
    data = attractor(301)
    alpha = bounding_alpha(jacobian_norms(FlowMap(Lorenz(), 0.05), data))
    assert 0.1 < alpha < 0.6
    free = [gradient(0.0, data[:, : n + 1]) for n in (100, 300)]
    held = [gradient(alpha, data[:, : n + 1]) for n in (100, 300)]
    # the largest exponent of the attractor is 0.906 per unit of time: 200 steps of 0.05 are a factor of exp(9.1)
    assert math.log(free[1] / free[0]) == pytest.approx(0.906 * 0.05 * 200, abs=4)
    assert free[1] > 1e3
    assert held[0] < 1
    assert held[1] < held[0]


def test_the_gradient_of_a_parameter_is_bounded_as_well() -> None:
    data = attractor(301)
    norms = []
    for alpha in (0.0, 0.4):
        field = Lorenz()
        with torch.no_grad():
            field.rho += 0.1
        loss = (forced(FlowMap(field, 0.05), data, alpha) - data[:, 1:]).square().mean()
        norms.append(float(torch.autograd.grad(loss, field.rho)[0].abs()))
    assert norms[1] < 10
    assert norms[0] > 500


def test_a_parameter_is_found_from_a_long_trajectory() -> None:
    data, field = attractor(21, samples=8), Lorenz()
    with torch.no_grad():
        field.rho -= 3
    objective = ForcedFit(FlowMap(field, 0.05), AdaptiveForcing(0.5, every=5))
    fit(objective, Shuffled(data, size=8, epochs=40, seed=0), torch.optim.Adam(field.parameters(), lr=0.5))
    assert float(field.rho.detach()) == pytest.approx(28, abs=0.3)
    with torch.no_grad():
        scores = objective.score((data,))
    assert float(scores["one step"]) < 0.01
    assert float(scores["free run"]) > float(scores["one step"])


def test_a_training_that_was_broken_off_goes_on_with_its_forcing(tmp_path: Path) -> None:
    data = attractor(9, samples=8)

    def training(folder: Path, resume: bool) -> tuple[Training[tuple[Tensor, ...]], nn.ModuleList]:
        torch.manual_seed(0)
        model = FlowMap(TimeMLP(3, (8,), timed=False).double(), 0.05)
        parts = nn.ModuleList([model, forcing := AdaptiveForcing(decay=0.5, every=2)])
        batches = Shuffled(data / 10, size=4, epochs=4, seed=0)
        optimizer = torch.optim.Adam(model.parameters())
        objective = ForcedFit(model, forcing)
        return iterate(objective, batches, optimizer, model=parts, folder=folder, resume=resume), parts

    whole, expected = training(tmp_path / "whole", False)
    assert len(list(whole)) == 8
    first, _ = training(tmp_path / "parts", False)
    for _ in range(3):
        next(first)
    first.save()
    second, found = training(tmp_path / "parts", True)
    assert len(list(second)) == 5
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_a_schedule_is_a_forcing_too() -> None:
    step = LinearMap(2.0)
    data = torch.ones(1, 4, 1, dtype=torch.float64)
    objective = ForcedFit(step, lambda progress: 1 - progress)
    for progress in (0.0, 0.5, 1.0):
        expected = (forced(step, data, 1 - progress) - data[:, 1:]).square().mean()
        assert torch.equal(objective((data,), progress)["data"], expected)


def test_divergence_tells_attractors_apart() -> None:
    one, other = attractor(300, samples=32).split(16)
    truth, found = one.reshape(-1, 3), other.reshape(-1, 3)
    assert state_space_divergence(truth, truth, bins=8) == 0
    assert 0 < state_space_divergence(truth, found, bins=8) < 1
    assert state_space_divergence(truth, found + 10, bins=8) > 3
    # nothing within the box: the histogram is flat
    assert state_space_divergence(truth, torch.full_like(truth, torch.nan), bins=8) > 2


def test_a_map_is_rebuilt_from_its_arguments() -> None:
    torch.manual_seed(0)
    step = FlowMap(TimeMLP(3, (4,), timed=False), 0.1, steps=2, method=Tsit5())
    again = FlowMap(**step.config)  # type: ignore[arg-type]
    assert torch.equal(again(torch.ones(1, 3)), step(torch.ones(1, 3)))


def test_arguments_that_do_not_fit_are_named() -> None:
    data = torch.ones(1, 4, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"data must be \(B, T \+ 1, d\) with T >= 1, got \(4, 1\)"):
        ForcedFit(LinearMap(1.0), AdaptiveForcing())((data[0],), 0.0)
    with pytest.raises(ValueError, match="alpha must be between 0 and 1, got 2"):
        forced(LinearMap(1.0), data, 2)
    with pytest.raises(ValueError, match=r"first must be in \[0, 1\] and decay in \[0, 1\), got 0.5 and 1"):
        AdaptiveForcing(0.5, decay=1)
    with pytest.raises(ValueError, match="interval must be finite and > 0, got 0"):
        FlowMap(Lorenz(), 0)
    with pytest.raises(ValueError, match=r"truth and found must be \(N, d\) and \(M, d\), got \(3,\) and \(3, 1\)"):
        state_space_divergence(torch.ones(3), torch.ones(3, 1))
