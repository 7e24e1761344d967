"""What torchdiffeq promises of its functions, in closed form."""

import math

import pytest
import torch
from torch import nn

from invreg.solvers.compat.torchdiffeq import odeint, odeint_adjoint

F64 = torch.float64


def circle(t, y):
    return torch.stack([-y[1], y[0]])


def decay(t, y):
    return -y


class Linear(nn.Module):
    """dy/dt = rate y."""

    def __init__(self, rate=-0.5, dtype=F64):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=dtype))

    def forward(self, t, y):
        return self.rate * y


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("dopri8", 1e-7),
        ("dopri5", 1e-6),
        ("tsit5", 1e-6),
        ("bosh3", 1e-5),
        ("fehlberg2", 2e-3),
        ("adaptive_heun", 1e-4),
        ("scipy_solver", 1e-5),
    ],
)
def test_adaptive_methods_solve_a_circle(method, error):
    t = torch.linspace(0, 2, 5, dtype=F64)
    tolerances = {"rtol": 1e-5, "atol": 1e-6} if method in {"fehlberg2", "adaptive_heun"} else {}
    y = odeint(circle, torch.tensor([1.0, 0.0], dtype=F64), t, method=method, **tolerances)
    torch.testing.assert_close(y, torch.stack([t.cos(), t.sin()], 1), rtol=0, atol=error)


@pytest.mark.parametrize(
    ("method", "order"),
    [
        ("euler", 1),
        ("midpoint", 2),
        ("heun2", 2),
        ("heun3", 3),
        ("rk4", 4),
        ("explicit_adams", 4),
        ("implicit_adams", 4),
    ],
)
def test_methods_on_a_grid_have_their_order_on_a_problem_that_depends_on_time(method, order):
    def field(t, y):
        return y * torch.cos(t)

    def error(steps):
        options = {"step_size": 1 / steps}
        if "adams" in method:
            options["max_order"] = order + (method == "explicit_adams")
        y = odeint(field, torch.ones(1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64), method=method, options=options)
        return abs(y[-1].item() - math.exp(math.sin(1.0)))

    assert math.log2(error(20) / error(40)) > order - 0.3


def test_one_time_gives_the_start_and_no_times_between_need_no_evaluation_twice():
    y0 = torch.ones(3)
    for method in ("dopri5", "rk4", "implicit_adams", "scipy_solver"):
        assert torch.equal(odeint(decay, y0, torch.tensor([1.0]), method=method), y0[None])


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_the_dtype_of_the_state_is_kept_and_the_field_gets_real_times(dtype, method):
    seen = set()

    def field(t, y):
        seen.add((t.dtype, y.dtype))
        return -y

    y = odeint(field, torch.ones(2, dtype=dtype), torch.linspace(0, 1, 33), method=method, rtol=1e-4, atol=1e-5)
    assert y.dtype == dtype
    assert seen == {(dtype.to_real(), dtype)}
    assert (y[-1] - math.exp(-1)).abs().max() < 1e-4


def test_a_field_in_another_dtype_or_shape_is_brought_to_that_of_the_state():
    y = odeint(lambda t, y: torch.tensor(1.0, dtype=F64), torch.zeros(2, 2), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(y[-1], torch.ones(2, 2))


@pytest.mark.parametrize("leaves", [((), (2, 2)), ((3,),)])
@pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
def test_tuples_come_back_in_their_shapes(leaves, solve):
    kwargs = {"adjoint_params": ()} if solve is odeint_adjoint else {}
    y0 = tuple(torch.ones(shape, dtype=F64, requires_grad=True) for shape in leaves)
    y = solve(lambda t, y: tuple(-one for one in y), y0, torch.linspace(0, 1, 4, dtype=F64), **kwargs)
    for one, shape in zip(y, leaves, strict=True):
        assert one.shape == (4, *shape)
        torch.testing.assert_close(one[-1], torch.full(shape, math.exp(-1), dtype=F64), rtol=1e-6, atol=0)
    sum(one[-1].sum() for one in y).backward()
    for start in y0:
        torch.testing.assert_close(start.grad, torch.full(start.shape, math.exp(-1), dtype=F64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "rk4", "explicit_adams"])
def test_gradcheck_passes_in_state_and_times(method):
    y0 = torch.tensor([1.0, 0.2], dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.2, 0.5], dtype=F64, requires_grad=True)
    options = {"first_step": 0.1} if method in {"dopri5", "dopri8", "bosh3"} else {}

    def solve(y0, t):
        return odeint(lambda t, y: circle(t, y) * (1 + t), y0, t, method=method, options=options)

    assert torch.autograd.gradcheck(solve, (y0, t), atol=1e-4, rtol=1e-4)


