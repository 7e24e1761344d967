"""Denoisers as priors: plug-and-play, and regularization by denoising."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from invreg.interfaces import Denoiser, Regularizer
from invreg.linalg import inner


class PlugAndPlay(nn.Module):
    """A denoiser in the place of a proximal map. It has no value: no R is known, and in general there is none.

    Args:
        denoiser: D.
        sigma: noise level to denoise for, > 0, in the units of x, a number, () or (B,); None for sqrt(step), the level
            at which the prox of -log p with that step is the most probable clean image.

    Raises:
        TypeError: denoiser is not a Denoiser.
        ValueError: sigma <= 0.

    Source: Venkatakrishnan, Bouman and Wohlberg 2013, "Plug-and-play priors for model based reconstruction".
    """

    sigma: float | Tensor | None

    def __init__(self, denoiser: Denoiser, sigma: float | Tensor | None = None) -> None:
        super().__init__()
        _check(denoiser, sigma)
        self.denoiser = denoiser
        _keep(self, sigma)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """D(x, sigma)."""
        if self.sigma is not None:
            return self.denoiser(x, self.sigma)
        level = step.reshape(-1).sqrt() if isinstance(step, Tensor) and step.ndim else step**0.5
        return self.denoiser(x, level)


class RED(Regularizer[Tensor]):
    """Regularization by denoising: the gradient is weight * (x - D(x, sigma)).

    The value, weight / 2 * <x, x - D(x)>, has that gradient only for denoisers that are locally homogeneous and have a
    symmetric Jacobian; networks have neither, hence `exact` is False. The denoiser is never differentiated, so
    no gradient of a gradient passes through it.

    Args:
        denoiser: D.
        sigma: noise level to denoise for, > 0, in the units of x, a number, () or (B,).
        weight: >= 0, a number or a 0-d tensor, which may require a gradient.

    Raises:
        TypeError: denoiser is not a Denoiser.
        ValueError: sigma <= 0.

    Source: Romano, Elad and Milanfar 2017, "The little engine that could", eq. (6); Reehorst and Schniter 2019 for
    what its gradient is not.
    """

    exact: ClassVar[bool] = False
    sigma: float | Tensor

    def __init__(self, denoiser: Denoiser, sigma: float | Tensor, weight: float | Tensor = 1.0) -> None:
        super().__init__(weight)
        _check(denoiser, sigma)
        self.denoiser = denoiser
        _keep(self, sigma)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            point = x.detach()
            residual = point - self.denoiser(point, self.sigma)
        product = inner(x, residual)
        return self.weight * (product - product.detach() / 2)


def _check(denoiser: Denoiser, sigma: float | Tensor | None) -> None:
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"denoiser must be a Denoiser, got {type(denoiser).__name__}")
    if sigma is not None and not bool((torch.as_tensor(sigma) > 0).all()):
        raise ValueError(f"sigma must be > 0, got {sigma}")


def _keep(module: nn.Module, sigma: float | Tensor | None) -> None:
    """Store sigma so that a tensor moves with the module."""
    if isinstance(sigma, Tensor) and not isinstance(sigma, nn.Parameter):
        module.register_buffer("sigma", sigma)
    else:
        module.sigma = sigma  # type: ignore[assignment]
