import math

import pytest
import torch
from torch import Tensor

from invreg.interfaces import NormalSolvable
from invreg.linalg import solve_normal
from invreg.operators import Fourier, MaskedFourier, centred_fft, centred_ifft
from invreg.operators.fourier import sampling_mask, shift_phases, varying_axes
from invreg.problem import Problem
from invreg.random import draw
from invreg.testing import adjoint_gap, normal_gap, relative_gap, vjp_gap


def signal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def some_mask(*shape: int, seed: int = 5) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def dft_matrix(n: int) -> Tensor:
    place = torch.arange(n, dtype=torch.float64) - n // 2
    return torch.polar(torch.ones(n, n, dtype=torch.float64), -2 * math.pi / n * place[:, None] * place) / math.sqrt(n)


@pytest.mark.parametrize("shape", [(6, 7), (5, 8), (4, 4), (1, 3)])
def test_transform_is_the_centred_dft_for_odd_and_even_sizes(shape: tuple[int, int]) -> None:
    x = signal(2, *shape)
    want = torch.einsum("ky,byx,lx->bkl", dft_matrix(shape[0]), x, dft_matrix(shape[1]))
    assert relative_gap(centred_fft(x), want) <= 1e-14
    assert relative_gap(centred_ifft(want), x) <= 1e-14


def test_three_axes_are_three_one_dimensional_transforms() -> None:
    x = signal(2, 3, 4, 5)
    want = torch.einsum("kz,ly,mx,bzyx->bklm", dft_matrix(3), dft_matrix(4), dft_matrix(5), x)
    assert relative_gap(Fourier(3)(x), want) <= 1e-14


def test_delta_at_the_centre_becomes_constant_and_back() -> None:
    x = torch.zeros(1, 6, 5, dtype=torch.complex128)
    x[0, 3, 2] = 1
    assert torch.allclose(Fourier()(x), torch.full_like(x, 30**-0.5))
    assert relative_gap(Fourier().adjoint(torch.full_like(x, 30**-0.5)), x) <= 1e-14


def test_gaussian_keeps_its_closed_form_spectrum() -> None:
    n, width = 64, 4.0
    place = torch.arange(n, dtype=torch.float64) - n // 2
    line = torch.exp(-place.square() / (2 * width**2))
    spread = n / (2 * math.pi * width)
    want = width * math.sqrt(2 * math.pi / n) * torch.exp(-place.square() / (2 * spread**2))
    image, spectrum = line[:, None] * line, want[:, None] * want
    assert (centred_fft(image[None])[0] - spectrum).abs().max() <= 1e-12


def test_axes_in_front_are_left_alone() -> None:
    x = signal(2, 3, 6, 5)
    together = Fourier()(x)
    assert all(torch.equal(together[:, c], Fourier()(x[:, c])) for c in range(3))


def test_energy_is_kept_and_normal_is_the_identity() -> None:
    x = signal(2, 6, 5)
    assert float(Fourier()(x).norm()) == pytest.approx(float(x.norm()), rel=1e-14)
    got = Fourier().normal(x)
    assert torch.equal(got, x) and got.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("shape", [(6,), (7, 4), (3, 5, 6), (10, 14), (1, 2)])
def test_phases_replace_both_shifts(shape: tuple[int, ...]) -> None:
    x = signal(2, *shape)
    phase = shift_phases(shape, torch.complex128, x.device)
    axes = tuple(range(-len(shape), 0))
    got = phase * torch.fft.fftn(phase * x, dim=axes, norm="ortho")
    assert relative_gap(got, centred_fft(x, len(shape))) <= 1e-14


def test_masked_transform_is_zero_where_nothing_is_sampled() -> None:
    mask, x = some_mask(6, 5), signal(2, 6, 5)
    operator = MaskedFourier(mask)
    y = operator(x)
    assert torch.equal(y, centred_fft(x) * mask)
    assert operator.sampled() is not None and torch.equal(operator.sampled().expand(y.shape), mask.expand(y.shape))
    assert Problem(operator, y).count.tolist() == [2 * int(mask.sum())] * 2


