import pytest
import torch

from invreg.linalg import cg
from invreg.operators import Mask
from invreg.problem import Problem
from invreg.random import draw
from invreg.testing import relative_gap


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def test_mask_keeps_seen_entries_and_zeroes_the_rest() -> None:
    mask = torch.tensor([[True, False, True]])
    x = torch.tensor([[[1.0, 2.0, 3.0]]])
    assert torch.equal(Mask(mask)(x), torch.tensor([[[1.0, 0.0, 3.0]]]))


def test_mask_of_lines_is_the_same_for_every_coil() -> None:
    mask = noise(4, 5) > 0
    operator = Mask(mask, (3, 4, 5))
    x = noise(2, 3, 4, 5, dtype=torch.complex128)
    assert operator.measurement_shape == (3, 4, 5)
    assert torch.equal(operator(x), x * mask)
    assert torch.equal(operator.sampled(), mask)


def test_each_sample_may_have_its_own_mask() -> None:
    mask = noise(2, 4, 5) > 0
    operator = Mask(mask, (4, 5))
    x = noise(2, 4, 5)
    assert torch.equal(operator(x), x * mask)
    assert torch.equal(Problem(operator, operator(x)).count, mask.flatten(1).sum(1))


def test_what_is_not_seen_does_not_spread() -> None:
    mask = torch.tensor([True, False])
    x = torch.tensor([[1.0, float("nan")]], requires_grad=True)
    y = Mask(mask)(x)
    assert torch.equal(y, torch.tensor([[1.0, 0.0]]))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_normal_equations_are_solved_in_closed_form(dtype: torch.dtype) -> None:
    operator = Mask(noise(4, 5) > 0)
    b = noise(2, 4, 5, dtype=dtype)
    shift = torch.tensor([0.3, 2.0], dtype=torch.float64).reshape(2, 1, 1)
    x = operator.solve_normal(b, shift)
    assert relative_gap(operator.normal(x) + shift * x, b) < 1e-14
    assert relative_gap(cg(lambda v: operator.normal(v) + shift * v, b, rtol=1e-12).x, x) < 1e-11


def test_mask_is_a_copy_that_the_caller_cannot_change() -> None:
    mask = torch.tensor([True, False])
    operator = Mask(mask)
    mask[1] = True
    assert torch.equal(operator.sampled(), torch.tensor([True, False]))


def test_mask_that_sees_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="mask must see at least one entry"):
        Mask(torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="of every sample"):
        Mask(torch.tensor([[True, True], [False, False]]), (2,))


def test_mask_of_another_kind_or_shape_is_refused() -> None:
    with pytest.raises(TypeError, match=r"mask must be bool, got torch.float32; use mask != 0"):
        Mask(torch.ones(3))
    with pytest.raises(TypeError, match=r"mask must be a torch.Tensor, got list"):
        Mask([True])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mask must broadcast .* \(B, \*\(4, 5\)\), got \(5, 4\)"):
        Mask(torch.ones(5, 4, dtype=torch.bool), (4, 5))
    with pytest.raises(ValueError, match="mask must broadcast"):
        Mask(torch.ones(1, 1, 4, 5, dtype=torch.bool), (4, 5))


def test_measurement_of_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"y must be \(B, 2\)"):
        Mask(torch.tensor([True, False])).adjoint(torch.ones(1, 3))


def test_a_mask_of_each_sample_wants_as_many_samples() -> None:
    mask = Mask(torch.ones(3, 4, dtype=torch.bool), (4,))
    for batch in (1, 2):
        with pytest.raises(ValueError, match=f"x must have batch size 3, that of the mask, got {batch}"):
            mask(torch.ones(batch, 4))
