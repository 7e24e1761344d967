"""What the solver found hard, as penalties: against sums by hand and finite differences, with every adjoint."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from invreg.regularizers import Exponential, Linear, LocalHeuristic, SolverError, SolverStiffness
from invreg.solvers import Backsolve, Bosh3, Checkpointed, Direct, Fixed, Heun, Solution, Tsit5, odeint

F64 = torch.float64


def weights() -> Tensor:
    return torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def start() -> Tensor:
    return torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(1))


def solve(w: Tensor, **options: Any) -> Solution:
    return odeint(lambda t, y: torch.tanh(y @ w) * (1 + t), start(), [0.0, 1.0], **options)


@pytest.mark.parametrize("per_sample", [False, True])
def test_error_is_the_sum_over_accepted_steps_of_estimate_times_length(per_sample: bool) -> None:
    solution = solve(weights(), per_sample=per_sample)
    steps = solution.steps
    wanted = (steps.ratio * steps.dt.abs() * steps.mask).sum(0)
    found = SolverError(2.0)(solution)
    assert found.shape == (4,) if per_sample else found.shape == ()
    assert torch.allclose(found, 2 * wanted.reshape(found.shape))


def test_variants_of_the_error() -> None:
    solution = solve(weights())
    ratio, error, dt = solution.steps.ratio[:, 0], solution.steps.error[:, 0], solution.steps.dt[:, 0]
    assert torch.allclose(SolverError(power=2, by_step=False)(solution), ratio.square().sum())
    assert torch.allclose(SolverError(over="mean")(solution), (ratio * dt).mean())
    assert torch.allclose(SolverError(normalized=False)(solution), (error * dt).sum())


def test_the_normalized_error_is_the_other_one_divided_by_the_tolerance() -> None:
    solution = solve(weights(), rtol=1e-12, atol=1e-4, controller=Fixed(0.1), method=Tsit5())
    assert torch.allclose(SolverError()(solution), SolverError(normalized=False)(solution) / 1e-4, rtol=1e-6)


def test_variants_of_the_stiffness() -> None:
    solution = solve(weights())
    stiffness, dt = solution.steps.stiffness[:, 0], solution.steps.dt[:, 0]
    assert torch.allclose(SolverStiffness()(solution), (stiffness * dt).sum())
    assert torch.allclose(SolverStiffness(over="max", by_step=False)(solution), stiffness.max())
    scaled = SolverStiffness(over="mean", by_step=False, by_stability=True)(solution)
    assert torch.allclose(scaled, stiffness.mean() / 3.5068)


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed(), Checkpointed(tape=0)], ids=str)
@pytest.mark.parametrize("heuristic", [SolverError(), SolverStiffness()], ids=["error", "stiffness"])
def test_the_gradient_is_that_of_finite_differences(heuristic: Any, adjoint: Any) -> None:
    def penalty(w: Tensor) -> Tensor:
        return heuristic(solve(w, controller=Fixed(0.25), method=Tsit5(), adjoint=adjoint))

    assert torch.autograd.gradcheck(penalty, weights())


def test_no_error_gives_no_gradient_rather_than_nan() -> None:
    w = torch.zeros(3, dtype=F64, requires_grad=True)
    solution = odeint(lambda t, y: w + 0 * y, start(), [0.0, 1.0])
    for heuristic in (SolverError(), SolverError(power=2), SolverStiffness(), LocalHeuristic()):
        (gradient,) = torch.autograd.grad(heuristic(solution), w, retain_graph=True, allow_unused=True)
        assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("heuristic", [SolverError(), SolverStiffness()], ids=["error", "stiffness"])
def test_a_solution_without_a_graph_raises(heuristic: Any) -> None:
    with torch.no_grad():
        bare = solve(weights())
    with pytest.raises(RuntimeError, match=r"carries no gradient of its estimates.*LocalHeuristic works with any"):
        heuristic(bare)
    with pytest.raises(RuntimeError, match="carries no gradient"):
        heuristic(solve(weights(), adjoint=Backsolve()))
    with torch.no_grad():
        assert heuristic(bare).isfinite()


def test_methods_without_an_estimate_are_named() -> None:
    with pytest.raises(ValueError, match=r"Bosh3 has no stiffness estimate; Tsit5\(\)"):
        SolverStiffness()(solve(weights(), method=Bosh3()))
    with pytest.raises(ValueError, match=r"Heun has no stiffness estimate"):
        LocalHeuristic(of="stiffness")(solve(weights(), method=Heun(), rtol=1e-2))


@pytest.mark.parametrize(
    "adjoint",
    [Direct(), Checkpointed(), Checkpointed(tape=0), Backsolve()],
    ids=["direct", "checkpointed", "replayed", "backsolve"],
)
@pytest.mark.parametrize("sampling", ["unbiased", "biased"])
def test_the_local_form_works_with_any_adjoint(adjoint: Any, sampling: Any) -> None:
    w = weights()
    solution = solve(w, adjoint=adjoint, rtol=1e-8, atol=1e-8)
    found = LocalHeuristic(sampling=sampling, generator=torch.Generator().manual_seed(3))(solution)
    candidates = (solution.steps.ratio * solution.steps.dt.abs())[:, 0].detach()
    assert (candidates - found.detach()).abs().min() < 1e-9 * found.detach()
    (gradient,) = torch.autograd.grad(found, w)
    assert gradient.norm() > 0


def test_the_local_form_reaches_only_what_the_field_holds() -> None:
    w, y0 = weights(), start().requires_grad_()
    solution = odeint(lambda t, y: torch.tanh(y @ w), y0, [0.0, 1.0])
    assert torch.autograd.grad(LocalHeuristic()(solution), y0, allow_unused=True) == (None,)


def test_unbiased_draws_follow_time_and_biased_ones_the_steps() -> None:
    solution = solve(weights(), rtol=1e-9, atol=1e-9)
    dt = solution.steps.dt[:, 0]
    generator = torch.Generator().manual_seed(0)
    for sampling, chance in (
        ("unbiased", dt / dt.sum()),
        ("biased", torch.cat([torch.full((len(dt) - 1,), 1 / (len(dt) - 1), dtype=F64), dt.new_zeros(1)])),
    ):
        local = LocalHeuristic(sampling=sampling, generator=generator)  # type: ignore[arg-type]
        draws = torch.tensor([local._draw(solution) for _ in range(4000)])
        found = torch.bincount(draws, minlength=len(dt)) / 4000
        assert (found - chance).abs().max() < 4 * 0.5 / math.sqrt(4000)


def test_per_sample_draws_pick_a_step_of_each() -> None:
    w = weights()
    solution = odeint(
        lambda t, y: torch.tanh(3 * y @ w), start() * torch.arange(1, 5)[:, None], [0.0, 2.0], per_sample=True
    )
    found = LocalHeuristic(sampling="biased", generator=torch.Generator().manual_seed(0))(solution)
    assert found.shape == (4,)
    assert (found > 0).all()


def test_schedules_reach_their_ends() -> None:
    falling = SolverError(schedule=Exponential(100.0, 10.0))
    assert falling.weight == 100.0
    assert falling.at(1.0).weight == pytest.approx(10.0)
    assert falling.at(0.5).weight == pytest.approx(math.sqrt(1000))
    assert SolverStiffness(schedule=Linear(0.0, 2.0)).at(0.25).weight == 0.5
    assert SolverError(3.0).at(0.7).weight == 3.0
    assert falling.weight == 100.0
    assert copy.deepcopy(falling).at(1.0).weight == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SolverError(power=3), "power must be 1 or 2, got 3"),
        (lambda: SolverError(over="max"), "over must be one of 'sum', 'mean', got 'max'"),
        (lambda: SolverStiffness(over="all"), "over must be one of 'sum', 'mean', 'max', got 'all'"),
        (lambda: LocalHeuristic(of="nfe"), 'of must be "error" or "stiffness"'),
        (lambda: LocalHeuristic(sampling="all"), 'sampling must be "unbiased" or "biased"'),
        (lambda: Exponential(1.0, 0.0), "first and last must be > 0"),
        (lambda: SolverError(schedule=Linear(0, 1)).at(1.5), "progress must be between 0 and 1"),
    ],
)
def test_wrong_options_are_named(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
