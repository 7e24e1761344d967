"""The exact denoisers agree with quadrature, with dense linear algebra and with the gradient of their density."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invreg.interfaces import LinearOperator
from invreg.models.exact import ExactDenoiser, SpectralMixture
from invreg.models.oracles import GaussianOracle, LowRankMixtureOracle, MixtureOracle, StationaryOracle
from invreg.noise import Gaussian, Poisson
from invreg.operators.sense import Sense
from invreg.problem import Problem
from invreg.random import draw
from invreg.testing import batch_gap, relative_gap

F64, C128 = torch.float64, torch.complex128


def noise(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return draw(torch.zeros(1, *shape, dtype=dtype), generator)[0]


def covariances(count: int, d: int, dtype: torch.dtype = F64) -> Tensor:
    root = noise(count, d, d, dtype=dtype, seed=1) / 2
    return root @ root.mH


def gaussian(dtype: torch.dtype = F64) -> GaussianOracle:
    return GaussianOracle(noise(4, dtype=dtype), covariances(1, 4, dtype)[0])


def mixture(dtype: torch.dtype = F64) -> MixtureOracle:
    return MixtureOracle(
        torch.tensor([0.2, 0.5, 0.3], dtype=F64), noise(3, 2, 2, dtype=dtype), covariances(3, 4, dtype)
    )


def low_rank(dtype: torch.dtype = F64) -> LowRankMixtureOracle:
    return LowRankMixtureOracle(
        torch.tensor([1.0, 3.0], dtype=F64),
        noise(2, 3, 2, dtype=dtype),
        noise(2, 2, 3, 2, dtype=dtype, seed=2),
        torch.tensor([0.1, 0.2], dtype=F64),
    )


def stationary(dtype: torch.dtype = F64) -> StationaryOracle:
    kernel = torch.tensor([[1.0, 0.3, 0.1, 0.3], [0.4, 0.1, 0.0, 0.1], [0.4, 0.1, 0.0, 0.1]], dtype=F64)
    return StationaryOracle(torch.fft.fft2(kernel).real, noise(3, 4, dtype=dtype), complex_valued=dtype.is_complex)


def colours(dtype: torch.dtype = F64) -> StationaryOracle:
    spectrum = torch.rand(2, 3, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    spectrum = spectrum + spectrum.flip(-2).roll(1, -2)
    return StationaryOracle(spectrum, 0.5, axes=2, complex_valued=dtype.is_complex)


KINDS = [gaussian, mixture, low_rank, stationary, colours]
DTYPES = [F64, C128]
Make = Callable[[torch.dtype], GaussianOracle | MixtureOracle | LowRankMixtureOracle | StationaryOracle]


def points(oracle: ExactDenoiser, count: int = 3, dtype: torch.dtype = F64) -> Tensor:
    return 1.5 * noise(count, *oracle.signal_shape, dtype=dtype, seed=5)


def dense(oracle: ExactDenoiser) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means (K, d) and covariances (K, d, d), by ways of their own."""
    if isinstance(oracle, StationaryOracle):
        d = oracle.spectrum.numel()
        unit = torch.eye(d, dtype=C128).reshape(d, *oracle.signal_shape)
        basis = torch.fft.ifftn(unit, dim=oracle.axes, norm="ortho").reshape(d, d).mT
        C = basis @ torch.diag(oracle.spectrum.flatten()).to(C128) @ basis.mH
        return torch.ones(1, dtype=F64), oracle.mean.reshape(1, d), (C if oracle.complex_valued else C.real)[None]
    if isinstance(oracle, LowRankMixtureOracle):
        F = noise(2, 2, 3, 2, dtype=oracle.means.dtype, seed=2).flatten(2).mT
        C = F @ F.mH + torch.tensor([0.1, 0.2], dtype=F64)[:, None, None] * torch.eye(6, dtype=F64)
        return torch.tensor([0.25, 0.75], dtype=F64), oracle.means.flatten(1), C
    assert isinstance(oracle, SpectralMixture)
    return oracle.weights, oracle.means.flatten(1), covariances(len(oracle.weights), 4, oracle.means.dtype)