@pytest.mark.parametrize("mask", [some_mask(7, 6), some_mask(7, 1), some_mask(1, 6), torch.ones(7, 6) > 0])
def test_normal_of_every_kind_of_mask_is_adjoint_after_forward(mask: Tensor) -> None:
    operator = MaskedFourier(mask, shape=(7, 6))
    assert normal_gap(operator, signal(2, 7, 6)) <= 1e-14


@pytest.mark.parametrize("shift", [torch.tensor(0.3), torch.tensor([0.1, 2.0])[:, None, None]])
@pytest.mark.parametrize("mask", [some_mask(7, 6), some_mask(7, 1), torch.ones(7, 6) > 0, some_mask(2, 7, 6)])
def test_solve_normal_is_exact(mask: Tensor, shift: Tensor) -> None:
    operator, shift = MaskedFourier(mask, shape=(7, 6)), shift.double()
    b = signal(2, 7, 6)
    assert isinstance(operator, NormalSolvable)
    x = solve_normal(operator, b, shift).x
    assert relative_gap(operator.normal(x) + shift * x, b) <= 1e-14
    x = Fourier().solve_normal(b, shift)
    assert relative_gap(Fourier().normal(x) + shift * x, b) <= 1e-14


def test_masks_may_differ_by_sample() -> None:
    mask, x = some_mask(2, 6, 5), signal(2, 6, 5)
    operator = MaskedFourier(mask)
    assert torch.equal(operator(x), centred_fft(x) * mask)
    assert adjoint_gap(operator, x, signal(2, 6, 5, seed=1)) <= 1e-14
    assert normal_gap(operator, x) <= 1e-14
    assert vjp_gap(operator, x, signal(2, 6, 5, seed=1)) <= 1e-14
    with pytest.raises(ValueError, match="x must have batch size 2, that of the mask, got 3"):
        operator(signal(3, 6, 5))


def test_masks_shrink_along_axes_where_they_are_constant() -> None:
    lines = some_mask(6, 1).expand(6, 5)
    shrunk = sampling_mask(lines, (6, 5), ("B", "1"))
    assert shrunk.shape == (1, 1, 6, 1)
    assert torch.equal(shrunk.expand(1, 1, 6, 5)[0, 0], lines)
    assert varying_axes(shrunk, 2) == (-2,)
    assert sampling_mask(torch.ones(3, 1, 6, 5) > 0, (6, 5), ("B", "1")).shape == (1, 1, 1, 1)
    assert sampling_mask(some_mask(3, 1, 6, 5), (6, 5), ("B", "1")).shape == (3, 1, 6, 5)


def test_callers_mask_is_not_shared() -> None:
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[0] = False
    operator = MaskedFourier(mask)
    mask[:] = False
    assert bool(operator.mask.any())


def test_real_signals_are_refused_with_advice() -> None:
    for operator in (Fourier(), MaskedFourier(some_mask(6, 5))):
        with pytest.raises(TypeError, match=r"x must be complex, got torch.float32; use x.to\(torch.complex64\)"):
            operator(torch.ones(1, 6, 5))
        with pytest.raises(TypeError, match=r"y must be complex, got torch.float64; use y.to\(torch.complex128\)"):
            operator.adjoint(torch.ones(1, 6, 5, dtype=torch.float64))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="dim must be 1, 2 or 3"):
        Fourier(4)
    with pytest.raises(ValueError, match=r"x must be \(B, ..., 2 transformed axes\), got \(6, 5\); add a batch axis"):
        Fourier()(signal(6, 5))
    with pytest.raises(TypeError, match=r"mask must be bool, got torch\.float32; use mask != 0"):
        MaskedFourier(torch.ones(6, 5))
    with pytest.raises(ValueError, match="mask samples nothing in at least one item"):
        MaskedFourier(torch.zeros(6, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be \(6, 5\) or \(B, 6, 5\), got \(6, 4\)"):
        MaskedFourier(some_mask(6, 4), shape=(6, 5))
    with pytest.raises(ValueError, match="mask and shape must have 3 spatial axes"):
        MaskedFourier(some_mask(6, 5), dim=3)
    with pytest.raises(TypeError, match=r"mask must be a torch.Tensor"):
        MaskedFourier([[True]])  # type: ignore[arg-type]
