import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from invreg.algorithms import (
    ADMM,
    FISTA,
    GCV,
    SURE,
    Algorithm,
    ConjugateGradient,
    Discrepancy,
    LCurve,
    choose_weight,
)
from invreg.interfaces import Denoiser
from invreg.noise import Gaussian, Poisson
from invreg.operators import MaskedFourier, MatrixSensing
from invreg.problem import Problem
from invreg.random import draw
from invreg.regularizers import L1, RED, PlugAndPlay, Tikhonov

N, SIGMA = 128, 0.02


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Image:
    x: Tensor


@dataclass(frozen=True, kw_only=True)
class Exact(Algorithm[Tikhonov, Image]):
    """Tikhonov's solution by a dense factorisation."""

    iterations: int = 1

    def init(self, problem: Problem, prior: Tikhonov, x0: Tensor | None) -> Image:
        return Image(torch.zeros_like(problem.backprojection()))

    def step(self, problem: Problem, prior: Tikhonov, state: Image, progress: float) -> Image:
        matrix, sigma = problem.operator.matrix, problem.noise.sigma
        hessian = matrix.mH @ matrix + prior.weight * sigma**2 * torch.eye(matrix.shape[1]).to(matrix.dtype)
        return Image(torch.linalg.solve(hessian, matrix.mH @ problem.y.mT).mT)


U = torch.linalg.qr(noise(N, N))[0]
V = torch.linalg.qr(noise(N, N, seed=1))[0]
S = torch.exp(-torch.arange(N).double() / 16)  # a deconvolution: the singular values fall fast
MATRIX = U * S @ V
TRUTH = (torch.exp(-torch.arange(N).double() / 40) * noise(N, seed=2).sign()) @ V


def problem(seed: int = 3, scale: float = 1.0) -> Problem:
    y = MATRIX @ TRUTH + SIGMA * noise(N, seed=seed)
    return Problem(MatrixSensing(MATRIX), scale * y[None], Gaussian(scale * SIGMA))


def filters(weight: float) -> Tensor:
    """How much of each component of the data the fit A x keeps."""
    return S**2 / (S**2 + weight * SIGMA**2)


def chi_square(y: Tensor, weight: float) -> float:
    return float((((1 - filters(weight)) * (y[0] @ U)) ** 2).sum() / SIGMA**2)


def least(function: Callable[[float], float], low: float = 1e-2, high: float = 1e4) -> float:
    grid = torch.logspace(math.log10(low), math.log10(high), 401).double().tolist()
    return min(grid, key=function)


def test_discrepancy_finds_the_known_root() -> None:
    p = problem()
    low, high = 1e-3, 1e5
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if chi_square(p.y, middle) < 1.0 * N else (low, middle)
    choice = choose_weight(p, Tikhonov, Exact(), Discrepancy(evaluations=40, rtol=1e-6), bracket=(1e-3, 1e5))
    assert choice.weight == pytest.approx(low, rel=1e-3)
    assert choice.interior
    torch.testing.assert_close(
        2 * p.misfit(choice.reconstruction.x), torch.full((1,), float(N)).double(), rtol=1e-5, atol=0
    )
    for weight, score in zip(choice.weights.tolist(), choice.scores.tolist(), strict=True):
        assert score == pytest.approx(chi_square(p.y, weight) / N, rel=1e-6)


def test_a_discrepancy_that_cannot_be_met_is_reported() -> None:
    p = problem()
    under = choose_weight(p, Tikhonov, Exact(), Discrepancy(), bracket=(1e-3, 1e-2))
    assert not under.interior and under.weight == 1e-2
    over = choose_weight(p, Tikhonov, Exact(), Discrepancy(), bracket=(1e6, 1e7))
    assert not over.interior and over.weight == 1e6


def test_tau_forgives_an_underestimated_sigma() -> None:
    weights = [choose_weight(problem(), Tikhonov, Exact(), Discrepancy(tau=t)).weight for t in (1.0, 1.1)]
    assert weights[0] < weights[1]


def sure(y: Tensor, weight: float) -> float:
    return (chi_square(y, weight) - N + 2 * float(filters(weight).sum())) / N


def test_sure_is_the_exact_curve_within_its_monte_carlo_error() -> None:
    p = problem()
    choice = choose_weight(p, Tikhonov, Exact(), SURE(), bracket=(1e-2, 1e4))
    assert len(choice.weights) >= 8 + 6
    for weight, score in zip(choice.weights.tolist(), choice.scores.tolist(), strict=True):
        deviation = 2 * math.sqrt(2 * float(filters(weight).square().sum())) / N
        assert abs(score - sure(p.y, weight)) <= 4 * deviation


def test_sure_is_near_the_weight_of_least_true_risk() -> None:
    coefficients = (MATRIX @ TRUTH) @ U / SIGMA

    def risk(weight: float) -> float:
        h = filters(weight)
        return float((((1 - h) * coefficients) ** 2).sum() + h.square().sum())

    best = least(risk)
    chosen = [
        choose_weight(problem(seed), Tikhonov, Exact(), SURE(seed=seed), bracket=(1e-2, 1e4)).weight
        for seed in range(3, 23)
    ]
    assert 0.5 < math.exp(sum(math.log(w / best) for w in chosen) / len(chosen)) < 2
    assert sum(map(risk, chosen)) / len(chosen) < 1.25 * risk(best)


