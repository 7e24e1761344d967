import functools

import pytest
import torch
from torch import Tensor, nn

from invreg.solvers import Checkpointed, Direct, Event, Tsit5, Vern7, odeint
from invreg.solvers.adjoint import Adjoint
from invreg.solvers.backsolve import Backsolve
from invreg.solvers.interpolating import Interpolating

REFERENCE = 1e-10


def gradients(adjoint: Adjoint, tol: float, sign: float = 1.0, method: Tsit5 | Vern7 = Tsit5()) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    y0, leaf = torch.randn(2, 3, dtype=torch.float64).requires_grad_(), torch.randn(3).double().requires_grad_()
    arg = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    ts = (torch.tensor([0.1, 0.5, 0.9, 2.0], dtype=torch.float64) * sign).requires_grad_()
    closed = leaf.sin() * 2
    ys = odeint(lambda t, y, a: net(y) * a + closed * torch.cos(t * y), y0, ts, args=(arg,), method=method, rtol=tol,
                atol=tol, adjoint=adjoint).ys  # fmt: skip
    return torch.autograd.grad(weighted(ys), [y0, ts, leaf, arg, *net.parameters()])


def weighted(ys: Tensor) -> Tensor:
    return (ys.abs().square() * torch.linspace(-1, 1, ys.numel(), dtype=torch.float64).reshape(ys.shape)).sum()


@functools.cache
def reference_gradients(sign: float = 1.0) -> tuple[Tensor, ...]:
    return gradients(Direct(), REFERENCE, sign)


def distance(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("seminorm", [False, True])
def test_gradients_come_to_those_of_direct_as_the_tolerance_falls(sign: float, seminorm: bool) -> None:
    reference = reference_gradients(sign)
    loose, tight = (distance(gradients(Interpolating(seminorm=seminorm), tol, sign), reference) for tol in (1e-4, 1e-8))
    assert tight < 1e-6
    assert loose > 100 * tight


def test_another_method_may_go_back() -> None:
    reference = reference_gradients()
    assert distance(gradients(Interpolating(method=Tsit5()), 1e-9, method=Vern7()), reference) < 1e-5


def test_it_is_stable_where_the_state_cannot_be_integrated_back() -> None:
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)

    def found(adjoint: Adjoint) -> tuple[Tensor, ...]:
        ys = odeint(lambda t, y: -rate * (y.pow(3) - t.cos()), y0, [0.0, 1.0], rtol=1e-6, atol=1e-6, max_steps=300,
                    adjoint=adjoint).ys  # fmt: skip
        return torch.autograd.grad(ys.square().sum(), [y0, rate])

    reference = found(Checkpointed())
    assert distance(found(Interpolating()), reference) < 1e-5
    with pytest.raises(RuntimeError, match="backward solve"):
        found(Backsolve())


def test_complex_and_structured_states_have_gradients() -> None:
    generator = torch.Generator().manual_seed(2)
    y0 = torch.randn(3, dtype=torch.complex128, generator=generator).requires_grad_()
    real = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    a = torch.randn(3, 3, dtype=torch.complex128, generator=generator).requires_grad_()

    def found(adjoint: Adjoint, tol: float) -> tuple[Tensor, ...]:
        z, r = odeint(lambda t, y: ((a @ y[0]) * 1j * y[1], -y[1] * t), (y0, real), [0.0, 0.4, 1.0], rtol=tol, atol=tol,
                      adjoint=adjoint).ys  # fmt: skip
        return torch.autograd.grad(weighted(z) + weighted(r), [y0, real, a])

    assert distance(found(Interpolating(), 1e-9), found(Direct(), REFERENCE)) < 1e-6


def test_events_and_values_between_times_have_gradients() -> None:
    y0 = torch.tensor([0.2, 0.4], dtype=torch.float64, requires_grad=True)
    ts = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64, requires_grad=True)

    def found(adjoint: Adjoint, tol: float) -> tuple[Tensor, ...]:
        solution = odeint(lambda t, y: 2 - y.sin() * t, y0, ts, rtol=tol, atol=tol, adjoint=adjoint,
                          events=[Event(lambda t, y: y[0] - 1.5)])  # fmt: skip
        happened = solution.events[0]
        loss = weighted(happened.y) + happened.t.square().sum() + solution(0.3).pow(3).sum()
        return torch.autograd.grad(loss + weighted(solution.ys.nan_to_num()), [y0, ts])

    assert distance(found(Interpolating(), 1e-9), found(Direct(), REFERENCE)) < 1e-5


def test_the_norm_gets_no_state() -> None:
    lengths = set()

    def norm(parts: tuple[Tensor, ...]) -> Tensor:
        lengths.add(len(parts))
        return torch.stack([part.abs().max() for part in parts]).max()

    gradients(Interpolating(norm=norm), 1e-5)
    assert lengths == {1 + 1 + 2 + 4}  # time, adjoint, closed and arg, the net


def test_step_estimates_have_no_graph() -> None:
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    steps = odeint(lambda t, y: -y, y0, [0.0, 1.0], adjoint=Interpolating()).steps
    assert steps.ratio is not None
    assert steps.error is not None
    assert not steps.ratio.requires_grad
    assert not steps.error.requires_grad


def test_a_second_derivative_is_refused() -> None:
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    ys = odeint(lambda t, y: -y.pow(3), y0, [0.0, 1.0], adjoint=Interpolating()).ys
    (first,) = torch.autograd.grad(ys.square().sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="second ones use adjoint=Direct"):
        first.sum().backward()


def test_a_failed_backward_solve_says_so() -> None:
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    ys = odeint(lambda t, y: -y.pow(3), y0, [0.0, 1.0], max_steps=20, adjoint=Interpolating(rtol=1e-13, atol=1e-13)).ys
    with pytest.raises(RuntimeError, match=r"backward solve from t = 1 to t = 0: max_steps"):
        ys.sum().backward()


def test_per_sample_steps_are_refused() -> None:
    y0 = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"Interpolating needs steps that all samples share.*Checkpointed\(\)"):
        odeint(lambda t, y: -y, y0, [0.0, 1.0], per_sample=True, adjoint=Interpolating())
