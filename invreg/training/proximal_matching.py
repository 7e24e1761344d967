"""Proximal matching: a loss whose minimiser is the most probable clean image, not the mean, so a prox of -log p."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from invreg._check import require_positive
from invreg.models.icnn import InputConvexNetwork
from invreg.random import draw
from invreg.training.requirements import require_model


class ProximalMatching:
    """The objective (x,) -> mean of 1 - exp(-MSE / gamma^2) of f(x + sigma n) against x, after |f(x + sigma n) - x|.

    With x from p, the mean absolute error has the conditional median as its minimiser; it leads near the goal. As gamma
    falls to 0 the second loss has the conditional mode, so that f, the gradient of the network, becomes the prox of
    -sigma^2 log p: use it in `LearnedProximal` with step = sigma^2. MSE is the mean over the entries of a sample, which
    makes gamma a standard deviation in the units of x, whatever the size.

    Each call first sets negative weights to zero (`InputConvexNetwork.clamp_weights`), and so ends the step before; of
    the last step the network itself takes negative weights for zero.

    Args:
        model: the network, whose gradient is trained.
        sigma: standard deviation of the noise, > 0, in the units of x; a network is trained for one.
        first_gamma, last_gamma: between which gamma falls geometrically; where the error is far above gamma, the
            gradient vanishes: start near the error that the first phase leaves.
        share: of the training with the mean absolute error, 0 to 1; 1 is that loss alone.

    Raises:
        TypeError: model is another one. ValueError: a number out of its range; gamma that rises.

    Source: Fang, Buchanan and Sulam 2024, "What's in a prior? Learned proximal networks for inverse problems", eq. 6
    and Theorem 1, whose norm is not divided by the size and whose gamma falls in stages; divided as in ProxDM,
    arXiv:2507.08956.
    """

    def __init__(
        self,
        model: InputConvexNetwork,
        sigma: float,
        *,
        first_gamma: float = 0.5,
        last_gamma: float = 0.1,
        share: float = 0.2,
    ) -> None:
        require_model("ProximalMatching", model, InputConvexNetwork)
        for name, value in (("sigma", sigma), ("first_gamma", first_gamma), ("last_gamma", last_gamma)):
            require_positive(name, value)
        if first_gamma < last_gamma:
            raise ValueError(f"first_gamma must be >= last_gamma = {last_gamma}, got {first_gamma}; swap the two")
        require_positive("share", share, zero_allowed=True)
        if share > 1:
            raise ValueError(f"share must be <= 1, got {share}")
        self.model, self.sigma, self.share = model, sigma, share
        self.first_gamma, self.last_gamma = first_gamma, last_gamma

    def gamma(self, progress: float) -> float | None:
        """The width of the loss when `progress`, 0 to 1, of the training is done; None: the mean absolute error."""
        if progress < self.share or self.share == 1:
            return None
        done = (progress - self.share) / (1 - self.share)
        return float(self.first_gamma * (self.last_gamma / self.first_gamma) ** done)

    def __call__(
        self, batch: tuple[Tensor, ...], progress: float, generator: torch.Generator | None
    ) -> Mapping[str, Tensor]:
        """{"absolute": loss} or {"matching": loss} for a batch of clean signals (x,), x (B, *signal)."""
        self.model.clamp_weights()
        (clean,) = batch
        miss = self.model(clean + self.sigma * draw(clean, generator)) - clean
        gamma = self.gamma(progress)
        if gamma is None:
            return {"absolute": miss.abs().mean()}
        return {"matching": -torch.expm1(-_mean_square(miss) / gamma**2).mean()}

    def score(self, batch: tuple[Tensor, ...]) -> Mapping[str, Tensor]:
        """Root mean square error at sigma, in the units of x, and the loss at the last gamma."""
        (clean,) = batch
        generator = torch.Generator().manual_seed(0)
        square = _mean_square(self.model(clean + self.sigma * draw(clean, generator)) - clean)
        return {
            "rmse": square.mean().sqrt(),
            "matching": -torch.expm1(-square / self.last_gamma**2).mean(),
        }


def _mean_square(x: Tensor) -> Tensor:
    """Of each sample, (B,)."""
    return x.flatten(1).square().mean(1)
