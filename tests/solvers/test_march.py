import math

import pytest
import torch
from torch import Tensor

from invreg.solvers import PI, Checkpointed, Dopri8, Fixed, Status, Tsit5, odeint
from invreg.solvers.arguments import problem_of
from invreg.solvers.march import March, random_states, read


@pytest.fixture(params=[False, True], ids=["joint", "per_sample"])
def per_sample(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def swinging(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.cos(t)


def start() -> Tensor:
    return torch.tensor([1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("controller", [PI(), Fixed(0.17)], ids=["adaptive", "fixed"])
def test_stops_are_hit_exactly(controller: PI, backward: bool, per_sample: bool) -> None:
    stops = [0.3, math.pi / 3, 2.0]
    ts = [3.0, 0.0] if backward else [0.0, 3.0]
    solution = odeint(swinging, start(), ts, stops=stops, per_sample=per_sample, controller=controller)
    for i in range(solution.steps.t.shape[1]):
        assert set(stops) <= set(solution.steps.t[:, i].tolist())
    plain = odeint(swinging, start(), ts, per_sample=per_sample, controller=controller)
    torch.testing.assert_close(plain.ys[-1], solution.ys[-1], rtol=3e-3, atol=0)


def test_stops_do_not_shorten_the_steps_beyond_them(per_sample: bool) -> None:
    y0 = start()
    plain = odeint(swinging, y0, [0.0, 20.0], per_sample=per_sample, rtol=1e-4)
    stopped = odeint(swinging, y0, [0.0, 20.0], per_sample=per_sample, rtol=1e-4, stops=[5.0, 5.0 + 1e-9])
    assert len(stopped.steps) <= len(plain.steps) + 4


def test_a_jump_in_the_field_costs_no_rejected_steps(per_sample: bool) -> None:
    jump = 1.0 / 3

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < jump, -y, 20 * torch.ones_like(y) - 3 * y)

    y0 = start()
    plain = odeint(field, y0, [0.0, 1.0], rtol=1e-7, per_sample=per_sample)
    jumped = odeint(field, y0, [0.0, 1.0], rtol=1e-7, jumps=[jump], per_sample=per_sample)
    assert jumped.stats.nfe.sum() < 0.8 * plain.stats.nfe.sum()
    assert (jumped.stats.rejected <= 2).all()
    before = y0 * math.exp(-jump)
    exact = 20 / 3 + (before - 20 / 3) * math.exp(-3 * (1 - jump))
    torch.testing.assert_close(jumped.ys[-1], exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backward", [False, True])
def test_no_step_evaluates_the_field_on_both_sides_of_a_jump(
    backward: bool, dtype: torch.dtype, per_sample: bool
) -> None:
    jump, times = 0.1 + 0.2, []

    def field(t: Tensor, y: Tensor) -> Tensor:
        times.append(t.detach().double().reshape(-1)[0].item())
        return torch.where(t < jump, -y, -2 * y)

    y0 = start().to(dtype)[:1]
    ts = [1.0, 0.0] if backward else [0.0, 1.0]
    clock = torch.tensor(jump, dtype=dtype).item()
    with torch.no_grad():
        solution = odeint(field, y0, ts, jumps=[jump], per_sample=per_sample, controller=Fixed(0.05))
    assert clock not in times
    sign = -1 if backward else 1
    sides = [(t - clock) * sign > 0 for t in times[1:]]
    assert sides == sorted(sides) or solution is None  # first all before, then all after
    change = math.exp(-jump - 2 * (1 - jump))
    want = y0 * (1 / change if backward else change)
    torch.testing.assert_close(solution.ys[-1], want, rtol=1e-5 if dtype == torch.float32 else 1e-7, atol=0)


def test_a_jump_has_the_gradients_of_the_closed_form(per_sample: bool) -> None:
    rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 0.4, -y, -rate * y)

    ys = odeint(field, start(), [0.0, 1.0], jumps=[0.4], rtol=1e-8, atol=1e-10, per_sample=per_sample).ys
    (found,) = torch.autograd.grad(ys[-1].sum(), rate)
    assert found.item() == pytest.approx(-0.6 * 3 * math.exp(-0.4 - 1.2), rel=1e-6)


def test_the_field_is_not_evaluated_beyond_the_last_time(per_sample: bool) -> None:
    latest = [0.0]

    def field(t: Tensor, y: Tensor) -> Tensor:
        latest[0] = max(latest[0], t.max().item())
        return -y

    odeint(field, start(), [0.0, 0.01], per_sample=per_sample, controller=PI(first_step=1.0))
    odeint(field, 1e-9 * start(), [0.0, 0.01], per_sample=per_sample)
    assert latest[0] <= 0.01 * (1 + 1e-15)


def test_a_step_may_not_leave_a_crumb_before_the_end() -> None:
    solution = odeint(lambda t, y: 0 * y, start(), [0.0, 1.0], controller=PI(first_step=0.995))
    assert len(solution.steps) == 1


def test_a_march_can_be_watched() -> None:
    problem = problem_of(swinging, start(), [0.0, 5.0], Tsit5(), None, False, 1e-5, 1e-6, (), (), (), (), 1000)
    march = March(problem, swinging(torch.zeros(()), start()), 0.1)
    ends = []
    for piece in march:
        assert march.status == Status.RUNNING
        assert piece.ratio is not None and piece.ratio <= 1 and piece.hits == () and piece.random is None
        ends.append(piece.end)
    assert march.status == Status.SUCCESS and march.reached == 5.0 == ends[-1]
    assert march.accepted == len(ends)


def test_values_are_read_at_once() -> None:
    assert read([]) == []
    assert read([torch.tensor(1.5, dtype=torch.float32)]) == [1.5]
    assert read([torch.tensor(1.5), torch.tensor(True), torch.tensor(3, dtype=torch.int64)]) == [1.5, 1.0, 3.0]


def test_the_states_of_the_generators_bring_back_their_numbers() -> None:
    before = random_states(torch.device("cpu"))
    first = torch.rand(3)
    torch.set_rng_state(before[0])
    assert torch.equal(first, torch.rand(3))


def test_a_single_rejected_step_is_repeated_from_the_same_state(per_sample: bool) -> None:
    controller = PI(first_step=2.0)
    solution = odeint(swinging, start(), [0.0, 3.0], controller=controller, rtol=1e-8, per_sample=per_sample)
    assert (solution.stats.rejected >= 1).all()
    assert (solution.steps.t[0] == 0).all() and torch.equal(solution.steps.y[0], start())
    want = start() * math.exp(math.sin(3.0))
    torch.testing.assert_close(solution.ys[-1], want, rtol=1e-5, atol=0)


def test_the_times_of_a_long_clock_are_kept_in_double(per_sample: bool) -> None:
    y0 = torch.ones(2, dtype=torch.float32)
    solution = odeint(lambda t, y: -y, y0, [1e6, 1e6 + 1], per_sample=per_sample)
    torch.testing.assert_close(solution.ys[-1], y0 / math.e, rtol=1e-3, atol=0)


def test_dense_values_come_from_the_stages_of_each_method(per_sample: bool) -> None:
    ts = torch.linspace(0, 3, 50, dtype=torch.float64)
    ys = odeint(swinging, start(), ts, method=Dopri8(), rtol=1e-9, atol=1e-9, per_sample=per_sample,
                adjoint=Checkpointed()).ys  # fmt: skip
    torch.testing.assert_close(ys, start() * torch.exp(torch.sin(ts))[:, None], rtol=1e-7, atol=1e-7)
