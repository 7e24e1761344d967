"""The image experiment of "Opening the Blackbox" (Pal et al. 2021) in small: what regularizers cost and what they save.

A neural ODE classifies images of digits, trained in the ways of the paper and of "Locally Regularized Neural
Differential Equations" (Pal et al. 2023): pixels flow for a unit of time through tanh(W2 [tanh(W1 [y, t]), t]) and are
then classified linearly; Tsit5 at absolute and relative tolerance 1.4e-8, momentum 0.9, rate 0.1. The rate falls to 0
along half a cosine, where the paper keeps it: else the last batches decide the accuracy of so few of them.

    python examples/experiments/digits.py --methods vanilla,ernode --seeds 3 --dtype float32 --out digits.json

A run that is done is kept in the file and not done again; what was broken off starts anew. At the end, and with --show
at once, it prints the table.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from runs import Column, Numbers, do, read, table
from torch import Tensor

from invreg.data import digits, mnist_5000
from invreg.interfaces import Regularizer
from invreg.models import MLP, TimeMLP
from invreg.regularizers import Exponential, Linear, LocalHeuristic, SolverError, SolverStiffness
from invreg.solvers import Solution, Solver
from invreg.training import (
    JacobianNorm,
    KineticEnergy,
    NeuralODE,
    Options,
    Shuffled,
    Supervised,
    TaylorDerivative,
    fit,
)

METHODS = ("vanilla", "steer", "taynode", "rnode", "ernode", "srnode", "local-unbiased", "local-biased")
TOLERANCE = 1.4e-8
STEER = 0.5  # half the width of the interval from which the end of the flow is drawn
# of the data: pixels, hidden units, samples to train on and to test, batch
SIZES = {"digits": (64, 50, 1437, 360, 128), "mnist5000": (784, 100, 4000, 1000, 128)}
# first and last weight, of one penalty or of several. In float32 the tolerance lies below the resolution, so that the
# error estimates are mostly rounding errors, which no training removes: their weights are larger, and do less.
Weights = Mapping[str, tuple[float, float]]
SAME: dict[str, Weights] = {
    "taynode": {"taylor": (3.02e-3, 3.02e-3)},
    "rnode": {"kinetic": (0.01, 0.01), "jacobian": (0.01, 0.01)},
    "srnode": {"stiffness": (0.0285, 0.0285)},
}
WEIGHTS: dict[str, dict[str, Weights]] = {
    "float32": {
        **SAME,
        "ernode": {"error": (15.0, 1.5)},
        "local-unbiased": {"local": (11.0, 1.1)},
        "local-biased": {"local": (17.0, 1.7)},
    },
    "float64": {
        **SAME,
        "ernode": {"error": (1.0, 0.1)},
        "local-unbiased": {"local": (1.0, 0.1)},
        "local-biased": {"local": (1.0, 0.1)},
    },
}

COLUMNS = (
    Column("train s", "train seconds"),
    Column("prediction ms", "prediction seconds", 1e3),
    Column("evaluations", "evaluations"),
    Column("train accuracy %", "train accuracy", 100, 2),
    Column("test accuracy %", "test accuracy", 100, 2),
)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Do the runs that are missing, print the table, and give what the file holds."""
    options = parse(argv)
    dtype = getattr(torch, options.dtype)
    jobs: dict[str, Callable[[], Numbers]] = {}
    for seed in range(options.seeds):
        for method in options.methods:
            weights = {**WEIGHTS[options.dtype].get(method, {}), **options.weight.get(method, {})}
            name = name_of(options.data, options.dtype, options.epochs, method, weights, seed)
            jobs[name] = partial(train, options.data, dtype, options.epochs, method, weights, seed)
    found = read(options.out) if options.show else do(options.out, jobs)
    print(
        f"{options.data}, {options.dtype}, {options.epochs} epochs, tolerance {TOLERANCE}, torch {found['torch']}; "
        "mean +- standard deviation over the seeds\n"
    )
    groups = groups_of(found, f"{options.data}/{options.dtype}/{options.epochs} epochs/")
    print(table(found, ("method", "weights, first to last"), groups, COLUMNS))
    return found


