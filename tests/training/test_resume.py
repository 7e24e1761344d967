"""Training that stops and goes on ends as if it had not stopped; what does not belong together is refused."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invreg._store import DamagedFileError, load_tensors
from invreg.training import Options, Record, Shuffled, Training, iterate, read_log
from invreg.training.checkpoint import checkpoints, digest_of, load_checkpoint

# the same in this process and in one that is killed
SETUP = """
import random
import sys
import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LinearLR, MultiStepLR, SequentialLR
from invreg.training import Average, Options, Shuffled, iterate


def build(folder, resume, epochs=4, save_every=4, hidden=16, lr=1e-2, decay=0.9, seed=1, clip=1.0, settings=None):
    for seed_source in (torch.manual_seed, random.seed, np.random.seed):
        seed_source(0)
    layers = [nn.Linear(8, hidden), nn.Dropout(0.2), nn.BatchNorm1d(hidden), nn.Tanh(), nn.Linear(hidden, 3)]
    model = nn.Sequential(*layers)
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    scheduler = SequentialLR(optimizer, [LinearLR(optimizer), MultiStepLR(optimizer, [3, 5])], [6])

    def objective(batch, progress, generator):
        x, labels = batch
        x = x + 0.1 * torch.randn(x.shape, generator=generator)
        small = 1e-2 * (1 - progress) * model[0].weight.square().sum()
        return {"data": nn.functional.cross_entropy(model(x), labels), "small": small}

    batches = Shuffled(x, x[:, :3].argmax(1), size=16, epochs=epochs, seed=seed)
    return iterate(
        objective, batches, optimizer, torch.Generator().manual_seed(5), model=model, scheduler=scheduler,
        average=Average(model, decay), folder=folder, resume=resume, settings=settings,
        options=Options(save_every=save_every, clip=clip),
    )
