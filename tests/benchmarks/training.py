"""A step of training: the digits neural ODE beside torchdiffeq, a spiral neural SDE beside torchsde.

    python tests/benchmarks/training.py [--quick] [--threads 1] [--repeats 5]

Digits: 64 pixels, 50 hidden units, batch 128, forward and backward through the flow and the classifier, relative and
absolute tolerance 1.4e-8 in float32, as the papers have it, and 1e-5; torchdiffeq's dopri5. Spiral: cubic drift of 50
units, linear diffusion, 100 paths in float32, forward and backward of the final states over 64 steps of a stochastic
Runge-Kutta method of strong order 1.5. Peers that are not installed say so.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from timing import Job, Row, machine, missing, peer, race, table, use_threads
from torch import Tensor, nn

from invreg.data import digits
from invreg.models import MLP, CubicDrift, TimeMLP
from invreg.solvers import SRIW2, Checkpointed, Direct, Dopri5, Fixed, I, Reversible, ReversibleHeun, odeint, sdeint


def classifier(tolerance: float, repeats: int) -> list[Row]:
    """Forward and backward through the neural ODE on digits."""
    case = f"digits neural ODE, tolerance {tolerance:g}, forward + backward"
    torch.manual_seed(0)
    field, head = TimeMLP(64, (50,), bounded=True), MLP(64, (), 10)
    pixels, labels = digits().tensors
    x, target = pixels[:128].float(), labels[:128]
    parameters = [*field.parameters(), *head.parameters()]
    calls = [0]

    def counted(t: Tensor, y: Tensor) -> Tensor:
        calls[0] += 1
        return field(t, y)

    def step(solve: Callable[[], Tensor]) -> Job:
        def job() -> None:
            torch.autograd.grad(nn.functional.cross_entropy(head(solve()), target), parameters)

        return job

    tight: dict[str, Any] = {"rtol": tolerance, "atol": tolerance}
    pair: dict[str, Any] = {"method": Dopri5(weights="shampine"), "controller": I()}
    jobs = {
        "invreg, checkpointed": step(lambda: odeint(field, x, [0.0, 1.0], **tight).ys[-1]),
        "invreg, direct": step(lambda: odeint(field, x, [0.0, 1.0], adjoint=Direct(), **tight).ys[-1]),
        "invreg, checkpointed, torchdiffeq's pair": step(lambda: odeint(field, x, [0.0, 1.0], **pair, **tight).ys[-1]),
    }
    notes = {}
    for name, options in zip(jobs, ({}, {}, pair), strict=True):
        solution = odeint(field, x, [0.0, 1.0], **options, **tight)
        notes[name] = f"evaluations forward {int(solution.stats.nfe)}"
    rows = []
    torchdiffeq = peer("torchdiffeq")
    if torchdiffeq is None:
        rows.append(missing(case, "torchdiffeq"))
    else:
        ts = torch.tensor([0.0, 1.0])
        torchdiffeq.odeint(counted, x, ts, method="dopri5", **tight)
        for name, solve in (("odeint_adjoint", torchdiffeq.odeint_adjoint), ("odeint", torchdiffeq.odeint)):
            jobs[f"torchdiffeq {name}"] = step(lambda solve=solve: solve(field, x, ts, method="dopri5", **tight)[-1])
            notes[f"torchdiffeq {name}"] = f"evaluations forward {calls[0]}"
    seconds = race(jobs, repeats)
    return [*(Row(case, name, seconds[name], note=notes[name]) for name in jobs), *rows]


class Spiral(nn.Module):
    """A neural SDE as torchsde takes it."""

    noise_type = "diagonal"

    def __init__(self, calculus: str) -> None:
        super().__init__()
        self.sde_type, self.drift, self.diffusion = calculus, CubicDrift(2, 50), nn.Linear(2, 2)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        found: Tensor = self.drift(t, y)
        return found

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return 0.1 * self.diffusion(y)


def spiral(steps: int, repeats: int) -> list[Row]:
    """Forward and backward through a neural SDE."""
    case = f"spiral neural SDE, {steps} steps, forward + backward"
    torch.manual_seed(0)
    y0 = torch.tensor([2.0, 0.0]).expand(100, 2)
    ito, stratonovich = Spiral("ito"), Spiral("stratonovich")

    def ours(sde: Spiral, **options: Any) -> Job:
        def job() -> None:
            controller, calculus = Fixed(1 / steps), sde.sde_type
            ys = sdeint(sde.f, sde.g, y0, [0.0, 1.0], calculus=calculus, controller=controller, **options).ys
            torch.autograd.grad(ys[-1].square().sum(), [*sde.parameters()])

        return job

    jobs: dict[str, Job] = {
        "invreg SRIW2, checkpointed": ours(ito, method=SRIW2()),
        "invreg SRIW2, all replayed": ours(ito, method=SRIW2(), adjoint=Checkpointed(tape=0)),
        "invreg reversible Heun": ours(stratonovich, method=ReversibleHeun(), adjoint=Reversible()),
    }
    rows = []
    torchsde = peer("torchsde")
    if torchsde is None:
        rows.append(missing(case, "torchsde"))
    else:
        ts = torch.tensor([0.0, 1.0])

        def theirs(function: str, sde: Spiral, method: str) -> Job:
            def job() -> None:
                ys = getattr(torchsde, function)(sde, y0, ts, dt=1 / steps, method=method)
                torch.autograd.grad(ys[-1].square().sum(), [*sde.parameters()])

            return job

        jobs["torchsde srk, sdeint"] = theirs("sdeint", ito, "srk")
        jobs["torchsde srk, sdeint_adjoint"] = theirs("sdeint_adjoint", ito, "srk")
        jobs["torchsde reversible_heun, sdeint_adjoint"] = theirs("sdeint_adjoint", stratonovich, "reversible_heun")
    seconds = race(jobs, repeats)
    return [*(Row(case, name, seconds[name]) for name in jobs), *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small cases, to see that it runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    use_threads(options.threads)
    repeats = 1 if options.quick else options.repeats
    print(machine())
    rows: list[Row] = []
    for tolerance in (1e-3,) if options.quick else (1.4e-8, 1e-5):
        rows += classifier(tolerance, repeats)
    rows += spiral(8 if options.quick else 64, repeats)
    print(table(rows))


if __name__ == "__main__":
    main()
