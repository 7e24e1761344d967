"""Files handled safely: errors in one voice, declared sizes checked, writes that are whole or not at all."""

import importlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A deflate stream expands at most 1032-fold, so a file cannot hold more than this many times its own size.
EXPANSION = 1032


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads `path` into one ValueError that names the file.

    Args:
        path: the file, which must exist.
        kind: what it is read as, such as "NIfTI".

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: as they are.
        ModuleNotFoundError: a reader's library is missing.
        ValueError: anything else.
    """
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError, ModuleNotFoundError):
        raise
    except Exception as error:  # a damaged file makes libraries raise nearly anything
        text = " ".join(str(error).split()) or type(error).__name__
        if text.startswith(f"{path}:"):
            raise ValueError(text) from error
        origin = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        advice = "" if ";" in text else "; check its kind or get a fresh copy"
        raise ValueError(f"{path}: cannot be read as {kind}: {origin}{text}{advice}") from error


def require_file(path: Path) -> int:
    """The size of a regular file in bytes.

    Raises:
        FileNotFoundError, IsADirectoryError: there is none.
        ValueError: it is empty, or not a regular file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: wanted a file, got a directory; only a DICOM series is read from a directory")
    if not path.is_file():
        raise ValueError(f"{path}: wanted a regular file, got a device or pipe; copy its content to a file")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path}: wanted data, got an empty file; get a fresh copy")
    return size


def require_module(name: str, extra: str, purpose: str) -> Any:
    """Import a library of an optional extra.

    Raises:
        ModuleNotFoundError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose} needs {name}, which is not installed; pip install 'invreg[{extra}]'", name=name
        ) from error


def require_stored(path: Path, declared: int, stored: int, *, compressed: bool = False) -> None:
    """Raise ValueError if a file declares more bytes of data than it can hold."""
    if declared <= 0:
        raise ValueError(f"{path}: wanted some data, got an array without entries; get a fresh copy")
    if declared > stored * (EXPANSION if compressed else 1):
        raise ValueError(
            f"{path}: declares {declared} bytes of data but holds {stored}"
            f"{' compressed' if compressed else ''}; it is truncated or its header is wrong, get a fresh copy"
        )


def as_tensor(array: Any, name: str) -> Tensor:
    """A NumPy array as a tensor of its own memory, real or complex floating point.

    float32, float64, complex64 and complex128 keep their precision; integers up to 16 bits and float16 become float32,
    wider integers float64.

    Raises:
        ValueError: another dtype, such as objects, records or long double, or no entries.
    """
    array = np.asarray(array)
    kind, width = array.dtype.kind, array.dtype.itemsize
    if array.dtype.hasobject or kind not in "biufc" or (kind == "f" and width > 8) or (kind == "c" and width > 16):
        raise ValueError(f"{name} must be an array of numbers of at most double precision, got {array.dtype}")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}")
    if kind in "biu":
        wanted = np.dtype(np.float32 if width <= 2 else np.float64)
    else:
        wanted = np.dtype(f"{kind}{max(width, 4 if kind == 'f' else 8)}")
    return torch.from_numpy(np.array(array, dtype=wanted, order="C"))


def pair_of(path: Path) -> tuple[Path, Path]:
    """The names of BART's .cfl and .hdr, given either of them or what they have in common."""
    name = path.name
    stem = name[:-4] if name.lower().endswith((".cfl", ".hdr")) else name
    return path.with_name(f"{stem}.cfl"), path.with_name(f"{stem}.hdr")


@contextmanager
def atomic(*paths: Path, overwrite: bool) -> Iterator[tuple[Path, ...]]:
    """Temporary paths beside `paths`, which take their places together when the block ends without an error.

    After an error, in the block or in the exchange, the old files are as before and no temporary is left.

    Raises:
        FileExistsError: a path exists and `overwrite` is False.
        FileNotFoundError: the directory does not exist.
        IsADirectoryError: a path is a directory.
    """
    targets = [Path(os.path.realpath(path)) for path in paths]
    for path in targets:
        require_vacant(path, overwrite=overwrite)
    temporaries = tuple(path.with_name(f".{secrets.token_hex(4)}-{path.name}") for path in targets)
    try:
        yield temporaries
        for temporary in temporaries:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        _exchange(temporaries, targets, overwrite)
    finally:
        for temporary in temporaries:
            with suppress(FileNotFoundError):
                temporary.unlink()


def require_vacant(path: Path, *, overwrite: bool) -> None:
    """Raise unless a file may be written at `path`."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the directory {path.parent} does not exist; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: wanted a file name, got a directory; name a file in it")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists already; choose another name or pass overwrite=True")


def _exchange(temporaries: tuple[Path, ...], targets: list[Path], overwrite: bool) -> None:
    """Move all temporaries to their targets, or none."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for temporary, target in zip(temporaries, targets, strict=True):
            if not overwrite:
                _move_without_overwriting(temporary, target)
                done.append((target, None))
                continue
            backup = None
            if len(targets) > 1 and target.exists():
                backup = target.with_name(f".{secrets.token_hex(4)}-{target.name}")
                os.link(target, backup)
            try:
                os.replace(temporary, target)
            except BaseException:
                if backup is not None:
                    backup.unlink()
                raise
            done.append((target, backup))
    except BaseException:
        for target, backup in reversed(done):
            if backup is None:
                target.unlink()
            else:
                os.replace(backup, target)
        raise
    for _, backup in done:
        if backup is not None:
            backup.unlink()


def _move_without_overwriting(temporary: Path, target: Path) -> None:
    """Give `temporary` its name unless somebody took it meanwhile."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise FileExistsError(f"{target}: was made by somebody else meanwhile; choose another name") from None
    except OSError:  # a file system without hard links
        if target.exists():
            raise
        os.replace(temporary, target)
