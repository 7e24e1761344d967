"""Single steps by hand."""

import pytest
import torch
from torch import Tensor

from invreg.solvers import Rodas5P, Tsit5, odeint, step


def field(t: Tensor, y: Tensor) -> Tensor:
    return -y * torch.cos(t)


def test_steps_by_hand_make_the_solution() -> None:
    y0 = torch.tensor([1.0, 2.0], dtype=torch.float64)
    solution = odeint(field, y0, [0.0, 2.0], rtol=1e-8, atol=1e-8)
    y, slope = y0, None
    for t, dt in zip(solution.steps.t[:, 0].tolist(), solution.steps.dt[:, 0].tolist(), strict=True):
        one = step(field, t, dt, y, slope=slope)
        y, slope = one.y, one.slope()
    assert torch.allclose(y, solution.ys[-1], rtol=1e-14)


def test_a_step_tells_its_error_its_stiffness_and_what_lies_between() -> None:
    one = step(lambda t, y: -3 * y, 0.0, 0.1, torch.ones(2, dtype=torch.float64))
    assert torch.allclose(one.at(0.5), torch.full((2,), -0.15, dtype=torch.float64).exp(), rtol=1e-5)
    error = one.error()
    assert error is not None
    assert 0 < float(error.abs().max()) < 1e-4
    stiffness = one.stiffness(samples=False)
    assert stiffness is not None
    assert float(stiffness) == pytest.approx(3.0)


def test_each_sample_may_have_its_own_time_and_length() -> None:
    y = torch.ones(3, 2, dtype=torch.float64)
    t, dt = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.1], [0.2], [-0.1]])
    together = step(field, t, dt, y, method=Tsit5()).y
    alone = [step(field, float(a), float(b), y[i]).y for i, (a, b) in enumerate(zip(t, dt, strict=True))]
    assert torch.allclose(together, torch.stack(alone), atol=1e-8)  # t and dt came in float32


def test_gradients_reach_state_and_weights() -> None:
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    for method in (Tsit5(), Rodas5P()):
        assert torch.autograd.gradcheck(
            lambda w, y, m=method: step(lambda t, x: -w * x**3, 0.0, 0.1, y, method=m).y, (w, y)
        )


def test_a_field_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"field must return the shape of the state, \(2,\), got \(3,\)"):
        step(lambda t, y: torch.ones(3), 0.0, 0.1, torch.ones(2))
    with pytest.raises(TypeError, match="y must be a tensor for single steps, got tuple"):
        step(field, 0.0, 0.1, (torch.ones(2),))  # type: ignore[arg-type]
