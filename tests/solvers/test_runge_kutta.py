import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invreg.solvers import (
    RK4,
    Bosh3,
    Dopri5,
    Dopri8,
    Euler,
    Event,
    Fixed,
    Heun,
    Midpoint,
    Ralston,
    Tsit5,
    Vern7,
    odeint,
)
from invreg.solvers.method import Method
from invreg.solvers.sums import advance

EXPLICIT = {
    "euler": Euler(),
    "heun": Heun(),
    "midpoint": Midpoint(),
    "ralston": Ralston(),
    "rk4": RK4(),
    "bosh3": Bosh3(),
    "dopri5": Dopri5(),
    "dopri5_shampine": Dopri5(weights="shampine"),
    "tsit5": Tsit5(),
    "dopri8": Dopri8(),
    "vern7": Vern7(),
}
STIFFNESS = {"dopri5": Dopri5, "tsit5": Tsit5, "dopri8": Dopri8, "vern7": Vern7}
each_norm = pytest.mark.parametrize("norm", ["rms", "max"])
each_estimate = pytest.mark.parametrize("name", STIFFNESS)
each_method = pytest.mark.parametrize("name", EXPLICIT)
COUNTS = {1: 256, 2: 64, 3: 32, 4: 32, 5: 128, 7: 32, 8: 16}  # steps, for which the leading error term leads
END = 3.0


def turning(t: Tensor, y: Tensor) -> Tensor:
    """A circle that is run through the faster the wider it is: nonlinear, autonomous."""
    speed = y.square().sum()
    return torch.stack([-speed * y[1], speed * y[0]])


def turned(t: Tensor) -> Tensor:
    angle = 1.09 * t
    c, s = torch.cos(angle), torch.sin(angle)
    return torch.stack([c - 0.3 * s, s + 0.3 * c], dim=-1)


def swinging(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.cos(t)


def swung(t: Tensor) -> Tensor:
    start = torch.tensor([0.1, 0.3, 2.0], dtype=torch.float64)
    return start * torch.exp(torch.sin(t))[..., None]


Problem = tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]
PROBLEMS: dict[str, Problem] = {"autonomous": (turning, turned), "nonautonomous": (swinging, swung)}


def errors(method: Method, problem: Problem, count: int) -> tuple[float, float, float]:
    """Mean errors: at the ends of the steps, between them by a call, and at interior ts."""
    field, exact = problem
    step = END / count
    ends = torch.arange(1, count + 1, dtype=torch.float64) * step
    between = ends - 0.37 * step
    start = exact(torch.zeros((), dtype=torch.float64))
    with torch.no_grad():
        ts = torch.cat([torch.zeros(1, dtype=torch.float64), between, ends[-1:]])
        solution = odeint(field, start, ts, method=method, controller=Fixed(step))
        assert len(solution.steps) == count
        states = torch.cat([solution.steps.y[1:], solution.ys[-1:]])
        called = solution(between)
    return tuple(
        (values - exact(times)).abs().mean().item()
        for values, times in ((states, ends), (called, between), (solution.ys[1:-1], between))
    )


@each_method
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_error_of_fixed_steps_falls_with_the_order_of_the_method(problem: str, name: str) -> None:
    method, count = EXPLICIT[name], COUNTS[EXPLICIT[name].order]
    coarse, fine = (errors(method, PROBLEMS[problem], n) for n in (count, 2 * count))
    ends, called, interior = (math.log2(a / b) for a, b in zip(coarse, fine, strict=True))
    assert abs(ends - method.order) < 0.3
    assert called > method.order - 1 - 0.3
    assert called > method.dense_order - 0.3
    assert interior == pytest.approx(called, abs=0.02)


@each_method
def test_the_time_of_an_event_converges_with_the_order_of_the_values_between_steps(name: str) -> None:
    method = EXPLICIT[name]
    exact = math.asin(0.37)

    def error(count: int) -> float:
        event = Event(lambda t, y: y - math.exp(0.37))
        y0 = torch.ones((), dtype=torch.float64)
        # a step that varies puts the event at the same place of it
        solution = odeint(swinging, y0, [0.0, 1.0], method=method, controller=Fixed(exact / count), events=[event])
        return abs(solution.events[0].t[0].item() - exact)

    count = {1: 64.4, 2: 32.4, 3: 16.4, 4: 16.4, 5: 8.4, 7: 4.4, 8: 4.4}[method.order]
    coarse, fine = error(count), error(count * 2 - 0.4)
    assert fine < 1e-14 or math.log2(coarse / fine) > method.order - 1 - 0.3
    assert fine < 1e-2


