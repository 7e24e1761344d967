"""Every benchmark script runs with --quick and prints its table, whichever peers are installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SCRIPTS = sorted(path for path in HERE.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
SCRIPTS = [path for path in SCRIPTS if path.name != Path(__file__).name]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_benchmark_runs_and_prints_a_table(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script), "--quick"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "invreg" in done.stdout


@pytest.mark.slow
def test_a_missing_peer_is_a_row_that_says_so(tmp_path: Path) -> None:
    code = (
        "import sys, runpy, timing; timing.peer = lambda name: None\n"
        "import shutil; shutil.which = lambda name: None\n"
        "sys.argv = ['mri.py', '--quick']; "
        f"runpy.run_path({str(HERE / 'mri.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("not installed") == 6
