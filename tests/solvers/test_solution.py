import math

import pytest
import torch
from torch import Tensor

from invreg.solvers import Fixed, Solution, Status, Tsit5, odeint


def swinging(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.cos(t)


def start() -> Tensor:
    return torch.tensor([1.0, 2.0], dtype=torch.float64)


@pytest.fixture(params=[False, True], ids=["joint", "per_sample"])
def solution(request: pytest.FixtureRequest) -> Solution:
    return odeint(swinging, start(), [0.0, 1.0, 3.0], rtol=1e-8, atol=1e-8, per_sample=request.param)


def exact(t: Tensor) -> Tensor:
    return start() * torch.exp(torch.sin(t))[..., None]


def test_it_is_called_with_a_number_a_scalar_or_several_times(solution: Solution) -> None:
    t = torch.tensor([2.9, 0.0, 0.7, 3.0], dtype=torch.float64)
    torch.testing.assert_close(solution(t), exact(t), rtol=1e-5, atol=0)
    torch.testing.assert_close(solution(0.7), exact(t[2]), rtol=1e-5, atol=0)
    torch.testing.assert_close(solution(t[2]), solution(0.7), rtol=0, atol=0)
    assert solution(t.float()).dtype == torch.float64
    assert solution(1).shape == (2,)


def test_it_meets_the_values_that_were_asked_for(solution: Solution) -> None:
    torch.testing.assert_close(solution(solution.ts), solution.ys, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("t", [-0.1, 3.5])
def test_a_time_that_was_not_reached_is_refused(solution: Solution, t: float) -> None:
    with pytest.raises(ValueError, match=r"t must lie between 0 and 3, which the solve reached, got "):
        solution(t)


def test_a_time_beyond_an_early_end_is_refused() -> None:
    solution = odeint(swinging, start(), [0.0, 3.0], max_steps=3, throw=False)
    assert solution.status == (Status.MAX_STEPS,)
    reached = solution.reached.item()
    assert solution(0.9 * reached).isfinite().all()
    with pytest.raises(ValueError, match="which the solve reached"):
        solution(reached + 0.1)


def test_its_steps_can_be_taken_again(solution: Solution) -> None:
    count = len(solution.steps)
    last = solution.retake(-1)
    torch.testing.assert_close(solution.retake(count - 1).y, last.y, rtol=0, atol=0)
    torch.testing.assert_close(solution.retake(0).y, solution.steps.y[1], rtol=1e-12, atol=0)
    error = solution.retake(1).error()
    assert error is not None and error.shape == (2,)
    for wrong in (count, -count - 1):
        with pytest.raises(IndexError, match=rf"i must be a step from 0 to {count - 1}, got {wrong}"):
            solution.retake(wrong)


def test_each_sample_may_have_another_of_its_steps_taken_again() -> None:
    solution = odeint(swinging, start(), [0.0, 3.0], per_sample=True)
    step = solution.retake(torch.tensor([0, 1]))
    torch.testing.assert_close(step.y[0], solution.steps.y[1, 0], rtol=1e-12, atol=0)
    torch.testing.assert_close(step.y[1], solution.steps.y[2, 1], rtol=1e-12, atol=0)


def test_a_step_taken_again_from_a_detached_state_has_the_gradients_of_the_field_alone() -> None:
    rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y0 = start().requires_grad_()
    solution = odeint(lambda t, y: -rate * y, y0, [0.0, 1.0])
    y = solution.retake(1, detach=True).y
    found = torch.autograd.grad(y.sum(), [rate, y0], allow_unused=True)
    assert found[0] is not None and found[1] is None


def test_taking_a_step_again_is_not_counted(solution: Solution) -> None:
    before = solution.stats.calls
    solution.retake(0), solution(0.5)
    assert solution.stats.calls == before == solution.stats.calls


def test_a_report_is_empty_where_all_is_well_and_counts_those_that_are_not(solution: Solution) -> None:
    assert solution.report() == "" and solution.success
    y0 = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    failed = odeint(lambda t, y: y**2, y0, [0.0, 2.0], per_sample=True, throw=False, max_steps=300)
    assert not failed.success and failed.status[1] == Status.SUCCESS
    assert failed.report().startswith("2 of 3 samples, the first 0: no arrival at t = 2: ")
    assert " at t = 1" in failed.report()


def test_a_solution_of_a_dict_is_called_as_a_dict() -> None:
    solution = odeint(lambda t, y: {"a": -y["a"]}, {"a": torch.ones(2, 3)}, [0.0, 1.0])
    assert solution(0.5)["a"].shape == (2, 3)
    assert solution([0.1, 0.5])["a"].shape == (2, 2, 3)  # type: ignore[arg-type]


def test_a_solution_backward_in_time_is_called_backward() -> None:
    for per_sample in (False, True):
        solution = odeint(swinging, start(), [3.0, 0.0], rtol=1e-8, atol=1e-8, per_sample=per_sample)
        want = start() * math.exp(math.sin(1.0) - math.sin(3.0))
        torch.testing.assert_close(solution(1.0), want, rtol=1e-5, atol=0)
        with pytest.raises(ValueError, match="t must lie between"):
            solution(3.1)


def test_a_solution_with_fixed_steps_is_called_between_them() -> None:
    solution = odeint(swinging, start(), [0.0, 3.0], method=Tsit5(), controller=Fixed(0.05))
    torch.testing.assert_close(solution(1.234), start() * math.exp(math.sin(1.234)), rtol=1e-6, atol=0)


def test_the_call_of_a_field_that_draws_random_numbers_is_not_a_surprise() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2)).double()
    solution = odeint(lambda t, y: net(y), start()[None], [0.0, 1.0], controller=Fixed(0.5))
    assert solution(0.3).shape == (1, 2)
