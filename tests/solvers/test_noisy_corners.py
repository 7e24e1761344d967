"""Corners of the stochastic solvers that were once wrong."""

import concurrent.futures
import math
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invreg.models import EntrywiseMLP
from invreg.regularizers import SolverStiffness
from invreg.solvers import (
    PI,
    SRIW1,
    Euler,
    Fixed,
    Milstein,
    Reversible,
    ReversibleHeun,
    Status,
    StochasticAdjoint,
    VirtualBrownianTree,
    odeint,
    sdeint,
)
from invreg.solvers.brownian import permuted

D = torch.float64


def f(t: Tensor, y: Tensor) -> Tensor:
    return -y


def g(t: Tensor, y: Tensor) -> Tensor:
    return 0.1 * y


y0 = torch.ones(3, dtype=D)


def test_reversible_solution_says_that_it_has_no_values_between() -> None:
    s = sdeint(
        f,
        g,
        y0.clone().requires_grad_(),
        [0.0, 1.0],
        calculus="stratonovich",
        method=ReversibleHeun(),
        adjoint=Reversible(),
        controller=Fixed(0.1),
    )
    with pytest.raises(ValueError, match="keeps no states"):
        s(0.55)


def test_nan_at_the_start_is_nonfinite() -> None:  # ValueError: cannot convert float NaN to integer
    assert sdeint(lambda t, y: y * math.nan, g, y0, [0.0, 1.0], throw=False).status == (Status.NONFINITE,)


def test_infinity_at_the_start_is_nonfinite() -> None:  # UNDERFLOW, with the advice to loosen rtol
    assert sdeint(lambda t, y: y * math.inf, g, y0, [0.0, 1.0], throw=False).status == (Status.NONFINITE,)


@pytest.mark.parametrize("n", [6000, 8000])
def test_fixed_steps_stay_on_the_cells(
    n: int,
) -> None:  # times are added up and leave the cells: 25 draws a step instead of 1/64
    s = sdeint(
        f,
        g,
        y0,
        [0.0, 1.0],
        method=Euler(),
        controller=Fixed(1 / n),
        max_steps=2 * n,
        generator=torch.Generator().manual_seed(0),
    )
    p = s.problem.dynamics.path
    again = VirtualBrownianTree(0.0, 1.0, (3,), cell=1 / n, dtype=D, seed=p.seed, area=False)
    count, draw = 0, again._draw

    def counted(*a: object, **k: object) -> Tensor:
        nonlocal count
        count += 1
        return draw(*a, **k)

    again._draw = counted
    sdeint(f, g, y0, [0.0, 1.0], method=Euler(), controller=Fixed(1 / n), max_steps=2 * n, path=again)
    assert count < 2 * n / 64 + 10, count


def test_fixed_steps_stay_on_the_cells_far_from_zero() -> None:
    again = VirtualBrownianTree(1e4, 1e4 + 1, (3,), cell=1e-3, dtype=D, seed=1, area=False)
    count, draw = 0, again._draw

    def counted(*a: object, **k: object) -> Tensor:
        nonlocal count
        count += 1
        return draw(*a, **k)

    again._draw = counted
    sdeint(f, g, y0, [1e4, 1e4 + 1], method=Euler(), controller=Fixed(1e-3), path=again)
    assert count < 100, count


def test_a_path_seen_in_inference_mode_serves_for_training() -> None:
    p = VirtualBrownianTree(0.0, 1.0, (3,), dtype=D, seed=1, cell=0.1)
    with torch.inference_mode():
        sdeint(f, g, y0, [0.0, 1.0], path=p, controller=Fixed(0.1), method=Euler())
    w = torch.ones((), dtype=D, requires_grad=True)
    ys = sdeint(f, lambda t, y: 0.1 * y * w, y0, [0.0, 1.0], path=p, controller=Fixed(0.1), method=Euler()).ys
    (slope,) = torch.autograd.grad(ys.sum(), w)
    assert float(slope.abs()) > 0


def test_writing_into_an_increment_leaves_the_path() -> None:
    p = VirtualBrownianTree(0.0, 1.0, (3,), dtype=D, seed=1, cell=0.1)
    a = p(0, 0.1).clone()
    p(0, 0.1).mul_(2)
    assert torch.equal(a, p(0, 0.1))


def test_times_within_the_tolerance_of_the_end_are_taken() -> None:  # odeint takes them
    for solution in (odeint(f, y0, [0.0, 1.0]), sdeint(f, g, y0, [0.0, 1.0])):
        torch.testing.assert_close(solution(1 + 1.5e-9), solution.ys[-1], rtol=1e-7, atol=1e-7)


