"""Solving SDEs, beside torchsde, diffrax and a bare loop that draws the same noise.

    python tests/benchmarks/sde.py [--quick] [--threads 1] [--repeats 5]

dy = -y dt + 0.1 y dW for a batch of 1024 x 8 in float32, t from 0 to 1, by steps of 1/128 and of 1/100; geometric
Brownian motion by adaptive steps, evaluations at equal strong error over 1000 paths; increments of a Brownian path of
1024 x 8 in the order of time and in random order. Peers that are not installed say so.
"""

import argparse
import math
import random
from collections.abc import Callable
from typing import Any

import torch
from timing import Job, Row, machine, missing, peer, race, table, use_threads
from torch import Tensor, nn

from invreg.solvers import SOSRI, SRIW2, Euler, Fixed, Heun, Method, VirtualBrownianTree, sdeint

SCHEMES: dict[str, tuple[str, dict[str, Method]]] = {
    "euler": ("ito", {"invreg": Euler()}),
    "heun": ("stratonovich", {"invreg": Heun()}),
    "srk": ("ito", {"invreg SRIW2": SRIW2(), "invreg SOSRI": SOSRI()}),
}


def drift(t: Tensor, y: Tensor) -> Tensor:
    return -y


def diffusion(t: Tensor, y: Tensor) -> Tensor:
    return 0.1 * y


class Problem(nn.Module):
    """The same for torchsde."""

    noise_type = "diagonal"

    def __init__(self, calculus: str, rate: float = -1.0, strength: float = 0.1) -> None:
        super().__init__()
        self.sde_type, self.rate, self.strength, self.calls = calculus, rate, strength, 0

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.rate * y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.strength * y


def bare(y: Tensor, steps: int, scheme: str) -> Tensor:
    """The least that a scheme has to do."""
    dt = 1 / steps
    for _ in range(steps):
        w = torch.randn(y.shape) * math.sqrt(dt)
        move = -y * dt + 0.1 * y * w
        if scheme == "heun":
            other = y + move
            move = (move - other * dt + 0.1 * other * w) * 0.5
        y = y + move
    return y


def fixed(scheme: str, steps: int, batch: int, repeats: int, compiled: bool) -> list[Row]:
    """Steps of one length."""
    case = f"{scheme}, {steps} steps, {batch} x 8"
    calculus, methods = SCHEMES[scheme]
    y0 = torch.randn(batch, 8, generator=torch.Generator().manual_seed(0))
    jobs: dict[str, Job] = {}

    def ours(method: Method, compile: bool) -> Callable[[], Any]:
        options: dict[str, Any] = {"calculus": calculus, "controller": Fixed(1 / steps), "compile": compile}
        return lambda: sdeint(drift, diffusion, y0, [0.0, 1.0], method=method, **options)

    for name, method in methods.items():
        jobs[name] = ours(method, False)
        if compiled:
            jobs[f"{name}, compiled"] = ours(method, True)
    if scheme != "srk":
        jobs["bare loop"] = lambda: bare(y0, steps, scheme)
    rows = []
    torchsde = peer("torchsde")
    if torchsde is None:
        rows.append(missing(case, "torchsde"))
    else:
        sde, ts = Problem(calculus), torch.tensor([0.0, 1.0])
        jobs["torchsde"] = lambda: torchsde.sdeint(sde, y0, ts, dt=1 / steps, method=scheme)
    rows += diffrax_fixed(case, scheme, steps, y0, jobs)
    with torch.no_grad():
        for job in jobs.values():
            job()
        seconds = race(jobs, repeats)
    notes = {name: f"{1e6 * seconds[name] / steps:.0f} us a step" for name in jobs}
    return [*(Row(case, name, seconds[name], note=notes[name]) for name in jobs), *rows]


def diffrax_fixed(case: str, scheme: str, steps: int, y0: Tensor, jobs: dict[str, Job]) -> list[Row]:
    """diffrax compiled by jax; a row only where it is missing, nothing for schemes that it has not."""
    if scheme == "srk":
        return []
    diffrax, jax, lineax = peer("diffrax"), peer("jax"), peer("lineax")
    if diffrax is None or jax is None or lineax is None:
        return [missing(case, "diffrax")]
    start = jax.numpy.asarray(y0.numpy())

    def solve(y: Any, key: Any) -> Any:
        motion = diffrax.UnsafeBrownianPath(shape=y.shape, key=key)
        term = diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, y, args: -y),
            diffrax.ControlTerm(lambda t, y, args: lineax.DiagonalLinearOperator(0.1 * y), motion),
        )
        solver = diffrax.Euler() if scheme == "euler" else diffrax.Heun()
        adjoint = diffrax.DirectAdjoint()
        return diffrax.diffeqsolve(term, solver, 0.0, 1.0, 1 / steps, y, adjoint=adjoint, max_steps=steps + 2).ys[-1]

    program, key = jax.jit(solve), jax.random.PRNGKey(0)
    jobs["diffrax, jit"] = lambda: program(start, key).block_until_ready()
    return []


