"""Learn a stochastic spiral from the moments of its paths, with and without the solver's error as a penalty.

The spiral of "Opening the Blackbox" (Pal et al. 2021, section 4.2), cubic drift and multiplicative noise, at ten times.
"""

import torch
from torch import Tensor

from invreg.models import CubicDrift, EntrywiseMLP
from invreg.regularizers import SolverError
from invreg.solvers import SOSRI, NoisySolver, sdeint
from invreg.training import MomentFit, NeuralSDE, fit

TIMES = torch.linspace(0, 1, 11, dtype=torch.float64).tolist()
START = torch.tensor([[2.0, 0.0]])


def drift(t: Tensor, y: Tensor) -> Tensor:
    return y**3 @ torch.tensor([[-0.1, -2.0], [2.0, -0.1]])


def moments(paths: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of the true paths at the times behind the first."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        ys = sdeint(drift, lambda t, y: 0.2 * y, START.expand(paths, 2), TIMES, generator=generator, rtol=1e-3).ys
    return ys[1:].mean(1)[None], ys[1:].var(1)[None]


def run(weight: float, steps: int, seed: int = 0) -> tuple[float, int]:
    """Misfit of the moments of 1000 paths after training, and evaluations of drift and diffusion."""
    means, variances = moments(10_000)
    torch.manual_seed(seed)
    model = NeuralSDE(CubicDrift(2, 50), EntrywiseMLP(2, 0), NoisySolver(method=SOSRI(), rtol=0.01, atol=0.01))
    penalties = {"error": SolverError(weight)} if weight else {}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(seed)
    fit(MomentFit(model, TIMES, 100, penalties), [(START, means, variances)] * steps, optimizer, generator)
    with torch.no_grad():
        score = MomentFit(model, TIMES, 1000).score((START, means, variances), generator)
    return float(score["mean"] + score["variance"]) / means.numel(), int(score["evaluations"])


def main(quick: bool = False) -> dict[str, tuple[float, int]]:
    """Misfit and evaluations without and with the penalty."""
    steps = 10 if quick else 100
    results = {"vanilla": run(0.0, steps), "ERNSDE": run(3.0, steps)}
    for name, (misfit, evaluations) in results.items():
        print(f"{name:8s} mean squared misfit {misfit:.4f}   evaluations {evaluations}")
    return results


if __name__ == "__main__":
    main()
