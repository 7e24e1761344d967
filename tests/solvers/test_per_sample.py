import math
from typing import Any

import pytest
import torch
from torch import Tensor

from invreg.solvers import (
    PID,
    Bosh3,
    Dopri5,
    Dopri8,
    Event,
    Fixed,
    Heun,
    I,
    Status,
    Tsit5,
    Vern7,
    odeint,
)

METHODS = {"heun": Heun(), "bosh3": Bosh3(), "dopri5": Dopri5(), "tsit5": Tsit5(), "dopri8": Dopri8(), "vern7": Vern7()}


def oscillator(t: Tensor, y: Tensor) -> Tensor:
    """Van der Pol: samples that start elsewhere take other steps."""
    x, v, mu = y.unbind(-1)
    return torch.stack([v, mu * (1 - x**2) * v - x, torch.zeros_like(mu)], -1)


def starts() -> Tensor:
    return torch.tensor([[2.0, 0.0, 0.1], [0.5, 1.0, 4.0], [-1.0, 0.3, 12.0]], dtype=torch.float64)


def require_same_as_alone(y0: Tensor, ts: Tensor, **options: Any) -> None:
    """The solve of a batch must be that of each sample."""
    with torch.no_grad():
        batch = odeint(oscillator, y0, ts, per_sample=True, **options)
        for i, one in enumerate(y0):
            alone = odeint(oscillator, one[None], ts if ts.ndim == 1 else ts[:, i : i + 1], per_sample=True, **options)
            count = len(alone.steps)
            torch.testing.assert_close(batch.ys[:, i], alone.ys[:, 0], rtol=1e-11, atol=1e-11, equal_nan=True)
            torch.testing.assert_close(batch.steps.t[:count, i], alone.steps.t[:, 0], rtol=1e-12, atol=1e-12)
            assert batch.steps.mask[:, i].sum() == count
            assert batch.status[i] == alone.status[0]
            assert batch.reached[i].item() == pytest.approx(alone.reached.item(), rel=1e-12)
            counts = ("accepted", "rejected", *([] if options.get("method") in (Dopri8(), Vern7()) else ["nfe"]))
            for name in counts:
                assert getattr(batch.stats, name)[i] == getattr(alone.stats, name)[0], name
            for name in ("error", "ratio", "stiffness"):
                column = getattr(batch.steps, name)
                if column is not None:
                    torch.testing.assert_close(
                        column[:count, i], getattr(alone.steps, name)[:, 0], rtol=1e-5, atol=1e-13
                    )


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_is_solved_as_each_sample_alone(name: str) -> None:
    ts = torch.tensor([0.0, 0.3, 0.31, 1.0, 2.0], dtype=torch.float64)
    require_same_as_alone(starts(), ts, method=METHODS[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"controller": I()},
        {"controller": PID(max_step=0.1)},
        {"controller": Fixed(0.03)},
        {"controller": Fixed(), "throw": False},
        {"stops": (0.5,)},
        {"jumps": (0.5,)},
        {"max_steps": 9, "throw": False},
    ],
    ids=str,
)
def test_a_batch_is_solved_as_each_sample_alone_whatever_the_settings(options: dict[str, Any]) -> None:
    require_same_as_alone(starts(), torch.tensor([0.0, 0.4, 1.2], dtype=torch.float64), **options)


def test_a_batch_backward_in_time_is_solved_as_each_sample_alone() -> None:
    require_same_as_alone(starts(), torch.tensor([1.0, 0.9, 0.5], dtype=torch.float64))


def test_each_sample_may_have_its_own_times() -> None:
    ts = torch.tensor([[0.0, 1.0, -1.0], [0.3, 1.1, -0.5], [2.0, 1.2, 2.0]], dtype=torch.float64)
    require_same_as_alone(starts(), ts)
    require_same_as_alone(starts()[:1].repeat(3, 1), ts, controller=Fixed())


