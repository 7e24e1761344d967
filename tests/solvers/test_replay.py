from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from gradients import ADJOINTS, driven, start, weighted_sum, weights
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from invreg.solvers import PI, Adjoint, Checkpointed, Direct, Fixed, odeint
from invreg.solvers import per_sample as stepping
from invreg.solvers.march import read

# --- the replay happens under the same conditions


def with_dropout() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Dropout(0.2), nn.Linear(32, 3)).double()


@pytest.mark.parametrize("controller", [PI(), Fixed(0.21)], ids=["adaptive", "fixed"])
def test_dropout_is_replayed_with_the_same_random_numbers(controller: PI, per_sample: bool) -> None:
    net, y0 = with_dropout(), start()
    found, states = [], []
    for adjoint in ADJOINTS.values():
        torch.manual_seed(7)
        solution = odeint(lambda t, y: net(y), y0, [0.0, 0.4, 1.0], adjoint=adjoint, per_sample=per_sample,
                          controller=controller, rtol=0.1, atol=0.1, max_steps=400, throw=False)  # fmt: skip
        ys = solution.ys.nan_to_num()
        found.append((ys.detach(), torch.autograd.grad(weighted_sum(ys), [y0, *net.parameters()])))
        states.append(torch.get_rng_state())
    torch.manual_seed(7)
    with torch.no_grad():
        odeint(lambda t, y: net(y), y0, [0.0, 0.4, 1.0], per_sample=per_sample, controller=controller, rtol=0.1,
               atol=0.1, max_steps=400, throw=False)  # fmt: skip
    for one in found[:-1]:
        torch.testing.assert_close(one, found[-1], rtol=1e-10, atol=1e-10)
    assert all(torch.equal(state, torch.get_rng_state()) for state in states)


def test_dropout_in_a_net_that_evaluates_draws_nothing(per_sample: bool) -> None:
    net, y0 = with_dropout().eval(), start()
    before = torch.get_rng_state()
    solution = odeint(lambda t, y: net(y), y0, [0.0, 1.0], per_sample=per_sample)
    solution.ys.sum().backward()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_running_statistics_move_in_the_solve_and_not_in_the_replay(adjoint: str, per_sample: bool) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()

    taped, plain = net(), net()
    options = {"per_sample": per_sample, "controller": Fixed(0.5)}
    y0 = start()
    odeint(lambda t, y: taped(y), y0, [0.0, 1.0], adjoint=ADJOINTS[adjoint], **options).ys.sum().backward()
    with torch.no_grad():
        odeint(lambda t, y: plain(y), y0, [0.0, 1.0], **options)
    assert int(plain[1].num_batches_tracked) > 0
    for one, other in zip(taped.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert taped[0].weight.grad.abs().max() > 0


def test_the_replay_runs_under_the_autocast_of_the_solve(per_sample: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3))
    y0 = start().float().detach()
    seen: list[torch.dtype] = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        out = net(y)
        seen.append(out.dtype)
        return out

    found = []
    for adjoint in ADJOINTS.values():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ys = odeint(field, y0, [0.0, 1.0], adjoint=adjoint, per_sample=per_sample, controller=Fixed(0.5)).ys
        assert ys.dtype == torch.float32
        found.append(torch.autograd.grad(ys.sum(), list(net.parameters())))  # beyond the block
    assert set(seen) == {torch.bfloat16}
    for one in found[:-1]:
        torch.testing.assert_close(one, found[-1], rtol=2e-2, atol=2e-2)


# --- memory and cost


def saved_bytes(adjoint: Adjoint, count: int, per_sample: bool) -> int:
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    y0, w = torch.ones(50, 3, dtype=torch.float64, requires_grad=True), weights()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        solution = odeint(driven, y0, [0.0, 1.0], args=(w,), controller=Fixed(1 / count), adjoint=adjoint,
                          per_sample=per_sample)  # fmt: skip
    assert len(solution.steps) == count
    return sum(sizes.values())


def test_the_replay_keeps_one_state_a_step(per_sample: bool) -> None:
    state = 50 * 3 * 8
    few, many = (saved_bytes(Checkpointed(tape=0), count, per_sample) for count in (10, 110))
    assert (many - few) / 100 <= 1.6 * state
    few, many = (saved_bytes(Direct(), count, False) for count in (5, 15))
    assert (many - few) / 10 > 10 * state


def test_the_replay_keeps_a_thousand_states_for_a_thousand_steps() -> None:
    assert saved_bytes(Checkpointed(tape=0), 1000, False) <= 1.1 * 1000 * 50 * 3 * 8 + 10_000


class Count(TorchDispatchMode):
    """Counts the operations, those of the field apart."""

    def __init__(self) -> None:
        super().__init__()
        self.ops, self.reads, self.paused = 0, 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.paused:
            self.ops += 1
            self.reads += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def counted() -> Iterator[Callable[..., tuple[float, float]]]:
    def cost(per_sample: bool, **options: Any) -> tuple[float, float]:
        """Operations and reads for each attempted step."""
        found = []
        for span in (5.0, 25.0):
            y0 = torch.tensor([[3.0, 0.2]], dtype=torch.float64)
            with torch.no_grad(), Count() as count:

                def field(t: Tensor, y: Tensor, count: Count = count) -> Tensor:
                    count.paused = True
                    out = torch.stack([y[..., 1], -torch.sin(y[..., 0])], -1)
                    count.paused = False
                    return out

                solution = odeint(field, y0, [0.0, span], per_sample=per_sample, rtol=1e-6, **options)
            attempts = (solution.stats.accepted + solution.stats.rejected).item()
            found.append((attempts, count.ops, count.reads))
        (n0, ops0, reads0), (n1, ops1, reads1) = found
        return (ops1 - ops0) / (n1 - n0), (reads1 - reads0) / (n1 - n0)

    return cost


def test_a_step_costs_few_operations_and_one_read(counted: Callable[..., tuple[float, float]]) -> None:
    ops, reads = counted(False)
    assert ops <= 60
    assert reads <= 1


def test_a_trial_of_all_samples_costs_one_read(
    counted: Callable[..., tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    visits = [0]

    def counting(values: list[Tensor]) -> list[float]:
        visits[0] += 1
        return read(values)

    monkeypatch.setattr(stepping, "read", counting)
    _, reads = counted(True)
    assert reads == 0  # but for those of `read`
    visits[0] = 0
    with torch.no_grad():
        solution = odeint(driven, start(), [0.0, 5.0], args=(weights(),), per_sample=True)
    assert visits[0] == (solution.stats.accepted + solution.stats.rejected).max()


def test_the_loop_is_the_same_with_and_without_a_tape() -> None:
    w, y0 = weights(), start()
    taped = odeint(driven, y0, [0.0, 2.0], args=(w,))
    with torch.no_grad():
        plain = odeint(driven, y0, [0.0, 2.0], args=(w,))
    assert torch.equal(taped.ys, plain.ys) and taped.stats.calls == plain.stats.calls
