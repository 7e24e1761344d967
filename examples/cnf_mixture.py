"""Fit a continuous normalizing flow to a mixture of Gaussians in the plane; compare its density with the true one.

The mean of -log p over fresh points cannot fall below the entropy of the mixture; how far above it lies is the
Kullback-Leibler divergence of the two.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from invreg.models import ConcatSquash
from invreg.regularizers import SolverError
from invreg.solvers import Solver
from invreg.training import CNF, NegativeLogLikelihood, Shuffled, fit

ANGLES = torch.arange(6) * math.pi / 3
CENTRES = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
SIGMA = 0.4


def draw_mixture(number: int, generator: torch.Generator) -> Tensor:
    which = torch.randint(len(CENTRES), (number,), generator=generator)
    return CENTRES[which] + SIGMA * torch.randn(number, 2, generator=generator)


def log_mixture(x: Tensor) -> Tensor:
    squares = (x[:, None] - CENTRES).square().sum(-1)
    return torch.logsumexp(-squares / (2 * SIGMA**2), 1) - math.log(2 * math.pi * SIGMA**2 * len(CENTRES))


def main(quick: bool = False, figure: Path | None = None) -> dict[str, float]:
    """Mean -log p of fresh points in nats: of the flow, of the mixture itself, and of one Gaussian."""
    generator = torch.Generator().manual_seed(0)
    data, fresh = draw_mixture(2048, generator), draw_mixture(1000, generator)
    torch.manual_seed(0)
    model = CNF(ConcatSquash(2, (32, 32)), 2, solver=Solver(rtol=1e-3, atol=1e-3))
    objective = NegativeLogLikelihood(model, {"error": SolverError(1e-3)})
    batches = Shuffled(data, size=256, epochs=4 if quick else 25, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    fit(objective, batches, optimizer, generator, scheduler=scheduler)
    gaussian = torch.distributions.MultivariateNormal(data.mean(0), data.T.cov())
    with torch.no_grad():
        found = {
            "flow": -float(model.log_prob(fresh).mean()),
            "mixture": -float(log_mixture(fresh).mean()),
            "one Gaussian": -float(gaussian.log_prob(fresh).mean()),
        }
    print({name: round(value, 3) for name, value in found.items()})
    if figure is not None:
        import matplotlib.pyplot as plt

        points = model.sample(2000, generator)
        plt.scatter(points[:, 0], points[:, 1], s=2)
        plt.savefig(figure)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", type=Path, help="where to save a picture of samples")
    main(figure=parser.parse_args().figure)
