"""How reconstructions of many slices by many methods are compared: what is run, what is measured of it, the table."""

import argparse
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, Generic, TypeVar

import torch
from runs import Numbers, do, read
from torch import Tensor

from invreg import config
from invreg.algorithms import ADMM, DDS, DPS, HQS, DiffPIR, Variational, judge, posterior
from invreg.interfaces import Denoiser, LinearOperator
from invreg.lanczos import operator_norm
from invreg.metrics import nrmse, psnr, ssim
from invreg.problem import Problem
from invreg.regularizers import PlugAndPlay, REDDiff, TotalVariation, published_weight

S = TypeVar("S")
SAMPLES = 8
HEADS = ("method", "PSNR, dB", "above TV, dB", "least above TV", "SSIM", "NRMSE", "chi-square", "from TV",
         "spread / error", "evaluations", "seconds")  # fmt: skip
Made = Mapping[str, tuple[int, Callable[[], Any]]]
"""Of each method: evaluations of the network, and what makes the image or its posterior."""


@dataclass(frozen=True, eq=False)
class Scanned:
    """A slice and its scan; `shown` turns an image and the truth, both (1, y, x), into what errors are taken of."""

    truth: Tensor
    problem: Problem
    shown: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """The numbers of the learned methods that differ between kinds of scans.

    Args:
        anneal: first and last weight of half-quadratic splitting.
        step_size, sigma_max, weight: RED-Diff's, its weight as the authors count it.
        dps: weight of DPS, over the norm of A.
        inner: conjugate gradients of each step of DDS.
        tv: fraction of the tuned weight of total variation that the hybrid has.
    """

    anneal: tuple[float, float]
    step_size: float
    sigma_max: float
    weight: float
    dps: float
    inner: int
    tv: float


def learned(problem: Problem, d: Denoiser, back: Tensor, tv: float, numbers: Setting) -> Made:
    """The methods with a denoiser; back: (1, y, x), a first image; tv: tuned weight of total variation."""
    first, last = numbers.anneal
    red = REDDiff(d, published_weight(problem, back, numbers.weight), sigma_max=numbers.sigma_max)
    dds = DDS(inner_iterations=numbers.inner)
    hybrid = DDS(regularizer=TotalVariation(numbers.tv * tv), inner_iterations=numbers.inner)
    assert isinstance(problem.operator, LinearOperator)
    dps = DPS(iterations=100, weight=numbers.dps / float(operator_norm(problem.operator, back)))
    draws = partial(posterior, problem=problem, prior=d, samples=SAMPLES, batch=SAMPLES)
    return {
        "PnP (HQS)": (50, lambda: HQS(iterations=50, first=first, last=last).solve(problem, PlugAndPlay(d)).x),
        "PnP (ADMM)": (20, lambda: ADMM(iterations=20).solve(problem, PlugAndPlay(d)).x),
        "RED-Diff": (100, lambda: Variational(iterations=100, step_size=numbers.step_size).solve(problem, red).x),
        "DPS": (100, lambda: dps.solve(problem, d).x),
        "DiffPIR": (50, lambda: DiffPIR(iterations=50).solve(problem, d).x),
        "DDS": (50, lambda: dds.solve(problem, d).x),
        "DDS (mean of 8)": (50 * SAMPLES, lambda: draws(dds)),
        "DDS + TV": (50, lambda: hybrid.solve(problem, d).x),
    }


def best(candidates: Sequence[float], solve: Callable[[float, Problem], Tensor], slices: Sequence[Scanned]) -> Numbers:
    """The weight of the best mean PSNR over slices."""
    means = {
        weight: sum(_psnr(solve(weight, one.problem), one) for one in slices) / len(slices) for weight in candidates
    }
    chosen = max(means, key=means.__getitem__)
    if chosen in (candidates[0], candidates[-1]):
        print(f"the best weight, {chosen}, is at an end of {candidates}")
    return {"weight": chosen, "PSNR": means[chosen]}


def _psnr(x: Tensor, scanned: Scanned) -> float:
    return float(psnr(scanned.shown(x), scanned.shown(scanned.truth)))