def test_times_of_each_sample_run_backward_together() -> None:
    y0 = torch.ones(2, 1, dtype=torch.float64)
    ts = torch.tensor([[1.0, 3.0], [0.5, 2.0], [0.0, 0.0]], dtype=torch.float64)
    solution = odeint(lambda t, y: y * torch.cos(t), y0, ts, per_sample=True, rtol=1e-9, atol=1e-9)
    want = torch.exp(torch.sin(ts) - torch.sin(ts[0]))[..., None]
    torch.testing.assert_close(solution.ys, want, rtol=1e-7, atol=0)
    torch.testing.assert_close(solution(ts[1:2] - 0.2)[0, :, 0], torch.exp(torch.sin(ts[1] - 0.2) - torch.sin(ts[0])),
                               rtol=1e-5, atol=0)  # fmt: skip


def test_a_sample_does_not_wait_for_the_others() -> None:
    solution = odeint(oscillator, starts(), [0.0, 4.0], per_sample=True)
    accepted = solution.stats.accepted
    assert accepted[2] > 2 * accepted[0]
    assert (solution.stats.nfe <= solution.stats.calls).all() and solution.stats.nfe[0] < solution.stats.calls / 2
    assert torch.equal(solution.steps.mask.sum(0).cpu(), accepted)
    assert (solution.steps.dt[~solution.steps.mask] == 0).all()
    assert solution.steps.ratio is not None and (solution.steps.ratio[solution.steps.mask] <= 1).all()


def test_joint_and_own_steps_of_one_sample_are_the_same() -> None:
    y0 = starts()[1:2]
    own = odeint(oscillator, y0, [0.0, 0.7, 2.0], per_sample=True)
    joint = odeint(oscillator, y0, [0.0, 0.7, 2.0])
    torch.testing.assert_close(own.ys, joint.ys, rtol=1e-11, atol=1e-11)
    assert own.stats.nfe.tolist() == joint.stats.nfe.tolist()
    torch.testing.assert_close(own.steps.dt, joint.steps.dt, rtol=1e-10, atol=0)
    torch.testing.assert_close(own.steps.error, joint.steps.error, rtol=1e-6, atol=1e-14)
    torch.testing.assert_close(own.steps.stiffness, joint.steps.stiffness, rtol=1e-6, atol=0)


# --- how samples end


def rates(t: Tensor, y: Tensor) -> Tensor:
    """Sample 0 decays, sample 1 meets NaN at t = 0.5, sample 2 is stiff, sample 3 escapes at t = 1."""
    slope = torch.stack([-y[0], -y[1], -1e5 * y[2], y[3] ** 2])
    met = (t > 0.5) & (torch.arange(4)[:, None] == 1)
    return torch.where(met, torch.nan, slope)


def test_samples_end_as_they_do() -> None:
    y0 = torch.ones(4, 1, dtype=torch.float64)
    ts = [0.0, 0.25, 0.75, 2.0]
    solution = odeint(rates, y0, ts, per_sample=True, max_steps=200, throw=False)
    assert solution.status[:3] == (Status.SUCCESS, Status.NONFINITE, Status.MAX_STEPS)
    assert solution.status[3] in {Status.UNDERFLOW, Status.NONFINITE}
    assert solution.reached[0] == 2 and 0.4 < solution.reached[1] <= 0.5
    assert solution.reached[2] < 0.25 and solution.reached[3].item() == pytest.approx(1.0, abs=1e-3)
    good = solution.ys.isfinite()[..., 0].sum(0).tolist()
    assert good == [4, 2, 1, 3]
    torch.testing.assert_close(solution.ys[-1, 0].item(), math.exp(-2), rtol=1e-2, atol=0)
    alone = odeint(rates, torch.ones(4, 1, dtype=torch.float64), ts[:2], per_sample=True, max_steps=200, throw=False)
    torch.testing.assert_close(alone.ys[-1, 0], solution.ys[1, 0], rtol=1e-3, atol=0)
    with pytest.raises(RuntimeError) as raised:
        odeint(rates, y0, ts, per_sample=True, max_steps=200)
    assert "1 of 4 samples, the first 1: no arrival at t = 2: nonfinite" in str(raised.value)
    assert "the first 2: no arrival at t = 2: max_steps after 200 steps" in str(raised.value)


