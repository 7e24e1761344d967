"""The tests of samplers import `sampler_problems`, which lies beside them, by name."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # the tests are no package
