"""The laws must fail for what breaks them: each is tried on an operator or prior with a fault."""

import math

import pytest
import torch
from torch import Tensor

from invreg.interfaces import LinearOperator, Noise, Regularizer
from invreg.noise import Gaussian
from invreg.operators import MatrixSensing
from invreg.random import Generator, draw
from invreg.testing import (
    adjoint_gap,
    batch_gap,
    gradient_gap,
    linearity_gap,
    noise_gap,
    normal_gap,
    prox_gap,
    relative_gap,
    vjp_gap,
)


def noise(*shape: int, dtype: torch.dtype = torch.complex128, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


class Faulty(LinearOperator):
    """A matrix whose adjoint forgets to conjugate, whose normal forgets a factor, and which adds a constant."""

    def __init__(self, matrix: Tensor, constant: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.mT + self.constant

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix

    def normal(self, x: Tensor) -> Tensor:
        return 1.01 * self.adjoint(self(x))


def test_a_wrong_adjoint_normal_or_vjp_shows() -> None:
    matrix, x, y = noise(5, 4), noise(2, 4, seed=1), noise(2, 5, seed=2)
    good, bad = MatrixSensing(matrix), Faulty(matrix)
    assert adjoint_gap(good, x, y) < 1e-14
    assert adjoint_gap(bad, x, y) > 1e-2
    assert vjp_gap(good, x, y) < 1e-14
    assert vjp_gap(bad, x, y) > 1e-2
    assert normal_gap(good, x) < 1e-14
    assert normal_gap(bad, x) == pytest.approx(0.01)


def test_an_adjoint_that_is_wrong_only_in_its_imaginary_part_shows() -> None:
    matrix = noise(5, 4)

    class Real(LinearOperator):
        def forward(self, x: Tensor) -> Tensor:
            return x @ matrix.mT

        def adjoint(self, y: Tensor) -> Tensor:
            return (y @ matrix.conj()).real.to(y.dtype)

    x, y = noise(2, 4, dtype=torch.float64).to(torch.complex128), noise(2, 5, seed=2)
    assert adjoint_gap(Real(), x, y) > 1e-2


def test_what_is_not_linear_shows() -> None:
    matrix = noise(5, 4)
    assert linearity_gap(Faulty(matrix), noise(1, 4), noise(1, 4, seed=1)) < 1e-14
    assert linearity_gap(Faulty(matrix, 1.0), noise(1, 4), noise(1, 4, seed=1)) > 1e-2


def test_a_function_that_mixes_its_batch_shows() -> None:
    x = noise(3, 4)
    assert batch_gap(lambda v: 2 * v, x) == 0
    assert batch_gap(lambda v: v - v.mean(0), x) > 0.1


def test_a_nan_is_not_lost_among_numbers() -> None:
    x = noise(3, 4, dtype=torch.float64)
    spoiled = torch.where(torch.arange(3)[:, None] == 1, math.nan, 2 * x)
    assert math.isnan(batch_gap(lambda v: spoiled if len(v) == 3 else 2 * v, x))
    assert math.isnan(gradient_gap(lambda v: v.square(), x, 2 * x * math.nan))


def test_a_wrong_gradient_shows() -> None:
    x = noise(2, 3)
    energy = lambda v: v.abs().square().sum(1)  # noqa: E731
    assert gradient_gap(energy, x, 2 * x) < 1e-8
    assert gradient_gap(energy, x, 2 * x.conj()) > 1e-2
    assert gradient_gap(energy, x, 2.001 * x) > 1e-4
    assert gradient_gap(lambda v: 1e-20 * energy(v), x, torch.zeros_like(x)) > 1e-12
    with pytest.raises(TypeError, match=r"x must be float64 or complex128, got torch.float32"):
        gradient_gap(energy, torch.ones(1, 2), torch.ones(1, 2))


class Lasso(Regularizer[Tensor]):
    """|x|_1 with a proximal map that shrinks by `factor` times too much."""

    def __init__(self, factor: float) -> None:
        super().__init__(0.5)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.abs().flatten(1).sum(1)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        size = x.abs()
        return x * (size - self.factor * self.weight * step).clamp_min(0) / size


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_wrong_prox_shows(dtype: torch.dtype) -> None:
    x = noise(2, 6, dtype=dtype)
    assert prox_gap(Lasso(1.0), x, 0.7) < 1e-12
    assert prox_gap(Lasso(1.1), x, 0.7) > 1e-6
    assert prox_gap(Lasso(0.9), x, 0.7) > 1e-6


def test_a_regularizer_without_prox_is_refused() -> None:
    class Bare(Regularizer[Tensor]):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1)

    with pytest.raises(TypeError, match="regularizer must have a prox, got Bare"):
        prox_gap(Bare(), torch.ones(1, 2), 1.0)


def test_a_wrong_likelihood_gradient_shows() -> None:
    class Doubled(Noise):
        def sample(self, clean: Tensor, generator: Generator = None) -> Tensor:
            return clean

        def nll_terms(self, clean: Tensor, y: Tensor) -> Tensor:
            return Gaussian().nll_terms(clean, y)

        def nll_gradient(self, clean: Tensor, y: Tensor) -> Tensor:
            return 2 * Gaussian().nll_gradient(clean, y)

    clean, y = noise(2, 5), noise(2, 5, seed=1)
    assert noise_gap(Gaussian(), clean, y) < 1e-8
    assert noise_gap(Doubled(), clean, y) > 0.1


def test_relative_gap_does_not_broadcast() -> None:
    assert relative_gap(torch.tensor([1.1]), torch.tensor([1.0])) == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"got must have the shape of wanted, \(2, 2\), got \(1, 2\)"):
        relative_gap(torch.ones(1, 2), torch.ones(2, 2))