"""
KILLED = SETUP + "for _ in build(sys.argv[1], True, save_every=1): pass\n"

namespace: dict[str, Any] = {}
exec(SETUP, namespace)
build: Callable[..., Training[Any]] = namespace["build"]


def result(folder: Path) -> tuple[dict[str, Tensor], Any, list[dict[str, Any]]]:
    """Tensors and plain values of the last checkpoint, and the log, without clock times and how often it was saved."""
    tensors, about = load_tensors(checkpoints(folder)[0])
    del about["state"]["seconds"]
    log = read_log(folder)
    for line in log:
        del line["seconds"]
    return tensors, about, log


def assert_same(one: Path, other: Path) -> None:
    (tensors, about, log), (tensors_, about_, log_) = result(one), result(other)
    assert about == about_
    assert log == log_
    assert tensors.keys() == tensors_.keys()
    for name in tensors:
        assert torch.equal(tensors[name], tensors_[name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for _ in build(folder, False):
        continue
    return folder


@pytest.mark.parametrize("stop", [1, 4, 9, 23])
def test_a_training_that_was_left_goes_on_to_the_same_bits(whole: Path, tmp_path: Path, stop: int) -> None:
    training = build(tmp_path, False)
    for _ in range(stop):
        next(training)
    resumed = build(tmp_path, True)
    assert resumed.step == stop - stop % 4  # the last of every four was saved
    assert len(resumed.record) == resumed.step
    for _ in resumed:
        continue
    assert_same(whole, tmp_path)
    assert [line["step"] for line in read_log(tmp_path)] == list(range(24))


@pytest.mark.parametrize(("minutes", "last"), [(1e-9, 3), (None, 0), (10.0, 0)])
def test_a_checkpoint_is_written_after_some_time_even_between(tmp_path: Path, minutes: Any, last: int) -> None:
    model = nn.Linear(1, 1)
    training = iterate(
        lambda batch, progress, generator: {"data": model(batch).square().mean()},
        [torch.ones(1, 1)] * 5,
        torch.optim.SGD(model.parameters(), 0.1),
        model=model,
        folder=tmp_path,
        options=Options(save_minutes=minutes),
    )
    for _ in range(3):
        next(training)
    assert [one.name for one in checkpoints(tmp_path)[:1]] == [f"checkpoint-{last:010d}.safetensors"] * bool(last)


def test_saving_between_steps_keeps_the_last_one(whole: Path, tmp_path: Path) -> None:
    training = build(tmp_path, False)
    for _ in range(7):
        next(training)
    training.save()
    resumed = build(tmp_path, True)
    assert resumed.step == 7
    list(resumed)
    assert_same(whole, tmp_path)


def test_checkpoints_hold_no_pickle_and_two_are_kept(whole: Path) -> None:
    files = checkpoints(whole)
    assert [one.name for one in files] == [f"checkpoint-{k:010d}.safetensors" for k in (24, 20)]
    for one in files:
        header = one.read_bytes()
        length = int.from_bytes(header[:8], "little")
        assert isinstance(json.loads(header[8 : 8 + length]), dict)
    assert {one.name for one in whole.iterdir()} == {*(one.name for one in files), "log.jsonl", ".lock"}


def test_an_interrupt_in_a_step_saves_the_state_before_it(whole: Path, tmp_path: Path) -> None:
    training = build(tmp_path, False)
    for _ in range(6):
        next(training)
    objective = training._objective

    def interrupted(*arguments: Any) -> Any:
        objective(*arguments)  # which draws
        raise KeyboardInterrupt

    training._objective = interrupted
    with pytest.raises(KeyboardInterrupt):
        next(training)
    resumed = build(tmp_path, True)
    assert resumed.step == 6
    list(resumed)
    assert_same(whole, tmp_path)


def test_an_interrupt_within_the_optimizer_leaves_the_last_checkpoint(whole: Path, tmp_path: Path) -> None:
    training = build(tmp_path, False)
    for _ in range(6):
        next(training)

    def interrupted(closure: Any = None) -> Any:
        raise KeyboardInterrupt

    training._parts.optimizer.step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        next(training)
    training.save()  # half a step is not saved
    with pytest.raises(RuntimeError, match="step 6 broke off while the optimizer changed the parameters"):
        next(training)
    resumed = build(tmp_path, True)
    assert resumed.step == 4
    list(resumed)
    assert_same(whole, tmp_path)


def test_nan_keeps_the_last_good_state_and_says_where(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    batches = [torch.ones(1)] * 3 + [torch.full((1,), torch.nan)]

    def objective(batch: Tensor, progress: float, generator: torch.Generator | None) -> dict[str, Tensor]:
        return {"data": model(batch).square().sum()}

    training = iterate(objective, batches, torch.optim.SGD(model.parameters(), 0.1), model=model, folder=tmp_path)
    with pytest.raises(RuntimeError, match=r"loss of step 3 must be finite, got \{'data': nan.*kept in .*batches\[3\]"):
        list(training)
    state = load_checkpoint(checkpoints(tmp_path)[0])
    assert state["step"] == 3
    assert all(bool(one.isfinite().all()) for one in state["model"].values())
    assert [line["step"] for line in read_log(tmp_path)] == [0, 1, 2]


def test_a_folder_with_a_training_is_not_begun_again(whole: Path) -> None:
    with pytest.raises(FileExistsError, match="holds a training already; pass resume=True or choose another folder"):
        build(whole, False)


def test_resuming_without_a_checkpoint_begins(tmp_path: Path) -> None:
    assert build(tmp_path / "new", True).step == 0
    assert (tmp_path / "new").is_dir()


def test_resuming_what_is_finished_does_nothing(whole: Path) -> None:
    before = {one.name: one.read_bytes() for one in whole.iterdir()}
    training = build(whole, True)
    assert list(training) == []
    assert len(training.record) == 24
    assert {one.name: one.read_bytes() for one in whole.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden": 12}, r"model.0.weight was float32 \(16, 8\), is float32 \(12, 8\); .* and \d more"),
        ({"lr": 2e-2}, r"optimizer.groups.0.initial_lr was .*, is .*"),
        ({"decay": 0.8}, r"options.average was 0.9, is 0.8"),
        ({"clip": None}, r"options.clip was 1.0, is None"),
        ({"epochs": 5}, r"batches.number was 24, is 30; batches.steps was 24, is 30"),
        ({"seed": 2}, r"batches.seed was 1, is 2; batches.first was \w+, is \w+"),
        ({"settings": {"weight": 0.1}}, r"settings.weight was absent, is 0.1"),
    ],
)
def test_another_training_is_refused_by_its_differences(whole: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"belongs to another training: {said}.*; go back to its settings"):
        build(whole, True, **change)


def test_data_that_differ_in_one_middle_row_are_refused(tmp_path: Path) -> None:
    x = torch.zeros(100, 1)

    def begin(resume: bool) -> Training[Any]:
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        batches = Shuffled(x, size=10, epochs=1, seed=0)
        return iterate(
            lambda b, p, g: {"data": model(b[0]).square().mean()},
            batches,
            optimizer,
            model=model,
            folder=tmp_path,
            resume=resume,
        )

    list(begin(False))
    assert begin(True).step == 10
    x[Shuffled(torch.arange(100), size=10, epochs=1, seed=0)[5][0][0]] = 1
    with pytest.raises(ValueError, match="belongs to another training: batches.data was .*, is "):
        begin(True)


def test_what_cannot_be_kept_is_refused_before_the_first_step(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.param_groups[0]["rule"] = len
    with pytest.raises(TypeError, match="state.optimizer.param_groups.0.rule must be of plain values and tensors"):
        iterate(lambda b, p, g: {"data": model(b).sum()}, [torch.ones(1)], optimizer, model=model, folder=tmp_path)


def test_how_often_is_saved_may_change(whole: Path) -> None:
    assert build(whole, True, save_every=7).step == 24


def rewritten(path: Path, old: str, new: str) -> None:
    """Change the header of a checkpoint as another version would have written it, with its digest."""
    from invreg._store import save_tensors

    tensors, about = load_tensors(path)
    text = json.dumps(about)
    assert old in text
    save_tensors(path, tensors, json.loads(text.replace(old, new, 1)))


def test_another_version_is_refused(tmp_path: Path) -> None:
    training = build(tmp_path, False)
    next(training)
    training.save()
    (path,) = checkpoints(tmp_path)
    rewritten(path, '"torch": "', '"torch": "1.0 not ')
    with pytest.warns(UserWarning, match="was written with torch 1.0 not .*not to the same last digit"):
        assert build(tmp_path, True).step == 1
    rewritten(path, '"format": 1', '"format": 9')
    with pytest.raises(ValueError, match=r"was written by invreg .* in format 9, but this is invreg .* with format 1"):
        build(tmp_path, True)
    rewritten(path, '"format": 9', '"format": 1')
    rewritten(path, '"invreg": "', '"invreg": "7.')
    with pytest.raises(ValueError, match=r"was written by invreg 7\..*resume with that version"):
        build(tmp_path, True)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole: Path, tmp_path: Path) -> None:
    training = build(tmp_path, False)
    for _ in range(8):
        next(training)
    newest, before = checkpoints(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=rf"{newest.name} is damaged.*; going on from {before.name}"):
        resumed = build(tmp_path, True)
    assert resumed.step == 4
    list(resumed)
    assert_same(whole, tmp_path)
    for one in checkpoints(tmp_path):
        one.write_bytes(b"nothing")
    with pytest.raises(DamagedFileError, match=r"no whole checkpoint is left: .*; train anew in another folder"):
        build(tmp_path, True)


def test_what_a_kill_left_half_written_is_swept_away(tmp_path: Path) -> None:
    training = build(tmp_path, False)
    next(training)
    training.save()
    for name in (".0a1b2c3d-checkpoint-0000000002.safetensors", ".0a1b2c3d-log.jsonl"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".mine").write_bytes(b"not ours")
    build(tmp_path, True)
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        ".lock",
        ".mine",
        "checkpoint-0000000001.safetensors",
        "log.jsonl",
    ]


def test_a_log_line_every_few_steps_and_the_last(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    training = iterate(
        lambda batch, progress, generator: {"data": model(batch).square().sum()},
        [torch.ones(1)] * 8,
        torch.optim.SGD(model.parameters(), 0.1),
        model=model,
        folder=tmp_path,
        options=Options(log_every=3),
    )
    assert isinstance(training.record, Record)
    assert len(list(training)) == 8
    assert [line["step"] for line in read_log(tmp_path)] == [0, 3, 6, 7]


def test_a_list_with_other_numbers_is_another_training(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)

    def resumed(batches: list[Any]) -> Training[Any]:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return iterate(lambda b, p, g: {"data": model(b["x"]).sum()}, batches, optimizer, model=model,
                       folder=tmp_path, resume=True)  # fmt: skip

    batches = [
        {"x": torch.full((2,), float(k)), "name": "a", "z": torch.ones(1, dtype=torch.complex64)} for k in range(3)
    ]
    training = resumed(batches)
    next(training)
    training.save()
    assert resumed(batches).step == 1
    with pytest.raises(ValueError, match="batches.last was"):
        resumed([*batches[:2], {**batches[2], "x": torch.zeros(2)}])
    with pytest.raises(ValueError, match="batches.first was"):
        resumed([{**batches[0], "name": "b"}, *batches[1:]])


@pytest.mark.slow(seconds=65)
def test_a_training_that_is_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    once, often = tmp_path / "once", tmp_path / "often"
    for _ in build(once, False, save_every=1):
        continue
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    chance, kills = random.Random(0), 0
    for _ in range(40):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(often)], env=environment)
        log = often / "log.jsonl"
        before = log.stat().st_size if log.exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and (log.stat().st_size if log.exists() else 0) <= before:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))  # a fast machine takes the whole training in half a second
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait(60)
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert kills >= 2
    assert_same(once, often)


class Counting(nn.Module):
    """A model with a buffer that its state leaves out."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        y: Tensor = self.linear(x) * self.count
        return y


