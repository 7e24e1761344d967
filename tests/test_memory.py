"""Freed memory is kept: what is allocated again and again does not fault its pages in again and again."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from invreg._memory import keep_freed_memory

torch.set_num_threads(1)
keep_freed_memory()
def cycle():
    blocks = [torch.zeros(2**18) for _ in range(8)]
for _ in range(5):
    cycle()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    cycle()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=100, env=environment
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives the end of its heap back")
def test_memory_that_is_freed_is_not_given_back() -> None:
    """Eight blocks of 1 MB take 2048 pages of 4 kB."""
    assert faults() < 200
    assert faults(MALLOC_TRIM_THRESHOLD_=str(2**17)) > 20 * 200  # the user's word, and that the count sees it
