"""Networks: fields of differential equations and their derivatives, encoders, and denoisers made of them or exact."""

from invreg.models.adapted import Calibrated, Slices, Tiles, calibration
from invreg.models.concat_squash import ConcatSquash
from invreg.models.convert import convert
from invreg.models.denoiser import NetworkDenoiser, Prediction
from invreg.models.derivatives import slope_and_product, slope_and_trace, time_derivative
from invreg.models.from_diffusers import from_diffusers
from invreg.models.icnn import ComplexPotential, ConvexCNN, ConvexMLP, InputConvexNetwork
from invreg.models.mlp import MLP, CubicDrift, EntrywiseMLP, TimeMLP
from invreg.models.noise_path import (
    EDM,
    DiscreteVariancePreserving,
    NoisePath,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    linear_alphas,
)
from invreg.models.oracles import GaussianOracle, LowRankMixtureOracle, MixtureOracle, StationaryOracle
from invreg.models.recurrent import Gaussian, SeriesEncoder
from invreg.models.unet import UNet

__all__ = [
    "EDM",
    "MLP",
    "Calibrated",
    "ComplexPotential",
    "ConcatSquash",
    "ConvexCNN",
    "ConvexMLP",
    "CubicDrift",
    "DiscreteVariancePreserving",
    "EntrywiseMLP",
    "Gaussian",
    "GaussianOracle",
    "InputConvexNetwork",
    "LowRankMixtureOracle",
    "MixtureOracle",
    "NetworkDenoiser",
    "NoisePath",
    "Prediction",
    "RectifiedFlow",
    "SeriesEncoder",
    "Slices",
    "StationaryOracle",
    "Tiles",
    "TimeMLP",
    "UNet",
    "VarianceExploding",
    "VariancePreserving",
    "calibration",
    "convert",
    "from_diffusers",
    "linear_alphas",
    "slope_and_product",
    "slope_and_trace",
    "time_derivative",
]
