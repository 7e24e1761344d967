"""A trained model as a folder: config.json, which says how to build it, and model.safetensors, its weights.

A model takes part by having `config`, see `Configured`; nothing needs to be inherited or registered in its own file.
Names for classes come in as a mapping; `invreg.config` has the one of this package, and these functions over it.
"""

import dataclasses
import inspect
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from invreg._check import unknown_name
from invreg._files import sync_folder, write_whole
from invreg._store import DamagedFileError, decode, encode, load_tensors, save_tensors

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


@runtime_checkable
class Configured(Protocol):
    """A module that can be built again: `type(model)(**model.config)` has the same parts and shapes."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments by name.

        Values are None, booleans, numbers, strings, tuples or lists of these (they come back as tuples), dicts with
        strings as keys, other Configured modules, or frozen dataclasses such as `Tsit5()`; classes of the last two need
        a name, too.
        """
        ...


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    classes: Mapping[str, type[Any]],
    *,
    info: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model's folder, whole or not at all.

    Args:
        model: has `config`, see `Configured`.
        folder: to be made; the folder above it must exist.
        classes: by the names under which they are saved.
        info: what a user should know, of plain values: sizes, ranges, units, how it was trained.
        overwrite: replace an existing folder of a model.

    Raises:
        TypeError: the model has no `config`, or it or `info` holds what JSON cannot.
        ValueError: a class without a name, or a folder that is there and holds something else.
        FileExistsError, FileNotFoundError: it exists and `overwrite` is False; the folder above is missing.
    """
    if not isinstance(model, Configured):
        raise TypeError(f"model must have a property config with its arguments, got {type(model).__name__} without")
    about = {
        "format": FORMAT,
        "invreg": version("invreg"),
        "model": describe(model, classes),
        "info": dict(info or {}),
    }
    try:
        tensors: dict[str, Tensor] = {}
        text = json.dumps(encode(about, tensors, "config"), indent=1, allow_nan=False)
        if tensors:
            raise TypeError(f"got a tensor at {next(iter(tensors))}")
    except (TypeError, ValueError) as error:
        raise TypeError(f"info must hold plain values only: {error}") from error
    target = Path(os.path.abspath(folder))
    require_place(target, overwrite)
    temporary = target.with_name(f".{secrets.token_hex(4)}-{target.name}")
    temporary.mkdir()
    try:
        save_tensors(temporary / WEIGHTS, model.state_dict(), {"model": about["model"]})
        write_whole(temporary / CONFIG, text.encode() + b"\n")
        _move(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(target.parent)


def from_pretrained(folder: str | os.PathLike[str], classes: Mapping[str, type[Any]]) -> nn.Module:
    """The model of a folder, on the CPU, in the dtype it was saved in, in evaluation mode.

    Raises:
        FileNotFoundError: the folder or a file of it is missing.
        ValueError: a damaged file, another format, an unknown class, arguments the class refuses, or weights that do
            not fit.
    """
    folder = Path(folder)
    about = _read_config(folder)
    weights, written = load_tensors(folder / WEIGHTS)
    if not isinstance(written, dict) or written.get("model") != about["model"]:
        raise ValueError(f"{folder / WEIGHTS} belongs to another model than {CONFIG}; get both from one place")
    try:
        model = rebuild(about["model"], classes)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{folder / CONFIG} must name a model, got {type(model).__name__}")
    _load_weights(model, weights, folder / WEIGHTS)
    return model.eval()


def info_of(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What was saved as `info` with the model of a folder; errors as of `from_pretrained`."""
    info: dict[str, Any] = _read_config(Path(folder))["info"]
    return info


