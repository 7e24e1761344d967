"""Work-precision diagrams of the ODE solvers, beside SciPy, torchdiffeq and torchode.

    python tests/benchmarks/work_precision.py [--quick] [--threads 1] [--output docs/figures/work_precision.png]

The error at the end (largest |y - reference| / (scale + |reference|), see tests/solvers/problems.py) against
evaluations of the field and against seconds, for tolerances from 1e-3 to 1e-10: two problems that are not stiff and two
that are. All call the same torch fields in float64; SciPy's get them wrapped, which costs it two conversions a call.
Evaluations of the stiff methods leave out those for the Jacobian: ours by forward mode, SciPy's by differences. One
timed solve each, the better of two where it takes less than half a second. Peers that are not installed say so.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from timing import Row, machine, missing, peer, table, use_threads
from torch import Tensor

from invreg.solvers import Dopri8, Method, Tsit5, Vern7, odeint
from invreg.solvers.implicit import Kvaerno5
from invreg.solvers.rosenbrock import Rodas5P, Rosenbrock23

sys.path.append(str(Path(__file__).resolve().parent.parent / "solvers"))  # its problems are those of the tests
from problems import ALL, Problem

PROBLEMS = ("Pleiades", "Arenstorf", "van der Pol, mu = 1000", "HIRES")
QUICK_PROBLEMS = ("Pleiades", "HIRES")
TOLERANCES = tuple(10.0**-k for k in range(3, 11))
QUICK_TOLERANCES = (1e-3, 1e-4)
LOW_ORDER = 1e-5  # the tightest tolerance of methods of order 2
AGAIN = 0.5  # seconds; shorter solves are timed twice


@dataclass(frozen=True)
class Point:
    """One solve."""

    problem: str
    solver: str
    tolerance: float
    error: float
    calls: int
    seconds: float


# solves a problem at a tolerance: y at the end, and the evaluations
Solve = Callable[[Problem, float], tuple[Tensor, int]]


def ours(method: Method) -> Solve:
    """One of this library's methods, step by step."""

    def solve(problem: Problem, tolerance: float) -> tuple[Tensor, int]:
        solution = odeint(
            problem.field,
            problem.y0,
            [0.0, problem.t_end],
            method=method,
            rtol=tolerance,
            atol=tolerance * problem.scale,
            max_steps=10**6,
        )
        return solution.ys[-1], solution.stats.calls

    return solve


def by_scipy(solver: str) -> Solve:
    """A solver of scipy.integrate."""
    from scipy.integrate import solve_ivp

    def solve(problem: Problem, tolerance: float) -> tuple[Tensor, int]:
        def field(t: float, y: Any) -> Any:
            return problem.field(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)).numpy()

        found = solve_ivp(
            field,
            (0.0, problem.t_end),
            problem.y0.numpy(),
            method=solver,
            rtol=tolerance,
            atol=tolerance * problem.scale,
            t_eval=[problem.t_end],
        )
        return torch.from_numpy(found.y[:, -1].copy()), found.nfev

    return solve


def by_torchdiffeq(torchdiffeq: ModuleType, solver: str) -> Solve:
    """A solver of torchdiffeq."""

    def solve(problem: Problem, tolerance: float) -> tuple[Tensor, int]:
        calls = [0]

        def field(t: Tensor, y: Tensor) -> Tensor:
            calls[0] += 1
            return problem.field(t, y)

        ts = torch.tensor([0.0, problem.t_end], dtype=torch.float64)
        atol = tolerance * problem.scale
        return torchdiffeq.odeint(field, problem.y0, ts, rtol=tolerance, atol=atol, method=solver)[-1], calls[0]

    return solve


def by_torchode(torchode: ModuleType) -> Solve:
    """Tsit5 of torchode, for a batch of one."""

    def solve(problem: Problem, tolerance: float) -> tuple[Tensor, int]:
        term = torchode.ODETerm(lambda t, y: problem.field(t[0], y[0])[None])
        controller = torchode.IntegralController(atol=tolerance * problem.scale, rtol=tolerance, term=term)
        solver = torchode.AutoDiffAdjoint(torchode.Tsit5(term=term), controller)
        ts = torch.tensor([[0.0, problem.t_end]], dtype=torch.float64)
        solution = solver.solve(torchode.InitialValueProblem(y0=problem.y0[None], t_eval=ts))
        return solution.ys[0, -1], int(solution.stats["n_f_evals"][0])

    return solve


def solvers(stiff: bool) -> tuple[dict[str, Solve], list[str]]:
    """The solvers for a kind of problem, and the peers that are missing."""
    if stiff:
        return {
            "invreg Rodas5P": ours(Rodas5P()),
            "invreg Kvaerno5": ours(Kvaerno5()),
            "invreg Rosenbrock23": ours(Rosenbrock23()),
            "SciPy Radau": by_scipy("Radau"),
            "SciPy BDF": by_scipy("BDF"),
        }, []
    found = {
        "invreg Tsit5": ours(Tsit5()),
        "invreg Vern7": ours(Vern7()),
        "invreg Dopri8": ours(Dopri8()),
        "SciPy DOP853": by_scipy("DOP853"),
    }
    absent = []
    torchdiffeq, torchode = peer("torchdiffeq"), peer("torchode")
    if torchdiffeq is None:
        absent.append("torchdiffeq")
    else:
        found |= {f"torchdiffeq {name}": by_torchdiffeq(torchdiffeq, name) for name in ("dopri5", "dopri8")}
    if torchode is None:
        absent.append("torchode")
    else:
        found["torchode tsit5"] = by_torchode(torchode)
    return found, absent


def measured(problem: Problem, name: str, solve: Solve, tolerance: float) -> Point | None:
    """One point; None where the solver gave up."""
    seconds = math.inf
    for _ in range(2):
        start = time.perf_counter()
        try:
            y, calls = solve(problem, tolerance)
        except (AssertionError, RuntimeError) as failure:
            print(f"{problem.name}, {name}, tolerance {tolerance:.0e}: {type(failure).__name__}: {failure}"[:150])
            return None
        seconds = min(seconds, time.perf_counter() - start)
        if seconds > AGAIN:
            break
    return Point(problem.name, name, tolerance, problem.error(y), calls, seconds)


def points_of(problem: Problem, tolerances: tuple[float, ...]) -> tuple[list[Point], list[Row]]:
    """All points of a problem, and rows for what is missing."""
    found, absent = solvers(problem.stiff)
    points = []
    for name, solve in found.items():
        measured(problem, name, solve, 1e-2)  # loads what is loaded at first use
        for tolerance in tolerances:
            if "Rosenbrock23" in name and tolerance < LOW_ORDER:
                continue
            point = measured(problem, name, solve, tolerance)
            if point is not None:
                points.append(point)
    return points, [missing(problem.name, name) for name in absent]


def draw(points: list[Point], output: Path) -> None:
    """A column for each problem: error against evaluations above, against seconds below."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    names = list(dict.fromkeys(point.problem for point in points))
    figure, axes = pyplot.subplots(2, len(names), figsize=(4 * len(names), 7.5), squeeze=False, layout="constrained")
    for column, name in enumerate(names):
        for line, solver in enumerate(dict.fromkeys(p.solver for p in points if p.problem == name)):
            mine = [p for p in points if p.problem == name and p.solver == solver]
            style: dict[str, Any] = {"marker": "os^Dvpxh"[line % 8], "markersize": 4, "color": f"C{line}"}
            style["linestyle"] = "-" if solver.startswith("invreg") else "--"
            errors = [p.error for p in mine]
            axes[0, column].loglog([p.calls for p in mine], errors, label=solver, **style)
            axes[1, column].loglog([p.seconds for p in mine], errors, **style)
        axes[0, column].set(title=name, xlabel="evaluations of the field")
        axes[1, column].set(xlabel="seconds")
        axes[0, column].legend(fontsize="x-small")
        for row in (0, 1):
            axes[row, column].grid(visible=True, which="major", alpha=0.3)
            axes[row, column].set_ylabel("error at the end" if column == 0 else "")
            axes[row, column].xaxis.set_minor_formatter(NullFormatter())
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two problems, two tolerances")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="where to draw the diagrams; not drawn without it")
    options = parser.parse_args()
    use_threads(options.threads)
    print(machine())
    points: list[Point] = []
    rows: list[Row] = []
    with torch.no_grad():
        for name in QUICK_PROBLEMS if options.quick else PROBLEMS:
            new, absent = points_of(ALL[name], QUICK_TOLERANCES if options.quick else TOLERANCES)
            points += new
            for point in new:
                note = f"error {point.error:.1e}, {point.calls} evaluations"
                rows.append(Row(f"{point.problem}, {point.tolerance:.0e}", point.solver, point.seconds, note=note))
            rows += absent
    print(table(rows))
    if options.output is not None:
        draw(points, options.output)


if __name__ == "__main__":
    main()
