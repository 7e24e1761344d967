"""All random sources go back to where they stood."""

import random

import numpy as np
import pytest
import torch

from invreg.training.randomness import Randomness


def draws(generator: torch.Generator | None) -> list[float]:
    own = [] if generator is None else [float(torch.rand((), generator=generator))]
    return [float(torch.randn(())), random.gauss(0, 1), float(np.random.standard_normal()), *own]  # noqa: NPY002


@pytest.mark.parametrize("own", [True, False])
def test_draws_repeat_after_a_round_trip_through_bytes(own: bool) -> None:
    generator = torch.Generator().manual_seed(3) if own else None
    draws(generator)  # the second of a pair of normal numbers is kept by some sources
    before = Randomness.now(generator)
    first = [draws(generator) for _ in range(3)]
    Randomness.from_bytes(before.to_bytes()).restore(generator)
    assert [draws(generator) for _ in range(3)] == first
    before.restore(generator)
    assert [draws(generator) for _ in range(3)] == first


def test_a_generator_too_many_or_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="generator: the training had none, now it has one"):
        Randomness.now(None).restore(torch.Generator())
    with pytest.raises(ValueError, match="generator: the training had one, now it has none"):
        Randomness.now(torch.Generator()).restore(None)
