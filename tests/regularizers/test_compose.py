"""Tests of `invreg.regularizers.compose` beyond the laws."""

import pytest
import torch
from torch import Tensor

from invreg.interfaces import Denoiser, Proximal, Regularizer, Splitting
from invreg.random import draw
from invreg.regularizers import L1, RED, NonNegative, SumOfTerms, Tikhonov, TotalVariation


class Same(Denoiser):
    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return x


class Fading(Regularizer[Tensor]):
    """An annealed weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.flatten(1).sum(1)

    def at(self, progress: float) -> Regularizer[Tensor]:
        return Fading(1 - progress)


def image() -> Tensor:
    return draw(torch.empty(2, 6, 5, dtype=torch.float64), torch.Generator().manual_seed(0)).abs()


def test_a_sum_adds_values_and_gradients() -> None:
    x = image().requires_grad_()
    parts = (TotalVariation(0.3), Tikhonov(2.0), NonNegative())
    total = SumOfTerms(*parts)
    torch.testing.assert_close(total(x), parts[0](x) + parts[1](x))
    assert (total(-x) == torch.inf).all()
    (got,) = torch.autograd.grad(total(x).sum(), x)
    (want,) = torch.autograd.grad((parts[0](x) + parts[1](x)).sum(), x)
    torch.testing.assert_close(got, want)


def test_its_terms_are_those_of_its_parts() -> None:
    x = image()
    total = SumOfTerms(TotalVariation(0.3), NonNegative(), SumOfTerms(L1(0.2), Tikhonov(1.0)))
    assert isinstance(total, Splitting)
    assert [(type(a).__name__, type(h).__name__) for a, h in total.terms] == [
        ("Gradient", "GroupL1"), ("NoneType", "NonNegative"), ("NoneType", "L1"), ("NoneType", "Tikhonov"),
    ]  # fmt: skip
    values = [h(x if a is None else a(x)) for a, h in total.terms if isinstance(h, Regularizer)]
    torch.testing.assert_close(torch.stack(values).sum(0), total(x))


def test_a_sum_has_no_prox() -> None:
    assert not isinstance(SumOfTerms(L1(), NonNegative()), Proximal)


def test_a_sum_is_exact_only_if_its_parts_are() -> None:
    assert SumOfTerms(L1(), NonNegative()).exact
    assert not SumOfTerms(L1(), RED(Same(), 1.0)).exact


def test_a_sum_is_finite_only_if_its_parts_are() -> None:
    assert SumOfTerms(L1(), Tikhonov()).finite
    assert not SumOfTerms(L1(), SumOfTerms(L1(), NonNegative())).finite


def test_a_sum_has_no_weight_of_its_own() -> None:
    with pytest.raises(AttributeError, match="weight"):
        _ = SumOfTerms(L1(), Tikhonov()).weight


def test_annealing_reaches_the_parts() -> None:
    x = image()
    total = SumOfTerms(Fading(), L1(0.0))
    torch.testing.assert_close(total.at(0.25)(x), 0.75 * x.flatten(1).sum(1))
    still = SumOfTerms(L1(), NonNegative())
    assert still.at(0.5) is still


def test_parameters_of_parts_are_its_own() -> None:
    weight = torch.nn.Parameter(torch.tensor(0.5))
    assert dict(SumOfTerms(L1(weight), NonNegative()).named_parameters())["parts.0.weight"] is weight


def test_wrong_parts_are_refused() -> None:
    with pytest.raises(TypeError, match="parts must be Regularizers, got int"):
        SumOfTerms(L1(), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="parts must be two or more, got 1"):
        SumOfTerms(L1())
    with pytest.raises(TypeError, match="RED has neither terms nor prox"):
        _ = SumOfTerms(L1(), RED(Same(), 1.0)).terms
