import math
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from invreg.solvers import (
    PI,
    PID,
    RK4,
    Bosh3,
    Checkpointed,
    Direct,
    Dopri5,
    Dopri8,
    Fixed,
    I,
    Status,
    Tsit5,
    Vern7,
    odeint,
)
from invreg.solvers.arguments import problem_of
from invreg.solvers.solution import Solution
from invreg.solvers.solve import solve

METHODS = {"bosh3": Bosh3(), "dopri5": Dopri5(), "tsit5": Tsit5(), "dopri8": Dopri8(), "vern7": Vern7()}


@pytest.fixture(autouse=True)
def no_stray_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def swinging(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.cos(t)


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[..., 1], -torch.sin(y[..., 0])], -1)


def raising(t: Tensor, y: Tensor) -> Tensor:
    return y.square()  # 1 / (1 - t) from y = 1


@pytest.mark.parametrize("controller", [PI(), I(), PID()], ids=["pi", "i", "pid"])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-8])
@pytest.mark.parametrize("name", METHODS)
def test_the_error_stays_near_the_tolerance(name: str, tolerance: float, controller: PI) -> None:
    if name == "bosh3" and tolerance < 1e-6:
        tolerance = 1e-6
    y0 = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    ts = torch.linspace(0, 6, 7, dtype=torch.float64)
    with torch.no_grad():
        solution = odeint(swinging, y0, ts, method=METHODS[name], controller=controller, rtol=tolerance, atol=tolerance)
    exact = y0 * torch.exp(torch.sin(ts))[:, None]
    scale = tolerance * (1 + exact.abs())
    assert ((solution.ys - exact).abs() / scale).max() < 6
    assert solution.steps.ratio is not None and bool((solution.steps.ratio <= 1).all())
    assert solution.success and solution.reached.tolist() == [6.0]


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 3, 2)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_state_may_have_any_shape(shape: tuple[int, ...], per_sample: bool) -> None:
    if per_sample and not shape:
        shape = (2,)
    y0 = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    solution = odeint(decay, y0, [0.0, 0.3, 1.0], rtol=1e-8, atol=1e-10, per_sample=per_sample)
    assert solution.ys.shape == (3, *shape)
    torch.testing.assert_close(solution.ys[1:], torch.stack([y0 * math.exp(-0.3), y0 / math.e]), rtol=1e-7, atol=0)


def test_an_empty_batch_comes_back_empty() -> None:
    solution = odeint(decay, torch.zeros(0, 3), [0.0, 1.0])
    assert solution.ys.shape == (2, 0, 3) and solution.success


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_come_in_the_dtype_of_the_state(dtype: torch.dtype, per_sample: bool) -> None:
    seen: set[torch.dtype] = set()

    def field(t: Tensor, y: Tensor) -> Tensor:
        seen.update({t.dtype, y.dtype})
        return -y * t

    tolerance = 50 * torch.finfo(dtype).eps
    y0 = torch.tensor([[1.0], [2.0]], dtype=dtype)
    solution = odeint(field, y0, [0.0, 0.5, 1.0], rtol=tolerance, atol=tolerance, per_sample=per_sample)
    assert solution.ys.dtype == dtype and seen == {dtype}
    assert solution.ts.dtype == torch.float64
    want = y0.double() * math.exp(-0.5)
    torch.testing.assert_close(solution.ys[-1].double(), want, rtol=2 * tolerance, atol=2 * tolerance)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_states_turn_and_the_field_gets_a_real_time(dtype: torch.dtype, per_sample: bool) -> None:
    seen: set[torch.dtype] = set()

    def field(t: Tensor, y: Tensor) -> Tensor:
        seen.add(t.dtype)
        return 1j * y

    y0 = torch.tensor([1.0, 1j], dtype=dtype)
    solution = odeint(field, y0, [0.0, 1.0], rtol=1e-5, atol=1e-6, per_sample=per_sample)
    want = y0 * torch.exp(torch.tensor(1j, dtype=dtype))
    torch.testing.assert_close(solution.ys[-1], want, rtol=1e-4, atol=1e-4)
    assert seen == {torch.finfo(dtype).dtype and (torch.float32 if dtype == torch.complex64 else torch.float64)}


