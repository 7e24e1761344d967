import pytest
import torch
from torch import Tensor

from invreg.solvers import RK4, AutoSwitch, Direct, Tsit5, odeint
from invreg.solvers.rosenbrock import Rosenbrock23


def relaxing(t: Tensor, y: Tensor) -> Tensor:
    """Slow until t = 1, then stiff."""
    rate = torch.where(t < 1, 1.0, 500.0)
    return -rate * (y - torch.cos(t))


def test_both_methods_must_be_methods_that_estimate_the_stiffness() -> None:
    with pytest.raises(TypeError, match=r"nonstiff must be a Method such as Tsit5\(\), got <class"):
        AutoSwitch(Tsit5, Rosenbrock23())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"stiff must be a Method such as Tsit5\(\), got 'rosenbrock23'"):
        AutoSwitch(Tsit5(), "rosenbrock23")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nonstiff must estimate the stiffness, which RK4 does not"):
        AutoSwitch(RK4(), Rosenbrock23())


def test_the_explicit_method_must_be_explicit() -> None:
    with pytest.raises(ValueError, match="nonstiff must be explicit, got Rosenbrock23"):
        AutoSwitch(Rosenbrock23(), Rosenbrock23())


def test_it_switches_after_so_many_stiff_steps_and_back() -> None:
    switch = AutoSwitch(Tsit5(), Rosenbrock23(), patience=2, confidence=1)
    size = Tsit5().stability_size
    assert size is not None
    which, run = 0, 0
    for _ in range(2):
        which, run, factor = switch.judge(which, run, size, 1.0)
        assert (which, factor) == (0, 1.0)
    assert switch.judge(which, run, size, -1.0) == (1, 0, 2.0)
    assert switch.judge(0, 2, 0.1 * size, 1.0) == (0, 0, 1.0)
    assert switch.judge(1, 0, 0.1 * size, 1.0) == (1, 1, 1.0)
    assert switch.judge(1, 1, 0.1 * size, 1.0) == (0, 0, 0.5)
    assert switch.judge(0, 2, float("nan"), 1.0) == (1, 0, 2.0)


def test_a_problem_that_turns_stiff_is_given_to_the_stiff_method() -> None:
    y0 = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        plain = odeint(relaxing, y0, [0.0, 3.0], jumps=[1.0])
        solution = odeint(relaxing, y0, [0.0, 3.0], method=AutoSwitch(Tsit5(), Rosenbrock23()), jumps=[1.0])
    which = solution.steps.method
    before = solution.steps.t[:, 0] < 1
    assert (which[before] == 0).all() and which[-1] == 1
    assert solution.stats.accepted < plain.stats.accepted / 4
    torch.testing.assert_close(solution.ys[-1], plain.ys[-1], rtol=1e-2, atol=1e-3)


def test_gradients_of_a_switched_solve_are_those_of_the_tape() -> None:
    rate = torch.tensor(300.0, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -rate * (y - torch.cos(t))

    found = []
    for options in ({}, {"adjoint": Direct()}):
        solution = odeint(field, y0, [0.0, 0.2, 0.4], method=AutoSwitch(Tsit5(), Rosenbrock23()), **options)
        assert solution.steps.method.unique().numel() == 2
        parts = solution.ys.sum() + solution.steps.error.sum(), solution.steps.stiffness.sum()
        found.append([torch.autograd.grad(part, [rate, y0], retain_graph=True) for part in parts])
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-10)
