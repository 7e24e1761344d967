"""A convex network of real images as one of complex images: real and imaginary part each on their own."""

import pytest
import torch
from torch import Tensor

from invreg.interfaces import ConvexPotential
from invreg.models.icnn import ComplexPotential, ConvexCNN
from invreg.random import draw
from invreg.regularizers import LearnedProximal, RelaxedLearnedProximal
from invreg.testing import gradient_gap, prox_gap


def potential() -> ConvexCNN:
    """With layers that count, without gradients in its weights."""
    torch.manual_seed(0)
    net = ConvexCNN(1, 4, 2, 3, beta=5.0, strong_convexity=0.1).double().requires_grad_(False)
    for weight in net.nonnegative():
        weight.copy_(torch.rand_like(weight) / weight[0].numel() ** 0.5)
    return net


def images(count: int = 2) -> Tensor:
    return draw(torch.empty(count, 3, 4, dtype=torch.complex128), torch.Generator().manual_seed(0))


def test_parts_are_taken_on_their_own() -> None:
    net, x = potential(), images()
    both = ComplexPotential(net)
    assert isinstance(both, ConvexPotential)
    assert both.strong_convexity == 0.1
    torch.testing.assert_close(both.value(x), net.value(x.real) + net.value(x.imag), rtol=1e-14, atol=0)
    torch.testing.assert_close(both(x), torch.complex(net(x.real), net(x.imag)), rtol=1e-14, atol=1e-16)
    assert gradient_gap(both.value, x, both.gradient(x)) <= 1e-7


@pytest.mark.parametrize("kind", [LearnedProximal, RelaxedLearnedProximal])
def test_the_prox_of_complex_images_is_exact(kind: type[LearnedProximal] | type[RelaxedLearnedProximal]) -> None:
    prior = kind(ComplexPotential(potential()), step=0.7, scale=2.0, weight=0.5, rtol=1e-10)
    assert prox_gap(prior, images(), 1.4, trials=3) <= 1e-9
    real = kind(potential(), step=0.7, scale=2.0, weight=0.5, rtol=1e-10)
    torch.testing.assert_close(prior(images()), real(images().real) + real(images().imag))


def test_the_gradient_of_the_penalty_is_that_of_finite_differences() -> None:
    prior = LearnedProximal(ComplexPotential(potential()), step=0.5, scale=2.0, weight=3.0, rtol=1e-11)
    x = images().requires_grad_()
    (gradient,) = torch.autograd.grad(prior(x).sum(), x)
    assert gradient_gap(prior, x.detach(), gradient, step=1e-5) <= 1e-6


def test_what_is_not_complex_or_not_convex_is_refused() -> None:
    with pytest.raises(TypeError, match=r"x must be complex, got torch.float64; real signals are for the potential"):
        ComplexPotential(potential()).value(images().real)
    with pytest.raises(TypeError, match="potential must be convex, such as ConvexCNN, got Linear"):
        ComplexPotential(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