@pytest.mark.parametrize("adjoint", [Checkpointed(), Checkpointed(tape=0), Direct()], ids=str)
def test_gradients_of_a_complex_solve_are_those_of_its_closed_form(adjoint: Checkpointed) -> None:
    rate = torch.tensor(0.3 - 1.1j, dtype=torch.complex128, requires_grad=True)
    y0 = torch.tensor([1.0 + 2j, 1j], dtype=torch.complex128, requires_grad=True)
    solution = odeint(lambda t, y: rate * y, y0, [0.0, 1.0], rtol=1e-10, atol=1e-10, adjoint=adjoint)
    got = torch.autograd.grad(solution.ys[-1].real.sum() + solution.ys[-1].abs().sum(), [rate, y0])
    exact = y0 * torch.exp(rate)
    want = torch.autograd.grad(exact.real.sum() + exact.abs().sum(), [rate, y0])
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("kind", [tuple, dict])
def test_a_state_may_be_a_tuple_or_dict_of_tensors_of_several_shapes_and_dtypes(kind: type, per_sample: bool) -> None:
    first, second = torch.ones(2, 3), torch.full((2,) if per_sample else (), 2.0, dtype=torch.float64)
    third = torch.ones(2, 1, dtype=torch.complex128)
    leaves = (first, second, third)
    y0 = leaves if kind is tuple else dict(zip("abc", leaves, strict=True))
    times: set[tuple[int, ...]] = set()

    def field(t: Tensor, y: tuple[Tensor, ...] | dict[str, Tensor]) -> tuple[Tensor, ...] | dict[str, Tensor]:
        times.add(tuple(t.shape))
        a, b, c = y.values() if isinstance(y, dict) else y
        assert (a.dtype, b.dtype, c.dtype) == (torch.float32, torch.float64, torch.complex128)
        slopes = -a, -2 * b, 1j * c
        return dict(zip(y, slopes, strict=True)) if isinstance(y, dict) else slopes

    solution = odeint(field, y0, [0.0, 0.5, 1.0], rtol=1e-7, atol=1e-9, per_sample=per_sample)
    assert isinstance(solution.ys, kind)
    a, b, c = solution.ys.values() if isinstance(solution.ys, dict) else solution.ys
    assert (a.dtype, b.dtype, c.dtype) == (torch.float32, torch.float64, torch.complex128)
    assert a.shape == (3, 2, 3) and b.shape == (3, *second.shape) and c.shape == (3, 2, 1)
    torch.testing.assert_close(a[-1], first / math.e, rtol=1e-6, atol=0)
    torch.testing.assert_close(b[-1], second * math.exp(-2), rtol=1e-6, atol=0)
    torch.testing.assert_close(c[-1], third * complex(math.cos(1), math.sin(1)), rtol=1e-6, atol=0)
    assert times == {(2,) if per_sample else ()}