def log_normal(x: Tensor, mean: Tensor, C: Tensor) -> Tensor:
    """log N(x; mean, C) by torch's own distribution, of real and imaginary parts where it is complex."""
    if not x.is_complex():
        return torch.distributions.MultivariateNormal(mean, C).log_prob(x)
    both = torch.cat([torch.cat([C.real, -C.imag], 1), torch.cat([C.imag, C.real], 1)]) / 2
    return torch.distributions.MultivariateNormal(torch.cat([mean.real, mean.imag]), both).log_prob(
        torch.cat([x.real, x.imag], -1)
    )


def by_inverses(oracle: ExactDenoiser, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Denoised x and log density of x, with an inverse of each covariance."""
    weights, means, C = dense(oracle)
    flat, unit = x.flatten(1), torch.eye(x[0].numel(), dtype=x.dtype)
    v = sigma**2 * (2 if x.is_complex() else 1)
    logs = torch.stack(
        [w.log() + log_normal(flat, m, c + v * unit) for w, m, c in zip(weights, means, C, strict=True)], 1
    )
    parts = torch.stack(
        [m + (flat - m) @ (c @ torch.linalg.inv(c + v * unit)).mT for m, c in zip(means, C, strict=True)], 1
    )
    return (logs.softmax(1)[..., None] * parts).sum(1).reshape(x.shape), logs.logsumexp(1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_denoised_signal_and_density_are_those_of_dense_algebra(make: Make, dtype: torch.dtype) -> None:
    oracle = make(dtype)
    x = points(oracle, dtype=dtype)
    for sigma in (0.05, 0.7, 20.0):
        denoised, logs = by_inverses(oracle, x, sigma)
        assert relative_gap(oracle(x, sigma), denoised) < 1e-10
        assert relative_gap(oracle.log_prob(x, sigma), logs) < 1e-10


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_tweedies_formula_holds_of_the_density(make: Make, dtype: torch.dtype) -> None:
    oracle = make(dtype)
    x = points(oracle, dtype=dtype).requires_grad_()
    (score,) = torch.autograd.grad(oracle.log_prob(x, 0.6).sum(), x)
    assert relative_gap(oracle(x, 0.6), x.detach() + 0.36 * score) < 1e-11


@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_the_jacobian_is_a_covariance_over_the_noise(make: Make) -> None:
    oracle = make(F64)
    x = points(oracle, 1)
    J = torch.autograd.functional.jacobian(lambda x: oracle(x, 0.5), x).reshape(x.numel(), x.numel())
    assert (J - J.mT).abs().max() < 1e-12
    assert torch.linalg.eigvalsh(J).min() > -1e-12


def test_a_mixture_on_the_line_agrees_with_quadrature() -> None:
    w, m, s = [0.3, 0.7], [-1.0, 2.0], [0.5, 0.2]
    oracle = MixtureOracle(
        torch.tensor(w, dtype=F64), torch.tensor(m, dtype=F64)[:, None], torch.tensor(s, dtype=F64)[:, None, None] ** 2
    )
    grid = torch.linspace(-8, 8, 20001, dtype=F64)
    prior = sum(
        wk / (sk * math.sqrt(2 * math.pi)) * torch.exp(-0.5 * ((grid - mk) / sk) ** 2)
        for wk, mk, sk in zip(w, m, s, strict=True)
    )
    sigma = 0.8
    for x in (-2.0, 0.4, 1.5):
        joint = prior * torch.exp(-0.5 * ((x - grid) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
        total = torch.trapezoid(joint, grid)
        point = torch.tensor([[x]], dtype=F64)
        assert abs(float(oracle(point, sigma)) - float(torch.trapezoid(joint * grid, grid) / total)) < 1e-10
        assert abs(float(oracle.log_prob(point, sigma)) - float(total.log())) < 1e-10


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_samples_have_the_mean_and_covariance_of_the_prior(make: Make, dtype: torch.dtype) -> None:
    oracle = make(dtype)
    weights, means, C = dense(oracle)
    x = oracle.sample(20000, torch.Generator().manual_seed(3)).flatten(1)
    mean = (weights[:, None] * means).sum(0)
    away = means - mean
    covariance = (weights[:, None, None] * (C + away[:, :, None] * away[:, None].conj())).sum(0)
    size = covariance.diagonal().real.max()
    assert (x.mean(0) - mean).abs().max() < 0.04 * size.sqrt()
    assert (x.mT.cov() - covariance).abs().max() < 0.06 * size
    if dtype.is_complex:
        centred = x - x.mean(0)
        pseudo = centred.mT @ centred / len(x) - (weights[:, None, None] * (away[:, :, None] * away[:, None])).sum(0)
        assert pseudo.abs().max() < 0.06 * size


@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_a_sample_of_its_own_generator_does_not_depend_on_the_batch(make: Make) -> None:
    oracle = make(F64)
    seeds = [torch.Generator().manual_seed(i) for i in range(5)]
    together = oracle.sample(5, seeds)
    assert torch.allclose(together[3:4], oracle.sample(1, [torch.Generator().manual_seed(3)]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_each_sample_has_its_own_noise_level(make: Make) -> None:
    oracle = make(F64)
    x = points(oracle)
    levels = torch.tensor([0.1, 0.5, 2.0], dtype=F64)
    wanted = torch.cat([oracle(x[i : i + 1], levels[i]) for i in range(3)])
    assert torch.allclose(oracle(x, levels), wanted, rtol=0, atol=1e-13)
    assert batch_gap(lambda x: oracle(x, 0.3), x) < 1e-13


@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_without_noise_nothing_changes_and_under_much_only_the_mean_is_left(make: Make) -> None:
    oracle = make(F64)
    x = points(oracle)
    weights, means, _ = dense(oracle)
    assert torch.allclose(oracle(x, 0.0), x, rtol=0, atol=1e-12)
    mean = (weights[:, None] * means).sum(0).reshape(x[:1].shape).expand(x.shape)
    assert torch.allclose(oracle(x, 1e7), mean, rtol=0, atol=1e-5)


def test_parts_of_one_point_each_pick_the_nearest_and_average_under_noise() -> None:
    atoms = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]], dtype=F64)
    oracle = MixtureOracle(torch.ones(3, dtype=F64), atoms, torch.zeros(3, 2, 2, dtype=F64))
    assert torch.equal(oracle(torch.tensor([[0.7, 0.1]], dtype=F64), 0.0), atoms[1:2])
    middle = oracle(torch.tensor([[0.5, 0.0]], dtype=F64), 0.3)
    assert torch.allclose(middle, torch.tensor([[0.5, 0.0]], dtype=F64), atol=1e-12)
    with pytest.raises(ValueError, match="sigma must be > 0 where a covariance is singular"):
        oracle.log_prob(atoms)


def test_singular_priors_keep_signals_in_their_plane() -> None:
    oracle = GaussianOracle(torch.zeros(2, dtype=F64), torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=F64))
    found = oracle(torch.tensor([[1.0, 3.0]], dtype=F64), 0.0)
    assert torch.allclose(found, torch.tensor([[2.0, 2.0]], dtype=F64))


def test_low_rank_without_rest_and_of_full_rank_are_limits() -> None:
    F = noise(1, 4, 4, seed=4)
    full = LowRankMixtureOracle(torch.ones(1, dtype=F64), torch.zeros(1, 4, dtype=F64), F, 0.3)
    C = F[0].mT @ F[0] + 0.3 * torch.eye(4, dtype=F64)
    same = GaussianOracle(torch.zeros(4, dtype=F64), C)
    x = points(same)
    assert relative_gap(full(x, 0.4), same(x, 0.4)) < 1e-12
    assert relative_gap(full.log_prob(x), same.log_prob(x)) < 1e-12
    flat = LowRankMixtureOracle(torch.ones(1, dtype=F64), torch.zeros(1, 4, dtype=F64), F[:, :1], 0.0)
    u = F[0, 0] / F[0, 0].norm()
    assert torch.allclose(flat(x, 0.0), (x @ u)[:, None] * u)


@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_single_precision_signals_come_back_so_and_complex_survives_a_change_of_precision(make: Make) -> None:
    oracle = make(C128)
    x = points(oracle, dtype=C128)
    wanted = oracle(x, 0.5)
    assert oracle(x.to(torch.complex64), 0.5).dtype == torch.complex64
    assert oracle.log_prob(x.to(torch.complex64), 0.5).dtype == torch.float32
    assert relative_gap(oracle.float()(x, 0.5), wanted) < 1e-5


class Matrix(LinearOperator):
    """A dense matrix on flattened signals."""

    def __init__(self, A: Tensor, shape: tuple[int, ...], mask: Tensor | None = None) -> None:
        super().__init__(shape, (A.shape[0],))
        self.A, self.mask = A, mask

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(1).to(self.A.dtype) @ self.A.mT
        return y if self.mask is None else y * self.mask

    def adjoint(self, y: Tensor) -> Tensor:
        y = y if self.mask is None else y * self.mask
        return (y @ self.A.conj()).unflatten(1, self.signal_shape)

    def sampled(self) -> Tensor | None:
        return self.mask


class Conjugate(Matrix):
    """Linear over real numbers only, in the last entry."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x[:, :-1], x[:, -1:].conj()], 1))


class Bent(Matrix):
    """Not linear, though it maps each unit vector as a matrix does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.square().sum(1, keepdim=True) - x.sum(1, keepdim=True)


def conditioned(oracle: ExactDenoiser, A: Tensor, y: Tensor, S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and covariances given y ~ N(A x, S), by the textbook's formulas."""
    weights, means, C = dense(oracle)
    logs, centres, spreads = [], [], []
    for w, m, c in zip(weights, means, C, strict=True):
        total = A @ c @ A.mH + S
        gain = c @ A.mH @ torch.linalg.inv(total)
        logs.append(w.log() + log_normal(y[None], A @ m, total)[0])
        centres.append(m + gain @ (y - A @ m))
        spreads.append(c - gain @ A @ c)
    return torch.stack(logs).softmax(0), torch.stack(centres), torch.stack(spreads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [2, 7])
def test_posteriors_are_those_of_the_textbook(dtype: torch.dtype, rows: int) -> None:
    oracle, A = mixture(dtype), noise(rows, 4, dtype=dtype, seed=7)
    y, levels = noise(rows, dtype=dtype, seed=8), 0.2 + torch.rand(rows, dtype=F64)
    S = torch.diag(levels**2 * (2 if dtype.is_complex else 1)).to(dtype)
    found = oracle.posterior(Problem(Matrix(A, (2, 2)), y[None], Gaussian(levels)))
    weights, means, C = conditioned(oracle, A, y, S)
    assert relative_gap(found.weights, weights) < 1e-10
    assert relative_gap(found.means.flatten(1), means) < 1e-10
    assert relative_gap(found.covariances, C) < 1e-10
    assert found.signal_shape == (2, 2)
    away = means - (weights[:, None] * means).sum(0)
    whole = (weights[:, None, None] * (C + away[:, :, None] * away[:, None].conj())).sum(0)
    assert relative_gap(found.covariance, whole) < 1e-10


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [2, 9])
def test_the_posterior_of_a_low_rank_mixture_keeps_its_floor(dtype: torch.dtype, rows: int) -> None:
    oracle, A, y = low_rank(dtype), noise(rows, 6, dtype=dtype, seed=7), noise(rows, dtype=dtype, seed=8)
    assert relative_gap(oracle.dense_covariances(), dense(oracle)[2]) < 1e-12
    S = (0.18 if dtype.is_complex else 0.09) * torch.eye(rows, dtype=dtype)
    found = oracle.condition(Problem(Matrix(A, (3, 2)), y[None], Gaussian(0.3)))
    for one, wanted in zip(found, conditioned(oracle, A, y, S), strict=True):
        assert relative_gap(one, wanted) < 1e-10


