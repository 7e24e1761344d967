"""Solving and differentiating ODEs, beside torchdiffeq, torchode and diffrax.

    python tests/benchmarks/ode.py [--quick] [--threads 1] [--repeats 5]

The van der Pol oscillator (mu = 5, t from 0 to 10) for a batch of 256 random starts at rtol = atol = 1e-6 in float64;
the gradient of a network's flow (2-64-64-2 tanh, batch 128, t to 1 and to 10, rtol = atol = 1e-5, float32); what is
kept for a gradient through 1000 fixed steps. Evaluations (NFE) and errors stand in the notes: evaluations of different
methods and error weights are not to be compared without them. Peers that are not installed say so.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from timing import Job, Row, machine, missing, peer, race, table, use_threads
from torch import Tensor, nn

from invreg.solvers import Checkpointed, Direct, Dopri5, Fixed, Heun, I, Solution, odeint

TOLERANCE = 1e-6
NETWORK_TOLERANCE = 1e-5


def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    """x'' = 5 (1 - x^2) x' - x."""
    x, v = y[..., 0], y[..., 1]
    return torch.stack([v, 5 * (1 - x * x) * v - x], -1)


class Network(nn.Module):
    """A field 2-64-64-2."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        found: Tensor = self.layers(y)
        return found


def oscillators(repeats: int, batch: int, quick: bool) -> list[Row]:
    """The forward solve of a batch; a quick run compiles nothing."""
    case = f"van der Pol {batch} x 2, forward"
    y0 = torch.randn(batch, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = [0.0, 10.0]
    reference = odeint(van_der_pol, y0, ends, rtol=1e-11, atol=1e-11, per_sample=True, max_steps=10**6).ys[-1]
    tight: dict[str, Any] = {"rtol": TOLERANCE, "atol": TOLERANCE}
    jobs: dict[str, Job] = {}
    notes: dict[str, str] = {}

    def ours(**options: Any) -> Callable[[], Solution]:
        return lambda: odeint(van_der_pol, y0, ends, **tight, **options)

    for name, job in (
        ("invreg, compiled", ours(compile=True)),
        ("invreg, compiled, per sample", ours(compile=True, per_sample=True)),
        ("invreg, eager", ours()),
        ("invreg, eager, dopri5", ours(method=Dopri5(weights="shampine"))),
        ("invreg, eager, per sample", ours(per_sample=True)),
    ):
        if quick and "compiled" in name:
            continue
        start = time.perf_counter()
        solution = job()
        first = time.perf_counter() - start
        notes[name] = f"NFE {float(solution.stats.nfe.double().mean()):.0f}, error {worst(solution.ys[-1], reference)}"
        if "compiled" in name:
            notes[name] += f", first call {first:.1f} s"
        jobs[name] = job
    rows = [
        *torchdiffeq_forward(case, y0, ends, reference, jobs, notes),
        *torchode_forward(case, y0, ends, reference, jobs, notes),
        *diffrax_forward(case, y0, ends, reference, jobs, notes),
    ]
    with torch.no_grad():
        seconds = race(jobs, repeats)
    return [*(Row(case, name, seconds[name], note=notes[name]) for name in jobs), *rows]


def worst(y: Tensor, reference: Tensor) -> str:
    """The largest error of any entry."""
    return f"{float((y - reference).abs().max()):.1e}"


def torchdiffeq_forward(
    case: str, y0: Tensor, ends: list[float], reference: Tensor, jobs: dict[str, Job], notes: dict[str, str]
) -> list[Row]:
    """torchdiffeq's default method; a row only where it is missing."""
    torchdiffeq = peer("torchdiffeq")
    if torchdiffeq is None:
        return [missing(case, "torchdiffeq")]
    calls = [0]

    def counted(t: Tensor, y: Tensor) -> Tensor:
        calls[0] += 1
        return van_der_pol(t, y)

    def solve(field: Callable[..., Tensor]) -> Tensor:
        ts = torch.tensor(ends, dtype=torch.float64)
        return torchdiffeq.odeint(field, y0, ts, rtol=TOLERANCE, atol=TOLERANCE, method="dopri5")[-1]

    notes["torchdiffeq dopri5"] = f"error {worst(solve(counted), reference)}, NFE {calls[0]}"
    jobs["torchdiffeq dopri5"] = lambda: solve(van_der_pol)
    return []


def torchode_forward(
    case: str, y0: Tensor, ends: list[float], reference: Tensor, jobs: dict[str, Job], notes: dict[str, str]
) -> list[Row]:
    """torchode's Tsit5, whose samples step on their own; a row only where it is missing."""
    torchode = peer("torchode")
    if torchode is None:
        return [missing(case, "torchode")]
    term = torchode.ODETerm(van_der_pol)
    controller = torchode.IntegralController(atol=TOLERANCE, rtol=TOLERANCE, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Tsit5(term=term), controller)
    times = torch.tensor(ends, dtype=torch.float64).expand(len(y0), 2)
    problem = torchode.InitialValueProblem(y0=y0, t_eval=times)
    solution = solver.solve(problem)
    nfe = float(solution.stats["n_f_evals"].double().mean())
    notes["torchode tsit5"] = f"error {worst(solution.ys[:, -1], reference)}, NFE {nfe:.0f}"
    jobs["torchode tsit5"] = lambda: solver.solve(problem)
    return []


