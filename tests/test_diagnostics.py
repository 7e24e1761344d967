import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invreg.diagnostics import (
    JointTest,
    chi_square,
    coverage,
    joint_test,
    mode_weights,
    rank_statistics,
    sampling_floor,
    simulation_based_calibration,
    sliced_wasserstein,
    std_ratio,
)
from invreg.interfaces import Noise
from invreg.noise import Gaussian, Poisson
from invreg.operators import Mask, MatrixSensing
from invreg.problem import Problem
from invreg.random import Generator, draw


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), seeded(seed))


class Conditional:
    """x ~ N(0, C), y = A x + sigma n, and everything that follows in closed form; complex parts are independent."""

    def __init__(self, count: int, dtype: torch.dtype = torch.float64, sigma: float = 0.1) -> None:
        grid = torch.arange(8)
        self.covariance = (0.25 * 0.9 ** (grid[:, None] - grid).abs().double()).to(dtype)
        self.root = torch.linalg.cholesky(self.covariance)
        left, right = torch.linalg.qr(noise(4, 4, dtype=dtype)).Q, torch.linalg.qr(noise(8, 4, dtype=dtype)).Q
        matrix = left @ torch.diag(torch.tensor([1.0, 0.7, 0.4, 0.1]).to(dtype)) @ right.mH
        self.truth = noise(count, 8, dtype=dtype, seed=1) @ self.root.mT
        clean = self.truth @ matrix.mT
        self.problem = Problem(MatrixSensing(matrix), Gaussian(sigma).sample(clean, seeded(2)), Gaussian(sigma))
        gain_covariance = matrix @ self.covariance @ matrix.mH + sigma**2 * torch.eye(4).to(dtype)
        self.gain = torch.linalg.solve(gain_covariance, matrix @ self.covariance).mH
        posterior = self.covariance - self.gain @ matrix @ self.covariance
        self.posterior_root = torch.linalg.cholesky((posterior + posterior.mH) / 2)

    def sample(self, seed: int, spread: float = 1.0) -> Tensor:
        y = self.problem.y
        scatter = noise(len(y), 8, dtype=y.dtype, seed=seed) @ self.posterior_root.mT
        return y @ self.gain.mT + spread * scatter


# chi-square


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_chi_square_of_exact_posterior_samples_is_one_on_average(dtype: torch.dtype) -> None:
    exact = Conditional(5000, dtype)
    found = chi_square(exact.problem, exact.sample(3))
    assert found.shape == (5000,)
    assert float(found.mean()) == pytest.approx(1, abs=0.03)
    assert float(chi_square(exact.problem, exact.truth).mean()) == pytest.approx(1, abs=0.03)
    assert float(chi_square(exact.problem, exact.sample(3, spread=0.0)).mean()) < 0.75
    assert float(chi_square(exact.problem, exact.truth.roll(1, 0)).mean()) > 3


def test_chi_square_counts_only_what_was_sampled() -> None:
    mask = torch.tensor([True, False, True, False])
    y = torch.tensor([[1.0, 0.0, 2.0, 0.0]]).double()
    problem = Problem(Mask(mask), y, Gaussian(0.5))
    found = chi_square(problem, torch.tensor([[1.5, 9.0, 1.0, 9.0]]).double())
    assert found.tolist() == pytest.approx([(0.25 + 1) / 0.25 / 2])


def test_chi_square_of_many_counts_is_one_on_average() -> None:
    truth = noise(1000, 6).abs() + 1
    model = Poisson(50.0)
    problem = Problem(MatrixSensing(torch.eye(6).double()), model.sample(truth, seeded(1)), model)
    assert float(chi_square(problem, truth).mean()) == pytest.approx(1, abs=0.05)


class Laplace(Noise):
    def sample(self, clean: Tensor, generator: Generator = None) -> Tensor:
        return clean

    def nll_terms(self, clean: Tensor, y: Tensor) -> Tensor:
        return (clean - y).abs()

    def nll_gradient(self, clean: Tensor, y: Tensor) -> Tensor:
        return (clean - y).sgn()


