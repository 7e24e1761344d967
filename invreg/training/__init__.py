"""Training: one loop, and objectives."""

from invreg.training.average import Average
from invreg.training.batches import Batches, Share, Shuffled
from invreg.training.cnf import CNF, Flowed, NegativeLogLikelihood
from invreg.training.journal import read_log
from invreg.training.latent_ode import EvidenceBound, LatentODE, LatentPath, Series, union_grid, warm_up
from invreg.training.loop import Objective, Options, Scored, Training, fit, iterate
from invreg.training.neural_ode import NeuralODE, Prediction, Supervised, TrajectoryFit
from invreg.training.neural_sde import MomentFit, NeuralSDE
from invreg.training.proximal_matching import ProximalMatching
from invreg.training.record import Record, Step
from invreg.training.smoothness import JacobianNorm, KineticEnergy, TaylorDerivative
from invreg.training.teacher_forcing import (
    AdaptiveForcing,
    FlowMap,
    ForcedFit,
    bounding_alpha,
    forced,
    jacobian_norms,
    run_free,
    state_space_divergence,
)

__all__ = [
    "CNF",
    "AdaptiveForcing",
    "Average",
    "Batches",
    "EvidenceBound",
    "FlowMap",
    "Flowed",
    "ForcedFit",
    "JacobianNorm",
    "KineticEnergy",
    "LatentODE",
    "LatentPath",
    "MomentFit",
    "NegativeLogLikelihood",
    "NeuralODE",
    "NeuralSDE",
    "Objective",
    "Options",
    "Prediction",
    "ProximalMatching",
    "Record",
    "Scored",
    "Series",
    "Share",
    "Shuffled",
    "Step",
    "Supervised",
    "TaylorDerivative",
    "Training",
    "TrajectoryFit",
    "bounding_alpha",
    "fit",
    "forced",
    "iterate",
    "jacobian_norms",
    "read_log",
    "run_free",
    "state_space_divergence",
    "union_grid",
    "warm_up",
]
