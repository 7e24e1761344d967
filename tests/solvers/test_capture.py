import functools
import gc
import math
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from invreg.solvers import Checkpointed, Direct, odeint
from invreg.solvers.capture import modules_of, require_known

EVERYWHERE = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
TS = [0.0, 0.4, 1.0]


def start() -> Tensor:
    return torch.tensor([[0.3, -1.0], [1.2, 0.1]], dtype=torch.float64)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def assert_equal_gradients(
    field: Callable[..., Tensor],
    tensors: list[Tensor],
    per_sample: bool,
    y0: Tensor | None = None,
    args: tuple[object, ...] = (),
) -> None:
    """Steps that are replayed, or kept, must give the gradients of the tape, and some."""
    found = []
    for adjoint in (Direct(), Checkpointed(), Checkpointed(tape=0)):
        ys = odeint(field, start() if y0 is None else y0, TS, adjoint=adjoint, per_sample=per_sample, args=args).ys
        found.append(torch.autograd.grad(ys.square().sum(), tensors, retain_graph=True))
    assert all(bool(one.abs().max() > 0) for one in found[0])
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-10, atol=1e-10)


class Held:
    """Holds a module for a bound method."""

    def __init__(self, module: nn.Module, scale: Tensor) -> None:
        self.module, self.scale = module, scale

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        return self.module(y) * self.scale


