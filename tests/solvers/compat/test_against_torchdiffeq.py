"""The compatible interface against torchdiffeq itself, where that is installed."""

import inspect
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from invreg.solvers.compat import torchdiffeq as ours

theirs = pytest.importorskip("torchdiffeq")

ADAPTIVE = ("dopri5", "bosh3", "adaptive_heun", "fehlberg2")
GRID = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams")


class Net(nn.Module):
    """A small field that depends on time and counts its evaluations."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.layers(y) * torch.cos(3 * t)


def van_der_pol(t, y):
    return torch.stack([y[1], 5 * (1 - y[0] ** 2) * y[1] - y[0]])


def spiral(t, y):
    return y**3 @ torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=y.dtype)


def forced(t, y):
    return torch.sin(5 * t) * y + torch.cos(t)


def counted(field):
    def f(t, y):
        f.calls += 1
        return field(t, y)

    f.calls = 0
    return f


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"])
def test_signatures_are_those_of_torchdiffeq(name):
    here, there = (inspect.signature(getattr(module, name)).parameters for module in (ours, theirs))
    assert list(here) == list(there)
    for one, other in zip(here.values(), there.values(), strict=True):
        assert one.kind == other.kind
        assert one.default == other.default or one.name == "odeint_interface"


def test_every_method_of_torchdiffeq_is_there():
    from torchdiffeq._impl.odeint import SOLVERS

    for method in SOLVERS:
        ys = ours.odeint(spiral, torch.ones(2), torch.tensor([0.0]), method=method)
        assert torch.equal(ys, torch.ones(1, 2)), method


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("field", [van_der_pol, spiral, forced])
@pytest.mark.parametrize("rtol", [1e-3, 1e-4])
def test_evaluations_are_counted_alike_and_states_agree_at_the_ends_of_steps(method, field, rtol):
    y0, t = torch.tensor([2.0, 0.5], dtype=torch.float64), torch.tensor([0.0, 0.3, 0.4], dtype=torch.float64)
    a, b = counted(field), counted(field)
    ours.odeint(a, y0, t, method=method, rtol=rtol, atol=1e-5)
    theirs.odeint(b, y0, t, method=method, rtol=rtol, atol=1e-5)
    assert a.calls == b.calls
    seen: list[list[tuple[float, float]]] = [[], []]
    for module, found in zip((ours, theirs), seen, strict=True):
        f = counted(field)
        f.callback_accept_step = lambda t0, y0, dt, found=found: found.append((float(t0), float(y0[0])))
        module.odeint(f, y0, t, method=method, rtol=rtol, atol=1e-5)
    assert len(seen[0]) == len(seen[1])
    torch.testing.assert_close(torch.tensor(seen[0]), torch.tensor(seen[1]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_dopri5_agrees_to_rounding_errors_with_time_in_either_direction(direction):
    t = direction * torch.linspace(0, 2, 21, dtype=torch.float64)
    y0 = torch.tensor([2.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(ours.odeint(forced, y0, t), theirs.odeint(forced, y0, t), rtol=1e-11, atol=1e-12)


def test_dopri8_takes_the_same_steps():
    y0, t = torch.tensor([2.0, 0.5], dtype=torch.float64), torch.tensor([0.0, 3.0], dtype=torch.float64)
    seen: list[list[float]] = [[], []]
    for module, found in zip((ours, theirs), seen, strict=True):
        f = counted(van_der_pol)
        f.callback_step = lambda t0, y0, dt, found=found: found.append(float(dt))
        module.odeint(f, y0, t, method="dopri8", rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(torch.tensor(seen[0]), torch.tensor(seen[1]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["bosh3", "dopri8"])
def test_values_between_steps_are_not_worse_than_torchdiffeqs(method):
    y0, t = torch.tensor([2.0, 0.5], dtype=torch.float64), torch.linspace(0, 3, 31, dtype=torch.float64)
    exact = theirs.odeint(forced, y0, t, rtol=1e-11, atol=1e-12)
    errors = [(module.odeint(forced, y0, t, method=method, rtol=1e-4) - exact).abs().max() for module in (ours, theirs)]
    assert errors[0] < 0.2 * errors[1]


def gradients(module, adjoint, method, t, options=None, **kwargs):
    net, y0 = Net(), torch.tensor([[1.0, 2.0, 0.3]], dtype=torch.float64, requires_grad=True)
    t = t.clone().requires_grad_()
    solve = module.odeint_adjoint if adjoint else module.odeint
    ys = solve(net, y0, t, method=method, options=options, **kwargs)
    forward = net.calls
    (ys**2).sum().backward()
    grads = [y0.grad, t.grad, *(p.grad for p in net.parameters())]
    return torch.cat([g.reshape(-1) for g in grads]), forward, net.calls - forward


@pytest.mark.parametrize("adjoint", [False, True], ids=["direct", "adjoint"])
@pytest.mark.parametrize("backwards", [False, True])
def test_gradients_of_dopri5_agree_in_state_times_and_parameters(adjoint, backwards):
    t = torch.linspace(0, 1, 4, dtype=torch.float64)
    t = t.flip(0) if backwards else t
    here, there = (gradients(module, adjoint, "dopri5", t) for module in (ours, theirs))
    assert here[1:] == there[1:]
    torch.testing.assert_close(here[0], there[0], rtol=1e-9 if adjoint else 1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["bosh3", "adaptive_heun"])
def test_evaluations_of_the_adjoint_are_counted_alike(method):
    t, tolerances = torch.linspace(0, 1, 3, dtype=torch.float64), {"rtol": 1e-3, "atol": 1e-4}
    here, there = (gradients(module, True, method, t, **tolerances) for module in (ours, theirs))
    assert here[1:] == there[1:]
    torch.testing.assert_close(here[0], there[0], rtol=3e-2, atol=1e-2)


@pytest.mark.parametrize("adjoint", [False, True], ids=["direct", "adjoint"])
@pytest.mark.parametrize("method", GRID)
@pytest.mark.parametrize(
    "options", [{"step_size": 0.07}, {"step_size": 0.05, "interp": "cubic"}, {"step_size": 0.1, "perturb": True}]
)
def test_methods_on_a_grid_agree_to_rounding_errors(method, adjoint, options):
    t = torch.tensor([1.0, 0.63, 0.0], dtype=torch.float64)
    here, there = (gradients(module, adjoint, method, t, options) for module in (ours, theirs))
    assert here[1:] == there[1:]
    torch.testing.assert_close(here[0], there[0], rtol=1e-11, atol=1e-12)


def test_steps_between_output_times_agree_with_gradients_of_the_grid():
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    here, there = (gradients(module, False, "rk4", t) for module in (ours, theirs))
    torch.testing.assert_close(here[0], there[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("order", [3, 4, 6, 12])
def test_adams_methods_of_every_order_agree(order):
    t, options = torch.linspace(0, 1, 31, dtype=torch.float64), {"max_order": order, "max_iters": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here, there = (gradients(module, False, "implicit_adams", t, options) for module in (ours, theirs))
    assert here[1] == there[1]
    torch.testing.assert_close(here[0], there[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", [None, "seminorm", lambda parts: max(part.abs().max() for part in parts)])
def test_norms_of_the_adjoint_decide_alike(norm):
    t = torch.linspace(0, 1, 3, dtype=torch.float64)
    options = {} if norm is None else {"norm": norm}
    here, there = (gradients(module, True, "dopri5", t, adjoint_options=options) for module in (ours, theirs))
    assert here[1:] == there[1:]
    torch.testing.assert_close(here[0], there[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("option", ["step_t", "jump_t"])
@pytest.mark.parametrize("end", [0.5, 1.0])
def test_steps_to_a_discontinuity_cost_the_same(option, end):
    results = []
    for module in (ours, theirs):
        f = counted(lambda t, y: -y if t < 0.5 else 10 + 0 * y)
        t = torch.tensor([0.0, end], dtype=torch.float64)
        options = {option: torch.tensor([0.5])}
        y = module.odeint(f, torch.ones(1, dtype=torch.float64), t, rtol=1e-5, atol=1e-6, options=options)
        results.append((y[-1].item(), f.calls))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-9)
    assert abs(results[0][1] - results[1][1]) <= 1


def test_tuples_with_tolerances_and_norms_of_their_own_agree():
    def field(t, y):
        field.calls += 1
        return -y[0], y[0].sum() * torch.ones(2, 2, dtype=torch.float64) * torch.sin(5 * t)

    found = []
    for module in (ours, theirs):
        field.calls = 0
        y0 = (torch.ones(3, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64))
        t = torch.linspace(0, 2, 5, dtype=torch.float64)
        y = module.odeint(field, y0, t, rtol=(1e-3, 1e-6), atol=(1e-4, 1e-8))
        found.append((torch.cat([one.reshape(-1) for one in y]), field.calls))
    assert found[0][1] == found[1][1]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("adjoint", [False, True], ids=["direct", "adjoint"])
@pytest.mark.parametrize(("method", "options"), [("dopri5", None), ("rk4", {"step_size": 0.05, "interp": "cubic"})])
def test_times_and_states_of_events_have_the_same_gradients(adjoint, method, options):
    class Ball(nn.Module):
        def __init__(self):
            super().__init__()
            self.gravity = nn.Parameter(torch.tensor(9.8, dtype=torch.float64))

        def forward(self, t, y):
            return y[1], -self.gravity * torch.ones_like(y[0])

    found = []
    for module in (ours, theirs):
        ball = Ball()
        start = torch.tensor([10.0], dtype=torch.float64, requires_grad=True)
        t0 = torch.zeros((), dtype=torch.float64, requires_grad=True)
        solve = module.odeint_adjoint if adjoint else module.odeint
        event_t, (height, speed) = module.odeint_event(
            ball,
            (start, torch.zeros(1, dtype=torch.float64)),
            t0,
            event_fn=lambda t, y: y[0],
            odeint_interface=solve,
            method=method,
            options=options,
        )
        (event_t + 0.1 * speed[-1].sum() + height[-1].sum()).backward()
        found.append(torch.stack([event_t, start.grad[0], ball.gravity.grad, t0.grad]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-7, atol=1e-7)
    assert found[0][0].item() == pytest.approx(math.sqrt(20 / 9.8), abs=1e-9)


def test_dense_output_agrees():
    y0, ends = torch.tensor([2.0, 0.5], dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)
    here, there = (module.odeint_dense(forced, y0, ends[0], ends[1]) for module in (ours, theirs))
    t = torch.tensor(1.234, dtype=torch.float64)
    torch.testing.assert_close(here(t), there(t), rtol=1e-11, atol=1e-12)


def test_scipy_solvers_agree():
    y0, t = torch.tensor([2.0, 0.5], dtype=torch.float64), torch.linspace(2, 0, 5, dtype=torch.float64)
    for solver in ("LSODA", "DOP853", "Radau"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchdiffeq hands min_step to all of them
            here, there = (
                module.odeint(forced, y0, t, method="scipy_solver", options={"solver": solver})
                for module in (ours, theirs)
            )
        torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda m: m.odeint(spiral, torch.ones(2), torch.tensor([0.0, 1.0]), method="rk5"), ValueError),
        (lambda m: m.odeint(spiral, torch.ones(2), torch.tensor([0, 1])), TypeError),
        (lambda m: m.odeint(spiral, torch.ones(2), [0.0, 1.0]), AssertionError),
        (lambda m: m.odeint(spiral, torch.ones(2), torch.tensor([0.0, 1.0, 0.5])), AssertionError),
        (lambda m: m.odeint(spiral, torch.ones(2), torch.tensor([[0.0, 1.0]])), AssertionError),
        (lambda m: m.odeint(spiral, [torch.ones(2)], torch.tensor([0.0, 1.0])), AssertionError),
        (
            lambda m: m.odeint(spiral, torch.ones(2), torch.tensor([0.0, 1.0]), rtol=torch.ones(2, requires_grad=True)),
            AssertionError,
        ),
        (
            lambda m: m.odeint(lambda t, y: y, (torch.ones(2),), torch.tensor([0.0, 1.0]), rtol=(1e-3, 1e-3)),
            AssertionError,
        ),
        (lambda m: m.odeint(lambda t, y: y**2, torch.ones(1), torch.tensor([0.0, 2.0]), rtol=1e-2), AssertionError),
        (lambda m: m.odeint(lambda t, y: y * torch.nan, torch.ones(1), torch.tensor([0.0, 2.0])), AssertionError),
        (lambda m: m.odeint(spiral, torch.full((2,), torch.nan), torch.tensor([0.0, 2.0])), AssertionError),
        (
            lambda m: m.odeint(spiral, torch.ones(2), torch.tensor([0.0, 1.0]), options={"max_num_steps": 2}),
            AssertionError,
        ),
        (
            lambda m: m.odeint(
                spiral,
                torch.ones(2),
                torch.tensor([0.0, 1.0]),
                options={"step_t": torch.tensor([0.5]), "jump_t": torch.tensor([0.5])},
            ),
            ValueError,
        ),
        (
            lambda m: m.odeint(
                spiral,
                torch.ones(2),
                torch.tensor([0.0, 1.0]),
                method="rk4",
                options={"step_size": 0.1, "grid_constructor": lambda f, y, t: t},
            ),
            ValueError,
        ),
        (
            lambda m: m.odeint(
                spiral, torch.ones(2), torch.tensor([0.0, 1.0]), method="rk4", options={"interp": "quintic"}
            ),
            ValueError,
        ),
        (
            lambda m: m.odeint(
                spiral,
                torch.ones(2),
                torch.tensor([0.0, 1.0]),
                method="rk4",
                options={"grid_constructor": lambda f, y, t: t[:1]},
            ),
            AssertionError,
        ),
        (
            lambda m: m.odeint(
                spiral, torch.ones(2), torch.tensor([0.0, 1.0]), method="implicit_adams", options={"max_order": 13}
            ),
            AssertionError,
        ),
        (
            lambda m: m.odeint(
                spiral, torch.ones(2), torch.tensor([0.0, 1.0]), method="rk4", event_fn=lambda t, y: y.sum()
            ),
            AssertionError,
        ),
        (
            lambda m: m.odeint(spiral, torch.ones(2), torch.tensor([0.0, 1.0, 2.0]), event_fn=lambda t, y: y.sum()),
            ValueError,
        ),
        (lambda m: m.odeint_adjoint(spiral, torch.ones(2), torch.tensor([0.0, 1.0])), ValueError),
        (
            lambda m: m.odeint_adjoint(
                spiral, torch.ones(2), torch.tensor([0.0, 1.0]), adjoint_params=(), adjoint_method="rk4", options={}
            ),
            ValueError,
        ),
        (
            lambda m: m.odeint_dense(lambda t, y: y, (torch.ones(2),), torch.tensor(0.0), torch.tensor(1.0)),
            AssertionError,
        ),
        (
            lambda m: m.odeint_dense(spiral, torch.ones(2), torch.tensor(0.0), torch.tensor(1.0), method="rk4"),
            AssertionError,
        ),
    ],
)
def test_misuse_raises_what_torchdiffeq_raises(call, wanted):
    for module in (ours, theirs):
        with pytest.raises(wanted):
            call(module)


@pytest.mark.parametrize(
    ("method", "options"),
    [("dopri5", {"frist_step": 0.1}), ("rk4", {"stepsize": 0.1}), ("scipy_solver", {"solvr": "RK45"})],
)
def test_unknown_options_warn_alike_and_a_near_name_is_added(method, options):
    messages = []
    for module in (ours, theirs):
        with pytest.warns(UserWarning, match="Unexpected arguments") as caught:
            module.odeint(spiral, torch.ones(2), torch.tensor([0.0, 0.1]), method=method, options=options)
        messages.append(str(caught[0].message))
    assert messages[0].startswith(messages[1])
    assert "did you mean" in messages[0]
