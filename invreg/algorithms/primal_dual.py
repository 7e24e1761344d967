"""The primal-dual hybrid gradient method with step sizes that balance themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_positive
from invreg.algorithms.loop import Algorithm, starting_point
from invreg.algorithms.smooth import annealed, inverse
from invreg.algorithms.splitting import SplittablePrior, apply, apply_adjoint, apply_normal, terms_of
from invreg.interfaces import LinearOperator, Proximal, ProximalNoise
from invreg.linalg import expand, largest_eigenvalue, norm
from invreg.problem import Problem


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
        duals: one for each dual block, shaped as K_i x.
        images: K_i x of each block.
        pull: sum_i K_i^H u_i, (B, *signal).
        scales: 1 / |K_i|^2 of each block, (B,): the ratios of the dual step sizes.
        bound: largest eigenvalue of sum_i scales_i K_i^H K_i, (B,).
        tau: primal step size, (B,).
        agility: by what fraction tau may change next, (B,).
    """

    x: Tensor
    duals: tuple[Tensor, ...]
    images: tuple[Tensor, ...]
    pull: Tensor
    scales: tuple[Tensor, ...]
    bound: Tensor
    tau: Tensor
    agility: Tensor


@dataclass(frozen=True, kw_only=True)
class PDHG(Algorithm[SplittablePrior, PrimalDualState]):
    """Saddle-point iterations for nll(A x, y) + sum_i h_i(L_i x): no inner solver, every term by its prox.

    The likelihood is dualised with A; the first term of the prior without an operator (a constraint, say) is taken
    by its prox in x, so that x obeys it. Dual step sizes are 1 / |K_i|^2 times a common factor, so blocks of any
    scale go together; tau of each sample moves until primal and dual residuals are of one size, ever more slowly.

    Args:
        tau: first primal step size, > 0, in units of 1 / sqrt(largest eigenvalue of sum_i K_i^H K_i / |K_i|^2) times
            the typical 1 / |K_i|.
        adaptive: balance the residuals; False keeps the first step sizes.

    Source: Chambolle and Pock 2011, Alg. 1 with theta = 1; block step sizes: Pock and Chambolle 2011, in the norm of
    each block; balancing: Goldstein, Li and Yuan 2015, "Adaptive primal-dual splitting methods", Alg. 1, with
    residuals relative to the size of u and K x.
    """

    tau: float = 1.0
    adaptive: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("tau", self.tau)

    def init(self, problem: Problem, prior: SplittablePrior, x0: Tensor | None) -> PrimalDualState:
        x = starting_point(problem, x0)
        blocks, _ = _blocks(problem, annealed(prior, 1 / self.iterations))
        sizes = [torch.ones_like(norm(x)) if k is None else largest_eigenvalue(k.normal, x) for k, _ in blocks]
        scales = tuple(inverse(size) for size in sizes)

        def combined(v: Tensor) -> Tensor:
            return sum(
                (expand(s, v) * apply_normal(k, v) for s, (k, _) in zip(scales, blocks, strict=True)),
                start=torch.zeros_like(v),
            )

        bound = largest_eigenvalue(combined, x)
        images = tuple(apply(k, x) for k, _ in blocks)
        duals = tuple(torch.zeros_like(image) for image in images)
        # tau for which tau and the first dual step agree, had that block been scaled to norm 1
        tau = self.tau * scales[0] * bound.rsqrt()
        return PrimalDualState(x, duals, images, torch.zeros_like(x), scales, bound, tau, torch.full_like(tau, 0.5))

    def step(
        self, problem: Problem, prior: SplittablePrior, state: PrimalDualState, progress: float
    ) -> PrimalDualState:
        blocks, constraint = _blocks(problem, annealed(prior, progress))
        tau = expand(state.tau, state.x)
        x = state.x - tau * state.pull
        if constraint is not None:
            x = constraint.prox(x, tau)
        images, duals = [], []
        pull = torch.zeros_like(x)
        for (k, term), u, before, scale in zip(blocks, state.duals, state.images, state.scales, strict=True):
            image = apply(k, x)
            sigma = expand(_dual_step(state, scale), image)
            # prox of sigma h* at v by Moreau: v - sigma prox_{h / sigma}(v / sigma)
            v = u + sigma * (2 * image - before)
            u = v - sigma * term.prox(v / sigma, 1 / sigma)
            images.append(image)
            duals.append(u)
            pull = pull + apply_adjoint(k, u)
        new = PrimalDualState(x, tuple(duals), tuple(images), pull, state.scales, state.bound, state.tau, state.agility)
        return _balanced(state, new) if self.adaptive else new


def _blocks(
    problem: Problem, prior: SplittablePrior
) -> tuple[list[tuple[LinearOperator | None, Proximal]], Proximal | None]:
    """The dual blocks, the likelihood first, and the term that is taken in x."""
    operator, noise = problem.operator, problem.noise
    if not isinstance(operator, LinearOperator) or not isinstance(noise, ProximalNoise):
        raise TypeError(
            "PDHG needs a LinearOperator and a noise model with a prox, got "
            f"{type(operator).__name__} and {type(noise).__name__}; FISTA and GradientDescent take any"
        )
    terms = list(terms_of(prior, "PDHG"))
    first = next((i for i, (k, _) in enumerate(terms) if k is None), None)
    constraint = None if first is None else terms.pop(first)[1]
    return [(operator, _Likelihood(noise, problem.y)), *terms], constraint


def _dual_step(state: PrimalDualState, scale: Tensor) -> Tensor:
    """sigma_i with tau * largest eigenvalue of sum_i sigma_i K_i^H K_i just below 1, (B,)."""
    return 0.999 * scale / (state.tau * state.bound)


def _balanced(old: PrimalDualState, new: PrimalDualState) -> PrimalDualState:
    """The new state with tau moved towards equal relative residuals."""
    dx, dpull = old.x - new.x, old.pull - new.pull
    primal = norm(dx / expand(old.tau, dx) - dpull)
    dual, image_size, dual_size = torch.zeros_like(primal), torch.zeros_like(primal), torch.zeros_like(primal)
    for scale, u, v, image, before in zip(old.scales, old.duals, new.duals, new.images, old.images, strict=True):
        sigma = _dual_step(old, scale)
        dual = dual + scale * norm((u - v) / expand(sigma, u) - (before - image)).square()
        image_size = image_size + scale * norm(image).square()
        dual_size = dual_size + norm(v).square() / scale
    # K^H u vanishes at a solution without constraint, so the residual is measured against its parts
    primal = primal / _nonzero(dual_size.sqrt())
    dual = dual.sqrt() / _nonzero(image_size.sqrt())
    up, down = primal > 1.5 * dual, dual > 1.5 * primal
    factor = torch.where(up, 1 / (1 - new.agility), torch.where(down, 1 - new.agility, 1))
    agility = torch.where(up | down, 0.95 * new.agility, new.agility)
    return PrimalDualState(new.x, new.duals, new.images, new.pull, new.scales, new.bound, new.tau * factor, agility)


def _nonzero(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1)