def test_gradients_reach_the_leaves_of_a_dict() -> None:
    leaves = {"a": torch.ones(2, dtype=torch.float64), "b": torch.tensor(2.0, dtype=torch.float64)}
    leaves = {name: one.requires_grad_() for name, one in leaves.items()}

    def field(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": -y["a"] * y["b"], "b": torch.zeros_like(y["b"])}

    solution = odeint(field, leaves, [0.0, 1.0], rtol=1e-10, atol=1e-10)
    got = torch.autograd.grad(solution.ys["a"][-1].sum(), list(leaves.values()))
    torch.testing.assert_close(got[0], torch.full((2,), math.exp(-2), dtype=torch.float64), rtol=1e-7, atol=0)
    torch.testing.assert_close(got[1], torch.tensor(-2 * math.exp(-2), dtype=torch.float64), rtol=1e-7, atol=0)


@pytest.mark.parametrize("per_sample", [False, True])
def test_time_may_run_backward(per_sample: bool) -> None:
    y0 = torch.tensor([1.0, 2.0], dtype=torch.float64)
    ts = torch.tensor([2.0, 1.5, -1.0], dtype=torch.float64)
    solution = odeint(swinging, y0, ts, rtol=1e-9, atol=1e-9, per_sample=per_sample)
    want = y0 * torch.exp(torch.sin(ts) - math.sin(2))[:, None]
    torch.testing.assert_close(solution.ys, want, rtol=1e-7, atol=1e-7)
    assert (solution.steps.dt <= 0).all()
    between = solution(0.3) / y0
    torch.testing.assert_close(between, torch.full_like(y0, math.exp(math.sin(0.3) - math.sin(2))), rtol=1e-5, atol=0)


def test_there_and_back_again_is_the_start() -> None:
    y0 = torch.tensor([1.0, 0.2], dtype=torch.float64)
    there = odeint(pendulum, y0, [0.0, 5.0], rtol=1e-10, atol=1e-10).ys[-1]
    back = odeint(pendulum, there, [5.0, 0.0], rtol=1e-10, atol=1e-10).ys[-1]
    torch.testing.assert_close(back, y0, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("ts", [[0, 1], (0.0, 1.0), torch.tensor([0, 1]), torch.tensor([0.0, 1.0])])
def test_times_may_be_a_list_or_a_tensor_of_integers(ts: list[float] | Tensor) -> None:
    solution = odeint(decay, torch.ones(1), ts)
    assert solution.ts.dtype == torch.float64
    torch.testing.assert_close(solution.ys[-1], torch.full((1,), 1 / math.e), rtol=1e-3, atol=0)


@pytest.mark.parametrize("adjoint", [Checkpointed(), Checkpointed(tape=0), Direct()], ids=str)
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_single_time_gives_the_start_and_its_gradient(per_sample: bool, adjoint: Direct) -> None:
    y0 = torch.ones(2, requires_grad=True)
    solution = odeint(decay, y0, [0.5], per_sample=per_sample, adjoint=adjoint)
    assert solution.ys.shape == (1, 2) and len(solution.steps) == 0 and solution.success
    assert torch.equal(torch.autograd.grad(solution.ys.sum(), y0)[0], torch.ones(2))
    assert torch.equal(solution(0.5), y0)
    assert solution.reached.tolist() == [0.5] * (2 if per_sample else 1)


def test_arguments_reach_the_field_and_the_events() -> None:
    rate = torch.tensor(2.0, dtype=torch.float64)
    solution = odeint(lambda t, y, a, b: -a * y + b, torch.ones((), dtype=torch.float64), [0.0, 1.0],
                      args=(rate, 0.0), rtol=1e-8)  # fmt: skip
    torch.testing.assert_close(solution.ys[-1].item(), math.exp(-2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 4)])
def test_the_field_gets_times_that_broadcast_to_the_state(shape: tuple[int, ...]) -> None:
    seen: dict[bool, set[tuple[int, ...]]] = {False: set(), True: set()}
    for per_sample in (False, True):

        def field(t: Tensor, y: Tensor, here: set[tuple[int, ...]] = seen[per_sample]) -> Tensor:
            here.add(tuple(t.shape))
            return -y * t

        odeint(field, torch.ones(shape), [0.0, 0.4, 1.0], per_sample=per_sample)
    assert seen[False] == {()}
    assert seen[True] == {(2, *([1] * (len(shape) - 1)))}


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("per_sample", [False, True])
def test_values_at_interior_times_are_those_of_the_call_and_do_not_change_the_steps(
    per_sample: bool, adaptive: bool
) -> None:
    controller = PI() if adaptive else Fixed(0.25)
    y0 = torch.tensor([[1.0, 0.0], [0.1, 1.0]], dtype=torch.float64)
    ts = torch.linspace(0, 3, 11, dtype=torch.float64)
    many = odeint(pendulum, y0, ts, per_sample=per_sample, controller=controller)
    few = odeint(pendulum, y0, ts[[0, -1]], per_sample=per_sample, controller=controller)
    torch.testing.assert_close(many.steps.t, few.steps.t, rtol=0, atol=0)
    torch.testing.assert_close(many.ys[-1], few.ys[-1], rtol=0, atol=0)
    torch.testing.assert_close(many.ys[:-1], few(ts[:-1]), rtol=1e-12, atol=1e-12)


def test_rk4_without_a_controller_takes_one_step_between_two_times() -> None:
    ts = torch.tensor([0.0, 0.1, 0.4, 0.5], dtype=torch.float64)
    solution = odeint(decay, torch.ones(1, dtype=torch.float64), ts, method=RK4())
    torch.testing.assert_close(solution.steps.t[:, 0], ts[:-1])
    torch.testing.assert_close(solution.steps.dt[:, 0], ts.diff())
    assert solution.stats.accepted.item() == 3 and solution.stats.rejected.item() == 0
    assert solution.steps.error is None and solution.steps.ratio is None and solution.steps.stiffness is None


# --- against torchdiffeq


@pytest.mark.parametrize("count", [2, 7])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_the_controller_of_torchdiffeq_gives_its_evaluations_and_values(tolerance: float, count: int) -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    calls = [0]

    def field(t: Tensor, y: Tensor) -> Tensor:
        calls[0] += 1
        return torch.stack([y[1], 5 * (1 - y[0] ** 2) * y[1] - y[0] + torch.cos(t)])

    y0 = torch.tensor([1.5, 0.3], dtype=torch.float64)
    ts = torch.linspace(0, 4, count, dtype=torch.float64)
    want = torchdiffeq.odeint(field, y0, ts, method="dopri5", rtol=tolerance, atol=tolerance)
    theirs, calls[0] = calls[0], 0
    ours = Dopri5(weights="shampine")
    problem = problem_of(
        field, y0, ts, ours, I(shrink_accepted=False), False, tolerance, tolerance, (), (), (), (), 10_000
    )
    solution = solve(problem.over(overshoot=True), Direct())
    assert calls[0] == theirs == solution.stats.calls
    torch.testing.assert_close(solution.ys, want, rtol=1e-10, atol=1e-10)


# --- how a solve ends


def test_a_field_that_gives_nan_ends_the_solve_and_says_where() -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t > 0.5, torch.nan, -y)

    y0 = torch.ones(2, dtype=torch.float64)
    ts = [0.0, 0.25, 0.75, 1.0]
    solution = odeint(field, y0, ts, throw=False)
    assert solution.status == (Status.NONFINITE,) and not solution.success
    assert 0.45 < solution.reached.item() <= 0.5
    assert solution.ys[:2].isfinite().all() and solution.ys[2:].isnan().all()
    with pytest.raises(RuntimeError, match=r"no arrival at t = 1: nonfinite after \d+ steps at t = 0\.\d+; .*look at"):
        odeint(field, y0, ts)


