"""One process at a time in a folder: another is refused, and what was killed leaves nothing behind."""

import gc
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from invreg.training import Training, iterate
from invreg.training.folder_lock import LOCK, hold

HOLDER = """
import sys
from pathlib import Path
from invreg.training.folder_lock import hold
lock = hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def training(folder: Path, resume: bool = False) -> Training[torch.Tensor]:
    model = nn.Linear(1, 1)
    return iterate(
        lambda batch, progress, generator: {"data": model(batch).square().mean()},
        [torch.ones(1, 1)] * 2,
        torch.optim.SGD(model.parameters(), 0.1),
        model=model,
        folder=folder,
        resume=resume,
    )


def holding(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.slow(seconds=10)
def test_a_folder_in_which_another_process_trains_is_refused_until_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with holding(folder) as other:
        with pytest.raises(BlockingIOError, match=f"another run is training there, process {other.pid}; wait for it"):
            training(folder)
        other.send_signal(signal.SIGKILL)
    assert len(list(training(folder))) == 2


@pytest.mark.slow(seconds=20)
def test_a_folder_is_held_while_it_is_trained_in_and_free_afterwards(tmp_path: Path) -> None:
    steps = training(tmp_path)
    next(steps)
    with holding(tmp_path) as other:
        assert "BlockingIOError" in other.communicate(timeout=60)[1]
    next(steps)
    with holding(tmp_path) as other:
        assert other.communicate(timeout=60)[1] == ""


def test_within_a_process_the_lock_is_one_until_all_let_go(tmp_path: Path) -> None:
    lock, again = hold(tmp_path), hold(tmp_path / ".")
    assert lock is again
    assert (tmp_path / LOCK).exists()
    gone = weakref.ref(lock)
    del lock, again
    gc.collect()
    assert gone() is None


def test_a_training_that_was_left_is_resumed_in_the_same_process(tmp_path: Path) -> None:
    left = training(tmp_path)
    next(left)
    left.save()
    assert training(tmp_path, resume=True).step == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_does_not_hold_the_folder_longer_than_its_parent(tmp_path: Path) -> None:
    lock = hold(tmp_path)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:  # waits until it is told, and does nothing else
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    del lock
    gc.collect()
    with holding(tmp_path) as process:  # though the child is still there
        said = process.communicate(timeout=60)[1]
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.close(writing)
    os.waitpid(child, 0)
    assert said == ""
