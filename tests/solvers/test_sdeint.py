"""What sdeint takes and gives: shapes, times, paths, records, dtypes, values between, ends of all kinds, errors."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torchsde
from noisy_problems import bent, crossed, cubic, fading, growing, pulled
from torch import Tensor, nn

from invreg.regularizers import LocalHeuristic, SolverError, SolverStiffness
from invreg.solvers import (
    PI,
    PID,
    SOSRA,
    SOSRA2,
    SOSRI,
    SOSRI2,
    SRA1,
    SRA3,
    SRIW1,
    AutoSwitch,
    Backsolve,
    Checkpointed,
    Direct,
    Euler,
    EulerHeun,
    Fixed,
    Heun,
    I,
    ImplicitEuler,
    Interpolating,
    Method,
    Midpoint,
    Milstein,
    Reversible,
    ReversibleHeun,
    ShARK,
    Solution,
    Status,
    StochasticAdjoint,
    Tsit5,
    VirtualBrownianTree,
    odeint,
    sdeint,
    step,
)
from invreg.solvers.method import Calculus, Noise

EVERY_NOISE: tuple[Noise, ...] = ("diagonal", "scalar", "additive", "commutative", "general")
CALCULI: tuple[Calculus, ...] = ("ito", "stratonovich")


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def tenth(t: Tensor, y: Tensor) -> Tensor:
    return 0.1 * y


def ones(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.ones(shape, dtype=dtype)


def tree(*shape: int, t0: float = 0.0, t1: float = 1.0, seed: int = 1, **options: Any) -> VirtualBrownianTree:
    return VirtualBrownianTree(t0, t1, shape, seed=seed, dtype=torch.float64, **options)


def close(one: Tensor, other: Tensor, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


# --- shapes and structures


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 4, 5), (0, 3)])
@pytest.mark.parametrize("controller", [None, Fixed(0.25)])
def test_a_state_with_diagonal_noise_may_have_any_shape(shape: tuple[int, ...], controller: Fixed | None) -> None:
    path = tree(*shape)
    solution = sdeint(
        lambda t, y: 0.045 * y,
        lambda t, y: 0.3 * y,
        ones(*shape),
        [0.0, 0.3, 1.0],
        path=path,
        controller=controller,
        rtol=1e-3,
        atol=1e-3,
    )
    assert solution.ys.shape == (3, *shape) and solution.success
    exact = torch.stack([torch.exp(0.3 * path(0.0, t)) for t in (0.0, 0.3, 1.0)])
    close(solution.ys, exact, 0.02)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize("noise", ["scalar", "additive", "commutative", "general"])
def test_other_noise_acts_along_the_last_axis(noise: Noise, batch: tuple[int, ...]) -> None:
    problem = pulled(True) if noise == "additive" else bent(noise)
    y0 = problem.y0.expand(*batch, 2).clone()
    solution = sdeint(problem.drifts["ito"], problem.diffusion, y0, [0.0, 1.0], noise=noise, controller=Fixed(0.125))
    assert solution.ys.shape == (2, *batch, 2)
    assert solution.problem.dynamics.path.shape == (*batch, problem.channels)
    flat = y0.reshape(-1, 2)[:, None] if batch else y0
    if batch:  # the batch is no part of the problem: each sample alone gives the same
        whole = tree(*batch, problem.channels)

        class Part(torchsde.BaseBrownian):
            def __init__(self, index: tuple[int, ...]) -> None:
                super().__init__()
                self.index = index

            def __call__(self, ta: float, tb: float, return_U: bool = False, return_A: bool = False) -> Any:
                w, area = whole.with_area(ta, tb)
                integral = (tb - ta) * (w / 2 + area)
                return (w[self.index], integral[self.index]) if return_U else w[self.index]

            def __repr__(self) -> str:
                return "Part"

            dtype = device = levy_area_approximation = None
            shape = (problem.channels,)

            def size(self) -> tuple[int, ...]:
                return self.shape

        options: dict[str, Any] = {"noise": noise, "controller": Fixed(0.125)}
        together = sdeint(problem.drifts["ito"], problem.diffusion, y0, [0.0, 1.0], path=whole, **options)
        index = tuple(size - 1 for size in batch)
        alone = sdeint(problem.drifts["ito"], problem.diffusion, problem.y0, [0.0, 1.0], path=Part(index), **options)
        close(together.ys[:, *index], alone.ys, 1e-13)
    assert flat.shape[-1] == 2


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "named"])
@pytest.mark.parametrize("noise", ["diagonal", "additive"])
def test_states_of_several_tensors_are_one_state(noise: Noise, kind: str) -> None:
    a, b = ones(2, 3) * 0.5, ones(4)

    def as_state(a: Tensor, b: Tensor) -> Any:
        return {"tuple": (a, b), "list": [a, b], "dict": {"a": a, "b": b}, "named": Pair(a, b)}[kind]

    def drift(t: Tensor, y: Any) -> Any:
        a, b = y.values() if kind == "dict" else y
        return as_state(-a * b[:3], b.mean() - b)

    def diffusion(t: Tensor, y: Any) -> Any:
        a, b = y.values() if kind == "dict" else y
        return as_state(torch.full_like(a, 0.2), torch.full_like(b, 0.1) * torch.cos(t))

    def flat(function: Callable[[Tensor, Any], Any]) -> Callable[[Tensor, Tensor], Tensor]:
        def field(t: Tensor, y: Tensor) -> Tensor:
            out = function(t, as_state(y[:6].reshape(2, 3), y[6:]))
            return torch.cat([one.flatten() for one in (out.values() if kind == "dict" else out)])

        return field

    path = tree(10)
    options: dict[str, Any] = {"noise": noise, "path": path, "rtol": 1e-2, "atol": 1e-3}
    found = sdeint(drift, diffusion, as_state(a, b), [0.0, 0.5, 1.0], **options)
    want = sdeint(flat(drift), flat(diffusion), torch.cat([a.flatten(), b]), [0.0, 0.5, 1.0], **options)
    ya, yb = found.ys.values() if kind == "dict" else found.ys
    close(torch.cat([ya.flatten(1), yb], -1), want.ys)
    assert isinstance(found.ys, {"dict": dict, "named": Pair}.get(kind, tuple))
    between = found(0.3)
    assert isinstance(between, type(found.ys))


# --- times


@pytest.mark.parametrize("controller", [Fixed(0.1), Fixed()])
def test_fixed_steps_end_at_every_time_and_more_times_do_not_change_a_grid(controller: Fixed) -> None:
    problem, path = cubic(), tree(5, 2)
    ts = torch.linspace(0, 1, 11, dtype=torch.float64)
    run = lambda times: sdeint(  # noqa: E731
        problem.drifts["ito"], problem.diffusion, problem.start(5), times, path=path, controller=Fixed(0.1)
    )
    all_of_them = run(ts)
    for some in ([0, 10], [0, 3, 7, 10], [0, 1, 2, 10]):
        close(run(ts[some]).ys, all_of_them.ys[some], 1e-12)
    solution = sdeint(problem.drifts["ito"], problem.diffusion, problem.start(5), ts, path=path, controller=controller)
    close(solution.ys, all_of_them.ys, 1e-12)


def test_adaptive_values_at_few_times_are_near_those_at_many() -> None:
    problem, path = cubic(), tree(50, 2)
    many = torch.linspace(0, 1, 33, dtype=torch.float64)
    solutions = [
        sdeint(
            problem.drifts["ito"], problem.diffusion, problem.start(50), ts, path=path, rtol=1e-4, atol=1e-4
        )
        for ts in (many, many[::16], many[::32])
    ]  # fmt: skip
    assert problem.exact is not None
    for solution in solutions:
        for t, y in zip(solution.ts.tolist(), solution.ys, strict=True):
            close(y, problem.exact(t, path(0.0, t)), 2e-3)
        ends = set((solution.steps.t + solution.steps.dt)[:, 0].tolist())
        assert set(solution.ts[1:].tolist()) <= ends


def test_steps_that_do_not_divide_the_interval_end_there() -> None:
    solution = sdeint(decay, tenth, ones(2), [0.0, 0.25, 1.0], controller=Fixed(0.3))
    ends = (solution.steps.t + solution.steps.dt)[:, 0]
    close(ends, torch.tensor([0.25, 0.55, 0.85, 1.0], dtype=torch.float64), 1e-15)
    stopped = sdeint(decay, tenth, ones(2), [0.0, 1.0], controller=Fixed(0.3), stops=[0.7, 2.0])
    assert 0.7 in (stopped.steps.t + stopped.steps.dt)[:, 0].tolist() and len(stopped.steps) == 4


def test_one_time_gives_the_start() -> None:
    solution = sdeint(decay, tenth, ones(2, 3), [0.5])
    close(solution.ys, ones(1, 2, 3))
    assert solution.success and not len(solution.steps)


@pytest.mark.parametrize("start", [-3.0, 1e4])
def test_an_equation_may_begin_at_any_time(start: float) -> None:
    path = tree(200, t0=start, t1=start + 1)
    solution = sdeint(
        lambda t, y: 0.045 * y, lambda t, y: 0.3 * y, ones(200), [start, start + 0.5, start + 1], path=path,
        controller=Fixed(1 / 64), method=SOSRI(),
    )  # fmt: skip
    close(solution.ys[1], torch.exp(0.3 * path(start, start + 0.5)), 1e-3)
    close(solution.ys[2], torch.exp(0.3 * path(start, start + 1)), 1e-3)


def test_times_of_any_kind_are_taken() -> None:
    path = tree(2, cell=0.25)
    want = sdeint(decay, tenth, ones(2), [0, 1], path=path, controller=Fixed(0.25)).ys
    for ts in ((0.0, 1.0), torch.tensor([0, 1]), torch.tensor([0.0, 1.0]), [torch.tensor(0.0), 1.0]):
        close(sdeint(decay, tenth, ones(2), ts, path=path, controller=Fixed(0.25)).ys, want)


# --- values between


BETWEEN = [
    (growing(), "ito", SOSRI()),
    (cubic(), "ito", SOSRI2()),
    (cubic(), "stratonovich", Heun()),
    (bent("scalar"), "ito", SRIW1()),
    (bent("commutative"), "stratonovich", ReversibleHeun()),
    (fading(), "ito", SOSRA()),
    (fading(), "stratonovich", ShARK()),
]


@pytest.mark.parametrize(("problem", "calculus", "method"), BETWEEN, ids=lambda one: getattr(one, "name", str(one)))
def test_values_between_steps_lie_on_the_same_path(problem: Any, calculus: Calculus, method: Method) -> None:
    path = tree(100, problem.channels)
    solution = sdeint(
        problem.drifts[calculus], problem.diffusion, problem.start(100), [0.0, 1.0], noise=problem.noise,
        calculus=calculus, method=method, path=path, controller=Fixed(1 / 32),
    )  # fmt: skip
    asked = torch.tensor([0.0, 0.011, 0.3, math.pi / 5, 0.99, 1.0], dtype=torch.float64)
    exact = torch.stack([problem.exact(t, path(0.0, t)) for t in asked.tolist()])
    scale = float((exact - exact[0]).square().mean().sqrt())
    at_the_end = float((solution.ys[-1] - exact[-1]).square().mean().sqrt())
    for y, want in zip(solution(asked), exact, strict=True):
        assert float((y - want).square().mean().sqrt()) < max(2 * at_the_end, 0.01 * scale)
    close(solution(0.0), solution.ys[0])
    close(solution(1.0), solution.ys[1], 1e-13)
    steps = solution.steps
    close(solution(float(steps.t[7, 0])), steps.y[7, ..., 0] if method.carries_noise else steps.y[7])


def test_values_between_have_the_shape_of_what_was_asked() -> None:
    solution = sdeint(decay, tenth, ones(2, 3), [0.0, 1.0])
    assert solution(0.4).shape == (2, 3)
    assert solution(torch.rand(4)).shape == (4, 2, 3) and solution(torch.rand(4, 5)).shape == (4, 5, 2, 3)
    assert solution(torch.empty(0)).shape == (0, 2, 3)
    for t in (-0.1, 1.1):
        with pytest.raises(ValueError, match="t must lie between 0 and 1, which the solve reached, got"):
            solution(t)


# --- paths and seeds


@pytest.mark.parametrize("controller", [None, Fixed(0.1)])
def test_generators_and_seeds_repeat_a_solve(controller: Fixed | None) -> None:
    def run(seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        return sdeint(decay, tenth, ones(3), [0.0, 1.0], generator=random, controller=controller).ys

    close(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    torch.manual_seed(5)
    first = sdeint(decay, tenth, ones(3), [0.0, 1.0]).ys
    second = sdeint(decay, tenth, ones(3), [0.0, 1.0]).ys
    torch.manual_seed(5)
    close(sdeint(decay, tenth, ones(3), [0.0, 1.0]).ys, first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("controller", [None, Fixed(0.07)])
def test_one_path_gives_one_answer(controller: Fixed | None) -> None:
    path = tree(3, seed=9)
    answers = [
        sdeint(decay, tenth, ones(3), [0.0, 0.4, 1.0], path=one, controller=controller).ys
        for one in (path, path, tree(3, seed=9))
    ]
    close(answers[0], answers[1])
    close(answers[0], answers[2])


def test_a_path_may_be_longer_than_the_solve() -> None:
    path = tree(3, t0=-1.0, t1=4.0, cell=0.125)
    solution = sdeint(decay, tenth, ones(3), [0.5, 2.0], path=path)
    pieces = [sdeint(decay, tenth, ones(3), [0.5, 1.0], path=path, controller=Fixed(0.125))]
    pieces.append(sdeint(decay, tenth, pieces[0].ys[-1], [1.0, 2.0], path=path, controller=Fixed(0.125)))
    whole = sdeint(decay, tenth, ones(3), [0.5, 2.0], path=path, controller=Fixed(0.125))
    close(pieces[1].ys[-1], whole.ys[-1], 1e-14)
    close(solution.ys[-1], whole.ys[-1], 1e-2)


@pytest.mark.parametrize("method", [SOSRI(), Heun(), Milstein(derivative_free=True)])
def test_paths_of_torchsde_drive_a_solve_and_its_replay(method: Method) -> None:
    motion = torchsde.BrownianInterval(
        0.1, 1.3, size=(2, 3), dtype=torch.float64, entropy=3, levy_area_approximation="space-time"
    )
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    calculus = next(iter(method.strong_orders))[0] if not isinstance(method, Heun) else "stratonovich"
    found = []
    for adjoint in (Checkpointed(tape=0), Direct()):
        solution = sdeint(
            lambda t, y: rate * y, tenth, ones(2, 3), [0.1, 0.47, 1.3], path=motion, method=method,
            calculus=calculus, adjoint=adjoint, controller=Fixed(0.07),
        )  # fmt: skip
        found.append((solution.ys.detach(), *torch.autograd.grad(solution.ys.square().sum(), rate)))
    close(found[0][0], found[1][0])
    close(found[0][1], found[1][1], 1e-12)
    correction = 0.0 if calculus == "stratonovich" else 0.005
    exact = torch.exp((0.3 - correction) * 1.2 + 0.1 * motion(0.1, 1.3))
    close(found[0][0][-1], exact, 2e-2)


# --- defaults


@pytest.mark.parametrize(
    ("noise", "calculus", "method"),
    [
        ("diagonal", "ito", SOSRI()),
        ("scalar", "ito", SOSRI()),
        ("additive", "ito", SOSRA()),
        ("commutative", "ito", Milstein()),
        ("general", "ito", Euler()),
        ("diagonal", "stratonovich", Heun()),
        ("scalar", "stratonovich", Heun()),
        ("additive", "stratonovich", SOSRA()),
        ("commutative", "stratonovich", Heun()),
        ("general", "stratonovich", Heun()),
    ],
)
def test_every_kind_of_noise_has_a_default_method(noise: Noise, calculus: Calculus, method: Method) -> None:
    problem = {"diagonal": cubic(), "additive": pulled(True), "general": crossed()}.get(noise) or bent(noise)
    controller = Fixed(0.1) if method.error_order is None else None
    options = {"noise": noise, "calculus": calculus, "controller": controller}
    solution = sdeint(problem.drifts[calculus], problem.diffusion, problem.start(3), [0.0, 0.5], **options)
    assert solution.problem.method == method and solution.success
    assert solution.problem.controller == (controller or PI())
    assert solution.problem.dynamics.path.area == method.needs_area


@pytest.mark.parametrize("controller", [PI(), I(), PID(), PI(max_step=0.05), PI(first_step=0.2)])
def test_controllers_drive_stochastic_steps(controller: PI) -> None:
    problem, path = cubic(), tree(100, 2)
    solution = sdeint(
        problem.drifts["ito"], problem.diffusion, problem.start(100), [0.0, 1.0], path=path, controller=controller,
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip
    assert problem.exact is not None
    close(solution.ys[-1], problem.exact(1.0, path(0.0, 1.0)), 2e-2)
    assert float(solution.steps.dt.max()) <= controller.max_step * (1 + 1e-9)


# --- records


def test_steps_and_stats_tell_what_was_done() -> None:
    seen = {"drift": 0, "diffusion": 0}

    def drift(t: Tensor, y: Tensor) -> Tensor:
        seen["drift"] += 1
        return -y

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        seen["diffusion"] += 1
        return 0.3 * y

    solution = sdeint(drift, diffusion, ones(4), [0.0, 0.5, 1.0], rtol=1e-4, atol=1e-4)
    seen["diffusion"] -= 2  # the look at its coupling, once for each function
    stats, steps = solution.stats, solution.steps
    assert (stats.calls, stats.diffusions) == (seen["drift"], seen["diffusion"])
    assert stats.nfe.tolist() == [seen["drift"]]
    assert int(stats.accepted) == len(steps) > 3
    attempts = int(stats.accepted + stats.rejected)
    assert stats.calls == 1 + 4 * attempts and stats.diffusions == 2 + 4 * attempts
    close(steps.t[1:], (steps.t + steps.dt)[:-1], 1e-15)
    close(steps.t[0] * 0 + steps.dt.sum(), torch.ones(1, dtype=torch.float64), 1e-14)
    assert steps.ratio is not None and bool((steps.ratio <= 1).all()) and bool((steps.ratio > 0).all())
    assert steps.error is not None and steps.error.shape == (len(steps), 1) and steps.stiffness is None
    close(steps.y[0], ones(4))
    assert solution.reached.tolist() == [1.0] and solution.status == (Status.SUCCESS,)


@pytest.mark.parametrize("method", [SOSRI(), SOSRI2(), SRIW1(), Heun(), Midpoint(), EulerHeun(), Milstein()])
def test_only_those_with_a_pair_estimate_the_stiffness(method: Method) -> None:
    calculus = "ito" if ("ito", "diagonal") in method.strong_orders else "stratonovich"
    solution = sdeint(decay, tenth, ones(2), [0.0, 1.0], method=method, calculus=calculus)
    assert (solution.steps.stiffness is not None) == isinstance(method, SOSRI2) == method.has_stiffness
    additive = sdeint(decay, lambda t, y: 0.1 + 0 * y, ones(2), [0.0, 1.0], noise="additive", method=SRA3())
    assert additive.steps.stiffness is None and additive.steps.error is not None


@pytest.mark.parametrize("rate", [-0.5, -3.0, -40.0])
@pytest.mark.parametrize("noise", ["diagonal", "additive"])
def test_the_stiffness_of_a_linear_drift_is_its_rate(noise: Noise, rate: float) -> None:
    method = SOSRI2() if noise == "diagonal" else SOSRA2()
    solution = sdeint(
        lambda t, y: rate * y,
        lambda t, y: torch.full_like(y, 0.1),
        ones(3),
        [0.0, 0.5],
        noise=noise,
        method=method,
    )
    assert solution.steps.stiffness is not None
    close(solution.steps.stiffness, torch.full_like(solution.steps.stiffness, abs(rate)), 1e-6 * abs(rate))
    curved = sdeint(
        lambda t, y: rate * torch.sinh(y), lambda t, y: torch.full_like(y, 0.1), 0.1 * ones(3), [0.0, 0.5],
        noise=noise, method=method,
    )  # fmt: skip
    assert bool(((curved.steps.stiffness / abs(rate) - 1).abs() < 0.3).all())


def test_the_authors_estimate_is_larger_than_the_embedded_one() -> None:
    problem, path = cubic(), tree(50, 2)
    for method in (SOSRI, SOSRI2, SRIW1):
        steps = [
            sdeint(
                problem.drifts["ito"], problem.diffusion, problem.start(50), [0.0, 1.0], path=path, method=one,
                controller=Fixed(0.1),
            ).steps
            for one in (method(), method(estimate="sum"))
        ]  # fmt: skip
        assert bool((steps[1].error > steps[0].error).all())
        close(steps[0].y, steps[1].y)


def test_the_embedded_error_is_the_difference_to_a_step_of_order_one() -> None:
    # of one step of SRA1 from y with additive noise: its end less y + h f(y) + g w
    path, y0, h = tree(5), ones(5), 0.1
    solution = sdeint(
        lambda t, y: torch.sin(2 * y), lambda t, y: torch.full_like(y, 0.4) * (1 + t), y0, [0.0, h],
        noise="additive", method=SRA1(), path=path, controller=Fixed(),
    )  # fmt: skip
    w = path(0.0, h)
    euler = y0 + h * torch.sin(2 * y0) + 0.4 * (1 + h) * w  # SRA1 takes its first diffusion at the end
    want = (solution.ys[-1] - euler).square().mean().sqrt()
    assert solution.steps.error is not None and len(solution.steps) == 1
    close(solution.steps.error[0, 0], want, 1e-12)


@pytest.mark.parametrize(
    ("method", "calculus"),
    [(SOSRI(), "ito"), (SOSRI2(), "ito"), (Euler(), "ito"), (Milstein(derivative_free=True), "ito"),
     (Heun(), "stratonovich"), (ReversibleHeun(), "stratonovich")],
)  # fmt: skip
@pytest.mark.parametrize("adjoint", [Checkpointed(), Direct()])
def test_fixed_steps_give_the_same_bits_without_gradients_and_record_steps_on_demand(
    method: Method, calculus: Calculus, adjoint: Checkpointed
) -> None:
    rate = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    problem, path = cubic(), tree(20, 2)

    def solve() -> Solution:
        return sdeint(
            lambda t, y: problem.drifts[calculus](t, y) + rate * y, problem.diffusion, problem.start(20),
            [0.0, 0.5, 1.0], path=path, method=method, calculus=calculus, controller=Fixed(0.1), adjoint=adjoint,
        )  # fmt: skip

    taped = solve()
    with torch.no_grad():
        lean = solve()
    assert lean.recorded is None and taped.recorded is not None
    close(lean.ys, taped.ys.detach())
    for name in ("t", "dt", "y", "ratio", "error", "stiffness", "mask", "method"):
        one, other = getattr(lean.steps, name), getattr(taped.steps, name)
        assert (one is None) == (other is None), name
        if one is not None:
            close(one, other.detach())
    assert lean.steps is lean.steps
    assert lean.stats.accepted.tolist() == taped.stats.accepted.tolist() == [10]
    close(lean(0.33), taped(0.33).detach())


# --- dtypes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", [SOSRI(), Heun()])
def test_values_come_in_the_dtype_of_the_state(dtype: torch.dtype, method: Method) -> None:
    seen: set[torch.dtype] = set()

    def drift(t: Tensor, y: Tensor) -> Tensor:
        seen.update({t.dtype, y.dtype})
        return -y * t

    calculus = "ito" if isinstance(method, SOSRI) else "stratonovich"
    y0 = ones(40, 2, dtype=dtype)
    path = VirtualBrownianTree(0.0, 1.0, (40, 2), seed=3, dtype=torch.promote_types(dtype, torch.float32))
    options: dict[str, Any] = {"method": method, "calculus": calculus, "path": path, "controller": Fixed(1 / 16)}
    solution = sdeint(drift, tenth, y0, [0.0, 0.5, 1.0], **options)
    assert solution.ys.dtype == dtype and seen == {dtype} and solution.ts.dtype == torch.float64
    assert solution(0.3).dtype == dtype
    half = 0.005 if calculus == "ito" else 0.0
    exact = torch.exp(-0.5 - half + 0.1 * path(0.0, 1.0).double())
    close(solution.ys[-1].double(), exact, 0.02 if dtype.itemsize > 2 else 0.06)
    adaptive = sdeint(drift, tenth, y0, [0.0, 1.0], method=method, calculus=calculus)
    assert adaptive.ys.dtype == dtype and adaptive.success
    assert adaptive.problem.dynamics.path.dtype == path.dtype


def test_a_path_of_another_precision_is_cast() -> None:
    path = VirtualBrownianTree(0.0, 1.0, (3,), seed=1, dtype=torch.float64, cell=0.1)
    single = sdeint(decay, tenth, ones(3, dtype=torch.float32), [0.0, 1.0], path=path, controller=Fixed(0.1))
    double = sdeint(decay, tenth, ones(3), [0.0, 1.0], path=path, controller=Fixed(0.1))
    assert single.ys.dtype == torch.float32
    close(single.ys.double(), double.ys, 1e-6)


# --- random numbers in the drift


@pytest.mark.parametrize("adjoint", [Checkpointed(), Checkpointed(tape=0), Direct()])
def test_dropout_in_the_drift_is_replayed(adjoint: Checkpointed) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()

    def solve(adjoint: Any) -> tuple[Tensor, ...]:
        path = tree(4, 3)
        torch.manual_seed(1)
        solution = sdeint(lambda t, y: net(y), tenth, ones(4, 3), [0.0, 1.0], path=path, adjoint=adjoint)
        return solution.ys.detach(), *torch.autograd.grad(solution.ys.square().sum(), list(net.parameters()))

    for one, other in zip(solve(adjoint), solve(Direct()), strict=True):
        close(one, other, 1e-12)


def test_solving_leaves_torchs_generator_alone_where_a_path_is_given() -> None:
    state = torch.get_rng_state()
    sdeint(decay, tenth, ones(3), [0.0, 1.0], path=tree(3))
    sdeint(decay, tenth, ones(3), [0.0, 1.0], generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)


# --- heuristics


def weights() -> Tensor:
    return torch.tensor([0.7, 0.4], dtype=torch.float64)


def heuristic_problem(w: Tensor, method: Method, calculus: Calculus, noise: Noise, adjoint: Any = None) -> Solution:
    """Fixed steps, so that finite differences replay the same ones."""

    def drift(t: Tensor, y: Tensor) -> Tensor:
        return -w[0] * torch.sinh(y) * torch.cos(t)

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        return (0.3 + 0.2 * t) * w[1].expand_as(y) if noise == "additive" else w[1] * torch.cos(y)

    return sdeint(
        drift, diffusion, torch.tensor([0.5, 1.0, -0.3], dtype=torch.float64), [0.0, 1.0], noise=noise,
        calculus=calculus, method=method, path=tree(3), controller=Fixed(0.25), rtol=1e-2, atol=1e-2,
        adjoint=adjoint or Checkpointed(),
    )  # fmt: skip


def differences(value: Callable[[Tensor], Tensor], w: Tensor, h: float = 1e-6) -> Tensor:
    columns = []
    for i in range(len(w)):
        change = torch.zeros_like(w)
        change[i] = h
        with torch.no_grad():
            columns.append((value(w + change) - value(w - change)) / (2 * h))
    return torch.stack(columns)


HEURISTICS: dict[str, Callable[[], Any]] = {
    "error": SolverError,
    "squared": lambda: SolverError(power=2, by_step=False),
    "unscaled": lambda: SolverError(normalized=False),
    "stiffness": SolverStiffness,
    "largest": lambda: SolverStiffness(over="max", by_step=False, by_stability=True),
}
ESTIMATES: list[tuple[Method, Calculus, Noise]] = [
    (SOSRI2(), "ito", "diagonal"),
    (SOSRI2(estimate="sum"), "ito", "diagonal"),
    (SOSRA2(), "ito", "additive"),
    (SOSRA2(estimate="sum"), "stratonovich", "additive"),
    (SOSRI(), "ito", "diagonal"),
    (SRIW1(estimate="sum"), "ito", "diagonal"),
    (ShARK(), "ito", "additive"),
    (Milstein(derivative_free=True), "ito", "diagonal"),
    (Milstein(), "stratonovich", "diagonal"),
    (EulerHeun(), "stratonovich", "diagonal"),
    (Heun(), "stratonovich", "diagonal"),
    (ReversibleHeun(), "stratonovich", "diagonal"),
]


@pytest.mark.parametrize("heuristic", HEURISTICS)
@pytest.mark.parametrize(("method", "calculus", "noise"), ESTIMATES, ids=str)
def test_gradients_of_heuristics_are_those_of_finite_differences(
    method: Method, calculus: Calculus, noise: Noise, heuristic: str
) -> None:
    if heuristic in {"stiffness", "largest"} and not method.has_stiffness:
        with pytest.raises(ValueError, match=f"{type(method).__name__} has no stiffness estimate"):
            HEURISTICS[heuristic]()(heuristic_problem(weights().requires_grad_(), method, calculus, noise))
        return
    for adjoint in (Checkpointed(), Checkpointed(tape=0), Direct()):
        w = weights().requires_grad_()
        value = HEURISTICS[heuristic]()(heuristic_problem(w, method, calculus, noise, adjoint))
        (found,) = torch.autograd.grad(value, w)
        assert bool(found.isfinite().all()) and float(found.abs().min()) > 1e-6
        want = differences(lambda w: HEURISTICS[heuristic]()(heuristic_problem(w, method, calculus, noise)), weights())
        torch.testing.assert_close(found, want, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("sampling", ["unbiased", "biased"])
@pytest.mark.parametrize("of", ["error", "stiffness"])
def test_one_step_drawn_at_random_has_the_gradient_of_this_step(of: Any, sampling: Any) -> None:
    w = weights().requires_grad_()
    solution = heuristic_problem(w, SOSRI2(), "ito", "diagonal")

    def local(w: Tensor, start: Tensor, i: int) -> Tensor:
        """The estimate of a step from where the i-th began."""
        t, dt = float(solution.steps.t[i, 0]), float(solution.steps.dt[i, 0])
        one = sdeint(
            lambda t, y: -w[0] * torch.sinh(y) * torch.cos(t), lambda t, y: w[1] * torch.cos(y), start,
            [t, t + dt], path=tree(3), method=SOSRI2(), controller=Fixed(), rtol=1e-2, atol=1e-2,
        ).steps  # fmt: skip
        assert one.stiffness is not None and one.ratio is not None
        return one.ratio[0, 0] * dt if of == "error" else one.stiffness[0, 0] / 10.6

    random = torch.Generator().manual_seed(3)
    heuristic = LocalHeuristic(of=of, sampling=sampling, generator=random)
    value = heuristic(solution)
    (found,) = torch.autograd.grad(value, w)
    values = [local(weights(), solution.steps.y[i].detach(), i) for i in range(len(solution.steps))]
    i = min(range(len(values)), key=lambda i: abs(float(values[i] - value.detach())))
    close(values[i], value.detach(), 1e-10)
    want = differences(lambda w: local(w, solution.steps.y[i].detach(), i), weights())
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-8)


def test_heuristics_of_adaptive_solves_have_gradients() -> None:
    w = weights().requires_grad_()
    solution = sdeint(
        lambda t, y: -w[0] * torch.sinh(y), lambda t, y: w[1] * torch.cos(y), ones(3), [0.0, 1.0], method=SOSRI2()
    )
    for heuristic in (SolverError(), SolverStiffness(), LocalHeuristic(), LocalHeuristic(of="stiffness")):
        (found,) = torch.autograd.grad(heuristic(solution), w, retain_graph=True)
        assert bool(found.isfinite().all()) and bool(found.any())


def test_heuristics_without_a_graph_are_refused() -> None:
    w = weights().requires_grad_()
    solution = heuristic_problem(w, SOSRI(), "ito", "diagonal", StochasticAdjoint())
    with pytest.raises(RuntimeError, match="the solution carries no gradient of its estimates"):
        SolverError()(solution)
    (found,) = torch.autograd.grad(LocalHeuristic()(solution), w)
    assert bool(found.any())


def test_an_error_of_zero_has_a_gradient_of_zero() -> None:
    w = weights().requires_grad_()
    for method, calculus in ((SOSRI2(), "ito"), (SOSRI2(estimate="sum"), "ito"), (Heun(), "stratonovich")):
        solution = sdeint(
            lambda t, y: 0 * w[0] * y, lambda t, y: 0 * w[1] * y, ones(3), [0.0, 1.0], method=method,
            calculus=calculus,
        )  # fmt: skip
        value = SolverError()(solution)
        if method.has_stiffness:
            value = value + SolverStiffness()(solution)
        (found,) = torch.autograd.grad(value, w)
        close(found, torch.zeros_like(found))


# --- ends of all kinds


def test_too_many_steps_end_a_solve() -> None:
    with pytest.raises(
        RuntimeError,
        match=r"no arrival at t = 1: max_steps after 5 steps at t = 0\.\d+; raise max_steps, or loosen rtol and atol",
    ):
        sdeint(decay, tenth, ones(3), [0.0, 1.0], rtol=1e-6, atol=1e-6, max_steps=5)
    for taped in (True, False):
        with torch.set_grad_enabled(taped):
            solution = sdeint(
                decay, tenth, ones(3), [0.0, 0.2, 1.0], controller=Fixed(0.1), max_steps=4, throw=False, path=tree(3)
            )
        assert solution.status == (Status.MAX_STEPS,) and not solution.success
        assert solution.reached.tolist() == pytest.approx([0.4])
        assert bool(solution.ys[:2].isfinite().all()) and bool(solution.ys[2].isnan().all())
        assert len(solution.steps) == 4
        close(
            solution(0.3), sdeint(decay, tenth, ones(3), [0.0, 0.3], controller=Fixed(0.1), path=tree(3)).ys[-1], 1e-12
        )
        with pytest.raises(ValueError, match="t must lie between 0 and 0.4, which the solve reached"):
            solution(0.5)


@pytest.mark.parametrize("where", ["drift", "diffusion"])
@pytest.mark.parametrize("controller", [None, Fixed(0.1)])
@pytest.mark.parametrize("taped", [True, False])
def test_values_that_are_no_numbers_end_a_solve(where: str, controller: Fixed | None, taped: bool) -> None:
    def fails(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t > 0.5, torch.nan, 1.0) * y

    drift, diffusion = (fails, tenth) if where == "drift" else (decay, fails)
    options: dict[str, Any] = {"calculus": "stratonovich", "controller": controller}  # Heun evaluates within a step
    with torch.set_grad_enabled(taped):
        solution = sdeint(drift, diffusion, ones(3), [0.0, 0.3, 1.0], throw=False, **options)
    assert solution.status == (Status.NONFINITE,)
    assert float(solution.reached) == pytest.approx(0.5, abs=1e-6 if controller is None else 0.11)
    assert bool(solution.ys[:2].isfinite().all()) and not bool(solution.ys[2].isfinite().any())
    with pytest.raises(RuntimeError, match="nonfinite after .* drift or diffusion gave NaN or infinity; look at their"):
        sdeint(drift, diffusion, ones(3), [0.0, 0.3, 1.0], **options)


def test_steps_below_the_resolution_of_the_path_end_a_solve() -> None:
    calls = 0

    def rough(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.full_like(y, 1e30 * (-1) ** calls)

    solution = sdeint(rough, tenth, ones(3), [0.0, 1.0], throw=False)
    assert solution.status == (Status.UNDERFLOW,) and bool(solution.ys[1].isnan().all())
    assert "the steps reached the resolution of the path: loosen rtol and atol, or use Fixed(step)" in solution.report()


# --- errors


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "drift": ({"drift": 1.0}, TypeError, r"drift must be callable as drift\(t, y, \*args\), got float"),
    "diffusion": ({"diffusion": None}, TypeError, r"diffusion must be callable as diffusion\(t, y, \*args\), got None"),
    "y0": ({"y0": 1.0}, TypeError, "y0 must be a tensor or a tuple or dict of tensors, got float"),
    "integers": ({"y0": torch.ones(3, dtype=torch.int64)}, TypeError, "y0 must be floating point"),
    "complex": (
        {"y0": torch.ones(3, dtype=torch.complex128)},
        TypeError,
        r"y0 must be real for stochastic equations; use torch.view_as_real\(y0\)",
    ),
    "nan": ({"y0": ones(3) * math.nan}, ValueError, "y0 must be finite, got NaN or infinity in it"),
    "empty": ({"y0": ()}, ValueError, "y0 must hold at least one tensor, got an empty container"),
    "0-d": (
        {"y0": ones(), "noise": "scalar"},
        ValueError,
        "y0 must have an axis for scalar noise, got a 0-d tensor",
    ),
    "tuple": (
        {"y0": (ones(3),), "noise": "general"},
        TypeError,
        "y0 must be one tensor for general noise, got tuple",
    ),
    "decreasing": (
        {"ts": [1.0, 0.0]},
        ValueError,
        "ts must be increasing for stochastic equations, got a decreasing one",
    ),
    "unordered": ({"ts": [0.0, 1.0, 0.5]}, ValueError, "ts must be strictly increasing or strictly decreasing"),
    "repeated": ({"ts": [0.0, 0.0]}, ValueError, "ts must be strictly increasing or strictly decreasing"),
    "no times": ({"ts": []}, ValueError, "ts must hold at least one time, got none"),
    "infinite times": ({"ts": [0.0, math.inf]}, ValueError, "ts must be finite"),
    "ts with gradient": (
        {"ts": torch.tensor([0.0, 1.0], requires_grad=True)},
        ValueError,
        r"ts must not require gradients: a Brownian path has no derivative; use ts.detach\(\)",
    ),
    "noise": (
        {"noise": "diagonl"},
        ValueError,
        "noise must be one of 'additive', 'scalar', 'diagonal', 'commutative', 'general', got 'diagonl'; "
        "did you mean 'diagonal'",
    ),
    "calculus": (
        {"calculus": "Stratonovic"},
        ValueError,
        "calculus must be one of 'ito', 'stratonovich', got 'Stratonovic'; did you mean 'stratonovich'",
    ),
    "no noise": ({"noise": None}, ValueError, "noise must be one of .* got None"),
    "method as a string": (
        {"method": "SOSRI"},
        TypeError,
        r"method must be a Method such as Tsit5\(\), got 'SOSRI'; did you mean SOSRI\(\)",
    ),
    "method as a class": ({"method": SOSRI}, TypeError, r"method must be a Method .* did you mean SOSRI\(\)"),
    "Tsit5": (
        {"method": Tsit5()},
        ValueError,
        r"Tsit5 solves no stochastic equations; for diagonal noise of Ito use Euler\(\) or Milstein\(\) or SOSRI\(\)",
    ),
    "ImplicitEuler": ({"method": ImplicitEuler()}, ValueError, "ImplicitEuler solves no stochastic equations"),
    "SOSRI of Stratonovich": (
        {"method": SOSRI(), "calculus": "stratonovich"},
        ValueError,
        r"SOSRI solves diagonal noise of Ito, scalar noise of Ito; for diagonal noise of Stratonovich use EulerHeun",
    ),
    "SOSRA of diagonal noise": (
        {"method": SOSRA()},
        ValueError,
        "SOSRA solves additive noise of Ito, additive noise of Stratonovich; for diagonal noise of Ito use",
    ),
    "Heun of Ito": ({"method": Heun()}, ValueError, "Heun solves .* for diagonal noise of Ito use"),
    "Milstein of general noise": (
        {"method": Milstein(), "noise": "general"},
        ValueError,
        r"Milstein solves .*; for general noise of Ito use Euler\(\)$",
    ),
    "AutoSwitch": (
        {"method": AutoSwitch(Tsit5(), ImplicitEuler())},
        TypeError,
        "method must be one method for stochastic equations, got AutoSwitch",
    ),
    "controller": ({"controller": 0.1}, TypeError, r"controller must be PI\(\), I\(\), PID\(\) or Fixed\(step\), got"),
    "adaptive Euler": (
        {"method": Euler(), "controller": PI()},
        ValueError,
        r"Euler has no error estimate to adapt to: use controller=Fixed\(step\)",
    ),
    "Backsolve": (
        {"adjoint": Backsolve()},
        TypeError,
        r"adjoint must be StochasticAdjoint\(\) or Checkpointed\(\) for sdeint, got Backsolve",
    ),
    "Interpolating": (
        {"adjoint": Interpolating()},
        TypeError,
        r"adjoint must be StochasticAdjoint\(\) .* Interpolating",
    ),
    "adjoint": ({"adjoint": "direct"}, TypeError, "adjoint must be"),
    "path": ({"path": 3}, TypeError, "path must be a BrownianPath, or a Brownian motion of torchsde, got int"),
    "path of another shape": (
        {"path": tree(4)},
        ValueError,
        r"path must have values of shape \(3,\), as the noise has, got \(4,\)",
    ),
    "path of scalar noise": (
        {"path": tree(3), "noise": "scalar"},
        ValueError,
        r"path must have values of shape \(1,\), as the noise has, got \(3,\)",
    ),
    "a path that ends early": ({"path": tree(3, t1=0.5)}, ValueError, "path must reach from 0.0 to 1.0"),
    "a path that begins late": (
        {"path": tree(3, t0=0.5), "controller": Fixed(0.5)},
        ValueError,
        "path must reach from 0.0 to 1.0",
    ),
    "a path without area": ({"path": tree(3, area=False)}, ValueError, "path must tell its space-time Levy area"),
    "args": ({"args": 1.0}, TypeError, "args must be a list or tuple, got float; put a single one in a list"),
    "stops": ({"stops": 0.5}, TypeError, "stops must be a list of times, got 0.5; put a single one in a list"),
    "rtol": ({"rtol": 0.0}, ValueError, "rtol must be finite and > 0, got 0.0"),
    "atol": ({"atol": -1.0}, ValueError, "atol must be finite and > 0, got -1.0"),
    "max_steps": ({"max_steps": 0}, ValueError, "max_steps must be an integer > 0, got 0"),
    "drift's shape": (
        {"drift": lambda t, y: y[:2]},
        ValueError,
        r"drift must return the shape of the state, \(3,\), got \(2,\)",
    ),
    "drift's dtype": (
        {"drift": lambda t, y: y.float()},
        TypeError,
        "drift must return the dtype of the state, torch.f",
    ),
    "drift's kind": ({"drift": lambda t, y: 0.0}, TypeError, "drift must return a tensor as y0 is, got float"),
    "diffusion's shape": (
        {"diffusion": lambda t, y: y[:2]},
        ValueError,
        r"diffusion must return the shape of the state, \(3,\), got \(2,\)",
    ),
    "diffusion's dtype": (
        {"diffusion": lambda t, y: y.float()},
        TypeError,
        "diffusion must return the dtype of the state, torch.float64, got torch.float32; cast y0 or the result",
    ),
    "diffusion's kind": ({"diffusion": lambda t, y: 0.1}, TypeError, "diffusion must return a tensor as y0 is, got f"),
    "a matrix for diagonal noise": (
        {"diffusion": lambda t, y: y[:, None]},
        ValueError,
        r"diffusion must return the shape of the state, \(3,\), got \(3, 1\)",
    ),
    "no matrix": (
        {"noise": "general", "controller": Fixed(0.5)},
        ValueError,
        r"diffusion must return shape \(3, 'm'\), one column for each of m channels of noise, got \(3,\)",
    ),
    "no tensor for a matrix": (
        {"noise": "commutative", "diffusion": lambda t, y: 0.1},
        ValueError,
        r"\(3, 'm'\).* float",
    ),
    "general noise of Ito without a step": (
        {"noise": "general", "diffusion": lambda t, y: y[:, None]},
        ValueError,
        "controller must be Fixed",
    ),
    "additive noise that depends on y": ({"noise": "additive"}, ValueError, "for a diffusion that depends on y"),
    "a matrix of another dtype": (
        {"noise": "commutative", "diffusion": lambda t, y: y[:, None].float()},
        TypeError,
        "diffusion must return the dtype of the state, torch.float64, got torch.float32",
    ),
    "a matrix of another shape": (
        {"noise": "commutative", "diffusion": lambda t, y: ones(2, 3)},
        ValueError,
        r"diffusion must return .*, got \(2, 3\)",
    ),
    "additive noise of another shape": (
        {"noise": "additive", "diffusion": lambda t, y: ones(4)},
        ValueError,
        r"diffusion must return the shape of the state, \(3,\), got \(4,\)",
    ),
    "tuples of other lengths": (
        {"y0": (ones(3),), "drift": lambda t, y: (y[0], y[0]), "diffusion": lambda t, y: y},
        TypeError,
        "drift must return a tuple of 1 tensors as y0 is, got 2 tensors",
    ),
    "a part of another shape": (
        {"y0": {"a": ones(3)}, "drift": lambda t, y: y, "diffusion": lambda t, y: {"a": ones(2)}},
        ValueError,
        r"diffusion, part 'a', must return the shape of the state, \(3,\), got \(2,\)",
    ),
}


@pytest.mark.parametrize(("change", "kind", "message"), BAD.values(), ids=BAD)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"drift": decay, "diffusion": tenth, "y0": ones(3), "ts": [0.0, 1.0], **change}
    with pytest.raises(kind, match=message):
        sdeint(**arguments)


@pytest.mark.parametrize("method", [SOSRI(), SRA1(), ShARK(), Milstein(), EulerHeun()], ids=str)
@pytest.mark.parametrize("per_sample", [False, True])
def test_methods_for_noise_alone_are_refused_without_it(method: Method, per_sample: bool) -> None:
    message = rf"{type(method).__name__} solves stochastic equations: use sdeint, or a method such as Tsit5\(\)"
    with pytest.raises(TypeError, match=message):
        odeint(decay, ones(2, 3), [0.0, 1.0], method=method, per_sample=per_sample)
    with pytest.raises(TypeError, match=message):
        step(decay, 0.0, 0.1, ones(3), method=method)


def test_the_adjoint_for_noise_is_refused_without_it() -> None:
    with pytest.raises(TypeError, match=r"StochasticAdjoint is for sdeint: use adjoint=Backsolve\(\) for ordinary eq"):
        odeint(decay, ones(3), [0.0, 1.0], adjoint=StochasticAdjoint())


def test_reversible_needs_its_method() -> None:
    with pytest.raises(
        ValueError, match=r"Reversible needs method=ReversibleHeun\(\), got SOSRI; adjoint=Checkpointed"
    ):
        sdeint(decay, tenth, ones(3), [0.0, 1.0], adjoint=Reversible())


def test_a_matrix_may_have_one_channel_and_arguments_reach_both_functions() -> None:
    a, b = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    path = tree(3, 1)
    options: dict[str, Any] = {"calculus": "stratonovich", "controller": Fixed(0.1), "path": path}
    matrix = sdeint(
        lambda t, y, a, b: -a * y, lambda t, y, a, b: (b * y)[..., None], ones(3, 2), [0.0, 1.0], noise="general",
        args=(a, b), **options,
    )  # fmt: skip
    scalar = sdeint(
        lambda t, y, a, b: -a * y, lambda t, y, a, b: b * y, ones(3, 2), [0.0, 1.0], noise="scalar", args=(a, b),
        **options,
    )  # fmt: skip
    close(matrix.ys, scalar.ys, 1e-14)