@pytest.mark.parametrize("adjoint_grad", [False, True])
def test_a_batch_of_which_none_takes_a_step_says_so(adjoint_grad: bool) -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t > 0, torch.nan, y)

    y0 = torch.ones(2, 1, requires_grad=adjoint_grad)
    solution = odeint(field, y0, [0.0, 1.0], per_sample=True, throw=False)
    assert solution.status == (Status.NONFINITE,) * 2
    assert solution.reached.tolist() == [0.0, 0.0] and len(solution.steps) == 0
    assert solution.ys[0].isfinite().all() and solution.ys[1].isnan().all()


def test_a_field_that_is_nan_at_the_start_says_so() -> None:
    for per_sample in (False, True):
        solution = odeint(lambda t, y: y * torch.nan, torch.ones(2), [0.0, 1.0], per_sample=per_sample, throw=False)
        assert set(solution.status) == {Status.NONFINITE} and solution.reached.tolist() == [0.0] * len(solution.status)


def test_gradients_of_samples_that_arrive_are_finite_beside_those_that_do_not() -> None:
    y0 = torch.ones(4, 1, dtype=torch.float64, requires_grad=True)
    solution = odeint(rates, y0, [0.0, 2.0], per_sample=True, max_steps=100, throw=False)
    (found,) = torch.autograd.grad(solution.ys[-1, 0].sum(), y0)
    torch.testing.assert_close(found[0].item(), math.exp(-2), rtol=1e-2, atol=0)
    assert (found[2:] == 0).all()


# --- events


