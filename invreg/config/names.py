"""Names for operators, models, objectives and the like: the only place where strings stand for classes."""

from collections.abc import Mapping
from typing import Any

import torch

from invreg import algorithms, data, models, operators, regularizers, solvers
from invreg.algorithms.loop import Algorithm
from invreg.interfaces import Operator, Regularizer
from invreg.models import denoiser, noise_path, unet
from invreg.regularizers import red_diff
from invreg.training import (
    cnf,
    denoising,
    image_files,
    latent_ode,
    neural_ode,
    neural_sde,
    proximal_matching,
    smoothness,
    teacher_forcing,
)

OPERATORS: Mapping[str, type[Operator]] = {
    "blur": operators.Blur,
    "downsample": operators.Downsample,
    "fan-beam": operators.FanBeam,
    "fourier": operators.MaskedFourier,
    "mask": operators.Mask,
    "parallel-beam": operators.ParallelBeam,
    "sense": operators.Sense,
    "soft-sense": operators.SoftSense,
}

REGULARIZERS: Mapping[str, type[Regularizer[Any]]] = {
    "box": regularizers.Box,
    "group-l1": regularizers.GroupL1,
    "l1": regularizers.L1,
    "llr": regularizers.LocallyLowRank,
    "nonnegative": regularizers.NonNegative,
    "nuclear": regularizers.NuclearNorm,
    "tgv": regularizers.TotalGeneralizedVariation,
    "tikhonov": regularizers.Tikhonov,
    "tv": regularizers.TotalVariation,
    "wavelet": regularizers.WaveletL1,
}

ALGORITHMS: Mapping[str, type[Algorithm[Any, Any]]] = {
    "admm": algorithms.ADMM,
    "cg": algorithms.ConjugateGradient,
    "ddnm": algorithms.DDNM,
    "ddrm": algorithms.DDRM,
    "dds": algorithms.DDS,
    "diffpir": algorithms.DiffPIR,
    "dps": algorithms.DPS,
    "fista": algorithms.FISTA,
    "gradient-descent": algorithms.GradientDescent,
    "hqs": algorithms.HQS,
    "pdhg": algorithms.PDHG,
    "predictor-corrector": algorithms.PredictorCorrector,
    "proximal-gradient": algorithms.ProximalGradient,
    "sirt": algorithms.SIRT,
    "variational": algorithms.Variational,
}

RULES: Mapping[str, type[Any]] = {
    "discrepancy": algorithms.Discrepancy,
    "gcv": algorithms.GCV,
    "lcurve": algorithms.LCurve,
    "sure": algorithms.SURE,
}

METHODS: Mapping[str, type[Any]] = {
    "auto-switch": solvers.AutoSwitch,
    "bosh3": solvers.Bosh3,
    "dopri5": solvers.Dopri5,
    "dopri8": solvers.Dopri8,
    "euler": solvers.Euler,
    "euler-heun": solvers.EulerHeun,
    "heun": solvers.Heun,
    "implicit-euler": solvers.ImplicitEuler,
    "kvaerno3": solvers.Kvaerno3,
    "kvaerno5": solvers.Kvaerno5,
    "midpoint": solvers.Midpoint,
    "milstein": solvers.Milstein,
    "ralston": solvers.Ralston,
    "reversible-heun": solvers.ReversibleHeun,
    "rk4": solvers.RK4,
    "rodas5p": solvers.Rodas5P,
    "rosenbrock23": solvers.Rosenbrock23,
    "shark": solvers.ShARK,
    "sosra": solvers.SOSRA,
    "sosra2": solvers.SOSRA2,
    "sosri": solvers.SOSRI,
    "sosri2": solvers.SOSRI2,
    "sra1": solvers.SRA1,
    "sra3": solvers.SRA3,
    "sriw1": solvers.SRIW1,
    "sriw2": solvers.SRIW2,
    "trapezoid": solvers.Trapezoid,
    "tsit5": solvers.Tsit5,
    "vern7": solvers.Vern7,
}

CONTROLLERS: Mapping[str, type[Any]] = {"fixed": solvers.Fixed, "i": solvers.I, "pi": solvers.PI, "pid": solvers.PID}

ADJOINTS: Mapping[str, type[Any]] = {
    "backsolve": solvers.Backsolve,
    "checkpointed": solvers.Checkpointed,
    "direct": solvers.Direct,
    "interpolating": solvers.Interpolating,
    "reversible": solvers.Reversible,
    "stochastic-adjoint": solvers.StochasticAdjoint,
}

SOLVERS: Mapping[str, type[Any]] = {"noisy-solver": solvers.NoisySolver, "solver": solvers.Solver}

