import pytest
import torch

from invreg.linalg import lsqr
from invreg.operators import Blur, Fourier, Mask, MatrixSensing, PhaseRetrieval, Stack
from invreg.problem import Problem
from invreg.random import draw
from invreg.testing import adjoint_gap, normal_gap, relative_gap


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def pair(dtype: torch.dtype = torch.float64) -> tuple[Blur, MatrixSensing]:
    return Blur(noise(2, 3, dtype=dtype), (4, 5)), MatrixSensing(noise(7, 20, dtype=dtype), (4, 5))


def test_measurements_lie_one_after_the_other_and_split_gives_them_back() -> None:
    first, second = pair()
    stack, x = Stack(first, second), noise(3, 4, 5)
    y = stack(x)
    assert y.shape == (3, 27)
    one, two = stack.split(y)
    assert torch.equal(one, first(x))
    assert torch.equal(two, second(x))
    assert torch.equal(stack.join((one, two)), y)


def test_adjoint_and_normal_are_the_sums_over_the_parts() -> None:
    first, second = pair()
    stack, x = Stack(first, second), noise(3, 4, 5)
    assert relative_gap(stack.normal(x), first.normal(x) + second.normal(x)) < 1e-14
    assert normal_gap(stack, x) < 1e-13


def test_a_real_part_beside_a_complex_one_becomes_complex() -> None:
    real = MatrixSensing(noise(7, 20), (4, 5))
    stack = Stack(real, (1 + 2j) * real)
    x = noise(2, 4, 5)
    y = stack(x)
    assert y.dtype == torch.complex128
    assert adjoint_gap(stack, x, noise(2, 14, dtype=torch.complex128, seed=2)) < 1e-12
    (gradient,) = torch.autograd.grad(stack(x.requires_grad_()), x, y)
    assert relative_gap(gradient, stack.adjoint(y).real) < 1e-12


def test_children_are_registered_so_that_state_and_precision_follow() -> None:
    stack = Stack(*pair(torch.float32))
    assert {name.split(".")[1] for name in stack.state_dict()} == {"0", "1"}
    assert stack.to(torch.float64)(noise(1, 4, 5)).dtype == torch.float64
    assert {b.dtype for b in stack.buffers()} == {torch.float64, torch.complex128}
    other = Stack(Blur(noise(2, 3, seed=8), (4, 5)), MatrixSensing(noise(7, 20, seed=9), (4, 5)))
    other.load_state_dict(stack.state_dict())
    assert torch.equal(other(noise(1, 4, 5)), stack(noise(1, 4, 5)))


def test_only_entries_that_some_part_samples_are_counted() -> None:
    mask = torch.tensor([[True, False, True]])
    stack = Stack(Mask(mask), MatrixSensing(noise(4, 3), (1, 3)), Mask(torch.ones(2, 1, 3, dtype=torch.bool), (1, 3)))
    sampled = stack.sampled()
    assert sampled is not None
    assert sampled.shape == (2, 10)
    assert sampled[0].tolist() == [True, False, True] + 7 * [True]
    problem = Problem(stack, stack(noise(2, 1, 3)))
    assert problem.count.tolist() == [9, 9]
    assert Stack(*pair()).sampled() is None


def test_a_stack_of_halves_solves_what_neither_half_can() -> None:
    matrix, x = noise(20, 20), noise(2, 20, seed=1)
    stack = Stack(MatrixSensing(matrix[:9]), MatrixSensing(matrix[9:]))
    assert relative_gap(lsqr(stack, stack(x), rtol=1e-14, iterations=400).x, x) < 1e-6


def test_wrong_parts_are_refused() -> None:
    first, second = pair()
    with pytest.raises(ValueError, match="operators must be at least one, got none"):
        Stack()
    with pytest.raises(TypeError, match=r"operators\[1\] must be a LinearOperator, got PhaseRetrieval"):
        Stack(first, PhaseRetrieval(second))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"operators\[0\] must have a measurement_shape, got Fourier that fits any"):
        Stack(Fourier())
    with pytest.raises(ValueError, match=r"operators must share one signal shape, got \(4, 5\) and \(20,\)"):
        Stack(first, MatrixSensing(noise(7, 20)))
    with pytest.raises(ValueError, match="parts must be 2, one for each operator, got 1"):
        Stack(first, second).join([noise(1, 4, 5)])
    with pytest.raises(ValueError, match=r"y must be \(B, 7\)"):
        Stack(first, second).join([noise(1, 4, 5), noise(1, 8)])
    with pytest.raises(ValueError, match=r"y must be \(B, 27\)"):
        Stack(first, second).split(noise(1, 26))
