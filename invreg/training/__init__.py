"""Training: one loop, and objectives."""

from invreg.training.loop import Record, fit, iterate

__all__ = ["Record", "fit", "iterate"]
