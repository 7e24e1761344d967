"""A continuous normalizing flow on a mixture of Gaussians in the plane: what penalties on the solver do to it.

    python examples/experiments/mixture.py --seeds 3 --dtype float32 --out mixture.json

Six Gaussians on a circle of radius 2, deviation 0.4; 2048 points, a flow of two hidden layers of 32, exact trace, Tsit5
at 1e-5, Adam from 0.02 to 0 along half a cosine, 25 epochs of batches of 256. The loss is the mean of -log p over 1000
fresh points, less the entropy of the mixture as these points estimate it, in nats: an estimate of the Kullback-Leibler
divergence. A run that is done is kept in the file and not done again; what was broken off starts anew.
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from runs import Column, Numbers, do, table
from torch import Tensor

from invreg.interfaces import Regularizer
from invreg.models import ConcatSquash
from invreg.regularizers import Linear, LocalHeuristic, SolverError, SolverStiffness
from invreg.solvers import Solution, Solver
from invreg.training import CNF, NegativeLogLikelihood, Shuffled, fit

WEIGHTS = {"ER": (0.03, 0.03), "SR": (0.02, 0.02), "local": (0.3, 0.3)}  # first and last
ANGLES = torch.arange(6, dtype=torch.float64) * math.pi / 3
CENTRES = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
SIGMA = 0.4


def draw(number: int, generator: torch.Generator) -> Tensor:
    which = torch.randint(len(CENTRES), (number,), generator=generator)
    return CENTRES[which] + SIGMA * torch.randn(number, 2, generator=generator, dtype=torch.float64)


def log_density(x: Tensor) -> Tensor:
    squares = (x[:, None] - CENTRES).square().sum(-1)
    return torch.logsumexp(-squares / (2 * SIGMA**2), 1) - math.log(2 * math.pi * SIGMA**2 * len(CENTRES))


def run(method: str, weights: tuple[float, float], dtype: torch.dtype, epochs: int, seed: int) -> Numbers:
    """One run: train, then measure."""
    source = torch.Generator().manual_seed(0)
    data, fresh = draw(2048, source).to(dtype), draw(1000, source)
    generator = torch.Generator().manual_seed(seed)
    schedule = Linear(*weights)
    made: Mapping[str, Callable[[], Regularizer[Solution]]] = {
        "ER": lambda: SolverError(schedule=schedule),
        "SR": lambda: SolverStiffness(schedule=schedule),
        "local": lambda: LocalHeuristic(generator=generator, schedule=schedule),
    }
    penalties = {} if method == "vanilla" else {method: made[method]()}
    torch.manual_seed(seed)
    model = CNF(ConcatSquash(2, (32, 32)), 2, solver=Solver(rtol=1e-5, atol=1e-5)).to(dtype)
    batches = Shuffled(data, size=256, epochs=epochs, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    objective = NegativeLogLikelihood(model, penalties)
    begun = time.perf_counter()
    fit(objective, batches, optimizer, generator, scheduler=scheduler)
    seconds = time.perf_counter() - begun
    with torch.no_grad():
        begun = time.perf_counter()
        score = objective.score((fresh.to(dtype),))
        prediction = time.perf_counter() - begun
        divergence = float(log_density(fresh).mean()) - float(model.log_prob(fresh.to(dtype)).double().mean())
    return {
        "train seconds": seconds,
        "prediction seconds": prediction,
        "evaluations": float(score["evaluations"]),
        "divergence": divergence,
    }


def main(argv: list[str] | None = None) -> None:
    """Do the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("mixture.json"))
    options = parser.parse_args(argv)
    jobs: dict[str, Callable[[], Numbers]] = {}
    groups: dict[tuple[str, ...], list[str]] = {}
    for method, weights in {"vanilla": (0.0, 0.0), **WEIGHTS}.items():
        shown = "" if method == "vanilla" else f"{weights[0]:g} to {weights[1]:g}"
        for seed in range(options.seeds):
            name = f"{options.dtype}/{options.epochs}/{method}/{shown}/{seed}"
            jobs[name] = partial(run, method, weights, getattr(torch, options.dtype), options.epochs, seed)
            groups.setdefault((method, shown), []).append(name)
    found = do(options.out, jobs)
    columns = (
        Column("train s", "train seconds"),
        Column("prediction ms", "prediction seconds", 1e3),
        Column("evaluations", "evaluations"),
        Column("divergence, nats", "divergence", 1, 3),
    )
    print(f"mixture, {options.dtype}, torch {found['torch']}; mean +- standard deviation over the seeds\n")
    print(table(found, ("method", "weight, first to last"), groups, columns))


if __name__ == "__main__":
    main()