def diffrax_forward(
    case: str, y0: Tensor, ends: list[float], reference: Tensor, jobs: dict[str, Job], notes: dict[str, str]
) -> list[Row]:
    """diffrax's Tsit5 compiled by jax, joint and per sample; a row only where it is missing."""
    diffrax, jax = peer("diffrax"), peer("jax")
    if diffrax is None or jax is None:
        return [missing(case, "diffrax")]
    jax.config.update("jax_enable_x64", True)
    jnp = jax.numpy

    def field(t: Any, y: Any, args: Any) -> Any:
        x, v = y[..., 0], y[..., 1]
        return jnp.stack([v, 5 * (1 - x * x) * v - x], -1)

    def solve(y: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            ends[0],
            ends[1],
            None,
            y,
            stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
            max_steps=100_000,
        ).ys[-1]

    start = jnp.asarray(y0.numpy())
    for name, program in (("joint", jax.jit(solve)), ("vmap", jax.jit(jax.vmap(solve)))):
        end = torch.tensor(program(start).__array__())
        notes[f"diffrax tsit5, jit {name}"] = f"error {worst(end, reference)}"
        jobs[f"diffrax tsit5, jit {name}"] = lambda program=program: program(start).block_until_ready()
    return []


def networks(repeats: int, end: float, quick: bool) -> list[Row]:
    """Forward and backward through a network's flow; a quick run compiles nothing."""
    case = f"network, t to {end:g}, forward + backward"
    torch.manual_seed(0)
    network, y0 = Network(), torch.randn(128, 2)
    tight: dict[str, Any] = {"rtol": NETWORK_TOLERANCE, "atol": NETWORK_TOLERANCE}
    notes: dict[str, str] = {}

    shampine = Dopri5(weights="shampine")
    ours: dict[str, dict[str, Any]] = {
        "checkpointed": {},
        "checkpointed, all replayed": {"adjoint": Checkpointed(tape=0)},
        "checkpointed, compiled": {"compile": True},
        "checkpointed, dopri5": {"method": shampine, "controller": I()},
        "direct": {"adjoint": Direct()},
        "direct, dopri5": {"adjoint": Direct(), "method": shampine, "controller": I()},
    }

    if quick:
        del ours["checkpointed, compiled"]

    def of(options: dict[str, Any]) -> Job:
        return lambda: odeint(network, y0, [0.0, end], **tight, **options).ys[-1].square().sum().backward()

    jobs = {f"invreg, {name}": of(options) for name, options in ours.items()}
    for name, options in ours.items():
        evaluations = int(odeint(network, y0, [0.0, end], **tight, **options).stats.nfe)
        notes[f"invreg, {name}"] = f"NFE forward {evaluations}"
    evaluations = int(odeint(network, y0, [0.0, end], **tight).stats.nfe)

    def alone() -> None:
        y = y0.clone().requires_grad_()
        for _ in range(evaluations):
            y = network(y, y)
        y.square().sum().backward()

    jobs["the network alone"], notes["the network alone"] = alone, f"{evaluations} evaluations in a row"
    torchdiffeq = peer("torchdiffeq")
    rows = []
    if torchdiffeq is None:
        rows.append(missing(case, "torchdiffeq"))
    else:
        ts = torch.tensor([0.0, end])
        for name, solve in (("odeint_adjoint", torchdiffeq.odeint_adjoint), ("odeint", torchdiffeq.odeint)):

            def job(solve: Callable[..., Tensor] = solve) -> None:
                solve(network, y0, ts, method="dopri5", **tight)[-1].square().sum().backward()

            jobs[f"torchdiffeq {name}"] = job
    seconds = race(jobs, repeats)
    return [*(Row(case, name, seconds[name], note=notes.get(name, "")) for name in jobs), *rows]


def memory(steps: int) -> list[Row]:
    """What is kept between forward and backward after so many steps."""
    case = f"network, {steps} fixed steps of Heun, kept for the gradient"
    torch.manual_seed(0)
    network, y0 = Network(), torch.randn(128, 2)
    rows = []
    adjoints = {"checkpointed": Checkpointed(), "checkpointed, all replayed": Checkpointed(tape=0), "direct": Direct()}
    for name, adjoint in adjoints.items():
        kept: dict[int, int] = {}

        def pack(x: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            ys = odeint(
                network,
                y0,
                [0.0, 1.0],
                method=Heun(),
                controller=Fixed(1 / steps),
                adjoint=adjoint,
                max_steps=steps + 1,
            ).ys
        rows.append(
            Row(
                case,
                f"invreg, {name}",
                mebibytes=sum(kept.values()) / 2**20,
                note=f"{y0.nbytes / 2**10:.0f} KiB a state",
            )
        )
        del ys
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small cases, to see that it runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    use_threads(options.threads)
    repeats = 1 if options.quick else options.repeats
    print(machine())
    rows = oscillators(repeats, 16 if options.quick else 256, options.quick)
    for end in (1.0,) if options.quick else (1.0, 10.0):
        rows += networks(repeats, end, options.quick)
    rows += memory(50 if options.quick else 1000)
    print(table(rows))


if __name__ == "__main__":
    main()
