"""The weights and warnings of the Adams methods."""

import pytest
import torch

from invreg.solvers.compat.adams import bashforth, moulton
from invreg.solvers.compat.torchdiffeq import odeint

F64 = torch.float64


def test_adams_weights_are_those_of_the_books():
    assert bashforth(1) == (1.0,)
    assert bashforth(4) == pytest.approx((55 / 24, -59 / 24, 37 / 24, -9 / 24), rel=1e-15)
    assert moulton(4) == pytest.approx((9 / 24, 19 / 24, -5 / 24, 1 / 24), rel=1e-15)
    for k in range(1, 13):
        for power in range(min(k, 6)):
            moment = sum(w * (-i) ** power for i, w in enumerate(bashforth(k)))
            assert moment == pytest.approx(1 / (power + 1), rel=1e-8)


def test_a_corrector_that_does_not_converge_is_told():
    t = torch.tensor([0.0, 1.0], dtype=F64)
    with pytest.warns(UserWarning, match="did not converge"):
        odeint(
            lambda t, y: -30 * y,
            torch.ones(1, dtype=F64),
            t,
            method="implicit_adams",
            options={"step_size": 0.05, "max_iters": 1},
        )
    with pytest.warns(UserWarning, match="every step is one of rk4"):
        odeint(lambda t, y: -y, torch.ones(1, dtype=F64), t, method="explicit_adams", options={"max_order": 3})
