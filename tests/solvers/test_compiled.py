import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from invreg.solvers import (
    RK4,
    Bosh3,
    Direct,
    Dopri5,
    Event,
    Fixed,
    Tsit5,
    Vern7,
    compiled,
    odeint,
)
from invreg.solvers import solve as solving
from invreg.solvers.arguments import problem_of
from invreg.solvers.compiled import obstacle
from invreg.solvers.rosenbrock import Rosenbrock23
from invreg.solvers.solution import Solution

METHODS = {"tsit5": Tsit5(), "dopri5": Dopri5(), "bosh3": Bosh3(), "vern7": Vern7()}


@pytest.fixture(autouse=True)
def apart(request: pytest.FixtureRequest) -> None:
    """Each slow test compiles for itself."""
    if "slow" in request.keywords:
        torch._dynamo.reset()
        compiled.program_of.cache_clear()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "_said", set())


def oscillator(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[..., 1], torch.sin(3 * y[..., 0]) * torch.cos(t.reshape(t.shape[:1])) - y[..., 0]], -1)


def starts(count: int = 8) -> Tensor:
    return torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def require_near(one: Solution, other: Solution, tolerance: float) -> None:
    """Two solves must take the same steps but for one, and end where they should."""
    assert ((one.stats.accepted - other.stats.accepted).abs() <= 1).all()
    assert ((one.stats.rejected - other.stats.rejected).abs() <= 1).all()
    ours, theirs = (x.ys if isinstance(x.ys, (tuple, dict)) else {"": x.ys} for x in (one, other))
    pairs = (
        zip(ours.values(), theirs.values(), strict=True) if isinstance(ours, dict) else zip(ours, theirs, strict=True)
    )
    for a, b in pairs:
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=10 * tolerance)
    assert one.status == other.status
    if len(one.ts) == 2:  # between, steps are taken again
        assert one.stats.nfe.tolist() == pytest.approx(other.stats.nfe.tolist(), rel=0.2)


# --- what cannot be compiled

