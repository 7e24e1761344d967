import math

import pytest
import torch
from scipy import ndimage, signal

from invreg.lanczos import operator_norm
from invreg.linalg import cg, solve_normal
from invreg.operators import Blur, ValidBlur, gaussian_kernel, motion_kernel
from invreg.random import draw
from invreg.testing import relative_gap


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3,), (5,), (3, 5), (3, 1, 5)])
def test_circular_blur_with_an_odd_kernel_is_scipys_wrapped_convolution(shape: tuple[int, ...]) -> None:
    kernel = noise(*shape)
    grid = (7, 8, 6)[: len(shape)]
    x = noise(2, *grid, seed=1)
    want = torch.stack([torch.from_numpy(ndimage.convolve(one.numpy(), kernel.numpy(), mode="wrap")) for one in x])
    assert relative_gap(Blur(kernel, grid)(x), want) < 1e-13


def test_circular_blur_with_an_even_kernel_has_its_centre_before_the_middle() -> None:
    x = torch.zeros(1, 6, dtype=torch.float64)
    x[0, 2] = 1
    kernel = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)  # centre at index (4 - 1) // 2 = 1
    want = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 0.0]], dtype=torch.float64)
    assert relative_gap(Blur(kernel, (6,))(x), want) < 1e-14


@pytest.mark.parametrize("size", [(3, 5), (2, 4), (1, 1), (6, 7)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_valid_blur_is_scipys_valid_convolution(size: tuple[int, int], dtype: torch.dtype) -> None:
    kernel, x = noise(*size), noise(2, 6, 7, dtype=dtype, seed=1)
    want = torch.stack([torch.from_numpy(signal.convolve(one.numpy(), kernel.numpy(), "valid")) for one in x])
    got = ValidBlur(kernel, (6, 7))(x)
    assert relative_gap(got, want) < 1e-13
    assert got.dtype == dtype


def test_adjoint_of_valid_blur_is_the_full_correlation() -> None:
    kernel, y = noise(3, 4, dtype=torch.complex128), noise(1, 4, 4, dtype=torch.complex128, seed=1)
    want = torch.from_numpy(signal.correlate(y[0].numpy(), kernel.numpy(), "full"))
    assert relative_gap(ValidBlur(kernel, (6, 7)).adjoint(y)[0], want) < 1e-13


def test_valid_blur_of_a_volume_is_scipys() -> None:
    kernel, x = noise(2, 3, 2), noise(1, 4, 5, 6, seed=1)
    want = torch.from_numpy(signal.convolve(x[0].numpy(), kernel.numpy(), "valid"))
    assert relative_gap(ValidBlur(kernel, (4, 5, 6))(x)[0], want) < 1e-13


@pytest.mark.parametrize("kind", [Blur, ValidBlur])
def test_axes_in_front_are_blurred_each_by_itself(kind: type[Blur] | type[ValidBlur]) -> None:
    kernel, x = noise(3, 2), noise(2, 4, 6, 5, seed=1)
    together = kind(kernel, (4, 6, 5))(x)
    for c in range(4):
        assert relative_gap(together[:, c], kind(kernel, (6, 5))(x[:, c])) < 1e-13


@pytest.mark.parametrize("kind", [Blur, ValidBlur])
def test_each_sample_may_have_its_own_kernel(kind: type[Blur] | type[ValidBlur]) -> None:
    kernels, x = noise(2, 3, 2), noise(2, 4, 6, 5, seed=1)
    operator = kind(kernels, (4, 6, 5), per_sample=True)
    together, back = operator(x), operator.adjoint(operator(x))
    for i in range(2):
        alone = kind(kernels[i], (4, 6, 5))
        assert relative_gap(together[i : i + 1], alone(x[i : i + 1])) < 1e-13
        assert relative_gap(back[i : i + 1], alone.normal(x[i : i + 1])) < 1e-13


def test_real_kernel_blurs_real_and_imaginary_part_alike() -> None:
    operator, x = Blur(noise(3, 4), (6, 7)), noise(1, 6, 7, dtype=torch.complex128, seed=1)
    assert relative_gap(operator(x), torch.complex(operator(x.real), operator(x.imag))) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_normal_equations_are_solved_in_closed_form(dtype: torch.dtype) -> None:
    operator = Blur(noise(2, 3, 2), (4, 6, 5), per_sample=True)
    b = noise(2, 4, 6, 5, dtype=dtype, seed=1)
    shift = torch.tensor([0.1, 3.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    x = solve_normal(operator, b, shift).x
    assert relative_gap(operator.normal(x) + shift * x, b) < 1e-12
    by_cg = cg(lambda v: operator.normal(v) + shift * v, b, rtol=1e-12, iterations=500).x
    assert relative_gap(by_cg, x) < 1e-9


def test_gradient_reaches_the_kernel() -> None:
    x = noise(1, 5, 6, seed=1)

    def blurred(kernel: torch.Tensor) -> torch.Tensor:
        operator = Blur(kernel, (5, 6))
        return operator(x) + operator.adjoint(x) + operator.solve_normal(x, torch.tensor(0.5, dtype=torch.float64))

    assert torch.autograd.gradcheck(blurred, noise(2, 3).requires_grad_())
    assert torch.autograd.gradcheck(lambda k: ValidBlur(k, (5, 6))(x), noise(2, 3).requires_grad_())


def test_gaussian_blur_has_norm_one_and_keeps_constants() -> None:
    operator = Blur(gaussian_kernel(1.2, dtype=torch.float64), (16, 17))
    one = torch.ones(1, 16, 17, dtype=torch.float64)
    assert relative_gap(operator(one), one) < 1e-12
    assert float(operator_norm(operator, one)) == pytest.approx(1, rel=1e-2)


def test_gaussian_kernel_has_the_asked_deviation_in_millimetres() -> None:
    kernel = gaussian_kernel((3.0, 1.5), spacing=(1.0, 0.5), truncate=6.0, dtype=torch.float64)
    assert kernel.shape == (37, 37)
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-12)
    position = torch.arange(-18, 19, dtype=torch.float64)
    for axis, (sigma, pixel) in enumerate([(3.0, 1.0), (1.5, 0.5)]):
        variance = (kernel.sum(1 - axis) * (position * pixel).square()).sum()
        assert float(variance) == pytest.approx(sigma**2, rel=1e-6)


def test_gaussian_kernel_may_have_three_axes() -> None:
    assert gaussian_kernel(0.5, dim=3).shape == (5, 5, 5)
    assert gaussian_kernel(0.5, dim=3).dtype == torch.float32


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 4, math.pi / 2, 2.0, math.pi, -1.1])
@pytest.mark.parametrize("length", [0.4, 1.0, 3.0, 7.3])
def test_motion_kernel_has_the_moments_of_its_segment(length: float, angle: float) -> None:
    kernel = motion_kernel(length, angle, dtype=torch.float64)
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(kernel, kernel.flip(0, 1), atol=1e-12)  # symmetric about the centre
    half = kernel.shape[0] // 2
    index = torch.arange(-half, half + 1, dtype=torch.float64)
    along_x, along_y = kernel.sum(0), kernel.sum(1)
    if length >= 3:  # a pixel's own width adds at most 1/4 to a second moment
        for marginal, speed in ((along_x, math.cos(angle)), (along_y, math.sin(angle))):
            assert float((marginal * index.square()).sum()) == pytest.approx((length * speed) ** 2 / 12, abs=0.25)


def test_motion_kernel_along_a_row_is_a_row() -> None:
    want = torch.zeros(5, 5, dtype=torch.float64)
    want[2] = torch.tensor([0.125, 0.25, 0.25, 0.25, 0.125], dtype=torch.float64)
    assert torch.allclose(motion_kernel(4.0, 0.0, dtype=torch.float64), want, atol=1e-12)
    assert torch.allclose(motion_kernel(2.0, math.pi / 2, spacing=0.5, dtype=torch.float64), want.T, atol=1e-12)


def test_motion_kernel_turns_from_x_down_the_rows() -> None:
    kernel = motion_kernel(3 * math.sqrt(2), math.pi / 4, dtype=torch.float64)
    assert torch.allclose(kernel, torch.eye(3, dtype=torch.float64) / 3, atol=1e-12)


def test_motion_shorter_than_a_pixel_does_not_blur() -> None:
    assert torch.equal(motion_kernel(0.5, 1.0), torch.ones(1, 1))


@pytest.mark.parametrize("kind", [Blur, ValidBlur])
def test_wrong_kernels_are_refused(kind: type[Blur] | type[ValidBlur]) -> None:
    with pytest.raises(ValueError, match=r"kernel must be no larger than the image \(4, 5\), got \(5, 5\); crop it"):
        kind(torch.ones(5, 5), (4, 5))
    with pytest.raises(ValueError, match=r"kernel must have 1 to 2 axes .* got \(3, 3, 3\)"):
        kind(torch.ones(3, 3, 3), (4, 5))
    with pytest.raises(ValueError, match="behind the batch axis"):
        kind(torch.ones(3), (4, 5), per_sample=True)
    with pytest.raises(ValueError, match="kernel must be finite"):
        kind(torch.full((2, 2), float("nan")), (4, 5))
    with pytest.raises(TypeError, match="kernel must be floating point or complex, got torch.int64"):
        kind(torch.ones(2, 2, dtype=torch.int64), (4, 5))


@pytest.mark.parametrize("kind", [Blur, ValidBlur])
def test_mixed_precision_is_refused(kind: type[Blur] | type[ValidBlur]) -> None:
    operator = kind(torch.ones(2, 2), (4, 5))
    with pytest.raises(TypeError, match=r"x is torch.float64 but kernel is torch.float32"):
        operator(torch.ones(1, 4, 5, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"y is torch.complex128 but kernel is torch.float32"):
        operator.adjoint(torch.ones(1, *operator.measurement_shape or (), dtype=torch.complex128))
    with pytest.raises(TypeError, match=r"x is torch.float32 but kernel is torch.complex64"):
        kind(torch.ones(2, 2, dtype=torch.complex64), (4, 5))(torch.ones(1, 4, 5))


def test_wrong_kernel_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="sigma must be finite and > 0, got 0"):
        gaussian_kernel(0.0)
    with pytest.raises(ValueError, match="sigma must be one number or one for each of 2 axes, got 3"):
        gaussian_kernel((1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="spacing must be finite and > 0"):
        gaussian_kernel(1.0, spacing=-1.0)
    with pytest.raises(ValueError, match="length must be finite and > 0"):
        motion_kernel(0.0, 0.0)


@pytest.mark.parametrize("kind", [Blur, ValidBlur])
def test_a_kernel_of_each_sample_wants_as_many_samples(kind: type[Blur | ValidBlur]) -> None:
    operator = kind(torch.ones(3, 2, 2), (4, 4), per_sample=True)
    for batch in (1, 2):
        with pytest.raises(ValueError, match=f"x must have batch size 3, that of the kernel, got {batch}"):
            operator(torch.ones(batch, 4, 4))
