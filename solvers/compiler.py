"""Whether there is a compiler for a device."""

from __future__ import annotations

from functools import lru_cache

import torch

PROGRAMS = 64  # kept for different fields, methods and controllers


@lru_cache(maxsize=8)
def missing_compiler(device: torch.device) -> str | None:
    """What is missing to compile for a device; None where nothing is."""
    if device.type == "cpu":
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            return "no C++ compiler was found; install g++ or clang++"
        return None
    from torch.utils._triton import has_triton

    return None if has_triton() else f"no back end for {device.type} was found; install triton"
