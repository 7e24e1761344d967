"""A small simulated scan, made once, and a way to run commands."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from invreg.cli import app


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Invoke = Callable[..., Outcome]


@pytest.fixture(scope="session")
def invoke() -> Invoke:
    runner = CliRunner()

    def run(*words: object) -> Outcome:
        result = runner.invoke(app, [str(word) for word in words])
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke) -> Path:
    """A folder with mri.npz (one slice), stack.npz (four), ct.npz and the truth of the first."""
    folder = tmp_path_factory.mktemp("scans")
    small = ("--matrix", 64, "--coils", 4, "--calibration", 16, "--acceleration", 2)
    for words in (
        ("simulate", folder / "mri.npz", "--truth", folder / "truth.npz", *small),
        ("simulate", folder / "stack.npz", "--slices", 4, *small),
        ("simulate", folder / "ct.npz", "--what", "ct", "--views", 12),
    ):
        outcome = invoke(*words)
        assert outcome.code == 0, outcome.err
    return folder
