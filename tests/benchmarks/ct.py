"""Parallel-beam projection, its adjoint and one SIRT iteration beside ASTRA (CPU) and deepinv.

    python tests/benchmarks/ct.py [--quick] [--threads 2] [--repeats 7] [--case 256/180]

Single precision, one image of N x N pixels, ceil(sqrt(2) N) detectors, so that views see the whole square; deepinv is
shown also with circle=True, which leaves the corners out and has N detectors, that is 0.7 times the rays. Times are
warm medians taken in turns in one process with equal threads; ratios are to invreg's compiled kernels. Memory is the
peak above a process that has run the same job before. Peers that are not installed say so.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial

import torch
from timing import Job, Row, machine, missing, peak_memory, peer, race, table, use_threads
from torch import Tensor

from invreg.operators import ParallelBeam
from invreg.phantom import rasterise, shepp_logan

CASES = ("256/180", "512/360", "512/720")
Pair = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def phantom(size: int) -> Tensor:
    """(1, N, N)."""
    return rasterise(shepp_logan(float(size)), (size, size), supersampling=2)[None]


def ours(size: int, views: int, compiled: bool) -> Pair:
    """Forward and adjoint: (1, N, N) <-> (1, A, D)."""
    angles = torch.arange(views) * (math.pi / views)
    operator = ParallelBeam((size, size), angles, compile=compiled)
    return operator, operator.adjoint


def astra_linear(size: int, views: int) -> Pair:
    """ASTRA's CPU projector of the same model; data stay in its memory but for one copy each way."""
    astra = peer("astra")
    assert astra is not None
    volume = astra.create_vol_geom(size, size)
    angles = (torch.arange(views) * (math.pi / views)).double().numpy()
    rays = astra.create_proj_geom("parallel", 1.0, math.ceil(math.hypot(size, size)), angles)
    operator = astra.OpTomo(astra.create_projector("linear", rays, volume))

    def forward(x: Tensor) -> Tensor:
        return torch.from_numpy(operator.FP(x[0].numpy()))[None]

    def adjoint(y: Tensor) -> Tensor:
        return torch.from_numpy(operator.BP(y[0].numpy()))[None]

    return forward, adjoint


def deepinv_tomography(size: int, views: int, circle: bool) -> Pair:
    """deepinv's Tomography with its default adjoint: (1, N, N) <-> (1, D, A)."""
    deepinv = peer("deepinv")
    assert deepinv is not None
    angles = torch.arange(views) * (180.0 / views)
    physics = deepinv.physics.Tomography(angles=angles, img_width=size, circle=circle, normalize=False)
    return lambda x: physics.A(x[None])[0], lambda y: physics.A_adjoint(y[None])[0]


SOLVERS: dict[str, Callable[[int, int], Pair]] = {
    "invreg, compiled": partial(ours, compiled=True),
    "invreg, plain": partial(ours, compiled=False),
    "ASTRA linear, CPU": astra_linear,
    "deepinv Tomography": partial(deepinv_tomography, circle=False),
    "deepinv, circle": partial(deepinv_tomography, circle=True),
}
NEEDS = {"ASTRA linear, CPU": "astra", "deepinv Tomography": "deepinv", "deepinv, circle": "deepinv"}
NOTES = {"deepinv, circle": "0.7 of the rays"}


def sirt(pair: Pair, x: Tensor) -> Job:
    """One iteration x + C A^T R (y - A x) with R = 1 / A 1, C = 1 / A^T 1."""
    forward, adjoint = pair
    with torch.no_grad():
        y = forward(x)
        rows = 1 / forward(torch.ones_like(x)).clamp_min(1e-3)
        columns = 1 / adjoint(torch.ones_like(y)).clamp_min(1e-3)
    start = torch.zeros_like(x)
    return lambda: start + columns * adjoint(rows * (y - forward(start)))


def jobs(name: str, size: int, views: int) -> dict[str, Job]:
    """The timed calls of one solver."""
    pair, x = SOLVERS[name](size, views), phantom(size)
    y = pair[0](x)
    return {
        "forward": lambda: pair[0](x),
        "adjoint": lambda: pair[1](y),
        "forward + adjoint": lambda: pair[1](pair[0](x)),
        "SIRT iteration": sirt(pair, x),
    }


def both(name: str, size: int, views: int) -> Job:
    """What peak memory is measured of."""
    return jobs(name, size, views)["forward + adjoint"]


def benchmark(size: int, views: int, repeats: int, memory: bool) -> list[Row]:
    """All rows of one size."""
    available = [name for name in SOLVERS if name not in NEEDS or peer(NEEDS[name]) is not None]
    peaks = {name: peak_memory(partial(both, name, size, views)) if memory else None for name in available}
    timed = {name: jobs(name, size, views) for name in available}
    rows = []
    for task in next(iter(timed.values())):
        case = f"{size}/{views} {task}"
        seconds = race({name: timed[name][task] for name in available}, repeats)
        for name in SOLVERS:
            if name not in available:
                rows.append(missing(case, name))
            else:
                peak = peaks[name] if task == "forward + adjoint" else None
                rows.append(Row(case, name, seconds[name], peak, NOTES.get(name, "")))
    return rows


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds at a tiny size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--case", choices=CASES, help="one size / views alone")
    options = parser.parse_args()
    use_threads(options.threads)
    print(machine())
    cases = ["32/20"] if options.quick else [options.case] if options.case else CASES
    with torch.no_grad():
        for case in cases:
            size, views = map(int, case.split("/"))
            print(table(benchmark(size, views, 1 if options.quick else options.repeats, not options.quick)), flush=True)
            print()


if __name__ == "__main__":
    main()
