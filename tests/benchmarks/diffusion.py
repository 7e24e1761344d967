"""Samplers with a diffusion prior: time outside network and operator, batches, speed and exactness beside deepinv.

    python tests/benchmarks/diffusion.py [--quick] [--threads 1] [--repeats 5] [--only overhead batch speed posterior]

Overhead, batch and speed: our U-Net with random weights (as slow as a trained one) at 128 x 128 complex, on a GPU if
there is one. Posterior: an 8 x 8 Gaussian field with its exact denoiser, half of its pixels seen, whose posterior is
known; distances are sliced Wasserstein distances of 500 samples over that between two exact sets of 500. deepinv gets
the very same denoiser through the bridge. It says so where it is not installed.
"""

import argparse
import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from known_posterior import Known, Levels, device, known, quality, seeded
from mri import object_and_maps, real_view, sampling
from stopwatch import Stopwatch, WatchedSpectrum, now
from timing import Job, Row, machine, missing, peak_memory, peer, race, table, use_threads
from torch import Tensor

from invreg.algorithms import DDNM, DDRM, DDS, DPS, HQS, DiffPIR, PredictorCorrector, Variational
from invreg.algorithms.posterior import chain_generator
from invreg.deepinv_bridge import as_deepinv
from invreg.interfaces import Denoiser, LinearOperator
from invreg.models import UNet
from invreg.models.denoiser import NetworkDenoiser
from invreg.models.noise_path import EDM
from invreg.noise import Gaussian
from invreg.operators import Mask, MaskedFourier, Sense
from invreg.problem import Problem
from invreg.regularizers import PlugAndPlay, REDDiff

SIGMA = 0.01  # of the noise in k-space
SAMPLERS = ("DDS", "DiffPIR", "DPS", "RED-Diff", "PredictorCorrector", "PnP-HQS", "DDRM", "DDNM")
DECOMPOSING = ("DDRM", "DDNM")  # they need a singular value decomposition, which eight coils have not


@dataclass(frozen=True)
class Scene:
    """What the samplers are timed on.

    Args:
        denoiser: the U-Net, complex images.
        coils, single: MRI with eight coils, and with one.
    """

    denoiser: NetworkDenoiser
    coils: Problem
    single: Problem


