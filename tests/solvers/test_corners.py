"""Odd states, odd fields, odd times: right, or refused."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from invreg.regularizers import SolverError
from invreg.solvers import (
    PI,
    RK4,
    Adjoint,
    AutoSwitch,
    Backsolve,
    Checkpointed,
    Direct,
    Event,
    Fixed,
    ImplicitEuler,
    Kvaerno3,
    Kvaerno5,
    Method,
    ReversibleHeun,
    Rodas5P,
    Rosenbrock23,
    Status,
    Tsit5,
    Vern7,
    odeint,
    step,
)
from invreg.solvers.compat import torchdiffeq

F64 = torch.float64
REPLAYING: list[Adjoint] = [Checkpointed(), Checkpointed(tape=0), Backsolve()]


def decay(t: Tensor, y: Any) -> Any:
    return -y


def leaf(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64, requires_grad=True)


# --- gradients


@pytest.mark.parametrize("adjoint", [*REPLAYING, Direct()], ids=str)
def test_gradients_go_through_the_call_of_a_solution_to_all_it_depends_on(adjoint: Adjoint) -> None:
    rate, begin = leaf(2.0), leaf(0.0)

    def value(rate: Tensor, begin: Tensor) -> Tensor:
        ts = torch.stack([begin, begin.new_tensor(1.0)])
        solution = odeint(lambda t, y: -rate * y * y * (1 + t), torch.full((1, 1), 1.5, dtype=F64), ts, rtol=1e-9,
                          atol=1e-11, adjoint=adjoint)  # fmt: skip
        return solution(0.5).sum()

    exact = 1 / (1 / 1.5 + rate * (0.625 - begin - begin**2 / 2))
    torch.testing.assert_close(value(rate, begin), exact, rtol=1e-6, atol=0)
    inputs = [rate] if isinstance(adjoint, Backsolve) else [rate, begin]
    found = torch.autograd.grad(value(rate, begin), inputs)
    torch.testing.assert_close(found, torch.autograd.grad(exact, inputs), rtol=1e-5, atol=0)


def test_the_way_back_may_start_beyond_the_last_time_that_was_reached() -> None:
    rate = leaf(2.0)
    solution = odeint(lambda t, y: -rate * y, torch.ones(1, dtype=F64), [0.0, 9.0], rtol=1e-9, atol=1e-11,
                      adjoint=Backsolve(), events=[Event(lambda t, y: y[0] - 0.2)])  # fmt: skip
    (found,) = torch.autograd.grad(solution(0.5).sum(), rate)
    torch.testing.assert_close(found, -0.5 * (-rate * 0.5).exp(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("adjoint", [Checkpointed(), Checkpointed(tape=0), Checkpointed(tape=9000), Direct()], ids=str)
def test_a_jump_does_not_come_later_with_the_start(adjoint: Adjoint, per_sample: bool) -> None:
    y0 = torch.tensor([[1.0, 2.0], [0.3, 1.1]], dtype=F64)

    def solve(ts: Tensor) -> Tensor:
        return odeint(lambda t, y: torch.where(t < 0.5, -y * y * (1 + t), y + t), y0, ts, jumps=[0.5], adjoint=adjoint,
                      per_sample=per_sample, rtol=1e-10, atol=1e-11, method=Vern7()).ys[1:]  # fmt: skip

    ts = torch.tensor([0.1, 0.3, 0.7, 1.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(solve, (ts,), eps=1e-4, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adjoint", [Checkpointed(), Checkpointed(tape=0), Direct()], ids=str)
def test_a_sample_that_starts_beyond_a_jump_has_the_gradient_of_its_start(adjoint: Adjoint) -> None:
    y0 = torch.tensor([[1.0, 2.0], [0.3, 1.1]], dtype=F64)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 0.5, -y * y * (1 + t), torch.where(t < 0.8, y + t, -y))

    def solve(ts: Tensor) -> Tensor:
        return odeint(field, y0, ts, jumps=[0.5, 0.8], adjoint=adjoint, per_sample=True, rtol=1e-10, atol=1e-11,
                      method=Vern7()).ys[1:]  # fmt: skip

    ts = torch.tensor([[0.1, 0.6], [0.7, 0.9], [1.0, 1.2]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(solve, (ts,), eps=1e-4, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adjoint", REPLAYING, ids=str)
def test_a_tensor_that_only_a_later_evaluation_needs_is_not_lost(adjoint: Adjoint) -> None:
    first, second = leaf(1.0), leaf(2.0)
    ys = odeint(lambda t, y: -y * first if t < 0.1 else -y * second, torch.ones(2, dtype=F64), [0.0, 1.0],
                method=RK4(), controller=Fixed(), adjoint=adjoint).ys  # fmt: skip
    with pytest.raises(RuntimeError, match="was not seen in its first evaluation"):
        ys.sum().backward()


@pytest.mark.parametrize("adjoint", REPLAYING, ids=str)
@pytest.mark.parametrize("kind", ["constant", "state"])
def test_a_field_may_differentiate_with_leaves_of_its_own(kind: str, adjoint: Adjoint) -> None:
    weight = leaf(1.5)

    def field(t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            own = torch.ones((), dtype=F64, requires_grad=True) if kind == "constant" else y.detach().requires_grad_()
            energy = weight * y * own**2 if kind == "constant" else weight * own**2
            (slope,) = torch.autograd.grad(energy.sum(), own, create_graph=True)
        return -0.5 * slope * (y if kind == "constant" else 1)

    found = []
    for one in (adjoint, Direct()):
        ys = odeint(field, torch.ones(1, dtype=F64), [0.0, 1.0], adjoint=one, rtol=1e-8, atol=1e-8).ys
        found.append(torch.autograd.grad(ys.sum(), weight)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=0)


@pytest.mark.parametrize("adjoint", [*REPLAYING, Direct()], ids=str)
def test_a_field_without_parameters_may_differentiate_in_its_state(adjoint: Adjoint) -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            y = y.requires_grad_()
            (slope,) = torch.autograd.grad(0.5 * (y**2).sum(), y, create_graph=True)
        return -slope

    ys = odeint(field, torch.ones(2, dtype=F64), [0.0, 1.0], rtol=1e-8, atol=1e-8, adjoint=adjoint).ys
    torch.testing.assert_close(ys[-1].detach(), torch.full((2,), torch.e**-1, dtype=F64), rtol=1e-6, atol=0)


def test_second_derivatives_of_events_are_refused() -> None:
    height = leaf(2.0)
    event = odeint(lambda t, y: -y * y, height[None], [0.0, 50.0], events=[Event(lambda t, y: y[0] - 0.25)],
                   adjoint=Direct()).events[0]  # fmt: skip
    for value in (event.t[0], event.y.sum()):
        (first,) = torch.autograd.grad(value, height, create_graph=True)
        with pytest.raises(RuntimeError, match="first derivatives only"):
            torch.autograd.grad(first, height)


def test_times_in_a_list_keep_their_gradients() -> None:
    end = leaf(1.0)
    ys = odeint(decay, torch.ones(1, dtype=F64), [0.0, end], rtol=1e-9, atol=1e-9).ys
    torch.testing.assert_close(torch.autograd.grad(ys[-1].sum(), end)[0], -torch.exp(-end), rtol=1e-6, atol=0)


class Plain:
    """A field that is no module and holds one."""

    def __init__(self) -> None:
        self.norm = nn.BatchNorm1d(3)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        out: Tensor = -self.norm(y)
        return out

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        return self(t, y)


@pytest.mark.parametrize("choose", [lambda plain: plain, lambda plain: plain.slope], ids=["object", "method"])
def test_running_statistics_in_a_plain_object_move_in_the_solve_only(choose: Callable[[Plain], Any]) -> None:
    plain = Plain()
    ys = odeint(choose(plain), torch.randn(4, 3), [0.0, 1.0], controller=Fixed(0.5), adjoint=Checkpointed(tape=0)).ys
    before = int(plain.norm.num_batches_tracked)
    ys.sum().backward()
    assert int(plain.norm.num_batches_tracked) == before > 0


# --- fields


@pytest.mark.parametrize(
    "solve", [lambda f, y: odeint(f, y, [0.0, 1.0]), lambda f, y: torchdiffeq.odeint(f, y, torch.tensor([0.0, 1.0]))],
    ids=["odeint", "torchdiffeq"],
)  # fmt: skip
def test_a_field_that_overwrites_what_it_returned_is_refused(solve: Callable[..., Any]) -> None:
    buffer = torch.empty(2)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.mul(y, -1, out=buffer)

    with torch.no_grad(), pytest.raises(RuntimeError, match="field overwrote the tensor that it had returned before"):
        solve(field, torch.ones(2))


def test_a_field_without_a_value_at_the_probe_of_the_first_step_is_solved() -> None:
    y0 = torch.tensor([1e-6, *[1.0] * 63], dtype=F64)  # y0[0] reaches 0 at t = 2e-3
    solution = odeint(lambda t, y: torch.cat([-y[:1].sqrt(), torch.zeros_like(y[1:])]), y0, [0.0, 1.8e-3])
    torch.testing.assert_close(solution.ys[-1, 0].item(), (1e-3 - 0.9e-3) ** 2, rtol=1e-2, atol=1e-7)


def test_a_name_that_is_assigned_later_is_no_error() -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return -y * later if t > 5 else -y

    assert odeint(field, torch.ones(1), [0.0, 1.0]).success
    later = 1.0


def test_the_second_pass_of_direct_is_not_counted() -> None:
    counts = [
        odeint(decay, torch.ones(2, 1, requires_grad=True), [0.0, 1.0], per_sample=True, adjoint=adjoint).stats
        for adjoint in (Direct(), Checkpointed())
    ]
    assert counts[0].calls == counts[1].calls and torch.equal(counts[0].nfe, counts[1].nfe)


def test_the_methods_that_jump_over_the_end_say_so() -> None:
    times = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        times.append(float(t.detach()))
        return -y

    odeint(field, torch.ones(1), [0.0, 1.0], method=Kvaerno5(), controller=Fixed(1.0))
    assert max(times) == pytest.approx(Kvaerno5.reach) and Kvaerno5.reach > 1


# --- states


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_start_at_zero_is_no_stiffness(dtype: torch.dtype) -> None:
    solution = odeint(lambda t, y: torch.ones_like(y), torch.zeros(2, dtype=dtype), [0.0, 1.0])
    torch.testing.assert_close(solution.ys[-1], torch.ones(2, dtype=dtype), rtol=5e-3, atol=0)


@pytest.mark.parametrize("controller", [PI(), Fixed(0.1)], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("shape", [(2, 3), (1, 3), (2,)], ids=str)
def test_reversible_heun_steps_each_sample_on_its_own(shape: tuple[int, ...], controller: PI) -> None:
    ys = odeint(decay, torch.ones(shape, dtype=F64), [0.0, 1.0], method=ReversibleHeun(), per_sample=True,
                controller=controller).ys  # fmt: skip
    torch.testing.assert_close(ys[-1], torch.full(shape, torch.e**-1, dtype=F64), rtol=5e-3, atol=0)


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


def test_a_tuple_with_names_keeps_them() -> None:
    ys = odeint(lambda t, y: Pair(-y.a, y.b), Pair(torch.ones(2), torch.ones(1)), [0.0, 1.0]).ys
    assert isinstance(ys, Pair) and ys.a.shape == (2, 2) and ys.b.shape == (2, 1)


def test_an_empty_batch_of_a_dict_is_solved() -> None:
    ys = odeint(lambda t, y: {"a": -y["a"]}, {"a": torch.ones(0, 3)}, [0.0, 1.0], per_sample=True).ys
    assert ys["a"].shape == (2, 0, 3)


@pytest.mark.parametrize("method", [Tsit5(), Rodas5P(), Kvaerno3(), Rosenbrock23(), ImplicitEuler()], ids=str)
def test_an_empty_state_is_solved(method: Method) -> None:
    assert odeint(decay, torch.ones(0, 3), [0.0, 1.0], method=method).ys.shape == (2, 0, 3)


def test_a_state_without_axes_has_values_between() -> None:
    solution = odeint(decay, torch.tensor(1.0, dtype=F64), [0.0, 1.0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solution(0.5).item(), torch.e**-0.5, rtol=1e-6, atol=0)
    assert solution(torch.tensor([])).shape == (0,) and solution(torch.zeros(2, 3)).shape == (2, 3)


# --- times


def test_a_solution_of_one_time_has_that_one() -> None:
    solution = odeint(decay, torch.ones(2), [3.0])
    assert torch.equal(solution(3.0), torch.ones(2))
    with pytest.raises(ValueError, match="t must lie between 3 and 3, which the solve reached, got 7"):
        solution(7.0)


def test_a_heuristic_of_no_steps_is_zero() -> None:
    rate = leaf(1.0)
    assert SolverError(1.0)(odeint(lambda t, y: -rate * y, torch.ones(2, dtype=F64), [0.0])).item() == 0


def test_a_time_that_is_no_number_was_not_reached() -> None:
    with pytest.raises(ValueError, match="t must lie between 0 and 1, which the solve reached, got nan"):
        odeint(decay, torch.ones(2), [0.0, 1.0])(float("nan"))


@pytest.mark.parametrize(
    ("end", "controller", "last"), [(0.1009, PI(max_step=0.1, first_step=0.1), 0.0009), (1.0005, Fixed(0.1), 0.0005)],
    ids=["adaptive", "fixed"],
)  # fmt: skip
def test_no_step_is_longer_than_it_may_be(end: float, controller: PI, last: float, per_sample: bool) -> None:
    dt = odeint(decay, torch.ones(2, 1), [0.0, end], controller=controller, per_sample=per_sample).steps.dt
    assert dt.max() <= 0.1 * (1 + 1e-9) and dt[-1, 0].item() == pytest.approx(last)


def test_a_step_by_number_may_be_given_as_a_tensor() -> None:
    solution = odeint(decay, torch.ones(2), [0.0, 1.0])
    assert torch.equal(solution.retake(torch.tensor(1)).y, solution.retake(1).y)
    with pytest.raises(TypeError, match=r"i must be a number where the samples share their steps, got shape \(2,\)"):
        solution.retake(torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        (ReversibleHeun(), ValueError, "must carry nothing but y from step to step, which ReversibleHeun does not"),
        (AutoSwitch(Tsit5(), Rosenbrock23()), ValueError, "which AutoSwitch does not: use odeint"),
        (Tsit5, TypeError, "method must be a Method such as"),
    ],
    ids=["reversible", "switch", "class"],
)
def test_methods_that_make_no_single_steps_are_refused(method: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        step(decay, 0.0, 0.1, torch.ones(3, 2), method=method)


def test_newton_that_fails_is_told_apart_from_a_field_that_does() -> None:
    solution = odeint(lambda t, y: y * y, torch.ones(1, dtype=F64), [0.0, 1.2], method=Kvaerno5(), throw=False)
    assert solution.status == (Status.NONFINITE,) and solution.reached.item() == pytest.approx(1.0, abs=1e-4)
    assert "an implicit step had no solution" in solution.report()
