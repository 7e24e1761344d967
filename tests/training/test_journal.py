"""The log: a line a step, cut back to where a training goes on."""

import math
import sys
from pathlib import Path

import pytest

from invreg.training import Step, read_log
from invreg.training.journal import Journal


def step(number: int, norm: float = 1.0) -> Step:
    return Step(number, {"data": 0.5, "total": 0.5}, 1e-3, norm, 2.0)


def test_a_line_says_what_a_step_found(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0, tensorboard=False)
    journal.write(step(0))
    journal.write(step(1, math.inf))
    journal.sync()
    first, second = read_log(tmp_path)
    assert first == {"step": 0, "terms": {"data": 0.5, "total": 0.5}, "lr": 1e-3, "gradient_norm": 1.0, "seconds": 2.0}
    assert second["gradient_norm"] is None


def test_lines_of_steps_to_be_taken_again_are_removed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0, tensorboard=False)
    for number in range(5):
        journal.write(step(number))
    with journal.path.open("a") as file:
        file.write('{"step": 5, "ter')  # a kill in the middle of a line
    assert [one["step"] for one in read_log(tmp_path)] == [0, 1, 2, 3, 4]
    again = Journal(tmp_path, 3, tensorboard=False)
    again.write(step(3))
    assert [one["step"] for one in read_log(tmp_path)] == [0, 1, 2, 3]
    assert journal.path.read_bytes().endswith(b"}\n")


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"log.jsonl: no such file"):
        read_log(tmp_path)


def test_a_missing_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match="needs tensorboard, which is not installed; pip install tensorboard"):
        Journal(tmp_path, 0, tensorboard=True)


def test_tensorboard_gets_every_term(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    journal = Journal(tmp_path, 0, tensorboard=True)
    for number in range(3):
        journal.write(step(number))
    journal.sync()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"data", "total", "lr", "gradient norm"}
    assert [one.step for one in events.Scalars("data")] == [0, 1, 2]


def test_a_file_that_is_no_log_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"time": 1}\n{"time": 2}\n')
    with pytest.raises(FileExistsError, match="log.jsonl: is no log of a training"):
        Journal(tmp_path, 0, tensorboard=False)
    assert path.read_text() == '{"time": 1}\n{"time": 2}\n'
