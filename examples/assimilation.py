"""Recover where predators and prey began from noisy counts of the prey alone, at times between no steps of the solver.

The solution map of the Lotka-Volterra equations is a forward operator like any other; the answer is that of the same
problem, misfit and algorithm as for an image.
"""

import torch
from torch import Tensor

from invreg.algorithms import GradientDescent
from invreg.noise import Gaussian
from invreg.operators import Flow, Mask
from invreg.problem import Problem


def lotka_volterra(t: Tensor, y: Tensor) -> Tensor:
    """Prey and predators, (B, 2)."""
    prey, predators = y[:, 0], y[:, 1]
    return torch.stack([1.5 * prey - prey * predators, prey * predators - 3 * predators], 1)


def main(quick: bool = False) -> float:
    """The largest relative error of the recovered populations."""
    flow = Flow(lotka_volterra, torch.linspace(0, 2, 21), (2,), rtol=1e-4, atol=1e-6, throw=False)
    counts = Mask(torch.tensor([True, False]).expand(20, 2)) @ flow  # predators are not counted
    noise = Gaussian(sigma=0.05)
    truth = torch.tensor([[1.0, 1.0], [2.0, 0.5]], dtype=torch.float64)
    observed = noise.sample(counts(truth), torch.Generator().manual_seed(0)) * counts.sampled()
    problem = Problem(counts, observed, noise)
    guess = torch.full_like(truth, 1.5)
    found = GradientDescent(iterations=30 if quick else 100, momentum=0.7).solve(problem, None, x0=guess)
    error = float(((found.x - truth).abs() / truth).max())
    print(found)
    for wanted, got in zip(truth.tolist(), found.x.tolist(), strict=True):
        print(f"prey, predators: {wanted} recovered as {[round(value, 3) for value in got]}")
    return error


if __name__ == "__main__":
    main()