def test_gcv_is_near_the_exact_one_and_needs_no_sigma() -> None:
    losses = []
    for seed in range(3, 13):
        p = problem(seed)

        def exact(weight: float, y: Tensor = p.y) -> float:
            return chi_square(y, weight) / N / (1 - float(filters(weight).mean())) ** 2

        unknown = Problem(p.operator, p.y)  # sigma = 1 instead of SIGMA: the weight comes in other units
        choice = choose_weight(unknown, Tikhonov, Exact(), GCV(seed=seed), bracket=(1e-2 * SIGMA**2, 1e4 * SIGMA**2))
        losses.append(exact(choice.weight / SIGMA**2) / exact(least(exact)) - 1)
    assert sum(losses) / len(losses) < 0.02
    assert max(losses) < 0.1


def test_gcv_scores_are_exact_within_their_monte_carlo_error() -> None:
    p = problem()
    choice = choose_weight(p, Tikhonov, Exact(), GCV(), bracket=(1e-1, 1e4))
    for weight, score in zip(choice.weights.tolist(), choice.scores.tolist(), strict=True):
        h = filters(weight)
        deviation = math.sqrt(2 * float(h.square().sum())) / N
        exact = chi_square(p.y, weight) / N
        assert exact / (1 - float(h.mean()) + 4 * deviation) ** 2 <= score
        assert score <= exact / max(1 - float(h.mean()) - 4 * deviation, 1e-6) ** 2


def test_l_curve_finds_a_sharp_corner() -> None:
    s = torch.logspace(0, -8, 64).double()
    sigma = 1e-4
    y = (s * s.sqrt() + sigma * noise(64, seed=5))[None]  # smooth truth: the data sink below the noise at once
    p = Problem(MatrixSensing(torch.diag(s)), y, Gaussian(sigma))

    def point(weight: float) -> tuple[float, float]:
        x = s * y[0] / (s**2 + weight * sigma**2)
        return float((s * x - y[0]).square().sum().log()), float(x.square().sum().log())

    grid = torch.logspace(-2, 10, 241).double().tolist()
    points = torch.tensor([point(w) for w in grid]).double()
    d1 = torch.gradient(points, dim=0)[0]
    d2 = torch.gradient(d1, dim=0)[0]
    curvature = (d1[:, 0] * d2[:, 1] - d1[:, 1] * d2[:, 0]) / d1.norm(dim=1) ** 3
    corner = grid[int(curvature[5:-5].argmax()) + 5]
    choice = choose_weight(p, Tikhonov, Exact(), LCurve(grid=25), bracket=(1e-2, 1e10))
    assert abs(math.log10(choice.weight / corner)) <= 0.75
    assert choice.interior
    assert choice.scores.max() > 0


def test_zero_filled_data_give_the_weight_of_the_compact_formulation() -> None:
    mask = noise(6, 6) > -0.2
    operator = MaskedFourier(mask)
    basis = torch.eye(36).to(torch.complex128).reshape(36, 6, 6)
    rows = operator(basis).reshape(36, 36)[:, mask.flatten()].mT.contiguous()
    x = noise(2, 6, 6, dtype=torch.complex128, seed=1)
    y = Gaussian(0.5).sample(operator(x), torch.Generator().manual_seed(2)) * mask
    compact = Problem(MatrixSensing(rows, (6, 6)), y.flatten(1)[:, mask.flatten()], Gaussian(0.5))
    filled = Problem(operator, y, Gaussian(0.5))
    assert torch.equal(filled.count, compact.count)
    assert filled.count.tolist() == [2 * int(mask.sum())] * 2  # complex data count twice
    algorithm = ConjugateGradient(iterations=20, rtol=1e-12)
    rule = Discrepancy(evaluations=40, rtol=1e-5)
    one, other = (choose_weight(p, Tikhonov, algorithm, rule, bracket=(1e-3, 1e3)) for p in (filled, compact))
    assert one.interior
    assert one.weight == pytest.approx(other.weight, rel=1e-6)
    # in closed form every sampled entry shrinks alike: chi^2 = |y|^2 / sigma^2 (1 - 1 / (1 + w sigma^2))^2
    ratio = math.sqrt(float(filled.count.sum()) / float((y.abs() ** 2).sum() / 0.25))
    assert one.weight == pytest.approx(ratio / (1 - ratio) / 0.25, rel=1e-3)


def test_complex_data_count_twice_in_sure() -> None:
    matrix = noise(40, 20, dtype=torch.complex128)
    p = Problem(MatrixSensing(matrix), noise(1, 40, dtype=torch.complex128, seed=1))
    choice = choose_weight(p, Tikhonov, Exact(), SURE(), bracket=(1e-2, 1e4))
    values = torch.linalg.svdvals(matrix)
    for (
        weight,
        score,
    ) in zip(choice.weights.tolist(), choice.scores.tolist(), strict=True):
        h = values**2 / (values**2 + weight)
        x = Exact().solve(p, Tikhonov(weight)).x
        exact = (2 * float(p.misfit(x)) - 80 + 4 * float(h.sum())) / 80
        assert abs(score - exact) <= 4 * 2 * math.sqrt(4 * float(h.square().sum())) / 80


