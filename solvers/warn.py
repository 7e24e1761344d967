"""A warning names the line of the user that led to it, however deep within the package it was found."""

from __future__ import annotations

import sys
import warnings

WITHIN = frozenset({"invreg", "torch"})  # torch is in between where a solve runs within autograd


def warn_user(message: str) -> None:
    """UserWarning at the first line, outwards from here, that is neither the package's nor torch's."""
    level = 1
    while (frame := _frame(level)) is not None and frame.split(".")[0] in WITHIN:
        level += 1
    warnings.warn(message, stacklevel=level + 1)


def _frame(level: int) -> str | None:
    """Module that the caller's level-th caller belongs to; None beyond the outermost."""
    try:
        return str(sys._getframe(level + 1).f_globals.get("__name__", ""))
    except ValueError:
        return None
