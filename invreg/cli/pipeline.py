"""From flags to a prior, its weight, an algorithm and a running reconstruction."""

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from invreg import config
from invreg._check import require_positive, unknown_name
from invreg.algorithms import choice
from invreg.algorithms.loop import Algorithm
from invreg.cli.noise_level import NoiseLevel
from invreg.interfaces import LinearOperator, Proximal, Regularizer, Splitting
from invreg.io.records import Image
from invreg.linalg import inner
from invreg.noise import Gaussian
from invreg.problem import Problem
from invreg.random import draw

# weights in units of the image gradient that noise alone makes; tuned on simulated scans, see docs/cli.md
RELATIVE_WEIGHT = 1.0
NOISELESS_WEIGHT = 1e-3
DIRECT = {"adjoint": "A^H y: zero-filling of k-space, back-projection of sinograms", "fbp": "filtered back-projection"}


class Scan(Protocol):
    """A file's measurement, one slice at a time, in scaled units."""

    prior: str
    algorithm: str
    positive: bool
    count: int
    scale: float
    scale_rule: str

    def operator(self, index: int) -> LinearOperator: ...
    def y(self, index: int) -> Tensor: ...
    def sigma(self, index: int, level: NoiseLevel) -> float | Tensor | None: ...
    def image(self, x: Tensor) -> Image: ...
    def about(self) -> dict[str, Any]: ...
