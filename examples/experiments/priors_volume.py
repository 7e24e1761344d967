"""Accelerated 3D MRI by a prior of slices: slice by slice, and with total variation between the slices.

    python examples/experiments/priors_volume.py --colin27 ch2.nii.gz --out priors_volume.json

Stacks of 16 axial slices, 2 mm apart, of a brain that the prior was not trained on (Debian: mricron-data), each slice
scanned off the grid as in priors_mri.py. Their transform along z is 3D k-space, of which lines along x are kept: for
every kz others, drawn at random about 8 calibration lines. Weights of total variation, in 3D, and of that between
slices are those of the best PSNR on a stack of icbm152. Runs that are done are kept in the file and not done again.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from compared import Made, Scanned, Study, compare, prior
from priors_mri import CALIBRATION, SIDE, SIGMA, VIEW, icbm152, planes
from torch import Tensor

from invreg.algorithms import ADMM, DDS, PDHG
from invreg.models import Slices
from invreg.noise import Gaussian
from invreg.operators import Sense, centred_fft
from invreg.problem import Problem
from invreg.regularizers import PlugAndPlay, TotalVariation
from invreg.simulate import cartesian_mask, mri_scan

DEPTH, GAP = 16, 2
TASKS = {"x4": 4, "x8": 8}
WEIGHTS = {"TV": (2.5, 5.0, 10.0, 20.0, 40.0), "between": (0.3, 1.0, 3.0, 10.0, 30.0)}


def stacks(path: Path) -> Mapping[str, Tensor]:
    """Neighbouring slices, (z, y, x), by the name of the first; the brightest voxel of each stack is 1."""
    slices = planes(path, GAP)
    names = list(slices)
    found = {}
    for first in range(0, len(names) - DEPTH + 1, DEPTH):
        stack = torch.stack([slices[name] for name in names[first : first + DEPTH]])
        found[names[first]] = stack / stack.max()
    return found


def scanned(stack: Tensor, task: str, seed: int) -> Scanned:
    generator = torch.Generator().manual_seed(seed)
    everything = torch.ones(SIDE, dtype=torch.bool)
    scans = [
        mri_scan(
            one[None], (1.0, 1.0), everything, field_of_view=(VIEW, VIEW), matrix=(SIDE, SIDE), sigma=SIGMA,
            generator=generator,
        )
        for one in stack
    ]  # fmt: skip
    maps = torch.stack([scan.maps for scan in scans], 2)
    planes = torch.stack([scan.kspace for scan in scans], -1)
    kspace = centred_fft(planes, dim=1).movedim(-1, 2)
    lines = [cartesian_mask(SIDE, TASKS[task], CALIBRATION, "random", generator) for _ in stack]
    mask = torch.stack(lines)[:, :, None]
    problem = Problem(Sense(maps, mask, dim=3), torch.where(mask, kspace, 0), Gaussian(SIGMA))
    return Scanned(torch.stack([scan.truth for scan in scans], 1), problem, torch.abs)


def solve(kind: str, weight: float, problem: Problem) -> Tensor:
    """The volume under total variation in 3D, or by DDS with total variation between its slices."""
    if kind == "TV":
        return PDHG(iterations=150, rtol=1e-4).solve(problem, TotalVariation(weight, dim=3)).x
    generator = torch.Generator().manual_seed(0)
    between = TotalVariation(weight, dim=3, along=(0,))
    return DDS(inner_iterations=10, regularizer=between, generator=generator).solve(problem, Slices(prior("brain"))).x


def methods(problem: Problem, weights: Mapping[str, float]) -> Made:
    """All that are compared."""
    slices = Slices(prior("brain"))
    return {
        "zero-filling": (0, lambda: problem.backprojection() * SIGMA**2),
        "TV": (0, lambda: solve("TV", weights["TV"], problem)),
        "PnP (ADMM)": (20 * DEPTH, lambda: ADMM(iterations=20).solve(problem, PlugAndPlay(slices)).x),
        "DDS": (50 * DEPTH, lambda: DDS(inner_iterations=10).solve(problem, slices).x),
        "DDS + TV between slices": (50 * DEPTH, partial(solve, "between", weights["between"], problem)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--colin27", type=Path, default=Path("/usr/share/mricron/templates/ch2.nii.gz"))
    parser.add_argument("--out", type=Path, default=Path("priors_volume.json"))
    options = parser.parse_args()
    study = Study(
        "colin27",
        stacks(options.colin27),
        lambda: list(stacks(icbm152()).values())[1:2],
        lambda _: WEIGHTS,
        scanned,
        solve,
        methods,
    )
    compare(study, options.out, list(TASKS))


if __name__ == "__main__":
    main()
