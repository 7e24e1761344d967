"""Batches by number: each sample once an epoch, the same order again, equal shares for several processes."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from invreg.training import Share, Shuffled
from invreg.training.batches import part_of, require_batches


def test_each_sample_comes_once_an_epoch_in_a_new_order() -> None:
    x = torch.arange(10)
    batches = Shuffled(x, 2 * x, size=4, epochs=3, seed=5)
    assert len(batches) == 9
    epochs = [torch.cat([batches[3 * e + k][0] for k in range(3)]).tolist() for e in range(3)]
    assert all(sorted(one) == list(range(10)) for one in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [len(batches[k][0]) for k in range(3)] == [4, 4, 2]
    first, second = batches[4]
    assert torch.equal(2 * first, second)


def test_a_batch_is_the_same_whenever_it_is_asked_for() -> None:
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    one, other = (Shuffled(x, size=6, epochs=4, seed=2) for _ in range(2))
    backwards = [other[k][0] for k in reversed(range(16))]
    assert all(torch.equal(one[k][0], backwards[15 - k]) for k in range(16))
    assert torch.equal(one[-1][0], one[15][0])
    with pytest.raises(IndexError):
        one[16]
    assert not torch.equal(one[0][0], Shuffled(x, size=6, epochs=4, seed=3)[0][0])


def test_the_last_batch_may_be_left_out_and_steps_counted_instead_of_epochs() -> None:
    x = torch.arange(10)
    dropped = Shuffled(x, size=4, epochs=2, seed=0, drop_last=True)
    assert [len(dropped[k][0]) for k in range(len(dropped))] == [4] * 4
    counted = Shuffled(x, size=4, steps=5, seed=0)
    assert len(counted) == 5
    assert torch.equal(counted[4][0], Shuffled(x, size=4, epochs=2, seed=0)[4][0])
    settings = dict(counted.settings)
    assert len(settings.pop("data")) == 16
    assert settings == {"samples": 10, "size": 4, "steps": 5, "seed": 0, "drop_last": False}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_settings_tell_data_apart_by_any_entry(dtype: torch.dtype) -> None:
    def digest(*tensors: Tensor) -> str:
        found: str = Shuffled(*tensors, size=4, steps=1, seed=0).settings["data"]
        return found

    x, other = torch.zeros(100, 3, dtype=dtype), torch.zeros(100, 3, dtype=dtype)
    other[50, 1] = 1
    assert digest(x) == digest(x.clone()) == digest(torch.zeros(3, 100, dtype=dtype).T)
    assert len({digest(x), digest(other), digest(x, x), digest(x.reshape(100, 3, 1)), digest(x, other)}) == 5


@pytest.mark.parametrize(
    ("tensors", "options", "said"),
    [
        ((), {}, "tensors must be at least one, got none"),
        ((torch.zeros(2), torch.zeros(3)), {}, r"same number of samples, at least one, along axis 0, got \[2, 3\]"),
        ((torch.zeros(()),), {}, r"got \[0\]"),
        ((torch.zeros(2),), {"size": 0}, "size must be >= 1, got 0"),
        ((torch.zeros(2),), {"seed": -1}, "seed must be >= 0, got -1"),
        ((torch.zeros(2),), {"epochs": 0}, "epochs must be >= 1, got 0"),
        ((torch.zeros(2),), {"steps": 3}, "one of epochs and steps must be given, got 1 and 3"),
        ((torch.zeros(2),), {"epochs": None}, "one of epochs and steps must be given, got None and None"),
        ((torch.zeros(2),), {"size": 3, "drop_last": True}, "size must be <= 2"),
    ],
)
def test_wrong_arguments_are_named(tensors: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Shuffled(*tensors, **{"size": 1, "epochs": 1, "seed": 0, **options})
    with pytest.raises(TypeError, match=r"tensor 0 must be a torch.Tensor, got list"):
        Shuffled([1, 2], size=1, epochs=1, seed=0)  # type: ignore[arg-type]


def test_shares_make_up_the_whole_batch() -> None:
    whole = Shuffled(torch.arange(12), torch.arange(12.0), size=6, epochs=1, seed=0)
    shares = [Share(whole, rank, 3) for rank in range(3)]
    assert [len(one) for one in shares] == [2, 2, 2]
    for k in range(2):
        assert torch.equal(torch.cat([one[k][0] for one in shares]), whole[k][0])
        assert torch.equal(torch.cat([one[k][1] for one in shares]), whole[k][1])
    alone = Share(whole)
    assert torch.equal(alone[0][0], whole[0][0])


class Pair(NamedTuple):
    x: Tensor
    name: str


@dataclass(frozen=True)
class Series:
    values: Tensor
    times: tuple[float, ...]


def test_batches_of_many_kinds_are_cut() -> None:
    x = torch.arange(4)
    cut = part_of({"a": [x, (x, 5)], "b": Pair(x, "n"), "c": Series(x, (0.0, 1.0)), "d": None}, 1, 2)
    assert cut["a"][0].tolist() == cut["a"][1][0].tolist() == cut["b"].x.tolist() == cut["c"].values.tolist() == [2, 3]
    assert (cut["a"][1][1], cut["b"].name, cut["c"].times, cut["d"]) == (5, "n", (0.0, 1.0), None)


def test_a_part_of_ones_own_leaves_what_all_share() -> None:
    batches = [(torch.linspace(0, 1, 3), torch.arange(4))]

    def part(batch: tuple[Tensor, Tensor], rank: int, world: int) -> tuple[Tensor, Tensor]:
        return batch[0], part_of(batch[1], rank, world)

    times, x = Share(batches, 0, 2, part)[0]
    assert (len(times), x.tolist()) == (3, [0, 1])


def test_unequal_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="batch 0: 2 processes cannot share 3 samples equally; change the size"):
        Share([torch.zeros(3)], 0, 2)[0]
    with pytest.raises(ValueError, match="batch 0: 2 processes cannot share a tensor without axes"):
        Share([torch.zeros(())], 0, 2)[0]
    with pytest.raises(ValueError, match="rank must be within 0 to 1, got 2"):
        Share([torch.zeros(4)], 2, 2)
    with pytest.raises(ValueError, match="world must be >= 1, got 0"):
        Share([torch.zeros(4)], 0, 0)


def test_what_cannot_be_asked_for_by_number_is_refused() -> None:
    with pytest.raises(TypeError, match=r"batches must be a sequence.*got generator; use a list, or Shuffled"):
        require_batches(x for x in [1])
    with pytest.raises(ValueError, match="batches must be at least one, got none"):
        require_batches([])