def describe(thing: Any, classes: Mapping[str, type[Any]], place: str = "config") -> Any:
    """An argument as plain JSON; modules and dataclasses as {"name": ..., "arguments": {...}}.

    Raises:
        TypeError: of another kind. ValueError: a class without a name.
    """
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, list | tuple):
        return [describe(one, classes, place) for one in thing]
    if isinstance(thing, Mapping):
        if not all(isinstance(key, str) for key in thing) or set(thing) == {"name", "arguments"}:
            raise TypeError(f"{place} must have strings as keys, and other ones than name and arguments, got {thing!r}")
        return {key: describe(one, classes, f"{place}.{key}") for key, one in thing.items()}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        arguments: Mapping[str, Any] = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing) if f.init}
    elif isinstance(thing, Configured) and isinstance(thing, nn.Module):
        arguments = thing.config
    else:
        raise TypeError(f"{place} must be plain or an object with config, got {type(thing).__name__}")
    names = [name for name, cls in classes.items() if cls is type(thing)]
    if not names:
        kind = type(thing).__name__
        raise ValueError(f"{kind} has no name to be saved under; add one, as in classes={{**MODELS, 'mine': {kind}}}")
    described = {key: describe(one, classes, f"{place}.{key}") for key, one in arguments.items()}
    return {"name": names[0], "arguments": described}


def rebuild(described: Any, classes: Mapping[str, type[Any]]) -> Any:
    """What `describe` described; lists become tuples.

    Raises:
        ValueError: an unknown class, an argument that it does not have, or one that it refuses.
    """
    if isinstance(described, list):
        return tuple(rebuild(one, classes) for one in described)
    if not isinstance(described, dict):
        return described
    if set(described) != {"name", "arguments"}:
        return {key: rebuild(one, classes) for key, one in described.items()}
    name, arguments = described["name"], described["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError(f"wanted a name and arguments, got {described!r}")
    if name not in classes:
        raise ValueError(unknown_name("class", name, classes))
    known = inspect.signature(classes[name]).parameters
    for key in arguments:
        if key not in known:
            raise ValueError(unknown_name(f"argument of {name}", key, known))
    built = {key: rebuild(one, classes) for key, one in arguments.items()}
    try:
        return classes[name](**built)
    except Exception as error:  # values that nobody wrote on purpose make constructors raise anything
        raise ValueError(f"{name} cannot be built: {error}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of a model; check the path")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a model's folder holds {CONFIG} and {WEIGHTS}")
    try:
        about = decode(json.loads(path.read_text(encoding="utf-8")), {})
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error
    if not isinstance(about, dict) or not {"format", "model", "info"} <= set(about):
        raise DamagedFileError(f"{path} must hold format, model and info; it is of another kind or damaged")
    if about["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {about['format']}, written by invreg {about.get('invreg')}, but this one reads format "
            f"{FORMAT}; install that version"
        )
    return about


def _load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    wanted = model.state_dict()
    wrong = [f"{name} is missing" for name in wanted if name not in weights]
    wrong += [f"{name} is unknown to {type(model).__name__}" for name in weights if name not in wanted]
    wrong += [
        f"{name} must be {tuple(wanted[name].shape)}, got {tuple(value.shape)}"
        for name, value in weights.items()
        if name in wanted and wanted[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{path} does not fit its {CONFIG}: {'; '.join(wrong[:3])}{more}")
    with torch.no_grad():
        for name, value in wanted.items():  # aliases of the model's own tensors
            if value.dtype != weights[name].dtype:
                _tensor_of(model, name).data = value.to(weights[name].dtype)
    model.load_state_dict(dict(weights))


def _tensor_of(model: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), last)
    assert isinstance(tensor, Tensor)
    return tensor


def require_place(target: Path, overwrite: bool) -> None:
    """Raise unless a model may be written there; errors as of `save_pretrained`."""
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist; make it first")
    if not target.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{target}: exists already; choose another name or pass overwrite=True")
    if not target.is_dir() or {one.name for one in target.iterdir()} - {CONFIG, WEIGHTS}:
        raise ValueError(f"{target}: holds something else than a model and is not replaced; choose another name")


def _move(temporary: Path, target: Path) -> None:
    """Give the folder its name; an old one of that name steps aside first, and comes back should that fail."""
    if not target.exists():
        temporary.rename(target)
        return
    old = target.with_name(f".{secrets.token_hex(4)}-{target.name}")
    target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
