"""The operator that measures nothing: zero everywhere, with nothing sampled, and still of every faculty."""

import pytest
import torch

from invreg.interfaces import NormalSolvable
from invreg.operators import Unmeasured
from invreg.operators.spectral import Decomposable
from invreg.problem import Problem
from invreg.random import draw

F64, C128 = torch.float64, torch.complex128


@pytest.mark.parametrize("dtype", [F64, C128, torch.float32], ids=str)
def test_everything_is_zero_and_of_the_kind_of_the_signal(dtype: torch.dtype) -> None:
    operator = Unmeasured((3, 4))
    x = draw(torch.zeros(2, 3, 4, dtype=dtype), torch.Generator().manual_seed(0))
    for value in (operator(x), operator.adjoint(x), operator.normal(x)):
        assert torch.equal(value, torch.zeros_like(x))


def test_a_gradient_passes_and_is_zero() -> None:
    x = torch.ones(1, 3, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(Unmeasured((3,))(x).sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


def test_an_image_that_is_not_read_cannot_spoil_anything() -> None:
    x = torch.full((1, 3), torch.nan, dtype=F64)
    assert torch.equal(Unmeasured((3,))(x), torch.zeros_like(x))


def test_nothing_is_counted_and_the_misfit_is_zero() -> None:
    problem = Problem(Unmeasured((3, 4)), torch.zeros(2, 3, 4, dtype=C128))
    assert problem.count.tolist() == [0, 0]
    assert problem.misfit(torch.ones(2, 3, 4, dtype=C128)).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="y must be 0 where the operator samples nothing"):
        Problem(Unmeasured((3, 4)), torch.ones(2, 3, 4))


def test_the_normal_equations_and_the_prox_leave_the_image_to_the_rest() -> None:
    operator = Unmeasured((3,))
    assert isinstance(operator, NormalSolvable)
    b = torch.tensor([[2.0, 4.0, -6.0]], dtype=F64)
    assert torch.equal(operator.solve_normal(b, torch.tensor(2.0, dtype=F64)), b / 2)
    assert torch.allclose(Problem(operator, torch.zeros_like(b)).prox(b, 0.37), b, rtol=1e-14)


def test_all_singular_values_are_zero() -> None:
    operator = Unmeasured((3, 4))
    assert isinstance(operator, Decomposable)
    spectrum = operator.spectrum()
    x = draw(torch.zeros(2, 3, 4, dtype=F64), torch.Generator().manual_seed(0))
    assert not bool(spectrum.singular.any())
    assert torch.equal(spectrum.synthesise(spectrum.analyse(x)), x)
    assert not bool(spectrum.measured(torch.zeros_like(x)).any())


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="x must be"):
        Unmeasured((3, 4))(torch.zeros(1, 4, 3))
