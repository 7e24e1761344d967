"""A brain scanned four times too fast: total variation, and draws from the posterior under the learned prior."""

import torch

from invreg import config
from invreg.algorithms import DDS, PDHG, judge, posterior
from invreg.assets import head_slice
from invreg.metrics import psnr
from invreg.noise import Gaussian
from invreg.operators import Sense
from invreg.problem import Problem
from invreg.regularizers import TotalVariation
from invreg.simulate import cartesian_mask, mri_scan


def main(quick: bool = False) -> dict[str, float]:
    """PSNR in dB of total variation, of one draw and of the mean of several."""
    side, view, samples, steps = (80, 170.0, 2, 15) if quick else (128, 230.0, 4, 50)  # view: of field, mm
    generator = torch.Generator().manual_seed(0)
    mask = cartesian_mask(side, 4, side // 16, "variable-density", generator)
    head = head_slice()  # of a brain that the prior was not trained on
    scan = mri_scan(
        head.image, head.voxel_size, mask, field_of_view=(view, view), matrix=(side, side), generator=generator
    )
    problem = Problem(Sense(scan.maps, scan.mask), scan.kspace, Gaussian(scan.sigma))
    prior = config.shipped_prior("brain")
    tv = PDHG(iterations=150).solve(problem, TotalVariation(10.0)).x
    one = DDS(iterations=steps, generator=generator).solve(problem, prior).x
    many = posterior(DDS(iterations=steps), problem, prior, samples=samples)
    print(f"spread of the draws, root mean square: {float(many.std.square().mean().sqrt()):.4f}")
    sizes = config.shipped_info("brain")["pixel size (mm)"]
    found = judge(problem, many.mean, tv, pixel_size=scan.voxel_size, trained_sizes=sizes)
    print(f"doubts: {found.reasons[0] or 'none'}")
    images = {"TV": tv, "DDS": one, "DDS, mean": many.mean}
    return {name: float(psnr(x, scan.truth)) for name, x in images.items()}


if __name__ == "__main__":
    print(main())
