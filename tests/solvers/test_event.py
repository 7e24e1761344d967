import math

import pytest
import torch
from torch import Tensor

from invreg.solvers import Dopri8, Event, Fixed, Status, Tsit5, Vern7, odeint
from invreg.solvers.event import locate


def turn(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([-y[1], y[0]])


def start() -> Tensor:
    return torch.tensor([1.0, 0.0], dtype=torch.float64)


def test_a_condition_must_be_callable() -> None:
    with pytest.raises(TypeError, match=r"condition must be callable as condition\(t, y, \*args\), got float"):
        Event(1.0)  # type: ignore[arg-type]


def test_a_direction_is_minus_one_zero_or_one() -> None:
    with pytest.raises(ValueError, match="direction must be -1, 0 or 1, got 2"):
        Event(lambda t, y: y, direction=2)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_condition_must_give_a_real_number_for_each_sample(per_sample: bool) -> None:
    y0 = torch.ones(3, 2)
    options = {"per_sample": per_sample}
    with pytest.raises(TypeError, match="condition of an Event must give a real tensor, got float"):
        odeint(lambda t, y: -y, y0, [0.0, 1.0], events=[Event(lambda t, y: 1.0)], **options)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="condition of an Event must give a real tensor, got torch.complex64"):
        odeint(lambda t, y: -y, y0, [0.0, 1.0], events=[Event(lambda t, y: y[:, 0] * 1j)], **options)
    shape = r"\(3,\), one value for each sample" if per_sample else r"\(\)"
    with pytest.raises(ValueError, match=rf"condition of an Event must give a tensor of shape {shape}, got \(3, 2\)"):
        odeint(lambda t, y: -y, y0, [0.0, 1.0], events=[Event(lambda t, y: y)], **options)


@pytest.mark.parametrize(
    ("direction", "before", "after", "happens"),
    [(0, -1, 1, True), (0, 1, -1, True), (1, -1, 1, True), (1, 1, -1, False), (-1, -1, 1, False), (-1, 1, -1, True),
     (0, 0, 1, False), (0, -1, 0, True), (0, 1, 0, True), (0, 1, 2, False), (0, -1, math.nan, False)],
)  # fmt: skip
def test_an_event_happens_where_its_condition_passes_zero(
    direction: int, before: float, after: float, happens: bool
) -> None:
    assert Event(lambda t, y: y, direction=direction).happened(before, after) == happens


@pytest.mark.parametrize("root", [1e-9, 0.1, 0.5, 1 - 1e-9, 1.0])
@pytest.mark.parametrize("power", [1, 3, 9])
def test_a_root_is_found_to_the_last_digit(root: float, power: int) -> None:
    calls = [0]

    def condition(theta: float) -> float:
        calls[0] += 1
        return (theta - root) ** power

    found = locate(condition, condition(0.0), condition(1.0), 4e-16)
    assert abs(found - root) < 1e-4 if power > 1 else abs(found - root) < 1e-15
    assert calls[0] < 200


@pytest.mark.parametrize("method", [Tsit5(), Dopri8(), Vern7()], ids=["tsit5", "dopri8", "vern7"])
def test_a_terminal_event_ends_the_solve_where_it_happens(method: Tsit5) -> None:
    ts = [0.0, 1.0, 2.0, 5.0]
    solution = odeint(turn, start(), ts, method=method, events=[Event(lambda t, y: y[0])], rtol=1e-9, atol=1e-9)
    assert solution.status == (Status.EVENT,) and solution.success
    assert solution.reached.item() == pytest.approx(math.pi / 2, abs=1e-7)
    torch.testing.assert_close(solution.events[0].y[0], torch.tensor([0.0, 1.0]).double(), rtol=1e-7, atol=1e-7)
    assert solution.ys[:2].isfinite().all() and solution.ys[2:].isnan().all()
    with pytest.raises(ValueError, match="which the solve reached"):
        solution(2.0)


@pytest.mark.parametrize(("direction", "first"), [(0, 0.5), (-1, 0.5), (1, 1.5)])
def test_the_direction_chooses_the_passage(direction: int, first: float) -> None:
    solution = odeint(turn, start(), [0.0, 9.0], events=[Event(lambda t, y: y[0], direction=direction)], rtol=1e-8)
    assert solution.reached.item() == pytest.approx(first * math.pi, abs=1e-5)


def test_events_of_several_kinds_come_in_the_order_of_time() -> None:
    events = [
        Event(lambda t, y: y[0], terminal=False),
        Event(lambda t, y: y[1], terminal=False),
        Event(lambda t, y: t - 6.0),
        Event(lambda t, y: t - 7.0),
    ]
    solution = odeint(turn, start(), [0.0, 9.0], events=events, rtol=1e-9, atol=1e-9)
    times = [one.t.tolist() for one in solution.events]
    assert times[0] == pytest.approx([0.5 * math.pi, 1.5 * math.pi], abs=1e-6)
    assert times[1] == pytest.approx([math.pi], abs=1e-6)
    assert times[2] == pytest.approx([6.0], abs=1e-12) and times[3] == []
    assert solution.events[3].y.shape == (0, 2)
    assert solution.reached.item() == pytest.approx(6.0, abs=1e-12)


def test_an_event_is_found_backward_in_time() -> None:
    solution = odeint(turn, start(), [0.0, -9.0], events=[Event(lambda t, y: y[0])], rtol=1e-9, atol=1e-9)
    assert solution.reached.item() == pytest.approx(-math.pi / 2, abs=1e-7)


def test_an_event_is_found_with_fixed_steps() -> None:
    solution = odeint(turn, start(), [0.0, 9.0], events=[Event(lambda t, y: y[0])], controller=Fixed(0.1))
    assert solution.reached.item() == pytest.approx(math.pi / 2, abs=1e-6)
    assert solution.status == (Status.EVENT,)


def test_an_event_gets_the_state_and_the_arguments_of_the_field() -> None:
    y0 = {"a": torch.ones(2, dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)}

    def field(t: Tensor, y: dict[str, Tensor], rate: float) -> dict[str, Tensor]:
        return {"a": -rate * y["a"], "b": torch.ones_like(y["b"])}

    event = Event(lambda t, y, rate: y["b"] - rate)
    solution = odeint(field, y0, [0.0, 9.0], args=(2.0,), events=[event], rtol=1e-8)
    assert solution.reached.item() == pytest.approx(2.0, abs=1e-9)
    torch.testing.assert_close(solution.events[0].y["a"][0], torch.full((2,), math.exp(-4)).double(), rtol=1e-4, atol=0)


def test_a_bouncing_ball_bounces_as_it_should() -> None:
    g, t, y, times = 9.81, 0.0, torch.tensor([10.0, 0.0], dtype=torch.float64), []
    for _ in range(3):
        hit = odeint(lambda t, y: torch.stack([y[1], torch.full_like(y[1], -g)]), y, [t, t + 10],
                     events=[Event(lambda t, y: y[0], direction=-1)]).events[0]  # fmt: skip
        t, y = hit.t[0].item(), torch.stack([torch.zeros(()).double(), -0.8 * hit.y[0, 1]])
        times.append(t)
    first = math.sqrt(20 / g)
    assert times == pytest.approx([first, first * 2.6, first * (2.6 + 1.28)], rel=1e-9)
