"""Networks: fields of differential equations and encoders."""

from invreg.models.concat_squash import ConcatSquash
from invreg.models.mlp import MLP, CubicDrift, TimeMLP
from invreg.models.recurrent import Gaussian, SeriesEncoder

__all__ = [
    "MLP",
    "ConcatSquash",
    "CubicDrift",
    "Gaussian",
    "SeriesEncoder",
    "TimeMLP",
]
