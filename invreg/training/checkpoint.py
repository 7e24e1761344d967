"""Where a training stands, as one file without pickle; and whether a file belongs to the training that asks for it."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from invreg._store import DamagedFileError, decode, encode, load_tensors, save_tensors, update_digest
from invreg.training.average import Average
from invreg.training.batches import Share

FORMAT = 1
KEPT = 2
MOVING = {"last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step"}  # of a scheduler, from step to step
_NAME = re.compile(r"checkpoint-(\d{10})\.safetensors")
_LEFT_OVER = re.compile(r"\.[0-9a-f]{8}-(checkpoint-\d{10}\.safetensors|log\.jsonl)")


@dataclass(frozen=True, eq=False)
class Parts:
    """What a training changes, all of which a checkpoint holds."""

    model: nn.Module | None
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    average: Average | None
    scaler: torch.amp.GradScaler

    def state(self) -> dict[str, Any]:
        """The states of all parts by name."""
        named = {name: getattr(self, name) for name in ("model", "optimizer", "scheduler", "average", "scaler")}
        states = {name: None if part is None else part.state_dict() for name, part in named.items()}
        return {**states, "buffers": _unsaved_buffers(self.model)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        for name in ("model", "optimizer", "scheduler", "average"):
            part = getattr(self, name)
            if part is not None:
                part.load_state_dict(state[name])
        for name, buffer in _unsaved_buffers(self.model).items():
            buffer.copy_(state["buffers"][name])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])

    @property
    def parameters(self) -> list[Tensor]:
        """Those that are trained."""
        return [one for group in self.optimizer.param_groups for one in group["params"]]

    @property
    def buffers(self) -> list[Tensor]:
        """Those of the model."""
        return [] if self.model is None else list(self.model.buffers())

    def copy_buffers(self) -> dict[str, Tensor]:
        """What the model's buffers hold, such as the statistics of normalizations."""
        named = () if self.model is None else self.model.named_buffers()
        return {name: one.detach().clone() for name, one in named}

    def restore_buffers(self, copies: Mapping[str, Tensor]) -> None:
        """Put them back."""
        if self.model is not None:
            for name, one in copies.items():
                self.model.get_buffer(name).detach().copy_(one)

    def name_of(self, parameter: Tensor) -> str:
        """What the model calls a parameter."""
        names = () if self.model is None else self.model.named_parameters()
        return next((name for name, one in names if one is parameter), "a parameter")


def _unsaved_buffers(model: nn.Module | None) -> dict[str, Tensor]:
    """The buffers that a model's state leaves out, but that a resumed training needs."""
    if model is None:
        return {}
    kept = model.state_dict().keys()
    return {name: one.detach() for name, one in model.named_buffers() if name not in kept}


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write a checkpoint, whole or not at all; then remove all but it and the one before it.

    Later ones go too: they were damaged, or the training would not stand before them.

    Args:
        folder: exists.
        step: steps done.
        state: nested plain values and tensors.

    Raises:
        OSError: it cannot be written; what was there is untouched.
        TypeError: the state holds something that is neither plain nor a tensor.
    """
    path = folder / f"checkpoint-{step:010d}.safetensors"
    tensors: dict[str, Tensor] = {}
    about = {"format": FORMAT, "invreg": version("invreg"), "torch": torch.__version__}
    save_tensors(path, tensors, about | {"state": encode(dict(state), tensors, "state")})
    found = checkpoints(folder)
    kept = [one for one in found if one.name <= path.name][:KEPT]
    for one in found:
        if one not in kept:
            one.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest first."""
    return sorted((one for one in folder.iterdir() if _NAME.fullmatch(one.name)), reverse=True)


def sweep(folder: Path) -> None:
    """Remove what a kill left half written."""
    for one in folder.iterdir():
        if _LEFT_OVER.fullmatch(one.name):
            one.unlink(missing_ok=True)


