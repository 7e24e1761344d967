"""The alternating direction method of multipliers, its linear systems solved by warm-started conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from invreg._check import require_count, require_positive, warn
from invreg.algorithms.loop import Algorithm, starting_point
from invreg.algorithms.proved_step import TrainedProximal, check_step, warn_if_learned
from invreg.algorithms.smooth import annealed, curvature, inverse
from invreg.algorithms.splitting import (
    SplittablePrior,
    Terms,
    apply,
    apply_adjoint,
    apply_normal,
    balanced,
    terms_of,
)
from invreg.lanczos import largest_eigenvalue
from invreg.linalg import cg, expand, inner, norm
from invreg.problem import Problem

MOST_RATIO = 100
"""Of the sizes of splits and duals, either way, beyond which rho moves no further."""


@dataclass(frozen=True, eq=False)
class ADMMState:
    """Where ADMM is.

    Args:
        x: the image, (B, *signal): the split variable of the first term without operator, so that it obeys that term
            if it is a constraint, else the solution of the linear system.
        solution: the solution of the last linear system, (B, *signal).
        splits: z_i, one for each term, shaped as L_i x.
        duals: u_i, scaled by rho, shaped as L_i x.
        rho: penalty of each sample, (B,).
        agility: how far rho may follow the residuals next, (B,).
    """

    x: Tensor
    solution: Tensor
    splits: tuple[Tensor, ...]
    duals: tuple[Tensor, ...]
    rho: Tensor
    agility: Tensor


@dataclass(frozen=True, kw_only=True)
class ADMM(Algorithm[SplittablePrior, ADMMState]):
    """Splits h_i(z_i) with z_i = L_i x off a quadratic misfit; plug-and-play where a term's prox is a denoiser.

    Put a constraint in front of other terms without operator: the image obeys the first of them, the others in the
    limit only.

    Args:
        rho: penalty, > 0; default |A|^2 / sigma^2 over |sum_i L_i^H L_i| of each sample.
        relaxation: over-relaxation, 0 < relaxation < 2.
        inner_iterations: conjugate gradients for each linear system, started from the last solution; none are needed
            where the operator offers its closed form and the prior has one term without operator.
        balance: move rho of each sample until primal and dual residuals are of one size, ever more slowly; for
            plug-and-play, where 1 / rho is the denoiser's variance, give `rho` and balance=False.

    Source: Boyd et al. 2011, sec. 3.1, 3.4.3; the balance as in `PDHG`, since rho |z - z_before|^2 is the dual residual
    in the norm of 1 / rho.
    """

    rho: float | None = None
    relaxation: float = 1.6
    inner_iterations: int = 8
    balance: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rho is not None:
            require_positive("rho", self.rho)
        require_positive("relaxation", self.relaxation)
        if self.relaxation >= 2:
            raise ValueError(f"relaxation must be < 2, got {self.relaxation}")
        require_count("inner_iterations", self.inner_iterations)

    def init(self, problem: Problem, prior: SplittablePrior, x0: Tensor | None) -> ADMMState:
        terms = terms_of(annealed(prior, 1 / self.iterations), "ADMM")
        if not problem.is_quadratic:
            raise TypeError(
                "ADMM needs a LinearOperator and Gaussian noise, got "
                f"{type(problem.operator).__name__} and {type(problem.noise).__name__}; PDHG takes noise with a prox"
            )
        if not terms:
            raise TypeError("ADMM needs a prior, got None; ConjugateGradient solves the problem without one")
        x = starting_point(problem, x0)
        bend = None
        if self.rho is None:
            stiffness = largest_eigenvalue(lambda v: _stiffness(terms, v), x)
            bend = curvature(problem, x)
            rho = bend * inverse(stiffness)
            rho = torch.where(rho > 0, rho, 1)  # where the operator is zero, any will do
        else:
            rho = torch.full_like(norm(x), self.rho)
        if isinstance(prior, TrainedProximal):
            self._warn_unless_proved(problem, x, float(rho.min()), bend)
        else:
            warn_if_learned((term for _, term in terms), "several terms")
        splits = tuple(apply(k, x) for k, _ in terms)
        return ADMMState(x, x, splits, tuple(torch.zeros_like(z) for z in splits), rho, torch.full_like(rho, 0.5))

    def _warn_unless_proved(self, problem: Problem, x: Tensor, rho: float, lipschitz: Tensor | None) -> None:
        check_step(problem, x, 1 / rho, lipschitz)
        if self.balance or self.relaxation != 1:
            warn(
                "convergence of ADMM with a learned prox is proved for balance=False and relaxation=1 only, got "
                f"balance={self.balance} and relaxation={self.relaxation}"
            )

    def step(self, problem: Problem, prior: SplittablePrior, state: ADMMState, progress: float) -> ADMMState:
        terms = terms_of(annealed(prior, progress), "ADMM")
        rho = expand(state.rho, state.solution)
        solution = self._solve(problem, terms, state, rho)
        splits, duals = [], []
        for (k, term), z, u in zip(terms, state.splits, state.duals, strict=True):
            image = apply(k, solution)
            relaxed = self.relaxation * image + (1 - self.relaxation) * z
            v = relaxed + u
            z = term.prox(v, 1 / expand(state.rho, v))
            splits.append(z)
            duals.append(v - z)
        plain = next((z for (k, _), z in zip(terms, splits, strict=True) if k is None), solution)
        new = replace(state, x=plain, solution=solution, splits=tuple(splits), duals=tuple(duals))
        return _balanced(state, new) if self.balance else new

    def _solve(self, problem: Problem, terms: Terms, state: ADMMState, rho: Tensor) -> Tensor:
        """argmin_x misfit(x) + rho / 2 sum_i |L_i x - z_i + u_i|^2."""
        centres = [z - u for z, u in zip(state.splits, state.duals, strict=True)]
        n = self.inner_iterations
        if len(terms) == 1 and terms[0][0] is None:
            return problem.prox(centres[0], 1 / rho, x0=state.solution, rtol=0, iterations=n, check_every=n)
        pull = sum(
            (apply_adjoint(k, c) for (k, _), c in zip(terms, centres, strict=True)),
            start=torch.zeros_like(state.solution),
        )
        return cg(
            lambda x: problem.normal(x) + rho * _stiffness(terms, x),
            problem.backprojection() + rho * pull,
            x0=state.solution,
            rtol=0,
            iterations=n,
            check_every=n,
        ).x


def _stiffness(terms: Terms, x: Tensor) -> Tensor:
    """sum_i L_i^H L_i x."""
    return sum((apply_normal(k, x) for k, _ in terms), start=torch.zeros_like(x))


def _balanced(old: ADMMState, new: ADMMState) -> ADMMState:
    """The new state with rho moved towards equal residuals: rho |u - u_before|^2 and rho |z - z_before|^2."""
    primal = dual = dual_size = split_size = torch.zeros_like(old.rho)
    for u, u_before, z, z_before in zip(new.duals, old.duals, new.splits, old.splits, strict=True):
        miss, move = u - u_before, z - z_before
        primal, dual = primal + inner(miss, miss), dual + inner(move, move)
        dual_size, split_size = dual_size + inner(u, u), split_size + inner(z, z)
    # a weak prior would draw rho to 0, a strong one to infinity, until z + u has no digits left of one of the two
    most = torch.maximum(primal, dual)
    primal = torch.where(dual_size > MOST_RATIO**2 * split_size, most, primal)
    dual = torch.where(split_size > MOST_RATIO**2 * dual_size, most, dual)
    rho, agility = balanced(old.rho, old.agility, primal, dual, decay=0.97)
    duals = tuple(expand(old.rho / rho, u) * u for u in new.duals)  # rho u is the multiplier, which stays
    return replace(new, duals=duals, rho=rho, agility=agility)
