"""A guard for a CPU-only torch beside a CUDA build of torchvision, whose operators then do not load.

`import torchvision` fails there with "operator torchvision::nms does not exist", and with it the import of deepinv, of
torchmetrics and of the model classes of diffusers, none of which need that operator.
"""

import importlib.util
import sys
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[torch.library.Library] = []  # a library that is collected takes its registrations along


def guard_torchvision() -> bool:
    """Declare the operators that torchvision's import needs, if torchvision is installed and cannot load its own.

    Call it before the first import of deepinv, torchmetrics or a diffusers model class. It does nothing where
    torchvision is not installed or works, and it imports torchvision in no case. Calling it again is harmless.

    Returns:
        Whether operators were declared by this call. They are names without code: torchvision's image transforms work,
        its detection operators stay absent.
    """
    if "torchvision" in sys.modules or _has_nms():
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    for folder in spec.submodule_search_locations:
        # _C.so, _C_stable.so, _C.cpython-311-darwin.so, _C.pyd: the name depends on release and platform
        for library in sorted(Path(folder).glob("_C*")):
            if library.suffix in {".so", ".pyd", ".dylib"}:
                _load(library)
    if _has_nms():
        return False
    library_of_names = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library_of_names.define(name + _SCHEMA)  # type: ignore[no-untyped-call]
    _kept.append(library_of_names)
    return True


def _has_nms() -> bool:
    try:
        torch.ops.torchvision.nms  # noqa: B018  the look-up is the test
    except (AttributeError, RuntimeError):
        return False
    return True


def _load(library: Path) -> None:
    """Load an operator library as torchvision would; torchvision's own load of the same file is then a no-op."""
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError):
        return
