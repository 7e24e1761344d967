"""Runs of an experiment in a file: each is done once, kept whole, and shown in a table of means and spreads."""

import json
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Column:
    """A column of a table: which number of a run, in what unit, with how many digits."""

    title: str
    key: str
    factor: float = 1.0
    digits: int = 1


def read(path: Path) -> dict[str, Any]:
    """What the file holds; nothing where there is none."""
    if not path.exists():
        return {"torch": torch.__version__, "runs": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def do(path: Path, jobs: Mapping[str, Callable[[], Numbers]]) -> dict[str, Any]:
    """Do the runs that the file does not hold, keep each as soon as it is done, and give what the file holds then.

    They take one thread: what networks of this size are fastest with, and what times can be compared at.
    """
    torch.set_num_threads(1)
    found = read(path)
    for name, job in jobs.items():
        if name in found["runs"]:
            continue
        numbers = dict(job())
        found = read(path)  # another process may have added to it
        found["runs"][name] = numbers
        write(path, found)
        print(f"{name}: {numbers}", flush=True)
    return found


def table(
    found: Mapping[str, Any],
    heads: Sequence[str],
    groups: Mapping[tuple[str, ...], Sequence[str]],
    columns: Sequence[Column],
) -> str:
    """Markdown: mean and standard deviation over the runs of a group, NaN left out, a row for each group that has any.

    Args:
        found: as `read` gives it.
        heads: titles of what is shown of a group.
        groups: what is shown of a group -> the names of its runs.
        columns: which numbers.
    """
    titles = [*heads, "seeds", *(column.title for column in columns)]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for shown, names in groups.items():
        runs = [found["runs"][name] for name in names if name in found["runs"]]
        if not runs:
            continue
        cells = [*shown, str(len(runs))]
        for column in columns:
            values = [column.factor * run[column.key] for run in runs if not math.isnan(run[column.key])]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.{column.digits}f} +- {spread:.{column.digits}f}" if values else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