def test_gradients_of_odeint_can_be_taken_twice():
    rate = torch.tensor(-0.5, dtype=F64, requires_grad=True)
    y = odeint(lambda t, y: rate * y, torch.ones(1, dtype=F64), torch.tensor([0.0, 2.0], dtype=F64))[-1].sum()
    (first,) = torch.autograd.grad(y, rate, create_graph=True)
    (second,) = torch.autograd.grad(first, rate)
    assert first.item() == pytest.approx(2 * math.exp(-1), rel=1e-5)
    assert second.item() == pytest.approx(4 * math.exp(-1), rel=1e-5)


def test_the_adjoint_finds_the_gradients_of_an_exponential():
    net, y0 = Linear(), torch.ones(1, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 1.0, 2.0], dtype=F64, requires_grad=True)
    odeint_adjoint(net, y0, t)[-1].sum().backward()
    value = math.exp(-1)
    assert y0.grad.item() == pytest.approx(value, rel=1e-6)
    assert net.rate.grad.item() == pytest.approx(2 * value, rel=1e-6)
    assert t.grad.tolist() == pytest.approx([0.5 * value, 0.0, -0.5 * value], rel=1e-6, abs=1e-7)


def test_the_adjoint_of_a_complex_state_agrees_with_the_tape():
    found = []
    for solve in (odeint, odeint_adjoint):
        net, y0 = Linear(), torch.tensor([1.0 + 2.0j], dtype=torch.complex128, requires_grad=True)
        t = torch.tensor([0.0, 1.0], dtype=F64, requires_grad=True)

        class Turn(nn.Module):
            def __init__(self, net):
                super().__init__()
                self.net = net

            def forward(self, t, y):
                return self.net(t, y) * (1 + 2j) * torch.exp(t)

        y = solve(Turn(net), y0, t, rtol=1e-9, atol=1e-10)
        (y[-1].real.sum() + (y[-1].abs() ** 2).sum()).backward()
        found.append((y0.grad.clone(), net.rate.grad.clone(), t.grad.clone()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_the_adjoint_gives_zeros_to_parameters_that_the_field_does_not_use():
    spare = torch.ones(3, requires_grad=True)
    y = odeint_adjoint(lambda t, y: torch.ones_like(y), torch.ones(1), torch.tensor([0.0, 1.0]), adjoint_params=[spare])
    y[-1].sum().backward()
    assert torch.equal(spare.grad, torch.zeros(3))


def test_the_adjoint_takes_tolerances_of_each_entry_with_it():
    net, y0 = Linear(), torch.ones(2, dtype=F64, requires_grad=True)
    rtol = torch.tensor([1e-6, 1e-8], dtype=F64)
    odeint_adjoint(net, y0, torch.tensor([0.0, 1.0], dtype=F64), rtol=rtol, atol=1e-9)[-1].sum().backward()
    assert net.rate.grad.item() == pytest.approx(2 * math.exp(-0.5), rel=1e-5)


def test_the_adjoint_warns_of_parameters_without_gradient_where_it_has_a_norm_for_all():
    fixed, free = torch.ones(1), torch.ones(1, requires_grad=True)
    options = {"norm": lambda parts: max(part.abs().max() for part in parts)}
    with pytest.warns(UserWarning, match="1 of 2 adjoint parameters do not require a gradient"):
        odeint_adjoint(
            decay, torch.ones(1), torch.tensor([0.0, 1.0]), adjoint_params=(fixed, free), adjoint_options=options
        )


@pytest.mark.parametrize("method", ["dopri5", "euler"])
def test_callbacks_are_told_of_every_step(method):
    net = Linear(-20.0)
    told = {"step": 0, "accept": 0, "reject": 0}

    def tell(key):
        def callback(t0, y0, dt):
            assert t0.ndim == dt.ndim == 0
            assert dt > 0
            assert y0.shape == (2,)
            told[key] += 1

        return callback

    net.callback_step = tell("step")
    if method == "dopri5":
        net.callback_accept_step, net.callback_reject_step = tell("accept"), tell("reject")
    options = {"first_step": 1.0} if method == "dopri5" else {"step_size": 0.1}
    odeint(net, torch.ones(2, dtype=F64), torch.tensor([1.0, 0.0], dtype=F64) * 0.9, method=method, options=options)
    if method == "dopri5":
        assert told["reject"] > 0
        assert told["accept"] + told["reject"] == told["step"]
    else:
        assert told["step"] == 9


def test_callbacks_of_the_adjoint_are_told_of_the_way_back():
    net, count = Linear(), [0, 0]
    net.callback_step = lambda t0, y0, dt: count.__setitem__(0, count[0] + 1)
    net.callback_step_adjoint = lambda t0, y0, dt: count.__setitem__(1, count[1] + 1)
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    y = odeint_adjoint(net, y0, torch.tensor([0.0, 1.0], dtype=F64), method="rk4", options={"step_size": 0.25})
    y[-1].sum().backward()
    assert count == [4, 4]


@pytest.mark.parametrize(("method", "name"), [("rk4", "callback_accept_step"), ("scipy_solver", "callback_step")])
def test_callbacks_that_a_solver_does_not_serve_are_warned_of(method, name):
    net = Linear()
    setattr(net, name, lambda t0, y0, dt: None)
    with pytest.warns(UserWarning, match=f"does not support callbacks.*{name}"):
        odeint(net, torch.ones(1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64), method=method)


def test_step_options_bound_the_steps():
    lengths = []
    net = Linear()
    net.callback_step = lambda t0, y0, dt: lengths.append(dt.item())
    t = torch.tensor([0.0, 10.0], dtype=F64)
    odeint(net, torch.ones(1, dtype=F64), t, options={"first_step": 0.1, "max_step": 0.12, "ifactor": 1.1})
    assert lengths[:3] == pytest.approx([0.1, 0.11, 0.12])
    assert max(lengths) == pytest.approx(0.12)
    lengths.clear()
    odeint(net, torch.ones(1, dtype=F64), t, options={"min_step": 2.0})
    assert min(lengths) == pytest.approx(2.0)


def test_the_limit_of_steps_counts_between_two_times():
    t = torch.linspace(0, 4, 9, dtype=F64)
    y0, options = torch.tensor([1.0, 0.0], dtype=F64), {"max_num_steps": 8, "max_step": 0.1}
    odeint(circle, y0, t, options=options)
    with pytest.raises(AssertionError, match=r"max_num_steps exceeded \(8>=8\)"):
        odeint(circle, y0, t[[0, -1]], options=options)


def test_solutions_that_blow_up_end_in_an_underflow():
    with pytest.raises(AssertionError, match="underflow in dt"):
        odeint(lambda t, y: y**2, torch.ones(1, dtype=F64), torch.tensor([0.0, 2.0], dtype=F64))


def test_values_that_are_not_finite_are_told():
    t = torch.tensor([0.0, 1.0])
    with pytest.raises(AssertionError, match="non-finite values in state `y`"):
        odeint(decay, torch.full((1,), torch.inf), t)
    with pytest.raises(AssertionError, match="underflow in dt.*non-finite"):
        odeint(lambda t, y: y / 0 * 0, torch.ones(1), t)


@pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
@pytest.mark.parametrize("backwards", [False, True])
def test_perturbed_steps_never_meet_their_ends(solve, backwards):
    times: list[float] = []

    def field(t, y):
        times.append(t.item())
        return -y

    kwargs = {"adjoint_params": ()} if solve is odeint_adjoint else {}
    t = torch.tensor([1.0, 0.0]) if backwards else torch.tensor([0.0, 1.0])
    y0 = torch.ones(2, requires_grad=True)
    for method in ("euler", "heun2", "rk4", "implicit_adams"):
        y = solve(field, y0, t, method=method, options={"step_size": 0.5, "perturb": True}, **kwargs)
        y.sum().backward()
    assert not {0.0, 0.5, 1.0} & set(times)
    assert all(-1e-6 < one < 1 for one in times)


def test_a_grid_constructor_gets_the_users_times_also_backwards():
    seen = []

    def grid(func, y0, t):
        seen.append(t.tolist())
        return torch.linspace(float(t[0]), float(t[-1]), 11)

    x0 = torch.tensor(1.0, requires_grad=True)
    options = {"grid_constructor": grid}
    y = odeint_adjoint(lambda t, y: y, x0, torch.tensor([0.0, 1.0]), method="euler", options=options, adjoint_params=())
    y[-1].backward()
    assert seen == [[0.0, 1.0], [1.0, 0.0]]
    assert x0.grad.item() == pytest.approx(1.1**10, rel=1e-5)
    odeint(decay, torch.tensor(1.0), torch.tensor([2.0, 1.0]), method="euler", options=options)
    assert seen[-1] == [2.0, 1.0]