def test_a_path_that_ends_early_is_refused_before_the_first_step() -> None:
    calls = 0

    def counted(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -y

    with pytest.raises(ValueError, match="path"):
        sdeint(counted, g, y0, [0.0, 1.0], path=VirtualBrownianTree(0.0, 0.5, (3,), dtype=D))
    assert calls <= 1


def test_a_path_that_begins_late_is_refused() -> None:  # RuntimeError: underflow ... loosen rtol
    with pytest.raises(ValueError, match="path|between"):
        sdeint(f, g, y0, [0.0, 1.0], path=VirtualBrownianTree(0.5, 1.0, (3,), dtype=D))


@pytest.mark.parametrize(
    ("noise", "diffusion"),
    [
        ("additive", lambda t, y: torch.full_like(y, 0.1)),
        ("additive", lambda t, y: torch.ones(3, 2, dtype=D)),
        ("general", lambda t, y: y[:, None] * torch.ones(3, 2, dtype=D)),
    ],
)
def test_every_evaluation_of_the_diffusion_is_counted(
    noise: str, diffusion: Callable[[Tensor, Tensor], Tensor]
) -> None:
    calls = 0

    def counted(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return diffusion(t, y)

    s = sdeint(f, counted, y0, [0.0, 1.0], noise=noise, controller=Fixed(0.25))
    assert s.stats.diffusions == calls


def test_a_matrix_for_a_state_of_several_tensors_is_refused_with_a_message() -> None:  # RuntimeError: mat1 and mat2
    with pytest.raises((TypeError, ValueError), match="diffusion|y0"):
        sdeint(lambda t, y: (-y[0],), lambda t, y: torch.ones(3, 2, dtype=D), (y0,), [0.0, 1.0], noise="additive")


def test_a_sequence_of_generators_is_refused_with_a_message() -> None:
    with pytest.raises(TypeError, match="generator must be"):
        sdeint(f, g, y0, [0.0, 1.0], generator=[torch.Generator()])


def test_the_advice_for_stiffness_names_stochastic_methods() -> None:
    with pytest.raises(ValueError, match="SOSRI2"):
        SolverStiffness()(sdeint(f, g, y0, [0.0, 1.0]))


def test_the_advice_for_adaptive_euler_names_a_stochastic_method() -> None:
    with pytest.raises(ValueError) as caught:
        sdeint(f, g, y0, [0.0, 1.0], method=Euler(), controller=PI())
    assert "Tsit5" not in str(caught.value)


def test_a_gradient_of_a_time_between_is_refused() -> None:
    s = sdeint(f, g, y0, [0.0, 1.0])
    t = torch.tensor(0.4, dtype=D, requires_grad=True)
    with pytest.raises(ValueError, match="must not require gradients"):
        s(t)


def test_a_path_and_a_generator_are_not_both_taken() -> None:
    with pytest.raises(ValueError, match="generator must be None"):
        sdeint(f, g, y0, [0.0, 1.0], path=VirtualBrownianTree(0.0, 1.0, (3,), dtype=D), generator=torch.Generator())


def test_cells_never_share_a_seed() -> None:
    seeds = {permuted(0x1234567890ABCDEF, number) for number in range(200_000)}
    assert len(seeds) == 200_000
    assert max(seeds) < 2**32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Heun", "SOSRI", "Milstein", "ReversibleHeun", "SOSRA"])
def test_compiled_steps_are_the_same(name: str) -> None:
    from invreg import solvers

    method = getattr(solvers, name)()
    options = {"noise": "additive"} if name == "SOSRA" else {}
    calculus = "stratonovich" if ("stratonovich", options.get("noise", "diagonal")) in method.strong_orders else "ito"
    if name in {"Milstein", "SOSRA"}:
        calculus = "ito"
    path = VirtualBrownianTree(0.0, 1.0, (4, 3), cell=1 / 50, dtype=D, seed=1)
    start = torch.linspace(0.1, 1, 12, dtype=D).reshape(4, 3)

    def drift(t: Tensor, y: Tensor) -> Tensor:
        return -y * torch.cos(t)

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        return 0.1 * torch.cos(t) * (torch.ones_like(y) if options else y)

    found = []
    with torch.no_grad():
        for compile in (False, True):
            solution = sdeint(
                drift,
                diffusion,
                start,
                [0.0, 0.31, 1.0],
                method=method,
                calculus=calculus,
                controller=Fixed(1 / 50),
                path=path,
                compile=compile,
                **options,
            )
            found.append(solution)
    torch.testing.assert_close(found[1].ys, found[0].ys, rtol=1e-12, atol=1e-12)
    assert int(found[1].stats.accepted) == int(found[0].stats.accepted)


def test_what_cannot_be_compiled_says_why() -> None:
    with pytest.raises(ValueError, match="steps of one length"):
        sdeint(f, g, y0, [0.0, 1.0], compile=True)
    with pytest.raises(ValueError, match="without gradients"):
        sdeint(f, g, y0, [0.0, 1.0], controller=Fixed(0.1), compile=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["Euler", "SOSRI", "Heun", "ReversibleHeun", "Milstein"])
def test_a_device_solves_along_its_own_path(name: str) -> None:
    from invreg import solvers

    method = getattr(solvers, name)()
    calculus = "ito" if ("ito", "diagonal") in method.strong_orders else "stratonovich"
    start = torch.full((1000, 2), 0.5, dtype=D, device="cuda", requires_grad=True)
    path = VirtualBrownianTree(0.0, 1.0, (1000, 2), cell=1 / 64, dtype=D, device="cuda", seed=2)
    options = {"calculus": calculus, "method": method, "controller": Fixed(1 / 64), "path": path}
    ys = sdeint(lambda t, y: 1.01 * y, lambda t, y: 0.3 * y, start, [0.0, 1.0], **options).ys
    drift = 1.01 - (0.045 if calculus == "ito" else 0.0)
    exact = 0.5 * torch.exp(drift + 0.3 * path(0.0, 1.0))
    assert ys.device.type == "cuda"
    assert float((ys[-1] - exact).abs().mean()) < 0.05
    ys.sum().backward()
    assert bool(start.grad.isfinite().all())
    again = VirtualBrownianTree(0.0, 1.0, (1000, 2), cell=1 / 64, dtype=D, device="cuda", seed=2)
    assert torch.equal(again(0.25, 0.75), path(0.25, 0.75))


def test_threads_share_a_path() -> None:
    path = VirtualBrownianTree(0.0, 1.0, (3,), dtype=D, seed=1)
    alone = sdeint(f, g, y0, [0.0, 0.3, 1.0], path=path, rtol=1e-3).ys
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(sdeint, f, g, y0, [0.0, 0.3, 1.0], path=path, rtol=1e-3) for _ in range(12)]
        for job in jobs:
            assert torch.equal(job.result(timeout=60).ys, alone)


def test_a_path_is_pickled() -> None:
    path = VirtualBrownianTree(0.0, 1.0, (3,), dtype=D, seed=1)
    kept = path(0.2, 0.7)
    assert torch.equal(pickle.loads(pickle.dumps(path))(0.2, 0.7), kept)


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("stochastic", [False, True])
def test_long_solves_are_let_go_after_their_gradient(stochastic: bool) -> None:
    # the graph of a tape is destroyed recursively: in a process of its own, since it would crash
    solve = (
        "sdeint(lambda t, y: -a * y, lambda t, y: 0.2 * torch.sin(y), torch.ones(16, 3), [0.0, 1.0], "
        "method=SOSRI(), controller=Fixed(2e-4), max_steps=10**6)"
        if stochastic
        else "odeint(lambda t, y: -a * torch.sin(y), torch.ones(16, 3), [0.0, 1.0], controller=Fixed(2e-4), "
        "max_steps=10**6)"
    )
    code = (
        "import torch; from invreg.solvers import *; a = torch.tensor(0.5, requires_grad=True); "
        f"s = {solve}; s.ys[-1].sum().backward(); del s; print('done', float(a.grad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout.startswith("done")


def coupled(t: Tensor, y: Tensor) -> Tensor:
    return 0.3 * torch.sin(y.flip(-1))


def test_noise_that_is_not_diagonal_is_told_from_noise_that_is() -> None:
    with pytest.raises(ValueError, match=r"entry i from entry i of y only .* which Milstein relies on"):
        sdeint(f, coupled, y0, [0.0, 1.0], method=Milstein())
    with pytest.raises(ValueError, match="which StochasticAdjoint relies on"):
        sdeint(f, coupled, y0, [0.0, 1.0], adjoint=StochasticAdjoint())
    with pytest.warns(UserWarning, match=r"SRIW1 then has strong order 0.5"):
        sdeint(f, coupled, y0, [0.0, 1.0], method=SRIW1())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sdeint(f, coupled, y0, [0.0, 1.0], calculus="stratonovich")
        sdeint(f, g, y0, [0.0, 1.0], method=SRIW1())
        sdeint(f, EntrywiseMLP(3).double(), y0, [0.0, 1.0], method=Milstein())


def test_steps_without_end_are_told_before_they_are_counted() -> None:
    with torch.no_grad():
        solution = sdeint(f, g, y0, [1.0, 2.0], controller=Fixed(1e-9), compile="auto", max_steps=5, throw=False)
    assert solution.status != (Status.SUCCESS,)
