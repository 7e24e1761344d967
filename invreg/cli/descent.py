"""One image by a learned prior: what plug-and-play, RED, RED-Diff and learned proximal networks are run with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from invreg.algorithms import safe_step_size
from invreg.algorithms.loop import Run
from invreg.algorithms.smooth import curvature
from invreg.cli.denoisers import Fitted
from invreg.config import LearnedMethod
from invreg.problem import Problem

DENOISING, RED_DIFF = 2.0, 10.0
"""In noise levels of the image, sigma / |A|: what RED denoises for, and, of an image of size 1, RED-Diff's weight over
|A|^2 / sigma^2."""
RED_DIFF_FROM = 0.3
"""Where the noise levels of RED-Diff begin, of an image of size 1."""


def sized(method: LearnedMethod, options: Mapping[str, Any], size: float) -> LearnedMethod:
    """The method for images of a size, whose usual step of RED-Diff is that of size 1; `options`, the user's, stay."""
    if method.name != "red-diff" or "step_size" in options:
        return method
    algorithm: Any = method.algorithm
    return replace(method, algorithm=replace(algorithm, step_size=algorithm.step_size * size))


def descent(
    method: LearnedMethod,
    prior: Fitted,
    problem: Problem,
    weight: float | None,
    generator: torch.Generator,
    start: Tensor | None,
) -> Run[Any, Any]:
    """Iterations towards the one image of a method that does not sample.

    Args:
        method: of `PRESETS`.
        prior: what the method is about.
        problem: in scaled units, with the noise level.
        weight: of the prior, beside the misfit of `problem`; None for the usual one.
        generator: of all noise.
        start: first image, or None.
    """
    algorithm: Any = method.algorithm
    like = torch.zeros_like(problem.backprojection())
    given: dict[str, Any] = {}
    if prior.sigma is not None:
        step = prior.sigma**2
        if method.name == "lpn-admm":  # at the one rho at which the network is the prox
            weight = 1.0 if weight is None else weight
            algorithm = replace(algorithm, rho=weight / step)
        else:  # at the one weight
            size = safe_step_size(problem, like)
            weight, algorithm = step / size, replace(algorithm, step_size=size)
        given = {"step": step, "scale": prior.scale, "weight": weight}
    elif method.name in ("red", "red-diff"):
        precision = float(curvature(problem, like))
        sigma = precision**-0.5 if precision > 0 else 1.0
        if method.name == "red":
            weight = precision / DENOISING**2 if weight is None else weight
            given = {"sigma": DENOISING * sigma, "weight": weight}
            if algorithm.step_size is None:
                algorithm = replace(algorithm, step_size=1 / (precision + weight))
        else:
            model: Any = prior.model
            given = {
                "weight": RED_DIFF * sigma / prior.size * precision if weight is None else weight,
                "sigma_max": min(RED_DIFF_FROM * prior.size, model.sigma_range[1]),
                "generator": generator,
            }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "convergence with a learned prox")  # docs/cli.md: where lpn-admm is proved
        made: Run[Any, Any] = algorithm.iterate(problem, method.prior(prior.model, given), start)
    return made
