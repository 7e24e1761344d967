import math
from typing import Any

import pytest
import torch
from gradients import gradients, relative_distance, saved_entries
from torch import Tensor

from invreg.solvers import Checkpointed, Direct, Fixed, Tsit5, odeint
from invreg.solvers.adjoint import Adjoint
from invreg.solvers.reversible import Reversible, ReversibleHeun

F64 = torch.float64


def autonomous(t: Tensor, y: Tensor) -> Tensor:
    return y * (1 - y)


def driven(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.cos(t) + torch.sin(3 * t)


@pytest.mark.parametrize("field", [autonomous, driven])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_error_falls_with_the_square_of_the_step(field: Any, sign: float) -> None:
    y0 = torch.tensor([0.2, 0.7], dtype=F64)
    ts = [0.0, 0.613 * sign, sign]
    exact = odeint(field, y0, ts, rtol=1e-12, atol=1e-12).ys
    errors = []
    for step in (0.04, 0.02):
        ys = odeint(field, y0, ts, method=ReversibleHeun(), controller=Fixed(step)).ys
        errors.append((ys - exact).abs().amax(1)[1:])  # between steps, and at the end of one
    orders = (errors[0] / errors[1]).log2()
    assert ((orders > 1.7) & (orders < 2.5)).all()


def test_the_error_estimate_is_that_of_embedded_euler() -> None:
    method, t, y = ReversibleHeun(), torch.tensor(0.3, dtype=F64), torch.tensor([0.2, 0.7], dtype=F64)
    step = method.step(driven, t, 0.1, method.lift(y))
    torch.testing.assert_close(step.error(), method.lower(step.y) - (y + 0.1 * driven(t, y)))
    assert step.stiffness(False) is None


def test_the_values_of_a_step_join_its_ends() -> None:
    method, t, y = ReversibleHeun(), torch.tensor(0.3, dtype=F64), torch.tensor([0.2, 0.7], dtype=F64)
    step = method.step(driven, t, 0.1, method.lift(y))
    torch.testing.assert_close(step.at(0.0), method.lift(y))
    torch.testing.assert_close(step.at(1.0), step.y)
    both = step.at(torch.tensor([0.0, 1.0], dtype=F64).reshape(2, 1, 1))
    torch.testing.assert_close(both, torch.stack((method.lift(y), step.y)))


def test_steps_of_samples_may_differ() -> None:
    method, y = ReversibleHeun(), torch.rand(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    t, dt = torch.tensor([0.0, 0.1, 0.2], dtype=F64), torch.tensor([0.1, 0.2, 0.3], dtype=F64)
    state = method.lift(y)
    together = method.step(driven, t.reshape(3, 1, 1), dt.reshape(3, 1, 1), state)
    for i in range(3):
        alone = method.step(driven, t[i], float(dt[i]), state[i])
        torch.testing.assert_close(together.y[i], alone.y)
        torch.testing.assert_close(together.at(dt.reshape(3, 1, 1))[i], alone.at(float(dt[i])))


def test_a_scalar_state_can_be_solved() -> None:
    y0 = torch.tensor(0.2, dtype=F64)
    ys = odeint(autonomous, y0, [0.0, 1.0], method=ReversibleHeun(), rtol=1e-6, atol=1e-6).ys
    assert float(ys[1]) == pytest.approx(1 / (1 + 4 * math.exp(-1)), rel=1e-4)


def test_steps_are_taken_back_to_where_they_began() -> None:
    method, generator = ReversibleHeun(), torch.Generator().manual_seed(0)
    y = torch.randn(5, dtype=F64, generator=generator)
    state = begin = torch.stack((y, y + 0.01 * torch.randn(5, dtype=F64, generator=generator)), -1)
    clock = torch.tensor(0.0, dtype=F64)
    for n in range(20):
        state = method.step(driven, clock + 0.05 * n, 0.05, state).y
    for n in reversed(range(20)):  # by the symmetry of the method: step back from (y, z) with slope f(t1, z1)
        state = method.step(driven, clock + 0.05 * (n + 1), -0.05, state).y
    assert float((state - begin).abs().max()) < 1e-12


@pytest.mark.parametrize(
    "options",
    [
        {"estimates": True},
        {"sign": -1.0, "estimates": True},
        {"stops": [0.7, 1.1], "estimates": True},
        {"controller": Fixed(0.07)},
        {"controller": Fixed()},
    ],
    ids=["forward", "backward", "stops", "fixed", "grid"],
)
def test_gradients_are_those_of_direct_and_checkpointed(options: dict[str, Any]) -> None:
    def found(adjoint: Adjoint) -> tuple[Tensor, ...]:
        return gradients(adjoint, 1e-3, method=ReversibleHeun(), **options)

    ours = found(Reversible())
    assert relative_distance(ours, found(Direct())) < 1e-10
    assert relative_distance(ours, found(Checkpointed())) < 1e-10


def test_gradients_beyond_jumps_are_those_of_direct() -> None:
    found = []
    for adjoint in (Reversible(), Direct()):
        y0, w = torch.full((3,), 0.2, dtype=F64, requires_grad=True), torch.tensor(0.7, dtype=F64, requires_grad=True)

        def field(t: Tensor, y: Tensor, w: Tensor = w) -> Tensor:
            return torch.where(t < 0.5, w * y, 1 - w * y)

        ys = odeint(field, y0, [0.0, 0.4, 1.0], jumps=[0.5], method=ReversibleHeun(), adjoint=adjoint).ys
        found.append(torch.autograd.grad(ys.square().sum(), [y0, w]))
    assert relative_distance(found[0], found[1]) < 1e-10


def test_gradients_of_times_are_refused_where_the_field_jumps() -> None:
    ts = torch.tensor([0.0, 1.0], requires_grad=True)
    with pytest.raises(ValueError, match="Reversible has no gradients of ts where the field jumps"):
        odeint(driven, torch.ones(2), ts, jumps=[0.5], method=ReversibleHeun(), adjoint=Reversible())


def test_gradients_agree_with_finite_differences() -> None:
    y0 = torch.tensor([0.2, 0.7], dtype=F64, requires_grad=True)
    w = torch.tensor([0.5, -0.3], dtype=F64, requires_grad=True)
    ts = torch.tensor([0.1, 0.33, 0.4, 1.0], dtype=F64)

    def by_state(y: Tensor, w: Tensor) -> Tensor:
        return odeint(lambda t, y: w * driven(t, y) * y, y, ts, method=ReversibleHeun(), controller=Fixed(0.1),
                      adjoint=Reversible()).ys  # fmt: skip

    assert torch.autograd.gradcheck(by_state, (y0, w))

    def by_time(
        inner: Tensor, shift: Tensor
    ) -> Tensor:  # the clock moves with the first time, the last stays in its step
        times = torch.cat((ts[:1] + shift, inner + shift, ts[-1:] + shift))
        return odeint(lambda t, y: w * driven(t, y) * y, y0, times, method=ReversibleHeun(), controller=Fixed(0.15),
                      adjoint=Reversible()).ys[:-1]  # fmt: skip

    inner, shift = ts[1:3].clone().requires_grad_(), torch.zeros((), dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(by_time, (inner, shift))


def test_memory_does_not_grow_with_the_steps() -> None:
    def saved(adjoint: Adjoint, step: float) -> int:
        y0 = torch.full((50,), 0.2, dtype=F64, requires_grad=True)
        return saved_entries(autonomous, y0, adjoint=adjoint, method=ReversibleHeun(), controller=Fixed(step))

    assert saved(Reversible(), 0.01) == saved(Reversible(), 0.1) < 250
    assert saved(Checkpointed(tape=0), 0.01) > 9000


def test_one_evaluation_a_step_goes_back() -> None:
    calls = 0

    def field(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return driven(t, y)

    y0 = torch.full((2,), 0.2, dtype=F64, requires_grad=True)
    solution = odeint(field, y0, [0.0, 1.0], method=ReversibleHeun(), controller=Fixed(0.1), adjoint=Reversible())
    assert solution.steps.y.shape[0] == 0
    calls = 0
    solution.ys.sum().backward()
    assert calls == 10 + 1


def test_frozen_parameters_and_constant_fields_are_no_trouble() -> None:
    y0 = torch.full((2,), 0.2, dtype=F64, requires_grad=True)
    ys = odeint(lambda t, y: torch.ones_like(y), y0, [0.0, 1.0], method=ReversibleHeun(), adjoint=Reversible()).ys
    ys[1].sum().backward()
    torch.testing.assert_close(y0.grad, torch.ones(2, dtype=F64))


def test_other_methods_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Reversible needs method=ReversibleHeun\(\), got Tsit5"):
        odeint(autonomous, torch.ones(2), [0.0, 1.0], method=Tsit5(), adjoint=Reversible())
