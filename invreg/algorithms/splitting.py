"""What PDHG and ADMM share: how a prior falls into terms h_i(L_i x), and how their residuals are balanced."""

from __future__ import annotations

import torch
from torch import Tensor

from invreg.interfaces import LinearOperator, Proximal, Splitting

Terms = tuple[tuple[LinearOperator | None, Proximal], ...]
SplittablePrior = Splitting | Proximal | None
BAND = 1.5**2
"""Ratio of squared residuals that is left alone."""
FURTHEST = 10**2
"""Ratio of squared residuals beyond which none moves a penalty further."""


def terms_of(prior: SplittablePrior, algorithm: str) -> Terms:
    """The terms of a prior; a prior with a prox alone is one term, no prior is none.

    Raises:
        TypeError: the prior has neither terms nor a prox.
    """
    if prior is None:
        return ()
    if isinstance(prior, Splitting):
        return prior.terms
    if isinstance(prior, Proximal):
        return ((None, prior),)
    raise TypeError(
        f"{algorithm} needs a prior with terms or a prox, got {type(prior).__name__}; "
        "GradientDescent takes any prior with a gradient"
    )


def apply(operator: LinearOperator | None, x: Tensor) -> Tensor:
    """L x, where None is the identity."""
    return x if operator is None else operator(x)


def apply_adjoint(operator: LinearOperator | None, u: Tensor) -> Tensor:
    """L^H u, where None is the identity."""
    return u if operator is None else operator.adjoint(u)


def apply_normal(operator: LinearOperator | None, x: Tensor) -> Tensor:
    """L^H L x, where None is the identity."""
    return x if operator is None else operator.normal(x)


def balanced(penalty: Tensor, agility: Tensor, primal: Tensor, dual: Tensor, *, decay: float) -> tuple[Tensor, Tensor]:
    """A penalty moved towards equal residuals, by factors that fade, and what is left of its agility; (B,) each.

    Args:
        penalty: the larger, the smaller the primal residual becomes.
        agility: the power of the ratio of residuals by which the penalty changes.
        primal, dual: squared residuals in the unit of the objective, so that the scale of the data does not matter.
        decay: < 1, by which every change lessens the agility: the changes are summable, so convergence is kept.

    Source: Goldstein, Li and Yuan 2015, "Adaptive primal-dual splitting methods", Alg. 1, with factors that follow the
    ratio of the residuals, as in Wohlberg 2017, "ADMM penalty parameter selection by residual balancing", sec. 3.
    """
    ratio = (primal / dual).nan_to_num(1.0, torch.inf).clamp(1 / FURTHEST, FURTHEST)
    moves = (ratio > BAND) | (ratio < 1 / BAND)
    factor = torch.where(moves, ratio ** (agility / 2), 1)
    return penalty * factor, torch.where(moves, decay * agility, agility)
