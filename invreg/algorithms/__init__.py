"""Algorithms: how misfit and belief make a reconstruction."""

from invreg.algorithms.admm import ADMM
from invreg.algorithms.choice import GCV, SURE, Discrepancy, LCurve, WeightChoice, choose_weight
from invreg.algorithms.conjugate_gradient import ConjugateGradient
from invreg.algorithms.filtered_backprojection import filtered_backprojection
from invreg.algorithms.gradient_descent import GradientDescent
from invreg.algorithms.half_quadratic import HQS
from invreg.algorithms.loop import Algorithm, Run
from invreg.algorithms.primal_dual import PDHG
from invreg.algorithms.proximal_gradient import FISTA, ProximalGradient
from invreg.algorithms.reconstruction import History, Reconstruction, Status
from invreg.algorithms.sirt import SIRT

__all__ = [
    "ADMM",
    "FISTA",
    "GCV",
    "HQS",
    "PDHG",
    "SIRT",
    "SURE",
    "Algorithm",
    "ConjugateGradient",
    "Discrepancy",
    "GradientDescent",
    "History",
    "LCurve",
    "ProximalGradient",
    "Reconstruction",
    "Run",
    "Status",
    "WeightChoice",
    "choose_weight",
    "filtered_backprojection",
]