def test_too_few_steps_end_the_solve_and_say_what_to_do() -> None:
    y0 = torch.ones(2, dtype=torch.float64)
    solution = odeint(swinging, y0, [0.0, 0.1, 20.0], rtol=1e-8, max_steps=7, throw=False)
    assert solution.status == (Status.MAX_STEPS,)
    assert (solution.stats.accepted + solution.stats.rejected).item() == 7
    assert 0.1 < solution.reached.item() < 20
    assert solution.ys[1].isfinite().all() and solution.ys[2].isnan().all()
    with pytest.raises(RuntimeError, match=r"max_steps after 7 steps at t = .*; raise max_steps, loosen rtol and atol"):
        odeint(swinging, y0, [0.0, 20.0], rtol=1e-8, max_steps=7)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_solution_that_escapes_ends_with_a_step_below_the_resolution_of_the_clock(per_sample: bool) -> None:
    y0 = torch.ones(1, dtype=torch.float64)
    solution = odeint(raising, y0, [0.0, 0.9, 2.0], rtol=1e-6, throw=False, per_sample=per_sample)
    assert solution.status[0] in {Status.UNDERFLOW, Status.NONFINITE}
    assert solution.reached.item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(solution.ys[1], torch.full_like(y0, 10.0), rtol=1e-3, atol=0)
    assert solution.ys[2].isnan().all()


