"""Events and dense output in closed form."""

import math

import pytest
import torch
from torch import nn

from invreg.solvers.compat.torchdiffeq import odeint, odeint_adjoint, odeint_dense, odeint_event

F64 = torch.float64


def circle(t, y):
    return torch.stack([-y[1], y[0]])


class Linear(nn.Module):
    """dy/dt = rate y."""

    def __init__(self, rate):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=F64))

    def forward(self, t, y):
        return self.rate * y


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("method", "options"), [("dopri5", {}), ("dopri8", {}), ("rk4", {"step_size": 0.02, "interp": "cubic"})]
)
def test_the_first_of_several_events_ends_the_solve(reverse, method, options):
    def event_fn(t, y):
        return torch.stack([y[0] - 0.5, y[1].abs() - 0.6])

    t0 = torch.zeros((), dtype=F64)
    start = torch.tensor([1.0, 0.0], dtype=F64)
    event_t, y = odeint_event(
        circle, start, t0, event_fn=event_fn, reverse_time=reverse, method=method, options=options
    )
    assert event_t.item() == pytest.approx(math.asin(0.6) * (-1 if reverse else 1), abs=1e-6)
    torch.testing.assert_close(y[-1].abs(), torch.tensor([0.8, 0.6], dtype=F64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "tsit5"])
def test_parameters_of_field_and_event_and_the_first_time_get_gradients(solve, method):
    net, level = Linear(-0.5), torch.tensor(0.5, dtype=F64, requires_grad=True)
    t0 = torch.zeros((), dtype=F64, requires_grad=True)
    event_t, _ = odeint_event(
        net,
        torch.ones(1, dtype=F64),
        t0,
        event_fn=lambda t, y: y.sum() - level,
        odeint_interface=solve,
        method=method,
    )
    event_t.backward()  # the event is at log(level) / rate
    assert event_t.item() == pytest.approx(2 * math.log(2), abs=1e-6)
    assert net.rate.grad.item() == pytest.approx(4 * math.log(2), rel=1e-5)
    assert level.grad.item() == pytest.approx(-4.0, rel=1e-5)
    assert t0.grad.item() == pytest.approx(1.0, rel=1e-5)


def test_an_event_at_the_start_ends_there_and_can_be_differentiated():
    for method, options in (("dopri5", {}), ("rk4", {"step_size": 0.1})):
        y0 = torch.zeros(1, dtype=F64, requires_grad=True)
        event_t, y = odeint_adjoint(
            lambda t, y: torch.ones_like(y),
            y0,
            torch.tensor([1.0, 2.0], dtype=F64),
            event_fn=lambda t, y: y.sum(),
            method=method,
            options=options,
            adjoint_params=(),
        )
        assert event_t.item() == 1.0
        y[-1].sum().backward()
        assert y0.grad.item() == 1.0


def test_an_event_that_never_comes_ends_on_a_grid(monkeypatch):
    monkeypatch.setattr("invreg.solvers.compat.fixed_grid.MAX_STEPS", 100)
    with pytest.raises(RuntimeError, match="100 steps were taken"):
        odeint(
            lambda t, y: 0 * y,
            torch.ones(1),
            torch.tensor([0.0, 1.0]),
            method="euler",
            options={"step_size": 1.0},
            event_fn=lambda t, y: y.sum(),
        )


def test_scipy_says_that_it_knows_no_events():
    with pytest.raises(ValueError, match="scipy_solver cannot stop at an event_fn"):
        odeint(
            circle, torch.ones(2), torch.tensor([0.0, 1.0]), method="scipy_solver", event_fn=lambda t, y: y.sum() - 0.5
        )


@pytest.mark.parametrize("method", [None, "dopri8", "bosh3"])
def test_dense_output_takes_many_times_in_either_direction_and_gives_gradients(method):
    y0 = torch.tensor([1.0, 0.0], dtype=F64)
    for ends in ((0.0, 2.0), (2.0, 0.0)):
        start, end = (torch.tensor(one, dtype=F64) for one in ends)
        solution = odeint_dense(circle, torch.stack([start.cos(), start.sin()]), start, end, method=method)
        t = torch.linspace(0, 2, 7, dtype=F64, requires_grad=True)
        y = solution(t)
        torch.testing.assert_close(y, torch.stack([t.cos(), t.sin()], 1), rtol=0, atol=1e-5)
        (slope,) = torch.autograd.grad(y[:, 1].sum(), t)
        torch.testing.assert_close(slope, t.detach().cos(), rtol=0, atol=1e-3)
    with pytest.raises(AssertionError, match="t must lie between"):
        odeint_dense(circle, y0, torch.tensor(0.0), torch.tensor(1.0))(1.5)
