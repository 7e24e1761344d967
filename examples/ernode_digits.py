"""Train a neural ODE to be easy to solve: on scikit-learn's digits, with and without the solver's error as a penalty.

The setting is that of the MNIST experiment of "Opening the Blackbox" (Pal et al. 2021) in small: 64 pixels as state, 50
hidden units, Tsit5 at tolerance 1.4e-8 in float32, momentum 0.9, 30 epochs, error weight from 15 to 1.5 (there 100 to
10).
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from invreg.regularizers import Exponential, SolverError
from invreg.solvers import Solution, odeint
from invreg.training import Options, fit


class Classifier(nn.Module):
    """Pixels flow for a unit of time, then are classified linearly; t is a feature of both layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(65, 50), nn.Linear(51, 64), nn.Linear(64, 10)

    def field(self, t: Tensor, y: Tensor) -> Tensor:
        time = t.expand(len(y), 1)
        hidden = torch.tanh(self.inner(torch.cat([y, time], 1)))
        return torch.tanh(self.outer(torch.cat([hidden, time], 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, Solution]:
        solution = odeint(self.field, x, [0.0, 1.0], rtol=1.4e-8, atol=1.4e-8)
        return self.head(solution.ys[-1]), solution


def run(heuristic: SolverError | None, seed: int, epochs: int) -> tuple[float, int]:
    """Train, then test: accuracy and number of field evaluations on the test set."""
    generator = torch.Generator().manual_seed(seed)
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(pixels / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
    (x, x_test), (y, y_test) = x.split([1437, 360]), y.split([1437, 360])
    torch.manual_seed(seed)
    model = Classifier()

    orders = [torch.randperm(len(x), generator=generator) for _ in range(epochs)]
    batches = [(x[rows], y[rows]) for order in orders for rows in order.split(128)]

    def objective(batch: tuple[Tensor, Tensor], progress: float, _: torch.Generator | None) -> dict[str, Tensor]:
        epoch = int(progress * epochs + 1e-6)  # the weight falls from epoch to epoch
        logits, solution = model(batch[0])
        terms = {"data": nn.functional.cross_entropy(logits, batch[1])}
        return terms if heuristic is None else {**terms, "error": heuristic.at(epoch / epochs)(solution)}

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    fit(objective, batches, optimizer, options=Options(clip=None))
    with torch.no_grad():
        logits, solution = model(x_test)
    return float((logits.argmax(1) == y_test).float().mean()), int(solution.stats.nfe)


def main(quick: bool = False, epochs: int = 30, seeds: int = 3) -> dict[str, tuple[float, float]]:
    """Mean accuracy and evaluations of both over the seeds; `quick` takes two epochs of one seed."""
    epochs, seeds = (2, 1) if quick else (epochs, seeds)
    error = SolverError(over="mean", schedule=Exponential(15.0, 1.5))
    means = {}
    for name, heuristic in (("vanilla", None), ("ERNODE", error)):
        found = torch.tensor([run(heuristic, seed, epochs) for seed in range(seeds)], dtype=torch.float64)
        means[name] = (float(found[:, 0].mean()), float(found[:, 1].mean()))
        print(f"{name:8s} accuracy {100 * means[name][0]:.2f} %   evaluations {found[:, 1].tolist()}")
    return means


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    main(epochs=parser.parse_args().epochs, seeds=parser.parse_args().seeds)
