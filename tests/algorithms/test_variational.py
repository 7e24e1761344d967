"""Adam on misfit and prior: step by step, at rest, and what it refuses."""

from collections.abc import Callable

import pytest
import torch
from sampler_problems import (
    C128,
    F64,
    Counted,
    dense,
    gauss8,
    generators,
    matrix,
    measured,
    network_denoiser,
    noise,
    seeded,
)
from torch import Tensor

from invreg.algorithms import Status, Variational
from invreg.interfaces import Denoiser, Regularizer
from invreg.models.denoiser import NetworkDenoiser
from invreg.models.noise_path import VariancePreserving
from invreg.models.oracles import GaussianOracle
from invreg.noise import Gaussian, Poisson
from invreg.operators import Mask, PhaseRetrieval, Sense
from invreg.problem import Problem
from invreg.regularizers import L1, NonNegative, REDDiff, Tikhonov
from invreg.regularizers.red_diff import (
    clipped,
    constant,
    linear,
    logarithmic,
    published_weight,
    root,
    square,
    two_thirds,
)
from invreg.testing import relative_gap


class Adam:
    """Kingma and Ba, Alg. 1, on the gradients that it is given."""

    def __init__(self, step_size: float, betas: tuple[float, float]) -> None:
        self.step_size, self.betas, self.count = step_size, betas, 0
        self.m = self.v = torch.zeros((), dtype=F64)

    def moved(self, x: Tensor, g: Tensor) -> Tensor:
        a, b = self.betas
        self.count += 1
        self.m, self.v = a * self.m + (1 - a) * g, b * self.v + (1 - b) * g**2
        m, v = self.m / (1 - a**self.count), self.v / (1 - b**self.count)
        return x - self.step_size * m / (v.sqrt() + 1e-8)


@pytest.mark.slow  # torch loads its compiler when its first optimizer is made
@pytest.mark.parametrize("dtype", [F64, C128], ids=str)
def test_its_steps_are_those_of_torchs_adam(dtype: torch.dtype) -> None:
    problem = measured(matrix(5, (8,), dtype=dtype), noise(2, 8, dtype=dtype), 0.5)
    sampler = Variational(iterations=25, step_size=0.03, momentum=0.8, decay=0.95)
    got = sampler.solve(problem, Tikhonov(0.7), torch.ones(2, 8, dtype=dtype)).x
    x = torch.ones(2, 8, dtype=dtype, requires_grad=True)
    adam = torch.optim.Adam([x], lr=0.03, betas=(0.8, 0.95))
    for _ in range(25):
        adam.zero_grad()
        (problem.misfit(x) + Tikhonov(0.7)(x)).sum().backward()
        adam.step()
    assert relative_gap(got, x.detach()) < 1e-7  # what it adds to the root is in another unit


def test_it_starts_from_least_squares_of_least_norm() -> None:
    A = matrix(5, (8,))
    problem = measured(A, noise(2, 8), 0.1)
    start = Variational(start=100).init(problem, L1(), None).x
    assert relative_gap(start, problem.y @ torch.linalg.pinv(A.matrix).mT) < 0.02
    x0 = torch.ones(2, 8, dtype=F64)
    assert torch.equal(Variational().init(problem, L1(), x0).x, x0)
    assert torch.equal(Variational(start=0).init(problem, L1(), None).x, torch.zeros(2, 8, dtype=F64))


