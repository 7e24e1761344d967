"""Where all random sources stand: torch's, the GPU's, a generator's, Python's and NumPy's."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Randomness:
    """The states of the random sources of one process.

    Args:
        cpu, cuda, generator: of torch on the CPU, on the current GPU where one is in use, and of a training's own.
        python, numpy: of the modules `random` and `numpy.random`.
    """

    cpu: Tensor
    cuda: Tensor | None
    generator: Tensor | None
    python: Any
    numpy: Any

    @staticmethod
    def now(generator: torch.Generator | None) -> Randomness:
        """The states at this moment."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        own = None if generator is None else generator.get_state()
        return Randomness(torch.get_rng_state(), cuda, own, random.getstate(), np.random.get_state())  # noqa: NPY002

    def restore(self, generator: torch.Generator | None) -> None:
        """Put all sources where they stood.

        Raises:
            ValueError: a generator is missing, or one too many.
        """
        if (generator is None) != (self.generator is None):
            had, has = ("none", "one") if self.generator is None else ("one", "none")
            raise ValueError(f"generator: the training had {had}, now it has {has}")
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.cuda)
        if generator is not None and self.generator is not None:
            generator.set_state(self.generator)
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002

    def to_bytes(self) -> bytes:
        """All of it as text, for messages and files."""
        version, words, spare = self.python
        kind, keys, position, has_spare, gaussian = self.numpy
        shown = {name: None if value is None else value.tolist() for name, value in self._tensors().items()}
        numpy = [str(kind), keys.tolist(), int(position), int(has_spare), float(gaussian)]
        return json.dumps({**shown, "python": [version, list(words), spare], "numpy": numpy}).encode()

    @staticmethod
    def from_bytes(content: bytes) -> Randomness:
        """What `to_bytes` wrote."""
        found = json.loads(content)
        tensors = {
            name: None if found[name] is None else torch.tensor(found[name], dtype=torch.uint8)
            for name in ("cuda", "generator")
        }
        version, words, spare = found["python"]
        kind, keys, position, has_spare, gaussian = found["numpy"]
        return Randomness(
            cpu=torch.tensor(found["cpu"], dtype=torch.uint8),
            cuda=tensors["cuda"],
            generator=tensors["generator"],
            python=(version, tuple(words), spare),
            numpy=(kind, np.array(keys, dtype=np.uint32), position, has_spare, gaussian),
        )

    def _tensors(self) -> dict[str, Tensor | None]:
        return {"cpu": self.cpu, "cuda": self.cuda, "generator": self.generator}
