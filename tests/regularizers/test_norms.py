"""Tests of `invreg.regularizers.norms` beyond the laws."""

import warnings

import pytest
import torch

from invreg.operators import Gradient, Wavelet
from invreg.random import draw
from invreg.regularizers import L1, Box, GroupL1, NonNegative, Tikhonov


def signal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def test_prox_of_l1_shrinks_towards_zero() -> None:
    x = torch.tensor([[3.0, -3.0, 0.5, -0.5, 1.0]])
    assert L1(2.0).prox(x, 0.5).tolist() == [[2.0, -2.0, 0.0, 0.0, 0.0]]


def test_prox_of_l1_keeps_the_phase() -> None:
    x = torch.tensor([[3 + 4j, 0.3 + 0.4j, 0j]], dtype=torch.complex128)
    torch.testing.assert_close(L1().prox(x, 1.0), torch.tensor([[2.4 + 3.2j, 0j, 0j]], dtype=torch.complex128))


def test_group_l1_of_one_entry_groups_is_l1() -> None:
    x = signal(2, 1, 5, dtype=torch.complex128)
    torch.testing.assert_close(GroupL1(0.3)(x), L1(0.3)(x))
    torch.testing.assert_close(GroupL1(0.3).prox(x, 2.0), L1(0.3).prox(x, 2.0))


def test_prox_of_group_l1_shortens_each_vector() -> None:
    x = torch.tensor([[[3.0, 0.1], [4.0, 0.1]]])
    torch.testing.assert_close(GroupL1(axis=1).prox(x, 1.0), torch.tensor([[[2.4, 0.0], [3.2, 0.0]]]))


def test_tikhonov_is_half_the_weighted_square() -> None:
    assert Tikhonov(3.0)(torch.tensor([[1.0, 2.0]])).tolist() == [7.5]
    assert Tikhonov(3.0).prox(torch.tensor([[1.0, 2.0]]), 1.0).tolist() == [[0.25, 0.5]]
    assert Tikhonov(3.0, Gradient(1))(torch.tensor([[1.0, 2.0]])).tolist() == [1.5]


@pytest.mark.parametrize("operator", [Gradient(), Wavelet((5, 4), "haar", 1)])
def test_prox_of_tikhonov_solves_the_dense_system(operator: Gradient | Wavelet) -> None:
    x = signal(1, 5, 4)
    unit = torch.eye(20, dtype=torch.float64).reshape(20, 5, 4)
    matrix = operator(unit).flatten(1).T
    dense = torch.eye(20, dtype=torch.float64) + 0.6 * matrix.T @ matrix
    got = Tikhonov(2.0, operator, rtol=1e-12).prox(x, 0.3)
    torch.testing.assert_close(got.flatten(), torch.linalg.solve(dense, x.flatten()))


def test_prox_of_tikhonov_warns_when_its_iterations_end_before_its_accuracy() -> None:
    x = signal(1, 40)
    with pytest.warns(UserWarning, match=r"Tikhonov.prox reached accuracy .* > rtol = 1e-06 in 7 iterations"):
        Tikhonov(1e3, Gradient(1), iterations=7).prox(x, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for weight in (1.0, 1e6):
            for x in (signal(1, 24, 20), signal(1, 24, 20, dtype=torch.float32)):
                Tikhonov(weight, Gradient()).prox(x, 1.0)
        Tikhonov(1e3, Gradient(1), rtol=0.0, iterations=7).prox(signal(1, 40), 1.0)


def test_tikhonov_splits_into_its_operator_and_a_square() -> None:
    x = signal(2, 5, 4)
    regularizer = Tikhonov(2.0, Gradient())
    ((operator, square),) = regularizer.terms
    assert operator is not None
    torch.testing.assert_close(square(operator(x)), regularizer(x))


def test_box_is_zero_inside_and_infinite_outside() -> None:
    x = torch.tensor([[0.0, 1.0], [0.5, 1.5]])
    assert Box(0.0, 1.0)(x).tolist() == [0.0, torch.inf]
    assert Box(0.0, 1.0).prox(torch.tensor([[-1.0, 2.0]]), 5.0).tolist() == [[0.0, 1.0]]
    assert Box(upper=1.0).prox(torch.tensor([[-1.0, 2.0]]), 5.0).tolist() == [[-1.0, 1.0]]
    assert NonNegative()(torch.tensor([[0.0, 1.0], [-1e-9, 1.0]])).tolist() == [0.0, torch.inf]
    assert NonNegative()(torch.tensor([[torch.nan, 1.0]])).isnan().all()


def test_bounds_of_a_box_can_be_images() -> None:
    box = Box(torch.tensor([0.0, 1.0]), 2.0)
    assert box.prox(torch.tensor([[-1.0, 0.0], [3.0, 1.5]]), 1.0).tolist() == [[0.0, 1.0], [2.0, 1.5]]
    assert [name for name, _ in box.named_buffers()] == ["lower"]
    with pytest.raises(TypeError, match="lower is torch.float32 but x is torch.float64"):
        box.prox(torch.zeros(1, 2, dtype=torch.float64), 1.0)


def test_gradient_of_a_box_is_zero() -> None:
    x = torch.tensor([[0.5, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(Box(0.0, 1.0)(x).sum(), x)
    assert (gradient == 0).all()


def test_weights_must_be_numbers_or_single_tensors() -> None:
    with pytest.raises(ValueError, match="weight must be finite and >= 0, got -1"):
        L1(-1.0)
    with pytest.raises(ValueError, match="weight must be a real 0-d tensor"):
        L1(torch.ones(2))


@pytest.mark.parametrize("axis", [0, (), (1, 1), (0, 1)])
def test_group_axes_are_different_and_not_the_batch(axis: int | tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="axis must name different axes, and not 0"):
        GroupL1(1.0, axis)


@pytest.mark.parametrize("axis", [2, -2, -3])
def test_group_axes_outside_the_signal_are_refused(axis: int) -> None:
    with pytest.raises(ValueError, match=r"must lie within \(B, \.\.\.\) behind the batch"):
        GroupL1(1.0, axis)(torch.ones(2, 3))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="operator must be a LinearOperator or None, got int"):
        Tikhonov(1.0, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rtol must be finite and >= 0"):
        Tikhonov(1.0, rtol=-1.0)
    with pytest.raises(ValueError, match="lower or upper must be given"):
        Box()
    with pytest.raises(ValueError, match="lower must be <= upper, got 1.0 and 0.0"):
        Box(1.0, 0.0)
    for constraint in (Box(0.0), NonNegative()):
        with pytest.raises(TypeError, match="needs a real x, got torch.complex64"):
            constraint(torch.zeros(1, 2, dtype=torch.complex64))
