"""Learn Lorenz's system of 1963 from one noisy trajectory by generalized teacher forcing (Hess et al. 2023).

The learned equation is judged by what a chaotic system can be judged by: how long it predicts, in units of the time in
which an error grows by e, and whether it fills its space in the long run as the true one does.
"""

import torch
from torch import Tensor

from invreg.models import TimeMLP
from invreg.training import AdaptiveForcing, FlowMap, ForcedFit, Shuffled, fit, run_free, state_space_divergence

INTERVAL = 0.05  # between two observations
GROWTH = 0.906  # the largest exponent of the attractor, per unit of time
LENGTH = 20  # observations of a sequence to train on


class Lorenz(torch.nn.Module):
    """The equations for states with mean 0 and deviation about 1."""

    centre, scale = torch.tensor([0.0, 0.0, 23.5]), torch.tensor([8.0, 9.0, 8.5])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x, v, z = (y * self.scale + self.centre).unbind(-1)
        return torch.stack([10 * (v - x), x * (28 - z) - v, x * v - 8 / 3 * z], -1) / self.scale


def predicted(found: Tensor, truth: Tensor) -> float:
    """How long, in exponents, trajectories (B, T, 3) stay within 0.4 of the truth's spread, on average."""
    apart = (found - truth).norm(dim=-1) > 0.4 * truth.norm(dim=-1).mean()
    first = torch.where(apart.any(1), apart.int().argmax(1), apart.shape[1])
    return float(first.double().mean()) * INTERVAL * GROWTH


def main(quick: bool = False) -> dict[str, float]:
    """How long the model predicts, and the divergence of its attractor and of other true runs from a true one."""
    epochs, steps = (12, 100) if quick else (160, 500)
    generator = torch.Generator().manual_seed(0)
    system = FlowMap(Lorenz(), INTERVAL, steps=4)
    start = run_free(system, 0.5 * torch.randn(16, 3, generator=generator), 100)[:, -1]
    truth = run_free(system, start, 200)
    data = truth + 0.02 * torch.randn(truth.shape, generator=generator)
    windows = data.unfold(1, LENGTH + 1, 5).flatten(0, 1).movedim(-1, 1)
    torch.manual_seed(0)
    model = FlowMap(TimeMLP(3, (64,), timed=False), INTERVAL)
    objective = ForcedFit(model, AdaptiveForcing(decay=0.9))
    batches = Shuffled(windows, size=128, epochs=epochs, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    fit(objective, batches, optimizer, scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches)))
    fresh = run_free(system, start.flip(-1), 300)
    ahead = run_free(model, fresh[:, 100], 199)
    runs = [run_free(one, fresh[:, -1], steps).flatten(0, 1) for one in (system, model)]
    found = {
        "predicted": predicted(ahead, fresh[:, 101:]),
        "divergence": state_space_divergence(runs[0], runs[1]),
        "divergence of the truth": state_space_divergence(runs[0], fresh[:, 100:].flatten(0, 1)),
    }
    print({name: round(value, 2) for name, value in found.items()})
    return found


if __name__ == "__main__":
    main()
