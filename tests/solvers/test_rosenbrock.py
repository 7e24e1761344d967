import numpy as np
import pytest
import torch
from problems import ALL
from torch import Tensor

from invreg.solvers import Fixed, Status, odeint
from invreg.solvers.linear import GMRES
from invreg.solvers.rosenbrock import ALPHA, GAMMA, GAMMAS, A, C, H, Rodas5P, Rosenbrock, Rosenbrock23

F64 = torch.float64
zero = torch.zeros((), dtype=F64)
pytestmark = pytest.mark.usefixtures("forward_mode")


def test_coefficients_of_rodas5p_fit_together() -> None:
    s = len(ALPHA)

    def lower(rows: tuple[tuple[float, ...], ...]) -> np.ndarray:
        return np.array([[*row, *[0.0] * (s - len(row))] for row in rows])

    Gamma = np.linalg.inv(np.eye(s) / GAMMA - lower(C))  # Hairer, Wanner II, (IV.7.25)
    np.testing.assert_allclose(Gamma.sum(1), GAMMAS, atol=1e-13)
    np.testing.assert_allclose((lower(A) @ Gamma).sum(1), ALPHA, atol=1e-13)
    weights, alpha = np.array([*A[-1], 1.0]) @ Gamma, np.array(ALPHA)
    for k in range(5):
        np.testing.assert_allclose(weights @ alpha**k, 1 / (k + 1), atol=1e-12)
    end = np.array([*A[-1], 1.0])  # y1 - y0; the slope at the start is that of the exact solution to first order
    np.testing.assert_allclose((end + np.array(H[0])) @ Gamma @ np.ones(s), 1 + (np.array(H[0]) @ Gamma).sum())


def test_gmres_that_does_not_converge_rejects_the_step() -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([-1e4 * y[0] + y[1], y[2] * 50, -50 * y[1]])

    y0 = torch.ones(3, dtype=F64)
    short = GMRES(iterations=2)
    assert Rodas5P(linear=short).step(field, zero, 1.0, y0).error().isnan().all()
    solution = odeint(field, y0, [0.0, 1e-3], method=Rosenbrock23(linear=short), max_steps=20, throw=False)
    assert solution.status[0] in {Status.SUCCESS, Status.MAX_STEPS, Status.NONFINITE}
    assert solution.stats.rejected.item() > 0


# the slope at the end begins the next step
@pytest.mark.parametrize(("method", "solves", "evaluations"), [(Rosenbrock23(), 3, 2), (Rodas5P(), 8, 8)])
def test_work_is_counted(method: Rosenbrock, solves: int, evaluations: int) -> None:
    y0 = torch.ones(2, dtype=F64)
    solution = odeint(ALL["E2"].field, y0, [0.0, 1.0], method=method, controller=Fixed(0.25))
    dynamics = solution.problem.dynamics
    assert dynamics.jacobians == 4
    assert dynamics.solves == 4 * solves
    assert 4 * evaluations <= dynamics.calls <= 4 * evaluations + 1


def test_dict_states_are_solved() -> None:
    def field(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"x": -100 * y["x"] + y["z"], "z": y["x"].sum(0, keepdim=True)}

    y0 = {"x": torch.ones(2, dtype=F64), "z": torch.zeros(1, dtype=F64)}
    ys = odeint(field, y0, [0.0, 1.0], method=Rodas5P(), rtol=1e-6, atol=1e-8).ys
    torch.testing.assert_close(ys["z"][-1], torch.tensor([0.0204], dtype=F64), rtol=0, atol=1e-4)