def test_real_signals_with_complex_measurements_are_seen_by_both_parts() -> None:
    oracle, A, y = gaussian(), noise(2, 4, dtype=C128, seed=7), noise(2, dtype=C128, seed=8)
    found = oracle.posterior(Problem(Matrix(A, (4,)), y[None], Gaussian(0.3)))
    stacked = torch.cat([A.real, A.imag])
    _, means, C = conditioned(oracle, stacked, torch.cat([y.real, y.imag]), 0.09 * torch.eye(4, dtype=F64))
    assert relative_gap(found.mean, means[0]) < 1e-10
    assert relative_gap(found.covariance, C[0]) < 1e-10


def test_what_is_not_sampled_says_nothing() -> None:
    oracle, A = gaussian(), noise(3, 4, seed=7)
    mask = torch.tensor([True, False, True])
    y = noise(3, seed=8) * mask
    found = oracle.posterior(Problem(Matrix(A, (4,), mask), y[None], Gaussian(0.3)))
    fewer = oracle.posterior(Problem(Matrix(A[mask], (4,)), y[mask][None], Gaussian(0.3)))
    assert relative_gap(found.mean, fewer.mean) < 1e-12
    assert relative_gap(found.covariance, fewer.covariance) < 1e-12


def coils() -> Sense:
    generator = torch.Generator().manual_seed(0)
    return Sense(draw(torch.zeros(1, 3, 8, 8, dtype=C128), generator) / 2, torch.rand(8, 1, generator=generator) < 0.4)


