"""Training: one loop, and objectives."""

from invreg.training.average import Average
from invreg.training.batches import Batches, Share, Shuffled
from invreg.training.journal import read_log
from invreg.training.loop import Objective, Options, Scored, Training, fit, iterate
from invreg.training.record import Record, Step

__all__ = [
    "Average",
    "Batches",
    "Objective",
    "Options",
    "Record",
    "Scored",
    "Share",
    "Shuffled",
    "Step",
    "Training",
    "fit",
    "iterate",
    "read_log",
]
