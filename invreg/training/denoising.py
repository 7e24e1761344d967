"""Training of denoisers: noise of every level is added to clean images, and the network is to take it away."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from invreg._check import require_positive
from invreg.interfaces import Denoiser
from invreg.linalg import expand
from invreg.random import draw

LEVELS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Noise levels at which a denoiser is judged."""


class DenoisingFit:
    """The objective (images,) -> weighted mean |D(x0 + sigma n, sigma) - x0|^2, sigma log-normal for each image.

    The weight, 1 / sigma^2 + 1 / sigma_data^2, makes the error of an untrained network about 1 at every noise level.

    Args:
        model: the denoiser that is trained.
        sigma_data: standard deviation of the clean images about 0, of each real component.
        log_mean, log_std: of the natural logarithm of sigma; levels are kept within the denoiser's `sigma_range`.

    Raises:
        TypeError: model is not a Denoiser. ValueError: a number out of its range.

    Source: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", eq. 8, table 1.
    """

    def __init__(
        self, model: Denoiser, *, sigma_data: float = 0.5, log_mean: float = -1.2, log_std: float = 1.2
    ) -> None:
        if not isinstance(model, Denoiser):
            raise TypeError(
                f"model must be a Denoiser, got {type(model).__name__}; wrap the network in NetworkDenoiser"
            )
        require_positive("sigma_data", sigma_data)
        require_positive("log_std", log_std, zero_allowed=True)
        self.model, self.sigma_data, self.log_mean, self.log_std = model, sigma_data, log_mean, log_std

    def __call__(
        self, batch: tuple[Tensor, ...], progress: float, generator: torch.Generator | None
    ) -> Mapping[str, Tensor]:
        (clean,) = batch
        low, high = self.model.sigma_range
        like = clean.real.reshape(clean.shape[0], -1)[:, 0]
        sigma = (self.log_mean + self.log_std * draw(like, generator)).exp().clamp(low, high)
        found = self.model(clean + expand(sigma, clean) * draw(clean, generator), sigma)
        weight = sigma**-2 + self.sigma_data**-2
        return {"denoising": (weight * _mean_square(found - clean)).mean()}

    def score(self, batch: tuple[Tensor, ...]) -> Mapping[str, Tensor]:
        """10 log10(1 / mean square error) of each real component at those of `LEVELS` it is made for, in dB."""
        (clean,) = batch
        low, high = self.model.sigma_range
        generator = torch.Generator().manual_seed(0)
        scores = {}
        for level in LEVELS:
            if low <= level <= high:
                found = self.model(clean + level * draw(clean, generator), level)
                scores[f"psnr at {level:g}"] = (-10 / math.log(10)) * _mean_square(found - clean).log().mean()
        return scores


def _mean_square(x: Tensor) -> Tensor:
    """Of the real components of each sample, (B,)."""
    real = torch.view_as_real(x) if x.is_complex() else x
    return real.flatten(1).square().mean(1)
