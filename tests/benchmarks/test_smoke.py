"""Every benchmark script runs with --quick and prints its table, whichever peers are installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # as a script of this folder has it

from known_posterior import known, quality, seeded  # noqa: E402
from stopwatch import Stopwatch  # noqa: E402

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
@pytest.mark.parametrize(("script", "rows"), [("mri.py", 6), ("diffusion.py", 9)])
def test_a_missing_peer_is_a_row_that_says_so(script: str, rows: int, tmp_path: Path) -> None:
    code = (
        "import sys, runpy, timing; timing.peer = lambda name: None\n"
        "import shutil; shutil.which = lambda name: None\n"
        f"sys.argv = [{script!r}, '--quick']; "
        f"runpy.run_path({str(HERE / script)!r}, run_name='__main__')"
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
    assert done.stdout.count("not installed") == rows


def test_a_watched_call_within_another_counts_once() -> None:
    watch = Stopwatch()
    inner = watch.timed("inner", lambda x: x + 1)
    outer = watch.timed("outer", lambda x: inner(x) * 2)
    assert float(outer(torch.zeros(()))) == 2
    assert dict(watch.calls) == {"outer": 1}
    assert float(inner(torch.zeros(()))) == 1
    assert dict(watch.calls) == {"outer": 1, "inner": 1}


def test_a_watched_call_has_the_same_gradient_and_times_the_way_back() -> None:
    watch = Stopwatch()
    x = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(watch.timed("sine", torch.sin)(x).square().sum(), x)
    assert torch.allclose(found, torch.sin(2 * x), rtol=1e-12, atol=0)
    assert set(watch.seconds) == {"sine", "sine, backward"}
    assert all(seconds > 0 for seconds in watch.seconds.values())


def test_exact_samples_of_the_known_posterior_are_as_good_as_exact() -> None:
    there = known(0.35, 0.1, 200)
    distance = quality(there.exact.sample(200, seeded(9)), there)
    assert 0.7 < float(distance.split()[1]) < 1.3, distance
    prior = quality(there.prior.sample(200, seeded(9)), there)
    assert float(prior.split()[1]) > 3, prior
