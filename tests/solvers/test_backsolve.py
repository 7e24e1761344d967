from dataclasses import FrozenInstanceError

import pytest
import torch
from gradients import (
    REFERENCE,
    Net,
    distance,
    gradients,
    reference_gradients,
    saved_entries,
    tensors,
    weighted,
)
from torch import Tensor

from invreg.solvers import PI, RK4, Checkpointed, Direct, Event, Fixed, Tsit5, odeint
from invreg.solvers.adjoint import Adjoint
from invreg.solvers.backsolve import Backsolve


def test_tolerances_of_the_backward_solve_are_its_own() -> None:
    reference = reference_gradients()
    tight = gradients(Backsolve(rtol=1e-10, atol=1e-10), 1e-8)
    loose = gradients(Backsolve(method=Tsit5(), controller=PI(), rtol=1e-3, atol=1e-3), 1e-8)
    assert distance(tight, reference) < 1e-6
    assert distance(loose, reference) > 1e-5


def test_fixed_steps_work_in_both_directions() -> None:
    reference = reference_gradients()
    found = gradients(Backsolve(), 1e-6, method=RK4(), controller=Fixed(0.02))
    assert distance(found, reference) < 1e-6


def test_tensor_tolerances_are_taken_over() -> None:
    found = gradients(Backsolve(), torch.full((3,), 1e-8, dtype=torch.float64))
    assert distance(found, reference_gradients()) < 1e-6


def test_seminorm_needs_fewer_evaluations_where_parameters_set_the_steps() -> None:
    net = Net(4, 32)
    y0 = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    found, calls = [], []
    for seminorm in (False, True):
        ys = odeint(net, y0, [0.0, 5.0], rtol=1e-7, atol=1e-7, adjoint=Backsolve(seminorm=seminorm)).ys
        net.calls = 0
        found.append(torch.autograd.grad(ys.pow(3).sum(), [y0, *net.parameters()]))
        calls.append(net.calls)
    assert calls[1] < calls[0]
    assert distance(*found) < 1e-4


def test_gradients_agree_with_those_of_torchdiffeq() -> None:
    theirs = pytest.importorskip("torchdiffeq")
    net = Net(4, 16)
    y0 = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    ts = torch.linspace(0, 2, 4, dtype=torch.float64).requires_grad_()
    inputs = [y0, ts, *net.parameters()]
    ys = odeint(net, y0, ts, rtol=1e-8, atol=1e-8, adjoint=Backsolve()).ys
    other = theirs.odeint_adjoint(net, y0, ts, rtol=1e-8, atol=1e-8)
    assert distance(torch.autograd.grad(weighted(ys), inputs), torch.autograd.grad(weighted(other), inputs)) < 1e-6


def test_complex_states_have_gradients() -> None:
    generator = torch.Generator().manual_seed(2)
    y0 = torch.randn(3, dtype=torch.complex128, generator=generator).requires_grad_()
    a = torch.randn(3, 3, dtype=torch.complex128, generator=generator).requires_grad_()
    damping = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    ts = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64, requires_grad=True)

    def found(adjoint: Adjoint, tol: float) -> tuple[Tensor, ...]:
        ys = odeint(lambda t, y: (a @ y) * 1j * t - damping * y.conj() * y.abs(), y0, ts, rtol=tol, atol=tol,
                    adjoint=adjoint).ys  # fmt: skip
        return torch.autograd.grad(weighted(ys) + ys.imag.sum(), [y0, a, damping, ts])

    ours = found(Backsolve(), 1e-9)
    assert [one.dtype for one in ours] == [torch.complex128, torch.complex128, torch.float64, torch.float64]
    assert distance(ours, found(Direct(), REFERENCE)) < 1e-6


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_structured_states_have_gradients(kind: str) -> None:
    y0, leaf, _ = tensors()
    speed = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)

    def found(adjoint: Adjoint, tol: float) -> tuple[Tensor, ...]:
        if kind == "tuple":
            ys = odeint(lambda t, y: (leaf * y[1] * y[0].cos(), -y[1] * t), (y0, speed), [0.0, 0.5, 1.5],
                        rtol=tol, atol=tol, adjoint=adjoint).ys  # fmt: skip
            loss = weighted(ys[0]) + weighted(ys[1])
        else:
            ys = odeint(lambda t, y: {"x": leaf * y["v"] * y["x"].cos(), "v": -y["v"] * t}, {"x": y0, "v": speed},
                        [0.0, 0.5, 1.5], rtol=tol, atol=tol, adjoint=adjoint).ys  # fmt: skip
            loss = weighted(ys["x"]) + weighted(ys["v"])
        return torch.autograd.grad(loss, [y0, speed, leaf])

    assert distance(found(Backsolve(), 1e-9), found(Direct(), REFERENCE)) < 1e-6


