"""Singular value decompositions, held against the dense matrix of their operator."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invreg.interfaces import LinearOperator
from invreg.operators import (
    Blur,
    DenseSpectrum,
    Downsample,
    Mask,
    MaskedFourier,
    MatrixSensing,
    ParallelBeam,
    Sense,
    Unmeasured,
    spectrum_of,
)
from invreg.operators.spectral import Spectrum
from invreg.random import draw
from invreg.testing import relative_gap

F64, C128 = torch.float64, torch.complex128
BATCH = 2


def noise(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def low_rank() -> Tensor:
    return noise(6, 2, seed=1) @ noise(2, 12, seed=2)


Make = Callable[[], LinearOperator]
# name -> operator, kind of the signal
ROWS: dict[str, tuple[Make, torch.dtype]] = {
    "mask": (lambda: Mask(noise(5, 4) > 0), F64),
    "mask, complex": (lambda: Mask(noise(5, 4) > 0), C128),
    "mask, per sample": (lambda: Mask(noise(BATCH, 5, 4) > 0, (5, 4)), F64),
    "mask, channels alike": (lambda: Mask(noise(5, 4) > 0, (2, 5, 4)), F64),
    "mask, line": (lambda: Mask(noise(7) > 0), F64),
    "fourier, even": (lambda: MaskedFourier(noise(4, 6) > 0), C128),
    "fourier, odd": (lambda: MaskedFourier(noise(5, 7) > 0), C128),
    "fourier, lines": (lambda: MaskedFourier(noise(1, 6) > 0, shape=(5, 6)), C128),
    "fourier, per sample": (lambda: MaskedFourier(noise(BATCH, 5, 4) > 0), C128),
    "fourier, 3D": (lambda: MaskedFourier(noise(3, 4, 3) > 0, 3), C128),
    "fourier, 1D": (lambda: MaskedFourier(noise(7) > 0, 1), C128),
    "blur, even": (lambda: Blur(noise(2, 4), (4, 6)), F64),
    "blur, odd": (lambda: Blur(noise(3, 3), (5, 7)), F64),
    "blur, complex signal": (lambda: Blur(noise(3, 2), (5, 4)), C128),
    "blur, complex kernel": (lambda: Blur(noise(3, 2, dtype=C128), (5, 4)), C128),
    "blur, per sample": (lambda: Blur(noise(BATCH, 3, 2), (5, 4), per_sample=True), F64),
    "blur, channels": (lambda: Blur(noise(3), (3, 6)), F64),
    "blur with zeros in its transfer": (lambda: Blur(torch.full((4,), 0.25, dtype=F64), (8,)), F64),
    "matrix, wide": (lambda: MatrixSensing(noise(5, 12), (3, 4)), F64),
    "matrix, tall": (lambda: MatrixSensing(noise(15, 12), (3, 4)), F64),
    "matrix, wide and of low rank": (lambda: MatrixSensing(low_rank(), (3, 4)), F64),
    "matrix, tall and of low rank": (lambda: MatrixSensing(low_rank().mT.contiguous(), (6,)), F64),
    "matrix, zero": (lambda: MatrixSensing(torch.zeros(3, 4, dtype=F64)), F64),
    "matrix, complex": (lambda: MatrixSensing(noise(5, 12, dtype=C128), (3, 4)), C128),
    "matrix, real on complex": (lambda: MatrixSensing(noise(5, 12), (3, 4)), C128),
    "coils": (lambda: Sense(noise(1, 3, 4, 5, dtype=C128), noise(4, 5) > 0.5), C128),
    "coils, per sample": (lambda: Sense(noise(BATCH, 3, 4, 5, dtype=C128), noise(BATCH, 1, 4, 5) > 0.5), C128),
    "coils, a copy for each sample": (lambda: Sense(noise(1, 3, 4, 5, dtype=C128).repeat(2, 1, 1, 1)), C128),
    "projections": (lambda: ParallelBeam((5, 5), torch.linspace(0, 2, 4, dtype=F64), 7), F64),
    "downsampling": (lambda: Downsample((4, 6), (2, 3), noise(2, 3)), F64),
    "nothing": (lambda: Unmeasured((3, 4)), F64),
}


class RealToComplex(LinearOperator):
    """A complex matrix that takes real signals, as a coil profile on a real image."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__((matrix.shape[1],), (matrix.shape[0],))
        self.matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.matrix.dtype) @ self.matrix.mT

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.conj()


def made(name: str) -> tuple[LinearOperator, Spectrum, Tensor]:
    make, dtype = ROWS[name]
    operator = make()
    assert operator.signal_shape is not None
    x = noise(BATCH, *operator.signal_shape, dtype=dtype, seed=3)
    return operator, spectrum_of(operator, x), x


def power(x: Tensor) -> Tensor:
    return x.abs().square().flatten(1).sum(1)


@pytest.mark.parametrize("name", ROWS)
def test_the_right_singular_vectors_are_an_isometry_and_its_inverse(name: str) -> None:
    _, spectrum, x = made(name)
    c = spectrum.analyse(x)
    back = spectrum.synthesise(c)
    assert relative_gap(power(c), power(x)) < 1e-13
    assert relative_gap(back if x.is_complex() else back.real, x) < 1e-13
    assert back.imag.abs().max() < 1e-13 if back.is_complex() and not x.is_complex() else True


@pytest.mark.parametrize("name", ROWS)
def test_what_is_measured_of_a_clean_signal_are_singular_values_times_coordinates(name: str) -> None:
    operator, spectrum, x = made(name)
    wanted = spectrum.singular * spectrum.analyse(x)
    assert (spectrum.measured(operator(x)) - wanted).abs().max() < 1e-12
    assert bool((spectrum.singular >= 0).all())