@pytest.mark.parametrize(
    "weighting", [linear, root, square, logarithmic, clipped, two_thirds, constant], ids=lambda f: f.__name__
)
def test_red_diff_is_the_published_descent(weighting: Callable[[float], float]) -> None:
    """Alg. 1 with the authors' means over measurements and pixels, and their weightings of sigma."""
    steps, value, shape = 20, 0.25, (4, 5)
    f = {
        "linear": lambda s: s,
        "root": lambda s: s**0.5,
        "square": lambda s: s**2,
        "logarithmic": lambda s: torch.log(s + 1),
        "clipped": lambda s: s.clamp(max=1.0),
        "two_thirds": lambda s: s ** (2 / 3),
        "constant": lambda s: 0 * s + 1,
    }[weighting.__name__]
    inner = network_denoiser().network
    prior = NetworkDenoiser(inner, VariancePreserving(), layout="channels")
    A = matrix(8, shape)
    problem = measured(A, noise(1, *shape, seed=3), 0.05)
    x0 = noise(1, *shape, seed=4)
    weight = published_weight(problem, x0, value)
    assert weight == pytest.approx(value * 8 / 20 / 0.05**2)
    regularizer = REDDiff(prior, weight, weighting=weighting, generator=seeded(7))
    got = Variational(iterations=steps, step_size=0.1).solve(problem, regularizer, x0).x

    generator, x, adam = seeded(7), x0, Adam(0.1, (0.9, 0.99))
    for t in torch.linspace(1, 1e-3, steps, dtype=F64):
        a = torch.exp(-(0.1 * t + 19.9 * t**2 / 2))
        e = torch.randn(1, *shape, dtype=F64, generator=generator)
        with torch.no_grad():
            noisy = a.sqrt() * x + (1 - a).sqrt() * e
            seen = inner(noisy[:, None], (999 * t)[None])[:, 0]
        pull = value * f(((1 - a) / a).sqrt()) * (seen - e) / 20  # of the means of 20 pixels and 8 measurements
        x = adam.moved(x, pull + A.adjoint(A(x) - problem.y) / 8)
    assert relative_gap(got, x) < 2e-5  # what Adam adds to the root is not in their unit


def test_red_diff_at_a_fixed_level_rests_where_a_linear_system_does() -> None:
    """A Gaussian prior: E[x - D(x + sigma n)] = sigma^2 (C + sigma^2)^-1 (x - m)."""
    toy, sigma, weight = gauss8(), 0.7, 3.0
    prior = toy.prior
    assert isinstance(prior, GaussianOracle)
    A = dense(toy.problem.operator, prior.mean[None])  # type: ignore[arg-type]
    unit = torch.eye(8, dtype=F64)
    pull = weight * sigma**2 * torch.linalg.inv(prior.covariance + sigma**2 * unit)
    wanted = torch.linalg.solve(A.mT @ A / 0.01 + pull, A.mT @ toy.problem.y[0] / 0.01 + pull @ prior.mean)
    regularizer = REDDiff(prior, weight, sigma_max=sigma, sigma_min=sigma, generator=seeded(0))
    count = 200
    x = Variational(iterations=400, step_size=0.005).solve(toy.repeated(count), regularizer).x
    error = x.mean(0) - wanted
    # Adam's own steps scatter about it
    assert float(error.norm()) < 4 * float(x.var(0).sum().div(count).sqrt()) + 0.02 * float(wanted.norm())
    assert float(x.var(0).sum().sqrt()) < float(toy.exact.covariance.trace().sqrt())


@pytest.mark.parametrize("kind", ["oracle", "coils", "network"])
def test_a_sample_does_not_depend_on_its_batch(kind: str) -> None:
    prior: Denoiser
    if kind == "oracle":
        prior = gauss8().prior
        problem = measured(gauss8().problem.operator, prior.sample(3, seeded(1)), 0.1)  # type: ignore[arg-type]
    elif kind == "coils":
        prior = GaussianOracle(torch.zeros(4, 5, dtype=C128), torch.eye(20, dtype=C128))
        problem = measured(Sense(noise(3, 2, 4, 5, dtype=C128)), prior.sample(3, seeded(1)), 0.1)
    else:
        prior = network_denoiser().float()
        problem = measured(matrix(9, (4, 5), dtype=torch.float32), noise(3, 4, 5).float(), 0.1)

    def solve(one: Problem, first: int) -> Tensor:
        regularizer = REDDiff(prior, 5.0, generator=generators(len(one.y), first))
        return Variational(iterations=15, start=3).solve(one, regularizer).x

    together = solve(problem, 100)
    for i in range(3):
        A = problem.operator
        A = Sense(A.maps[i : i + 1]) if isinstance(A, Sense) else A
        one = solve(Problem(A, problem.y[i : i + 1], problem.noise), 100 + i)
        assert relative_gap(together[i : i + 1], one) < (1e-3 if kind == "network" else 1e-9)


