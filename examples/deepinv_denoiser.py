"""Plug-and-play reconstruction with a denoiser of deepinv (needs `pip install 'invreg[deepinv]'`)."""

import torch

from invreg.algorithms import HQS
from invreg.deepinv_bridge import from_deepinv, guard_torchvision
from invreg.metrics import psnr
from invreg.noise import Gaussian
from invreg.operators import Blur, gaussian_kernel
from invreg.problem import Problem
from invreg.regularizers import PlugAndPlay


def main(quick: bool = False) -> dict[str, float]:
    """Returns the PSNR in dB before and after; empty if deepinv is not installed."""
    try:
        guard_torchvision()
        from deepinv.models import TVDenoiser  # needs no weights; a trained network goes in its place
    except ImportError:
        print("deepinv is not installed: pip install 'invreg[deepinv]'")
        return {}
    n = 48 if quick else 128
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n),) * 2, indexing="ij")
    truth = ((x.abs() < 0.6) & (y.abs() < 0.4)).float()[None] * (1 + (x > 0))
    operator = Blur(gaussian_kernel(1.5), (n, n))
    measured = Gaussian(0.02).sample(operator(truth), torch.Generator().manual_seed(0))

    denoiser = from_deepinv(TVDenoiser(n_it_max=30 if quick else 100), layout="channels")
    prior = PlugAndPlay(denoiser, sigma=0.02)
    result = HQS(iterations=8).solve(Problem(operator, measured), prior)
    scores = {"measured": float(psnr(measured, truth)), "plug-and-play": float(psnr(result.x, truth))}
    print({name: f"{value:.2f} dB" for name, value in scores.items()})
    return scores


if __name__ == "__main__":
    main()
