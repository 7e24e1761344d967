"""Finished slices beside the output, so that a run that was killed goes on where it stopped."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from invreg._files import write_whole
from invreg.algorithms.reconstruction import Reconstruction
from invreg.cli.finished import Finished
from invreg.cli.report import write_text

BLOCK = 1 << 22


class WorkFolder:
    """A hidden folder `.NAME.invreg` beside the output: two files for each finished slice, written whole or not at all.

    Slices count only if they were made from the same input by the same settings, which `key` stands for.

    Args:
        output: the file to be written in the end.
        key: from `key_of`.

    Raises:
        ValueError: a folder of that name exists and is not one of these.
    """

    def __init__(self, output: Path, key: str) -> None:
        self.path = output.parent / f".{output.name.rstrip('/')}.invreg"
        self._about = self.path / "run.json"
        if self.path.exists() and not self._about.is_file() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} exists and was not made by invreg; move it away")
        if self._stored_key() != key:
            self.remove()
        self.path.mkdir(exist_ok=True)
        write_text(self._about, json.dumps({"key": key}))

    def load(self, index: int) -> Finished | None:
        """A finished slice, None if there is none."""
        file, more = self._file(index), self._more(index)
        if not file.is_file() or not more.is_file():
            return None
        try:
            with safe_open(more, "pt") as opened:
                about = json.loads((opened.metadata() or {})["about"])
                std = opened.get_tensor("std") if "std" in opened.keys() else None  # noqa: SIM118
            return Finished(Reconstruction.load(file), std, about)
        except (ValueError, KeyError, SafetensorError):  # damaged by something else than us: do it again
            return None

    def store(self, index: int, done: Finished) -> None:
        """Keep a finished slice; its image last, since what has one is taken for finished."""
        tensors = {} if done.std is None else {"std": done.std.detach().cpu().contiguous()}
        write_whole(self._more(index), save(tensors, {"about": json.dumps(done.about)}))
        done.result.save(self._file(index))

    def remove_if_empty(self) -> None:
        """Forget everything unless a slice is finished."""
        if not any(self.path.glob("slice_*.safetensors")):
            self.remove()

    def remove(self) -> None:
        """Forget everything."""
        if self.path.exists():
            shutil.rmtree(self.path)

    def _file(self, index: int) -> Path:
        return self.path / f"slice_{index:05d}.safetensors"

    def _more(self, index: int) -> Path:
        return self.path / f"about_{index:05d}.safetensors"

    def _stored_key(self) -> str | None:
        try:
            return str(json.loads(self._about.read_text(encoding="utf-8"))["key"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a directory (of both files of a BART pair)."""
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.is_file())
    else:
        pair = [path.with_suffix(suffix) for suffix in (".cfl", ".hdr")] if path.suffix in (".cfl", ".hdr") else [path]
        files = [one for one in pair if one.is_file()]
        files = files or [one for one in (path.with_name(f"{path.name}{s}") for s in (".cfl", ".hdr")) if one.is_file()]
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                total.update(block)
    return total.hexdigest()


def key_of(settings: Mapping[str, Any]) -> str:
    """A fingerprint of plain settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
