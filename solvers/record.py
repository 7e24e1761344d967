"""Records of a solve: its steps, its work, its events, how it ended."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from torch import Tensor


class Status(enum.IntEnum):
    """How a solve ended."""

    RUNNING = 0
    SUCCESS = 1  # reached the last time
    EVENT = 2  # ended by a terminal event
    MAX_STEPS = 3
    UNDERFLOW = 4  # the step became too short for the clock
    NONFINITE = 5  # the field or the state was NaN or infinite

    @property
    def failed(self) -> bool:
        """Whether the solve stopped short."""
        return self > Status.EVENT


ADVICE = {
    Status.MAX_STEPS: "raise max_steps, loosen rtol and atol, or use Rodas5P() for stiff problems",
    Status.UNDERFLOW: "the problem is stiff: try Rodas5P() or Rosenbrock23(); or it has no solution beyond",
    Status.NONFINITE: "the field gave NaN or infinity, however short the step; look at its value there (or an implicit "
    "step had no solution)",
}
ADVICE_WITH_NOISE = {
    Status.MAX_STEPS: "raise max_steps, or loosen rtol and atol",
    Status.UNDERFLOW: "the steps reached the resolution of the path: loosen rtol and atol, or use Fixed(step)",
    Status.NONFINITE: "drift or diffusion gave NaN or infinity; look at their values there, or shorten the steps",
}


@dataclass(frozen=True, eq=False)
class Stats:
    """Work of a solve. (B,) per sample, (1,) where all samples share their steps; int64, on the CPU.

    `nfe` counts evaluations of the field, or drift, for each sample (attempted steps included), `calls` those for the
    batch; `diffusions` counts evaluations of the diffusion.
    """

    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    calls: int
    jacobians: int = 0
    solves: int = 0
    diffusions: int = 0


@dataclass(frozen=True, eq=False)
class Steps:
    """The accepted steps of a solve: (S, B) per sample, (S, 1) where all samples share them.

    `error` (root mean square of the local error estimate), `ratio` (in units of the tolerance; <= 1) and
    `stiffness` (estimate of the largest |eigenvalue| of the Jacobian) carry gradients, `t` and `dt` do not.
    Entries where `mask` is False are padding: that sample was done earlier.
    """

    t: Tensor  # start, float64
    dt: Tensor  # signed length, float64
    y: Tensor  # state at the start, (S, *y0)
    ratio: Tensor | None
    error: Tensor | None
    stiffness: Tensor | None
    mask: Tensor
    method: Tensor  # (S,) which of two switching methods took it, else 0

    def __len__(self) -> int:
        return self.t.shape[0]


@dataclass(frozen=True, eq=False)
class Happening:
    """The times and states at which one event happened, in order, with gradients by the implicit function theorem.

    Per sample both are padded: `mask` says which are real.
    """

    t: Tensor  # (E,), or (E, B)
    y: Any  # (E, *y0)
    mask: Tensor  # (E,), or (E, B)