def test_chi_square_refuses_a_noise_without_a_known_expectation_and_a_wrong_batch() -> None:
    eye, y = MatrixSensing(torch.eye(3).double()), noise(2, 3)
    with pytest.raises(TypeError, match="chi_square needs Gaussian, .* got Laplace"):
        chi_square(Problem(eye, y, Laplace()), y)
    with pytest.raises(ValueError, match="x must have the batch size of y, 2, got 1"):
        chi_square(Problem(eye, y), y[:1])


# coverage and spread


@pytest.mark.parametrize(("count", "level"), [(19, 0.9), (39, 0.9), (30, 0.8), (199, 0.5)])
def test_a_further_draw_is_covered_as_often_as_the_level_says(count: int, level: float) -> None:
    samples, truth = noise(count, 20, 400), noise(20, 400, seed=1)
    found = coverage(samples, truth, level)
    assert found.shape == (20,)
    assert float(found.mean()) == pytest.approx(level, abs=0.02)


def test_coverage_of_complex_samples_counts_both_parts() -> None:
    samples, truth = noise(99, 1, 40, dtype=torch.complex128), noise(200, 40, dtype=torch.complex128, seed=1)
    assert float(coverage(samples, truth).mean()) == pytest.approx(0.9, abs=0.02)
    half = torch.complex(truth.real, torch.full_like(truth.real, 100.0))
    assert float(coverage(samples, half).mean()) == pytest.approx(0.45, abs=0.02)


def test_samples_that_scatter_too_little_cover_too_little() -> None:
    # P(|n| < 1.645 / 2) = 0.589
    assert float(coverage(noise(399, 1, 200) / 2, noise(100, 200, seed=1)).mean()) == pytest.approx(0.589, abs=0.02)


def test_coverage_is_the_same_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, truth = noise(29, 3, 4, 5), noise(3, 4, 5, seed=1)
    whole = coverage(samples, truth)
    monkeypatch.setattr("invreg.sample_distance.BLOCK", 100)
    torch.testing.assert_close(coverage(samples, truth), whole)


def test_coverage_says_how_many_samples_it_needs() -> None:
    with pytest.raises(ValueError, match=r"samples must be at least 19 for level 0.9, got 18"):
        coverage(noise(18, 1, 4), noise(1, 4))
    with pytest.raises(ValueError, match="samples must be"):
        coverage(noise(30, 4), noise(3, 4))
    with pytest.raises(TypeError, match="must both be real or both complex"):
        coverage(noise(30, 3, 4), noise(3, 4, dtype=torch.complex128))
    with pytest.raises(ValueError, match="level"):
        coverage(noise(30, 3, 4), noise(3, 4), 1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_std_ratio_is_the_ratio_of_standard_deviations(dtype: torch.dtype) -> None:
    a, b = noise(4000, 3, 5, dtype=dtype), noise(2000, 3, 5, dtype=dtype, seed=1)
    assert float(std_ratio(0.5 * a + 3, b)) == pytest.approx(0.5, rel=0.02)
    assert float(std_ratio(2 * b, b)) == pytest.approx(2)
    with pytest.raises(ValueError, match="reference must vary"):
        std_ratio(a, torch.ones_like(b))
    with pytest.raises(ValueError, match="2 or more"):
        std_ratio(a[:1], b)


# distances


def test_w2_of_gaussians_on_a_line_is_their_closed_form() -> None:
    a, b = noise(20000, 1), 2 * noise(20000, 1, seed=1) + 0.7
    assert float(sliced_wasserstein(a, b, 4, generator=seeded())) == pytest.approx(math.sqrt(0.49 + 1), rel=0.02)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_a_shift_moves_by_its_mean_projection(p: float) -> None:
    x, shift = noise(50, 6), noise(6, seed=1)
    # on the sphere in 6 dimensions E|u_1|^p = Gamma(3) Gamma((p + 1) / 2) / (Gamma(1/2) Gamma(3 + p / 2))
    moment = math.gamma(3) * math.gamma((p + 1) / 2) / (math.gamma(0.5) * math.gamma(3 + p / 2))
    wanted = float(shift.norm()) * moment ** (1 / p)
    found = float(sliced_wasserstein(x, x + shift, 20000, p, seeded()))
    assert found == pytest.approx(wanted, rel=0.02)


def test_sets_of_different_size_are_compared_exactly() -> None:
    a, b = noise(6, 3), noise(4, 3, seed=1)
    repeated = sliced_wasserstein(a.repeat(2, 1), b.repeat(3, 1), 64, generator=seeded())
    torch.testing.assert_close(sliced_wasserstein(a, b, 64, generator=seeded()), repeated)
    torch.testing.assert_close(sliced_wasserstein(b, a, 64, generator=seeded()), repeated)
    line = sliced_wasserstein(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [0.0], [3.0]]), 3, 1.0)
    # levels 0 .. 1/3 .. 1/2 .. 2/3 .. 1: gaps 0, 0, 1, 2
    assert float(line) == pytest.approx(1 / 6 + 2 / 3)


