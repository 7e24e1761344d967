"""The layout of the package, read from the syntax trees of its files: floors, sizes, names, faces."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "invreg").rglob("*.py"), *(ROOT / "solvers").rglob("*.py")])
SCRIPTS = sorted([*(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")])

GROUND = ("solvers",)
# a part imports only from lower numbers; the digit behind the point orders the parts of one floor
FLOORS: dict[str, float] = {
    # 1: what everything stands on
    **dict.fromkeys(("_check", "_files", "_memory", "random", "_torchvision"), 1.0),
    **dict.fromkeys(("moments", "sample_distance"), 1.1),
    **dict.fromkeys(("_store", "interfaces", "_channels", "metrics", "phantom", "assets"), 1.1),
    **dict.fromkeys(("linalg", "data"), 1.2),
    "lanczos": 1.3,
    # 2: physics, models, data
    **dict.fromkeys(("noise", "operators", "models", "transport", "collocation"), 2.0),
    **dict.fromkeys(("problem", "mri", "sde"), 2.1),
    **dict.fromkeys(("io", "testing", "diagnostics"), 2.2),
    "simulate": 2.3,
    # 3: beliefs and how to act on them
    **dict.fromkeys(("regularizers", "algorithms"), 3.0),
    # 4: what joins them
    **dict.fromkeys(("training", "_deepinv"), 4.0),
    "deepinv_bridge": 4.1,
    "config": 5.0,
    "cli": 6.0,
}
# the files of a folder that their siblings build on; all others do not know of each other
SHARED: dict[str, set[str]] = {
    "algorithms": {"loop", "proved_step", "reconstruction", "renoise", "smooth", "spectral", "splitting"},
    "config": {"build", "names", "spec"},
    "io": {"dicom_series", "files", "hdf5", "ismrmrd_header", "records"},
    "models": {"denoiser", "exact", "noise_path", "pretrained"},
    "mri": {"compression"},
    "operators": {"blur", "fourier", "joseph", "rays"},
    "regularizers": {"norms"},
    "training": {
        "average",
        "batches",
        "checkpoint",
        "folder_lock",
        "journal",
        "loop",
        "parallel",
        "patches",
        "random_images",
        "randomness",
        "record",
        "requirements",
    },
}
TOUCH_SOLVERS = {
    "operators.flow",
    "regularizers.solver_heuristics",
    "algorithms.probability_flow",
    "training",
    "config.names",  # of the methods
}
BANNED_NAMES = {"utils", "util", "misc", "helpers", "helper", "common"}


def module_of(path: Path) -> str:
    """`invreg/operators/blur.py` -> `invreg.operators.blur`; `solvers/x.py` -> `invreg.solvers.x`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(("invreg", *parts) if parts[0] == "solvers" else parts)


MODULES = {module_of(path): path for path in SOURCES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path: Path, *, lazy: bool = True) -> set[str]:
    """Absolute names of the modules of this package that a file imports; without `lazy`, at its import only."""
    name, package = (
        module_of(path),
        module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0],
    )
    found: set[str] = set()
    for node in nodes(tree_of(path), lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            # `from package import module` imports that module
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names}
    return {one for one in found if one.split(".")[0] in {"invreg", "solvers"}} - {name}


