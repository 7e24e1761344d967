"""`invreg reconstruct`: a file in, an image and a sidecar of how it was made out."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from invreg import config
from invreg.algorithms.reconstruction import Status
from invreg.cli.ct import CT
from invreg.cli.denoisers import is_learned
from invreg.cli.finished import Finished
from invreg.cli.imaging import Imaging
from invreg.cli.learned import make_learned_plan
from invreg.cli.mri import MRI
from invreg.cli.noise_level import NoiseLevel, noise_level
from invreg.cli.outputs import (
    beside,
    forget_spread,
    is_spread,
    real_if_needed,
    rehearse,
    require_apart,
    require_free,
    require_kept,
    require_writable,
)
from invreg.cli.pipeline import Scan, make_plan, reference_slice
from invreg.cli.report import (
    InterruptedRunError,
    noticing_interrupts,
    progress_bar,
    versions,
    warnings_as_remarks,
    write_text,
)
from invreg.cli.workfolder import WorkFolder, digest, key_of
from invreg.io import Image, KSpace, Record, Sinogram, read, write
from invreg.operators import MaskedFourier, Sense, SoftSense

REASONS = 6
"""Shown at most, of why slices should not be believed."""


@dataclass(frozen=True)
class Request:
    """What the user asked for; None leaves the choice to the kind of data.

    Args:
        input, output: files.
        operator, prior, algorithm: `NAME[:key=value,...]`.
        weight: a number, "auto", or None.
        rule: how "auto" chooses; None is discrepancy.
        sigma: noise level in the units of the file.
        iterations: at most so many.
        maps: file with coil maps.
        size, pixel_size, mu_water: of CT images.
        centre: cell of the detector on which the rotation axis falls.
        format: of the input file.
        device: "auto", "cpu" or "cuda".
        seed: of everything drawn at random.
        samples: of the posterior, with a learned prior; their mean is the image.
        beside: a prior beside the learned one, `NAME[:key=value,...]`.
        check: compare what was learned with what was not.
    """

    input: Path
    output: Path
    operator: str | None = None
    prior: str | None = None
    algorithm: str | None = None
    weight: str | None = None
    rule: str | None = None
    sigma: float | None = None
    iterations: int | None = None
    maps: Path | None = None
    size: int | None = None
    pixel_size: float | None = None
    mu_water: float | None = None
    centre: float | None = None
    format: str | None = None
    device: str = "auto"
    seed: int = 0
    samples: int = 1
    beside: str | None = None
    check: bool = True

    @property
    def sidecar(self) -> Path:
        """Where the record of how the image was made goes."""
        return self.output.with_name(self.output.name.rstrip("/") + ".json")

    @property
    def spread(self) -> Path | None:
        """Where the standard deviations of the samples go."""
        return self.place_of_spread if self.samples > 1 else None

    @property
    def place_of_spread(self) -> Path:
        """Where they would go."""
        return beside(self.output, "-std")


class AnyPlan(Protocol):
    """How every slice will be reconstructed, with or without learning."""

    @property
    def scan(self) -> Scan: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def iterations(self) -> int: ...
    def lines(self) -> list[str]: ...
    def solve(
        self, index: int, stop: Event, tick: Callable[[int], None], before: Finished | None = None
    ) -> Finished | None: ...


def run_request(request: Request, *, force: bool, quiet: bool, console: Console) -> dict[str, Any]:
    """Reconstruct every slice of a file and write the image and its sidecar.

    Args:
        request: what to do.
        force: whether an existing output may be replaced.
        quiet: no progress bar.
        console: where remarks go.

    Returns:
        The content of the sidecar.

    Raises:
        InterruptedRunError: Ctrl-C; what was reached is written and marked.
        RuntimeError: NaN or Inf appeared.
        TypeError, ValueError, OSError: bad input.
    """
    start = time.perf_counter()
    _require_places(request, force)
    device = pick_device(request.device)
    with warnings_as_remarks(console):
        record = read(request.input, request.format)
        level = noise_level(record, request.sigma)
        scan = make_scan(record, request, device)
        plan = _make_plan(scan, level, request)
        for line in plan.lines():
            console.print(escape(line))
        _require_fitting(scan, *(one for one in (request.output, request.spread) if one is not None))
        settings = _settings(request) | {"plan": plan.settings}
        folder = WorkFolder(request.output, key_of(settings | {"input": digest(request.input), "versions": versions()}))
        with noticing_interrupts() as stop:
            try:
                results = _solve_all(plan, folder, stop, quiet, console)
            finally:
                folder.remove_if_empty()
            _remark(results, console)
            finished = sum(one.whole for one in results)
            about = settings | _account(results, scan.count, finished, time.perf_counter() - start)
            spread = None if request.spread is None else _spread(results, scan, console)
            about["spread"] = None if spread is None else str(request.spread)
            write_outputs(request, scan.image(_stacked(results, scan)), spread, about, force)
    if finished < scan.count:
        raise InterruptedRunError(
            f"interrupted after {finished} of {scan.count} slices; the best so far is in {request.output}, "
            "run the same again with --force to go on"
        )
    folder.remove()
    return about


def _require_places(request: Request, force: bool) -> None:
    """Refuse before the work what cannot be written, and what would cost a file that is read."""
    require_writable(request.output, "Image")
    files = (request.input, request.maps, request.output, request.spread, request.sidecar)
    require_apart(*(one for one in files if one is not None))
    require_free(request.output, force, series=True)
    require_free(request.sidecar, force)
    if request.spread is not None:
        require_free(request.spread, force, series=True)
    loses_spread = request.spread is not None or is_spread(request.place_of_spread, request.sidecar)
    lost = (request.output, request.place_of_spread) if loses_spread else (request.output,)
    require_kept([one for one in (request.input, request.maps) if one is not None], lost)


def _make_plan(scan: Scan, level: NoiseLevel, request: Request) -> AnyPlan:
    """By what the user calls a prior."""
    if request.rule is not None and request.weight != "auto":
        raise ValueError(f"--rule {request.rule} says how --weight auto chooses; add --weight auto or leave it away")
    if is_learned(request.prior):
        return make_learned_plan(scan, level, request)
    learned_only = {
        "samples": request.samples != 1, "with": request.beside is not None, "no-check": not request.check
    }  # fmt: skip
    for flag, used in learned_only.items():
        if used:
            raise ValueError(f"--{flag} goes with a learned prior; give --prior with one of {', '.join(config.PRIORS)}")
    return make_plan(scan, level, request)


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is cuda where there is one.

    Raises:
        ValueError: unknown, or not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was wanted, but torch finds none; use --device cpu or auto")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def make_scan(record: Record, request: Request, device: torch.device) -> Scan:
    """The measurement of a file, by its kind.

    Raises:
        TypeError, ValueError: flags that do not go with it.
    """
    if isinstance(record, Image) and record.data.is_complex() and _asks_for_mri(request.operator):
        record = record.as_kspace()
    flags = {
        "size": request.size, "pixel-size": request.pixel_size, "mu-water": request.mu_water, "centre": request.centre
    }  # fmt: skip
    for flag, value in flags.items():
        if value is not None and not isinstance(record, Sinogram):
            raise ValueError(f"--{flag} goes with a sinogram, but {request.input} holds {type(record).__name__}")
    if isinstance(record, KSpace):
        return MRI(record, request.operator, _read_maps(request.maps, record), device)
    if request.maps is not None:
        raise ValueError(f"--maps goes with k-space, but {request.input} holds {type(record).__name__}")
    if isinstance(record, Sinogram):
        return CT(record, request.operator, request.size, request.pixel_size, request.mu_water, request.centre, device)
    return Imaging(record, request.operator, device)


def _asks_for_mri(operator: str | None) -> bool:
    return operator is not None and config.OPERATORS.get(config.parse(operator).name) in (
        MaskedFourier,
        Sense,
        SoftSense,
    )


def _read_maps(path: Path | None, record: KSpace) -> Tensor | None:
    if path is None:
        return None
    found = read(path)
    if isinstance(found, KSpace):
        return found.data if found.maps is None else found.maps
    if not isinstance(found, Image) or not found.data.is_complex():
        raise ValueError(f"{path} must hold complex coil maps, got {type(found).__name__}")
    # an image file knows no coils: its stack (coil, y, x) or volume (1, coil, y, x) is one set of maps
    return found.data if found.data.ndim == record.data.ndim else found.data[None]


def _solve_all(plan: AnyPlan, folder: WorkFolder, stop: Event, quiet: bool, console: Console) -> list[Finished]:
    """Reconstructions of the slices in order, as far as the user let it come; finished ones go through the folder."""
    results: list[Finished] = []
    count, iterations = plan.scan.count, plan.iterations
    with progress_bar(quiet) as bar:
        task = bar.add_task("reconstructing", total=count * iterations)
        for index in range(count):
            done = index * iterations
            known = folder.load(index)
            if (known is None or not known.whole) and not stop.is_set():
                bar.update(task, completed=done, description=f"slice {index + 1} of {count}")
                made = plan.solve(index, stop, lambda k, done=done: bar.update(task, completed=done + k), known)  # type: ignore[misc]
                known = known if made is None else made
                if known is not None and Status.NOT_FINITE in known.result.status:
                    raise RuntimeError(
                        f"slice {index}: NaN or Inf after {known.result.iterations} iterations; "
                        "use a smaller step size or another algorithm, or look at the data"
                    )
                if known is not None and (known.whole or known.samples):
                    folder.store(index, known)
            if known is None:
                break
            results.append(known)
            if not known.whole:
                break
    if not results:
        raise InterruptedRunError("interrupted before the first image; nothing was written")
    if len(results) < count:
        console.print(f"slices {len(results)} to {count - 1} were not reached and are 0", style="yellow")
    return results


def _remark(results: list[Finished], console: Console) -> None:
    """Say once for each reason which slices should not be believed as they are."""
    found: dict[str, list[int]] = {}
    for index, one in enumerate(results):
        for reason in one.reasons:
            found.setdefault(reason, []).append(index)
    for reason, slices in list(found.items())[:REASONS]:
        where = f"slice {slices[0]}" if len(slices) == 1 else f"slices {', '.join(map(str, slices))}"
        console.print(f"[yellow]look twice:[/yellow] {where}: {escape(reason)}")
    if len(found) > REASONS:
        console.print(f"[yellow]look twice:[/yellow] {len(found) - REASONS} more reasons are in the sidecar")


def _stacked(results: list[Finished], scan: Scan) -> Tensor:
    """All slices in the units of the file; slices that were not reached are 0."""
    x = torch.cat([one.result.x.detach().cpu() for one in results]) * scan.scale
    missing = scan.count - len(results)
    return x if not missing else torch.cat([x, x.new_zeros(missing, *x.shape[1:])])


def _spread(results: list[Finished], scan: Scan, console: Console) -> Image | None:
    """The standard deviations in the units of the image; None unless every slice has them: 0 would say "certain"."""
    known = [one.std.cpu().to(one.result.x.dtype) for one in results if one.std is not None]
    if len(known) < scan.count:
        console.print(f"no spread is written: {len(known)} of {scan.count} slices have two samples", style="yellow")
        return None
    std = torch.cat(known) * scan.scale
    shown = scan.image(std).abs()
    return replace(shown, data=shown.data - scan.image(torch.zeros_like(std)).abs().data)  # HU have an offset


def _account(results: list[Finished], count: int, finished: int, seconds: float) -> dict[str, Any]:
    slices = [
        {
            "status": one.result.status[0].value,
            "iterations": one.result.iterations,
            "seconds": round(one.result.seconds, 3),
            "checked": one.result.history.checked.tolist(),
            "misfit": _finite(one.result.history.misfit[:, 0]),
            "penalty": _finite(one.result.history.penalty[:, 0]),
            "change": _finite(one.result.history.change[:, 0]),
            **one.about,
        }
        for one in results
    ]
    slices += [{"status": "not reached"}] * (count - len(results))
    return {
        "status": "finished" if finished == count else "interrupted",
        "seconds": round(seconds, 3),
        "versions": versions(),
        "algorithm settings": results[0].result.settings,
        "slices": slices,
    }


def _finite(values: Tensor) -> list[float | None]:
    """Numbers that JSON can hold."""
    return [one if torch.isfinite(torch.tensor(one)) else None for one in values.double().tolist()]


def _settings(request: Request) -> dict[str, Any]:
    values = asdict(request)
    values["maps"] = None if request.maps is None else f"{request.maps} ({digest(request.maps)[:16]})"
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def write_outputs(request: Request, image: Image, spread: Image | None, about: dict[str, Any], force: bool) -> None:
    """The image, its spread and its sidecar; the sidecar last, so that it never speaks of what is not there.

    Raises:
        TypeError, ValueError, OSError: the format cannot hold the image.
    """
    text = json.dumps(about, indent=1, default=str, allow_nan=False)
    forget_spread(request.place_of_spread, request.sidecar)
    write(request.output, real_if_needed(request.output, image), overwrite=force)
    if spread is not None:
        write(request.place_of_spread, spread, overwrite=force)
    write_text(request.sidecar, text + "\n")


def _require_fitting(scan: Scan, *outputs: Path) -> None:
    """Refuse a format that cannot hold such images before the work: write zeros of their shape elsewhere."""
    index = reference_slice(scan)
    shape = scan.operator(index).signal_shape
    if shape is None:
        return
    zeros = torch.zeros(scan.count, *shape, dtype=scan.y(index).dtype)
    for path in outputs:
        rehearse(path, real_if_needed(path, scan.image(zeros)))
