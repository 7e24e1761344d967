"""A learned proximal network against total variation: blur and sparse-view tomography of the shipped brain slices.

    python examples/experiments/lpn_images.py --out lpn_images.json

Slices of Colin27, 1 mm, which the network has not seen, their largest value 1. blur: Gaussian, 1.5 pixels, noise 0.02.
30 views: parallel beams, noise 1 % of the largest line integral. Weights of total variation, and rho of ADMM with the
network, are those of the best mean PSNR over three slices of ICBM152. Runs that are done are kept in the file and not
done again.
"""

import argparse
import math
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from compared import Made, Scanned, Study, compare
from priors_mri import axial, icbm152
from torch import Tensor
from torch.nn.functional import avg_pool2d

from invreg import config
from invreg.algorithms import ADMM, PDHG, filtered_backprojection
from invreg.algorithms.smooth import curvature
from invreg.assets import BRAIN_SLICES, HEAD_SLICES, brain_slice, head_slice
from invreg.interfaces import ConvexPotential
from invreg.noise import Gaussian
from invreg.operators import Blur, ParallelBeam
from invreg.operators.blur import gaussian_kernel
from invreg.problem import Problem
from invreg.random import draw
from invreg.regularizers import LearnedProximal, TotalVariation

SIDE = 160
TASKS = ("blur", "30 views")
RHO = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # over the curvature of the misfit; proved to converge from 1 on
WEIGHTS = {"blur": (1.25, 2.5, 5.0, 10.0, 20.0), "30 views": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)}


def squared(image: Tensor) -> Tensor:
    """The middle of an image, or the image amid zeros, (1, SIDE, SIDE)."""
    for axis in (-2, -1):
        excess = image.shape[axis] - SIDE
        if excess > 0:
            image = image.narrow(axis, excess // 2, SIDE)
    rows, columns = (SIDE - n for n in image.shape[-2:])
    return torch.nn.functional.pad(image, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def scanned(truth: Tensor, task: str, seed: int) -> Scanned:
    operator: Blur | ParallelBeam = Blur(gaussian_kernel(1.5), (SIDE, SIDE))
    sigma = 0.02
    if task == "30 views":
        angles = torch.arange(30) * math.pi / 30
        operator = ParallelBeam((SIDE, SIDE), angles, 230)
        sigma = 0.01 * float(operator(truth).max())
    clean = operator(truth)
    y = clean + sigma * draw(clean, torch.Generator().manual_seed(seed))
    return Scanned(truth, Problem(operator, y, Gaussian(sigma)), lambda x: x)


@cache
def network() -> ConvexPotential:
    return config.shipped_potential("brain-lpn")


def first(problem: Problem) -> Tensor:
    operator = problem.operator
    return filtered_backprojection(operator, problem.y, "hann") if isinstance(operator, ParallelBeam) else problem.y


def solve(kind: str, weight: float, problem: Problem) -> Tensor:
    """The image under total variation, or under the network at rho = weight times the curvature."""
    start = first(problem)
    if kind == "TV":
        return PDHG(iterations=200, rtol=1e-4).solve(problem, TotalVariation(weight), start).x
    rho = weight * float(curvature(problem, start).max())
    prior = LearnedProximal(network(), step=0.1**2).at_step(1 / rho)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "convergence with a learned prox")
        return ADMM(iterations=60, rho=rho, balance=False, relaxation=1.0).solve(problem, prior, start).x


def methods(problem: Problem, weights: Mapping[str, float]) -> Made:
    """All that are compared."""
    return {
        "blurred, or FBP": (0, lambda: first(problem)),
        "TV": (0, lambda: solve("TV", weights["TV"], problem)),
        "LPN (ADMM)": (60, lambda: solve("LPN", weights["LPN"], problem)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("lpn_images.json"))
    out = parser.parse_args().out
    images = [avg_pool2d(brain_slice(k).image, 2) for k in range(BRAIN_SLICES)]
    images += [head_slice(k).image for k in range(HEAD_SLICES)]
    study = Study(
        "slices",
        {str(i): squared(image) for i, image in enumerate(images)},
        lambda: [squared(image) for image, _ in list(axial(icbm152(), 30).values())[:3]],
        lambda task: {"TV": WEIGHTS[task], "LPN": RHO},
        scanned,
        solve,
        methods,
    )
    compare(study, out, TASKS)


if __name__ == "__main__":
    main()
