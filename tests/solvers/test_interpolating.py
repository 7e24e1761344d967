import pytest
import torch
from gradients import distance, gradients, reference_gradients
from torch import Tensor

from invreg.solvers import Checkpointed, Tsit5, Vern7, odeint
from invreg.solvers.adjoint import Adjoint
from invreg.solvers.backsolve import Backsolve
from invreg.solvers.interpolating import Interpolating


def test_another_method_may_go_back() -> None:
    found = gradients(Interpolating(method=Tsit5()), 1e-9, method=Vern7())
    assert distance(found, reference_gradients()) < 1e-5


def test_it_is_stable_where_the_state_cannot_be_integrated_back() -> None:
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)

    def found(adjoint: Adjoint) -> tuple[Tensor, ...]:
        ys = odeint(lambda t, y: -rate * (y.pow(3) - t.cos()), y0, [0.0, 1.0], rtol=1e-6, atol=1e-6, max_steps=300,
                    adjoint=adjoint).ys  # fmt: skip
        return torch.autograd.grad(ys.square().sum(), [y0, rate])

    reference = found(Checkpointed())
    assert distance(found(Interpolating()), reference) < 1e-5
    with pytest.raises(
        RuntimeError, match=r"backward solve from t = 1 to t = 0: max_steps .* adjoint=Checkpointed\(\)"
    ):
        found(Backsolve())


def test_per_sample_steps_are_refused() -> None:
    y0 = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"Interpolating needs steps that all samples share.*Checkpointed\(\)"):
        odeint(lambda t, y: -y, y0, [0.0, 1.0], per_sample=True, adjoint=Interpolating())
