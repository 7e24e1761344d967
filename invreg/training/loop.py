"""The one training loop: an objective says what counts, the loop adds it up and steps the optimizer."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from invreg._check import require_count, require_positive
from invreg._memory import keep_freed_memory
from invreg._store import encode
from invreg.training import checkpoint, parallel
from invreg.training.average import Average
from invreg.training.batches import Batches, require_batches
from invreg.training.checkpoint import Parts
from invreg.training.folder_lock import FolderLock, hold
from invreg.training.journal import Journal
from invreg.training.randomness import Randomness
from invreg.training.record import Record, Step
from invreg.training.requirements import require_parts, require_terms

Batch = TypeVar("Batch")
Objective = Callable[[Batch, float, torch.Generator | None], Mapping[str, Tensor]]
"""(batch, progress, generator) -> named terms, each (); progress, from 0 to 1, is how much of the training is done."""

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@runtime_checkable
class Scored(Protocol):
    """An objective that can also be judged: what `invreg train` reports of the data that were held out."""

    def score(self, batch: tuple[Tensor, ...]) -> Mapping[str, Tensor]:
        """Named numbers, each () and a mean over the samples, such as "accuracy"; called without gradients."""
        ...


@dataclass(frozen=True, kw_only=True)
class Options:
    """How steps are taken and how often they are kept.

    Args:
        clip: largest norm of the gradient of all parameters together; a longer one is shortened. None leaves it.
        precision: "full", or "bfloat16" or "float16" for autocast, the latter with a scaled loss; steps whose scaled
            gradient overflows are then left out.
        save_every: steps between two checkpoints.
        save_minutes: time after which one is written even so, at the end of a step. None goes by steps only.
        log_every: steps between two lines of the log.
        tensorboard: also log for TensorBoard.
    """

    clip: float | None = 1.0
    precision: Literal["full", "bfloat16", "float16"] = "full"
    save_every: int = 1000
    save_minutes: float | None = 10.0
    log_every: int = 1
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.clip is not None:
            require_positive("clip", self.clip)
        if self.precision not in {"full", *HALVES}:
            raise ValueError(f'precision must be "full", "bfloat16" or "float16", got {self.precision!r}')
        require_count("save_every", self.save_every)
        if self.save_minutes is not None:
            require_positive("save_minutes", self.save_minutes)
        require_count("log_every", self.log_every)


class _NotFiniteError(Exception):
    """NaN or Inf in a loss or gradient that all processes have in common."""


class Training(Iterator[Step], Generic[Batch]):
    """Steps under way: an iterator of them, made by `iterate`. Stop when you like; `save` writes where it stands.

    `step` says how many are done, `record` what they found, `seconds` how long they took.
    """

    def __init__(
        self,
        objective: Objective[Batch],
        batches: Batches[Batch],
        parts: Parts,
        generator: torch.Generator | None,
        options: Options,
    ) -> None:
        self.step, self.record, self.seconds = 0, Record(), 0.0
        self._objective, self._batches, self._parts = objective, batches, parts
        self._generator, self._options = generator, options
        self._parameters = parts.parameters
        self._device = self._parameters[0].device
        self._folder: Path | None = None
        self._lock: FolderLock | None = None
        self._journal: Journal | None = None
        self._identity: dict[str, Any] = {}
        self._saved = 0  # step of the last checkpoint
        self._saved_at = time.perf_counter()
        keep_freed_memory()
        self._before: Randomness | None = None  # where the random sources stood before the step that is being taken
        self._buffers: dict[str, Tensor] = {}  # and what the model's buffers held, which objectives may change
        self._torn = False  # whether a step is half taken

    def __len__(self) -> int:
        """How many steps there are in all."""
        return len(self._batches)

    def __next__(self) -> Step:
        if self.step >= len(self._batches):
            raise StopIteration
        if self._torn:
            raise RuntimeError(
                f"step {self.step} broke off while the optimizer changed the parameters; go on from a checkpoint, by "
                "resume=True"
            )
        try:
            return self._take()
        except _NotFiniteError as error:  # which all processes find together
            self._put_back()
            self.save()
            raise RuntimeError(f"{error}; {self._advice()}") from None
        except BaseException:
            self._put_back()
            if parallel.world() == 1:  # else it takes all of them to save
                self.save()
            raise

    def keep_in(self, folder: Path, settings: Mapping[str, Any], resume: bool) -> None:
        """Write log and checkpoints there, and go on from the newest one if that is wanted and there is one."""
        model, first = self._parts.model, parallel.rank() == 0
        assert model is not None  # iterate saw to it
        average = self._parts.average
        how = {
            "clip": self._options.clip,
            "precision": self._options.precision,
            "average": None if average is None else average.decay,
            "processes": parallel.world(),
            "device": self._device.type,
            "generator": None if self._generator is None else self._generator.device.type,
        }
        self._identity = checkpoint.identity_of(
            model, self._parts.optimizer, self._parts.scheduler, self._batches, how, settings
        )
        encode(self._parts.state(), {}, "state")  # what cannot be kept is better refused now than at the first save
        self._take_hold(folder)
        try:
            if checkpoint.checkpoints(folder):
                if not resume:
                    raise FileExistsError(
                        f"{folder}: holds a training already; pass resume=True or choose another folder"
                    )
                self._go_on(*checkpoint.load_newest(folder))
        except BaseException:
            self._lock = None
            raise
        if first:
            checkpoint.sweep(folder)
            self._journal = Journal(folder, self.step, self._options.tensorboard)
        self._folder = folder

    def save(self) -> None:
        """Write a checkpoint of the last finished step, unless there is one or no folder was given.

        With several processes all must call it at the same step. After an interrupt in the middle of the optimizer's
        own work nothing is written, and the last checkpoint stands.
        """
        if self._folder is None or self._torn or self.step == self._saved:
            return
        sources = (self._before or Randomness.now(self._generator)).to_bytes()
        everywhere = parallel.gather_bytes(sources, self._device)
        if self._journal is not None:  # the first process
            self._journal.sync()
            state = {
                "identity": self._identity,
                "step": self.step,
                "seconds": self.seconds,
                "random": [one.decode() for one in everywhere],
                "record": self.record.to_tensors(),
                **self._parts.state(),
            }
            checkpoint.save_checkpoint(self._folder, self.step, state)
        self._saved, self._saved_at = self.step, time.perf_counter()

    def _take_hold(self, folder: Path) -> None:
        """Make the folder and lock it; if another run has it, all processes say so."""
        taken = None
        if parallel.rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = hold(folder)
            except BlockingIOError as error:
                taken = error
        if parallel.any_of(taken is not None, self._device):
            raise taken or BlockingIOError(f"{folder}: another run is training there; choose another folder")

    def _put_back(self) -> None:
        """Undo what a step that broke off has changed, unless the optimizer was at work."""
        if self._before is not None and not self._torn:
            self._before.restore(self._generator)
            self._parts.restore_buffers(self._buffers)
            self._before = None

    def _go_on(self, state: Mapping[str, Any], path: Path) -> None:
        checkpoint.require_same(state["identity"], self._identity, path)
        self._parts.load(state)
        Randomness.from_bytes(state["random"][parallel.rank()].encode()).restore(self._generator)
        self.record = Record.from_tensors(state["record"])
        self.step = self._saved = state["step"]
        self.seconds = state["seconds"]

    def _take(self) -> Step:
        began = time.perf_counter()
        self._buffers = self._parts.copy_buffers()
        self._before = Randomness.now(self._generator)
        terms = self._descend()
        norm = self._gradient_norm(terms)
        parallel.copy_from_first(self._parts.buffers)  # or a resumption, which has the first's only, would differ
        lr = float(self._parts.optimizer.param_groups[0]["lr"])
        step = Step(self.step, terms, lr, float(norm), self.seconds + time.perf_counter() - began)
        if self._journal is not None and self._is_due(self._options.log_every):
            self._journal.write(step)  # before the step is done: a resumption removes it if it is not
        self._torn = True
        self._apply(norm)
        self.record.add(step)
        self.seconds += time.perf_counter() - began
        self.step += 1
        self._before = None
        self._torn = False
        last = self.step == len(self._batches)
        if last or self.step % self._options.save_every == 0 or self._is_late():
            self.save()
        if last:
            self._lock = None
        return step

    def _is_late(self) -> bool:
        """Whether the first process has not saved for so long that all should."""
        minutes = self._options.save_minutes
        if minutes is None or self._folder is None:
            return False
        waited = time.perf_counter() - self._saved_at
        return parallel.any_of(parallel.rank() == 0 and waited > 60 * minutes, self._device)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step + 1 == len(self._batches)

    def _descend(self) -> dict[str, float]:
        """Give all parameters the gradient of the objective, and tell its terms."""
        number, scaler = self.step, self._parts.scaler
        half = HALVES.get(self._options.precision)
        with torch.autocast(self._device.type, half, enabled=half is not None):
            batch = self._batches[number]
            terms = self._objective(batch, number / len(self._batches), self._generator)
        require_terms(terms)
        each = [term.float() if term.dtype in HALVES.values() else term for term in terms.values()]
        total = torch.stack(each).sum()
        found = parallel.mean(torch.stack([*each, total]).detach()).tolist()
        shown = dict(zip([*terms, "total"], found, strict=True))
        if not math.isfinite(shown["total"]):
            raise _NotFiniteError(f"the loss of step {number} must be finite, got {shown}")
        self._parts.optimizer.zero_grad()
        torch.autograd.backward(scaler.scale(total))
        parallel.average_gradients(self._parameters)
        scaler.unscale_(self._parts.optimizer)
        return shown

    def _gradient_norm(self, terms: Mapping[str, float]) -> Tensor:
        """The norm of the gradient; one that is not finite is let through where a smaller loss scale may mend it."""
        gradients = [one.grad for one in self._parameters if one.grad is not None]
        if not gradients:
            raise ValueError(
                "objective must depend on the parameters that the optimizer holds, but none of them got a gradient; "
                "give the optimizer those of the model that the objective calls"
            )
        norm = nn.utils.get_total_norm(gradients)
        if bool(norm.isfinite()):
            return norm
        scaler = self._parts.scaler
        bad = [one for one in self._parameters if one.grad is not None and not bool(one.grad.isfinite().all())]
        if bad and scaler.is_enabled() and scaler.get_scale() >= 1:
            return norm
        where = self._parts.name_of(bad[0]) if bad else "all together"
        raise _NotFiniteError(
            f"the gradient of step {self.step} must be finite, but that of {where} is not, with terms {dict(terms)}"
        )

    def _advice(self) -> str:
        saved = self._folder is not None and 0 < self.step == self._saved
        kept = f", and it is kept in {self._folder}" if saved else ""
        return (
            f"nothing was changed: all is as it was before this step{kept}; look at batches[{self.step}], or lower the "
            "learning rate"
        )

    def _apply(self, norm: Tensor) -> None:
        parts, clip = self._parts, self._options.clip
        overflow = not bool(norm.isfinite())  # the scaler leaves the step out
        if clip is not None and not overflow:
            nn.utils.clip_grads_with_norm_(self._parameters, clip, norm)
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
        if overflow:
            return
        if parts.scheduler is not None:
            parts.scheduler.step()
        if parts.average is not None and parts.model is not None:
            parts.average.update(parts.model, self.step + 1)


def iterate(
    objective: Objective[Batch],
    batches: Batches[Batch],
    optimizer: Optimizer,
    generator: torch.Generator | None = None,
    *,
    model: nn.Module | None = None,
    scheduler: LRScheduler | None = None,
    average: Average | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    options: Options = Options(),
    settings: Mapping[str, Any] | None = None,
) -> Training[Batch]:
    """Take one optimizer step for each batch, and hand out what it found.

    Args:
        objective: (batch, progress, generator) -> named terms, each (); their sum is descended.
        batches: what to train on, asked for by number; as many steps as there are. Parts of batches, made by `Share`,
            where several processes train: their gradients are averaged.
        optimizer: holds the parameters.
        generator: the source of whatever the objective draws.
        model: holds all of the optimizer's parameters; needed for `average` and `folder`.
        scheduler: of the learning rate, stepped after each step.
        average: follows the model.
        folder: is made, and gets the log and the checkpoints; without one nothing is written.
        resume: go on from the folder's newest checkpoint; without one, begin.
        options: how steps are taken.
        settings: plain values that must be the same when the training is resumed, such as those of the objective.

    A step that fails, and an interrupt, leave all as it was before that step, and a checkpoint of it in the folder
    unless it was the very first; of several processes only NaN and Inf, which all find together, are saved. On the CPU
    a training that was killed and resumed ends with the same numbers, bit by bit, as one that was not.

    Raises:
        TypeError: batches cannot be asked for by number, a scheduler that needs a measure, the optimizer LBFGS; the
            objective gives no mapping.
        ValueError: the objective gives no terms, one that is no scalar, one called "total", or none with a gradient, or
            depends on none of the parameters; a scheduler of another optimizer, an average of another model; a model
            that lacks parameters of the optimizer, or none where one is needed; a checkpoint of another training or
            version, or only damaged ones.
        FileExistsError: the folder holds a training, and resume is False.
        BlockingIOError: another process trains in the folder.
        RuntimeError: a term or the gradient is NaN or infinite.
    """
    require_batches(batches)
    require_parts(optimizer, model, scheduler, average, folder)
    device = optimizer.param_groups[0]["params"][0].device.type
    scaler = torch.amp.GradScaler(device, enabled=options.precision == "float16")
    parts = Parts(model, optimizer, scheduler, average, scaler)
    parallel.copy_from_first(parts.parameters if model is None else model.state_dict().values())
    if average is not None:
        parallel.copy_from_first(average.state_dict().values())
    training = Training(objective, batches, parts, generator, options)
    if folder is not None:
        training.keep_in(Path(folder), settings or {}, resume)
    return training


def fit(
    objective: Objective[Batch],
    batches: Batches[Batch],
    optimizer: Optimizer,
    generator: torch.Generator | None = None,
    *,
    model: nn.Module | None = None,
    scheduler: LRScheduler | None = None,
    average: Average | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    options: Options = Options(),
    settings: Mapping[str, Any] | None = None,
) -> Record:
    """Train to the last batch; arguments and errors as in `iterate`."""
    training = iterate(
        objective, batches, optimizer, generator, model=model, scheduler=scheduler, average=average, folder=folder,
        resume=resume, options=options, settings=settings,
    )  # fmt: skip
    for _ in training:
        continue
    return training.record
