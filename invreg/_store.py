"""Tensors and plain values on disk without pickle: files that are whole or not at all, and known if damaged."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invreg._files import write_whole

MARK = "!"
"""The key of JSON objects that stand for what JSON has no word for."""


class DamagedFileError(ValueError):
    """A file that is there but is not what was written."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Any) -> None:
    """Write tensors and a JSON value to one safetensors file, whole or not at all, with a digest of both.

    Args:
        path: of the file; an existing one is replaced.
        tensors: by name, on any device, strided.
        about: what JSON can hold; see `encode`.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    text = json.dumps(about, allow_nan=False)
    complexes = sorted(name for name, value in tensors.items() if value.is_complex())
    real = {name: _on_cpu(value) for name, value in tensors.items()}
    metadata = {"about": text, "complex": json.dumps(complexes), "digest": _digest(real, text, complexes)}
    write_whole(path, save(real, metadata))  # not save_file, which leaves files of its own when it is killed


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors, on the CPU, and the JSON value that `save_tensors` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is cut off, changed, or was not written by `save_tensors`.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    try:
        with safe_open(os.fspath(path), "pt") as file:
            metadata = file.metadata() or {}
            # copies, since the file may be replaced while they are in use
            real = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        text, complexes = metadata["about"], json.loads(metadata["complex"])
        if metadata["digest"] != _digest(real, text, complexes):
            raise DamagedFileError(f"{path} is damaged: its content does not match its digest; get a fresh copy")
        tensors = {k: torch.view_as_complex(v) if k in complexes else v for k, v in real.items()}
        return tensors, json.loads(text)
    except (SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        raise DamagedFileError(f"{path} is damaged or of another kind: {' '.join(str(error).split())}") from error


def _on_cpu(value: Tensor) -> Tensor:
    value = (
        value.detach().to("cpu", copy=True).resolve_conj().resolve_neg()
    )  # copied: tensors that share memory are refused
    return (torch.view_as_real(value) if value.is_complex() else value).contiguous()


def _digest(tensors: Mapping[str, Tensor], text: str, complexes: list[str]) -> str:
    total = hashlib.blake2b(json.dumps([text, complexes]).encode(), digest_size=16)
    for name in sorted(tensors):
        update_digest(total, name, tensors[name])
    return total.hexdigest()


def update_digest(total: "hashlib.blake2b", name: str, value: Tensor) -> None:
    """Add a name and a tensor to a digest."""
    value = value.detach().cpu().resolve_conj().resolve_neg()
    value = torch.view_as_real(value) if value.is_complex() else value
    total.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
    total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def encode(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    """A nested value as JSON, its tensors put aside.

    Args:
        value: of None, booleans, numbers, strings, lists, tuples, dicts with plain keys, counters and tensors.
        tensors: where tensors go, by name.
        place: what the value is called, which starts the names of its tensors.

    Raises:
        TypeError: it holds something else.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {MARK: "float", "of": str(float(value))}
    if isinstance(value, Tensor):
        tensors[place] = value
        return {MARK: "tensor", "of": place}
    if isinstance(value, list | tuple):
        items = [encode(one, tensors, f"{place}.{i}") for i, one in enumerate(value)]
        return items if isinstance(value, list) else {MARK: "tuple", "of": items}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and MARK not in value and not isinstance(value, Counter):
            return {key: encode(one, tensors, f"{place}.{key}") for key, one in value.items()}
        kind = "counter" if isinstance(value, Counter) else "map"
        pairs = [[encode(k, tensors, place), encode(v, tensors, f"{place}.{k}")] for k, v in value.items()]
        return {MARK: kind, "of": pairs}
    raise TypeError(f"{place} must be of plain values and tensors to be kept, got {type(value).__name__}")


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `encode` was given."""
    if isinstance(value, list):
        return [decode(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    if MARK not in value:
        return {key: decode(one, tensors) for key, one in value.items()}
    kind, content = value[MARK], value["of"]
    if kind == "float":
        return float(content)
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(decode(one, tensors) for one in content)
    pairs = {decode(k, tensors): decode(v, tensors) for k, v in content}
    return Counter(pairs) if kind == "counter" else pairs