def test_under_a_white_prior_the_posterior_mean_is_the_proximal_map_of_the_misfit() -> None:
    A = coils()
    problem = Problem(A, A(noise(1, 8, 8, dtype=C128)), Gaussian(0.3))
    prior = GaussianOracle(torch.zeros(8, 8, dtype=C128), 2 * 0.7 * torch.eye(64, dtype=C128))
    wanted = problem.prox(torch.zeros(1, 8, 8, dtype=C128), 0.7, rtol=1e-13, iterations=500)
    assert relative_gap(prior.posterior(problem).mean[None], wanted) < 1e-11


def test_posteriors_are_calibrated_in_mri() -> None:
    A, generator = coils(), torch.Generator().manual_seed(4)
    k = torch.fft.fftfreq(8, dtype=F64)
    field = StationaryOracle(1 / (0.02 + k[:, None] ** 2 + k**2), complex_valued=True)
    prior = GaussianOracle(torch.zeros(8, 8, dtype=C128), dense(field)[2][0])
    gaps, samples, chis = [], [], []
    for _ in range(60):
        x = field.sample(1, generator)
        problem = Problem(A, Gaussian(0.2).sample(A(x), generator) * A.sampled(), Gaussian(0.2))
        found = prior.posterior(problem)
        z = found.sample(1, generator)
        gaps.append((found.mean - x).abs().square().mean())
        samples.append((z - x).abs().square().mean())
        chis.append(2 * problem.misfit(z) / problem.count)
    variance = float(found.covariance.diagonal().real.mean())
    assert float(torch.stack(gaps).mean()) == pytest.approx(variance, rel=0.1)
    assert float(torch.stack(samples).mean()) == pytest.approx(2 * variance, rel=0.1)
    assert float(torch.stack(chis).mean()) == pytest.approx(1.0, abs=0.05)