@pytest.mark.parametrize("name", ROWS)
def test_the_normal_operator_is_diagonal_in_these_coordinates(name: str) -> None:
    operator, spectrum, x = made(name)
    image = spectrum.synthesise(spectrum.singular.square() * spectrum.analyse(x))
    image = image if x.is_complex() else image.real
    assert (image - operator.normal(x)).abs().max() < 1e-12


@pytest.mark.parametrize("name", ROWS)
def test_the_adjoint_is_v_s_u(name: str) -> None:
    operator, spectrum, x = made(name)
    y = draw(operator(x), torch.Generator().manual_seed(4))
    mask = operator.sampled()
    y = y if mask is None else torch.where(mask, y, 0)
    image = spectrum.synthesise(spectrum.singular * spectrum.measured(y))
    image = image if x.is_complex() else image.real
    assert (image - operator.adjoint(y)).abs().max() < 1e-12


@pytest.mark.parametrize("name", ROWS)
def test_singular_values_are_those_of_the_dense_matrix(name: str) -> None:
    operator, spectrum, x = made(name)
    n = x[0].numel()
    for sample in range(BATCH):
        columns = []
        for k in range(n):
            unit = torch.zeros_like(x).reshape(BATCH, n)
            unit[sample, k] = 1
            columns.append(operator(unit.reshape(x.shape))[sample].flatten())
        wanted = torch.linalg.svdvals(torch.stack(columns, 1))
        wanted = torch.nn.functional.pad(wanted, (0, max(0, n - len(wanted))))[:n]
        got = spectrum.singular.to(F64).expand(spectrum.analyse(x).shape)
        assert torch.allclose(got[sample].flatten().sort(descending=True).values, wanted, rtol=1e-10, atol=1e-12)


def test_a_matrix_is_the_product_of_its_three_parts() -> None:
    A = noise(5, 8)
    spectrum = spectrum_of(MatrixSensing(A), torch.zeros(1, 8, dtype=F64))
    assert isinstance(spectrum, DenseSpectrum)
    assert relative_gap(spectrum.left @ torch.diag(spectrum.singular) @ spectrum.right.mH, A) < 1e-13
    unit = spectrum.right.mH @ spectrum.right
    assert torch.allclose(unit, torch.eye(8, dtype=F64), atol=1e-13)
    assert torch.equal(spectrum.left[:, 5:], torch.zeros(5, 3, dtype=F64))


def test_noise_of_the_measurement_keeps_its_level_in_the_coordinates_that_are_seen() -> None:
    for name in ("matrix, wide", "blur, odd", "fourier, odd", "coils"):
        operator, spectrum, x = made(name)
        y = draw(operator(x).expand(1, *operator(x).shape).flatten(0, 1), torch.Generator().manual_seed(5))
        y = torch.cat([draw(y, torch.Generator().manual_seed(i)) for i in range(1000)])
        mask = operator.sampled()
        y = y if mask is None else torch.where(mask, y, 0)
        seen = (spectrum.singular > 0).expand(1, *spectrum.analyse(x).shape[1:])
        spread = spectrum.measured(y).abs().square().mean(0)[seen[0]].mean()
        assert abs(float(spread) / (2 if x.is_complex() else 1) - 1) < 0.03


def test_real_signals_under_a_complex_operator_have_real_coordinates() -> None:
    A = noise(3, 5, dtype=C128)
    operator = RealToComplex(A)
    x = noise(2, 5)
    spectrum = spectrum_of(operator, x)
    assert not spectrum.analyse(x).is_complex()
    assert relative_gap(spectrum.measured(operator(x)), spectrum.singular * spectrum.analyse(x)) < 1e-13
    both = torch.linalg.svdvals(torch.cat([A.real, A.imag]))
    assert torch.allclose(spectrum.singular, both)


def test_singular_values_that_are_rounding_count_as_zero() -> None:
    _, spectrum, _ = made("matrix, wide and of low rank")
    assert int((spectrum.singular > 0).sum()) == 2
    _, spectrum, _ = made("blur with zeros in its transfer")
    assert int((spectrum.singular == 0).sum()) == 3


def test_samples_that_are_alike_share_one_decomposition() -> None:
    _, spectrum, _ = made("coils, a copy for each sample")
    assert spectrum.singular.ndim == 1
    _, spectrum, _ = made("coils, per sample")
    assert spectrum.singular.shape == (BATCH, 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_single_precision_stays_single(dtype: torch.dtype) -> None:
    x = noise(2, 4, 5, dtype=dtype)
    operators: list[LinearOperator] = [
        Blur(noise(3, 3, dtype=torch.float32), (4, 5)),
        Mask(x[0].abs() > 1),
        MatrixSensing(noise(3, 20, dtype=torch.float32), (4, 5)),
    ]
    for operator in operators:
        spectrum = spectrum_of(operator, x)
        back = spectrum.synthesise(spectrum.analyse(x))
        assert back.real.dtype == torch.float32
        assert spectrum.measured(operator(x)).real.dtype == torch.float32
        assert relative_gap(back if x.is_complex() else back.real, x) < 1e-5


def test_large_operators_without_a_decomposition_are_refused() -> None:
    operator = ParallelBeam((65, 65), torch.linspace(0, 2, 2), 7)
    with pytest.raises(TypeError, match=r"ParallelBeam has no known .* 4225 entries .* use DDS or DiffPIR"):
        spectrum_of(operator, torch.zeros(1, 65, 65))