def groups_of(found: Mapping[str, Any], start: str) -> dict[tuple[str, ...], list[str]]:
    """The names of the runs that begin so, by method and weights, in the order of the methods."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in found["runs"]:
        if name.startswith(start):
            method, weights, _ = name.removeprefix(start).split("/")
            groups.setdefault((method, weights), []).append(name)
    return dict(sorted(groups.items(), key=lambda one: METHODS.index(one[0][0])))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help="names with commas between; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--data", choices=sorted(SIZES), default="digits")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("digits.json"))
    parser.add_argument("--weight", action="append", default=[], help="such as ernode:error=15,1.5; may come again")
    parser.add_argument("--show", action="store_true", help="train nothing, print the table of what there is")
    options = parser.parse_args(argv)
    options.methods = options.methods.split(",")
    unknown = set(options.methods) - set(METHODS)
    if unknown:
        parser.error(f"--methods: unknown {', '.join(sorted(unknown))}; known: {', '.join(METHODS)}")
    weights: dict[str, dict[str, tuple[float, float]]] = {}
    known = WEIGHTS[options.dtype]
    for text in options.weight:
        place, _, numbers = text.partition("=")
        method, _, penalty = place.partition(":")
        try:
            first, last = map(float, numbers.split(","))
        except ValueError:
            parser.error(f"--weight must be METHOD:PENALTY=FIRST,LAST, got {text!r}")
        if penalty not in known.get(method, {}):
            parser.error(
                f"--weight: no penalty {place!r}; known: {', '.join(f'{m}:{p}' for m in known for p in known[m])}"
            )
        weights.setdefault(method, {})[penalty] = (first, last)
    options.weight = weights
    return options


def regularizers_of(method: str, weights: Weights, generator: torch.Generator) -> dict[str, Regularizer[Solution]]:
    """The penalties of a method by name; those of the papers' programs: means of steps, and the largest stiffness."""
    made: dict[str, Regularizer[Solution]] = {}
    for name, (first, last) in weights.items():
        schedule = Exponential(first, last) if min(first, last) > 0 else Linear(first, last)
        sampling = "biased" if method == "local-biased" else "unbiased"
        if name == "error":
            made[name] = SolverError(over="mean", schedule=schedule)
        elif name == "stiffness":
            made[name] = SolverStiffness(over="max", by_step=False, schedule=schedule)
        elif name == "local":
            made[name] = LocalHeuristic(sampling=sampling, generator=generator, schedule=schedule)
        elif name == "taylor":
            made[name] = TaylorDerivative(first, order=3)
        elif name == "kinetic":
            made[name] = KineticEnergy(first)
        else:
            made[name] = JacobianNorm(first, generator=generator)
    return made


def images(data: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pixels from 0 to 1, (N, pixels), and digits, in an order drawn once."""
    pixels, labels = (digits() if data == "digits" else mnist_5000()).tensors
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return pixels[order].to(dtype), labels[order]


def train(data: str, dtype: torch.dtype, epochs: int, method: str, weights: Weights, seed: int) -> dict[str, float]:
    """One run: train, then measure."""
    pixels, hidden, training, testing, size = SIZES[data]
    x, labels = images(data, dtype)
    x_train, y_train = x[:training], labels[:training]
    x_test, y_test = x[training : training + testing], labels[training : training + testing]
    torch.manual_seed(seed)
    field, head = TimeMLP(pixels, (hidden,), bounded=True), MLP(pixels, (), 10)
    model = NeuralODE(field, head=head, solver=Solver(rtol=TOLERANCE, atol=TOLERANCE)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    penalties = regularizers_of(method, weights, generator)
    objective = Supervised(model, regularizers=penalties, steer=STEER if method == "steer" else 0.0)
    batches = Shuffled(x_train, y_train, size=size, epochs=epochs, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    begun = time.perf_counter()
    fit(objective, batches, optimizer, generator, scheduler=scheduler, options=Options(clip=None))
    seconds = time.perf_counter() - begun
    with torch.no_grad():
        on_train, on_test = objective.score((x_train, y_train)), objective.score((x_test, y_test))
        predictions = [timed(model, x_test) for _ in range(11)]
    return {
        "train seconds": seconds,
        "prediction seconds": statistics.median(predictions),
        "evaluations": float(on_test["evaluations"]),
        "train accuracy": float(on_train["accuracy"]),
        "test accuracy": float(on_test["accuracy"]),
        "threads": float(torch.get_num_threads()),
    }


def timed(model: NeuralODE, x: Tensor) -> float:
    begun = time.perf_counter()
    model(x)
    return time.perf_counter() - begun


def name_of(data: str, dtype: str, epochs: int, method: str, weights: Weights, seed: int | str) -> str:
    """What a run is kept under; it holds all that the run depends on."""
    shown = ";".join(f"{name}={first:g},{last:g}" for name, (first, last) in sorted(weights.items()))
    return f"{data}/{dtype}/{epochs} epochs/{method}/{shown}/{seed}"


if __name__ == "__main__":
    main()