def test_the_conditional_score_is_bayes_rule_on_the_line() -> None:
    oracle = MixtureOracle(
        torch.tensor([0.4, 0.6], dtype=F64),
        torch.tensor([[-1.0], [1.0]], dtype=F64),
        torch.tensor([[[0.1]], [[0.3]]], dtype=F64),
    )
    problem = Problem(Matrix(torch.tensor([[2.0]], dtype=F64), (1,)), torch.tensor([[0.5]], dtype=F64), Gaussian(0.7))
    grid = torch.linspace(-6, 6, 20001, dtype=F64)[:, None]
    logs = oracle.log_prob(grid) - 0.5 * ((grid[:, 0] - 0.1) / 0.4) ** 2 - problem.misfit(grid)
    shares = logs.softmax(0)
    found = oracle.posterior(problem)(torch.tensor([[0.1]], dtype=F64), 0.4)
    assert abs(float(found) - float(shares @ grid[:, 0])) < 1e-10


def test_precise_measurements_leave_a_positive_covariance() -> None:
    oracle = gaussian()
    found = oracle.posterior(Problem(Matrix(noise(2, 4, seed=7), (4,)), torch.ones(1, 2, dtype=F64), Gaussian(1e-7)))
    values = torch.linalg.eigvalsh(found.covariance)
    assert values.min() > -1e-15
    assert (values > 1e-6).sum() == 2


def test_a_periodic_shift_goes_through_a_stationary_oracle() -> None:
    oracle = StationaryOracle(stationary().spectrum)
    x = points(oracle)
    shifted = oracle(x.roll((1, 2), (-2, -1)), 0.5)
    assert torch.allclose(shifted, oracle(x, 0.5).roll((1, 2), (-2, -1)), atol=1e-13)


