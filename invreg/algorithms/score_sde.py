"""Sampling by the reverse of a diffusion, predictor and corrector in turn, with the data met after each."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from invreg._check import require_count, require_positive
from invreg.algorithms.loop import Sampler, starting_point
from invreg.algorithms.renoise import require_quadratic
from invreg.interfaces import Denoiser
from invreg.lanczos import largest_eigenvalue
from invreg.linalg import expand
from invreg.problem import Problem
from invreg.random import Generator, draw
from invreg.sde import SDE, VE


class Predictor(ABC):
    """A step of the reversed diffusion, from time t to an earlier s."""

    @abstractmethod
    def step(self, sde: SDE, x: Tensor, denoised: Tensor, t: float, s: float, generator: Generator) -> Tensor:
        """A draw of x_s given x_t = x and E[x0 | x_t] = denoised, (B, *signal)."""


@dataclass(frozen=True)
class EulerMaruyama(Predictor):
    """x - (rate x - diffusion^2 score) (t - s) + diffusion sqrt(t - s) n.

    Source: Song et al. 2021, "Score-based generative modeling through stochastic differential equations", app. E.
    """

    def step(self, sde: SDE, x: Tensor, denoised: Tensor, t: float, s: float, generator: Generator) -> Tensor:
        length, g = t - s, float(sde.diffusion(t))
        drift = float(sde.rate(t)) * x - g**2 * sde.score_of(denoised, x, t)
        return x - length * drift + (g * math.sqrt(length)) * draw(x, generator)


@dataclass(frozen=True)
class ReverseDiffusion(Predictor):
    """(2 - a) x + c^2 score + c n, where x_t = a x_s + c n is the exact step of the diffusion from s to t.

    Source: Song et al. 2021, eq. 46, which discretises the step; the exact one agrees for VE and VP, and serves any.
    """

    def step(self, sde: SDE, x: Tensor, denoised: Tensor, t: float, s: float, generator: Generator) -> Tensor:
        a, c = map(float, sde.transition(s, t))
        return (2 - a) * x + c**2 * sde.score_of(denoised, x, t) + c * draw(x, generator)


@dataclass(frozen=True)
class Ancestral(Predictor):
    """A draw from p(x_s | x_t = x, x_0 = denoised): the steps of DDPM (VP) and of SMLD (VE), for any diffusion.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models", eq. 7, with its smaller variance; Song et al.
    2021, eq. 47.
    """

    def step(self, sde: SDE, x: Tensor, denoised: Tensor, t: float, s: float, generator: Generator) -> Tensor:
        a, c = map(float, sde.transition(s, t))
        ratio = (float(sde.std(s)) / float(sde.std(t))) ** 2
        kept = float(sde.scale(s)) * (c / float(sde.std(t))) ** 2
        return (a * ratio) * x + kept * denoised + (c * math.sqrt(ratio)) * draw(x, generator)


@dataclass(frozen=True)
class Langevin:
    """Steps of Langevin dynamics at one noise level: x + h score + sqrt((2 - r) h) n, h = r std^2.

    r = 2 a snr^2, a being the squared loss of scale in one step of the diffusion, std its noise at that level. Song et
    al. take |n|^2 / |score|^2, averaged over the batch, for std^2; the two agree where noise dominates. Theirs ties
    chains to their batch, and of one sample it has no mean in two dimensions: where the score is near zero a step would
    be without bounds. sqrt(2 - r) instead of sqrt(2) takes back what steps of finite length add to the variance.

    Args:
        steps: at each noise level.
        snr: of step to noise, > 0 and < 1.

    Source: Song et al. 2021, alg. 4 and 5, with the length as above.
    """

    steps: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        require_count("steps", self.steps)
        require_positive("snr", self.snr)
        if self.snr >= 1:
            raise ValueError(f"snr must be < 1, got {self.snr}; 0.05 to 0.2 are usual")

    def step(self, x: Tensor, score: Tensor, std: float, shrinkage: float, noise: Tensor) -> Tensor:
        """One step with standard normal noise, (B, *signal), at a level of noise `std`; `shrinkage` is a."""
        r = 2 * shrinkage * self.snr**2
        return x + (r * std**2) * score + (math.sqrt((2 - r) * r) * std) * noise


@dataclass(frozen=True, eq=False)
class PredictorCorrectorState:
    """Where the sampler is.

    Args:
        sde: the diffusion.
        x: the clean image as estimated last, (B, *signal).
        noisy: x_t at the next time, (B, *signal).
        times: all of them, falling.
        precision: the largest eigenvalue of A^H A / sigma^2, (B,): below its inverse root in noise, data say nothing.
        most: the largest precision, known to the host, so that no step has to look at the device.
        blind: whether the precision of a sample is 0.
    """

    sde: SDE
    x: Tensor
    noisy: Tensor
    times: tuple[float, ...]
    precision: Tensor
    most: float
    blind: bool


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Sampler[PredictorCorrectorState]):
    """Posterior samples of linear problems by the reversed diffusion, as Score-MRI draws them. No backward passes.

    From pure noise on, at each of `iterations` times: Langevin steps, then a step of the predictor to the next time;
    after each of them the data are met. The last image is denoised. There are at most (corrector.steps + 1) *
    iterations evaluations of the denoiser.

    Meeting the data: where Score-MRI replaces what is measured of x_t by y with noise of the level of x_t, any linear A
    and noise of y itself are served by

        argmin_v |A v - y - e|^2 / (2 sigma_y^2) + |v - x_t / scale|^2 / (2 sigma^2),  sigma = std / scale,

    with e = tau (A n + sqrt(2) (sigma_y / sigma) n'), tau^2 = sigma^2 - 1 / |A^H A / sigma_y^2|. A component that A
    sees with the singular value s goes to y with the weight w = s^2 sigma^2 / (s^2 sigma^2 + sigma_y^2), and its noise
    is renewed to the variance tau^2 once that repeats: together with the noise of y, sigma^2 for the components seen
    best. Once sigma is below the noise of y, that noise is what is left in x_t: the predictor goes on alone and takes
    it away as it does all noise. Langevin steps, which would forget the data, rest from 3 times that noise on.
    With sigma_y to 0 and A A^H = I this is Score-MRI's replacement.

    It tends to exact where A A^H = I and the measured components are independent of the others. Else the others learn
    of the data through the Langevin steps only, too little where steps are few; and components that A sees weakly are
    fitted too closely. The level sigma at t_min should be below the noise of y, whose scatter is missing else.

    Args:
        iterations: times of the diffusion. Without a corrector 1000 make the variance right to about 3 %.
        sde: the diffusion; None: `VE` of its default levels times the denoiser's `image_scale`.
        predictor: of the reversed diffusion.
        corrector: Langevin steps at each time, or None.
        t_min: last time, > 0, or that of the least noise level that the denoiser was made for, if that is later.

    Raises:
        TypeError: a prior that is no denoiser, or a problem that is not quadratic.
        ValueError: the diffusion and the denoiser share no noise level.

    Source: Song et al. 2021, alg. 2 and 3; Chung and Ye 2022, "Score-based diffusion models for accelerated MRI",
    alg. 1, with the norms and the noise of the data as above.
    """

    iterations: int = 1000
    sde: SDE | None = None
    predictor: Predictor = ReverseDiffusion()
    corrector: Langevin | None = Langevin()
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("iterations", self.iterations, least=2)
        for name, value, kind in (
            ("sde", self.sde, (SDE, type(None))),
            ("predictor", self.predictor, Predictor),
            ("corrector", self.corrector, (Langevin, type(None))),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be one such as {_EXAMPLES[name]}, got {value!r}")

    def init(self, problem: Problem, prior: Denoiser, x0: Tensor | None) -> PredictorCorrectorState:
        if not isinstance(prior, Denoiser):
            raise TypeError(f"PredictorCorrector needs a Denoiser, got {type(prior).__name__}")
        require_quadratic(problem, "PredictorCorrector", "DPS takes any operator and noise")
        x = starting_point(problem, x0)
        unit = prior.image_scale
        sde = VE(unit * VE.sigma_min, unit * VE.sigma_max) if self.sde is None else self.sde
        times = sde.times(self.iterations, prior.sigma_range, self.t_min)
        precision = largest_eigenvalue(problem.normal, x)
        mean, std = sde.prior_mean(prior, x, times[0]), float(sde.std(times[0]))
        noisy = mean + std * draw(x, self.generator)
        most, blind = float(precision.max()), float(precision.min()) == 0
        return PredictorCorrectorState(sde, x, noisy, times, precision, most, blind)

    def step(
        self, problem: Problem, prior: Denoiser, state: PredictorCorrectorState, progress: float
    ) -> PredictorCorrectorState:
        k = round(progress * self.iterations) - 1
        sde, t, noisy = state.sde, state.times[k], state.noisy
        earlier = state.times[min(k + 1, self.iterations - 1)]
        for _ in range(self.corrector.steps if self.corrector is not None else 0):
            noisy = self._correct(prior, noisy, t, earlier, state)
            noisy = self._meet(problem, noisy, t, state)
        x = sde.denoised(prior, noisy, t)
        if k + 1 < len(state.times):
            s = state.times[k + 1]
            noisy = self._meet(problem, self.predictor.step(sde, noisy, x, t, s, self.generator), s, state)
        return replace(state, x=x, noisy=noisy)

    def _correct(
        self, prior: Denoiser, noisy: Tensor, t: float, earlier: float, state: PredictorCorrectorState
    ) -> Tensor:
        """A Langevin step, which would forget data that are hardly met any more, and so rests then."""
        assert self.corrector is not None
        noise = draw(noisy, self.generator)  # needed or not, as in `_meet`
        variance = float(state.sde.sigma(t)) ** 2
        if variance * state.most <= _CLEAR and not state.blind:
            return noisy
        active = (variance * state.precision > _CLEAR) | (state.precision == 0)
        shrinkage = float(state.sde.transition(earlier, t)[0]) ** 2
        std = float(state.sde.std(t))
        moved = self.corrector.step(noisy, state.sde.score(prior, noisy, t), std, shrinkage, noise)
        return torch.where(expand(active, noisy), moved, noisy)

    def _meet(self, problem: Problem, noisy: Tensor, t: float, state: PredictorCorrectorState) -> Tensor:
        """x_t with what was measured of it replaced, (B, *signal)."""
        sigma, scale = float(state.sde.sigma(t)), float(state.sde.scale(t))
        # drawn whether they are needed or not, so that no chain's noise depends on another's problem
        noise, stray = draw(noisy, self.generator), draw(problem.y, self.generator)
        if sigma**2 * state.most <= 1:
            return noisy
        excess = sigma**2 - torch.where(state.precision > 0, 1 / state.precision, torch.inf)
        informed = excess > 0
        root = excess.clamp_min(0).sqrt()
        tau = expand(root, noisy)
        level = problem.noise.sigma  # type: ignore[attr-defined]
        stray = math.sqrt(2) / sigma * expand(root, stray) * level * stray
        mask = problem.operator.sampled()
        data = problem.y + (stray if mask is None else torch.where(mask, stray, 0))
        found = problem.measuring(data).prox(noisy / scale - tau * noise, sigma**2, rtol=_ACCURATE)
        moved = found + tau * noise
        return torch.where(expand(informed, noisy), scale * moved, noisy)


_ACCURATE = 1e-4  # of a data step, relative: far below the noise that is added behind it
_CLEAR = 10.0  # sigma^2 in units of the variance of y, above which data bring back what a Langevin step forgets
_EXAMPLES = {
    "sde": "VE() or VP(), or None",
    "predictor": "ReverseDiffusion() or Ancestral()",
    "corrector": "Langevin() or None",
}