def test_a_step_too_short_for_the_clock_is_called_an_underflow() -> None:
    y0 = torch.ones((), dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"underflow after \d+ steps at t = 1; the problem is stiff: try Rodas5P"):
        odeint(raising, y0, [0.0, 1.5], rtol=1e-9)


@pytest.mark.parametrize("per_sample", [False, True])
def test_fixed_steps_that_meet_nan_are_told(per_sample: bool) -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t > 0.5, torch.nan, -y)

    y0 = torch.ones(2, dtype=torch.float64)
    solution = odeint(field, y0, [0.0, 0.3, 1.0], controller=Fixed(0.1), throw=False, per_sample=per_sample)
    assert set(solution.status) == {Status.NONFINITE}
    assert solution.ys[1].isfinite().all() and solution.ys[2].isnan().all()
    assert ((solution.reached >= 0.3) & (solution.reached <= 0.61)).all()
    with pytest.raises(RuntimeError, match="nonfinite"):
        odeint(field, y0, [0.0, 1.0], controller=Fixed(0.1), per_sample=per_sample)


def test_a_nan_that_fixed_steps_forget_is_told_from_the_last_value() -> None:
    y0 = torch.ones(2, dtype=torch.float64)
    solution = odeint(lambda t, y: y * torch.inf, y0, [0.0, 1.0], controller=Fixed(0.25), throw=False)
    assert solution.status == (Status.NONFINITE,)
    assert solution.reached.item() == 0.0


# --- the counts


@pytest.mark.parametrize("stops", [(), (0.3,)])
@pytest.mark.parametrize("name", METHODS)
def test_evaluations_are_counted(name: str, stops: tuple[float, ...]) -> None:
    calls = [0]

    def field(t: Tensor, y: Tensor) -> Tensor:
        calls[0] += 1
        return pendulum(t, y)

    y0 = torch.tensor([3.0, 0.2], dtype=torch.float64)
    with torch.no_grad():
        solution = odeint(field, y0, [0.0, 8.0], method=METHODS[name], stops=stops, rtol=1e-5)
    stats, method = solution.stats, METHODS[name]
    assert stats.calls == calls[0] == stats.nfe.item()
    assert stats.accepted.item() == len(solution.steps)
    attempts = (stats.accepted + stats.rejected).item()
    most = 2 + attempts * method.evaluations
    assert most - attempts <= stats.calls <= most
    assert all(one.dtype == torch.int64 and one.device.type == "cpu" for one in (stats.nfe, stats.accepted))


def test_the_steps_begin_where_the_one_before_ended() -> None:
    y0 = torch.tensor([3.0, 0.2], dtype=torch.float64)
    solution = odeint(pendulum, y0, [0.0, 8.0], rtol=1e-5)
    steps = solution.steps
    torch.testing.assert_close(steps.t[1:], (steps.t + steps.dt)[:-1], rtol=1e-15, atol=1e-15)
    assert steps.t[0] == 0 and (steps.t + steps.dt)[-1].item() == pytest.approx(8.0, abs=1e-14)
    assert torch.equal(steps.y[0], y0)
    for i in (0, len(steps) - 2):
        torch.testing.assert_close(solution.retake(i).y, steps.y[i + 1], rtol=1e-14, atol=1e-14)


# --- settings


def same(one: Solution, other: Solution) -> bool:
    return torch.equal(one.ys, other.ys) and torch.equal(one.steps.t, other.steps.t)