def test_distances_are_those_of_the_parts_of_complex_samples_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = noise(30, 4, dtype=torch.complex128), noise(20, 4, dtype=torch.complex128, seed=1)
    whole = sliced_wasserstein(a, b, 400, generator=seeded())
    torch.testing.assert_close(
        sliced_wasserstein(torch.view_as_real(a), torch.view_as_real(b), 400, generator=seeded()), whole
    )
    monkeypatch.setattr("invreg.sample_distance.BLOCK", 5000)
    torch.testing.assert_close(sliced_wasserstein(a, b, 400, generator=seeded()), whole, rtol=0.1, atol=0)


def test_distances_refuse_what_cannot_be_compared() -> None:
    a = noise(5, 3)
    with pytest.raises(ValueError, match="a and b must be of one signal shape"):
        sliced_wasserstein(a, noise(5, 4))
    with pytest.raises(TypeError, match=r"a is torch.float64 but b is torch.float32"):
        sliced_wasserstein(a, a.float())
    with pytest.raises(TypeError, match="a must be floating point"):
        sliced_wasserstein(torch.ones(3, 2, dtype=torch.int64), a)
    with pytest.raises(ValueError, match="b must be finite"):
        sliced_wasserstein(a, a * float("nan"))
    with pytest.raises(ValueError, match="p must be >= 1, got 0.5"):
        sliced_wasserstein(a, a, p=0.5)


def test_the_floor_falls_with_the_root_of_the_size() -> None:
    def sampler(n: int, generator: torch.Generator | None) -> Tensor:
        return draw(torch.empty(n, 4, dtype=torch.float64), generator)

    small, large = (sampling_floor(sampler, n, repeats=10, directions=32, generator=seeded()) for n in (100, 1600))
    assert small.mean / large.mean == pytest.approx(4, rel=0.25)
    assert large.quantile(0.95) >= large.mean
    assert small.distances.shape == (10,)


# the joint test


def test_the_joint_test_lets_exact_samples_pass() -> None:
    exact = Conditional(300)
    results = [
        joint_test(exact.problem, exact.truth, exact.sample(10 + i), directions=24, repeats=39, generator=seeded(i))
        for i in range(12)
    ]
    assert sum(one.p_value <= 0.1 for one in results) <= 4
    assert sum(one.ratio for one in results) / 12 == pytest.approx(1, abs=0.15)
    assert all(0.85 < one.chi_square < 1.15 and 0.85 < one.chi_square_truth < 1.15 for one in results)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda exact: exact.sample(3, spread=0.0),
        lambda exact: exact.sample(3, spread=1.5),
        lambda exact: exact.truth.roll(1, 0),  # the right prior law, but blind to y
        lambda exact: exact.sample(3) + 0.1,
    ],
)
def test_the_joint_test_finds_wrong_samples(wrong: Callable[[Conditional], Tensor]) -> None:
    exact = Conditional(1000)
    found = joint_test(exact.problem, exact.truth, wrong(exact), directions=64, repeats=39, generator=seeded())
    assert isinstance(found, JointTest)
    assert found.p_value == pytest.approx(1 / 40)
    assert found.ratio > 1.5


def test_the_joint_test_refuses_pairs_that_do_not_match() -> None:
    exact = Conditional(10)
    with pytest.raises(ValueError, match="samples, truth and y must be as many"):
        joint_test(exact.problem, exact.truth[:5], exact.truth[:5])
    for name in ("directions", "repeats"):
        with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
            joint_test(exact.problem, exact.truth[:5], exact.truth[:5], **{name: 0})


