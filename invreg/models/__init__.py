"""Networks: fields of differential equations and their derivatives, and encoders."""

from invreg.models.concat_squash import ConcatSquash
from invreg.models.derivatives import slope_and_product, slope_and_trace, time_derivative
from invreg.models.mlp import MLP, CubicDrift, EntrywiseMLP, TimeMLP
from invreg.models.recurrent import Gaussian, SeriesEncoder

__all__ = [
    "MLP",
    "ConcatSquash",
    "CubicDrift",
    "EntrywiseMLP",
    "Gaussian",
    "SeriesEncoder",
    "TimeMLP",
    "slope_and_product",
    "slope_and_trace",
    "time_derivative",
]