def scene(size: int) -> Scene:
    torch.manual_seed(0)
    network = UNet(2)
    torch.nn.init.normal_(network.last.weight, std=0.01)  # zero at the start of training
    denoiser = NetworkDenoiser(network.requires_grad_(False), EDM(), "edm", "real2").to(device())
    image, maps = object_and_maps(8, size)
    mask = sampling(size, calibration=min(24, size // 4))
    problems = []
    for operator in (Sense(maps[None], mask), MaskedFourier(mask)):
        y = Gaussian(SIGMA).sample(operator(image[None]), seeded(where=torch.device("cpu")))
        kept = torch.where(mask, y, 0).to(device())
        problems.append(Problem(operator.to(device()), kept, Gaussian(SIGMA)))
    return Scene(denoiser, *problems)


def sampler(name: str, there: Scene, steps: int) -> Callable[[], Tensor]:
    """One of SAMPLERS, of so many iterations."""
    noise, prior = seeded(), there.denoiser
    problem = there.single if name in DECOMPOSING else there.coils
    common: dict[str, Any] = {"iterations": steps, "generator": noise}
    solvers: dict[str, tuple[Any, Any]] = {
        "DDS": (DDS(**common), prior),
        "DiffPIR": (DiffPIR(**common), prior),
        "DPS": (DPS(**common), prior),
        "RED-Diff": (Variational(iterations=steps), REDDiff(prior, generator=noise)),
        "PredictorCorrector": (PredictorCorrector(**common), prior),
        "PnP-HQS": (HQS(iterations=steps), PlugAndPlay(prior)),
        "DDRM": (DDRM(**common), prior),
        "DDNM": (DDNM(**common), prior),
    }
    algorithm, belief = solvers[name]
    return lambda: algorithm.solve(problem, belief).x


# --- overhead


def watched(there: Scene) -> tuple[Scene, Stopwatch]:
    """The scene, whose network and operators tell a stopwatch. The denoiser's own scaling counts as the sampler's."""
    watch = Stopwatch()
    watch.watch(there.denoiser.network, "network")
    for problem in (there.coils, there.single):
        watch.watch(problem.operator, "operator", "adjoint", "normal", "solve_normal")
    fourier: Any = there.single.operator
    decomposition = watch.timed("operator", fourier.spectrum)
    fourier.spectrum = lambda: WatchedSpectrum(decomposition(), watch, "operator")
    return there, watch


def overhead_rows(size: int, steps: int, repeats: int, memory: bool) -> list[Row]:
    there, watch = watched(scene(size))
    jobs = {name: sampler(name, there, steps) for name in SAMPLERS}
    for job in jobs.values():
        job()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            watch.reset()
            start = now()
            job()
            total = now() - start
            network = watch.seconds["network"] + watch.seconds["network, backward"]
            operator = watch.seconds["operator"] + watch.seconds["operator, backward"]
            parts = {"total": total, "network": network / total, "operator": operator / total}
            found[name].append(parts | {"rest": 1 - (network + operator) / total, "calls": watch.calls["network"]})
    rows = []
    for name, runs in found.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        note = ", ".join(f"{key} {middle[key]:.1%}" for key in ("network", "operator", "rest"))
        peak = memory_of(partial(built, name, size, steps)) if memory else None
        case = f"overhead, {name}, {int(middle['calls'])} evaluations"
        rows.append(Row(case, "invreg", middle["total"], peak, note))
    if memory:
        rows.append(
            Row("overhead", "network alone", None, memory_of(partial(built, "", size, steps)), "one evaluation")
        )
    return rows


def built(name: str, size: int, steps: int) -> Job:
    """A sampler made anew, or one evaluation of the network where the name is empty."""
    there = scene(size)
    if name:
        return sampler(name, there, steps)
    image = torch.zeros(1, size, size, dtype=torch.complex64, device=device())
    return lambda: there.denoiser(image, 1.0)


def memory_of(build: Callable[[], Job]) -> float | None:
    """Peak memory in MiB: on a GPU what torch allocates, else what a fresh process needs."""
    if device().type == "cpu":
        return peak_memory(build)
    with torch.no_grad():
        job = build()
        job()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


# --- batches


def batch_rows(size: int, steps: int, count: int, repeats: int) -> list[Row]:
    """Chains in one batch, in two and one by one. Sums over coils round as the batch's size has them grouped."""
    there = scene(size)
    one = there.coils

    def chains(width: int) -> Tensor:
        problem = replace(one, y=one.y.expand(width, *one.y.shape[1:]))
        found = []
        for first in range(0, count, width):
            noise = [chain_generator(0, k, device=device()) for k in range(first, first + width)]
            found.append(DDS(iterations=steps, generator=noise).solve(problem, there.denoiser).x)
        return torch.cat(found)

    widths = (count, count // 2, 1)
    images = {width: chains(width) for width in widths}
    largest = images[1].abs().max()
    seconds = race({str(width): partial(chains, width) for width in widths}, repeats, warmup=0)
    rows = []
    for width in widths:
        gap = float((images[width] - images[1]).abs().max() / largest)
        note = "" if width == 1 else f"differs from one by one by {gap:.1e} of the largest"
        rows.append(
            Row(
                f"DDS, {count} chains, per image", f"invreg, batches of {width}", seconds[str(width)] / count, note=note
            )
        )
    return rows


# --- speed beside deepinv


class Counted(Denoiser):
    """Another denoiser that counts its evaluations."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    @property
    def sigma_range(self) -> tuple[float, float]:
        return self.inner.sigma_range

    @property
    def image_scale(self) -> float:
        return self.inner.image_scale

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.calls += 1
        return self.inner(x, sigma)


def physics_of(operator: LinearOperator, sigma: float) -> Any:
    """deepinv's own operator of the same kind, with its noise level."""
    import deepinv

    physics, noise = deepinv.physics, deepinv.physics.GaussianNoise(sigma)
    grid = operator.signal_shape
    if isinstance(operator, Mask):
        return physics.Inpainting((1, *grid), mask=operator.mask[None].float(), noise_model=noise, device=device())
    mask: Any = operator.sampled()
    mask = mask.float().expand(1, *grid) if mask.ndim == 3 else mask[:, 0].float().expand(1, *grid)
    mask = mask[:, None].expand(1, 2, *grid).contiguous()
    if isinstance(operator, Sense):
        return physics.MultiCoilMRI(mask=mask, coil_maps=operator.maps, noise_model=noise, device=device())
    return physics.MRI(mask=mask, img_size=grid, noise_model=noise, device=device())


def deepinv_sampler(name: str, denoiser: Any, problem: Problem, levels: Sequence[float], weight: float = 1.0) -> Any:
    """deepinv's sampler, ready for (y, physics); `levels` are those of DDRM, and count the steps of the others."""
    import deepinv

    n = len(levels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "DDRM":
            return deepinv.sampling.DDRM(denoiser, sigmas=list(levels))
        if name == "DiffPIR":
            fidelity = deepinv.optim.data_fidelity.L2()
            sigma = float(problem.noise.sigma)  # type: ignore[attr-defined]
            return deepinv.sampling.DiffPIR(
                denoiser, fidelity, sigma=sigma, max_iter=n, zeta=1.0, lambda_=2 * weight, device=device()
            )
        # of n times it evaluates the network at n - 1
        return deepinv.sampling.DPS(denoiser, num_steps=n + 1, weight=weight, device=device())


def levels_of_diffpir(steps: int) -> tuple[float, ...]:
    """The noise levels that deepinv's DiffPIR takes, for values from 0 to 1."""
    import deepinv

    model = deepinv.sampling.DiffPIR(torch.nn.Identity(), deepinv.optim.data_fidelity.L2(), max_iter=steps)
    return tuple(float(model.sigmas[k]) / 2 for k in model.seq)


def geometric(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(first * (last / first) ** (k / max(count - 1, 1)) for k in range(count))


def speed_rows(size: int, steps: int, repeats: int) -> list[Row]:
    there = scene(size)
    rows = []
    for name, problem, kind in (
        ("DDRM", there.single, "one coil"),
        ("DiffPIR", there.single, "one coil"),
        ("DiffPIR", there.coils, "8 coils"),
        ("DPS", there.single, "one coil"),
        ("DPS", there.coils, "8 coils"),
    ):
        case = f"{name}, {steps} steps, {kind}, {size} x {size}"
        ours = {"DDRM": DDRM, "DiffPIR": DiffPIR, "DPS": DPS}[name](iterations=steps, generator=seeded())
        counted = Counted(there.denoiser)
        jobs: dict[str, Job] = {"invreg": partial(ours.solve, problem, counted)}
        if peer("deepinv"):
            bridged, physics = as_deepinv(counted, "real2"), physics_of(problem.operator, SIGMA)
            y, levels = real_view(problem.y), geometric(20.0, 0.005, steps)
            jobs["deepinv"] = partial(deepinv_sampler(name, bridged, problem, levels), y, physics)
        notes = {}
        for one, job in jobs.items():
            counted.calls = 0
            job()
            notes[one] = f"{counted.calls} evaluations"
        seconds = race(jobs, repeats, warmup=0)
        rows += [Row(case, one, seconds[one], note=notes[one]) for one in jobs]
        rows += [] if "deepinv" in jobs else [missing(case, "deepinv")]
    return rows


# --- exactness beside deepinv


def posterior_rows(count: int, quick: bool) -> list[Row]:
    # the DiffPIR of deepinv clips to 0 and 1, which the second field keeps by itself
    wide, narrow = known(0.35, 0.1, count), known(0.12, 0.035, count)
    short, long = (10, 20) if quick else (100, 1000)
    rows = []
    for steps in (10,) if quick else (20, 100):
        rows += rows_against(f"DDRM, {steps} steps", "DDRM", wide, geometric(20.0, 0.005, steps))
    for weight in (3.5, 0.5):
        levels = levels_of_diffpir(short) if peer("deepinv") else geometric(78.6, 0.005, short)
        rows += rows_against(f"DiffPIR, {short} steps, strength {weight}", "DiffPIR", narrow, levels, weight)
    # deepinv's weight counts less: its guidance is part of the score and so is scaled by the step
    pairs = ((1.0, 1.0),) if quick else ((0.3, 0.3), (1.0, 1.0), (3.0, 3.0), (0.3, 30.0), (1.0, 100.0), (3.0, 300.0))
    levels = geometric(78.6, 0.005, long)
    for weight, other in pairs:
        rows += rows_against(f"DPS, {long} steps, weight {weight:g}, {other:g}", "DPS", wide, levels, weight, other)
    return rows


def rows_against(
    case: str, name: str, there: Known, levels: Sequence[float], weight: float = 1.0, other: float | None = None
) -> list[Row]:
    """Our samples and theirs, and what they are worth; on a CPU both get the same noise. `other` is their weight."""
    other = weight if other is None else other
    options: dict[str, Any] = {"iterations": len(levels), "schedule": Levels(tuple(levels)), "generator": seeded(7)}
    algorithms: dict[str, Any] = {
        "DDRM": DDRM(**options),
        "DiffPIR": DiffPIR(**options, strength=weight),
        "DPS": DPS(**options, weight=weight),
    }
    problem, start = there.repeated, now()
    ours = algorithms[name].solve(problem, there.prior).x
    rows = [Row(case, "invreg", now() - start, note=quality(ours, there))]
    if not peer("deepinv"):
        return [*rows, missing(case, "deepinv")]
    model = deepinv_sampler(name, as_deepinv(there.prior, "channels"), problem, levels, other)
    physics = physics_of(problem.operator, float(problem.noise.sigma))  # type: ignore[attr-defined]

    def theirs(label: str) -> Row:
        torch.manual_seed(7)
        start = now()
        x = model(problem.y[:, None].contiguous(), physics)[:, 0].detach().float()
        seconds, gap = now() - start, float((x - ours).abs().max())
        return Row(case, label, seconds, note=f"{quality(x, there)}, differs by {gap:.1e}")

    rows.append(theirs("deepinv"))
    if name == "DDRM":  # which divides its noise by sqrt(2)
        plain = torch.randn_like
        with mock.patch.object(torch, "randn_like", lambda x: math.sqrt(2) * plain(x)):
            rows.append(theirs("deepinv, its noise times sqrt(2)"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("overhead", "batch", "speed", "posterior")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--threads", type=int, default=1, help="for torch, OpenMP and numba alike")
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many is shown")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="which parts to run")
    options = parser.parse_args()
    use_threads(options.threads)
    warnings.simplefilter("ignore")
    print(machine() + f", {torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}")
    quick, size = options.quick, 32 if options.quick else 128
    steps, repeats = (4, 1) if quick else (20, options.repeats)
    with torch.no_grad():
        jobs: dict[str, Callable[[], list[Row]]] = {
            "overhead": lambda: overhead_rows(size, steps, repeats, not quick),
            "batch": lambda: batch_rows(size, steps, 4 if quick else 16, min(repeats, 3)),
            "speed": lambda: speed_rows(size, steps, repeats),
            "posterior": lambda: posterior_rows(50 if quick else 500, quick),
        }
        for part in options.only:
            print("\n" + table(jobs[part]()))


if __name__ == "__main__":
    main()
