"""Strong and weak orders of the stochastic methods, and how the errors of adaptive solves follow the tolerance."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from noisy_problems import NoisyProblem, bent, crossed, cubic, fading, growing, pulled, roots, wave
from torch import Tensor

from invreg.solvers import (
    PI,
    SOSRA,
    SOSRA2,
    SOSRI,
    SOSRI2,
    SRA1,
    SRA3,
    SRIW1,
    SRIW2,
    Euler,
    EulerHeun,
    Fixed,
    Heun,
    Method,
    Midpoint,
    Milstein,
    Ralston,
    ReversibleHeun,
    ShARK,
    VirtualBrownianTree,
    odeint,
    sdeint,
)
from invreg.solvers.arguments import all_methods
from invreg.solvers.method import Calculus, Noise

METHODS: tuple[Method, ...] = (
    Euler(),
    Heun(),
    Midpoint(),
    Ralston(),
    ReversibleHeun(),
    EulerHeun(),
    Milstein(),
    Milstein(derivative_free=True),
    SRA1(),
    SRA3(),
    SOSRA(),
    SOSRA2(),
    ShARK(),
    SRIW1(),
    SRIW2(),
    SOSRI(),
    SOSRI2(),
)
PROBLEMS: dict[Noise, tuple[Callable[[], NoisyProblem], ...]] = {
    "diagonal": (growing, cubic, wave, roots),
    "scalar": (functools.partial(growing, "scalar"), functools.partial(bent, "scalar")),
    "commutative": (functools.partial(bent, "commutative"),),
    "general": (functools.partial(bent, "general"), crossed),
    "additive": (fading, functools.partial(pulled, False), functools.partial(pulled, True)),
}
LEVELS = (3, 4, 5, 6)  # steps of 2^-k from 0 to 1
BEYOND = 3  # halvings from the shortest steps to those of a reference
# where the order is above that of the noise in general, and why
FASTER = {
    ("additive", "fading"): "the increments of a linear drift's noise cancel, and the error is that without noise",
    ("diagonal", "roots"): "the drift is 30 times the noise, and its error, of order 1 or 2, the larger one",
    ("general", "bent"): "its noise commutes",
}
WEAKEST = 0.4  # of a measured order below the declared one
ROWS = [(method, *kind) for method in METHODS for kind in method.strong_orders]


def name_of(value: object) -> str:
    free = isinstance(value, Milstein) and value.derivative_free
    return ("DerivativeFree" if free else "") + type(value).__name__ if isinstance(value, Method) else str(value)


def path_of(problem: NoisyProblem, batch: int, finest: int, seed: int = 1) -> VirtualBrownianTree:
    cell = 2.0**-finest
    return VirtualBrownianTree(0.0, 1.0, (batch, problem.channels), seed=seed, cell=cell, dtype=torch.float64)


def end_of(problem: NoisyProblem, calculus: Calculus, method: Method, level: int, path: VirtualBrownianTree) -> Tensor:
    with torch.no_grad():
        solution = sdeint(
            problem.drifts[calculus],
            problem.diffusion,
            problem.start(path.shape[0]),
            [0.0, 1.0],
            noise=problem.noise,
            calculus=calculus,
            method=method,
            controller=Fixed(2.0**-level),
            path=path,
        )
    return solution.ys[-1]


@dataclass(frozen=True, eq=False)
class Reference:
    """A problem, a path, and where it leads."""

    problem: NoisyProblem
    path: VirtualBrownianTree
    end: Tensor


@functools.cache
def reference_of(make: Callable[[], NoisyProblem], calculus: Calculus) -> Reference:
    """The exact end, or that of much shorter steps by the best method there is."""
    problem = make()
    if problem.exact is not None:
        path = path_of(problem, 256, max(LEVELS))
        return Reference(problem, path, problem.exact(1.0, path(0.0, 1.0)))
    finest = max(LEVELS) + BEYOND
    path = path_of(problem, 100, finest)
    method: Method = SRA3() if problem.noise == "additive" else Euler() if calculus == "ito" else Heun()
    return Reference(problem, path, end_of(problem, calculus, method, finest, path))


def measured(method: Method, calculus: Calculus, reference: Reference, levels: tuple[int, ...] = LEVELS) -> float:
    """The slope of the mean error over one set of paths."""
    errors = [
        float((end_of(reference.problem, calculus, method, k, reference.path) - reference.end).norm(dim=-1).mean())
        for k in levels
    ]
    return -float(np.polyfit(levels, np.log2(errors), 1)[0])


@pytest.mark.usefixtures("forward_mode")
@pytest.mark.parametrize(("method", "calculus", "noise"), ROWS, ids=name_of)
def test_the_strong_order_is_the_declared_one(method: Method, calculus: Calculus, noise: Noise) -> None:
    declared = method.strong_orders[calculus, noise]
    for make in PROBLEMS[noise]:
        reference = reference_of(make, calculus)
        name = reference.problem.name
        order = measured(method, calculus, reference)
        assert order > declared - WEAKEST, name
        assert order < declared + WEAKEST or (noise, name) in FASTER, name


def test_every_method_for_stochastic_equations_is_measured() -> None:
    found = {one for one in all_methods() if one.strong_orders and one.__module__.startswith("invreg.")}
    abstract = {one for one in found if getattr(one, "__abstractmethods__", None)}
    assert found - abstract == {type(one) for one in METHODS}


@pytest.mark.parametrize(
    ("calculus", "make"),
    [
        ("stratonovich", wave),
        ("stratonovich", functools.partial(bent, "scalar")),
        ("ito", functools.partial(bent, "commutative")),
    ],
)
def test_difference_quotients_keep_the_order_at_short_steps(
    calculus: Calculus, make: Callable[[], NoisyProblem]
) -> None:
    # an error of the quotient whose mean is of order sqrt(dt) shows only there, as order 0.5
    problem, levels = make(), (6, 7, 8)
    path = path_of(problem, 64, max(levels))
    assert problem.exact is not None
    reference = Reference(problem, path, problem.exact(1.0, path(0.0, 1.0)))
    assert measured(Milstein(derivative_free=True), calculus, reference, levels) > 0.8


@pytest.mark.parametrize(
    ("make", "calculus", "better", "worse"),
    [
        (cubic, "ito", SOSRI(), Milstein()),
        (cubic, "ito", Milstein(), Euler()),
        (functools.partial(bent, "commutative"), "ito", Milstein(), Euler()),
        (functools.partial(pulled, True), "ito", SOSRA(), Euler()),
        (functools.partial(pulled, False), "stratonovich", ShARK(), Heun()),
    ],
)
def test_a_higher_order_gives_a_smaller_error_at_the_same_step(
    make: Callable[[], NoisyProblem], calculus: Calculus, better: Method, worse: Method
) -> None:
    reference = reference_of(make, calculus)
    errors = [end_of(reference.problem, calculus, one, 6, reference.path) - reference.end for one in (better, worse)]
    assert errors[0].norm() < 0.5 * errors[1].norm()


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_without_noise_they_are_methods_for_ordinary_equations(method: Method) -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.cos(3 * t) - y * y

    y0 = torch.tensor([0.4, 1.0], dtype=torch.float64)
    calculus, noise = next(iter(method.strong_orders))
    exact = odeint(field, y0, [0.0, 1.0], rtol=1e-12, atol=1e-12).ys[-1]
    errors = []
    for k in (5, 6, 7):
        solution = sdeint(
            field,
            lambda t, y: torch.zeros_like(y),
            y0,
            [0.0, 1.0],
            noise=noise,
            calculus=calculus,
            method=method,
            controller=Fixed(2.0**-k),
        )
        errors.append(float((solution.ys[-1] - exact).norm()))
    order = 1 if isinstance(method, (Euler, EulerHeun, Milstein)) else 3 if isinstance(method, (SRA3, SRIW2)) else 2
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.35)  # SOSRI reaches far


# --- both calculi


def converted(problem: NoisyProblem) -> Callable[[Tensor, Tensor], Tensor]:
    """Ito's drift of what Stratonovich's drift of a problem with a matrix of noise describes."""

    def drift(t: Tensor, y: Tensor) -> Tensor:
        g = problem.diffusion(t, y)
        total = problem.drifts["stratonovich"](t, y)
        for j in range(problem.channels):
            change = torch.func.jvp(lambda x, j=j: problem.diffusion(t, x)[..., j], (y,), (g[..., j],))[1]
            total = total + change / 2
        return total

    return drift


@pytest.mark.usefixtures("forward_mode")
def test_drifts_of_ito_are_those_of_stratonovich_and_a_half_of_the_noises_own_derivative() -> None:
    problem = bent("commutative")
    random = torch.Generator().manual_seed(0)
    y, t = torch.randn(7, 2, dtype=torch.float64, generator=random), torch.tensor(0.4, dtype=torch.float64)
    torch.testing.assert_close(problem.drifts["ito"](t, y), converted(problem)(t, y), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("forward_mode")
@pytest.mark.parametrize("make", [growing, cubic, wave, functools.partial(bent, "scalar")])
def test_milsteins_method_takes_the_same_step_in_both_calculi(make: Callable[[], NoisyProblem]) -> None:
    # f_i + g' g (w^2 - h) / 2h = f_s + g' g w^2 / 2h
    problem = make()
    path = path_of(problem, 16, 4)
    one, other = (end_of(problem, calculus, Milstein(), 4, path) for calculus in ("ito", "stratonovich"))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("forward_mode")
def test_both_calculi_meet_where_the_noise_does_not_commute() -> None:
    problem = crossed()
    path = path_of(problem, 200, 8)
    of_ito = NoisyProblem("ito", "general", {"ito": converted(problem)}, problem.diffusion, problem.y0, 2)
    apart = [
        float((end_of(of_ito, "ito", Euler(), k, path) - end_of(problem, "stratonovich", Heun(), k, path)).norm())
        for k in (4, 8)
    ]
    assert apart[1] < 0.4 * apart[0]  # a quarter for order 0.5
    other = NoisyProblem("other", "general", problem.drifts, problem.diffusion, problem.y0, 2)
    wrong = end_of(other, "ito", Euler(), 8, path) - end_of(problem, "stratonovich", Heun(), 8, path)
    assert float(wrong.norm()) > 3 * apart[1]  # without the conversion


# --- in the mean


@pytest.mark.parametrize(
    ("method", "calculus", "noise", "order"),
    [
        (Euler(), "ito", "diagonal", 1),
        (EulerHeun(), "stratonovich", "diagonal", 1),
        (Heun(), "stratonovich", "diagonal", 1),
        (SOSRI(), "ito", "diagonal", 2),
        (SRIW1(), "ito", "diagonal", 2),
        (SOSRA(), "ito", "additive", 2),
        (ShARK(), "ito", "additive", 2),
    ],
    ids=name_of,
)
def test_the_weak_order_of_the_second_moment(method: Method, calculus: Calculus, noise: Noise, order: int) -> None:
    batch, levels = 50_000, (1, 2, 3)
    rate, sigma = 1.2, 0.4

    def drift(t: Tensor, y: Tensor) -> Tensor:
        return rate * y + (0.0 if noise == "additive" or calculus == "stratonovich" else 0.5 * sigma**2) * y

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(y, sigma) if noise == "additive" else sigma * y

    path = VirtualBrownianTree(0.0, 1.0, (batch, 1), seed=2, cell=2.0**-5, dtype=torch.float64)
    y0 = torch.ones(batch, 1, dtype=torch.float64)

    def square_at_the_end(level: int) -> Tensor:
        with torch.no_grad():
            solution = sdeint(
                drift, diffusion, y0, [0.0, 1.0], noise=noise, calculus=calculus, method=method, path=path,
                controller=Fixed(2.0**-level),
            )  # fmt: skip
        return solution.ys[-1].square()

    w = path(0.0, 1.0)
    exact = square_at_the_end(5) if noise == "additive" else torch.exp(rate + sigma * w).square()
    # on common paths the difference of the squares varies far less than they do
    changes = [square_at_the_end(k) - exact for k in levels]
    errors = [abs(float(one.mean())) for one in changes]
    for error, change in zip(errors, changes, strict=True):
        assert float(change.std()) / math.sqrt(batch) < 0.1 * error
    slope = -float(np.polyfit(levels, np.log2(errors), 1)[0])
    assert slope > order - WEAKEST


# --- adaptive steps


SLOW = {Milstein: 30, Heun: 5, Midpoint: 5, Ralston: 5, ReversibleHeun: 5}  # seconds with a matrix of noise
ADAPTIVE = [
    pytest.param(
        method,
        calculus,
        noise,
        marks=[pytest.mark.slow(seconds=SLOW[type(method)])] if noise == "commutative" and type(method) in SLOW else [],
    )
    for method in METHODS
    for calculus, noise in method.strong_orders
    if method.error_order is not None and noise in {"diagonal", "commutative", "additive"}
]
ERRORS_OF: dict[Noise, Callable[[], NoisyProblem]] = {
    "diagonal": cubic,
    "commutative": functools.partial(bent, "commutative"),
    "additive": fading,
}


@pytest.mark.usefixtures("forward_mode")
@pytest.mark.parametrize(("method", "calculus", "noise"), ADAPTIVE, ids=name_of)
def test_the_error_over_a_thousand_paths_follows_the_tolerance(
    method: Method, calculus: Calculus, noise: Noise
) -> None:
    problem = ERRORS_OF[noise]()
    path = VirtualBrownianTree(0.0, 1.0, (1000, problem.channels), seed=3, dtype=torch.float64)
    assert problem.exact is not None
    exact, errors, steps = problem.exact(1.0, path(0.0, 1.0)), [], []
    for tolerance in (1e-1, 1e-2, 1e-3):
        with torch.no_grad():
            solution = sdeint(
                problem.drifts[calculus],
                problem.diffusion,
                problem.start(1000),
                [0.0, 1.0],
                noise=noise,
                calculus=calculus,
                method=method,
                path=path,
                controller=PI(),
                rtol=tolerance,
                atol=tolerance,
            )
        error = float((solution.ys[-1] - exact).square().mean().sqrt())
        assert error < 100 * tolerance
        errors.append(error)
        steps.append(len(solution.steps))
    assert errors[2] < errors[1] < errors[0] and errors[2] < 0.1 * errors[0]
    assert steps[0] < steps[1] < steps[2]
