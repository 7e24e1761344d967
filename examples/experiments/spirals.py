"""The spirals of "Opening the Blackbox" (Pal et al. 2021): what penalties on the solver do to evaluations and fit.

    python examples/experiments/spirals.py --kind sde --seeds 3 --dtype float32 --out spirals.json
    python examples/experiments/spirals.py --kind ode --seeds 3 --dtype float64 --out spirals.json

sde: cubic drift W2 tanh(W1 y^3 + b1) + b2 of 50 units and a diffusion that is linear in each entry, fitted to mean and
variance of 10 000 paths at 30 times in [0, 1] by 100 paths a step, Adam at 0.01, 250 steps; SOSRI2 at tolerance 0.01,
with whose estimates all work. (The paper's diffusion is a linear layer, which is not diagonal noise.) ode: the same
drift, fitted to pieces of 20 times of one trajectory, t to 25; Tsit5 at 1e-4, evaluations over the whole time at 1e-6.
A run that is done is kept in the file and not done again; what was broken off starts anew.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from runs import Column, Numbers, do, table
from torch import Tensor

from invreg.interfaces import Regularizer
from invreg.models import CubicDrift, EntrywiseMLP
from invreg.regularizers import Linear, LocalHeuristic, SolverError, SolverStiffness
from invreg.solvers import SOSRI2, NoisySolver, Solution, Solver, odeint, sdeint
from invreg.training import MomentFit, NeuralSDE, Shuffled, TrajectoryFit, fit

Penalties = dict[str, Regularizer[Solution]]
WEIGHTS = {  # first and last; constant where they are equal
    "sde": {"ER": (3.0, 3.0), "SR": (0.1, 0.1), "local": (200.0, 200.0)},
    "ode": {"ER": (0.03, 0.03), "SR": (1e-3, 1e-3), "local": (0.1, 0.1)},
}
SPIRAL = [[-0.1, 2.0], [-2.0, -0.1]]
TIMES = {"sde": torch.linspace(0, 1, 30, dtype=torch.float64), "ode": torch.linspace(0, 25, 501, dtype=torch.float64)}
PIECE = 20


def penalties_of(method: str, weights: tuple[float, float], generator: torch.Generator) -> Penalties:
    schedule = Linear(*weights)
    made: Mapping[str, Callable[[], Regularizer[Solution]]] = {
        "ER": lambda: SolverError(schedule=schedule),
        "SR": lambda: SolverStiffness(schedule=schedule),
        "local": lambda: LocalHeuristic(generator=generator, schedule=schedule),
    }
    return {} if method == "vanilla" else {method: made[method]()}


def spiral(t: Tensor, y: Tensor) -> Tensor:
    return y**3 @ torch.tensor(SPIRAL, dtype=y.dtype)


def stochastic(method: str, weights: tuple[float, float], dtype: torch.dtype, steps: int, seed: int) -> Numbers:
    """One run of the stochastic spiral."""
    times, start = TIMES["sde"].tolist(), torch.tensor([[2.0, 0.0]], dtype=dtype)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        paths = start.expand(10_000, 2)
        ys = sdeint(spiral, lambda t, y: 0.2 * y, paths, times, generator=source, rtol=1e-3, atol=1e-3).ys[1:]
    batch = (start, ys.mean(1)[None], ys.var(1)[None])
    torch.manual_seed(seed)
    solver = NoisySolver(method=SOSRI2(), rtol=0.01, atol=0.01)
    model = NeuralSDE(CubicDrift(2, 50), EntrywiseMLP(2, 0), solver).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    objective = MomentFit(model, times, 100, penalties_of(method, weights, generator))
    begun = time.perf_counter()
    fit(objective, [batch] * steps, torch.optim.Adam(model.parameters(), lr=0.01), generator)
    seconds = time.perf_counter() - begun
    with torch.no_grad():
        measure = MomentFit(model, times, 1000)
        begun = time.perf_counter()
        score = measure.score(batch, torch.Generator().manual_seed(1))
        prediction = time.perf_counter() - begun
    error = float(score["mean"] + score["variance"]) / batch[1].numel()
    return {
        "train seconds": seconds,
        "prediction seconds": prediction,
        "evaluations": float(score["evaluations"]),
        "error": error,
    }


def deterministic(method: str, weights: tuple[float, float], dtype: torch.dtype, epochs: int, seed: int) -> Numbers:
    """One run of the deterministic spiral."""
    times = TIMES["ode"]
    truth = odeint(spiral, torch.tensor([[2.0, 0.0]], dtype=torch.float64), times, rtol=1e-9, atol=1e-9).ys[:, 0]
    noise = 0.01 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
    pieces = (truth + noise).to(dtype).unfold(0, PIECE + 1, 1).movedim(-1, 1)
    torch.manual_seed(seed)
    field = CubicDrift(2, 50).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    solver = Solver(rtol=1e-4, atol=1e-4)
    objective = TrajectoryFit(field, times[: PIECE + 1].tolist(), penalties_of(method, weights, generator), solver)
    batches = Shuffled(pieces[:, 0], pieces[:, 1:], size=64, epochs=epochs, seed=seed)
    optimizer = torch.optim.Adam(field.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    begun = time.perf_counter()
    fit(objective, batches, optimizer, generator, scheduler=scheduler)
    seconds = time.perf_counter() - begun
    with torch.no_grad():
        begun = time.perf_counter()
        found = odeint(field, truth[:1].to(dtype), times, rtol=1e-6, atol=1e-6)
        prediction = time.perf_counter() - begun
    return {
        "train seconds": seconds,
        "prediction seconds": prediction,
        "evaluations": float(found.stats.nfe),
        "error": float((found.ys[:, 0] - truth).square().mean()),
    }


def main(argv: list[str] | None = None) -> None:
    """Do the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["ode", "sde"], default="sde")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--length", type=int, help="steps (sde, 250) or epochs (ode, 40) of training")
    parser.add_argument("--out", type=Path, default=Path("spirals.json"))
    options = parser.parse_args(argv)
    run = stochastic if options.kind == "sde" else deterministic
    length = options.length or (250 if options.kind == "sde" else 40)
    jobs: dict[str, Callable[[], Numbers]] = {}
    groups: dict[tuple[str, ...], list[str]] = {}
    for method, weights in {"vanilla": (0.0, 0.0), **WEIGHTS[options.kind]}.items():
        shown = "" if method == "vanilla" else f"{weights[0]:g} to {weights[1]:g}"
        for seed in range(options.seeds):
            name = f"{options.kind}/{options.dtype}/{length}/{method}/{shown}/{seed}"
            jobs[name] = partial(run, method, weights, getattr(torch, options.dtype), length, seed)
            groups.setdefault((method, shown), []).append(name)
    found = do(options.out, jobs)
    columns = (
        Column("train s", "train seconds"),
        Column("prediction ms", "prediction seconds", 1e3),
        Column("evaluations", "evaluations"),
        Column("mean squared error", "error", 1, 4),
    )
    print(
        f"spiral {options.kind}, {options.dtype}, torch {found['torch']}; mean +- standard deviation over the seeds\n"
    )
    print(table(found, ("method", "weight, first to last"), groups, columns))


if __name__ == "__main__":
    main()