def test_the_joint_test_takes_truths_that_do_not_vary_in_single_precision() -> None:
    x = torch.full((40, 3), 7.0)
    problem = Problem(Mask(torch.tensor([True, True, False])), x * torch.tensor([1.0, 1.0, 0.0]), Gaussian(0.1))
    same = joint_test(problem, x, x, directions=8, repeats=9, generator=seeded())
    assert (same.distance, same.p_value, same.ratio) == (0.0, 1.0, 1.0)
    wrong = joint_test(problem, x, x + 0.1, directions=8, repeats=9, generator=seeded())
    assert wrong.p_value == pytest.approx(0.1) and 0 < wrong.distance < 0.2


# ranks


def test_ranks_count_the_draws_below_and_break_ties_by_chance() -> None:
    samples = torch.tensor([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]])
    found = torch.stack([rank_statistics(samples, torch.tensor([1.5, 5.0]), seeded(i)) for i in range(200)])
    assert found[:, 0].unique().tolist() == [2]
    assert found[:, 1].unique().tolist() == [0, 1, 2, 3]
    with pytest.raises(TypeError, match="real summaries"):
        rank_statistics(noise(3, 2, dtype=torch.complex128), noise(2))
    with pytest.raises(ValueError, match=r"samples must be \(K, \*\(2,\)\)"):
        rank_statistics(noise(3, 4), noise(2))


def test_uniform_ranks_have_uniform_p_values() -> None:
    ranks = torch.randint(0, 32, (500, 400), generator=seeded())
    found = simulation_based_calibration(ranks, 31)
    assert found.counts.shape == (20, 400)
    assert int(found.counts.sum()) == ranks.numel()
    assert float(found.statistic.mean()) == pytest.approx(19, rel=0.03)
    assert float((found.p_value < 0.1).double().mean()) == pytest.approx(0.1, abs=0.04)


def test_calibration_of_exact_samples_passes_and_of_wrong_ones_fails() -> None:
    exact = Conditional(600)
    truth = exact.truth.mean(1)

    def p_value(spread: float, shift: float = 0.0) -> float:
        draws = torch.stack([exact.sample(10 + i, spread).mean(1) + shift for i in range(24)])
        return float(simulation_based_calibration(rank_statistics(draws, truth, seeded()), 24).p_value)

    assert p_value(1.0) > 0.01
    assert p_value(0.7) < 1e-6
    assert p_value(1.5) < 1e-4
    assert p_value(1.0, 0.05) < 1e-3


def test_the_chi_square_of_ranks_is_that_of_the_table() -> None:
    # 10 bins, 9 degrees of freedom: 95 percent point 16.919
    ranks = torch.repeat_interleave(torch.arange(10), torch.tensor([10, 10, 10, 10, 10, 10, 10, 10, 10, 10]))
    even = simulation_based_calibration(ranks, 9, bins=10)
    assert float(even.statistic) == 0 and float(even.p_value) == 1
    skewed = simulation_based_calibration(torch.zeros(100, dtype=torch.int64), 9, bins=10)
    assert float(skewed.statistic) == pytest.approx(900)
    assert float(torch.special.gammaincc(torch.tensor(4.5), torch.tensor(16.919 / 2))) == pytest.approx(0.05, abs=1e-4)


def test_calibration_refuses_too_few_or_wrong_ranks() -> None:
    with pytest.raises(ValueError, match="bins must expect 5 ranks or more"):
        simulation_based_calibration(torch.zeros(20, dtype=torch.int64), 9, bins=10)
    with pytest.raises(ValueError, match="ranks must be from 0 to draws = 4"):
        simulation_based_calibration(torch.full((20,), 7), 4)
    with pytest.raises(TypeError, match="ranks must be int64"):
        simulation_based_calibration(torch.zeros(20), 4)
    with pytest.raises(ValueError, match="bins must be at most"):
        simulation_based_calibration(torch.zeros(200, dtype=torch.int64), 4, bins=6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_mode_weights_count_the_nearest(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    means = 20 * noise(3, 2, 4, dtype=dtype)
    which = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    samples = means[which] + noise(100, 2, 4, dtype=dtype, seed=1)
    monkeypatch.setattr("invreg.sample_distance.BLOCK", 150)
    assert mode_weights(samples, means).tolist() == pytest.approx([0.5, 0.3, 0.2])
    with pytest.raises(ValueError, match="samples and means must be of one signal shape"):
        mode_weights(samples, means[:, :1])
