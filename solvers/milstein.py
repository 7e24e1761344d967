"""Milstein's method and the Euler-Heun method: strong order 1 where the noise commutes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .jacobian import pushed
from .method import CALCULI, NOISES, Dynamics, Slope, StrongOrders, Time
from .noisy import NoisyStep, StochasticMethod
from .runge_kutta import stage_times
from .stochastic import Driven, driven

MILSTEIN: StrongOrders = {(calculus, noise): 1.0 for calculus in CALCULI for noise in NOISES if noise != "general"}
EULER_HEUN: StrongOrders = {
    ("ito", "additive"): 1.0,
    ("stratonovich", "general"): 0.5,
    **{("stratonovich", noise): 1.0 for noise in NOISES if noise != "general"},
}


@dataclass(frozen=True)
class Milstein(StochasticMethod):
    """Milstein's method, strong order 1 for noise that commutes, of Ito or Stratonovich.

    Diagonal noise is meant strictly: entry i of the diffusion depends on entry i of y only. The error estimate is the
    difference to Euler-Maruyama and half the change of the drift over the step, one more evaluation.

    Args:
        derivative_free: whether the derivative of the diffusion along itself is a difference quotient instead of a
            Jacobian-vector product. For `commutative` noise of Ito 2 m more evaluations.

    Source: Kloeden and Platen 1992, 10.3 and 11.1.
    """

    derivative_free: bool = False
    strong_orders = MILSTEIN

    evaluations = 6

    def step(self, dynamics: Dynamics, t: Time, dt: Time, y: Tensor, slope: Slope = None) -> NoisyStep:
        noisy, h = driven(dynamics, self), float(dt)
        begin, end = stage_times((0.0, 1.0), t, h, y)
        w = noisy.increment(y)
        f, g = noisy.drift(begin, y), noisy.diffusion(begin, y)
        moved = noisy.applied(g, w)
        after = torch.add(y, f, alpha=h) + moved
        if noisy.kind.noise == "additive":
            correction = torch.zeros_like(y)
        elif noisy.kind.matrix:
            correction = self._of_channels(noisy, begin, y, g, w, moved, h)
        elif self.derivative_free and noisy.kind.calculus == "stratonovich":
            correction = noisy.applied(noisy.diffusion(begin, y + moved) - g, w) * 0.5
        else:
            square = w * w - h if noisy.kind.calculus == "ito" else w * w
            correction = self._along(noisy, begin, y, g, h) * (0.5 * square)
        after = after + correction
        return NoisyStep(y, after, lambda: torch.add(correction, noisy.drift(end, after) - f, alpha=0.5 * h))

    def _along(self, noisy: Driven, t: Tensor, y: Tensor, g: Tensor, h: float) -> Tensor:
        """The derivative of the diffusion along itself."""
        if self.derivative_free:
            return (noisy.diffusion(t, torch.add(y, g, alpha=h**0.5)) - g) * float(h**-0.5)
        return pushed(lambda x: noisy.diffusion(t, x), y, g)

    def _of_channels(
        self, noisy: Driven, t: Tensor, y: Tensor, g: Tensor, w: Tensor, moved: Tensor, h: float
    ) -> Tensor:
        """Half the sum over channels j, k of (g_j . grad) g_k (w_j w_k - dt where j is k and the noise is Ito's)."""
        if self.derivative_free:
            total = noisy.applied(noisy.diffusion(t, y + moved) - g, w)
        else:
            total = pushed(lambda x: noisy.applied(noisy.diffusion(t, x), w), y, moved)
        if noisy.kind.calculus == "ito":
            for j in range(g.shape[-1]):
                total = torch.sub(total, self._of_channel(noisy, t, y, g[..., j], j, h), alpha=h)
        return total * 0.5

    def _of_channel(self, noisy: Driven, t: Tensor, y: Tensor, column: Tensor, j: int, h: float) -> Tensor:
        if self.derivative_free:
            step = column * float(h**0.5)  # both ways: the quotient's own error must not have a mean of order sqrt(dt)
            apart = noisy.diffusion(t, y + step)[..., j] - noisy.diffusion(t, y - step)[..., j]
            return apart * float(0.5 * h**-0.5)
        return pushed(lambda x: noisy.diffusion(t, x)[..., j], y, column)


@dataclass(frozen=True)
class EulerHeun(StochasticMethod):
    """The Euler-Heun method for equations of Stratonovich: Euler for the drift, Heun for the noise.

    Strong order 1 for noise that commutes, 0.5 for general noise. The error estimate is the difference to
    Euler-Maruyama and half the change of the drift over the step, one more evaluation.

    Source: Gard 1988; Roberts 2012, "Modify the improved Euler scheme to integrate stochastic differential equations".
    """

    strong_orders = EULER_HEUN

    evaluations = 4

    def step(self, dynamics: Dynamics, t: Time, dt: Time, y: Tensor, slope: Slope = None) -> NoisyStep:
        noisy, h = driven(dynamics, self), float(dt)
        begin, end = stage_times((0.0, 1.0), t, h, y)
        w = noisy.increment(y)
        f, g = noisy.drift(begin, y), noisy.diffusion(begin, y)
        moved = noisy.applied(g, w)
        other = noisy.applied(noisy.diffusion(end, y + moved), w)
        after = torch.add(y, f, alpha=h) + (moved + other) * 0.5
        return NoisyStep(y, after, lambda: torch.add((other - moved) * 0.5, noisy.drift(end, after) - f, alpha=0.5 * h))
