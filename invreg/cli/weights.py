"""`--weight auto`: a weight without ground truth, if the noise level is known."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from invreg import config
from invreg.algorithms import Algorithm, choose_weight
from invreg.cli.noise_level import NoiseLevel, mean_level
from invreg.noise import Gaussian
from invreg.problem import Problem

SPAN = 50.0
"""Weights are sought from the usual one over this to the usual one times this."""


def automatic_weight(
    rule: str,
    problem: Problem,
    sigma: float | Tensor | None,
    level: NoiseLevel,
    make_prior: Callable[[float], Any],
    algorithm: Algorithm[Any, Any],
    usual: float,
    start: Tensor | None,
    seed: int,
) -> tuple[float, str]:
    """A weight for |A x - y|^2 / 2 by a rule of `config.RULES`, and how it came about in words.

    Args:
        rule: its name.
        problem: the slice that stands for all, with relative noise levels.
        sigma: its noise level in scaled units.
        level: where that comes from.
        make_prior: weight -> prior.
        algorithm: solves.
        usual: the weight to search around.
        start: first image.
        seed: of the probe, for the rules that draw one.

    Raises:
        ValueError: no noise level, an unknown rule, or one that finds no weight.
        TypeError: the rule cannot be used with this prior.
    """
    chosen = config.build(config.choose("rule", rule, config.RULES), rule, {}, {"seed": seed})
    if sigma is None:
        raise ValueError(f"--weight auto needs the noise level, which is {level.source}; give --sigma or a weight")
    number = mean_level(sigma) if isinstance(sigma, Tensor) else sigma
    # with the noise level in the likelihood a weight w belongs to |A x - y|^2 / (2 sigma^2); the command line states
    # weights for |A x - y|^2 / 2, which are sigma^2 times as large
    whitened = Problem(problem.operator, problem.y, Gaussian(sigma))
    middle = usual / number**2
    found = choose_weight(whitened, make_prior, algorithm, chosen, bracket=(middle / SPAN, middle * SPAN), x0=start)
    tried = f"{len(found.weights)} reconstructions"
    doubt = "" if found.interior else "; at the end of the search, look at the image"
    return found.weight * number**2, f"by {rule} with {tried}{doubt}"
