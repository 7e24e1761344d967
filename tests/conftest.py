"""Says plainly when the wrong copy of the package would be tested; gives each xdist worker one thread."""

import importlib.metadata
import importlib.util
import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    reason = shadowed()
    if reason is not None:
        raise pytest.UsageError(reason)
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that no worker waits for one at the end: `slow(seconds=...)`."""

    def seconds(item: pytest.Item) -> float:
        mark = item.get_closest_marker("slow")
        return float(mark.kwargs.get("seconds", 0)) if mark else 0.0

    items.sort(key=seconds, reverse=True)


def shadowed() -> str | None:
    """Why `import invreg` would give a package without `invreg.solvers`, or None if it gives a whole one."""
    spec = importlib.util.find_spec("invreg")
    if spec is not None and importlib.util.find_spec("invreg.solvers") is not None:
        return None
    try:
        installed = importlib.metadata.distribution("invreg")
    except importlib.metadata.PackageNotFoundError:
        return "invreg is not installed; run: python -m pip install -e '.[test]'"
    # the source folder's own metadata, which an in-place build leaves behind, is no installation
    place = Path(str(installed.locate_file(""))).resolve()
    if place == ROOT:
        return "invreg is not installed; run: python -m pip install -e '.[test]'"
    return (
        f"invreg is installed in {place}, not editable, and the source folder {ROOT / 'invreg'}, which has no "
        "invreg.solvers, is found before it; run: python -m pip install -e '.[test]', or call pytest instead of "
        "python -m pytest to test the installed copy"
    )
