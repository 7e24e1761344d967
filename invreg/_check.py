"""Argument checks with one voice: name the argument, say what was wanted, what came, what to do."""

import difflib
import math
import sys
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor


def require_tensor(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}; use torch.as_tensor")


def require_finite(name: str, value: Tensor) -> None:
    """Raise ValueError if `value` holds NaN or Inf. Reads the device once."""
    if not bool(torch.isfinite(value).all()):
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(f"{name} must be finite, got {bad} NaN or Inf of {value.numel()} entries; repair or mask them")


def require_positive(name: str, value: float, *, zero_allowed: bool = False) -> None:
    """Raise unless a Python number is finite and > 0 (>= 0 if `zero_allowed`)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero_allowed):
        raise ValueError(f"{name} must be finite and {'>=' if zero_allowed else '>'} 0, got {value}")


def require_count(name: str, value: int, *, least: int = 1) -> None:
    """Raise unless `value` is an int >= `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")


def require_complex(name: str, value: Tensor) -> None:
    """Raise TypeError unless `value` is complex; the message says how to make it so."""
    if not value.is_complex():
        wanted = "complex128" if value.dtype == torch.float64 else "complex64"
        raise TypeError(f"{name} must be complex, got {value.dtype}; use {name}.to(torch.{wanted})")


def require_batch(name: str, value: Tensor, batch: int, owner: str) -> None:
    """Raise ValueError if a constant that differs by sample meets a batch of another size."""
    if batch not in (1, value.shape[0]):
        raise ValueError(f"{name} must have batch size {batch}, that of the {owner}, got {value.shape[0]}")


def require_shape(name: str, value: Tensor, shape: tuple[int, ...], layout: str) -> None:
    """Raise unless `value` is (B, *shape); `layout` says in words what the axes are."""
    if value.ndim != len(shape) + 1 or tuple(value.shape[1:]) != tuple(shape):
        wanted = ", ".join(["B", *map(str, shape)])
        hint = "; add a batch axis with x[None]" if tuple(value.shape) == tuple(shape) else ""
        raise ValueError(f"{name} must be ({wanted}) = {layout}, got {tuple(value.shape)}{hint}")


def require_same_precision(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise TypeError unless both tensors have one precision, and `value` is complex where `other` is.

    float32 goes with complex64 and float64 with complex128; nothing is promoted silently.
    """
    if not (value.is_floating_point() or value.is_complex()):
        raise TypeError(f"{name} must be floating point or complex, got {value.dtype}; use {name}.to({other.dtype})")
    if value.dtype == other.dtype:
        return
    wanted = other.dtype if other.is_complex() else other.dtype.to_complex() if value.is_complex() else other.dtype
    if value.dtype != wanted:
        raise TypeError(
            f"{name} is {value.dtype} but {other_name} is {other.dtype}; "
            f"use {name}.to({wanted}) or convert {other_name}"
        )


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for an unknown name, with the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}; {guess}known: {', '.join(names)}"


def warn(message: str) -> None:
    """A UserWarning at the line that led here from outside of this package and of torch."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("invreg", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
