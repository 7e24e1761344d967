"""The log of a training: a line of JSON for each step, and TensorBoard's files where they are wanted."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from invreg._files import write_whole
from invreg.training.record import Step

LOG = "log.jsonl"


class Journal:
    """Appends to `log.jsonl` in a folder. A line is on its way to the disk once `write` returns, on it after `sync`.

    Args:
        folder: where it lies.
        step: lines of this step and later ones are removed first; they belong to steps that will be taken again.
        tensorboard: also write for TensorBoard, into the folder `tensorboard`.

    Raises:
        FileExistsError: there is another file of that name.
        ModuleNotFoundError: tensorboard is wanted and not installed.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self.path = folder / LOG
        self._board: Any = _board(folder / "tensorboard", step) if tensorboard else None
        if self.path.exists():
            lines = self.path.read_bytes().splitlines()
            if lines[:-1] and not _whole_lines(self.path):  # a last line may be cut off
                raise FileExistsError(f"{self.path}: is no log of a training; move it away, or choose another folder")
            write_whole(self.path, _before(self.path, step))

    def write(self, step: Step) -> None:
        """Add a line; numbers that are not finite become null."""
        entry = asdict(step)
        entry = {"step": entry.pop("number"), **entry}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(entry)) + "\n")
        if self._board is not None:
            for name, value in {**step.terms, "lr": step.lr, "gradient norm": step.gradient_norm}.items():
                self._board.add_scalar(name, value, step.number)

    def sync(self) -> None:
        """Have all lines on the disk."""
        if self.path.exists():
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
        if self._board is not None:
            self._board.flush()


def read_log(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a folder's log: step, terms, lr, gradient_norm, seconds. A last line that is cut off is left out.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(folder) / LOG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[bytes]:
    """Lines that hold a step, up to the first that does not."""
    lines = []
    for line in path.read_bytes().splitlines():
        try:
            json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            break
        lines.append(line)
    return lines


def _before(path: Path, step: int) -> bytes:
    return b"".join(line + b"\n" for line in _whole_lines(path) if json.loads(line)["step"] < step)


def finite(value: Any) -> Any:
    """Nested values as JSON knows them: numbers that are not finite are None."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "tensorboard=True needs tensorboard, which is not installed; pip install tensorboard", name=error.name
        ) from error
    return SummaryWriter(os.fspath(folder), purge_step=step or None)
