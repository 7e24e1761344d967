"""What the steps of a training found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Step:
    """What one step found.

    Args:
        number: from 0.
        terms: of the objective, before the step; "total" is their sum.
        lr: learning rate of the first group of parameters.
        gradient_norm: before it was clipped.
        seconds: since the training began, without pauses between a stop and its resumption.
    """

    number: int
    terms: dict[str, float]
    lr: float
    gradient_norm: float
    seconds: float


@dataclass(frozen=True)
class Record:
    """All steps of a training, those before a resumption included; a term that a step lacks is NaN there."""

    terms: dict[str, list[float]] = field(default_factory=dict)
    lr: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lr)

    def add(self, step: Step) -> None:
        """Append a step."""
        for name in {**self.terms, **step.terms}:
            self.terms.setdefault(name, [math.nan] * len(self)).append(step.terms.get(name, math.nan))
        self.lr.append(step.lr)
        self.gradient_norm.append(step.gradient_norm)

    def to_tensors(self) -> dict[str, Any]:
        """As float64 tensors, for a checkpoint."""
        named = {"lr": self.lr, "gradient_norm": self.gradient_norm}
        tensors = {name: torch.tensor(one, dtype=torch.float64) for name, one in named.items()}
        return {**tensors, "terms": {k: torch.tensor(v, dtype=torch.float64) for k, v in self.terms.items()}}

    @staticmethod
    def from_tensors(content: Mapping[str, Any]) -> Record:
        """What `to_tensors` gave."""
        terms = {name: values.tolist() for name, values in content["terms"].items()}
        return Record(terms, content["lr"].tolist(), content["gradient_norm"].tolist())
