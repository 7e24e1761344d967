"""The guard for a torchvision whose operators do not load, in fresh interpreters, most with a made-up torchvision."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

IMPORT_THAT_NEEDS_NMS = "import torch\ntorch.library.register_fake('torchvision::nms')(lambda *a: None)\n"


def run(code: str, site: Path, *, package: str | None) -> str:
    """What `code` prints with `site` first on the path, where a torchvision of this source may lie."""
    if package is not None:
        (site / "torchvision").mkdir()
        (site / "torchvision" / "__init__.py").write_text(package)
        (site / "torchvision" / "_C.so").write_bytes(b"not a library")
    head = f"import sys; sys.path.insert(0, {str(site)!r})\nfrom invreg._torchvision import guard_torchvision\n"
    done = subprocess.run(
        [sys.executable, "-c", head + code], capture_output=True, text=True, timeout=120, check=False, cwd=site
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_import_of_a_torchvision_without_operators_works_behind_the_guard(tmp_path: Path) -> None:
    code = """
assert guard_torchvision() is True
assert guard_torchvision() is False, "a second call must find nothing to do"
assert "torchvision" not in sys.modules
import gc; gc.collect()
import torchvision
print("imported")
"""
    assert run(code, tmp_path, package=IMPORT_THAT_NEEDS_NMS) == "imported"


def test_import_of_that_torchvision_fails_without_the_guard(tmp_path: Path) -> None:
    code = """
try:
    import torchvision
except RuntimeError as error:
    print("nms" in str(error))
"""
    assert run(code, tmp_path, package=IMPORT_THAT_NEEDS_NMS) == "True"


def test_a_failed_import_before_the_guard_can_be_repeated_after_it(tmp_path: Path) -> None:
    code = """
try:
    import torchvision
except RuntimeError:
    print(guard_torchvision())
import torchvision
"""
    assert run(code, tmp_path, package=IMPORT_THAT_NEEDS_NMS) == "True"


def test_working_operators_are_left_alone(tmp_path: Path) -> None:
    code = """
import torch
loaded = []
def load(path):  # what loading torchvision's own library does
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    loaded.append((path, library))
torch.ops.load_library = load
print(guard_torchvision(), len(loaded))
"""
    assert run(code, tmp_path, package=IMPORT_THAT_NEEDS_NMS) == "False 1"


def test_nothing_is_done_without_torchvision(tmp_path: Path) -> None:
    code = """
import importlib.util, torch
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torchvision" else find(name, package)
print(guard_torchvision(), hasattr(torch.ops.torchvision, "nms"))
"""
    assert run(code, tmp_path, package=None) == "False False"


def test_nothing_is_done_once_torchvision_is_imported(tmp_path: Path) -> None:
    assert run("import torchvision; print(guard_torchvision())", tmp_path, package="") == "False"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepinv", "torchmetrics", "diffusers.models.unets.unet_2d"])
def test_libraries_that_import_torchvision_can_be_imported_behind_the_guard(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(name.split(".", maxsplit=1)[0]) is None:
        pytest.skip(f"{name} is not installed")
    code = f"guard_torchvision(); import {name}; print('imported')"
    assert run(code, tmp_path, package=None).endswith("imported")
