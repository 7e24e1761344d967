from typing import Any

import pytest
import torch
from torch import Tensor

from invreg.solvers import odeint
from invreg.solvers.dynamics import Structure, structure_of

PAIR = (torch.ones(2, 3), torch.ones(2))
NAMED = {"a": torch.ones(2, 3), "b": torch.ones(2)}
WRONG: dict[str, tuple[type[Exception], str, Any, Any]] = {
    "kind": (TypeError, "field must return a tensor as y0 is, got float", torch.ones(2), 1.0),
    "tuple": (TypeError, "field must return a tensor as y0 is, got tuple", torch.ones(2), (torch.ones(2),)),
    "shape": (
        ValueError, r"field must return the shape of the state, \(2, 3\), got \(3,\)", torch.ones(2, 3), torch.ones(3)
    ),
    "dtype": (
        TypeError, "field must return the dtype of the state, torch.float32, got torch.float64; cast y0",
        torch.ones(2), torch.ones(2).double(),
    ),
    "complex": (
        TypeError, "field must return the dtype of the state, torch.float32, got torch.complex64", torch.ones(2),
        torch.ones(2) * 1j,
    ),
    "device": (
        ValueError, "field must return a tensor on cpu, where the state is, got meta", torch.ones(2),
        torch.ones(2, device="meta"),
    ),
    "not_a_tuple": (TypeError, "field must return a tuple of 2 tensors as y0 is, got Tensor", PAIR, torch.ones(2)),
    "fewer": (TypeError, "field must return a tuple of 2 tensors as y0 is, got 1 tensors", PAIR, (torch.ones(2),)),
    "part_shape": (
        ValueError, r"field, part 1, must return the shape of the state, \(2,\), got \(3,\)", PAIR,
        (torch.ones(2, 3), torch.ones(3)),
    ),
    "part_dtype": (
        TypeError, "field, part 0, must return the dtype", PAIR, (torch.ones(2, 3).double(), torch.ones(2))
    ),
    "part_kind": (TypeError, "field, part 1, must return a tensor as y0 is, got int", PAIR, (torch.ones(2, 3), 1)),
    "not_a_dict": (
        TypeError, r"field must return a dict with the keys of y0, \('a', 'b'\), in that order, got tuple", NAMED, PAIR
    ),
    "keys": (
        TypeError, r"in that order, got \('a', 'c'\)", NAMED, {"a": torch.ones(2, 3), "c": torch.ones(2)}
    ),
    "order": (TypeError, r"in that order, got \('b', 'a'\)", NAMED, {"b": torch.ones(2), "a": torch.ones(2, 3)}),
    "named_part": (
        ValueError, r"field, part 'b', must return the shape of the state", NAMED,
        {"a": torch.ones(2, 3), "b": torch.ones(())},
    ),
}  # fmt: skip


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_a_field_that_does_not_fit_the_state_is_refused(name: str, per_sample: bool) -> None:
    error, message, y0, slope = WRONG[name]
    if per_sample and isinstance(y0, (tuple, dict)):
        message = message.replace(r"\(2,\), got", r"\(2,\), got")
    with pytest.raises(error, match=message):
        odeint(lambda t, y: slope, y0, [0.0, 1.0], per_sample=per_sample)


def test_a_field_may_return_a_list_for_a_tuple() -> None:
    solution = odeint(lambda t, y: [-y[0], -y[1]], list(PAIR), [0.0, 1.0])
    assert isinstance(solution.ys, tuple) and len(solution.ys) == 2


def test_a_field_may_compute_in_another_dtype_under_autocast() -> None:
    net = torch.nn.Linear(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        solution = odeint(lambda t, y: net(y), torch.ones(2, 3), [0.0, 1.0])
    assert solution.ys.dtype == torch.float32


@pytest.mark.parametrize("batched", [False, True])
def test_what_is_packed_comes_out_again(batched: bool) -> None:
    leaves = (torch.rand(2, 3, 1), torch.rand(2).double(), torch.rand(2, 0), torch.rand(2, 2) * 1j)
    structure = structure_of(leaves, batched)
    assert isinstance(structure, Structure)
    flat = structure.pack(leaves)
    assert flat.shape == ((2, 3 + 1 + 0 + 2) if batched else (6 + 2 + 0 + 4,)) and flat.dtype == torch.complex128
    out = structure.unpack(flat)
    for one, other in zip(leaves, out, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype
    stacked = structure.unpack(flat.expand(5, *flat.shape))
    assert [tuple(one.shape) for one in stacked] == [(5, *one.shape) for one in leaves]


def test_a_single_tensor_has_no_structure() -> None:
    assert structure_of(torch.ones(2), False) is None


def test_a_field_that_ignores_time_and_one_that_ignores_the_state_are_solved() -> None:
    y0 = torch.zeros(2, dtype=torch.float64)

    def ramp(t: Tensor, y: Tensor) -> Tensor:
        return t.expand_as(y)

    solution = odeint(ramp, y0, [0.0, 2.0])
    torch.testing.assert_close(solution.ys[-1], torch.full_like(y0, 2.0))
