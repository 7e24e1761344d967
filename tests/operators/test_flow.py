"""The solution map of a differential equation: closed forms, gradients, and a problem solved with it."""

import pytest
import torch
from torch import Tensor, nn

from invreg.algorithms import GradientDescent
from invreg.noise import Gaussian
from invreg.operators import Flow, Mask
from invreg.problem import Problem
from invreg.solvers import Backsolve, Vern7

F64 = torch.float64


def rotation(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([-y[:, 1], y[:, 0]], 1)


def test_a_rotation_is_a_rotation() -> None:
    flow = Flow(rotation, [0.0, 1.0, 2.0], (2,))
    x = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    z = torch.view_as_complex(x)
    wanted = torch.stack([z * torch.exp(1j * torch.tensor(t, dtype=F64)) for t in (1.0, 2.0)], 1)
    assert torch.allclose(flow(x), torch.view_as_real(wanted), atol=1e-5)
    assert flow.measurement_shape == (2, 2)


def test_its_vjp_is_the_transposed_rotation() -> None:
    flow = Flow(rotation, [0.0, 0.7], (2,), rtol=1e-10, atol=1e-10, method=Vern7())
    x, v = torch.randn(2, 5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = flow.vjp(x, v[:, None])
    turned = torch.view_as_complex(v) * torch.exp(torch.tensor(-0.7j, dtype=torch.complex128))
    assert torch.allclose(found, torch.view_as_real(turned), atol=1e-9)


@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_reach_the_parameters_of_the_field(per_sample: bool) -> None:
    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.5, dtype=F64))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -self.rate * y

    flow = Flow(Decay(), [0.0, 2.0], (1,), rtol=1e-9, atol=1e-12, per_sample=per_sample)
    x = torch.full((3, 1), 2.0, dtype=F64)
    (gradient,) = torch.autograd.grad(flow(x).sum(), list(flow.parameters()))
    assert float(gradient) == pytest.approx(3 * -2 * 2 * float(torch.tensor(-1.0, dtype=F64).exp()), rel=1e-6)


def test_an_initial_state_is_recovered_from_part_of_a_noisy_trajectory() -> None:
    flow = Flow(rotation, torch.linspace(0, 3, 31), (2,), adjoint=Backsolve(seminorm=True))
    seen = Mask(torch.tensor([True, False]).expand(30, 2))  # only the first component
    truth = torch.tensor([[1.0, -0.5]], dtype=F64)
    noise = Gaussian(0.01)
    operator = seen @ flow
    y = noise.sample(operator(truth), torch.Generator().manual_seed(0)) * operator.sampled()
    problem = Problem(operator, y, noise)
    found = GradientDescent(iterations=60).solve(problem, None, x0=torch.zeros(1, 2, dtype=F64)).x
    assert (found - truth).abs().max() < 0.02


def test_too_few_times_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"ts must hold the start and at least one time, \(T \+ 1,\), got shape \(1,\)"
    ):
        Flow(rotation, [0.0], (2,))
    with pytest.raises(ValueError, match="x must be"):
        Flow(rotation, [0.0, 1.0], (2,))(torch.zeros(3, 4))


def test_a_compiler_goes_around_the_loop() -> None:
    flow = Flow(rotation, [0.0, 1.0, 2.0], (2,))
    found = []
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    for model in (lambda x: 3 * flow(2 * x), torch.compile(lambda x: 3 * flow(2 * x), backend="aot_eager")):
        x = torch.tensor([[0.3, -1.0]], dtype=torch.float64, requires_grad=True)
        y = model(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), x)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)
    assert counters["unique_graphs"] - before == 2  # one before it and one after it
