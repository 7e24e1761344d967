"""Choices of solvers are checked where they are made, not at the first problem."""

from collections.abc import Callable

import pytest

from invreg.solvers import PI, SOSRI, Euler, NoisySolver, Solver, Tsit5


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Solver(rtol=-1), "rtol must be finite and > 0, got -1"),
        (lambda: Solver(atol="x"), "atol must be a number"),
        (lambda: Solver(method="tsit5"), "method must be a Method such as Tsit5.*did you mean Tsit5"),
        (lambda: Solver(method=SOSRI()), "SOSRI solves stochastic equations: use it in a NoisySolver"),
        (lambda: Solver(method=Euler(), controller=PI()), "Euler has no error estimate"),
        (lambda: Solver(adjoint=1), "adjoint must be an Adjoint"),
        (lambda: Solver(max_steps=0), "max_steps must be an integer > 0"),
        (lambda: NoisySolver(noise="diagnal"), "noise must be one of .*did you mean 'diagonal'"),
        (lambda: NoisySolver(method=Tsit5()), "Tsit5 solves no stochastic equations"),
        (lambda: NoisySolver(rtol=0), "rtol must be finite and > 0, got 0"),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        make()