class Field(nn.Module):
    """A module that is a field."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y) * torch.cos(t)


def test_gradients_reach_the_parameters_of_a_module(per_sample: bool) -> None:
    field = Field()
    assert_equal_gradients(field, list(field.parameters()), per_sample)


def test_gradients_reach_a_module_in_a_closure(per_sample: bool) -> None:
    module = net()
    assert_equal_gradients(lambda t, y: module(y), list(module.parameters()), per_sample)


def test_gradients_reach_a_module_in_a_partial(per_sample: bool) -> None:
    module = net()

    def field(module: nn.Module, t: Tensor, y: Tensor) -> Tensor:
        return module(y)

    assert_equal_gradients(functools.partial(field, module), list(module.parameters()), per_sample)


def test_gradients_reach_what_a_bound_method_holds(per_sample: bool) -> None:
    held = Held(net(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True))
    assert_equal_gradients(held.slope, [*held.module.parameters(), held.scale], per_sample)


def test_gradients_reach_the_parameters_of_a_functional_call(per_sample: bool) -> None:
    module = net()
    parameters = {name: one.detach().clone().requires_grad_() for name, one in module.named_parameters()}
    assert_equal_gradients(
        lambda t, y: torch.func.functional_call(module, parameters, (y,)), list(parameters.values()), per_sample
    )


def test_gradients_reach_tensors_that_were_computed(per_sample: bool) -> None:
    root = torch.tensor([[0.3, 0.1], [-0.2, 0.4]], dtype=torch.float64, requires_grad=True)
    weight = root.exp()
    assert_equal_gradients(lambda t, y: -y @ weight, [root, weight], per_sample)


def test_gradients_reach_global_tensors(per_sample: bool) -> None:
    assert_equal_gradients(lambda t, y: -EVERYWHERE * y, [EVERYWHERE], per_sample)


def test_gradients_reach_arguments_in_containers(per_sample: bool) -> None:
    a, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.5, 0.2))
    assert_equal_gradients(lambda t, y, one, many: -one * y + many["b"][0], [a, b], per_sample, args=(a, {"b": [b]}))


def test_gradients_reach_a_tensor_that_is_concatenated_with_others(per_sample: bool) -> None:
    a, b = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (0.5, 0.2))
    assert_equal_gradients(lambda t, y: -y * torch.cat([a, b]), [a, b], per_sample)


def test_a_tensor_that_was_computed_from_another_does_not_count_twice(per_sample: bool) -> None:
    root = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    weight = root.exp()
    assert_equal_gradients(lambda t, y: -root * y + weight * torch.cos(y), [root], per_sample)


def test_a_chain_of_three_tensors_does_not_count_twice(per_sample: bool) -> None:
    module = net()
    first = module[0].weight.square().sum()
    second = first.sqrt() * module[2].bias.sum()
    assert_equal_gradients(
        lambda t, y: module(y) + first * 0.1 * torch.sin(y) + second, list(module.parameters()), per_sample
    )


def test_parameters_that_two_modules_share_count_once(per_sample: bool) -> None:
    first, second = net(), net()
    second[0].weight = first[0].weight
    assert_equal_gradients(lambda t, y: first(y) - 0.5 * second(y), [first[0].weight, second[2].weight], per_sample)


@pytest.mark.parametrize("leaf", [True, False])
def test_the_start_itself_may_stand_in_the_field(leaf: bool, per_sample: bool) -> None:
    root = start().requires_grad_()
    y0 = root if leaf else root * 1.5
    assert_equal_gradients(lambda t, y: y - 0.3 * y0, [root], per_sample, y0=y0)


REPLAYS = pytest.mark.parametrize("adjoint", [Checkpointed(), Checkpointed(tape=0)], ids=str)


@REPLAYS
def test_the_start_in_the_field_has_the_gradient_of_the_closed_form(adjoint: Checkpointed) -> None:
    y0 = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    ys = odeint(lambda t, y: y - 0.3 * y0, y0, [0.0, 1.0], rtol=1e-9, atol=1e-9, adjoint=adjoint).ys
    (found,) = torch.autograd.grad(ys[-1].sum(), y0)
    torch.testing.assert_close(found, torch.full_like(y0, math.e - 0.3 * (math.e - 1)), rtol=1e-7, atol=0)


@REPLAYS
def test_the_times_may_stand_in_the_field(adjoint: Checkpointed) -> None:
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(1, dtype=torch.float64)
    # y = 1 + ts[1] (t - ts[0])
    ys = odeint(lambda t, y: y * 0 + ts[1], y0, ts, rtol=1e-9, atol=1e-9, adjoint=adjoint).ys
    (found,) = torch.autograd.grad(ys[-1].sum(), ts)
    torch.testing.assert_close(found, torch.tensor([-1.0, 2.0], dtype=torch.float64), rtol=1e-7, atol=1e-7)


@REPLAYS
def test_a_tensor_that_the_field_uses_only_later_is_not_lost_in_silence(
    adjoint: Checkpointed, per_sample: bool
) -> None:
    late = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -y if bool((t < 0.5).all()) else -y * late

    y0 = start().requires_grad_()
    ys = odeint(field, y0, TS, per_sample=per_sample, adjoint=adjoint).ys
    with pytest.raises(RuntimeError, match=r"field depends on a tensor of shape \(\) that requires grad and was not"):
        ys.sum().backward()
    ys = odeint(field, y0, TS, per_sample=per_sample, adjoint=Direct()).ys
    assert torch.autograd.grad(ys.sum(), late)[0].abs() > 0


def test_a_tensor_that_only_later_steps_use_is_not_lost_where_nothing_else_has_gradients() -> None:
    late = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -y if bool(t < 0.5) else -y * late

    ys = odeint(field, start(), TS, adjoint=Direct()).ys
    assert ys.requires_grad
    with pytest.raises(RuntimeError, match="was not seen in its first evaluation"):
        odeint(field, start(), TS)
    with torch.no_grad():
        assert odeint(field, start(), TS).success


def test_parameters_that_the_field_uses_only_later_get_their_gradients(per_sample: bool) -> None:
    first, second = net(), net()

    def field(t: Tensor, y: Tensor) -> Tensor:
        return first(y) if bool((t < 0.5).all()) else second(y)

    assert_equal_gradients(field, [*first.parameters(), *second.parameters()], per_sample)


def test_parameters_without_gradients_are_left_alone(per_sample: bool) -> None:
    module = net()
    module[0].requires_grad_(False)
    odeint(lambda t, y: module(y), start(), TS, per_sample=per_sample).ys.sum().backward()
    assert module[0].weight.grad is None and module[2].weight.grad is not None


def test_backward_adds_to_the_gradients_of_parameters(per_sample: bool) -> None:
    module = net()
    seen = []
    for _ in range(2):
        odeint(lambda t, y: module(y), start(), TS, per_sample=per_sample).ys.sum().backward()
        seen.append(module[0].weight.grad.clone())
    torch.testing.assert_close(seen[1], 2 * seen[0], rtol=1e-12, atol=0)


def test_a_field_may_take_gradients_inside(per_sample: bool) -> None:
    module = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    def field(t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = y if y.requires_grad else y.detach().requires_grad_()
            (slope,) = torch.autograd.grad(module(x).sum(), x, create_graph=torch.is_grad_enabled())
        return -slope

    found = []
    for adjoint in (Direct(), Checkpointed(), Checkpointed(tape=0)):
        ys = odeint(field, start().requires_grad_(), TS, adjoint=adjoint, per_sample=per_sample).ys
        found.append(torch.autograd.grad(ys.sum(), [module[0].weight, module[2].weight]))
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-9, atol=1e-9)


def test_modules_are_found_wherever_a_field_holds_them() -> None:
    module = net()
    held = Held(module, EVERYWHERE)
    assert modules_of(module) == [module]
    assert module in modules_of(lambda t, y: module(y))
    assert module in modules_of(functools.partial(lambda m, t, y: m(y), module))
    assert module in modules_of({"a": [module]})
    assert module in modules_of(functools.partial(lambda t, y, m: m(y), m=module))
    assert modules_of(math.sin) == []
    assert module in modules_of(functools.partial(lambda m, t, y: y, held.module.forward))


def test_a_slope_may_depend_on_known_tensors_only() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    middle = a.exp()
    require_known([middle * 2], [a])
    require_known([middle * 2], [middle])
    require_known([torch.ones(2)], [])
    with pytest.raises(RuntimeError, match=r"tensor of shape \(3,\)"):
        require_known([middle.sum() + b.sum()], [a])


@REPLAYS
def test_a_distributed_module_may_solve_in_its_forward(adjoint: Checkpointed, tmp_path: Path) -> None:
    if not torch.distributed.is_available() or os.name == "nt":
        pytest.skip("no distributed back end")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor) -> Tensor:
            return odeint(lambda t, y: self.net(y), x, TS, adjoint=adjoint).ys[-1]

    try:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1,
            timeout=timedelta(seconds=20),
        )  # fmt: skip
    except RuntimeError as error:
        pytest.skip(f"no process group: {error}")

    def compare() -> None:
        plain, wrapped = Model(), nn.parallel.DistributedDataParallel(Model())
        for _ in range(2):
            plain(start()).sum().backward()
            wrapped(start()).sum().backward()
        for one, other in zip(plain.parameters(), wrapped.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-12)

    try:
        compare()
    finally:
        gc.collect()  # a wrapped model that outlives the group may wait for it, and hold the lock it needs, for ever
        torch.distributed.destroy_process_group()


def test_a_field_may_differentiate_by_torch_func() -> None:
    weight = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    start = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3).requires_grad_()

    def field(t: Tensor, y: Tensor) -> Tensor:
        out, pull = torch.func.vjp(lambda x: torch.tanh(x @ weight), y)
        return out - 0.1 * pull(out)[0]

    found = []
    for adjoint in (Checkpointed(), Checkpointed(tape=0), Direct()):
        ys = odeint(field, start, [0.0, 1.0], adjoint=adjoint).ys
        found.append(torch.cat([one.flatten() for one in torch.autograd.grad(ys[-1].sum(), [start, weight])]))
    torch.testing.assert_close(found[0], found[2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], found[2], rtol=1e-12, atol=1e-12)
