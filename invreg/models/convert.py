"""Weights from pickled checkpoints to safetensors, without running what a pickle may hold."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invreg._check import unknown_name
from invreg._files import write_whole

WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""
DEPTH = 4
SUFFIX = ".safetensors"


def convert(
    path_in: str | os.PathLike[str],
    path_out: str | os.PathLike[str],
    *,
    key: str | None = None,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write the weights of a .pt, .pth, .bin or .ckpt file as safetensors, whole or not at all.

    A checkpoint may hold its weights deep inside, beside an optimizer's state and more: all mappings from names to
    tensors alone are looked for, other than those of optimizers. Prefixes that wrappers put before every name,
    "module." and "_orig_mod.", are taken off. Weights that share memory are written once for each name.

    Args:
        path_in: written by `torch.save`; only tensors and plain values are read from it, and no code is run.
        path_out: ends in .safetensors; its folder exists.
        key: where the weights are if there are several, such as "ema" or "state.model".
        overwrite: replace an existing file.

    Returns:
        The names of the tensors that were written.

    Raises:
        FileNotFoundError, FileExistsError: path_in or the folder of path_out is missing; path_out exists.
        ValueError: a file of another kind, one that holds objects beside tensors and plain values, no weights, several
            of them and no key, or a key that is not there.
    """
    source, target = Path(path_in), Path(path_out)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; check the path")
    if source.suffix == SUFFIX:
        raise ValueError(f"{source} is in safetensors already; use it as it is")
    if target.suffix != SUFFIX:
        raise ValueError(f"path_out must end in {SUFFIX}, got {target.name}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist; make it first")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target}: exists already; choose another name or pass overwrite=True")
    weights = _unwrapped(_chosen(dict(_candidates(_load(source))), key, source))
    from safetensors.torch import save

    # copies, since tensors that share memory are refused
    plain = {name: value.detach().resolve_conj().resolve_neg().contiguous().clone() for name, value in weights.items()}
    write_whole(target, save(plain, {"format": "pt"}))
    return tuple(plain)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("Please file")[0].split("\n")
        blame = next((one for one in reason if "GLOBAL" in one or "Unsupported" in one), reason[0]).strip()
        raise ValueError(
            f"{path} holds objects beside tensors and plain values, and reading them could run code: {blame[:200]}; "
            "save its state_dict() alone where you trust it"
        ) from error
    except (RuntimeError, EOFError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or was not written by torch.save: {' '.join(str(error).split())[:200]}"
        ) from error


def _candidates(found: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Mappings from names to tensors alone, by where they are."""
    if not isinstance(found, Mapping) or not found or depth > DEPTH or not all(isinstance(k, str) for k in found):
        return
    if all(isinstance(value, Tensor) for value in found.values()):
        yield place, found
        return
    for name, value in found.items():
        if "optim" not in name.lower():
            yield from _candidates(value, f"{place}.{name}" if place else name, depth + 1)


def _chosen(candidates: Mapping[str, Mapping[str, Tensor]], key: str | None, path: Path) -> Mapping[str, Tensor]:
    if not candidates:
        raise ValueError(f"{path} holds no mapping from names to tensors; save a model's state_dict()")
    if key is not None:
        if key not in candidates:
            raise ValueError(f"{path}: {unknown_name('key', key, candidates)}")
        return candidates[key]
    if len(candidates) > 1:
        raise ValueError(f"{path} holds several models; choose one with key: {', '.join(sorted(candidates))}")
    return next(iter(candidates.values()))


def _unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = dict(weights)
    for name, value in found.items():
        if value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"{name} must be a dense tensor, got {value.layout}; save it as one")
    while prefix := next((one for one in WRAPPERS if all(name.startswith(one) for name in found)), None):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found
