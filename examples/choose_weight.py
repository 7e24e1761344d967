"""The weight without ground truth: four rules on a blurred, noisy image, beside the best weight in hindsight."""

import torch

from invreg.algorithms import FISTA, GCV, SURE, Discrepancy, LCurve, choose_weight
from invreg.assets import brain_slice
from invreg.metrics import psnr
from invreg.noise import Gaussian
from invreg.operators import Blur, Wavelet, gaussian_kernel
from invreg.problem import Problem
from invreg.regularizers import WaveletL1


def main(quick: bool = False) -> dict[str, float]:
    """Choose by each rule; returns the PSNR in dB that each reaches."""
    truth = brain_slice().image
    truth = torch.nn.functional.avg_pool2d(truth, 6 if quick else 2)
    shape = tuple(truth.shape[1:])
    operator = Blur(gaussian_kernel(1.0), shape)
    sigma = 0.02
    y = Gaussian(sigma).sample(operator(truth), torch.Generator().manual_seed(0))
    problem = Problem(operator, y, Gaussian(sigma))
    algorithm = FISTA(iterations=60 if quick else 150)
    wavelet = Wavelet(shape)

    scores = {}
    for rule in (Discrepancy(), SURE(), GCV(), LCurve()):
        choice = choose_weight(problem, lambda w: WaveletL1(wavelet, w), algorithm, rule)
        name = type(rule).__name__
        scores[name] = float(psnr(choice.reconstruction.x, truth))
        print(f"{name:12s} weight {choice.weight:8.2f}   {scores[name]:.2f} dB")
    candidates = [10.0 ** (k / 4) for k in range(-2, 11)]
    scores["hindsight"] = max(float(psnr(algorithm.solve(problem, WaveletL1(wavelet, w)).x, truth)) for w in candidates)
    print(f"{'hindsight':12s} {'':15s}   {scores['hindsight']:.2f} dB")
    return scores


if __name__ == "__main__":
    main()
