"""The one training loop: an objective says what counts, the loop adds it up and steps the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

Batch = TypeVar("Batch")
Objective = Callable[[Batch, float, torch.Generator | None], Mapping[str, Tensor]]
"""(batch, progress, generator) -> named terms, each (); progress, from 0 to 1, is how much of the training is done."""


@runtime_checkable
class Scored(Protocol):
    """An objective that can also be judged: what `invreg train` reports of the data that were held out."""

    def score(self, batch: tuple[Tensor, ...]) -> Mapping[str, Tensor]:
        """Named numbers, each () and a mean over the samples, such as "accuracy"; called without gradients."""
        ...


@dataclass(frozen=True)
class Record:
    """The terms of the objective at each step, by name; "total" is their sum."""

    terms: dict[str, list[float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.terms.get("total", ()))


def iterate(
    objective: Objective[Batch],
    batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Take one optimizer step for each batch, and hand out its terms, detached.

    Args:
        objective: (batch, progress, generator) -> named terms, each (); their sum is descended.
        batches: what to train on, in order; how often is theirs to say.
        optimizer: holds the parameters.
        generator: the source of whatever the objective draws.

    Raises:
        ValueError: the objective gives no terms, one that is no scalar, or one called "total".
        RuntimeError: a term is NaN or infinite; the parameters are left as they were.
    """
    for number, batch in enumerate(batches):
        terms = dict(objective(batch, number / len(batches), generator))
        _require_scalars(terms)
        total = torch.stack([*terms.values()]).sum()
        if not bool(total.isfinite()):
            shown = {name: float(term.detach()) for name, term in terms.items()}
            raise RuntimeError(f"the loss of step {number} must be finite, got {shown}; nothing was changed")
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
        yield {name: term.detach() for name, term in (*terms.items(), ("total", total))}


def fit(
    objective: Objective[Batch],
    batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator | None = None,
) -> Record:
    """Train to the last batch; arguments and errors as in `iterate`."""
    steps = list(iterate(objective, batches, optimizer, generator))
    names = list(dict.fromkeys(name for terms in steps for name in terms))
    nothing = torch.tensor(torch.nan)
    return Record({name: [float(terms.get(name, nothing)) for terms in steps] for name in names})


def _require_scalars(terms: Mapping[str, Tensor]) -> None:
    if not terms:
        raise ValueError("objective must give at least one named term, got none")
    if "total" in terms:
        raise ValueError('objective must not call a term "total", which is the sum of all')
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.ndim:
            got = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
            raise ValueError(f"term {name!r} of the objective must be a tensor of shape (), got {got}; take its mean")
