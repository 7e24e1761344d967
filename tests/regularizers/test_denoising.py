"""Tests of `invreg.regularizers.denoising` beyond the laws."""

import pytest
import torch
from torch import Tensor, nn

from invreg.interfaces import Denoiser, Proximal, Regularizer
from invreg.random import draw
from invreg.regularizers import RED, PlugAndPlay


class Wiener(Denoiser):
    """The optimal denoiser of N(0, 1) entries, which is also the prox of |z|^2 / 2 at step sigma^2."""

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        level = sigma.reshape(-1, *(1,) * (x.ndim - 1)) if isinstance(sigma, Tensor) and sigma.ndim else sigma
        return x / (1 + level**2)


class Skewed(Denoiser):
    """A linear denoiser with an asymmetric Jacobian: no function has x - D(x) as its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self.gain * x.roll(1, -1)


def image() -> Tensor:
    return draw(torch.empty(2, 4, 5, dtype=torch.float64), torch.Generator().manual_seed(0))


def test_plug_and_play_denoises_at_its_level_whatever_the_step() -> None:
    x = image()
    prior = PlugAndPlay(Wiener(), 0.5)
    assert isinstance(prior, Proximal)
    assert not isinstance(prior, Regularizer)
    for step in (0.1, torch.tensor(3.0)):
        assert torch.equal(prior.prox(x, step), x / 1.25)


def test_plug_and_play_without_a_level_denoises_at_the_root_of_the_step() -> None:
    x = image()
    prior = PlugAndPlay(Wiener())
    torch.testing.assert_close(prior.prox(x, 0.25), x / 1.25)
    torch.testing.assert_close(prior.prox(x, torch.tensor(0.25)), x / 1.25)
    steps = torch.tensor([0.25, 1.0], dtype=torch.float64).reshape(2, 1, 1)
    torch.testing.assert_close(prior.prox(x, steps), x / (1 + steps))


def test_gradient_of_red_is_the_residual_even_where_no_function_has_it() -> None:
    x = image().requires_grad_()
    denoiser = Skewed()
    (gradient,) = torch.autograd.grad(RED(denoiser, 0.1, 3.0)(x).sum(), x)
    torch.testing.assert_close(gradient, 3.0 * (x - denoiser(x, 0.1)).detach())


def test_value_of_red_is_half_the_product_with_the_residual() -> None:
    x = image()
    want = 3.0 * (x * (x - 0.5 * x.roll(1, -1))).flatten(1).sum(1) / 2
    torch.testing.assert_close(RED(Skewed(), 0.1, 3.0)(x), want)
    assert not RED.exact


@pytest.mark.parametrize("kind", [PlugAndPlay, RED])
def test_a_tensor_of_levels_moves_with_its_prior(kind: type[RED]) -> None:
    prior = kind(Wiener(), torch.tensor([0.1, 0.2]))
    assert prior.to("meta").sigma.device.type == "meta"
    assert "sigma" in kind(Wiener(), torch.tensor(0.1)).state_dict()
    level = nn.Parameter(torch.tensor(0.1))
    assert [p is level for p in kind(Wiener(), level).parameters()] == [True]
    assert kind(Wiener(), 0.3).sigma == 0.3


def test_wrong_arguments_are_refused() -> None:
    for make in (PlugAndPlay, RED):
        with pytest.raises(TypeError, match="denoiser must be a Denoiser, got function"):
            make(lambda x, sigma: x, 0.1)
        with pytest.raises(ValueError, match=r"sigma must be > 0, got 0\.0"):
            make(Wiener(), 0.0)
