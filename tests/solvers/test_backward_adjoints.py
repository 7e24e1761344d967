"""What must hold of every adjoint that integrates backwards instead of replaying or taping the solve."""

import math
from typing import Any

import pytest
import torch
from gradients import REFERENCE, Net, distance, gradients, reference_gradients, relative_distance, tensors, weighted
from torch import Tensor

from invreg.solvers import Direct, Event, ReversibleHeun, Tsit5, odeint
from invreg.solvers.adjoint import Adjoint
from invreg.solvers.backsolve import Backsolve
from invreg.solvers.interpolating import Interpolating
from invreg.solvers.reversible import Reversible

ContinuousAdjoint = type[Backsolve] | type[Interpolating]
each_continuous = pytest.mark.parametrize("Continuous", [Backsolve, Interpolating])
each_adjoint = pytest.mark.parametrize(
    ("adjoint", "options"),
    [(Backsolve(), {}), (Interpolating(), {}), (Reversible(), {"method": ReversibleHeun()})],
    ids=["backsolve", "interpolating", "reversible"],
)


@each_continuous
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("seminorm", [False, True])
def test_gradients_come_to_those_of_direct_as_the_tolerance_falls(
    Continuous: ContinuousAdjoint, sign: float, seminorm: bool
) -> None:
    reference = reference_gradients(sign)
    loose, tight = (distance(gradients(Continuous(seminorm=seminorm), tol, sign), reference) for tol in (1e-4, 1e-8))
    assert tight < 1e-6
    assert loose > 100 * tight


@each_adjoint
def test_complex_and_structured_states_have_gradients(adjoint: Adjoint, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(2)
    y0 = torch.randn(3, dtype=torch.complex128, generator=generator).requires_grad_()
    real = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    a = torch.randn(3, 3, dtype=torch.complex128, generator=generator).requires_grad_()

    def found(adjoint: Adjoint, **tolerances: float) -> tuple[Tensor, ...]:
        z, r = odeint(lambda t, y: ((a @ y[0]) * 1j * y[1], -y[1] * t), (y0, real), [0.0, 0.4, 1.0], adjoint=adjoint,
                      **tolerances, **options).ys  # fmt: skip
        return torch.autograd.grad(weighted(z) + weighted(r), [y0, real, a])

    if isinstance(adjoint, Reversible):  # exact for its steps
        assert relative_distance(found(adjoint), found(Direct())) < 1e-10
    else:
        reference = found(Direct(), rtol=REFERENCE, atol=REFERENCE)
        assert distance(found(adjoint, rtol=1e-9, atol=1e-9), reference) < 1e-6


@each_continuous
@pytest.mark.parametrize("terminal", [False, True])
def test_events_and_values_between_times_have_gradients(Continuous: ContinuousAdjoint, terminal: bool) -> None:
    y0, leaf, _ = tensors()
    ts = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    event = Event(lambda t, y: y[0, 0] - y0[0, 0].detach() - t, terminal=terminal)

    def found(adjoint: Adjoint, tol: float) -> tuple[Tensor, ...]:
        solution = odeint(lambda t, y: 2 - y.sin() * leaf * t, y0, ts, rtol=tol, atol=tol, events=[event],
                          adjoint=adjoint)  # fmt: skip
        happened = solution.events[0]
        loss = weighted(happened.y) + happened.t.square().sum() + solution(0.12).pow(3).sum()
        return torch.autograd.grad(loss + weighted(solution.ys.nan_to_num()), [y0, ts, leaf])

    assert distance(found(Continuous(), 1e-9), found(Direct(), REFERENCE)) < 1e-5


@pytest.mark.parametrize(("Continuous", "states"), [(Backsolve, 2), (Interpolating, 1)])
def test_the_norm_gets_the_parts_of_the_augmented_state(Continuous: ContinuousAdjoint, states: int) -> None:
    shapes = set()

    def norm(parts: tuple[Tensor, ...]) -> Tensor:
        shapes.add(tuple(tuple(part.shape) for part in parts))
        return torch.stack([part.abs().max() for part in parts]).max()

    gradients(Continuous(norm=norm), 1e-5)
    # the time, the state (but Interpolating knows it), the adjoint, the parameters, the argument, what is closed over
    assert shapes == {((), *[(2, 3)] * states, (6, 3), (6,), (3, 6), (3,), (), (3,))}


@each_continuous
def test_step_estimates_have_no_graph(Continuous: ContinuousAdjoint) -> None:
    solution = odeint(Net(), tensors()[0], [0.0, 1.0], adjoint=Continuous())
    for column in (solution.steps.ratio, solution.steps.error, solution.steps.stiffness):
        assert column is not None
        assert not column.requires_grad
    assert solution.ys.requires_grad


@each_adjoint
def test_a_second_derivative_is_refused(adjoint: Adjoint, options: dict[str, Any]) -> None:
    y0 = tensors()[0]
    ys = odeint(lambda t, y: -y.pow(3), y0, [0.0, 1.0], adjoint=adjoint, **options).ys
    (first,) = torch.autograd.grad(ys.square().sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="second ones use adjoint=Direct"):
        first.sum().backward()


@each_adjoint
def test_random_fields_are_refused(adjoint: Adjoint, options: dict[str, Any]) -> None:
    y0 = tensors()[0]
    with pytest.raises(ValueError, match=f"{type(adjoint).__name__} needs a field without random numbers"):
        odeint(lambda t, y: -y * torch.rand_like(y), y0, [0.0, 0.1], rtol=1, atol=1, adjoint=adjoint, **options)


@each_continuous
def test_a_failed_backward_solve_says_so(Continuous: ContinuousAdjoint) -> None:
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    ys = odeint(lambda t, y: -y.pow(3), y0, [0.0, 1.0], max_steps=20, adjoint=Continuous(rtol=1e-13, atol=1e-13)).ys
    with pytest.raises(
        RuntimeError, match=r"backward solve from t = 1 to t = 0: max_steps .* adjoint=Checkpointed\(\)"
    ):
        ys.sum().backward()


@each_continuous
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rtol": 0.0}, ValueError, "rtol must be finite and > 0"),
        ({"atol": math.inf}, ValueError, "atol must be finite and > 0"),
        ({"method": Tsit5}, TypeError, "method must be a Method"),
        ({"controller": 0.1}, TypeError, "controller must be"),
        ({"seminorm": True, "norm": lambda parts: parts[0]}, ValueError, "norm must be None with seminorm"),
        ({"params": (1.0,)}, TypeError, "params must be tensors"),
    ],
)
def test_wrong_options_are_named(
    Continuous: ContinuousAdjoint, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Continuous(**options)
