"""What `invreg train` reads: a recipe in YAML, checked key by key before anything is computed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from invreg import config
from invreg._check import require_count, require_positive
from invreg.training import Options


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training. Objects are `NAME[:key=value,...]` or mappings with the key `name`; see docs/training.md.

    Args:
        data: what to train on, such as digits.
        model: what is trained, such as neural-ode with its parts.
        objective: what is descended, such as supervised; it gets the model.
        folder: of the log, the checkpoints and the model.
        optimizer, scheduler: of torch; a scheduler is stepped after each step.
        batch: samples of a step, of all processes together.
        epochs, steps: how long; one of both.
        drop_last: leave out an epoch's last batch if it is smaller.
        test: fraction of the samples that is held out, and scored in the end.
        seed: of the first weights, the order of the samples, and what the objective draws.
        split_seed: of the choice of the samples that are held out.
        average: decay of a running mean of the weights, such as 0.999.
        clip, precision, save_every, save_minutes, log_every, tensorboard: as in `invreg.training.Options`.
    """

    data: Any
    model: Any
    objective: Any
    folder: str
    optimizer: Any = "adam"
    scheduler: Any = None
    batch: int = 128
    epochs: int | None = None
    steps: int | None = None
    drop_last: bool = False
    test: float = 0.0
    seed: int = 0
    split_seed: int = 0
    average: float | None = None
    clip: float | None = 1.0
    precision: Literal["full", "bfloat16", "float16"] = "full"
    save_every: int = 1000
    save_minutes: float | None = 10.0
    log_every: int = 1
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                "one of epochs and steps must be given, got " + ("none" if self.epochs is None else "both")
            )
        for name, least in (("batch", 1), ("epochs", 1), ("steps", 1), ("seed", 0), ("split_seed", 0)):
            value = getattr(self, name)
            if value is not None:
                require_count(name, value, least=least)
        if max(self.seed, self.split_seed) >= 2**63:
            raise ValueError(f"seed and split_seed must be below 2^63, got {max(self.seed, self.split_seed)}")
        require_positive("test", self.test, zero_allowed=True)
        if self.test >= 1:
            raise ValueError(f"test must be a fraction below 1, got {self.test}")
        if not isinstance(self.folder, str) or not self.folder:
            raise ValueError(f"folder must be the name of a folder, got {self.folder!r}")
        if self.average is not None:
            require_positive("average", self.average, zero_allowed=True)
        for name in ("drop_last", "tensorboard"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be true or false, got {getattr(self, name)!r}")
        _ = self.options  # which checks itself

    @property
    def options(self) -> Options:
        """Of the loop."""
        names = ("clip", "precision", "save_every", "save_minutes", "log_every", "tensorboard")
        return Options(**{name: getattr(self, name) for name in names})

    @property
    def decisive(self) -> dict[str, Any]:
        """The entries on which the result depends."""
        free = {"folder", "save_every", "save_minutes", "log_every", "tensorboard"}
        found = {name: value for name, value in dataclasses.asdict(self).items() if name not in free}
        if isinstance(self.data, dict):
            places = {"file", "files", "held_out"}  # of which the content counts
            found["data"] = {key: value for key, value in self.data.items() if key not in places}
        return found


def read_recipe(path: Path, folder: Path | None) -> Recipe:
    """The recipe in a YAML file.

    Args:
        path: of the file.
        folder: takes the place of the file's.

    Raises:
        FileNotFoundError: no such file.
        TypeError, ValueError: an unknown key, a missing one, or a value that is refused; the message names the file.
    """
    fields = dataclasses.fields(Recipe)
    content = {name: config.plain(value) for name, value in config.read_yaml(path, [f.name for f in fields]).items()}
    if folder is not None:
        content["folder"] = str(folder)
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in content]
    if missing:
        raise ValueError(f"{path} must say {', '.join(missing)}; see docs/training.md")
    try:
        return Recipe(**content)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error