@pytest.mark.parametrize("rotated", [False, True])
@each_norm
@each_estimate
def test_the_stiffness_is_the_dominant_eigenvalue_where_stability_bounds_the_steps(
    name: str, norm: str, rotated: bool
) -> None:
    random = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=random))[0]
    J = torch.diag(torch.tensor([-1.0, -3.0, -200.0], dtype=torch.float64))
    J = Q @ J @ Q.T if rotated else J
    y0 = torch.ones(3, dtype=torch.float64)
    with torch.no_grad():
        solution = odeint(lambda t, y: J @ y, y0, [0.0, 4.0], method=STIFFNESS[name](stiffness_norm=norm), rtol=1e-4)
    stiffness = solution.steps.stiffness
    assert stiffness is not None
    settled = stiffness[len(stiffness) // 2 :, 0]
    torch.testing.assert_close(settled, torch.full_like(settled, 200.0), rtol=0.1, atol=0)


@pytest.mark.parametrize("per_sample", [False, True])
@each_norm
@each_estimate
def test_the_stiffness_of_y_prime_equal_to_a_y_is_a_and_its_derivative_is_one(
    name: str, norm: str, per_sample: bool
) -> None:
    rates = torch.tensor([[3.0], [50.0]], dtype=torch.float64)[: 2 if per_sample else 1].requires_grad_()
    y0 = torch.ones_like(rates)
    solution = odeint(
        lambda t, y: -rates * y, y0, [0.0, 0.5], method=STIFFNESS[name](stiffness_norm=norm), per_sample=per_sample
    )
    stiffness = solution.steps.stiffness
    assert stiffness is not None
    want = torch.where(solution.steps.mask, rates.detach().T, 0.0)
    torch.testing.assert_close(stiffness.detach(), want, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(stiffness.sum(), rates)
    torch.testing.assert_close(gradient[:, 0], solution.steps.mask.sum(0).double(), rtol=1e-5, atol=1e-5)


@each_norm
def test_the_stiffness_of_a_constant_solution_is_zero_and_so_is_its_gradient(norm: str) -> None:
    y0 = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    solution = odeint(lambda t, y: -y, y0, [0.0, 1.0], method=Tsit5(stiffness_norm=norm))
    stiffness = solution.steps.stiffness
    assert stiffness is not None
    assert (stiffness == 0).all()
    (gradient,) = torch.autograd.grad(stiffness.sum(), y0)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["heun", "midpoint", "ralston", "bosh3", "dopri5", "tsit5", "dopri8", "vern7"])
def test_the_error_estimate_falls_with_one_order_more_than_that_of_the_embedded_method(name: str) -> None:
    method = EXPLICIT[name]
    y0 = torch.tensor([1.0, 0.3], dtype=torch.float64)

    def estimate(dt: float) -> float:
        step = method.step(turning, torch.zeros((), dtype=torch.float64), dt, y0)
        error = step.error()
        assert error is not None
        return error.norm().item()

    assert method.error_order is not None
    ratio = math.log2(estimate(0.2) / estimate(0.1))
    assert ratio > method.error_order + 1 - 0.5
    assert estimate(0.1) > 0


@each_method
def test_a_step_gives_the_same_for_a_number_a_scalar_and_a_column_of_lengths(name: str) -> None:
    method = EXPLICIT[name]
    y0 = torch.tensor([[1.0, 0.3], [0.2, -1.0]], dtype=torch.float64)
    t = torch.full((), 0.4, dtype=torch.float64)
    column = torch.full((2, 1), 0.4, dtype=torch.float64)
    plain = method.step(swinging, t, 0.1, y0)
    for other in (
        method.step(swinging, t, torch.full((), 0.1, dtype=torch.float64), y0),
        method.step(swinging, column, torch.full((2, 1), 0.1, dtype=torch.float64), y0),
    ):
        torch.testing.assert_close(other.y, plain.y, rtol=1e-15, atol=1e-15)
        torch.testing.assert_close(other.at(0.3), plain.at(0.3), rtol=1e-15, atol=1e-15)
        if method.error_order is not None:
            torch.testing.assert_close(other.error(), plain.error(), rtol=1e-11, atol=1e-16)


@each_method
def test_the_values_between_meet_those_at_both_ends_of_a_step(name: str) -> None:
    method = EXPLICIT[name]
    y0 = torch.tensor([1.0, 0.3], dtype=torch.float64)
    step = method.step(turning, torch.zeros((), dtype=torch.float64), 0.3, y0)
    torch.testing.assert_close(step.at(0.0), y0, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(step.at(1.0), step.y, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(step.at(torch.tensor(0.4, dtype=torch.float64)), step.at(0.4), rtol=1e-14, atol=1e-14)


@each_method
def test_a_step_evaluates_the_field_as_often_as_its_method_says(name: str) -> None:
    method, calls = EXPLICIT[name], []

    def field(t: Tensor, y: Tensor) -> Tensor:
        calls.append(t.item())
        return swinging(t, y)

    y0 = torch.ones(2, dtype=torch.float64)
    t = torch.zeros((), dtype=torch.float64)
    step = method.step(field, t, 0.3, y0, slope=swinging(t, y0))
    step.slope()
    assert len(calls) == method.evaluations
    step.error(), step.stiffness(False), step.slope()
    assert len(calls) == method.evaluations


def test_weights_that_dopri5_does_not_know_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^weights must be 'classical' or 'shampine', got 'nonsense'$"):
        Dopri5(weights="nonsense")  # type: ignore[arg-type]


@each_estimate
def test_a_stiffness_norm_that_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^stiffness_norm must be 'rms' or 'max', got 'nonsense'$"):
        STIFFNESS[name](stiffness_norm="nonsense")


def test_small_weights_enlarge_no_slope() -> None:
    y, slope = torch.zeros(2, dtype=torch.float16), torch.full((2,), 100.0, dtype=torch.float16)
    for weights in ([1e-4, 1.0], [1.0, 1e-4]):
        close = torch.full((2,), 10.0, dtype=torch.float16)
        torch.testing.assert_close(advance(y, 0.1, weights, [slope, slope]), close, rtol=1e-3, atol=0.0)
    assert advance(y, 0.1, [0.0, 0.0], [slope, slope]) is y