def nodes(tree: ast.AST, lazy: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if not lazy and (isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(child)):
            continue
        yield child
        yield from nodes(child, lazy)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def part_of(module: str) -> str:
    """`invreg.operators.blur` -> `operators`."""
    return [*module.split("."), ""][1]


def sources(*, solvers: bool) -> list[Path]:
    return [path for path in SOURCES if (part_of(module_of(path)) in GROUND) == solvers]


def test_every_part_of_the_package_has_its_floor() -> None:
    parts = {part_of(module) for module in MODULES} - {""} - set(GROUND)
    assert parts - set(FLOORS) == set(), "give the new part a floor here and in docs/development.md"


@pytest.mark.parametrize("path", sources(solvers=False), ids=module_of)
def test_imports_go_strictly_downward(path: Path) -> None:
    name = module_of(path)
    part = part_of(name)
    if part == "":
        return  # invreg/__init__.py shows the public face
    for other in imports_of(path):
        target = part_of(other)
        if target == "" and part != "cli":  # which prints the version
            pytest.fail(f"{name} imports the package's face; import the file that holds the name")
        if target in GROUND:
            assert any((name + ".").startswith(f"invreg.{one}.") for one in TOUCH_SOLVERS), f"{name} touches solvers"
        elif target not in {part, ""}:
            assert FLOORS[target] < FLOORS[part], (
                f"{name} (floor {FLOORS[part]}) imports {other} (floor {FLOORS[target]})"
            )


@pytest.mark.parametrize("path", [p for p in sources(solvers=False) if p.name != "__init__.py"], ids=module_of)
def test_siblings_do_not_import_each_other_but_for_the_shared_ones(path: Path) -> None:
    name = module_of(path)
    folder = name.rpartition(".")[0]
    if folder in {"invreg", "invreg.cli"}:
        return  # the floors say it; the files of the command are stages of one job, not methods of one kind
    for other in imports_of(path):
        if other == folder:
            pytest.fail(f"{name} imports from its own package's face; import the file that holds the name")
        if other.startswith(folder + "."):
            sibling = other.removeprefix(folder + ".").split(".")[0]
            assert sibling in SHARED.get(part_of(name), set()), f"{name} imports its sibling {other}"


def test_solvers_know_nothing_of_the_rest() -> None:
    for path in sources(solvers=True):
        outside = {one for one in imports_of(path) if not one.startswith("invreg.solvers")}
        assert outside == set(), f"{module_of(path)} imports {outside}"
        absolute = {
            one.module
            for one in ast.walk(tree_of(path))
            if isinstance(one, ast.ImportFrom) and not one.level and (one.module or "").split(".")[0] == "invreg"
        }
        assert absolute == set(), f"{module_of(path)}: imports inside solvers are relative"


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_nobody_imports_solvers_by_its_folder_name(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert "solvers" not in {name.split(".")[0] for name in names}, (
            "a second copy of every class; use invreg.solvers"
        )


def test_beliefs_and_algorithms_never_import_models() -> None:
    for path in SOURCES:
        if part_of(module_of(path)) in {"regularizers", "algorithms"}:
            assert "models" not in {part_of(one) for one in imports_of(path)}, module_of(path)


def test_there_is_no_circle_of_imports() -> None:
    graph = {name: imports_of(path, lazy=False) & set(MODULES) for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "circle: " + " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_files_functions_and_names_stay_small_and_telling(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400
    assert path.stem.strip("_") not in BANNED_NAMES
    assert path.parent.name not in BANNED_NAMES
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert lines_of_code(node) < 60, f"{node.name} has {lines_of_code(node)} lines"


def lines_of_code(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    assert node.end_lineno is not None
    total = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
        text = node.body[0]
        assert text.end_lineno is not None
        total -= text.end_lineno - text.lineno + 1
    return total


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name == "__init__.py"], ids=module_of)
def test_a_package_face_only_re_exports_in_order(path: Path) -> None:
    tree = tree_of(path)
    exported: list[str] | None = None
    imported: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name for alias in node.names}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__":
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            assert node.value is not None
            exported = ast.literal_eval(node.value)
    if imported:
        assert exported is not None, "list the public names in __all__"
        assert len(exported) == len(set(exported))
        assert {name for name in imported if not name.startswith("_")} <= set(exported)


def test_tests_have_no_package_files_and_mirror_the_code() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []
    folders = {p.parent.relative_to(ROOT / "tests") for p in (ROOT / "tests").rglob("test_*.py")} - {Path()}
    known = {p.parent.relative_to(ROOT / "invreg") for p in SOURCES if p.is_relative_to(ROOT / "invreg")}
    known |= {p.parent.relative_to(ROOT) for p in SOURCES if p.is_relative_to(ROOT / "solvers")}
    assert folders - known - {Path("benchmarks"), Path("examples")} == set()


def test_the_checks_of_this_file_see_what_they_look_for(tmp_path: Path) -> None:
    tree = ast.parse("import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    import c\n")
    seen = [{n.names[0].name for n in nodes(tree, lazy) if isinstance(n, ast.Import)} for lazy in (True, False)]
    assert seen == [{"a", "b", "c"}, {"a"}]
    assert part_of("invreg.operators.blur") == "operators"
    assert "invreg.interfaces" in imports_of(ROOT / "invreg" / "problem.py")
    assert sys.version_info >= (3, 11)
