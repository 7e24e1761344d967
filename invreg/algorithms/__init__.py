"""Algorithms: how misfit and belief make a reconstruction."""

from invreg.algorithms.admm import ADMM
from invreg.algorithms.choice import GCV, SURE, Discrepancy, LCurve, WeightChoice, choose_weight
from invreg.algorithms.conjugate_gradient import ConjugateGradient
from invreg.algorithms.ddnm import DDNM
from invreg.algorithms.ddrm import DDRM
from invreg.algorithms.dds import DDS
from invreg.algorithms.diffpir import DiffPIR
from invreg.algorithms.dps import DPS
from invreg.algorithms.filtered_backprojection import filtered_backprojection
from invreg.algorithms.gradient_descent import GradientDescent
from invreg.algorithms.half_quadratic import HQS
from invreg.algorithms.loop import Algorithm, Run, Sampler
from invreg.algorithms.posterior import Posterior, iterate_posterior, posterior, sample_prior
from invreg.algorithms.primal_dual import PDHG
from invreg.algorithms.probability_flow import log_likelihood, probability_flow
from invreg.algorithms.proved_step import check_step, safe_step_size
from invreg.algorithms.proximal_gradient import FISTA, ProximalGradient
from invreg.algorithms.reconstruction import History, Reconstruction, Status
from invreg.algorithms.renoise import DiffusionSampler, Karras, UniformSteps
from invreg.algorithms.score_sde import Ancestral, EulerMaruyama, Langevin, PredictorCorrector, ReverseDiffusion
from invreg.algorithms.sirt import SIRT
from invreg.algorithms.trust import Trust, judge
from invreg.algorithms.variational import Variational

__all__ = [
    "ADMM",
    "DDNM",
    "DDRM",
    "DDS",
    "DPS",
    "FISTA",
    "GCV",
    "HQS",
    "PDHG",
    "SIRT",
    "SURE",
    "Algorithm",
    "Ancestral",
    "ConjugateGradient",
    "DiffPIR",
    "DiffusionSampler",
    "Discrepancy",
    "EulerMaruyama",
    "GradientDescent",
    "History",
    "Karras",
    "LCurve",
    "Langevin",
    "Posterior",
    "PredictorCorrector",
    "ProximalGradient",
    "Reconstruction",
    "ReverseDiffusion",
    "Run",
    "Sampler",
    "Status",
    "Trust",
    "UniformSteps",
    "Variational",
    "WeightChoice",
    "check_step",
    "choose_weight",
    "filtered_backprojection",
    "iterate_posterior",
    "judge",
    "log_likelihood",
    "posterior",
    "probability_flow",
    "safe_step_size",
    "sample_prior",
]