def test_volumes_have_three_axes() -> None:
    spectrum = torch.rand(4, 3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    spectrum = spectrum + spectrum.flip((0, 1, 2)).roll((1, 1, 1), (0, 1, 2))
    oracle = StationaryOracle(spectrum)
    x = points(oracle)
    assert relative_gap(oracle(x, 0.5), by_inverses(oracle, x, 0.5)[0]) < 1e-12


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: GaussianOracle(torch.zeros(2), torch.eye(3)), ValueError, r"covariance must be \(d, d\)"),
        (lambda: GaussianOracle(torch.zeros(2), torch.tensor([[1.0, 1.0], [0.0, 1.0]])), ValueError, "be Hermitian"),
        (lambda: GaussianOracle(torch.zeros(2), torch.diag(torch.tensor([1.0, -1.0]))), ValueError, "semidefinite"),
        (lambda: GaussianOracle(torch.zeros(2).int(), torch.eye(2)), TypeError, "mean must be floating point"),
        (lambda: GaussianOracle(torch.tensor([torch.nan, 0]), torch.eye(2)), ValueError, "mean must be finite"),
        (lambda: MixtureOracle(torch.ones(2), torch.zeros(3, 2), torch.zeros(3, 2, 2)), ValueError, "weights must"),
        (lambda: MixtureOracle(-torch.ones(3), torch.zeros(3, 2), torch.zeros(3, 2, 2)), ValueError, "not all 0"),
        (lambda: MixtureOracle(torch.ones(3), torch.zeros(3, 2), torch.zeros(3, 2, 3)), ValueError, "covariances must"),
        (
            lambda: LowRankMixtureOracle(torch.ones(1), torch.zeros(1, 2), torch.zeros(1, 2), 1.0),
            ValueError,
            "factors must be",
        ),
        (
            lambda: LowRankMixtureOracle(torch.ones(1), torch.zeros(1, 2), torch.zeros(1, 3, 2), 1.0),
            ValueError,
            "1 <= r <= 2",
        ),
        (
            lambda: LowRankMixtureOracle(torch.ones(1), torch.zeros(1, 2), torch.zeros(1, 1, 2), -1.0),
            ValueError,
            "floor must",
        ),
        (lambda: StationaryOracle(torch.tensor([1.0, 2.0, 3.0])), ValueError, "spectrum must be even"),
        (lambda: StationaryOracle(torch.tensor([1.0, -2.0])), ValueError, "spectrum must be >= 0"),
        (lambda: StationaryOracle(torch.ones(2), 1j), TypeError, "mean must be real"),
        (lambda: StationaryOracle(torch.ones(2), torch.ones(3)), ValueError, "mean must broadcast"),
        (lambda: StationaryOracle(torch.ones(2), axes=2), ValueError, "2 axes or more"),
        (lambda: gaussian()(torch.zeros(1, 4, dtype=C128), 1.0), TypeError, "x must be real"),
        (lambda: gaussian(C128)(torch.zeros(1, 4, dtype=F64), 1.0), TypeError, "x must be complex"),
        (lambda: gaussian()(torch.zeros(4, dtype=F64), 1.0), ValueError, r"x must be \(B, 4\)"),
        (lambda: gaussian()(torch.zeros(3, 4), torch.ones(2)), ValueError, r"sigma must be \(\) or \(3,\)"),
        (lambda: gaussian().sample(0), ValueError, "n must be >= 1"),
        (
            lambda: StationaryOracle(torch.zeros(2)).log_prob(torch.zeros(1, 2)),
            ValueError,
            "where the spectrum is 0",
        ),
        (
            lambda: gaussian().posterior(
                Problem(Matrix(torch.eye(4).double(), (4,)), torch.ones(1, 4).double(), Poisson())
            ),
            TypeError,
            "needs a LinearOperator and Gaussian noise",
        ),
        (
            lambda: gaussian().posterior(Problem(Matrix(torch.eye(4).double(), (4,)), torch.ones(2, 4).double())),
            ValueError,
            "y must hold one measurement",
        ),
        (
            lambda: gaussian(C128).posterior(
                Problem(Conjugate(torch.eye(4, dtype=C128), (4,)), torch.ones(1, 4, dtype=C128))
            ),
            ValueError,
            r"the operator must be linear over complex numbers, A\(i x\) = i A\(x\), got Conjugate, which is not",
        ),
        (
            lambda: gaussian().posterior(Problem(Bent(torch.eye(4).double(), (4,)), torch.ones(1, 4).double())),
            ValueError,
            "the operator must be linear, got Bent, which is not",
        ),
    ],
)
def test_bad_input_is_named(make: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()
