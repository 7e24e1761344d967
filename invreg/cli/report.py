"""How the command line speaks: results on stdout, everything else on stderr, errors in one line, interrupts noticed."""

import json
import platform
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from invreg._files import write_whole

OK, FAILED, BAD_INPUT = 0, 1, 2
# what a user can set right; anything else is a failed computation
BAD_INPUT_ERRORS: tuple[type[Exception], ...] = (TypeError, ValueError, OSError, ModuleNotFoundError)


class InterruptedRunError(RuntimeError):
    """The user pressed Ctrl-C; what was reached has been written."""


def notes(quiet: bool = False) -> Console:
    """A console on stderr for remarks."""
    return Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)


def results() -> Console:
    """A console on stdout for tables."""
    return Console(highlight=False)


def say_json(value: Any) -> None:
    """The only thing that a command with `--json` writes to stdout."""
    sys.stdout.write(json.dumps(value, indent=1, default=str, allow_nan=False) + "\n")


def exit_code(error: BaseException) -> int:
    """1 for a failed computation, 2 for bad input."""
    if isinstance(error, BrokenPipeError):
        return FAILED
    return BAD_INPUT if isinstance(error, BAD_INPUT_ERRORS) else FAILED


def one_line(error: BaseException) -> str:
    """An error's message without line breaks."""
    if isinstance(error, MemoryError):
        return "out of memory; reconstruct fewer slices or a smaller grid"
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    return " ".join(text.split()) or type(error).__name__


def progress_bar(quiet: bool) -> Progress:
    """A progress bar with the remaining time on stderr; silent where stderr is no terminal."""
    console = notes()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
    )


@contextmanager
def noticing_interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C (SIGINT) or SIGTERM sets, to be looked at between iterations; a second one raises."""
    event = threading.Event()

    def notice(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, notice) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def versions() -> dict[str, str]:
    """Of this package and what it computes with."""
    import torch

    found = {"python": platform.python_version()}
    for name in ("invreg", "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found | {"torch": torch.__version__}  # with its build, which the package's metadata may leave out


def write_text(path: Path, text: str) -> None:
    """Write a small text file whole or not at all, over an existing one."""
    write_whole(path, text.encode("utf-8"))


@contextmanager
def warnings_as_remarks(console: Console) -> Iterator[None]:
    """Show each different warning once, as one line."""
    seen: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        text = " ".join(str(message).split())
        if text not in seen:
            seen.add(text)
            console.print(f"[yellow]warning:[/yellow] {escape(text)}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield
