"""What is in the wheel, and that it works away from the source folder."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders_of_code() -> set[str]:
    found = set()
    for init in [*(ROOT / "invreg").rglob("__init__.py"), *(ROOT / "solvers").rglob("__init__.py")]:
        parts = init.parent.relative_to(ROOT).parts
        found.add(".".join(("invreg", *parts) if parts[0] == "solvers" else parts))
    return found


def test_listed_packages_are_the_folders_on_disk() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders_of_code()
    assert PROJECT["tool"]["setuptools"]["packages"] == sorted(PROJECT["tool"]["setuptools"]["packages"])


def test_every_folder_with_code_is_a_package() -> None:
    for top in ("invreg", "solvers"):
        for path in (ROOT / top).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path.parent} needs an __init__.py"


def test_the_version_is_the_same_wherever_it_is_stated() -> None:
    import invreg

    assert PROJECT["project"]["version"] == invreg.__version__
    assert importlib.metadata.version("invreg") == invreg.__version__


def test_solvers_are_not_importable_by_their_folder_name_once_installed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.startswith("solvers/")]


def test_extras_cover_each_other_and_name_known_requirements() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert any("deepinv" in one and one.startswith("invreg[") for one in extras["test"])
    assert any("deepinv" in one for one in extras["all"])
    joined = " ".join(PROJECT["project"]["dependencies"])
    for name in ("astra", "sigpy", "deepinv", "torchvision"):
        assert name not in joined, f"{name} belongs in an extra"
    for name in ("astra-toolbox", "sigpy"):
        holders = [extra for extra, names in extras.items() if any(one.startswith(name) for one in names)]
        assert holders == ["bench"]


def test_the_constraints_hold_torch_and_torchvision_together() -> None:
    lines = (ROOT / "constraints" / "cpu.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert set(pins) == {"torch", "torchvision"}
    # torchvision 0.(n + 15) is the release made for torch 2.n
    assert int(pins["torchvision"].split(".")[1]) == int(pins["torch"].split(".")[1]) + 15


def test_what_continuous_integration_installs_is_what_the_readme_says() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    command = "python -m pip install -c constraints/cpu.txt -e '.[test]'"
    assert command in script.read_text(encoding="utf-8")
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources without network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("invreg", "solvers"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    done = subprocess.run([*pip, "-w", str(out), str(source)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_all_modules_assets_types_and_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith(".dist-info/METADATA"))).decode()
    wanted = {str(p.relative_to(ROOT)) for p in (ROOT / "invreg").rglob("*.py")}
    wanted |= {"invreg/" + str(p.relative_to(ROOT)) for p in (ROOT / "solvers").rglob("*.py")}
    wanted |= {str(p.relative_to(ROOT)) for p in (ROOT / "invreg" / "assets").iterdir() if p.suffix in {".npz", ".md"}}
    wanted |= {str(p.relative_to(ROOT)) for p in (ROOT / "invreg" / "assets").glob("*-prior/*")}
    assert wanted | {"invreg/py.typed"} <= names
    licences = {Path(name).name for name in names if ".dist-info/licenses/" in name}
    assert {"LICENSE", "NOTICE.md"} <= licences
    assert "License-Expression: BSD-3-Clause" in metadata
    assert not any(name.startswith(("tests/", "solvers/", "docs/", "examples/")) for name in names)
    assert sum(info.file_size for info in zipfile.ZipFile(wheel).infolist()) < 12e6  # three priors are 9


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the unpacked wheel and nothing of the sources."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


# the finder of an editable install would fill in whatever the wheel lacks
NO_EDITABLE = """
import sys
sys.meta_path[:] = [one for one in sys.meta_path if not getattr(one, "__module__", "").startswith("__editable__")]
"""


def run_elsewhere(code: str, site: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", NO_EDITABLE + code],
        cwd=site.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.mark.slow
def test_every_module_of_the_wheel_can_be_imported_elsewhere(elsewhere: Path) -> None:
    code = """
import importlib, pathlib, pkgutil, sys
import invreg, invreg.solvers
home = pathlib.Path(invreg.__file__).parent
print(home)
for module in pkgutil.walk_packages(invreg.__path__, "invreg."):
    # the one imports deepinv, which its bridge does only when asked; the other runs the command
    if module.name != "invreg._deepinv" and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name, module in sys.modules.items():
    if name.split(".")[0] == "invreg":
        assert home in pathlib.Path(module.__file__).parents, (name, module.__file__)
assert "solvers" not in sys.modules
"""
    assert run_elsewhere(code, elsewhere) == str(elsewhere / "invreg")


@pytest.mark.slow
def test_the_assets_of_the_wheel_can_be_read_elsewhere(elsewhere: Path) -> None:
    code = "from invreg.assets import brain_slice; print(brain_slice.__module__)"
    assert run_elsewhere(code, elsewhere).startswith("invreg.assets")


@pytest.mark.slow
def test_the_console_script_of_the_wheel_runs_elsewhere(elsewhere: Path) -> None:
    (info,) = elsewhere.glob("*.dist-info")
    scripts = importlib.metadata.PathDistribution(info).entry_points.select(group="console_scripts", name="invreg")
    (script,) = scripts
    code = f"import sys; sys.argv = ['invreg', '--help']; from {script.module} import {script.attr} as main; main()"
    assert "reconstruct" in run_elsewhere(code, elsewhere)
