"""The primal-dual hybrid gradient method, with step sizes for each block and a balance that finds itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from invreg._check import require_positive
from invreg.algorithms.loop import Algorithm, starting_point
from invreg.algorithms.proved_step import warn_if_learned
from invreg.algorithms.smooth import annealed, curvature, inverse
from invreg.algorithms.splitting import SplittablePrior, apply, apply_adjoint, apply_normal, balanced, terms_of
from invreg.interfaces import LinearOperator, Proximal, ProximalNoise
from invreg.lanczos import largest_eigenvalue
from invreg.linalg import expand, inner, norm
from invreg.problem import Problem

Blocks = tuple[tuple[LinearOperator | None, Proximal], ...]

GRADIENT_SHARE = 0.55
"""Of the Lipschitz constant of an explicit gradient that 1 / tau must hold; convergence needs more than a half."""


@dataclass(frozen=True)
class _Likelihood:
    """nll(., y) as one more proximal term."""

    noise: ProximalNoise
    y: Tensor

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        return self.noise.prox(x, self.y, step)


@dataclass(frozen=True, eq=False)
class PrimalDualState:
    """Where PDHG is.

    Args:
        x: the image, (B, *signal).
        duals: u_i, one for each dual block, shaped as K_i x.
        images: K_i x of each block.
        pull: sum_i K_i^H u_i, plus the gradient of the misfit if that is explicit, (B, *signal).
        scales: 1 / |K_i|^2 of each block, (B,): the ratios of the dual step sizes.
        bound: largest eigenvalue of sum_i scales_i K_i^H K_i, (B,).
        curvature: Lipschitz constant of the explicit gradient, (B,); 0 if there is none.
        ratio: dual step size over primal step size, (B,).
        agility: how far the ratio may follow the residuals next, (B,).
    """

    x: Tensor
    duals: tuple[Tensor, ...]
    images: tuple[Tensor, ...]
    pull: Tensor
    scales: tuple[Tensor, ...]
    bound: Tensor
    curvature: Tensor
    ratio: Tensor
    agility: Tensor


@dataclass(frozen=True, kw_only=True)
class PDHG(Algorithm[SplittablePrior, PrimalDualState]):
    """Saddle-point iterations for nll(A x, y) + sum_i h_i(L_i x): no inner solver, every term by its prox.

    The likelihood is dualised with A. The first term of the prior without an operator (a constraint, say) is taken by
    its prox in x, so that x obeys it; the others are dual.
    Step sizes: sigma_i = r / |K_i|^2 for each dual block and tau = 1 / (0.55 L + r |sum_i K_i^H K_i / |K_i|^2|) with L
    the Lipschitz constant of an explicit gradient, else 0, which is within the bounds of convergence for every r > 0.

    Args:
        explicit: take a quadratic misfit by its gradient instead: it saves the memory of a few y, and A^H A may be
            cheaper than A and A^H, but a badly conditioned A takes more iterations.
        adaptive: move r of each sample until primal and dual residuals are of one size, ever more slowly.
        balance: factor on the first r, > 0, which otherwise follows from the curvature of the misfit.

    Source: Chambolle and Pock 2011, Alg. 1 with theta = 1; Condat 2013 and Vu 2013 for the explicit gradient; block
    step sizes: Pock and Chambolle 2011, in the norm of each block; balancing: Goldstein, Li and Yuan 2015, "Adaptive
    primal-dual splitting methods", Alg. 1, by factors that follow the residuals in the norms of the step sizes,
    tau |p|^2 and sum_i sigma_i |d_i|^2, which carry the unit of the objective, so that the scale of the data does not
    matter.
    """

    explicit: bool = False
    adaptive: bool = True
    balance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("balance", self.balance)

    def init(self, problem: Problem, prior: SplittablePrior, x0: Tensor | None) -> PrimalDualState:
        first = annealed(prior, 1 / self.iterations)
        blocks, _ = self._split(problem, first)
        warn_if_learned((term for _, term in terms_of(first, "PDHG")), "PDHG")
        x = starting_point(problem, x0)
        one = torch.ones_like(norm(x))
        scales = tuple(one if k is None else inverse(largest_eigenvalue(k.normal, x)) for k, _ in blocks)

        def combined(v: Tensor) -> Tensor:
            return _sum([expand(s, v) * apply_normal(k, v) for s, (k, _) in zip(scales, blocks, strict=True)], v)

        bound = largest_eigenvalue(combined, x) if blocks else torch.zeros_like(one)
        bend = _typical_curvature(problem, x)
        explicit = self._takes_gradient(problem)
        images = tuple(apply(k, x) for k, _ in blocks)
        return PrimalDualState(
            x=x,
            duals=tuple(torch.zeros_like(image) for image in images),
            images=images,
            pull=problem.misfit_gradient(x) if explicit else torch.zeros_like(x),
            scales=scales,
            bound=bound,
            curvature=bend if explicit else torch.zeros_like(bend),
            ratio=self.balance * torch.where(bend > 0, bend, 1) * inverse(bound),
            agility=torch.full_like(one, 0.2),
        )

    def step(
        self, problem: Problem, prior: SplittablePrior, state: PrimalDualState, progress: float
    ) -> PrimalDualState:
        blocks, primal = self._split(problem, annealed(prior, progress))
        tau = inverse(GRADIENT_SHARE * state.curvature + state.ratio * state.bound)
        step = expand(tau, state.x)
        x = state.x - step * state.pull
        if primal is not None:
            x = primal.prox(x, step)
        images, duals, pulls = [], [], []
        for (k, term), u, before, scale in zip(blocks, state.duals, state.images, state.scales, strict=True):
            image = apply(k, x)
            sigma = expand(state.ratio * scale, image)
            # prox of sigma h* at v by Moreau: v - sigma prox_{h / sigma}(v / sigma)
            v = u + sigma * (2 * image - before)
            u = v - sigma * term.prox(v / sigma, 1 / sigma)
            images.append(image)
            duals.append(u)
            pulls.append(apply_adjoint(k, u))
        if self._takes_gradient(problem):
            pulls.append(problem.misfit_gradient(x))
        new = replace(state, x=x, duals=tuple(duals), images=tuple(images), pull=_sum(pulls, x))
        return _balanced(state, new, tau) if self.adaptive and blocks else new

    def _takes_gradient(self, problem: Problem) -> bool:
        return self.explicit and problem.is_quadratic

    def _split(self, problem: Problem, prior: SplittablePrior) -> tuple[Blocks, Proximal | None]:
        """The dual blocks, the likelihood first if it is one, and the term that is taken in x."""
        operator, noise = problem.operator, problem.noise
        if not isinstance(operator, LinearOperator) or not isinstance(noise, ProximalNoise):
            raise TypeError(
                "PDHG needs a LinearOperator and a noise model with a prox, got "
                f"{type(operator).__name__} and {type(noise).__name__}; FISTA and GradientDescent take any"
            )
        terms = terms_of(prior, "PDHG")
        first = next((i for i, (k, _) in enumerate(terms) if k is None), len(terms))
        dual = (*terms[:first], *terms[first + 1 :])
        primal = terms[first][1] if first < len(terms) else None
        return dual if self._takes_gradient(problem) else ((operator, _Likelihood(noise, problem.y)), *dual), primal


def _sum(parts: list[Tensor], like: Tensor) -> Tensor:
    return sum(parts[1:], start=parts[0]) if parts else torch.zeros_like(like)


def _balanced(old: PrimalDualState, new: PrimalDualState, tau: Tensor) -> PrimalDualState:
    """The new state with the ratio moved towards equal residuals."""
    off = (old.x - new.x) / expand(tau, new.x) - (old.pull - new.pull)
    # an explicit gradient bounds tau whatever the ratio: what the ratio does not govern must not drive it to zero
    share = old.ratio * old.bound * tau
    primal = share**2 * tau * inner(off, off)
    dual = torch.zeros_like(primal)
    parts = zip(old.scales, old.duals, new.duals, old.images, new.images, strict=True)
    for scale, u, u_new, image, image_new in parts:
        sigma = old.ratio * scale
        off = (u - u_new) / expand(sigma, u) - (image - image_new)
        dual = dual + sigma * inner(off, off)
    ratio, agility = balanced(old.ratio, old.agility, dual, primal, decay=0.96)
    return replace(new, ratio=ratio, agility=agility)


def _typical_curvature(problem: Problem, like: Tensor) -> Tensor:
    """The scale of the misfit's second derivative along its stiffest direction, (B,).

    Its Lipschitz constant for a quadratic misfit; else |A|^2 times the curvature of the likelihood, by a finite
    difference at half the typical clean measurement that explains y.
    """
    if problem.is_quadratic:
        return curvature(problem, like)
    operator, noise, y = problem.operator, problem.noise, problem.y
    assert isinstance(operator, LinearOperator)
    assert isinstance(noise, ProximalNoise)
    typical = noise.prox(torch.zeros_like(y), y, 1e12).abs().flatten(1).mean(1)
    unit = expand(torch.where(typical > 0, typical, 1), y) * torch.ones_like(y)
    slope = problem.noise.nll_gradient(0.55 * unit, y) - problem.noise.nll_gradient(0.45 * unit, y)
    found = inner(slope, unit) / (0.1 * inner(unit, unit))
    square = largest_eigenvalue(operator.normal, like)
    return square * torch.where((found > 0) & found.isfinite(), found, 1)
