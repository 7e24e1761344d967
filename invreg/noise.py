"""Noise models, which are the data terms: each knows how to sample and how unlikely a measurement is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_finite, require_positive, require_tensor
from invreg.interfaces import Noise
from invreg.random import Generator, draw


def _check_level(name: str, value: float | Tensor) -> None:
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{name} must be a number or a floating-point tensor, got {value.dtype}")
        if not bool(((value > 0) & value.isfinite()).all()):
            raise ValueError(f"{name} must be finite and > 0 everywhere, got a tensor with other values")
    else:
        require_positive(name, value)


@dataclass(frozen=True, eq=False)
class Gaussian(Noise):
    """y = clean + sigma n, with n standard normal in every real component.

    One convention for real and complex: sigma is the standard deviation of each real component, so E|noise|^2 is
    sigma^2 for real and 2 sigma^2 for complex entries, and nll = |clean - y|^2 / (2 sigma^2) for both.

    Args:
        sigma: > 0; a number, or a tensor that broadcasts to y, such as (B, 1, 1) per sample or y's own shape for
            weighted least squares. The default 1 makes nll the plain |clean - y|^2 / 2.
    """

    sigma: float | Tensor = 1.0

    def __post_init__(self) -> None:
        _check_level("sigma", self.sigma)

    def sample(self, clean: Tensor, generator: Generator = None) -> Tensor:
        return clean + self.sigma * draw(clean, generator)

    def nll_terms(self, clean: Tensor, y: Tensor) -> Tensor:
        residual = (clean - y) / self.sigma
        return 0.5 * (residual.real.square() + residual.imag.square() if residual.is_complex() else residual.square())

    def nll_gradient(self, clean: Tensor, y: Tensor) -> Tensor:
        return (clean - y) / self.sigma**2

    def prox(self, z: Tensor, y: Tensor, step: Tensor | float) -> Tensor:
        precision = step / self.sigma**2
        return (z + precision * y) / (1 + precision)


INSIDE = 0.1
"""Of a count: the rate at which the gradient is taken in place of one that is impossible."""


def _count_nll(rate: Tensor, y: Tensor) -> Tensor:
    """Poisson rate - y - y log(rate / y), entry by entry, written in (rate - y) / y: large counts do not cancel."""
    excess = (rate - y) / torch.where(y == 0, 1, y)
    return torch.where(y == 0, rate, rate - y - y * torch.log1p(excess))


@dataclass(frozen=True, eq=False)
class Poisson(Noise):
    """Counts y ~ Poisson(photons * clean + background), clean >= 0 (emission, low-light imaging).

    Args:
        photons: counts per unit of `clean`, > 0; a number or a tensor that broadcasts to y.
        background: expected stray counts, >= 0.

    Zero counts are ordinary: y log(rate) is 0 there. Where the rate is not positive the nll is infinite, except that
    a zero count with a zero rate costs nothing; the gradient there is that at the rate 0.1 y, which leads back, and 0
    for a zero count.
    """

    photons: float | Tensor = 1.0
    background: float = 0.0

    def __post_init__(self) -> None:
        _check_level("photons", self.photons)
        require_positive("background", self.background, zero_allowed=True)

    def sample(self, clean: Tensor, generator: Generator = None) -> Tensor:
        return _draw_counts((self.photons * clean + self.background).clamp_min(0), generator)

    def nll_terms(self, clean: Tensor, y: Tensor) -> Tensor:
        rate = self.photons * clean + self.background
        return torch.where(rate < 0, torch.inf, _count_nll(rate, y))

    def nll_gradient(self, clean: Tensor, y: Tensor) -> Tensor:
        rate = self.photons * clean + self.background
        counted = torch.where(rate <= 0, torch.where(y > 0, INSIDE * y, 1), rate)
        return self.photons * ((rate >= 0) | (y > 0)) - self.photons * (y / counted)

    def prox(self, z: Tensor, y: Tensor, step: Tensor | float) -> Tensor:
        # in the rate r = photons c + background: r^2 - r (r_z - s) - s y = 0 with s = step * photons^2
        scale = step * self.photons**2
        shifted = self.photons * z + self.background - scale
        square = shifted.square() + 4 * scale * y
        root = torch.where(square > 0, torch.where(square > 0, square, 1).sqrt(), 0)
        # the stable form of (shifted + root) / 2 on either side of zero
        negative = shifted < 0
        rate = torch.where(negative, 2 * scale * y / torch.where(negative, root - shifted, 1), (shifted + root) / 2)
        return (rate - self.background) / self.photons


@dataclass(frozen=True, eq=False)
class TransmissionPoisson(Noise):
    """Counts y ~ Poisson(photons * exp(-clean) + background), clean the line integrals (transmission CT).

    Args:
        photons: expected counts without object, > 0; a number or a tensor that broadcasts to y.
        background: expected scatter and dark counts, >= 0.

    A zero count is ordinary in this likelihood. Where a logarithm of counts is wanted instead, use `line_integrals`,
    which states the rule for zero counts.
    """

    photons: float | Tensor
    background: float = 0.0

    def __post_init__(self) -> None:
        _check_level("photons", self.photons)
        require_positive("background", self.background, zero_allowed=True)

    def sample(self, clean: Tensor, generator: Generator = None) -> Tensor:
        return _draw_counts(self.photons * torch.exp(-clean) + self.background, generator)

    def nll_terms(self, clean: Tensor, y: Tensor) -> Tensor:
        rate = self.photons * torch.exp(-clean) + self.background
        if self.background > 0:
            return _count_nll(rate, y)
        # the logarithm of the rate is known, so it cannot meet zero: with t = log(rate / y), y (e^t - 1 - t)
        photons = torch.as_tensor(self.photons, dtype=clean.dtype, device=clean.device)
        t = photons.log() - clean - torch.where(y > 0, y, 1).log()
        return torch.where(y == 0, rate, y * (torch.expm1(t) - t))

    def nll_gradient(self, clean: Tensor, y: Tensor) -> Tensor:
        attenuated = self.photons * torch.exp(-clean)
        if self.background == 0:
            return y - attenuated
        return attenuated * (y / (attenuated + self.background) - 1)


def line_integrals(counts: Tensor, photons: float | Tensor, background: float = 0.0) -> tuple[Tensor, Tensor]:
    """Line integrals -log((counts - background) / photons) and their standard deviations, for weighted least squares.

    The rule for low counts: net counts below 0.5 are read as 0.5, so a zero count becomes the line integral
    log(2 photons) with standard deviation sqrt(0.5 + background) / 0.5, that is with next to no weight.

    Args:
        counts: measured counts, >= 0, any shape.
        photons: expected counts without object, > 0.
        background: expected stray counts, >= 0.

    Returns:
        (line integrals, standard deviations), each shaped as counts. Use `Gaussian(sigma=standard deviations)`.

    Raises:
        TypeError, ValueError: photons is not > 0, background is not >= 0, or counts are negative, NaN or Inf.

    Source: delta method; Sauer and Bouman 1993, "A local update strategy for iterative reconstruction", eq. 9.
    """
    _check_level("photons", photons)
    require_positive("background", background, zero_allowed=True)
    require_tensor("counts", counts)
    require_finite("counts", counts)
    if bool((counts < 0).any()):
        raise ValueError("counts must be >= 0, got negative values; give raw counts and state the background")
    net = (counts - background).clamp_min(0.5)
    sigma = (net + background).sqrt() / net
    return -torch.log(net / photons), sigma


def _draw_counts(rate: Tensor, generator: Generator) -> Tensor:
    """Poisson counts of a rate, each sample from its own generator if there is a sequence of them."""
    if generator is None or isinstance(generator, torch.Generator):
        device = rate.device if generator is None else generator.device
        return torch.poisson(rate.to(device), generator=generator).to(rate.device)
    if len(generator) != rate.shape[0]:
        raise ValueError(
            f"generator must be one or one per sample ({rate.shape[0]}), got a sequence of {len(generator)}"
        )
    return torch.cat([_draw_counts(rate[i : i + 1], one) for i, one in enumerate(generator)])
