"""`invreg train`: a recipe in, a folder with a model, its log and its checkpoints out."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn
from torch import distributed as dist

from invreg import config
from invreg.cli.recipe import Recipe, read_recipe
from invreg.cli.reconstruct import pick_device
from invreg.cli.report import (
    InterruptedRunError,
    noticing_interrupts,
    progress_bar,
    versions,
    warnings_as_remarks,
    write_text,
)
from invreg.data import DataSet
from invreg.models.pretrained import describe, require_place
from invreg.training import Average, ProximalMatching, Scored, Share, Shuffled, Training, iterate, parallel
from invreg.training.ahead import Ahead
from invreg.training.batches import Batches
from invreg.training.journal import finite
from invreg.training.patches import ImageSet

PLACES = ("model", "averaged")
"""What a training leaves in its folder beside log, checkpoints and report."""


@dataclass(frozen=True)
class Order:
    """What the user asked for.

    Args:
        recipe: YAML file.
        folder: in place of the recipe's.
        resume: go on where the folder stands.
        device: "auto", "cpu" or "cuda".
    """

    recipe: Path
    folder: Path | None = None
    resume: bool = False
    device: str = "auto"


@dataclass(frozen=True, eq=False)
class Plan:
    """All that is needed to train."""

    recipe: Recipe
    model: nn.Module
    objective: Any
    training: Training[tuple[Tensor, ...]]
    average: Average | None
    held_out: DataSet | None
    info: Mapping[str, Any]


def run_training(order: Order, *, quiet: bool, console: Console) -> dict[str, Any]:
    """Train to the end, and write the model's folder.

    Args:
        order: what to do.
        quiet: no progress bar.
        console: where remarks go.

    Returns:
        What was reached, in plain words and numbers; also in the folder as report.json.

    Raises:
        InterruptedRunError: Ctrl-C; a checkpoint is written.
        RuntimeError: NaN or Inf appeared; a checkpoint from before is written.
        TypeError, ValueError, OSError: bad input.
    """
    with warnings_as_remarks(console), several_processes(order.device) as device:
        console.quiet = console.quiet or parallel.rank() > 0
        recipe = read_recipe(order.recipe, order.folder)
        try:
            _require_place(Path(recipe.folder), order.resume)
            plan = make_plan(recipe, device, order.resume)
        except FileExistsError as error:
            raise FileExistsError(str(error).replace("resume=True", "--resume")) from None
        done = plan.training.step
        console.print(escape(_line(plan, device)) + (f", resumed after {done}" if done else ""))
        try:
            with noticing_interrupts() as stop:
                _watch(plan.training, stop, quiet or parallel.rank() > 0, device)
        except KeyboardInterrupt:
            raise InterruptedRunError(_how_to_resume(order, plan)) from None
        if plan.training.step < len(plan.training):
            raise InterruptedRunError(_how_to_resume(order, plan))
        return _finish(order, plan)


def _require_place(folder: Path, resume: bool) -> None:
    """Raise unless what the training will write has a place, before it begins."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"folder must be a folder, but {folder} is a file; choose another name")
    for name in PLACES:
        place = folder / name
        if place.exists() and not resume:
            raise FileExistsError(f"{folder}: holds a training already; pass resume=True or choose another folder")
        if place.exists():
            require_place(place, overwrite=True)


def make_plan(recipe: Recipe, device: torch.device, resume: bool) -> Plan:
    """Data, model, objective and the training of a recipe.

    Raises:
        TypeError, ValueError: names or options that are unknown, or that do not go together.
    """
    torch.manual_seed(recipe.seed)
    whole = config.part("data", recipe.data)
    data, held_out = whole.split(recipe.test, recipe.split_seed)
    if recipe.test > 0 and held_out is None:
        raise ValueError(f"test {recipe.test:g} of {len(whole)} samples holds out none; raise it, or leave it away")
    data, held_out = data.to(device), None if held_out is None else held_out.to(device)
    measured = data.constants if isinstance(data, ImageSet) else {}
    model = config.part("model", recipe.model, measured).to(device)
    describe(model, config.SAVED)  # or it could not be saved when it is trained
    generator = torch.Generator(device).manual_seed(recipe.seed + parallel.rank())
    given = {"model": model, "field": model, "generator": generator, **data.constants}
    objective = config.part("objective", recipe.objective, given)
    if not any(getattr(objective, name, None) is model for name in ("model", "field")):
        raise ValueError("objective must be about the recipe's model; leave the key model of the objective away")
    kept = _kept(model, objective).to(device)
    batches = _batches(data, recipe)
    optimizer = config.part("optimizer", recipe.optimizer, {"params": list(kept.parameters()), "lr": 1e-3})
    ahead = {"optimizer": optimizer, "T_max": len(batches), "total_steps": len(batches), "total_iters": len(batches)}
    average = None if recipe.average is None else Average(kept, recipe.average)
    torch.manual_seed(recipe.seed + parallel.rank())  # for what models draw, such as dropout
    training = iterate(
        objective,
        batches if parallel.world() == 1 else Share(batches),
        optimizer,
        generator,
        model=kept.train(),
        scheduler=config.part("scheduler", recipe.scheduler, ahead),
        average=average,
        folder=recipe.folder,
        resume=resume,
        options=recipe.options,
        settings={"recipe": recipe.decisive},
    )
    return Plan(recipe, model, objective, training, average, held_out, data.info)


