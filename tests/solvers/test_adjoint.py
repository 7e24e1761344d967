import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradients import ADJOINTS, driven, start, weighted_sum, weights
from torch import Tensor

from invreg.solvers import (
    PI,
    RK4,
    Adjoint,
    Bosh3,
    Checkpointed,
    Direct,
    Dopri5,
    Dopri8,
    Euler,
    Event,
    Fixed,
    Heun,
    I,
    Tsit5,
    Vern7,
    odeint,
)
from invreg.solvers.solution import Solution

METHODS = {
    "euler": Euler(),
    "heun": Heun(),
    "rk4": RK4(),
    "bosh3": Bosh3(),
    "dopri5": Dopri5(),
    "tsit5": Tsit5(),
    "dopri8": Dopri8(),
    "vern7": Vern7(),
}
COLUMNS = ("error", "ratio", "stiffness")


def everything(solution: Solution) -> Tensor:
    """One number of the values, the states, and the estimates of a solve."""
    total = weighted_sum(solution.ys) + 0.1 * weighted_sum(solution.steps.y)
    for name in COLUMNS:
        column = getattr(solution.steps, name)
        if column is not None:
            total = total + 0.01 * weighted_sum(column)
    return total


def gradients(adjoint: Adjoint, of: Callable[[Solution], Tensor] = everything, **options: Any) -> tuple[Tensor, ...]:
    w, y0 = weights(), start()
    ts = torch.tensor([0.1, 0.4, 0.45, 1.3], dtype=torch.float64, requires_grad=True)
    solution = odeint(driven, y0, ts, args=(w,), adjoint=adjoint, **options)
    found = torch.autograd.grad(of(solution), [w, y0, ts], allow_unused=True)
    return tuple(torch.zeros(()) if one is None else one for one in found)


