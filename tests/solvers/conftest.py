"""What the tests of the solvers share; the test files beside it import `problems` and `gradients` by name."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent))  # the tests are no package


@pytest.fixture(params=[False, True], ids=["joint", "per_sample"])
def per_sample(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="session")
def forward_mode() -> None:
    """Torch compiles its forward derivatives at the first use, which takes seconds."""
    zero = torch.zeros((), dtype=torch.float64)
    torch.func.jvp(torch.tanh, (zero,), (zero,))
