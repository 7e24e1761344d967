"""Timing, peak memory and tables for the benchmark scripts of this folder: equal threads, warm, medians, ratios.

A script calls `use_threads` before it imports any peer, lists its candidates, times them in turns with `race`,
measures memory with `peak_memory` and prints `table`. A peer that is missing becomes a row that says so.
"""

import ctypes
import gc
import importlib
import importlib.util
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

import torch

Job = Callable[[], object]
MOST_SECONDS = 600  # that a measurement of memory may take


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Args:
        case: the problem; ratios are taken within a case.
        name: who solved it.
        seconds: median time, None where it was not run.
        mebibytes: peak memory, None where it was not measured.
        note: anything else, such as an error reached or why it was not run.
    """

    case: str
    name: str
    seconds: float | None = None
    mebibytes: float | None = None
    note: str = ""


def use_threads(count: int) -> None:
    """Give torch, OpenMP, MKL, OpenBLAS and numba `count` threads each. Call it before numba or a peer is imported."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = str(count)
    torch.set_num_threads(count)


def peer(name: str) -> ModuleType | None:
    """The module of a peer library, imported now, or None if it is not installed."""
    if importlib.util.find_spec(name) is None:
        return None
    if name == "deepinv":  # it imports torchvision, which may not fit the installed torch
        from invreg._torchvision import guard_torchvision

        guard_torchvision()
    return importlib.import_module(name)


def missing(case: str, name: str) -> Row:
    """The row of a peer that is not installed."""
    return Row(case, name, note="not installed")


def measure(fn: Job, repeats: int = 5, *, warmup: int = 1) -> float:
    """Median wall time of `fn()` in seconds, after `warmup` untimed calls; waits for the GPU if one is in use."""
    return race({"": fn}, repeats, warmup=warmup)[""]


def race(jobs: Mapping[str, Job], repeats: int = 5, *, warmup: int = 1) -> dict[str, float]:
    """Median seconds of several jobs, timed in turns so that a busy spell of the machine hits all of them.

    A job shorter than 0.1 s is called several times in its turn: what another library's threads leave behind in caches
    and spin locks then weighs little.
    """
    calls: dict[str, int] = {}
    for name, job in jobs.items():
        for _ in range(warmup):
            job()
        calls[name] = max(1, round(0.1 / max(_seconds(job, 1), 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            times[name].append(_seconds(job, calls[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(job: Job, calls: int) -> float:
    """Mean wall time of so many calls."""
    _wait()
    start = time.perf_counter()
    for _ in range(calls):
        job()
    _wait()
    return (time.perf_counter() - start) / calls


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_memory(build: Callable[[], Job]) -> float | None:
    """Peak memory in MiB of `build()()`, construction included, measured in a fresh process.

    None off Linux, and where the process dies or takes longer than `MOST_SECONDS`.

    The job is built and run once to load libraries and make plans, dropped, and then built and run again: the highest
    resident size of the second run, less the size before it.

    Args:
        build: a function of the script's top level, or a `functools.partial` of one, that returns the job.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_tell_peak, args=(there, build, torch.get_num_threads()))
    process.start()
    there.close()
    try:
        peak: float | None = here.recv() if here.poll(MOST_SECONDS) else None
        process.join(timeout=10)
    except EOFError:
        peak = None  # it ended without a word: out of memory, most likely
    finally:
        process.kill()
    return peak


def _tell_peak(pipe: Connection, build: Callable[[], Job], threads: int) -> None:
    use_threads(threads)
    with torch.no_grad():
        build()()
        _trim()
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        build()()
    pipe.send(_resident("VmHWM") - before)


def _trim() -> None:
    """Hand freed heap back to the system, so that it does not hide what the next run needs."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _resident(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def table(rows: Iterable[Row], reference: str = "invreg") -> str:
    """A Markdown table; `ratio` is a row's time over that of its case's first row named `reference...`.

    Args:
        rows: the rows, in the order to print.
        reference: beginning of the name of the rows to compare with.
    """
    rows = list(rows)
    base: dict[str, float] = {}
    for row in rows:
        if row.seconds is not None and row.name.startswith(reference):
            base.setdefault(row.case, row.seconds)
    lines = [("case", "library", "time", "ratio", "peak memory", "note")]
    for row in rows:
        ratio = "" if row.seconds is None or row.case not in base else f"{row.seconds / base[row.case]:.2f}"
        memory = "" if row.mebibytes is None else f"{row.mebibytes:.0f} MiB"
        lines.append((row.case, row.name, _duration(row.seconds), ratio, memory, row.note))
    widths = [max(len(line[k]) for line in lines) for k in range(6)]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def machine() -> str:
    """One line on what the numbers were measured with."""
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} thread(s), "
        f"{platform.machine()} {sys.platform}"
    )
