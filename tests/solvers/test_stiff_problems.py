"""Methods for stiff problems, alone and behind a switch, at a loose tolerance; the others are in test_problems.py."""

import numpy as np
import pytest
import torch
from problems import ALL
from scipy.integrate import solve_ivp
from torch import Tensor

from invreg.solvers import AutoSwitch, Method, Tsit5, odeint
from invreg.solvers.implicit import Kvaerno3, Kvaerno5
from invreg.solvers.rosenbrock import Rodas5P, Rosenbrock23
from invreg.solvers.solution import Solution

pytestmark = pytest.mark.usefixtures("forward_mode")
VAN_DER_POL = "van der Pol, mu = 1000"
# size of each component for atol
SIZES: dict[str, Tensor] = {
    VAN_DER_POL: torch.ones(2, dtype=torch.float64),
    "Robertson": torch.tensor([1e-6, 1e-10, 1.0], dtype=torch.float64),
    "HIRES": torch.full((8,), 1e-3, dtype=torch.float64),
}


def distance(name: str, y: Tensor, tolerance: float) -> float:
    """The error at the end in units of the tolerance."""
    wanted = ALL[name].reference
    return float(((y - wanted).abs() / (tolerance * (SIZES[name] + wanted.abs()))).max())


def solved(name: str, method: Method | AutoSwitch, tolerance: float) -> tuple[float, Solution]:
    """The error at the end in units of the tolerance, and the solution."""
    problem, atol = ALL[name], tolerance * SIZES[name]
    with torch.no_grad():
        solution = odeint(problem.field, problem.y0, [0.0, problem.t_end], method=method, rtol=tolerance, atol=atol)
    assert solution.success
    return distance(name, solution.ys[-1], tolerance), solution


def radau(name: str, tolerance: float) -> float:
    """The same error of SciPy's Radau."""
    problem, atol = ALL[name], tolerance * SIZES[name].numpy()

    def field(t: float, y: np.ndarray) -> np.ndarray:
        return problem.field(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)).numpy()

    ends = (0.0, problem.t_end)
    found = solve_ivp(field, ends, problem.y0.numpy(), method="Radau", rtol=tolerance, atol=atol)
    return distance(name, torch.from_numpy(found.y[:, -1].copy()), tolerance)


@pytest.mark.parametrize(
    ("method", "name", "bound"),
    [
        *((method, "Robertson", 2) for method in (Kvaerno3(), Kvaerno5(), Rosenbrock23())),
        (Rosenbrock23(), VAN_DER_POL, 10),
        (Rosenbrock23(), "HIRES", 10),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Method) else None,
)
def test_the_error_at_the_end_is_a_multiple_of_the_tolerance(method: Method, name: str, bound: float) -> None:
    assert solved(name, method, 1e-3)[0] < bound


@pytest.mark.parametrize("name", SIZES)
def test_rodas5p_errs_at_most_ten_times_what_radau_or_the_tolerance_allow(name: str) -> None:
    assert solved(name, Rodas5P(), 1e-3)[0] < 10 * max(radau(name, 1e-3), 1.0)


@pytest.mark.parametrize("name", [VAN_DER_POL, "Robertson"])
def test_switching_needs_at_most_twice_the_work_of_the_best_of_the_two(name: str) -> None:
    def work(solution: Solution) -> int:
        dynamics = solution.problem.dynamics
        return dynamics.calls + len(ALL[name].y0) * dynamics.jacobians

    alone, switched = (solved(name, method, 1e-3) for method in (Rosenbrock23(), AutoSwitch(Tsit5(), Rosenbrock23())))
    assert switched[0] < max(10, 2 * alone[0])
    assert work(switched[1]) < 2 * work(alone[1])
    assert set(switched[1].steps.method.tolist()) == {0, 1}


def test_switching_to_an_implicit_method_solves_robertson() -> None:
    error, solution = solved("Robertson", AutoSwitch(Tsit5(), Kvaerno5()), 1e-3)
    assert error < 2
    assert set(solution.steps.method.tolist()) == {0, 1}


def test_switching_stays_explicit_where_nothing_is_stiff() -> None:
    y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
    solution = odeint(ALL["E2"].field, y0, [0.0, 10.0], method=AutoSwitch(Tsit5(), Rosenbrock23()), rtol=1e-4)
    assert not solution.steps.method.any()