def measured(evaluations: int, make: Callable[[], Any], scanned: Scanned, reference: Tensor, seed: int) -> Numbers:
    """How good an image is, how far it is from the reference, without learning, and what it cost."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    made = make()
    seconds = time.perf_counter() - start
    x, problem = (made if isinstance(made, Tensor) else made.mean), scanned.problem
    judged = judge(problem, x, reference)
    image, truth = scanned.shown(x), scanned.shown(scanned.truth)
    per_component = 2 if x.is_complex() else 1
    spread = float("nan")
    if not isinstance(made, Tensor):
        error = ((x.abs() if x.is_complex() else x) - scanned.truth).square().mean().sqrt()
        spread = float(made.std.square().mean().div(per_component).sqrt() / error)
    return {
        "PSNR": float(psnr(image, truth)),
        "SSIM": float(ssim(image, truth)),
        "NRMSE": float(nrmse(image, truth)),
        "chi-square": float(judged.chi_square),
        "apart": float(judged.disagreement),
        "spread": spread,
        "evaluations": evaluations,
        "seconds": seconds,
    }


@dataclass(frozen=True, eq=False)
class Study(Generic[S]):
    """What is scanned and compared.

    Args:
        name: of what is scanned, and by which prior it is seen.
        slices: by name.
        tuning: makes the slices that weights are tuned on.
        candidates: the weights that are tried for a task, by the kind of image.
        scanned: (slice, task, seed) -> its scan.
        classical: (kind, weight, problem) -> the image of a kind that has a weight; "TV" is what all are held against.
        methods: (problem, tuned weights by kind) -> all that are compared.
    """

    name: str
    slices: Mapping[str, S]
    tuning: Callable[[], Sequence[S]]
    candidates: Callable[[str], Mapping[str, Sequence[float]]]
    scanned: Callable[[S, str, int], Scanned]
    classical: Callable[[str, float, Problem], Tensor]
    methods: Callable[[Problem, Mapping[str, float]], Made]

    def tuned(self, kind: str, task: str) -> Numbers:
        slices = [self.scanned(one, task, 100 + i) for i, one in enumerate(self.tuning())]
        return best(self.candidates(task)[kind], partial(self.classical, kind), slices)


def compare(study: Study[Any], out: Path, tasks: Sequence[str], chosen: Sequence[str] = ()) -> None:
    """Do what is not done yet of (task, slice, method), and print a table for each task.

    Args:
        study: what is compared.
        out: the file of the runs.
        tasks: by name.
        chosen: methods by name; default all.
    """
    do(out, {f"weight/{k}/{t}": partial(study.tuned, k, t) for t in tasks for k in study.candidates(t)})
    weights = {
        t: {k: float(read(out)["runs"][f"weight/{k}/{t}"]["weight"]) for k in study.candidates(t)} for t in tasks
    }
    slices = list(study.slices)

    @lru_cache(1)
    def scan(task: str, index: int) -> tuple[Scanned, Tensor]:
        """A scan, and its image by total variation."""
        one = study.scanned(study.slices[slices[index]], task, index)
        return one, study.classical("TV", weights[task]["TV"], one.problem)

    def job(task: str, index: int, method: str) -> Numbers:
        one, reference = scan(task, index)
        evaluations, make = study.methods(one.problem, weights[task])[method]
        return measured(evaluations, make, one, reference, index)

    methods = list(chosen or study.methods(scan(tasks[0], 0)[0].problem, weights[tasks[0]]))
    runs = {f"{study.name}/{t}/{s}/{m}": partial(job, t, i, m)
            for t in tasks for i, s in enumerate(slices) for m in methods}  # fmt: skip
    found = do(out, runs)["runs"]
    for t in tasks:
        print(f"\n{t}, {len(slices)} slices:\n\n" + f"| {' | '.join(HEADS)} |\n" + "|---" * len(HEADS) + "|")
        for m in methods:
            print(
                _row(m, [(found[f"{study.name}/{t}/{s}/{m}"], found.get(f"{study.name}/{t}/{s}/TV")) for s in slices])
            )


def _row(method: str, runs: Sequence[tuple[Numbers, Numbers | None]]) -> str:
    """Means over slices, standard deviations for what is in dB, the median of the seconds."""

    def spread(values: Sequence[float], sign: str = "") -> str:
        return f"{mean(values):{sign}.2f} +- {stdev(values) if len(values) > 1 else 0:.2f}"

    def middle(key: str, digits: int) -> str:
        values = [one[key] for one, _ in runs if not math.isnan(one[key])]
        return f"{mean(values):.{digits}f}" if values else ""

    gains = [one["PSNR"] - tv["PSNR"] for one, tv in runs if tv is not None and method != "TV"]
    cells = [
        method,
        spread([one["PSNR"] for one, _ in runs]),
        *((spread(gains, "+"), f"{min(gains):+.2f}") if gains else ("", "")),
        *(middle(key, digits) for key, digits in (("SSIM", 3), ("NRMSE", 3), ("chi-square", 2))),
        middle("apart", 3) if method != "TV" else "",
        middle("spread", 2),
        str(runs[0][0]["evaluations"] or ""),
        f"{median(one['seconds'] for one, _ in runs):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def add_options(parser: argparse.ArgumentParser, prior: str, tasks: Iterable[str], every: int) -> None:
    """What both tables of learned priors can be asked for."""
    parser.add_argument("--every", type=int, default=every, help="take every so manyth slice")
    parser.add_argument("--prior", default=prior)
    parser.add_argument("--methods", default="", help="comma-separated; default all")
    parser.add_argument("--tasks", default=",".join(tasks), help="comma-separated; default all")


@cache
def prior(name: str) -> Denoiser:
    return config.shipped_prior(name).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
