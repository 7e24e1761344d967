"""Input-convex networks: convexity whatever the weights, gradients that are proximal maps, images of any size."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from invreg.interfaces import ConvexPotential
from invreg.models.icnn import ConvexCNN, ConvexMLP, InputConvexNetwork
from invreg.models.pretrained import from_pretrained, save_pretrained
from invreg.random import draw
from invreg.testing import gradient_gap

KINDS: dict[str, tuple[Callable[[], InputConvexNetwork], tuple[int, ...]]] = {
    "vectors": (lambda: ConvexMLP(5, 8, 3, strong_convexity=0.1), (5,)),
    "images": (lambda: ConvexCNN(1, 4, 2, 3, beta=10.0, strong_convexity=0.1), (6, 5)),
    "colour images": (lambda: ConvexCNN(2, 4, 2, 3, beta=10.0, strong_convexity=0.1), (2, 5, 4)),
}
EACH = pytest.mark.parametrize("kind", KINDS)


def network(kind: str, seed: int = 0) -> InputConvexNetwork:
    """With layers that count, some of their weights negative, as a step of an optimizer may leave them."""
    torch.manual_seed(seed)
    net = KINDS[kind][0]().double()
    with torch.no_grad():
        for weight in net.nonnegative():
            weight.copy_((torch.rand_like(weight) - 0.3) * 4 / weight[0].numel() ** 0.5)
    return net


def signals(kind: str, count: int = 3, seed: int = 0, size: tuple[int, ...] | None = None) -> Tensor:
    return draw(torch.empty(count, *(size or KINDS[kind][1]), dtype=torch.float64), torch.Generator().manual_seed(seed))


def hessian(net: InputConvexNetwork, x: Tensor) -> Tensor:
    """Of one signal, (n, n)."""
    jacobian = torch.autograd.functional.jacobian(lambda v: net.gradient(v.reshape(x.shape)).flatten(), x.flatten())
    assert isinstance(jacobian, Tensor)
    return jacobian


@EACH
def test_a_network_is_a_convex_potential(kind: str) -> None:
    net = network(kind)
    assert isinstance(net, ConvexPotential)
    assert net.strong_convexity == 0.1
    assert net.value(signals(kind)).shape == (3,)
    assert torch.equal(net(signals(kind)), net.gradient(signals(kind)))


@EACH
def test_the_value_at_the_middle_is_below_the_mean_by_the_strong_convexity(kind: str) -> None:
    net = network(kind)
    for seed, size in ((1, 3.0), (2, 0.1), (3, 30.0)):
        a, b = signals(kind, 50), size * signals(kind, 50, seed)
        gap = (net.value(a) + net.value(b)) / 2 - net.value((a + b) / 2)
        bound = net.strong_convexity / 8 * (a - b).square().flatten(1).sum(1)
        assert (gap >= bound - 1e-12).all()


@EACH
def test_the_slope_of_the_gradient_is_symmetric_and_no_less_than_the_strong_convexity(kind: str) -> None:
    slope = hessian(network(kind), signals(kind, 1))
    torch.testing.assert_close(slope, slope.mT, rtol=0, atol=1e-12)
    assert float(torch.linalg.eigvalsh(slope)[0]) >= 0.1 - 1e-12
    assert float(torch.linalg.eigvalsh(slope)[-1]) > 0.2  # the network adds to it


@EACH
def test_the_gradient_is_that_of_finite_differences(kind: str) -> None:
    net, x = network(kind), signals(kind)
    assert gradient_gap(net.value, x, net.gradient(x).detach()) <= 1e-7


def test_a_network_of_one_layer_is_what_the_formula_says() -> None:
    net = ConvexMLP(1, 2, 1, beta=2.0, strong_convexity=0.5).double()
    with torch.no_grad():
        net.lifts[0].weight.copy_(torch.tensor([[1.0], [-3.0]]))
        net.lifts[0].bias.copy_(torch.tensor([0.5, 0.0]))
        net.outs[0].copy_(torch.tensor([2.0, 1.0]))
    x = torch.tensor([[0.3], [-1.0]], dtype=torch.float64)
    soft = torch.log1p(torch.exp(2 * torch.cat([x + 0.5, -3 * x], 1))) / 2
    torch.testing.assert_close(net.value(x), soft @ torch.tensor([2.0, 1.0]).double() + 0.25 * x[:, 0] ** 2)
    slope = 2 * torch.sigmoid(2 * (x + 0.5)) - 3 * torch.sigmoid(-6 * x) + 0.5 * x
    torch.testing.assert_close(net(x), slope)


@EACH
def test_clamping_changes_no_value_and_lets_dead_weights_learn(kind: str) -> None:
    net, x = network(kind), signals(kind)
    before = net(x).detach()
    negative = [weight < 0 for weight in net.nonnegative()]
    net(x).square().sum().backward()
    assert all(bool((w.grad[n] == 0).all()) for w, n in zip(net.nonnegative(), negative, strict=True))
    net.clamp_weights()
    torch.testing.assert_close(net(x), before, rtol=1e-14, atol=0)
    assert all(bool((weight >= 0).all()) for weight in net.nonnegative())
    net.zero_grad()
    net(x).square().sum().backward()
    assert all(bool((w.grad[n] != 0).any()) for w, n in zip(net.nonnegative(), negative, strict=True) if n.any())
    assert any(bool((p < 0).any()) for p in net.lifts.parameters())  # those are free


@EACH
def test_a_graph_is_made_only_where_one_is_wanted(kind: str) -> None:
    net, x = network(kind), signals(kind)
    assert net(x).requires_grad
    with torch.no_grad():
        assert not net(x.clone().requires_grad_()).requires_grad
    net.requires_grad_(False)
    assert not net(x).requires_grad
    assert net(x.clone().requires_grad_()).requires_grad
    assert not x.requires_grad


@EACH
def test_each_signal_is_taken_for_itself(kind: str) -> None:
    net, x = network(kind), signals(kind)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (17, 12)])
def test_at_any_size_the_gradient_is_that_of_a_convex_function(size: tuple[int, int]) -> None:
    net = network("images")
    x = signals("images", 1, size=size)
    slope = hessian(net, x)
    torch.testing.assert_close(slope, slope.mT, rtol=0, atol=1e-12)
    assert float(torch.linalg.eigvalsh(slope)[0]) >= 0.1 - 1e-12


def test_away_from_borders_a_patch_is_denoised_as_within_the_whole_image() -> None:
    net = network("images")
    x = signals("images", 1, size=(24, 20))
    rim = 2 * net.radius  # type: ignore[operator]
    whole, patch = net(x), net(x[:, 3:21, 2:18])
    torch.testing.assert_close(patch[:, rim:-rim, rim:-rim], whole[:, 3 + rim : 21 - rim, 2 + rim : 18 - rim])
    assert not torch.allclose(patch[:, 0], whole[:, 3, 2:18])


def test_the_potential_of_an_image_and_its_mirror_images_is_the_sum_of_theirs() -> None:
    net = network("images")
    x = signals("images", 1, size=(7, 6))
    with torch.no_grad():
        for lift in net.lifts:  # symmetric kernels: mirrored surroundings count alike
            assert isinstance(lift, nn.Conv2d)
            lift.weight.copy_((lift.weight + lift.weight.flip(-2)) / 2)
        for mix in net.mixes:
            mix.copy_((mix + mix.flip(-2)) / 2)
    doubled = torch.cat([x, x.flip(-2)], -2)
    torch.testing.assert_close(net.value(doubled), 2 * net.value(x))
    torch.testing.assert_close(net(doubled)[:, :7], net(x))


def test_a_constant_image_stays_constant_up_to_the_borders() -> None:
    net = ConvexCNN(1, 4, 2, 3, beta=10.0).double()
    with torch.no_grad():
        for weight in (*net.mixes, *(one.weight for one in net.lifts)):
            weight.copy_((weight + weight.flip(-2) + weight.flip(-1) + weight.flip((-2, -1))) / 4)
    found = net(torch.full((1, 6, 7), 0.4, dtype=torch.float64))
    torch.testing.assert_close(found, found[:, :1, :1].expand_as(found))


def test_one_channel_may_have_its_axis_or_not() -> None:
    net, x = network("images"), signals("images")
    assert torch.equal(net(x[:, None])[:, 0], net(x))


@EACH
def test_a_saved_network_is_the_same_again(kind: str, tmp_path: Path) -> None:
    net, x = network(kind), signals(kind)
    classes = {"mlp": ConvexMLP, "cnn": ConvexCNN}
    save_pretrained(net, tmp_path / "net", classes)
    again = from_pretrained(tmp_path / "net", classes)
    assert isinstance(again, InputConvexNetwork)
    assert again.config == net.config
    assert torch.equal(again(x), net(x))


def test_single_precision_is_kept_and_far_values_stay_finite() -> None:
    net = ConvexMLP(2, beta=100.0)
    for x in (torch.zeros(1, 2), torch.full((1, 2), 1e6), torch.full((1, 2), -1e6)):
        assert net.value(x).isfinite().all()
        assert net(x).isfinite().all()
        assert net(x).dtype == torch.float32


def test_the_gradient_rises_along_every_line() -> None:
    net = network("vectors")
    start, direction = signals("vectors", 1), signals("vectors", 1, 1)
    slopes = [
        float((net(start + t * direction) * direction).sum().detach()) for t in torch.linspace(-5, 5, 50).double()
    ]
    assert all(b > a for a, b in pairwise(slopes))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel must be odd, got 4"):
        ConvexCNN(kernel=4)
    with pytest.raises(ValueError, match="strong_convexity must be finite and >= 0, got -1"):
        ConvexMLP(2, strong_convexity=-1)
    with pytest.raises(ValueError, match="beta must be finite and > 0, got 0"):
        ConvexMLP(2, beta=0)
    with pytest.raises(ValueError, match=r"x must be \(B, 2\), got \(3, 4\)"):
        ConvexMLP(2)(torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"x must be \(B, y, x\) or \(B, 1, y, x\), got \(4,\)"):
        ConvexCNN()(torch.ones(4))
    with pytest.raises(ValueError, match=r"x must be \(B, 2, y, x\), got \(2, 4, 4\)"):
        ConvexCNN(2)(torch.ones(2, 4, 4))
    with pytest.raises(TypeError, match="x must be real floating point, got torch.complex64; complex ones"):
        ConvexCNN()(torch.ones(1, 4, 4, dtype=torch.complex64))
