"""`import invreg` loads torch and little else."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = (
    "torchvision",
    "diffusers",
    "deepinv",
    "ot",
    "matplotlib",
    "pydicom",
    "nibabel",
    "h5py",
    "scipy",
    "typer",
    "pywt",
)
ROOT = Path(__file__).resolve().parent.parent


def modules_after(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter holds after `statement`."""
    code = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy_besides_torch() -> None:
    assert modules_after("import invreg") & set(HEAVY) == set()


@pytest.mark.parametrize("part", sorted(p.name for p in (ROOT / "invreg").iterdir() if (p / "__init__.py").exists()))
def test_importing_a_part_loads_no_foreign_library(part: str) -> None:
    foreign = {"torchvision", "diffusers", "deepinv", "ot", "matplotlib", "pydicom", "nibabel", "h5py"}
    assert modules_after(f"import invreg.{part}") & foreign == set()


@pytest.mark.slow
def test_importing_the_package_takes_at_most_1_3_times_the_import_of_torch() -> None:
    def once(name: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {name}"], check=True, timeout=120)
        return time.perf_counter() - start

    for name in ("torch", "invreg"):
        once(name)  # fills the disk cache and writes the byte code
    times: dict[str, list[float]] = {"torch": [], "invreg": []}
    for _ in range(15):  # the minimum of runs in turns hardly feels what else the machine does
        for name, values in times.items():
            values.append(once(name))
        if min(times["invreg"]) <= 1.25 * min(times["torch"]) and len(times["torch"]) >= 3:
            break
    assert min(times["invreg"]) <= 1.3 * min(times["torch"])


def test_the_command_answers_help_without_loading_torch() -> None:
    assert "torch" not in modules_after("import invreg.cli.app")