@pytest.mark.parametrize("rule", [Discrepancy(rtol=1e-4, evaluations=30), SURE(), GCV(), LCurve()])
def test_the_choice_does_not_depend_on_the_units(rule: Discrepancy) -> None:
    one = choose_weight(problem(), Tikhonov, Exact(), rule)
    for scale in (1e-4, 1e3):
        other = choose_weight(problem(scale=scale), Tikhonov, Exact(), rule)
        assert other.weight * scale**2 == pytest.approx(one.weight, rel=1e-3)
        torch.testing.assert_close(other.reconstruction.x / scale, one.reconstruction.x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rule", [Discrepancy(), SURE(), GCV()])
def test_a_sparse_prior_is_weighted_sensibly(rule: Discrepancy) -> None:
    matrix, truth = noise(60, 80) / 8, noise(1, 80, seed=1) * (torch.arange(80) % 10 == 0)
    operator = MatrixSensing(matrix)
    p = Problem(operator, operator(truth) + 0.05 * noise(1, 60, seed=2), Gaussian(0.05))
    solver = FISTA(iterations=200, rtol=1e-4)
    choice = choose_weight(p, L1, solver, rule)
    errors = [float((solver.solve(p, L1(w)).x - truth).norm()) for w in torch.logspace(-1, 3, 9).tolist()]
    assert choice.interior
    assert float((choice.reconstruction.x - truth).norm()) < 2 * min(errors)


def test_what_it_cannot_do_is_named() -> None:
    p = problem()

    class Same(Denoiser):
        def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            return x

    counts = Problem(p.operator, p.y.abs(), Poisson())
    for rule in (Discrepancy(), SURE(), GCV(), LCurve()):
        name = type(rule).__name__
        with pytest.raises(
            TypeError, match=f"{name} needs a LinearOperator and Gaussian noise, got MatrixSensing and P"
        ):
            choose_weight(counts, Tikhonov, Exact(), rule)
        for bracket in ((2.0, 1.0), (1.0, 1.0)):
            with pytest.raises(ValueError, match="bracket must be .* least < greatest"):
                choose_weight(p, Tikhonov, Exact(), rule, bracket=bracket)
        with pytest.raises(ValueError, match=r"bracket\[0\] must be finite and > 0"):
            choose_weight(p, Tikhonov, Exact(), rule, bracket=(0.0, 1.0))
        with pytest.raises(TypeError, match="bracket must be given for PlugAndPlay"):
            choose_weight(p, lambda w: PlugAndPlay(Same(), w), ADMM(iterations=2), rule)
    with pytest.raises(TypeError, match="LCurve needs a prior whose value is its penalty, got RED"):
        choose_weight(p, lambda w: RED(Same(), 0.1, w), Exact(), LCurve(), bracket=(0.1, 1.0))
    nothing = Problem(p.operator, torch.zeros_like(p.y))
    with pytest.raises(ValueError, match="bracket must be given: the penalty"):
        choose_weight(nothing, Tikhonov, Exact(), SURE())


@pytest.mark.parametrize("rule", [Discrepancy(), SURE(), GCV(), LCurve()])
def test_an_interrupt_ends_the_search(rule: Discrepancy) -> None:
    class Interrupted(L1):
        def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        choose_weight(problem(), Interrupted, FISTA(iterations=3), rule, bracket=(1.0, 2.0))


def test_a_rule_must_be_one() -> None:
    for rule in (SURE, "sure"):
        with pytest.raises(TypeError, match=r"rule must be a Discrepancy\(\), SURE\(\), .* got .*(SURE|sure)"):
            choose_weight(problem(), Tikhonov, Exact(), rule)


def test_wrong_options_are_named() -> None:
    for kind in (SURE, GCV):
        with pytest.raises(ValueError, match="grid must be"):
            kind(grid=2)
        with pytest.raises(ValueError, match="refinements must be"):
            kind(refinements=-1)
        with pytest.raises(ValueError, match="probe must be finite and > 0"):
            kind(probe=0.0)
    with pytest.raises(ValueError, match="grid must be"):
        LCurve(grid=7)
    with pytest.raises(ValueError, match="tau must be finite and > 0"):
        Discrepancy(tau=0.0)
    with pytest.raises(ValueError, match="evaluations must be"):
        Discrepancy(evaluations=2)
    with pytest.raises(ValueError, match="rtol must be finite and > 0"):
        Discrepancy(rtol=0.0)


def test_cross_validation_refuses_a_bracket_that_interpolates() -> None:
    matrix, y = noise(10, 30), noise(1, 10, seed=1)
    with pytest.raises(ValueError, match="bracket must hold weights that leave 10% of the data free for GCV, got none"):
        choose_weight(Problem(MatrixSensing(matrix), y), Tikhonov, Exact(), GCV(grid=3), bracket=(1e-9, 1e-8))