def test_tolerances_may_be_tensors_that_differ_by_entry() -> None:
    y0 = torch.tensor([1.0, 1.0], dtype=torch.float64)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([-y[0], 30 * torch.cos(30 * t)])

    tight = odeint(field, y0, [0.0, 3.0], atol=1e-6, rtol=1e-6)
    loose = odeint(field, y0, [0.0, 3.0], atol=torch.tensor([1e-6, 1e3]), rtol=1e-6)
    assert loose.stats.nfe.item() < tight.stats.nfe.item() / 3
    assert same(tight, odeint(field, y0, [0.0, 3.0], atol=torch.tensor(1e-6, dtype=torch.float64), rtol=1e-6))


def test_a_norm_of_ones_own_judges_the_steps() -> None:
    y0 = torch.tensor([1.0, 1.0], dtype=torch.float64)

    def first(error: Tensor) -> Tensor:
        return error[0].abs()

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([-y[0], 30 * torch.cos(30 * t)])

    plain = odeint(field, y0, [0.0, 3.0], rtol=1e-6)
    seminorm = odeint(field, y0, [0.0, 3.0], rtol=1e-6, controller=PI(norm=first))
    assert seminorm.stats.nfe.item() < plain.stats.nfe.item() / 2
    torch.testing.assert_close(seminorm.ys[-1, 0].item(), math.exp(-3), rtol=1e-4, atol=0)


def test_nothing_is_taped_without_gradients() -> None:
    net = torch.nn.Linear(2, 2)
    solution = odeint(lambda t, y: net(y), torch.ones(2), [0.0, 1.0])
    assert solution.ys.requires_grad
    with torch.no_grad():
        solution = odeint(lambda t, y: net(y), torch.ones(2), [0.0, 1.0])
    assert not solution.ys.requires_grad
    with torch.inference_mode():
        odeint(lambda t, y: net(y), torch.ones(2), [0.0, 1.0])
    odeint(lambda t, y: net(y), torch.ones(2), [0.0, 1.0]).ys.sum().backward()


def test_arguments_are_left_as_they_were() -> None:
    y0, ts = torch.ones(3), torch.tensor([0.0, 1.0])
    odeint(decay, y0, ts)
    assert torch.equal(y0, torch.ones(3)) and not y0.requires_grad and y0.grad_fn is None
    assert torch.equal(ts, torch.tensor([0.0, 1.0]))


def test_a_solve_repeats_bit_by_bit() -> None:
    y0 = torch.tensor([3.0, 0.2])
    assert same(odeint(pendulum, y0, [0.0, 8.0]), odeint(pendulum, y0, [0.0, 8.0]))


@pytest.mark.gpu
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_gpu_gives_the_values_of_the_cpu(per_sample: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    y0 = torch.tensor([[3.0, 0.2], [0.3, 1.0]], dtype=torch.float64, requires_grad=True)
    far = y0.detach().cuda().requires_grad_()
    ts = torch.linspace(0, 4, 9, dtype=torch.float64)
    here = odeint(pendulum, y0, ts, per_sample=per_sample, rtol=1e-6)
    there = odeint(pendulum, far, ts.cuda(), per_sample=per_sample, rtol=1e-6)
    assert there.ys.is_cuda
    torch.testing.assert_close(there.ys.cpu(), here.ys, rtol=1e-9, atol=1e-9)
    got = torch.autograd.grad(there.ys.square().sum(), far)[0]
    torch.testing.assert_close(got.cpu(), torch.autograd.grad(here.ys.square().sum(), y0)[0], rtol=1e-7, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("adjoint", [Checkpointed(), Checkpointed(tape=0), Direct()], ids=str)
def test_dropout_on_a_gpu_is_replayed(adjoint: Direct) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 3)).cuda().double()
    y0 = torch.ones(2, 3, device="cuda", dtype=torch.float64)
    gradients = []
    for one in (Direct(), adjoint):
        torch.manual_seed(0)
        ys = odeint(lambda t, y: net(y), y0, [0.0, 1.0], adjoint=one, controller=Fixed(0.1)).ys
        gradients.append(torch.autograd.grad(ys.sum(), list(net.parameters())))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)