OBSTACLES: dict[str, tuple[str, Callable[..., Any], dict[str, Any]]] = {
    "stiff": ("Rosenbrock23 takes a number of evaluations that is not fixed", oscillator, {"method": Rosenbrock23()}),
    "event": ("events are looked for by the host", oscillator, {"events": [Event(lambda t, y: y[0, 0] - 100.0)]}),
    "dropout": (
        "the field draws random numbers", lambda t, y: torch.nn.functional.dropout(-y, 0.1), {"controller": Fixed(0.5)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_compiled_falls_back_with_one_warning(name: str, told: None) -> None:
    reason, field, options = OBSTACLES[name]
    with pytest.warns(UserWarning, match=f"not compiled, the steps run one by one: {reason}"):
        solution = odeint(field, starts(), [0.0, 1.0], compile="auto", **options)
    assert solution.success
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odeint(field, starts(), [0.0, 1.0], compile="auto", **options)


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_compiled_is_refused_where_that_is_asked_for(name: str) -> None:
    reason, field, options = OBSTACLES[name]
    with pytest.raises(ValueError, match=f'compile=True is not possible: {reason}; use compile="auto" or False'):
        odeint(field, starts(), [0.0, 1.0], compile=True, **options)


def test_amissing_compiler_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "missing_compiler", lambda device: "no C++ compiler was found; install g++")
    problem = problem_of(oscillator, starts(), [0.0, 1.0], Tsit5(), None, False, 1e-3, 1e-6, (), (), (), (), 10)
    assert obstacle(problem, False) == "no C++ compiler was found; install g++"
    with pytest.raises(ValueError, match="no C"):
        odeint(oscillator, starts(), [0.0, 1.0], compile=True)


def test_a_single_time_needs_no_program() -> None:
    solution = odeint(oscillator, starts(), [0.0], compile=True)
    assert torch.equal(solution.ys[0], starts()) and len(solution.steps) == 0


# --- what can


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the programs as they are written, the unrolled form of the block, with two trials in each."""
    monkeypatch.setattr(compiled, "UNROLLED", 2)
    monkeypatch.setattr(torch, "compile", lambda program, **options: program)
    of = compiled.program_of.__wrapped__
    monkeypatch.setattr(
        compiled, "program_of", lambda rules, structure, dtype, unrolled: of(rules, structure, dtype, True)
    )


@pytest.mark.parametrize("count", [2, 20])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_blocks_of_trials_give_what_single_trials_give(
    name: str, per_sample: bool, count: int, uncompiled: None
) -> None:
    options = {"method": METHODS[name], "per_sample": per_sample, "rtol": 1e-5, "atol": 1e-6}
    ts = torch.linspace(0, 3, count, dtype=torch.float64)
    with torch.no_grad():
        require_near(
            odeint(oscillator, starts(), ts, compile=True, **options),
            odeint(oscillator, starts(), ts, **options),
            1e-10,
        )


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    "options",
    [{"controller": Fixed(0.11)}, {"controller": Fixed()}, {"method": RK4()}, {"stops": [0.3]}, {"jumps": [0.4]},
     {"max_steps": 7, "throw": False}],
    ids=str,
)  # fmt: skip
def test_blocks_of_trials_obey_the_settings(options: dict[str, Any], per_sample: bool, uncompiled: None) -> None:
    ts = torch.linspace(0, 1.5, 6, dtype=torch.float64)
    with torch.no_grad():
        one = odeint(oscillator, starts(), ts, compile=True, per_sample=per_sample, **options)
        other = odeint(oscillator, starts(), ts, per_sample=per_sample, **options)
    assert one.status == other.status and torch.equal(one.stats.accepted, other.stats.accepted)
    torch.testing.assert_close(one.ys, other.ys, rtol=1e-10, atol=1e-10, equal_nan=True)
    torch.testing.assert_close(one.reached, other.reached, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.steps.t, other.steps.t, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_through_blocks_of_trials_are_those_of_the_replay(per_sample: bool, uncompiled: None) -> None:
    found = []
    for options in ({}, {"compile": True}, {"adjoint": Direct()}, {"adjoint": Direct(), "compile": True}):
        rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        y0 = starts().requires_grad_()
        solution = odeint(lambda t, y, rate=rate: oscillator(t, y) - rate * y, y0, [0.0, 0.5, 2.0], rtol=1e-5,
                          per_sample=per_sample, **options)  # fmt: skip
        total = solution.ys.square().sum() + solution.steps.error.sum() + solution.steps.stiffness.sum()
        found.append(torch.autograd.grad(total, [rate, y0]))
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("per_sample", [False, True])
def test_blocks_of_trials_tell_of_nan(per_sample: bool, uncompiled: None) -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t > 0.5, torch.nan, -y)

    for controller in (None, Fixed(0.1)):
        one, other = (odeint(field, starts(), [0.0, 0.3, 1.0], compile=how, per_sample=per_sample, throw=False,
                             controller=controller) for how in (True, False))  # fmt: skip
        assert one.status == other.status and one.ys[1].isfinite().all() and one.ys[2].isnan().all()
        torch.testing.assert_close(one.reached, other.reached, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "per_sample"), [("tsit5", False), ("tsit5", True), ("bosh3", True), ("vern7", False)])
def test_a_compiled_solve_is_the_eager_one(name: str, per_sample: bool) -> None:
    options = {"method": METHODS[name], "per_sample": per_sample, "rtol": 1e-5, "atol": 1e-6}
    for count in (2, 20):
        ts = torch.linspace(0, 3, count, dtype=torch.float64)
        with torch.no_grad():
            one = odeint(oscillator, starts(), ts, compile=True, **options)
            require_near(one, odeint(oscillator, starts(), ts, **options), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_compiled_solve_backward_in_time_of_a_tuple_is_the_eager_one(per_sample: bool) -> None:
    def field(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return -y[0] * 0.5, y[1] * torch.cos(t)

    y0 = starts(), torch.linspace(1, 2, 8, dtype=torch.float64)
    ts = torch.linspace(2, 0, 5, dtype=torch.float64)
    options = {"method": Bosh3(), "per_sample": per_sample, "rtol": 1e-5, "atol": 1e-6}
    with torch.no_grad():
        one = odeint(field, y0, ts, compile=True, **options)
        require_near(one, odeint(field, y0, ts, **options), 1e-5)
    torch.testing.assert_close(one.ys[0][-1], y0[0] * math.e, rtol=1e-4, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("per_sample", [False, True])
def test_another_batch_tolerance_or_time_is_served_by_the_same_program(per_sample: bool) -> None:
    counters = torch._dynamo.utils.counters

    def run(count: int, end: float, **options: Any) -> None:
        with torch.no_grad():
            odeint(oscillator, starts(count), [0.0, end], method=Bosh3(), compile=True, per_sample=per_sample,
                   **options)  # fmt: skip

    run(64, 1.0)
    before = counters["stats"]["unique_graphs"]
    run(40, 1.0)
    run(64, 1.0, rtol=1e-5, atol=1e-7)
    run(64, 2.5)
    run(33, 0.5, rtol=1e-2, max_steps=500)
    assert counters["stats"]["unique_graphs"] == before


@pytest.mark.slow
@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_through_a_compiled_solve_are_the_eager_ones(per_sample: bool) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)).double()

    def field(t: Tensor, y: Tensor) -> Tensor:
        return net(y)

    found = []
    for how in (False, True):
        y0 = starts().requires_grad_()
        solution = odeint(field, y0, [0.0, 0.5, 2.0], method=Bosh3(), per_sample=per_sample, rtol=1e-7, atol=1e-7,
                          compile=how)  # fmt: skip
        total = solution.ys.square().sum() + solution.steps.error.sum()
        found.append(torch.autograd.grad(total, [y0, *net.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_an_unrolled_program_is_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "UNROLLED", 2)
    of = compiled.program_of
    monkeypatch.setattr(
        compiled, "program_of", lambda rules, structure, dtype, unrolled: of(rules, structure, dtype, True)
    )
    options = {"per_sample": True, "rtol": 1e-4, "method": Bosh3()}
    with torch.no_grad():
        one = odeint(oscillator, starts(), [0.0, 1.0, 2.0], compile=True, **options)
        require_near(one, odeint(oscillator, starts(), [0.0, 1.0, 2.0], **options), 1e-4)
    of.cache_clear()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_compiled_solve_on_a_gpu_is_the_eager_one(per_sample: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    y0, ts = starts(64).cuda(), torch.linspace(0, 3, 5, dtype=torch.float64)
    options = {"per_sample": per_sample, "rtol": 1e-5, "atol": 1e-6}
    with torch.no_grad():
        require_near(odeint(oscillator, y0, ts, compile=True, **options), odeint(oscillator, y0, ts, **options), 1e-5)
