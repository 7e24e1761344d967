"""Regularizers: what we believe before we measure."""

from invreg.regularizers.norms import L1, Box, GroupL1, NonNegative, Tikhonov
from invreg.regularizers.tv import TotalVariation

__all__ = [
    "L1",
    "Box",
    "GroupL1",
    "NonNegative",
    "Tikhonov",
    "TotalVariation",
]