def counting(folder: Path, resume: bool) -> tuple[Counting, Training[Tensor]]:
    torch.manual_seed(0)
    model = Counting()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    return model, iterate(
        lambda batch, progress, generator: {"data": model(batch).square().mean()},
        [torch.ones(1, 1)] * 6,
        optimizer,
        model=model,
        scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
        folder=folder,
        resume=resume,
        options=Options(save_every=3),
    )


def test_buffers_that_a_state_leaves_out_are_kept_too(tmp_path: Path) -> None:
    whole, steps = counting(tmp_path / "whole", False)
    list(steps)
    _, steps = counting(tmp_path / "left", False)
    for _ in range(3):
        next(steps)
    resumed, steps = counting(tmp_path / "left", True)
    list(steps)
    assert torch.equal(resumed.count, whole.count)
    assert torch.equal(resumed.linear.weight, whole.linear.weight)


def test_a_training_goes_on_with_the_optimizer_that_has_moved(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def training(resume: bool) -> Training[Tensor]:
        return iterate(
            lambda batch, progress, generator: {"data": model(batch).square().mean()},
            [torch.ones(1, 1)] * 4,
            optimizer,
            model=model,
            scheduler=scheduler,
            folder=tmp_path,
            resume=resume,
            options=Options(save_every=2),
        )

    steps = training(False)
    for _ in range(2):
        next(steps)
    assert len(list(training(True))) == 2
    assert scheduler.last_epoch == 4


def test_whole_checkpoints_are_not_pushed_out_by_damaged_ones(tmp_path: Path) -> None:
    for _ in build(tmp_path, False):
        continue
    newest, before = checkpoints(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="is damaged"):
        training = build(tmp_path, True)
    next(training)
    training.save()
    found = checkpoints(tmp_path)
    assert found[1] == before
    assert len(found) == 2
    assert [load_checkpoint(one)["step"] for one in found] == [21, 20]


def test_arrays_of_numpy_are_known_by_their_content() -> None:
    one, other = np.arange(3.0), np.arange(3.0) + 1
    assert digest_of((one, 1)) == digest_of((one.copy(), 1)) != digest_of((other, 1))
