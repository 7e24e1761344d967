import pytest
import torch

from invreg.noise import Poisson
from invreg.operators import Mask, MatrixSensing, PhaseRetrieval, Stack
from invreg.problem import Problem
from invreg.random import draw
from invreg.testing import gradient_gap, relative_gap, vjp_gap


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def retrieval(dtype: torch.dtype = torch.complex128) -> PhaseRetrieval:
    return PhaseRetrieval(MatrixSensing(noise(9, 4, dtype=dtype), (2, 2)))


def test_intensities_are_real_and_do_not_see_the_phase() -> None:
    operator, x = retrieval(), noise(3, 2, 2, dtype=torch.complex128, seed=1)
    y = operator(x)
    assert y.dtype == torch.float64
    assert relative_gap(y, operator.linear(x).abs().square()) < 1e-14
    assert relative_gap(operator(x * torch.exp(torch.tensor(0.7j))), y) < 1e-7
    assert torch.equal(operator(-x), y)


def test_vjp_has_finite_differences() -> None:
    operator, x, v = retrieval(), noise(3, 2, 2, dtype=torch.complex128, seed=1), noise(3, 9, seed=2)
    gap = gradient_gap(lambda z: operator(z) * v, x, operator.vjp(x, v))
    assert gap < 1e-8


def test_vjp_of_a_real_signal_is_real_though_the_measurement_is_complex() -> None:
    real, imaginary = (MatrixSensing(noise(9, 4, seed=i), (2, 2)) for i in (0, 5))
    operator, x, v = PhaseRetrieval(real + 1j * imaginary), noise(1, 2, 2, seed=1), noise(1, 9, seed=2)
    assert operator.vjp(x, v).dtype == torch.float64
    assert vjp_gap(operator, x, v) < 1e-13


def test_vjp_can_be_differentiated_in_signal_and_weights() -> None:
    operator = retrieval()
    x, v = noise(1, 2, 2, dtype=torch.complex128).requires_grad_(), noise(1, 9).requires_grad_()
    assert torch.autograd.gradcheck(operator.vjp, (x, v))


def test_gradient_at_zero_is_zero() -> None:
    x = torch.zeros(1, 2, 2, dtype=torch.complex128, requires_grad=True)
    (gradient,) = torch.autograd.grad(retrieval()(x).sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


def test_misfit_gradient_under_poisson_noise_has_finite_differences() -> None:
    operator, x = retrieval(), noise(2, 2, 2, dtype=torch.complex128, seed=1)
    noise_model = Poisson(photons=50.0, background=1.0)
    y = noise_model.sample(operator(x), torch.Generator().manual_seed(0))
    problem = Problem(operator, y, noise_model)
    start = noise(2, 2, 2, dtype=torch.complex128, seed=3)
    assert gradient_gap(problem.misfit, start, problem.misfit_gradient(start)) < 1e-7


def test_several_masked_intensities_are_the_retrieval_of_a_stack() -> None:
    first, second = Mask(noise(2, 2) > -9, (2, 2)), MatrixSensing(noise(9, 4, dtype=torch.complex128), (2, 2))
    operator = PhaseRetrieval(Stack(first, second))
    x = noise(2, 2, 2, dtype=torch.complex128)
    assert operator(x).shape == (2, 13)


def test_unsampled_intensities_are_not_counted() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    operator = PhaseRetrieval(Mask(mask))
    y = operator(noise(2, 2, 2, dtype=torch.complex128))
    assert torch.equal(Problem(operator, y).count, torch.tensor([3, 3]))


def test_only_a_linear_operator_has_intensities() -> None:
    with pytest.raises(TypeError, match="linear must be a LinearOperator, got PhaseRetrieval"):
        PhaseRetrieval(retrieval())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"y must be \(B, 9\)"):
        retrieval().vjp(noise(1, 2, 2, dtype=torch.complex128), noise(1, 8))
