"""Proximal matching: its schedule, its loss in closed form, and the prox of |x| learned from Laplacian samples."""

import math

import pytest
import torch
from torch import Tensor

from invreg.models.icnn import ConvexCNN, ConvexMLP
from invreg.models.mlp import MLP
from invreg.random import draw
from invreg.regularizers.learned import LearnedProximal
from invreg.training.loop import Scored, fit
from invreg.training.proximal_matching import ProximalMatching


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def batch() -> tuple[Tensor]:
    return (draw(torch.empty(8, 3, dtype=torch.float64), torch.Generator().manual_seed(1)),)


def test_gamma_falls_geometrically_behind_the_absolute_error() -> None:
    objective = ProximalMatching(ConvexMLP(3), 1.0, first_gamma=0.8, last_gamma=0.2, share=0.5)
    assert objective.gamma(0.0) is None
    assert objective.gamma(0.49) is None
    assert objective.gamma(0.5) == 0.8
    assert objective.gamma(0.75) == pytest.approx(0.4)
    assert objective.gamma(1.0) == pytest.approx(0.2)
    assert ProximalMatching(ConvexMLP(3), 1.0, share=1.0).gamma(1.0) is None
    assert ProximalMatching(ConvexMLP(3), 1.0, share=0.0).gamma(0.0) == 0.5


def test_the_loss_is_what_the_formulas_say() -> None:
    net = ConvexMLP(3).double()
    objective = ProximalMatching(net, 0.7, first_gamma=0.8, last_gamma=0.2, share=0.5)
    (x,) = batch()
    miss = net(x + 0.7 * draw(x, generator())) - x
    terms = objective((x,), 0.2, generator())
    assert list(terms) == ["absolute"]
    torch.testing.assert_close(terms["absolute"], miss.abs().mean())
    terms = objective((x,), 0.75, generator())
    assert list(terms) == ["matching"]
    torch.testing.assert_close(terms["matching"], (1 - torch.exp(-miss.square().mean(1) / 0.4**2)).mean())
    assert terms["matching"].requires_grad


def test_the_loss_of_a_sample_does_not_grow_with_its_size() -> None:
    net = ConvexCNN(1, 2, 1, 1)
    objective = ProximalMatching(net, 0.5, share=0.0, last_gamma=0.5)
    small, large = (float(objective((torch.zeros(4, n, n),), 0.0, generator())["matching"].detach()) for n in (64, 128))
    assert small == pytest.approx(large, rel=0.05)


def test_a_call_ends_the_step_before_by_clamping_the_weights() -> None:
    net = ConvexMLP(3).double()
    with torch.no_grad():
        net.outs[0].sub_(0.01)
    before = net(batch()[0]).detach()
    ProximalMatching(net, 1.0)(batch(), 0.0, generator())
    assert float(net.outs[0].detach().min()) == 0.0
    assert torch.equal(net(batch()[0]), before)


def test_after_any_step_of_a_training_the_potential_is_convex() -> None:
    torch.manual_seed(0)
    net = ConvexMLP(3).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    record = fit(ProximalMatching(net, 1.0), [batch()] * 10, optimizer, generator(), model=net)
    assert set(record.terms) == {"absolute", "matching", "total"}
    assert any(bool((weight < 0).any()) for weight in net.nonnegative())
    a, b = (draw(torch.empty(100, 3, dtype=torch.float64), torch.Generator().manual_seed(k)) for k in (3, 4))
    assert bool((net.value((a + b) / 2) <= (net.value(a) + net.value(b)) / 2).all())


def test_an_objective_can_be_judged() -> None:
    net = ConvexMLP(3).double()
    objective = ProximalMatching(net, 0.7)
    assert isinstance(objective, Scored)
    with torch.no_grad():
        scores = objective.score(batch())
    assert scores["rmse"].shape == ()
    assert 0 <= float(scores["matching"]) <= 1
    assert torch.equal(scores["rmse"], objective.score(batch())["rmse"])


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="model of ProximalMatching must be a InputConvexNetwork, got MLP"):
        ProximalMatching(MLP(1, (2,), 1), 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma must be finite and > 0"):
        ProximalMatching(ConvexMLP(1), 0.0)
    with pytest.raises(ValueError, match=r"first_gamma must be >= last_gamma = 0.1, got 0.05; swap"):
        ProximalMatching(ConvexMLP(1), 1.0, first_gamma=0.05)
    with pytest.raises(ValueError, match="share must be <= 1, got 2"):
        ProximalMatching(ConvexMLP(1), 1.0, share=2)


class Laplacian:
    """Batches (x,) from exp(-|x|) / 2, (500, 1)."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int, /) -> tuple[Tensor]:
        number = torch.Generator().manual_seed(range(self.steps)[index])
        u = torch.rand(500, 1, generator=number, dtype=torch.float64) - 0.5
        return ((-u.sign() * torch.log1p(-2 * u.abs())).float(),)


def laplacian_network(share: float, steps: int = 1500) -> ConvexMLP:
    """The prox of |x| learned with noise of 1, its last weights in double precision."""
    torch.manual_seed(0)
    net = ConvexMLP(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)

    def factor(step: int) -> float:
        done = step / steps
        return 1.0 if done < share / 2 else 0.3 if done < share else 0.02 ** ((done - share) / max(1 - share, 1e-9))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    fit(ProximalMatching(net, 1.0, share=share), Laplacian(steps), optimizer, generator(), scheduler=scheduler)
    return net.double().requires_grad_(False)


@pytest.mark.slow(seconds=60)
def test_the_prox_of_the_absolute_value_is_learned_from_laplacian_samples() -> None:
    y = torch.linspace(-3, 3, 601, dtype=torch.float64)[:, None]
    matched, absolute = laplacian_network(0.2), laplacian_network(1.0)
    errors = [float((net(y) - (y - y.clamp(-1, 1))).square().mean().sqrt()) for net in (matched, absolute)]
    assert errors[0] < 0.5 * errors[1]
    x = torch.linspace(-2, 2, 201, dtype=torch.float64)[:, None]
    found = LearnedProximal(matched, rtol=1e-8).evaluate(x)
    assert bool(found.converged.all())
    assert float(found.bound.max()) <= 1e-5
    gap = found.value - x[:, 0].abs()
    assert float(gap.max() - gap.min()) / 2 < 0.2  # up to a constant
    assert math.isclose(float(found.value[:100].mean()), float(found.value[101:].mean()), abs_tol=0.2)
