"""Reconstructions with a learned prior: samples of the posterior or one image, and a check of what came out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, Protocol

import torch
from torch import Tensor

from invreg import config
from invreg._check import require_count, require_positive
from invreg.algorithms import DDS, DPS, judge
from invreg.algorithms.loop import Run
from invreg.algorithms.posterior import chain_generator
from invreg.algorithms.reconstruction import Reconstruction, Status
from invreg.algorithms.smooth import curvature
from invreg.cli.denoisers import Fitted, fitted
from invreg.cli.descent import descent, sized
from invreg.cli.finished import Finished
from invreg.cli.noise_level import NoiseLevel, mean_level
from invreg.cli.pipeline import (
    Plan,
    Scan,
    Wishes,
    make_plan,
    parse_weight,
    reference_slice,
    scan_prior,
    shown,
    usual_weight,
    words_of,
    words_of_level,
)
from invreg.config import LearnedMethod
from invreg.interfaces import Denoiser, Proximal, Splitting
from invreg.moments import Moments
from invreg.noise import Gaussian
from invreg.operators.spectral import Decomposable
from invreg.problem import Problem

DEFAULT, DEFAULT_OF_POTENTIALS = "dds", "lpn-admm"
SAMPLES_AT_ONCE = 8
"""Side by side on a GPU; a CPU gains nothing from it."""
DECOMPOSING = ("ddnm", "ddrm")


class LearnedWishes(Wishes, Protocol):
    """The part of a request that decides how to reconstruct with a learned prior."""

    @property
    def samples(self) -> int: ...
    @property
    def beside(self) -> str | None: ...
    @property
    def check(self) -> bool: ...


@dataclass(frozen=True, eq=False)
class LearnedPlan:
    """How every slice will be reconstructed.

    Args:
        scan: the measurement.
        level: the noise level in the units of the file.
        prior: the denoiser, or the learned proximal network.
        method: what is done with it.
        weight: of the prior, beside |A x - y|^2 / 2, where the method has one and the user gave it.
        samples: of each slice.
        seed: of all noise.
        reference: how the image to compare with is made; None for no check.
        pixel_size: of the images, mm; None if unknown.
        settings: plain words and numbers for the sidecar.
    """

    scan: Scan
    level: NoiseLevel
    prior: Fitted
    method: LearnedMethod
    weight: float | None
    samples: int
    seed: int
    reference: Plan | None
    pixel_size: tuple[float, ...] | None
    settings: dict[str, Any]

    @property
    def iterations(self) -> int:
        """Of a slice at most, of all samples and of the check together."""
        return self.samples * self.method.algorithm.iterations + self._ahead

    @property
    def _ahead(self) -> int:
        return 0 if self.reference is None else self.reference.iterations

    def lines(self) -> list[str]:
        """What the user should know before it starts."""
        return words_of(self.settings)

    def solve(
        self, index: int, stop: Event, tick: Callable[[int], None], before: Finished | None = None
    ) -> Finished | None:
        """A slice in scaled units, or None if `stop` was set before its first image.

        Args:
            index: of the slice.
            stop: looked at between iterations.
            tick: called with the number of iterations done.
            before: the samples that an interrupted run has left.
        """
        reference = None if self.reference is None else self.reference.solve(index, stop, tick)
        if stop.is_set():
            return None
        problem = noisy_problem(self.scan, index, self.level)
        drawn = self._draw(problem, index, stop, tick, before)
        if drawn is None:
            return None
        result = replace(drawn.result, x=self.scan.covered(index, drawn.result.x))
        std = None if drawn.std is None else self.scan.covered(index, drawn.std)
        found = judge(
            problem,
            result.x,
            None if reference is None else reference.result.x,
            pixel_size=self.pixel_size,
            trained_sizes=self.prior.pixel_sizes,
        )
        trust = {
            "chi-square": _plain(float(found.chi_square[0])),
            "difference from tv": _plain(float(found.disagreement[0])),
            "reasons": list(found.reasons[0]),
        }
        return Finished(result, std, {**drawn.about, "trust": trust})

    def _draw(
        self, problem: Problem, index: int, stop: Event, tick: Callable[[int], None], before: Finished | None
    ) -> Finished | None:
        """The mean of the samples, as far as they come."""
        moments, chi_square, first = _kept(before, problem.y.device)
        each, seconds = self.method.algorithm.iterations, 0.0 if first is None else first.seconds
        batch = SAMPLES_AT_ONCE if problem.y.is_cuda else 1
        while moments.count < self.samples:
            count = min(batch, self.samples - moments.count)
            run = self._run(problem, index, moments.count, count)
            for _ in run:
                tick(self._ahead + moments.count * each + count * run.iteration)
                if stop.is_set():
                    break
            found = run.reconstruction()
            seconds += found.seconds
            if run.iteration < each and stop.is_set():
                if first is None:  # half a sample is better than nothing
                    return None if not run.iteration else Finished(_one(found), None, _about([], 0))
                first = replace(first, status=(Status.INTERRUPTED,))
                break
            if Status.NOT_FINITE in found.status:
                return Finished(replace(_one(found), status=(Status.NOT_FINITE,)))
            moments = moments.add(found.x)
            chi_square += found.chi_square.tolist()
            if first is None:
                first = _one(found)
            elif Status.INTERRUPTED in first.status:  # it is a sample that an interrupted run had finished
                first = replace(first, status=found.status[:1])
        assert first is not None
        std = moments.std[None] if moments.count > 1 else None
        mean = replace(first, x=moments.mean[None], seconds=seconds)
        return Finished(mean, std, _about(chi_square, moments.count))

    def _run(self, problem: Problem, index: int, done: int, count: int) -> Run[Any, Any]:
        """Iterations of some samples side by side, or of the one image of a method that does not sample."""
        if not self.method.preset.samples:
            one_weight = None if self.weight is None else self.weight / _number(self.scan, index, self.level) ** 2
            source = chain_generator(self.seed, 0, index, problem.y.device)
            return descent(self.method, self.prior, problem, one_weight, source, self.scan.start(index))
        algorithm: Any = self.method.algorithm
        if isinstance(algorithm, DPS):  # its gradient grows with |A|, which has units
            like, number = torch.zeros_like(problem.backprojection()), _number(self.scan, index, self.level)
            algorithm = replace(algorithm, weight=algorithm.weight / (number * float(curvature(problem, like)) ** 0.5))
        generators = [chain_generator(self.seed, done + k, index, problem.y.device) for k in range(count)]
        wide = replace(problem, y=problem.y.expand(count, *problem.y.shape[1:]))
        made: Run[Any, Any] = replace(algorithm, generator=generators).iterate(wide, self.prior.model)
        return made


def make_learned_plan(scan: Scan, level: NoiseLevel, wishes: LearnedWishes) -> LearnedPlan:
    """Choose what the user left open, with a learned prior.

    Raises:
        FileNotFoundError, ImportError: the prior is not there.
        TypeError, ValueError: names or options that are unknown, or that do not go together; no noise level.
    """
    require_count("samples", wishes.samples)
    found = config.learned_prior(config.parse(str(wishes.prior)))
    of_potentials = not isinstance(found.model, Denoiser)
    spec = config.parse(wishes.algorithm or (DEFAULT_OF_POTENTIALS if of_potentials else DEFAULT))
    method = config.learned_method(spec, scan.kind, wishes.iterations)
    if method.preset.of_potentials != of_potentials:
        kinds = ("a denoiser", "a learned proximal network")
        able = ", ".join(name for name, one in config.PRESETS.items() if one.of_potentials == of_potentials)
        raise ValueError(
            f"{method.name} goes with {kinds[not of_potentials]}, but prior {wishes.prior} is {kinds[of_potentials]}; "
            f"use {able}"
        )
    if wishes.samples > 1 and not method.preset.samples:
        able = ", ".join(name for name, one in config.PRESETS.items() if one.samples)
        raise ValueError(f"--samples goes with {able}, but {method.name} gives one image; leave it away")
    if level.sigma is None:
        raise ValueError(f"a learned prior needs the noise level, which is {level.source}; give --sigma")
    operator = scan.operator(reference_slice(scan))
    if method.name in DECOMPOSING and not isinstance(operator, Decomposable):
        raise ValueError(
            f"{method.name} needs an operator whose singular values are known, as those of fourier, mask and blur are, "
            f"got {type(operator).__name__}; use dds or diffpir"
        )
    method, weight, about = _weighted(method, wishes.weight)
    if wishes.beside is not None:
        method, more = _beside(method, wishes.beside, scan, level, wishes.seed)
        about |= more
    prior = fitted(found, str(wishes.prior), scan)
    method = sized(method, spec.options, prior.size)
    settings = scan.about() | {
        "scale": f"{scan.scale:.6g} ({scan.scale_rule})",
        "noise level": words_of_level(level),
        **prior.about,
        "algorithm": f"{method.name}: {shown(_without_regularizer(method.algorithm))}",
        **about,
        "samples": wishes.samples,
        "check": "against total variation" if wishes.check else "of the residual only",
    }
    reference = _reference(scan, level, wishes.seed) if wishes.check else None
    plan = LearnedPlan(
        scan, level, prior, method, weight, wishes.samples, wishes.seed, reference, _pixel_size(scan), settings
    )
    index = reference_slice(scan)
    plan._run(noisy_problem(scan, index, level), index, 0, 1)  # whether all of it goes together
    return plan


def noisy_problem(scan: Scan, index: int, level: NoiseLevel) -> Problem:
    """A slice with the misfit |A x - y|^2 / (2 sigma^2) in scaled units.

    Raises:
        ValueError: the noise level is not known.
    """
    sigma = scan.sigma(index, level)
    if sigma is None:
        raise ValueError(f"the noise level must be known, but it is {level.source}; give --sigma")
    return Problem(scan.operator(index), scan.y(index), Gaussian(sigma))


def _number(scan: Scan, index: int, level: NoiseLevel) -> float:
    """One noise level for all of a slice, in scaled units: weights beside |A x - y|^2 / 2 are taken over its square."""
    sigma = scan.sigma(index, level)
    assert sigma is not None
    return mean_level(sigma) if isinstance(sigma, Tensor) else sigma


def _weighted(method: LearnedMethod, wanted: str | None) -> tuple[LearnedMethod, float | None, dict[str, Any]]:
    """The method without its weight, the weight beside |A x - y|^2 / 2 if one was given, and what was decided."""
    options = dict(method.options)
    said = options.pop("weight", None)
    takes = method.preset.prior is not None and "weight" in config.keys(method.preset.prior)
    if method.name == "lpn-pgd" and (said is not None or wanted is not None):
        raise ValueError("the weight of lpn-pgd follows from its step; leave it away, or use lpn-admm")
    if wanted is not None:
        if wanted == "auto" or not takes or said is not None:
            reason = (
                f"takes its weight, which is of another kind, as an option, {method.name}:weight=NUMBER"
                if method.name == "dps" and wanted != "auto"
                else "has no weight" if not takes
                else "has its weight already" if said is not None
                else "has no rule that chooses its weight"
            )  # fmt: skip
            raise ValueError(f"{method.name} {reason}; leave --weight {wanted} away")
        said = parse_weight(wanted)
    elif said is not None:
        said = parse_weight(str(said))
    if not takes:
        return method, None, {}
    if method.name == "lpn-admm" and said is not None:
        require_positive("weight of lpn-admm", said)
    source = "the usual one" if said is None else "given; beside |A x - y|^2 / 2 with y over the scale"
    return replace(method, options=options), said, {"weight": said, "weight source": source}


def _beside(
    method: LearnedMethod, text: str, scan: Scan, level: NoiseLevel, seed: int
) -> tuple[LearnedMethod, dict[str, Any]]:
    """The method with an analytic prior beside the learned one, and what was decided."""
    algorithm = method.algorithm
    if not isinstance(algorithm, DDS):
        raise ValueError(f"--with goes with dds, got {method.name}; leave one of them away")
    spec = config.parse(text)
    cls = config.choose("regularizer", spec.name, config.REGULARIZERS)
    index = reference_slice(scan)
    options = dict(spec.options)
    weight, source = options.pop("weight", None), "given"
    if "weight" not in config.keys(cls):
        made = scan_prior(text, None, scan)
    else:
        if weight is None:
            weight, source = usual_weight(spec.name, scan, index, level, seed)
        weight = parse_weight(str(weight))
        rest = f"{spec.name}:{','.join(f'{key}={one}' for key, one in options.items())}"
        made = scan_prior(rest, weight / _number(scan, index, level) ** 2, scan)
    if isinstance(made, Proximal) and not isinstance(made, Splitting):
        made = _Alone(made)
    words = {"with": text, "with weight": weight, "with weight source": source}
    return replace(method, algorithm=replace(algorithm, regularizer=made)), words


@dataclass(frozen=True, eq=False)
class _Alone:
    """A prior with a prox as a sum of one term, which is what stands beside the data step of DDS."""

    prior: Proximal

    @property
    def terms(self) -> tuple[tuple[None, Proximal], ...]:
        """The prior itself."""
        return ((None, self.prior),)


def _without_regularizer(algorithm: Any) -> Any:
    """For its name and options in one line."""
    return replace(algorithm, regularizer=None) if isinstance(algorithm, DDS) else algorithm


@dataclass(frozen=True)
class _Reference:
    """What is wished of the image to compare with."""

    algorithm: str
    iterations: int
    seed: int
    prior: str = "tv"
    weight: str | None = None
    rule: str | None = None


def _reference(scan: Scan, level: NoiseLevel, seed: int) -> Plan:
    """Total variation with its usual weight."""
    algorithm = scan.algorithm if scan.algorithm.startswith("pdhg") else "pdhg:rtol=1e-4"
    return make_plan(scan, level, _Reference(algorithm, 150, seed))


def _pixel_size(scan: Scan) -> tuple[float, ...] | None:
    """Of an image's last two axes."""
    index = reference_slice(scan)
    size = scan.image(torch.zeros_like(scan.operator(index).adjoint(scan.y(index))).cpu()).voxel_size
    return None if size is None else tuple(size[-2:])


def _one(found: Reconstruction) -> Reconstruction:
    """The first of samples that were made side by side."""
    history = replace(found.history, **{
        name: getattr(found.history, name)[:, :1] for name in ("change", "misfit", "penalty")
    })  # fmt: skip
    return replace(found, x=found.x[:1], history=history, status=found.status[:1], count=found.count[:1])


def _kept(before: Finished | None, device: torch.device) -> tuple[Moments, list[float], Reconstruction | None]:
    """Samples of an interrupted run: their moments, the chi-square of each, and the record of the first."""
    if before is None:
        return Moments(), [], None
    chi_square = [math.nan if one is None else one for one in before.about["chi-square of samples"]]
    x, count = before.result.x[0].to(device), before.samples
    squares = torch.zeros_like(x.real) if before.std is None else before.std[0].to(device).square() * (count - 1)
    return Moments(count, x, squares), chi_square, before.result


def _about(chi_square: list[float], samples: int) -> dict[str, Any]:
    return {"samples": samples, "chi-square of samples": [_plain(one) for one in chi_square]}


def _plain(value: float) -> float | None:
    """A number that JSON can hold."""
    return round(value, 5) if math.isfinite(value) else None
