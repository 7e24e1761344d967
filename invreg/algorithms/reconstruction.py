"""The result of a reconstruction algorithm: the image, and a record of how it came about."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import tempfile
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Status(Enum):
    """How the reconstruction of one sample ended; COMPLETE where the iterations are a schedule with an end."""

    CONVERGED = "converged"
    COMPLETE = "complete"
    ITERATION_LIMIT = "iteration limit"
    INTERRUPTED = "interrupted"
    NOT_FINITE = "not finite"


@dataclass(frozen=True, eq=False)
class History:
    """What the iterations did; K of them were run, C of them checked.

    Args:
        change: |x_k - x_(k-1)| / |x_k| of every iteration, (K, B).
        checked: numbers of the checked iterations, from 1, (C,).
        misfit: the negative log-likelihood at those, (C, B).
        penalty: weight * R(x) at those, (C, B), as annealed by then; NaN where the prior has no value.
    """

    change: Tensor
    checked: Tensor
    misfit: Tensor
    penalty: Tensor

    @property
    def objective(self) -> Tensor:
        """Misfit + penalty, (C, B); the misfit alone where the prior has no value."""
        return self.misfit + self.penalty.nan_to_num(0.0)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The result of `Algorithm.solve`.

    Args:
        x: the images, (B, *signal).
        history: the record of the iterations.
        status: how each sample ended, B of them.
        settings: algorithm, prior and operator in plain words and numbers.
        seconds: wall time.
        count: real numbers measured of each sample, (B,).
    """

    x: Tensor
    history: History
    status: tuple[Status, ...]
    settings: dict[str, Any]
    seconds: float
    count: Tensor

    @property
    def chi_square(self) -> Tensor:
        """2 * misfit / count at the last check, (B,): about 1 where the residual is as large as the noise; NaN before.

        Far above 1 the image does not explain the data; far below, it explains the noise, too.
        """
        last = self.history.misfit
        return 2 * last[-1] / self.count if len(last) else last.new_full(self.count.shape, torch.nan)

    @property
    def iterations(self) -> int:
        """How many iterations were run."""
        return int(self.history.change.shape[0])

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.x.shape))
        ends = ", ".join(f"{one.value} ({self.status.count(one)})" for one in Status if one in self.status)
        text = f"Reconstruction({shape} {str(self.x.dtype).removeprefix('torch.')} by {self.settings.get('algorithm')}"
        text += f": {ends}; {self.iterations} iterations, {self.seconds:.2f} s"
        if self.iterations:
            text += f", last change {float(self.history.change[-1].max()):.1e}"
        if self.history.checked.numel():
            text += f", objective {float(self.history.objective[-1].mean()):.6g}"
        return text + ")"

    def _repr_html_(self) -> str:
        rows = {
            "image": f"{tuple(self.x.shape)} {self.x.dtype}",
            "status": ", ".join(s.value for s in self.status),
            "iterations": self.iterations,
            "seconds": f"{self.seconds:.2f}",
            **self.settings,
        }
        cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
        return f"<table>{cells}</table>"

    def plot(self, sample: int = 0) -> Figure:
        """A figure of one sample's image (magnitude; the middle slice of a volume) beside its record."""
        from matplotlib.figure import Figure

        image = self.x[sample].detach().cpu()
        image = image.abs() if image.is_complex() else image
        while image.ndim > 2:
            image = image[image.shape[0] // 2]
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        left.imshow(image.reshape(-1, image.shape[-1]).numpy(), cmap="gray")
        left.set_title(self.status[sample].value)
        left.set_axis_off()
        middle.semilogy(range(1, self.iterations + 1), self.history.change[:, sample].cpu())
        middle.set(xlabel="iteration", title="relative change")
        right.plot(self.history.checked.cpu(), self.history.objective[:, sample].cpu(), marker=".")
        right.set(xlabel="iteration", title="objective")
        return figure

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all of it to one safetensors file, atomically; `load` reads it back.

        Raises:
            ValueError: the path does not end in .safetensors.
        """
        from safetensors.torch import save_file

        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"path must end in .safetensors, got {path}")
        x = self.x.detach().cpu().resolve_conj()
        tensors = {"x": torch.view_as_real(x).contiguous() if x.is_complex() else x.contiguous()}
        tensors["count"] = self.count.cpu().contiguous()
        for field in dataclasses.fields(self.history):
            tensors[field.name] = getattr(self.history, field.name).detach().cpu().contiguous()
        about = {
            "complex": x.is_complex(),
            "status": [s.name for s in self.status],
            "settings": self.settings,
            "seconds": self.seconds,
        }
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        os.close(handle)
        os.chmod(temporary, 0o644)  # mkstemp's 0o600 is meant for secrets
        try:
            save_file(tensors, temporary, {"reconstruction": json.dumps(about, default=str)})
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Reconstruction:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not a saved Reconstruction, or one of another version.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(os.fspath(path), "pt") as file:
                about = json.loads((file.metadata() or {})["reconstruction"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            _check_fields(path, {*tensors, *about})
            x = tensors.pop("x")
            x = torch.view_as_complex(x) if about["complex"] else x
            count = tensors.pop("count")
            status = tuple(Status[name] for name in about["status"])
            return Reconstruction(x, History(**tensors), status, about["settings"], about["seconds"], count)
        except (SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a saved Reconstruction: {error}") from error


def _check_fields(path: object, found: set[str]) -> None:
    """Raise ValueError unless a file holds what `save` writes."""
    wanted = {"x", "count", "complex", "status", "settings", "seconds", *(f.name for f in dataclasses.fields(History))}
    if found != wanted:
        parts = [("lacks", wanted - found), ("also has", found - wanted)]
        what = " and ".join(f"{verb} {', '.join(sorted(names))}" for verb, names in parts if names)
        raise ValueError(
            f"{path} is not a saved Reconstruction of this version: it {what}; reconstruct and save it again"
        )
