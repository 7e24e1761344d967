"""Regularizers: what we believe before we measure."""

from invreg.regularizers.compose import SumOfTerms, named_terms
from invreg.regularizers.denoising import RED, PlugAndPlay
from invreg.regularizers.learned import LearnedProximal, LearnedValue, RelaxedLearnedProximal
from invreg.regularizers.lowrank import LocallyLowRank, NuclearNorm
from invreg.regularizers.norms import L1, Box, GroupL1, NonNegative, Tikhonov
from invreg.regularizers.red_diff import REDDiff, published_weight
from invreg.regularizers.solver_heuristics import Exponential, Linear, LocalHeuristic, SolverError, SolverStiffness
from invreg.regularizers.tgv import TotalGeneralizedVariation
from invreg.regularizers.tv import TotalVariation
from invreg.regularizers.wavelet import WaveletL1

__all__ = [
    "L1",
    "RED",
    "Box",
    "Exponential",
    "GroupL1",
    "LearnedProximal",
    "LearnedValue",
    "Linear",
    "LocalHeuristic",
    "LocallyLowRank",
    "NonNegative",
    "NuclearNorm",
    "PlugAndPlay",
    "REDDiff",
    "RelaxedLearnedProximal",
    "SolverError",
    "SolverStiffness",
    "SumOfTerms",
    "Tikhonov",
    "TotalGeneralizedVariation",
    "TotalVariation",
    "WaveletL1",
    "named_terms",
    "published_weight",
]