def load_newest(folder: Path) -> tuple[dict[str, Any], Path]:
    """The state in the newest whole checkpoint of a folder, and its path; damaged newer ones are warned of.

    Raises:
        ValueError: all are damaged, or one is of another format or version. FileNotFoundError: there is none.
    """
    damaged: list[str] = []
    for path in checkpoints(folder):
        try:
            state = load_checkpoint(path)
        except DamagedFileError as error:
            damaged.append(str(error))
            continue
        for one in damaged:
            warnings.warn(f"{one}; going on from {path.name}", stacklevel=2)
        return state, path
    if not damaged:
        raise FileNotFoundError(f"{folder}: holds no checkpoint; check the path")
    raise DamagedFileError(f"no whole checkpoint is left: {'; '.join(damaged)}; train anew in another folder")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a file.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is damaged. ValueError: it is of another format or version.
    """
    tensors, about = load_tensors(path)
    if not isinstance(about, dict) or "state" not in about or "format" not in about:
        raise DamagedFileError(f"{path} is no checkpoint of a training")
    own = {"format": FORMAT, "invreg": version("invreg")}
    for name, value in own.items():
        if about[name] != value:
            raise ValueError(
                f"{path} was written by invreg {about['invreg']} in format {about['format']}, but this is invreg "
                f"{own['invreg']} with format {FORMAT}; resume with that version, or train anew in another folder"
            )
    if about["torch"] != torch.__version__:
        warnings.warn(
            f"{path.name} was written with torch {about['torch']}, this is {torch.__version__}: the training goes on, "
            "but not to the same last digit",
            stacklevel=2,
        )
    state: dict[str, Any] = decode(about["state"], tensors)
    return state


def identity_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
    batches: Any,
    options: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What makes a training the same training, in plain words and numbers, before its first step.

    Args:
        model, optimizer, scheduler: as they are to be trained.
        batches: stand for themselves by their number, their `settings` if they have some, and the first and the last.
        options, settings: of the loop, and what the user adds.
    """
    whole = batches.whole if isinstance(batches, Share) else batches
    own = getattr(whole, "settings", None)
    described = {"number": len(whole), **(own if isinstance(own, Mapping) else {})}
    described |= {"first": digest_of(whole[0]), "last": digest_of(whole[len(whole) - 1])}
    tensors = {name: one for name, one in model.state_dict().items() if isinstance(one, Tensor)}
    shapes = {name: f"{str(one.dtype).removeprefix('torch.')} {tuple(one.shape)}" for name, one in tensors.items()}
    groups = [
        {key: value for key, value in group.items() if key not in {"params", *(("lr",) if scheduler else ())}}
        | {"parameters": len(group["params"])}
        for group in optimizer.param_groups
    ]
    plan = {} if scheduler is None else {"class": type(scheduler).__name__, **_steady(scheduler.state_dict())}
    found = {
        "model": {"class": type(model).__name__, **shapes},
        "optimizer": {"class": type(optimizer).__name__, "groups": groups},
        "scheduler": plan,
        "batches": {"class": type(whole).__name__, **described},
        "options": dict(options),
        "settings": dict(settings),
    }
    plain: dict[str, Any] = _plain(found)
    return plain


def _steady(state: Any) -> Any:
    """The state of a scheduler, which may hold others, without what moves from step to step."""
    if isinstance(state, Mapping):
        return {key: _steady(one) for key, one in state.items() if key not in MOVING}
    return [_steady(one) for one in state] if isinstance(state, list) else state


def require_same(saved: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> None:
    """Raise ValueError, naming the differences, unless two identities agree."""
    before, now = _flat(saved), _flat(own)
    names = [name for name in {**before, **now} if before.get(name, "absent") != now.get(name, "absent")]
    if names:
        shown = [f"{n} was {before.get(n, 'absent')}, is {now.get(n, 'absent')}" for n in names[:4]]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise ValueError(
            f"{path} belongs to another training: {'; '.join(shown)}{more}; go back to its settings, or train anew in "
            "another folder"
        )


def digest_of(batch: Any) -> str:
    """A fingerprint of the tensors and plain values of a batch."""
    total = hashlib.blake2b(digest_size=8)
    _add(total, "batch", batch)
    return total.hexdigest()


def _add(total: hashlib.blake2b, name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        update_digest(total, name, value)
        return
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        total.update(f"{name}={value.dtype}{value.shape};".encode() + np.ascontiguousarray(value).tobytes())
        return
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key in value:
            _add(total, f"{name}.{key}", value[key])
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            _add(total, f"{name}.{number}", one)
    else:
        known = value is None or isinstance(value, bool | int | float | str)
        total.update(f"{name}={value if known else type(value).__name__};".encode())


def _plain(value: Any) -> Any:
    """A value as JSON; what JSON cannot hold by the name of its class."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return type(value).__name__


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves by their dotted names."""
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, list) and any(isinstance(one, Mapping | list) for one in value):
        pairs = {str(number): one for number, one in enumerate(value)}.items()
    else:
        return {name: value}
    return {k: v for key, one in pairs for k, v in _flat(one, f"{name}.{key}" if name else str(key)).items()}
