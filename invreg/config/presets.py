"""How a reconstruction with a learned prior is usually made: for every name an algorithm, a prior and their options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from invreg import algorithms, regularizers
from invreg._check import unknown_name
from invreg.algorithms.loop import Algorithm
from invreg.config.names import WEIGHTINGS
from invreg.config.spec import Spec, build, choose, keys

_LEVELS = ("sigma_min", "sigma_max")
_NOT_TOLD = {"corrector", "denoiser", "generator", "predictor", "regularizer", "schedule", "sde"}
"""What the caller knows, or says by other words."""
_FIXED = {"balance", "potential", "relaxation", "rho", "scale", "step", "step_size"}
"""What follows from the step of a learned proximal network."""


@dataclass(frozen=True)
class Preset:
    """A way to use a learned model, and the options that are taken where the user gives none.

    Args:
        about: what it is, in a line.
        algorithm: its class.
        prior: what the model is made into, by denoiser=... or potential=...; None: the algorithm takes denoisers.
        options: of both.
        ct: what is different for sinograms, whose rays need more conjugate gradients than k-space does.
    """

    about: str
    algorithm: type[Algorithm[Any, Any]]
    prior: type[Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    ct: Mapping[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> bool:
        """Whether it draws from the posterior, so that many draws say more than one."""
        return issubclass(self.algorithm, algorithms.Sampler)

    @property
    def of_potentials(self) -> bool:
        """Whether it is for learned proximal networks, not for denoisers."""
        return self.prior is regularizers.LearnedProximal


PRESETS: Mapping[str, Preset] = {
    "ddnm": Preset("DDNM+: what was measured from the data; samples", algorithms.DDNM, options={"iterations": 100}),
    "ddrm": Preset("DDRM: data and prior by singular value; samples", algorithms.DDRM, options={"iterations": 20}),
    "dds": Preset(
        "DDS: conjugate gradients towards the data; samples",
        algorithms.DDS,
        options={"iterations": 50},
        ct={"iterations": 25, "inner_iterations": 20},  # with 5, four decibels are lost
    ),
    "diffpir": Preset(
        "DiffPIR: the prox of the data; samples",
        algorithms.DiffPIR,
        options={"iterations": 50},
        ct={"iterations": 25, "inner_iterations": 20},
    ),
    "dps": Preset(
        "DPS: gradients through the network, any operator; samples",
        algorithms.DPS,
        options={"iterations": 100, "weight": 6.0},
    ),
    "lpn-admm": Preset(
        "learned proximal network by ADMM, at its own step",
        algorithms.ADMM,
        regularizers.LearnedProximal,
        {"iterations": 40, "relaxation": 1.0, "balance": False},
    ),
    "lpn-pgd": Preset(
        "learned proximal network by proximal gradients, at a step that is proved",
        algorithms.ProximalGradient,
        regularizers.LearnedProximal,
        {"iterations": 60},
    ),
    "pnp": Preset(
        "plug-and-play by half-quadratic splitting", algorithms.HQS, regularizers.PlugAndPlay, {"iterations": 30}
    ),
    "pnp-admm": Preset("plug-and-play by ADMM", algorithms.ADMM, regularizers.PlugAndPlay, {"iterations": 20}),
    "pnp-pgd": Preset(
        "plug-and-play by proximal gradients", algorithms.ProximalGradient, regularizers.PlugAndPlay, {"iterations": 30}
    ),
    "predictor-corrector": Preset(
        "predictor-corrector: Langevin steps at every noise level, as Score-MRI; samples",
        algorithms.PredictorCorrector,
        options={"iterations": 250},
    ),
    "red": Preset(
        "regularization by denoising", algorithms.GradientDescent, regularizers.RED, {"iterations": 40, "momentum": 0.5}
    ),
    "red-diff": Preset(
        "RED-Diff: descent at falling noise levels",
        algorithms.Variational,
        regularizers.REDDiff,
        {"iterations": 100, "step_size": 0.05},
    ),
}
"""By name. The numbers were chosen on simulated brain scans (4 times accelerated, noise 0.01); those for CT on the
simulated head of 60 views and 5e4 photons."""


@dataclass(frozen=True, eq=False)
class LearnedMethod:
    """An algorithm and what it makes of a learned model.

    Args:
        name: of `PRESETS`.
        algorithm: with all its options.
        options: of the prior, as far as they are known.
    """

    name: str
    algorithm: Algorithm[Any, Any]
    options: Mapping[str, Any]

    @property
    def preset(self) -> Preset:
        """What it is made of."""
        return PRESETS[self.name]

    def prior(self, model: Any, given: Mapping[str, Any]) -> Any:
        """The denoiser or potential as the algorithm takes it; `options` win over what is given."""
        if self.preset.prior is None:
            return model
        made: Any = build(self.preset.prior, self.name, self.options, {"denoiser": model, "potential": model, **given})
        return made


def learned_method(spec: Spec, kind: str, iterations: int | None = None) -> LearnedMethod:
    """A method of `PRESETS` for a kind of scan.

    Args:
        spec: its name and the user's options, which win: those of the algorithm's and of the prior's class, and for
            samplers sigma_min and sigma_max of their schedule.
        kind: "mri", "ct" or "image".
        iterations: come second.

    Raises:
        TypeError, ValueError: a name or option that is unknown or is refused.
    """
    preset = choose("algorithm", spec.name, PRESETS)
    known = _NOT_TOLD | (_FIXED if preset.of_potentials else set())
    own = set(keys(preset.algorithm)) - known
    others = set(keys(preset.prior)) - known - own if preset.prior is not None else set()
    levels = set(_LEVELS) if issubclass(preset.algorithm, algorithms.DiffusionSampler) else set()
    for key in spec.options:
        if key not in own | others | levels:
            raise ValueError(unknown_name(f"option of {spec.name}", key, own | others | levels))
    counted = {} if iterations is None else {"iterations": iterations}
    chosen = {**preset.options, **(preset.ct if kind == "ct" else {}), **counted, **spec.options}
    if "weighting" in chosen:
        chosen["weighting"] = choose("weighting", str(chosen["weighting"]), WEIGHTINGS)
    arguments = {key: one for key, one in chosen.items() if key in own or (key in preset.options and key not in others)}
    ends = {key: one for key, one in chosen.items() if key in levels}
    if ends:
        arguments["schedule"] = build(algorithms.Karras, spec.name, ends)
    made = build(preset.algorithm, spec.name, arguments)
    return LearnedMethod(spec.name, made, {key: one for key, one in chosen.items() if key in others})
