"""Batches that are made ahead are the same, and chains of them count right."""

import threading
from typing import Any

import pytest
import torch

from invreg.training.ahead import Ahead, Chained


class Counted:
    """Batches that remember who made them."""

    def __init__(self, length: int) -> None:
        self.length, self.made, self.settings = length, list[tuple[int, str]](), {"kind": "counted"}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> Any:
        self.made.append((index, threading.current_thread().name))
        return (torch.tensor(float(index)),)


def test_the_next_batch_is_made_by_another_thread_and_none_twice() -> None:
    whole = Counted(5)
    ahead = Ahead(whole)
    assert [float(ahead[i][0]) for i in range(5)] == [0, 1, 2, 3, 4]
    assert [index for index, _ in whole.made] == [0, 1, 2, 3, 4]
    assert all(name.startswith("batches") for _, name in whole.made)
    assert ahead.settings == whole.settings
    assert float(ahead[-1][0]) == 4


def test_any_batch_may_be_asked_for_at_any_time() -> None:
    ahead = Ahead(Counted(6))
    assert [float(ahead[i][0]) for i in (4, 1, 2, 2, 5, 0)] == [4, 1, 2, 2, 5, 0]


def test_an_error_while_making_reaches_who_asks() -> None:
    class Broken(Counted):
        def __getitem__(self, index: int, /) -> Any:
            if index == 1:
                raise ValueError("batch 1 is broken")
            return super().__getitem__(index)

    ahead = Ahead(Broken(3))
    assert float(ahead[0][0]) == 0
    with pytest.raises(ValueError, match="batch 1 is broken"):
        ahead[1]
    assert float(ahead[2][0]) == 2


def test_chained_batches_follow_each_other() -> None:
    chained = Chained(Counted(2), Counted(3))
    assert len(chained) == 5
    assert [float(chained[i][0]) for i in range(5)] == [0, 1, 0, 1, 2]
    assert float(chained[-1][0]) == 2
    assert chained.settings == {"0": {"kind": "counted"}, "1": {"kind": "counted"}}
    with pytest.raises(ValueError, match="parts must be at least one, got none"):
        Chained()
    with pytest.raises(IndexError):
        chained[5]