MODELS: Mapping[str, type[torch.nn.Module]] = {
    "calibrated": models.Calibrated,
    "cnf": cnf.CNF,
    "concat-squash": models.ConcatSquash,
    "convex-cnn": models.ConvexCNN,
    "convex-mlp": models.ConvexMLP,
    "cubic-drift": models.CubicDrift,
    "entrywise-mlp": models.EntrywiseMLP,
    "flow-map": teacher_forcing.FlowMap,
    "latent-ode": latent_ode.LatentODE,
    "mlp": models.MLP,
    "network-denoiser": denoiser.NetworkDenoiser,
    "neural-ode": neural_ode.NeuralODE,
    "neural-sde": neural_sde.NeuralSDE,
    "series-encoder": models.SeriesEncoder,
    "slices": models.Slices,
    "tiles": models.Tiles,
    "time-mlp": models.TimeMLP,
    "unet": unet.UNet,
}

PATHS: Mapping[str, type[noise_path.NoisePath]] = {
    "discrete-variance-preserving": noise_path.DiscreteVariancePreserving,
    "edm": noise_path.EDM,
    "rectified-flow": noise_path.RectifiedFlow,
    "variance-exploding": noise_path.VarianceExploding,
    "variance-preserving": noise_path.VariancePreserving,
}

OBJECTIVES: Mapping[str, type[Any]] = {
    "denoising": denoising.DenoisingFit,
    "evidence-bound": latent_ode.EvidenceBound,
    "forced-fit": teacher_forcing.ForcedFit,
    "likelihood": cnf.NegativeLogLikelihood,
    "moment-fit": neural_sde.MomentFit,
    "proximal-matching": proximal_matching.ProximalMatching,
    "supervised": neural_ode.Supervised,
    "trajectory-fit": neural_ode.TrajectoryFit,
}

HEURISTICS: Mapping[str, type[Any]] = {
    "jacobian-norm": smoothness.JacobianNorm,
    "kinetic-energy": smoothness.KineticEnergy,
    "local-heuristic": regularizers.LocalHeuristic,
    "solver-error": regularizers.SolverError,
    "solver-stiffness": regularizers.SolverStiffness,
    "taylor-derivative": smoothness.TaylorDerivative,
}

WEIGHTS: Mapping[str, Any] = {
    "exponential": regularizers.Exponential,
    "linear": regularizers.Linear,
    "warm-up": latent_ode.warm_up,
}

WEIGHTINGS: Mapping[str, Any] = {
    "clipped": red_diff.clipped,
    "constant": red_diff.constant,
    "linear": red_diff.linear,
    "logarithmic": red_diff.logarithmic,
    "root": red_diff.root,
    "square": red_diff.square,
    "two-thirds": red_diff.two_thirds,
}

LOSSES: Mapping[str, Any] = {"cross-entropy": torch.nn.functional.cross_entropy, "mse": torch.nn.functional.mse_loss}

DATA: Mapping[str, Any] = {
    "arrays": data.arrays,
    "digits": data.digits,
    "images": image_files.images,
    "mnist-5000": data.mnist_5000,
}

OPTIMIZERS: Mapping[str, type[Any]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}

SCHEDULERS: Mapping[str, type[Any]] = {
    "cosine": torch.optim.lr_scheduler.CosineAnnealingLR,
    "exponential": torch.optim.lr_scheduler.ExponentialLR,
    "multi-step": torch.optim.lr_scheduler.MultiStepLR,
    "one-cycle": torch.optim.lr_scheduler.OneCycleLR,
    "polynomial": torch.optim.lr_scheduler.PolynomialLR,
}

SAVED: Mapping[str, type[Any]] = {**MODELS, **PATHS, **SOLVERS, **METHODS, **CONTROLLERS, **ADJOINTS}
"""What the folder of a model may name; see `invreg.models.pretrained`."""

SLOTS: Mapping[str, Mapping[str, Any]] = {
    "adjoint": ADJOINTS,
    "annealing": WEIGHTS,
    "controller": CONTROLLERS,
    "data": DATA,
    "decoder": MODELS,
    "diffusion": MODELS,
    "drift": MODELS,
    "encoder": MODELS,
    "field": MODELS,
    "forcing": {"adaptive": teacher_forcing.AdaptiveForcing, **WEIGHTS},
    "head": MODELS,
    "loss": LOSSES,
    "method": METHODS,
    "model": MODELS,
    "network": MODELS,
    "path": PATHS,
    "objective": OBJECTIVES,
    "optimizer": OPTIMIZERS,
    "regularizers": HEURISTICS,
    "schedule": WEIGHTS,
    "scheduler": SCHEDULERS,
    "solver": SOLVERS,
}
"""Arguments that are objects, and the names for what may be put there."""

USUAL: Mapping[str, str] = {"solver": "solver"}
"""What a mapping without a name stands for, unless the default of the argument is of another of the named classes."""