# --- against finite differences


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("name", ["euler", "rk4", "bosh3", "tsit5", "dopri8"])
def test_gradients_of_fixed_steps_are_those_of_finite_differences(name: str, adjoint: str, per_sample: bool) -> None:
    h = 2.0 if name == "dopri8" else 0.2  # its stages come close to each other, and their ratio is rounded

    def solve(y0: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        solution = odeint(
            driven, y0, [0.0, 1.5 * h, 1.75 * h], args=(w,), method=METHODS[name], controller=Fixed(h),
            per_sample=per_sample, adjoint=ADJOINTS[adjoint], rtol=1e-2, atol=1e-2,
        )  # fmt: skip
        columns = [getattr(solution.steps, column) for column in COLUMNS]
        return solution.ys, solution.steps.y, *(100 * one for one in columns if one is not None)

    y0, w = start()[:, :2].detach().requires_grad_(), weights()[:2, :2].detach().requires_grad_()
    assert torch.autograd.gradcheck(solve, (y0, w), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_gradients_of_the_times_are_the_slopes(adjoint: str, per_sample: bool) -> None:
    y0, w = start(), weights()
    ts = torch.tensor([0.0, 0.3, 0.7, 1.1], dtype=torch.float64, requires_grad=True)
    solution = odeint(driven, y0, ts, args=(w,), rtol=1e-10, atol=1e-10, method=Vern7(), adjoint=ADJOINTS[adjoint],
                      per_sample=per_sample)  # fmt: skip
    for i in (1, 2, 3):
        (got,) = torch.autograd.grad(solution.ys[i].sum(), ts, retain_graph=True)
        want = driven(ts[i], solution.ys[i], w).sum().item()
        assert got[i].item() == pytest.approx(want, rel=1e-6)
        others = [k for k in range(1, 4) if k != i]
        torch.testing.assert_close(got[others], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_gradients_of_the_times_are_those_of_finite_differences(adjoint: str, per_sample: bool) -> None:
    y0, w = start().detach(), weights().detach()

    def solve(ts: Tensor) -> Tensor:
        return odeint(driven, y0, ts, args=(w,), rtol=1e-10, atol=1e-10, method=Vern7(), adjoint=ADJOINTS[adjoint],
                      per_sample=per_sample).ys[1:, :, 0]  # fmt: skip

    ts = torch.tensor([0.1, 0.3, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(solve, (ts,), eps=1e-4, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_gradients_of_times_of_each_sample_reach_that_sample(adjoint: str) -> None:
    y0, w = start(), weights()
    ts = torch.tensor([[0.0, 0.2], [0.5, 0.3], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    solution = odeint(driven, y0, ts, args=(w,), rtol=1e-10, atol=1e-10, adjoint=ADJOINTS[adjoint], per_sample=True)
    (got,) = torch.autograd.grad(solution.ys[1, 0].sum() + solution.ys[2, 1].sum(), ts)
    slope = driven(ts[1, 0], solution.ys[1, 0], w).sum().item(), driven(ts[2, 1], solution.ys[2, 1], w).sum().item()
    assert got[1, 0].item() == pytest.approx(slope[0], rel=1e-6)
    assert got[2, 1].item() == pytest.approx(slope[1], rel=1e-6)
    assert got[2, 0].abs() < 1e-9 and got[1, 1].abs() < 1e-9


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_gradients_of_adaptive_steps_converge_to_those_of_the_flow(adjoint: str, per_sample: bool) -> None:
    rate = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    ys = odeint(lambda t, y: rate * y * t, y0, [0.0, 1.0, 2.0], rtol=1e-9, atol=1e-9, adjoint=ADJOINTS[adjoint],
                per_sample=per_sample).ys  # fmt: skip
    got = torch.autograd.grad(ys[-1].sum(), [rate, y0])
    torch.testing.assert_close(got[0].item(), 2 * 3 * math.exp(-1.4), rtol=1e-7, atol=0)
    torch.testing.assert_close(got[1], torch.full_like(y0, math.exp(-1.4)), rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["dopri5", "tsit5"])
def test_the_error_falls_in_the_direction_against_its_gradient(name: str) -> None:
    w, y0 = weights(), start().detach()

    def error(w: Tensor, grid: Tensor) -> Tensor:
        solution = odeint(driven, y0, grid, args=(w,), method=METHODS[name], controller=Fixed())
        assert solution.steps.error is not None
        return solution.steps.error.sum()

    grid = odeint(driven, y0, [0.0, 2.0], args=(w,), method=METHODS[name], rtol=1e-4).steps.t[:, 0]
    (gradient,) = torch.autograd.grad(error(w, grid), w)
    eps = 1e-6 * gradient / gradient.norm()
    change = (error(w + eps, grid) - error(w - eps, grid)).item() / 2e-6
    assert change == pytest.approx(gradient.norm().item(), rel=1e-4)


# --- the two ways agree


@pytest.mark.parametrize("name", METHODS)
def test_replayed_gradients_are_those_of_the_tape(name: str, per_sample: bool) -> None:
    method = METHODS[name]
    controller = PI() if method.error_order is not None and name != "euler" else Fixed(0.1)
    options = {"method": method, "controller": controller, "per_sample": per_sample, "rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(
        gradients(Checkpointed(), **options), gradients(Direct(), **options), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("part", ["ys", "y", "error", "ratio", "stiffness", "last"])
def test_replayed_gradients_of_each_part_are_those_of_the_tape(part: str, per_sample: bool) -> None:
    def of(solution: Solution) -> Tensor:
        if part == "last":
            return solution.ys[-1, 0, 1]
        return weighted_sum(solution.ys if part == "ys" else getattr(solution.steps, part))

    options = {"per_sample": per_sample, "rtol": 1e-4}
    torch.testing.assert_close(
        gradients(Checkpointed(), of, **options), gradients(Direct(), of, **options), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("options", [{"jumps": [0.62]}, {"stops": [0.21, 0.9]}, {"controller": I(max_step=0.11)}],
                         ids=["jumps", "stops", "max_step"])  # fmt: skip
def test_replayed_gradients_are_those_of_the_tape_where_steps_are_forced(
    options: dict[str, Any], per_sample: bool
) -> None:
    *replayed, taped = (gradients(adjoint, per_sample=per_sample, **options) for adjoint in ADJOINTS.values())
    for one in replayed:
        torch.testing.assert_close(one, taped, rtol=1e-10, atol=1e-10)


def test_gradients_of_a_joint_solve_do_not_depend_on_what_is_asked_between(per_sample: bool) -> None:
    w, y0 = weights(), start()
    found = []
    for ts in ([0.0, 2.0], [0.0, 0.3, 0.31, 1.2, 2.0]):
        ys = odeint(driven, y0, ts, args=(w,), per_sample=per_sample).ys
        found.append(torch.autograd.grad(weighted_sum(ys[-1]), [w, y0]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_the_tape_of_a_joint_solve_holds_the_values_of_the_replay(per_sample: bool) -> None:
    w, y0 = weights(), start()
    runs = [odeint(driven, y0, [0.0, 0.7, 2.0], args=(w,), per_sample=per_sample, adjoint=one)
            for one in ADJOINTS.values()]  # fmt: skip
    torch.testing.assert_close(runs[0].ys, runs[1].ys, rtol=1e-14, atol=1e-14)
    assert torch.equal(runs[0].steps.t, runs[1].steps.t)
    for name in COLUMNS:
        torch.testing.assert_close(getattr(runs[0].steps, name), getattr(runs[1].steps, name), rtol=1e-9, atol=1e-16)


# --- second derivatives


def test_second_derivatives_of_the_tape_are_those_of_finite_differences(per_sample: bool) -> None:
    def solve(y0: Tensor, w: Tensor) -> Tensor:
        options = {"controller": Fixed(0.1), "adjoint": Direct(), "per_sample": per_sample}
        return odeint(driven, y0, [0.0, 0.2], args=(w,), **options).ys

    y0, w = start()[:2, :2].detach().requires_grad_(), weights()[:2, :2].detach().requires_grad_()
    assert torch.autograd.gradgradcheck(solve, (y0, w))


def test_second_derivatives_of_the_replay_are_refused(per_sample: bool) -> None:
    w, y0 = weights(), start()
    ys = odeint(driven, y0, [0.0, 1.0], args=(w,), per_sample=per_sample).ys
    (first,) = torch.autograd.grad(ys.square().sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match=r"adjoint=Direct\(\)"):
        first.square().sum().backward()


@pytest.mark.parametrize("power", [1, 2])
def test_second_derivatives_of_the_replay_are_refused_where_one_tensor_is_asked_for(power: int) -> None:
    w, y0 = weights(), start()
    ys = odeint(driven, y0, [0.0, 1.0], args=(w,)).ys
    (first,) = torch.autograd.grad((ys**power).sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match=r"adjoint=Direct\(\)"):
        torch.autograd.grad(first.square().sum(), w)


def test_a_gradient_of_the_replay_may_be_asked_for_twice(per_sample: bool) -> None:
    w, y0 = weights(), start()
    ys = odeint(driven, y0, [0.0, 1.0], args=(w,), per_sample=per_sample).ys
    one = torch.autograd.grad(ys.sum(), w, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(ys.sum(), w), one, rtol=0, atol=0)


# --- what carries no gradient


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_step_sizes_carry_no_gradient(adjoint: str, per_sample: bool) -> None:
    w, y0 = weights(), start()
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    solution = odeint(driven, y0, ts, args=(w,), adjoint=ADJOINTS[adjoint], per_sample=per_sample)
    assert not solution.steps.t.requires_grad and not solution.steps.dt.requires_grad
    assert solution.steps.y.requires_grad and solution.ys.requires_grad
    assert all(getattr(solution.steps, name).requires_grad for name in COLUMNS)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_an_error_of_zero_has_gradient_zero(adjoint: str, per_sample: bool) -> None:
    rate = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    y0 = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    solution = odeint(
        lambda t, y: rate + 0 * y, y0, [0.0, 1.0], adjoint=ADJOINTS[adjoint], per_sample=per_sample, method=Heun()
    )
    for name in ("error", "ratio"):
        column = getattr(solution.steps, name)
        assert column.abs().max() < 1e-15
        found = torch.autograd.grad(column.sum(), [rate, y0], retain_graph=True, allow_unused=True)
        assert all(one is None or bool((one.abs() < 1e-12).all()) for one in found)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_state_at_rest_has_finite_gradients(adjoint: str, per_sample: bool) -> None:
    y0 = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    solution = odeint(lambda t, y: -y, y0, [0.0, 0.5, 1.0], adjoint=ADJOINTS[adjoint], per_sample=per_sample)
    (found,) = torch.autograd.grad(everything(solution), y0)
    assert found.isfinite().all()


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_an_unused_part_of_a_batch_gets_gradient_zero(adjoint: str) -> None:
    y0, w = start(), weights()
    ys = odeint(driven, y0, [0.0, 1.0], args=(w,), adjoint=ADJOINTS[adjoint], per_sample=True).ys
    (found,) = torch.autograd.grad(ys[-1, 0].sum(), y0)
    assert (found[1] == 0).all() and (found[0] != 0).all()


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_gradients_of_samples_do_not_meet(adjoint: str) -> None:
    y0, w = start().detach(), weights()
    y0 = torch.cat([y0, 8 * y0])
    options = {"args": (w,), "adjoint": ADJOINTS[adjoint], "per_sample": True, "rtol": 1e-5}
    together = odeint(driven, y0, [0.0, 0.4, 3.0], **options)
    got = torch.autograd.grad(everything_of_samples(together), w)[0]
    alone = [odeint(driven, one[None], [0.0, 0.4, 3.0], **options) for one in y0]
    want = torch.autograd.grad(sum(everything_of_samples(one) for one in alone), w)[0]
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def everything_of_samples(solution: Solution) -> Tensor:
    columns = [torch.where(solution.steps.mask, getattr(solution.steps, name), 0).sum() for name in COLUMNS]
    return solution.ys.square().sum() + sum(columns)


# --- through events and the call


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_ball_that_falls_meets_the_ground_with_the_gradients_of_its_closed_form(
    adjoint: str, per_sample: bool
) -> None:
    height = torch.tensor([10.0, 5.0] if per_sample else 10.0, dtype=torch.float64, requires_grad=True)
    gravity = torch.tensor(9.81, dtype=torch.float64, requires_grad=True)
    y0 = torch.stack([height, torch.zeros_like(height)], -1)

    def fall(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[..., 1], -gravity.expand_as(y[..., 1])], -1)

    solution = odeint(fall, y0, [0.0, 5.0], events=[Event(lambda t, y: y[..., 0], direction=-1)],
                      per_sample=per_sample, adjoint=ADJOINTS[adjoint])  # fmt: skip
    hit = solution.events[0]
    t, speed = (2 * height / gravity).sqrt(), -(2 * height * gravity).sqrt()
    times, speeds = (torch.where(hit.mask, one, 0.0).sum(0) for one in (hit.t, hit.y[..., 1]))
    torch.testing.assert_close(times, t, rtol=1e-10, atol=0)
    torch.testing.assert_close(speeds, speed, rtol=1e-10, atol=0)
    for got, want in ((times.sum(), t.sum()), (speeds.sum(), speed.sum())):
        found = torch.autograd.grad(got, [height, gravity], retain_graph=True)
        expected = torch.autograd.grad(want, [height, gravity], retain_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_ball_that_bounces_lands_with_the_gradients_of_its_closed_form(adjoint: str) -> None:
    height = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    bounce = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    g = 9.81

    def fall(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], torch.full_like(y[1], -g)])

    event = Event(lambda t, y: y[0], direction=-1)
    t, y = torch.zeros((), dtype=torch.float64), torch.stack([height, torch.zeros_like(height)])
    for _ in range(3):
        ts = torch.stack([t, t.detach() + 10])
        hit = odeint(fall, y, ts, events=[event], adjoint=ADJOINTS[adjoint]).events[0]
        t, y = hit.t[0], torch.stack([torch.zeros_like(hit.y[0, 0]), -bounce * hit.y[0, 1]])
    first = (2 * height / g).sqrt()
    exact = first * (1 + 2 * bounce + 2 * bounce**2)
    torch.testing.assert_close(t, exact, rtol=1e-8, atol=0)
    found = torch.autograd.grad(t, [height, bounce])
    torch.testing.assert_close(found, torch.autograd.grad(exact, [height, bounce]), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_gradients_reach_what_the_condition_of_an_event_holds(adjoint: str, per_sample: bool) -> None:
    level = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(2, 1, dtype=torch.float64) if per_sample else torch.ones((), dtype=torch.float64)
    event = Event(lambda t, y: (y - level).reshape(y.shape[:1]))
    hit = odeint(lambda t, y: -y, y0, [0.0, 5.0], events=[event], per_sample=per_sample, rtol=1e-9, atol=1e-9,
                 adjoint=ADJOINTS[adjoint]).events[0]  # fmt: skip
    torch.testing.assert_close(hit.t.reshape(-1)[0].item(), -math.log(0.3), rtol=1e-8, atol=0)
    (found,) = torch.autograd.grad(hit.t.reshape(-1)[0], level, retain_graph=True)
    torch.testing.assert_close(found.item(), -1 / 0.3, rtol=1e-7, atol=0)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_events_that_do_not_end_the_solve_have_gradients_too(adjoint: str, per_sample: bool) -> None:
    rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64) if per_sample else torch.tensor([1.0, 0.0]).double()

    def turn(t: Tensor, y: Tensor) -> Tensor:
        return rate * torch.stack([-y[..., 1], y[..., 0]], -1)

    solution = odeint(turn, y0, [0.0, 5.0], events=[Event(lambda t, y: y[..., 0], terminal=False)], rtol=1e-9,
                      atol=1e-9, per_sample=per_sample, adjoint=ADJOINTS[adjoint])  # fmt: skip
    t = solution.events[0].t.flatten()
    want = (torch.arange(3, dtype=torch.float64) + 0.5) * torch.pi / rate
    torch.testing.assert_close(t, want, rtol=1e-7, atol=0)
    (got,) = torch.autograd.grad(t.sum(), rate)
    torch.testing.assert_close(got, torch.autograd.grad(want.sum(), rate)[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_gradients_go_through_the_call_of_a_solution(adjoint: str, per_sample: bool) -> None:
    rate = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    solution = odeint(lambda t, y: rate * y, y0, [0.0, 3.0], rtol=1e-9, atol=1e-9, adjoint=ADJOINTS[adjoint],
                      per_sample=per_sample)  # fmt: skip
    t = torch.tensor([0.4, 1.7], dtype=torch.float64, requires_grad=True)
    got = torch.autograd.grad(weighted_sum(solution(t)), [rate, y0, t])
    want = torch.autograd.grad(weighted_sum(y0 * torch.exp(rate * t)[:, None]), [rate, y0, t])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_step_taken_again_has_the_gradients_of_the_record(adjoint: str, per_sample: bool) -> None:
    w, y0 = weights(), start()
    solution = odeint(driven, y0, [0.0, 2.0], args=(w,), adjoint=ADJOINTS[adjoint], per_sample=per_sample)
    step = solution.retake(1)
    stiffness = step.stiffness(per_sample)
    torch.testing.assert_close(stiffness, solution.steps.stiffness[1].reshape(stiffness.shape), rtol=1e-10, atol=0)
    got = torch.autograd.grad(stiffness.sum(), [w, y0], retain_graph=True)
    want = torch.autograd.grad(solution.steps.stiffness[1].sum(), [w, y0], retain_graph=True)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    alone = solution.retake(1, detach=True).stiffness(per_sample)
    assert torch.autograd.grad(alone.sum(), y0, allow_unused=True)[0] is None