@pytest.mark.parametrize("own_times", [False, True])
def test_samples_with_their_own_steps_have_gradients(own_times: bool) -> None:
    y0, leaf, _ = tensors()
    net = Net()
    base = torch.tensor([0.1, 0.5, 0.9, 2.0], dtype=torch.float64)
    ts = (torch.stack([base, base * 0.5], 1) if own_times else base).requires_grad_()

    def found(adjoint: Adjoint) -> tuple[Tensor, ...]:
        ys = odeint(lambda t, y: net(t, y) + leaf * torch.cos(t * y), y0, ts, rtol=1e-9, atol=1e-9, stops=[0.7],
                    per_sample=True, adjoint=adjoint).ys  # fmt: skip
        return torch.autograd.grad(weighted(ys), [y0, ts, leaf, *net.parameters()])

    assert distance(found(Backsolve()), found(Checkpointed())) < 1e-5


def test_times_that_were_not_reached_add_nothing() -> None:
    y0, leaf, _ = tensors()

    def found(adjoint: Adjoint, per_sample: bool) -> tuple[Tensor, ...]:
        ys = odeint(lambda t, y: leaf * y.cos() + t, y0, [0.0, 0.5, 1.0, 9.0], rtol=1e-9, atol=1e-9, max_steps=45,
                    throw=False, per_sample=per_sample, adjoint=adjoint).ys  # fmt: skip
        assert ys[1].isfinite().all()
        assert ys[-1].isnan().any()
        return torch.autograd.grad(weighted(ys.nan_to_num()), [y0, leaf])

    for per_sample in (False, True):
        assert distance(found(Backsolve(), per_sample), found(Checkpointed(), per_sample)) < 1e-6


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_jumps_are_met_on_the_way_back(sign: float) -> None:
    y0, leaf, _ = tensors()
    ts = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64) * sign

    def found(adjoint: Adjoint, tol: float) -> tuple[Tensor, ...]:
        ys = odeint(lambda t, y: torch.where(t.abs() < 0.5, leaf * y, -3 * y.sin()) * (1 if abs(t) < 0.8 else 2),
                    y0, ts, jumps=[0.5 * sign, 0.8 * sign], rtol=tol, atol=tol, adjoint=adjoint).ys  # fmt: skip
        return torch.autograd.grad(weighted(ys), [y0, leaf])

    assert distance(found(Backsolve(), 1e-9), found(Direct(), REFERENCE)) < 1e-6


def test_only_the_parameters_asked_for_get_gradients() -> None:
    net = Net()
    y0 = tensors()[0]
    some = tuple(net.net[0].parameters())
    odeint(net, y0, [0.0, 1.0], adjoint=Backsolve(params=some)).ys.sum().backward()
    assert all(one.grad is not None for one in some)
    assert all(one.grad is None for one in net.net[2].parameters())


def test_without_gradients_there_is_no_graph() -> None:
    with torch.no_grad():
        assert not odeint(Net(), tensors()[0], [0.0, 1.0], adjoint=Backsolve()).ys.requires_grad


def test_memory_does_not_grow_with_the_steps() -> None:
    def saved(adjoint: Adjoint, tol: float) -> int:
        return saved_entries(Net(), tensors()[0], adjoint=adjoint, rtol=tol, atol=tol)

    assert saved(Backsolve(), 1e-3) == saved(Backsolve(), 1e-10) < saved(Checkpointed(tape=0), 1e-10)


def test_gradients_of_events_per_sample_are_refused() -> None:
    y0 = torch.tensor([[0.5], [0.7]], dtype=torch.float64, requires_grad=True)
    solution = odeint(lambda t, y: y, y0, [0.0, 3.0], per_sample=True, events=[Event(lambda t, y: y[:, 0] - 1)],
                      adjoint=Backsolve())  # fmt: skip
    with pytest.raises(RuntimeError, match=r"per_sample=True gives gradients of ys only.*Checkpointed\(\)"):
        solution.events[0].t.sum().backward()


def test_a_method_without_error_estimate_needs_fixed_steps() -> None:
    with pytest.raises(ValueError, match=r"method of Backsolve must estimate errors for PI, which RK4 does not"):
        odeint(Net(), tensors()[0], [0.0, 1.0], adjoint=Backsolve(method=RK4()))


def test_options_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Backsolve().rtol = 1.0  # type: ignore[misc]
