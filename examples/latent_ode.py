"""A latent ODE of series that are observed at irregular times: fill in what is missing, and predict what comes.

Damped waves of different phase, each seen with noise at its own ten times before 1. The model (Rubanova et al. 2019)
reads them backwards in time, and runs on to 1.5.
"""

import torch
from torch import Tensor

from invreg.models import MLP, SeriesEncoder, TimeMLP
from invreg.solvers import Solver
from invreg.training import EvidenceBound, LatentODE, Series, Shuffled, fit, union_grid

NOISE = 0.05


def values(phase: Tensor, t: Tensor) -> Tensor:
    """Of waves with phases (N,) at times (T,): (N, T)."""
    return (-0.5 * t).exp().float() * torch.sin(phase[:, None] + 6 * t.float())


def observed(phase: Tensor, generator: torch.Generator) -> Series:
    """Each seen at 10 of the times 0, 0.04, ..., 0.96."""
    seen = []
    for one in phase:
        t = 0.04 * torch.randperm(25, generator=generator)[:10].sort().values.double()
        seen.append((t, values(one[None], t)[0, :, None] + NOISE * torch.randn(10, 1, generator=generator)))
    return union_grid(seen)


def main(quick: bool = False) -> dict[str, float]:
    """Root mean square errors of the model and of the series' mean, 0, within the time observed and behind."""
    generator = torch.Generator().manual_seed(0)
    phase = 6.28 * torch.rand(356, generator=generator)
    series = observed(phase, generator)
    training, test = slice(0, 256), slice(256, 356)
    torch.manual_seed(0)
    model = LatentODE(
        SeriesEncoder(1, 40, 4), TimeMLP(4, (40,), timed=False), MLP(4, (20,), 1), sigma=NOISE, solver=Solver()
    )
    objective = EvidenceBound(model, series.times)
    batches = Shuffled(series.values[training], series.mask[training], size=64, epochs=10 if quick else 150, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    fit(objective, batches, optimizer, generator, scheduler=scheduler)
    wanted = torch.linspace(0, 1.5, 76, dtype=torch.float64)
    with torch.no_grad():
        path = model(series.values[test], series.mask[test], series.times, wanted)
    truth = values(phase[test], wanted)
    found: dict[str, float] = {}
    for name, part in (("within", slice(0, 51)), ("behind", slice(51, None))):
        found[name] = float((path.values[:, part, 0] - truth[:, part]).square().mean().sqrt())
        found[f"{name}, mean"] = float(truth[:, part].square().mean().sqrt())
    print({name: round(value, 3) for name, value in found.items()})
    return found


if __name__ == "__main__":
    main()
