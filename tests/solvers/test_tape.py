"""The first steps of a checkpointed solve may stay on the tape: the gradients are the same, the memory is bounded."""

from typing import Any

import pytest
import torch
from gradients import distance, driven, gradients, start, weighted_sum, weights
from torch import Tensor, nn

from invreg.solvers import Checkpointed, Direct, Dopri8, Event, Fixed, Heun, Rodas5P, Tsit5, odeint
from invreg.solvers.method import Method

TAPES = [0, 100_000, 250_000, 500_000, 2**25]


def steps_taped(tape: int) -> int:
    """How many steps of a solve of 20 need no evaluation in the backward pass."""
    calls = [0]

    def field(t: Tensor, y: Tensor) -> Tensor:
        calls[0] += 1
        return driven(t, y, w)

    w, y0 = weights(), start()
    ys = odeint(field, y0, [0.0, 1.0], controller=Fixed(0.05), method=Heun(), adjoint=Checkpointed(tape=tape)).ys
    calls[0] = 0
    ys.sum().backward()
    return 20 - calls[0] // 2


def test_the_larger_the_tape_the_fewer_steps_are_replayed() -> None:
    counts = [steps_taped(tape) for tape in TAPES]
    assert counts[0] == 0 and counts[-1] == 20
    assert counts == sorted(counts) and 0 < counts[1] < counts[2] < 20


@pytest.mark.parametrize("tape", TAPES)
@pytest.mark.parametrize("jumps", [[], [0.7]], ids=["smooth", "jump"])
def test_gradients_do_not_depend_on_the_tape(tape: int, jumps: list[float]) -> None:
    ours, reference = (
        gradients(adjoint, 1e-4, estimates=True, jumps=jumps) for adjoint in (Checkpointed(tape=tape), Direct())
    )
    assert distance(ours, reference) < 1e-10


@pytest.mark.parametrize("tape", TAPES)
def test_gradients_of_states_and_events_do_not_depend_on_the_tape(tape: int) -> None:
    found = []
    for adjoint in (Checkpointed(tape=tape), Direct()):
        w, y0 = weights(), start()
        solution = odeint(driven, y0, [0.0, 4.0], args=(w,), rtol=1e-6, adjoint=adjoint,
                          events=[Event(lambda t, y, w: y[0, 0] - 1.5, terminal=False)])  # fmt: skip
        assert len(solution.events[0].t) > 0
        loss = weighted_sum(solution.steps.y) + solution.events[0].t.sum() + solution.events[0].y.square().sum()
        found.append(torch.autograd.grad(loss, [w, y0]))
    assert distance(found[0], found[1]) < 1e-9


@pytest.mark.parametrize("tape", TAPES)
def test_a_gradient_is_the_same_to_the_bit_when_asked_for_again(tape: int) -> None:
    w, y0 = weights(), start()
    ys = odeint(driven, y0, [0.0, 3.0], args=(w,), adjoint=Checkpointed(tape=tape)).ys
    one = torch.autograd.grad(ys.sum(), [w, y0], retain_graph=True)
    assert distance(torch.autograd.grad(ys.sum(), [w, y0]), one) == 0


@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["weights", "start"])
def test_what_needs_no_gradient_gets_none(needs: tuple[bool, bool]) -> None:
    w, y0 = weights().detach().requires_grad_(needs[0]), start().detach().requires_grad_(needs[1])
    odeint(driven, y0, [0.0, 1.0], args=(w,)).ys.sum().backward()
    assert ((w.grad is not None), (y0.grad is not None)) == needs


def kept(adjoint: Checkpointed | Direct, field: nn.Module, y0: Tensor, method: Method) -> int:
    """Bytes that a solve keeps for its backward pass."""
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        odeint(lambda t, y: field(y), y0, [0.0, 1.0], method=method, controller=Fixed(0.02), adjoint=adjoint)
    return sum(sizes.values())


FIELDS = {
    "network": (nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 2)), torch.randn(128, 2)),
    "convolutions": (
        nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Softplus(), nn.Conv2d(8, 2, 3, padding=1)),
        torch.randn(2, 2, 16, 16),
    ),
    "linear": (nn.Linear(20, 20), torch.randn(500, 20)),
}


@pytest.mark.parametrize("method", [Tsit5(), Dopri8(), Heun()], ids=["tsit5", "dopri8", "heun"])
@pytest.mark.parametrize("name", FIELDS)
def test_the_tape_holds_about_what_it_may(name: str, method: Method) -> None:
    field, y0 = FIELDS[name]
    whole, replayed = kept(Direct(), field, y0, method), kept(Checkpointed(tape=0), field, y0, method)
    allowed = whole // 3
    used = kept(Checkpointed(tape=allowed), field, y0, method) - replayed
    assert 0.4 * allowed < used < 1.3 * allowed


def test_implicit_steps_and_those_of_each_sample_are_replayed() -> None:
    for options in ({"method": Rodas5P()}, {"per_sample": True}):
        calls = [0]
        w, y0 = weights(), start()

        def field(t: Tensor, y: Tensor, w: Tensor = w, calls: list[int] = calls) -> Tensor:
            calls[0] += 1
            return driven(t, y, w)

        ys = odeint(field, y0, [0.0, 1.0], **options).ys
        calls[0] = 0
        ys.sum().backward()
        assert calls[0] > 0


@pytest.mark.parametrize("tape", [-1, 0.5, float("inf"), True, "64M"])
def test_a_tape_has_a_size(tape: Any) -> None:
    with pytest.raises(ValueError, match="tape must be a number of bytes, an integer >= 0, got"):
        Checkpointed(tape=tape)