def test_any_operator_and_noise_will_do_with_a_first_image() -> None:
    operator = PhaseRetrieval(matrix(12, (4,)))
    truth = noise(2, 4)
    problem = Problem(operator, operator(truth), Gaussian(0.1))
    x0 = truth + 0.2 * noise(2, 4, seed=2)
    x = Variational(iterations=300, step_size=0.02).solve(problem, Tikhonov(1e-6), x0).x
    assert relative_gap(x, truth) < 0.02
    counts = Problem(Mask(torch.ones(4, dtype=torch.bool)), torch.full((1, 4), 9.0), Poisson(3.0))
    x = Variational(iterations=300, step_size=0.05).solve(counts, Tikhonov(0.0), torch.ones(1, 4)).x
    assert torch.allclose(x, torch.full((1, 4), 3.0), atol=0.05)
    with pytest.raises(ValueError, match="x0 must be given for PhaseRetrieval"):
        Variational().solve(problem, Tikhonov(1.0))


def test_counts_pull_images_back_to_where_their_likelihood_is_positive() -> None:
    """The minimum of p x - y log(p x) + w x^2 / 2; at the starts it is infinite."""
    photons, weight = 5.0, 2.0
    y = torch.tensor([[1.0, 3.0, 2.0, 0.0]], dtype=F64)
    problem = Problem(Mask(torch.ones(4, dtype=torch.bool)), y, Poisson(photons))
    wanted = ((photons**2 + 4 * weight * y).sqrt() - photons) / (2 * weight)
    for start in (None, torch.full((1, 4), -0.2, dtype=F64)):
        found = Variational(iterations=400, step_size=0.02).solve(problem, Tikhonov(weight), start)
        assert found.status == (Status.COMPLETE,)
        error = (found.x - wanted).abs()[0]
        assert float(error[:3].max()) < 1e-3
        assert float(error[3]) < 0.1  # where the count is 0 there is a kink


def test_a_step_costs_one_denoising_and_one_normal() -> None:
    toy = gauss8()
    counted = Counted(toy.problem.operator)  # type: ignore[arg-type]
    problem = Problem(counted, toy.problem.y, toy.problem.noise)
    run = Variational(iterations=5, check_every=100).iterate(problem, REDDiff(toy.prior, generator=seeded(0)))
    counted.calls()
    for _ in range(3):
        next(run)
    assert counted.calls() == (0, 0, 3)


def test_a_zero_gradient_moves_nothing() -> None:
    problem = Problem(matrix(3, (4,)), torch.zeros(1, 3, dtype=F64))
    found = Variational(iterations=5).solve(problem, Tikhonov(1.0))
    assert torch.equal(found.x, torch.zeros(1, 4, dtype=F64))
    assert found.status == (Status.COMPLETE,)


def test_the_annealed_level_goes_from_end_to_end() -> None:
    class Level(Regularizer[Tensor]):
        def __init__(self, seen: list[float]) -> None:
            super().__init__()
            self.seen = seen

        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.sum(1)

        def at(self, progress: float) -> "Level":
            self.seen.append(progress)
            return self

    for iterations, wanted in ((5, [0.0, 0.25, 0.5, 0.75, 1.0]), (1, [0.0])):
        prior = Level([])
        run = Variational(iterations=iterations, check_every=99).iterate(gauss8().problem, prior)
        for _ in range(iterations):
            run.state = run.algorithm.step(run.problem, prior, run.state, (run.state.steps + 1) / iterations)
        assert prior.seen == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Variational(step_size=0.0), ValueError, "step_size must be"),
        (lambda: Variational(momentum=1.0), ValueError, r"momentum must be within \[0, 1\), got 1.0"),
        (lambda: Variational(decay=-0.5), ValueError, r"decay must be within \[0, 1\), got -0.5"),
        (lambda: Variational(start=-1), ValueError, "start must be >= 0, got -1"),
    ],
)
def test_a_wrong_number_is_refused(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_what_has_no_gradient_is_refused() -> None:
    toy = gauss8()
    with pytest.raises(TypeError, match="needs a Regularizer with finite values, got GaussianOracle; DDS and DiffPIR"):
        Variational().solve(toy.problem, toy.prior)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got NonNegative"):
        Variational().solve(toy.problem, NonNegative())