def adaptive(paths: int) -> list[Row]:
    """Evaluations of drift and diffusion at equal strong error."""
    case = f"adaptive, geometric Brownian motion, {paths} paths"
    rate, strength = 1.01, 0.87
    y0 = torch.full((paths, 1), 0.5, dtype=torch.float64)
    exact_at = lambda w: 0.5 * torch.exp((rate - strength**2 / 2) + strength * w)  # noqa: E731
    ours: dict[str, list[tuple[float, int]]] = {"SOSRI": [], "SRIW2": []}
    rows = []
    for name, method in (("SOSRI", SOSRI()), ("SRIW2", SRIW2())):
        for tolerance in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4):
            path = VirtualBrownianTree(0.0, 1.0, y0.shape, seed=1, dtype=torch.float64)
            with torch.no_grad():
                found = sdeint(
                    lambda t, y: rate * y,
                    lambda t, y: strength * y,
                    y0,
                    [0.0, 1.0],
                    method=method,
                    path=path,
                    rtol=tolerance,
                    atol=tolerance,
                )
            error = float((found.ys[-1] - exact_at(path(0.0, 1.0))).abs().mean())
            calls = found.stats.calls + found.stats.diffusions
            ours[name].append((error, calls))
            note = f"strong error {error:.1e}: {calls} evaluations (rtol = atol = {tolerance:g})"
            rows.append(Row(case, f"invreg {name}", note=note))
    torchsde = peer("torchsde")
    if torchsde is None:
        return [*rows, missing(case, "torchsde")]
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
        sde = Problem("ito", rate, strength)
        motion = torchsde.BrownianInterval(
            0.0, 1.0, tuple(y0.shape), dtype=torch.float64, entropy=1, levy_area_approximation="space-time"
        )
        options: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "adaptive": True, "dt": 0.1}
        with torch.no_grad():
            ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
            end = torchsde.sdeint(sde, y0, ts, bm=motion, method="srk", **options)[-1]
        error = float((end - exact_at(motion(0.0, 1.0))).abs().mean())
        times = ", ".join(f"{sde.calls / evaluations_at(error, one):.1f} times {name}'s" for name, one in ours.items())
        note = f"strong error {error:.1e}: {sde.calls} evaluations, {times} there"
        rows.append(Row(case, "torchsde srk", note=note))
    return rows


def evaluations_at(error: float, found: list[tuple[float, int]]) -> float:
    """Evaluations at an error, on the line through the logarithms of two neighbours."""
    known = sorted((math.log(one), math.log(calls)) for one, calls in found)
    x = math.log(error)
    high = next((i for i, (one, _) in enumerate(known) if one >= x), len(known) - 1)
    (x0, y0), (x1, y1) = known[max(high, 1) - 1], known[max(high, 1)]
    return math.exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0))


def queries(count: int, batch: int, repeats: int) -> list[Row]:
    """Increments over a grid, in the order of time and in random order."""
    grid = [(i / count, (i + 1) / count) for i in range(count)]
    shuffled = random.Random(0).sample(grid, count)
    rows = []
    torchsde = peer("torchsde")
    for order, pieces in (("in order", grid), ("in random order", shuffled)):
        case = f"Brownian path {batch} x 8, {count} increments {order}"

        def ours(pieces: list[tuple[float, float]] = pieces, **options: Any) -> None:
            path = VirtualBrownianTree(0.0, 1.0, (batch, 8), seed=1, **options)
            for a, b in pieces:
                path(a, b)

        def theirs(pieces: list[tuple[float, float]] = pieces, **options: Any) -> None:
            motion = torchsde.BrownianInterval(0.0, 1.0, (batch, 8), entropy=1, **options)
            for a, b in pieces:
                motion(a, b)

        jobs: dict[str, Job] = {
            "invreg, cells": lambda: ours(cell=1 / count),
            "invreg, one cell": lambda: ours(area=False),
            "invreg, one cell, with area": ours,
        }
        if torchsde is not None:
            jobs["torchsde, dt given"] = lambda: theirs(dt=1 / count)
            jobs["torchsde"] = theirs
        seconds = race(jobs, repeats)
        notes = {name: f"{1e6 * seconds[name] / count:.0f} us a query" for name in jobs}
        rows += [Row(case, name, seconds[name], note=notes[name]) for name in jobs]
        if torchsde is None:
            rows.append(missing(case, "torchsde"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small cases, to see that it runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    use_threads(options.threads)
    quick, repeats = options.quick, 1 if options.quick else options.repeats
    print(machine())
    rows: list[Row] = []
    for steps in (16,) if quick else (128, 100):
        for scheme in SCHEMES:
            rows += fixed(scheme, steps, 16 if quick else 1024, repeats, compiled=not quick)
    rows += adaptive(20 if quick else 1000)
    rows += queries(16 if quick else 128, 16 if quick else 1024, repeats)
    print(table(rows))


if __name__ == "__main__":
    main()
