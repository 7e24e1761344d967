"""What PDHG and ADMM share: how a prior falls into terms h_i(L_i x)."""

from __future__ import annotations

from torch import Tensor

from invreg.interfaces import LinearOperator, Proximal, Splitting

Terms = tuple[tuple[LinearOperator | None, Proximal], ...]
SplittablePrior = Splitting | Proximal | None


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
