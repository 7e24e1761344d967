"""`invreg reconstruct`: a file in, an image and a sidecar of how it was made out."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from invreg.algorithms.reconstruction import Reconstruction, Status
from invreg.cli.ct import CT
from invreg.cli.imaging import Imaging
from invreg.cli.mri import MRI
from invreg.cli.noise_level import noise_level
from invreg.cli.outputs import real_if_needed, rehearse, require_free, require_writable
from invreg.cli.pipeline import Plan, Scan, make_plan, reference_slice
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


@dataclass(frozen=True)
class Request:
    """What the user asked for; None leaves the choice to the kind of data.

    Args:
        input, output: files.
        operator, prior, algorithm: `NAME[:key=value,...]`.
        weight: a number, "auto", or None.
        rule: how "auto" chooses.
        sigma: noise level in the units of the file.
        iterations: at most so many.
        maps: file with coil maps.
        size, pixel_size, mu_water: of CT images.
        centre: cell of the detector on which the rotation axis falls.
        format: of the input file.
        device: "auto", "cpu" or "cuda".
        seed: of everything drawn at random.
    """

    input: Path
    output: Path
    operator: str | None = None
    prior: str | None = None
    algorithm: str | None = None
    weight: str | None = None
    rule: str = "discrepancy"
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
    sidecar = request.output.with_name(request.output.name.rstrip("/") + ".json")
    require_writable(request.output, "Image")
    require_free(request.output, force, series=True)
    require_free(sidecar, force)
    device = pick_device(request.device)
    with warnings_as_remarks(console):
        record = read(request.input, request.format)
        level = noise_level(record, request.sigma)
        scan = make_scan(record, request, device)
        plan = make_plan(scan, level, request)
        for line in plan.lines():
            console.print(escape(line))
        _require_fitting(request.output, scan)
        settings = _settings(request) | {"plan": plan.settings}
        folder = WorkFolder(request.output, key_of(settings | {"input": digest(request.input), "versions": versions()}))
        with noticing_interrupts() as stop:
            try:
                results = _solve_all(plan, folder, stop, quiet, console)
            finally:
                folder.remove_if_empty()
            finished = sum(Status.INTERRUPTED not in one.status for one in results)
            about = settings | _account(results, scan.count, finished, time.perf_counter() - start)
            write_both(request.output, scan.image(_stacked(results, scan)), sidecar, about, force)
    if finished < scan.count:
        raise InterruptedRunError(
            f"interrupted after {finished} of {scan.count} slices; the best so far is in {request.output}, "
            "run the same again with --force to go on"
        )
    folder.remove()
    return about


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
    from invreg import config

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


def _solve_all(plan: Plan, folder: WorkFolder, stop: Event, quiet: bool, console: Console) -> list[Reconstruction]:
    """Reconstructions of the slices in order, as far as the user let it come; finished ones go through the folder."""
    results: list[Reconstruction] = []
    count, iterations = plan.scan.count, plan.iterations
    with progress_bar(quiet) as bar:
        task = bar.add_task("reconstructing", total=count * iterations)
        for index in range(count):
            done = index * iterations
            known = folder.load(index)
            if known is None and not stop.is_set():
                bar.update(task, completed=done, description=f"slice {index + 1} of {count}")
                known = plan.solve(index, stop, lambda k, done=done: bar.update(task, completed=done + k))  # type: ignore[misc]
                if known is not None and Status.NOT_FINITE in known.status:
                    raise RuntimeError(
                        f"slice {index}: NaN or Inf after {known.iterations} iterations; "
                        "use a smaller step size or another algorithm, or look at the data"
                    )
                if known is not None and Status.INTERRUPTED not in known.status:
                    folder.store(index, known)
            if known is None:
                break
            results.append(known)
            if Status.INTERRUPTED in known.status:
                break
    if not results:
        raise InterruptedRunError("interrupted before the first image; nothing was written")
    if len(results) < count:
        console.print(f"slices {len(results)} to {count - 1} were not reached and are 0", style="yellow")
    return results


def _stacked(results: list[Reconstruction], scan: Scan) -> Tensor:
    """All slices in the units of the file; slices that were not reached are 0."""
    x = torch.cat([one.x.detach().cpu() for one in results]) * scan.scale
    missing = scan.count - len(results)
    return x if not missing else torch.cat([x, x.new_zeros(missing, *x.shape[1:])])


def _account(results: list[Reconstruction], count: int, finished: int, seconds: float) -> dict[str, Any]:
    slices = [
        {
            "status": one.status[0].value,
            "iterations": one.iterations,
            "seconds": round(one.seconds, 3),
            "checked": one.history.checked.tolist(),
            "misfit": _finite(one.history.misfit[:, 0]),
            "penalty": _finite(one.history.penalty[:, 0]),
            "change": _finite(one.history.change[:, 0]),
        }
        for one in results
    ]
    slices += [{"status": "not reached"}] * (count - len(results))
    return {
        "status": "finished" if finished == count else "interrupted",
        "seconds": round(seconds, 3),
        "versions": versions(),
        "algorithm settings": results[0].settings,
        "slices": slices,
    }


def _finite(values: Tensor) -> list[float | None]:
    """Numbers that JSON can hold."""
    return [one if torch.isfinite(torch.tensor(one)) else None for one in values.double().tolist()]


def _settings(request: Request) -> dict[str, Any]:
    values = asdict(request)
    values["maps"] = None if request.maps is None else f"{request.maps} ({digest(request.maps)[:16]})"
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def write_both(output: Path, image: Image, sidecar: Path, about: dict[str, Any], force: bool) -> None:
    """The image and its sidecar; the sidecar last, so that it never speaks of an image that is not there.

    Raises:
        TypeError, ValueError, OSError: the format cannot hold the image.
    """
    text = json.dumps(about, indent=1, default=str, allow_nan=False)
    write(output, real_if_needed(output, image), overwrite=force)
    write_text(sidecar, text + "\n")


def _require_fitting(output: Path, scan: Scan) -> None:
    """Refuse a format that cannot hold such images before the work: write zeros of their shape elsewhere."""
    index = reference_slice(scan)
    shape = scan.operator(index).signal_shape
    if shape is None:
        return
    zeros = torch.zeros(scan.count, *shape, dtype=scan.y(index).dtype)
    rehearse(output, real_if_needed(output, scan.image(zeros)))