def _batches(data: DataSet | ImageSet, recipe: Recipe) -> Batches[tuple[Tensor, ...]]:
    """Samples in a new order each epoch, or patches of images without end."""
    if isinstance(data, ImageSet):
        if recipe.drop_last:
            raise ValueError("drop_last is of no use with data images: every batch of patches is full; leave it away")
        if recipe.steps is None:
            raise ValueError("data images needs steps in place of epochs: of patches there is no end")
        return Ahead(data.batches(recipe.batch, recipe.steps, recipe.seed))
    return Shuffled(
        *data.tensors, size=recipe.batch, epochs=recipe.epochs, steps=recipe.steps, seed=recipe.seed,
        drop_last=recipe.drop_last,
    )  # fmt: skip


def _kept(model: nn.Module, objective: Any) -> nn.Module:
    """The model, together with what else the objective changes while it trains."""
    fields = dataclasses.fields(objective) if dataclasses.is_dataclass(objective) else ()
    others = {field.name: getattr(objective, field.name) for field in fields}
    modules = {name: one for name, one in others.items() if isinstance(one, nn.Module) and one is not model}
    return nn.ModuleDict({"model": model, **modules})


def _watch(training: Training[Any], stop: Any, quiet: bool, device: torch.device) -> None:
    """Take all steps, unless `stop` is set; then the step is finished and saved."""
    with progress_bar(quiet) as bar:
        task = bar.add_task("training", total=len(training), completed=training.step)
        for step in training:
            bar.update(task, completed=training.step, description=f"total {step.terms['total']:.4g}")
            if parallel.any_of(stop.is_set(), device):
                training.save()
                return


def _finish(order: Order, plan: Plan) -> dict[str, Any]:
    """Score and write the model, and the average beside it."""
    folder, record = Path(plan.recipe.folder), plan.training.record
    models = {"model": plan.model}
    if plan.average is not None:
        models["averaged"] = plan.average.module.get_submodule("model")
    assert set(models) <= set(PLACES)
    report: dict[str, Any] = {
        "status": "finished",
        "folder": str(folder),
        "process": parallel.rank(),
        "processes": parallel.world(),
        "steps": len(record),
        "seconds": round(plan.training.seconds, 3),
        "last terms": {name: values[-1] for name, values in record.terms.items()},
        "versions": versions(),
    }
    for name, model in models.items():
        report[name] = {"folder": str(folder / name)}
        scores: dict[str, float] = {}
        try:
            scores = _scores(plan, model)
        except Exception as error:  # of the user's data, perhaps; the model is trained, and is kept
            report[name]["test failed"] = str(error)
            warnings.warn(f"{name} could not be scored on what was held out: {error}", stacklevel=2)
        if scores:
            report[name]["test"] = scores
        info = {
            "command": f"invreg train {order.recipe}",
            "recipe": json.loads(json.dumps(dataclasses.asdict(plan.recipe))),
            "data": dict(plan.info),
            **_card(plan.info, plan.objective),
            "steps": len(record),
            "test": finite(scores),
            "versions": versions(),
        }
        if parallel.rank() == 0:
            config.save_pretrained(model, folder / name, info=info, overwrite=True)
    report = finite(report)
    if parallel.rank() == 0:
        write_text(folder / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def _card(data: Mapping[str, Any], objective: Any) -> dict[str, Any]:
    """What a prior of such images says of itself, as `config.learned_prior` reads it."""
    card = {key: data[key] for key in ("pixel size (mm)",) if key in data}
    if data.get("units") == "HU" and isinstance(data["scale"], int | float):
        # an image is (HU - offset) / scale, and HU = 1000 (attenuation over that of water - 1)
        card |= {"units": "water", "scale": data["scale"] / 1000, "offset": (data["offset"] + 1000) / 1000}
    return card | ({"sigma": objective.sigma} if isinstance(objective, ProximalMatching) else {})


def _scores(plan: Plan, model: nn.Module) -> dict[str, float]:
    """Means over the samples that were held out; none where there are none, or the objective has no score."""
    if plan.held_out is None or not isinstance(plan.objective, Scored):
        return {}
    objective = plan.objective if model is plan.model else _about(plan.objective, model)
    count, training, sums = len(plan.held_out), model.training, dict[str, float]()
    model.eval()
    with torch.no_grad():
        for first in range(0, count, plan.recipe.batch):
            rows = tuple(one[first : first + plan.recipe.batch] for one in plan.held_out.tensors)
            for name, value in objective.score(rows).items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(rows[0]) / count
    model.train(training)
    return sums


def _about(objective: Any, model: nn.Module) -> Any:
    """The same objective of another model."""
    slot = "model" if "model" in config.keys(type(objective)) else "field"
    if dataclasses.is_dataclass(objective):
        return dataclasses.replace(objective, **{slot: model})  # type: ignore[type-var]
    other = copy.copy(objective)
    setattr(other, slot, model)
    return other


def _line(plan: Plan, device: torch.device) -> str:
    parameters = sum(one.numel() for one in plan.model.parameters())
    processes = "" if parallel.world() == 1 else f" in each of {parallel.world()} processes"
    kind = type(plan.model).__name__
    return f"{kind} with {parameters} parameters, {len(plan.training)} steps on {device}{processes}"


def _how_to_resume(order: Order, plan: Plan) -> str:
    folder = "" if order.folder is None else f" --folder {order.folder}"
    done, total = plan.training.step, len(plan.training)
    return f"interrupted after {done} of {total} steps; go on with: invreg train {order.recipe}{folder} --resume"


@contextmanager
def several_processes(name: str) -> Iterator[torch.device]:
    """The device of this process, which under torchrun is one of several that know of each other meanwhile."""
    device = pick_device(name)
    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