def turn(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([-y[:, 1], y[:, 0]], -1)


def angles() -> Tensor:
    return torch.tensor([0.1, 1.0, 2.0, 4.0], dtype=torch.float64)


def on_circle() -> Tensor:
    return torch.stack([torch.cos(angles()), torch.sin(angles())], -1)


@pytest.mark.parametrize("direction", [-1, 0, 1])
def test_each_sample_ends_at_its_own_event(direction: int) -> None:
    event = Event(lambda t, y: y[:, 1], direction=direction)
    solution = odeint(turn, on_circle(), [0.0, 1.0, 10.0], per_sample=True, events=[event], rtol=1e-9, atol=1e-9)
    target = {-1: math.pi, 1: 2 * math.pi}
    want = torch.tensor(
        [min(target[d] - a + (2 * math.pi if target[d] < a else 0) for d in target if direction in {d, 0})
         for a in angles().tolist()], dtype=torch.float64
    )  # fmt: skip
    assert solution.status == (Status.EVENT,) * 4 and solution.success
    torch.testing.assert_close(solution.reached, want, rtol=1e-8, atol=0)
    hit = solution.events[0]
    assert (hit.mask.sum(0) == 1).all()
    assert hit.t.isnan().equal(~hit.mask)
    torch.testing.assert_close(hit.t.nan_to_num().sum(0), want, rtol=1e-8, atol=0)
    assert hit.y.nan_to_num().sum(0)[:, 1].abs().max() < 1e-8
    reached = torch.tensor([0.0, 1.0, 10.0], dtype=torch.float64)[:, None] <= want
    assert torch.equal(solution.ys.isfinite().all(-1), reached)


def test_events_that_do_not_end_a_sample_are_all_found() -> None:
    events = [Event(lambda t, y: y[:, 1], terminal=False), Event(lambda t, y: t[:, 0] - 8.0)]
    solution = odeint(turn, on_circle(), [0.0, 10.0], per_sample=True, events=events, rtol=1e-9, atol=1e-9)
    assert solution.status == (Status.EVENT,) * 4
    torch.testing.assert_close(solution.reached, torch.full((4,), 8.0, dtype=torch.float64))
    hit = solution.events[0]
    for i, angle in enumerate(angles().tolist()):
        got = hit.t[hit.mask[:, i], i]
        want = torch.arange(math.pi, 20, math.pi, dtype=torch.float64) - angle
        want = want[(want > 0) & (want < 8)]
        torch.testing.assert_close(got, want, rtol=1e-7, atol=0)


def test_only_the_samples_that_meet_an_event_end_early() -> None:
    y0 = torch.tensor([[1.0], [5.0]], dtype=torch.float64)
    solution = odeint(lambda t, y: -y, y0, [0.0, 1.0], per_sample=True, events=[Event(lambda t, y: y[:, 0] - 0.5)])
    assert solution.status == (Status.EVENT, Status.SUCCESS)
    assert solution.events[0].mask.sum(0).tolist() == [1, 0]
    torch.testing.assert_close(solution.reached[0].item(), math.log(2), rtol=1e-3, atol=0)
    assert solution.ys[-1, 0].isnan().all() and solution.ys[-1, 1].isfinite().all()


def test_without_an_event_there_is_an_empty_record_of_it() -> None:
    solution = odeint(turn, on_circle(), [0.0, 0.1], per_sample=True, events=[Event(lambda t, y: y[:, 1] - 5)])
    assert solution.events[0].t.shape == (0, 4) and solution.events[0].y.shape == (0, 4, 2)
    assert solution.status == (Status.SUCCESS,) * 4


def test_a_condition_that_is_zero_at_the_start_does_not_happen_there() -> None:
    y0 = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    solution = odeint(turn, y0, [0.0, 9.0], per_sample=True, events=[Event(lambda t, y: y[:, 1])], rtol=1e-8)
    torch.testing.assert_close(solution.reached, torch.full((2,), math.pi, dtype=torch.float64), rtol=1e-6, atol=0)


# --- corners


def test_an_empty_batch_comes_back_empty() -> None:
    solution = odeint(lambda t, y: -y, torch.zeros(0, 2), [0.0, 1.0], per_sample=True)
    assert solution.ys.shape == (2, 0, 2) and solution.status == () and solution.success


def test_a_sample_without_entries_is_solved() -> None:
    solution = odeint(lambda t, y: -y, torch.zeros(3, 0), [0.0, 1.0], per_sample=True)
    assert solution.ys.shape == (2, 3, 0) and solution.success


def test_a_batch_of_one_is_a_batch() -> None:
    solution = odeint(lambda t, y: -y, torch.ones(1), [0.0, 1.0], per_sample=True)
    assert solution.ys.shape == (2, 1) and len(solution.status) == 1


def test_tolerances_may_differ_by_sample() -> None:
    y0 = torch.ones(2, 1, dtype=torch.float64)
    rtol = torch.tensor([[1e-3], [1e-9]])
    solution = odeint(lambda t, y: y * torch.cos(3 * t), y0, [0.0, 5.0], per_sample=True, rtol=rtol, atol=1e-12)
    assert solution.stats.accepted[1] > 3 * solution.stats.accepted[0]
    for i, one in enumerate((1e-3, 1e-9)):
        alone = odeint(lambda t, y: y * torch.cos(3 * t), y0[:1], [0.0, 5.0], per_sample=True, rtol=one, atol=1e-12)
        assert alone.stats.accepted[0] == solution.stats.accepted[i]


def test_values_between_are_those_of_each_sample() -> None:
    solution = odeint(turn, on_circle(), [0.0, 3.0], per_sample=True, rtol=1e-8, atol=1e-8)
    t = torch.tensor([0.0, 0.7, 1.9, 3.0], dtype=torch.float64)
    own = torch.stack([t, t.flip(0)], 0)
    for asked, want in ((t, t[:, None].expand(4, 4)), (own, own)):
        if asked.ndim == 2:
            with pytest.raises(ValueError, match=r"t must be a number, \(K,\) or \(K, 4\), got shape \(2, 3\)"):
                solution(asked[:, :3])
        angle = want + angles()
        torch.testing.assert_close(
            solution(asked), torch.stack([torch.cos(angle), torch.sin(angle)], -1), rtol=1e-5, atol=1e-5
        )
    with pytest.raises(ValueError, match="t must lie between 0 and 3, which the solve reached"):
        solution(3.1)
