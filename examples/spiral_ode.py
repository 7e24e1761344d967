"""Learn a spiral from short noisy pieces of one trajectory, then run the learned equation over the whole of it.

The cubic spiral of Chen et al. 2018, "Neural Ordinary Differential Equations". To make the learned equation easier to
solve, give `TrajectoryFit` a regularizer of the solution, {"error": SolverError(1e-3)}.
"""

import torch
from torch import Tensor

from invreg.models import CubicDrift
from invreg.solvers import Solver, odeint
from invreg.training import Shuffled, TrajectoryFit, fit

TIMES = torch.linspace(0, 10, 201, dtype=torch.float64)
PIECE = 10  # steps of time that are predicted from one state
NOISE = 0.01


def spiral(t: Tensor, y: Tensor) -> Tensor:
    return y**3 @ torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])


def main(quick: bool = False) -> dict[str, float]:
    """Root mean square errors over the whole time: of the learned equation, and of a state that stands still."""
    truth = odeint(spiral, torch.tensor([[2.0, 0.0]]), TIMES, rtol=1e-6, atol=1e-6).ys[:, 0]
    data = truth + NOISE * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    pieces = data.unfold(0, PIECE + 1, 1).movedim(-1, 1)
    torch.manual_seed(0)
    field = CubicDrift(2, 50)
    objective = TrajectoryFit(field, TIMES[: PIECE + 1].tolist(), solver=Solver(rtol=1e-3, atol=1e-3))
    batches = Shuffled(pieces[:, 0], pieces[:, 1:], size=64, epochs=25 if quick else 120, seed=0)
    optimizer = torch.optim.Adam(field.parameters(), lr=0.03)
    fit(objective, batches, optimizer, scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches)))
    with torch.no_grad():
        solution = odeint(field, truth[:1], TIMES, rtol=1e-6, atol=1e-6)
    errors = {
        "learned": float((solution.ys[:, 0] - truth).square().mean().sqrt()),
        "standing": float((truth[:1] - truth).square().mean().sqrt()),
    }
    print({name: round(value, 3) for name, value in errors.items()}, f"evaluations {int(solution.stats.nfe)}")
    return errors


if __name__ == "__main__":
    main()
