import pytest
import torch

from invreg.lanczos import operator_norm
from invreg.linalg import cg, solve_normal
from invreg.operators import Blur, Downsample
from invreg.random import draw
from invreg.testing import adjoint_gap, relative_gap


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 6])
def test_without_a_kernel_each_entry_is_the_mean_of_its_block(factor: int) -> None:
    x = noise(2, 12, 24)
    want = torch.nn.functional.avg_pool2d(x, factor)
    assert relative_gap(Downsample((12, 24), factor).double()(x), want) < 1e-6  # the kernel was made in float32


def test_factor_of_each_axis_leaves_the_axes_in_front_alone() -> None:
    x = noise(2, 3, 6, 8)
    operator = Downsample((3, 6, 8), (2, 4)).double()
    assert operator.measurement_shape == (3, 3, 2)
    assert relative_gap(operator(x), torch.nn.functional.avg_pool2d(x, (2, 4))) < 1e-6


def test_one_factor_with_a_kernel_means_the_axes_of_the_kernel() -> None:
    x, kernel = noise(2, 3, 6, 8), noise(3, 3, seed=1)
    operator = Downsample((3, 6, 8), 2, kernel)
    assert operator.measurement_shape == (3, 3, 4)
    assert relative_gap(operator(x), Blur(kernel, (3, 6, 8))(x)[..., 1::2, 1::2]) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("factor", [(2, 3), (1, 4), (3, 1)])
def test_normal_equations_are_solved_in_closed_form(factor: tuple[int, int], dtype: torch.dtype) -> None:
    operator = Downsample((2, 6, 12), factor, noise(3, 4, seed=1))
    b = noise(2, 2, 6, 12, dtype=dtype)
    shift = torch.tensor([0.1, 3.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    x = solve_normal(operator, b, shift).x
    assert x.dtype == dtype
    assert relative_gap(operator.normal(x) + shift * x, b) < 1e-12
    by_cg = cg(lambda v: operator.normal(v) + shift * v, b, rtol=1e-12, iterations=500).x
    assert relative_gap(by_cg, x) < 1e-9


def test_volumes_are_coarsened_along_three_axes() -> None:
    operator = Downsample((4, 6, 8), 2, noise(2, 3, 3))
    assert operator.measurement_shape == (2, 3, 4)
    x, y = noise(1, 4, 6, 8, seed=1), noise(1, 2, 3, 4, seed=2)
    assert adjoint_gap(operator, x, y) < 1e-12


def test_norm_is_the_root_of_the_largest_aliased_power() -> None:
    operator = Downsample((8, 8), 2, noise(3, 3))
    dense = operator(torch.eye(64, dtype=torch.float64).reshape(64, 8, 8)).reshape(64, 16)
    want = float(torch.linalg.matrix_norm(dense, 2))
    assert float(operator._aliased_power().max().sqrt()) == pytest.approx(want, rel=1e-12)
    assert float(operator_norm(operator, noise(1, 8, 8))) == pytest.approx(want, rel=1e-2)


def test_gradient_reaches_kernel_and_measurement() -> None:
    y = noise(1, 3, 2, seed=1).requires_grad_()
    kernel = noise(2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda k, v: Downsample((6, 4), 2, k).adjoint(v), (kernel, y))


def test_wrong_factors_and_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"factor must divide the last axes of the signal \(6, 8\), got \(4, 4\)"):
        Downsample((6, 8), 4)
    with pytest.raises(ValueError, match="factor must divide"):
        Downsample((8,), (2, 2))
    with pytest.raises(ValueError, match="factor must be >= 1, got 0"):
        Downsample((6, 8), 0)
    with pytest.raises(TypeError, match="factor must be an int, got float"):
        Downsample((6, 8), 2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kernel must have one axis for each of 1 factors"):
        Downsample((6, 8), (2,), torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"y must be \(B, 3, 4\)"):
        Downsample((6, 8), 2).adjoint(torch.ones(1, 6, 8))
    with pytest.raises(TypeError, match="x is torch.float64 but kernel is torch.float32"):
        Downsample((6, 8), 2)(torch.ones(1, 6, 8, dtype=torch.float64))
