"""Sparse-view and limited-angle CT of heads: learned priors against filtered back-projection, wavelets and TV.

    python examples/experiments/priors_ct.py --head cranium --cranium matrix.dat --out priors_ct.json
    python examples/experiments/priors_ct.py --head drawn --out priors_ct.json

cranium: axial slices of a real head that no prior was trained on, 108 x 256 x 256 of 0.957 mm in HU, as Debian's
invesalius-examples carries it within Cranium.inv3, a tar archive. drawn: random heads such as the prior was trained on.
Scans are simulated off the grid: parallel beams through images twice as fine as those of the reconstruction, 128 x 128,
three rays to a detector, 5e4 photons each. Weights of wavelets and total variation are those of the best mean PSNR over
three drawn heads. Errors are taken in the window of soft tissue, 40 +- 200 HU. Runs that are done are kept in the file
and not done again.
"""

import argparse
import math
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from compared import Made, Scanned, Setting, Study, add_options, compare, learned, prior
from torch import Tensor
from torch.nn.functional import pad

from invreg.algorithms import FISTA, PDHG, filtered_backprojection
from invreg.io import hu_to_mu, mu_to_hu
from invreg.metrics import hu_window
from invreg.noise import Gaussian
from invreg.operators import ParallelBeam, Wavelet
from invreg.problem import Problem
from invreg.regularizers import NonNegative, SumOfTerms, TotalVariation, WaveletL1
from invreg.simulate import ct_scan
from invreg.training.random_ct import computed_tomography
from invreg.training.random_images import RandomImages

FINE, PIXEL, MU_WATER, PHOTONS = 256, 0.95703, 0.02, 5e4
RIM = 8  # pixels of air around a drawn head
TASKS = {"24 views": (24, 180.0), "48 views": (48, 180.0), "120 degrees": (96, 120.0)}
WEIGHTS = {"TV": (4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0), "wavelet": (4.0, 8.0, 16.0, 32.0, 64.0)}
NUMBERS = Setting(anneal=(2.5e-5, 1.0), step_size=0.05, sigma_max=0.3, weight=200.0, dps=6.0, inner=20, tv=0.2)


def cranium(path: Path, every: int) -> Mapping[str, Tensor]:
    """Slices of the real head, attenuation in 1/mm, (1, y, x)."""
    volume = torch.from_numpy(np.fromfile(path, np.int16).reshape(108, FINE, FINE)).float()
    return {f"z{z}": hu_to_mu(volume[z], MU_WATER).clamp_min(0)[None] for z in range(5, 95, every)}


def drawn(count: int, seed: int) -> Mapping[str, Tensor]:
    """Random heads of the size of the real one."""
    sys.path.append(str(Path(__file__).parents[1] / "priors"))
    from averaged_brains import human

    images = RandomImages(
        [human()], size=FINE - 2 * RIM, batch=1, steps=count, seed=seed, phantoms=0.0, paint=computed_tomography,
        pixel=(PIXEL, PIXEL),
    )  # fmt: skip
    return {f"{seed}/{i}": pad(images[i][0], (RIM, RIM, RIM, RIM)) * MU_WATER for i in range(count)}


def scanned(attenuation: Tensor, task: str, seed: int) -> Scanned:
    """The truth and the problem, both in units of the attenuation of water."""
    views, arc = TASKS[task]
    angles = torch.arange(views, dtype=torch.float64) * math.radians(arc) / views
    scan = ct_scan(attenuation, (PIXEL, PIXEL), angles, photons=PHOTONS, generator=torch.Generator().manual_seed(seed))
    pitch, side = scan.detector_spacing, scan.truth.shape[-1]
    operator = ParallelBeam(
        (side, side), scan.angles.float(), scan.sinogram.shape[-1], pixel_size=pitch, detector_pitch=pitch
    )
    problem = Problem(operator, scan.sinogram / MU_WATER, Gaussian(scan.sigma / MU_WATER))
    return Scanned(scan.truth / MU_WATER, problem, lambda x: hu_window(mu_to_hu(x * MU_WATER, MU_WATER)))


def back_projected(problem: Problem) -> Tensor:
    operator = problem.operator
    assert isinstance(operator, ParallelBeam)
    return filtered_backprojection(operator, problem.y, "hann")


def classical(kind: str, weight: float, problem: Problem) -> Tensor:
    """The image under total variation or wavelets, without negative values."""
    start = back_projected(problem).clamp_min(0)
    if kind == "TV":
        terms = SumOfTerms(TotalVariation(weight), NonNegative())
        return PDHG(iterations=200, rtol=1e-4, balance=0.1).solve(problem, terms, start).x
    wavelet = WaveletL1(Wavelet(tuple(start.shape[1:])), weight)
    return FISTA(iterations=150, rtol=1e-4).solve(problem, wavelet, start).x.clamp_min(0)


def methods(problem: Problem, weights: Mapping[str, float], name: str = "head-ct") -> Made:
    """All that are compared."""
    fbp = back_projected(problem)
    return {
        "FBP": (0, lambda: fbp),
        "wavelet": (0, lambda: classical("wavelet", weights["wavelet"], problem)),
        "TV": (0, lambda: classical("TV", weights["TV"], problem)),
        **learned(problem, prior(name), fbp, weights["TV"], NUMBERS),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", choices=("cranium", "drawn"), default="drawn")
    parser.add_argument("--cranium", type=Path, default=Path("matrix.dat"))
    parser.add_argument("--out", type=Path, default=Path("priors_ct.json"))
    add_options(parser, "head-ct", TASKS, 8)
    options = parser.parse_args()
    study = Study(
        options.head if options.prior == parser.get_default("prior") else f"{options.head}, {options.prior}",
        cranium(options.cranium, options.every) if options.head == "cranium" else drawn(4, 8),
        lambda: list(drawn(3, 7).values()),
        lambda _: WEIGHTS,
        scanned,
        classical,
        partial(methods, name=options.prior),
    )
    compare(study, options.out, options.tasks.split(","), options.methods.split(",") if options.methods else ())


if __name__ == "__main__":
    main()
