"""Data in the coordinates of the operator's singular vectors, for the samplers that treat each by itself."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from invreg.interfaces import LinearOperator
from invreg.operators.spectral import Decomposable, Spectrum, spectrum_of
from invreg.problem import Problem
from invreg.random import draw


@dataclass(frozen=True, eq=False)
class SpectralData:
    """What was measured of each coordinate of the signal.

    Args:
        spectrum: the operator's singular vectors.
        seen: which coordinates were measured, bool, broadcasts to (B, *n).
        value: their measured values U^H y / s, 0 where not seen, (B, *n).
        noise: the standard deviation of these, sigma_y / s, 0 where not seen.
        real: whether the signal is real, so that an imaginary part of a synthesis is rounding.
    """

    spectrum: Spectrum
    seen: Tensor
    value: Tensor
    noise: Tensor
    real: bool

    def analyse(self, x: Tensor) -> Tensor:
        """V^H x."""
        return self.spectrum.analyse(x)

    def synthesise(self, c: Tensor) -> Tensor:
        """V c."""
        x = self.spectrum.synthesise(c)
        return x.real if self.real and x.is_complex() else x


def spectral_data(problem: Problem, like: Tensor, name: str) -> SpectralData:
    """The data of a quadratic problem in the operator's coordinates.

    Args:
        problem: with one noise level for all measurements.
        like: a signal, (B, *signal).
        name: of the algorithm, for errors.

    Raises:
        TypeError: the operator has no decomposition and is too large for one by brute force.
        ValueError: the noise level varies.
    """
    sigma: Tensor | float = problem.noise.sigma  # type: ignore[attr-defined]
    if isinstance(sigma, Tensor) and sigma.numel() > 1:
        raise ValueError(
            f"{name} needs one noise level for all measurements, got sigma of shape {tuple(sigma.shape)}; "
            "DDS and DiffPIR take levels that vary"
        )
    level = sigma.reshape(()) if isinstance(sigma, Tensor) else sigma  # the axes of y are not those of coordinates
    assert isinstance(problem.operator, LinearOperator)
    spectrum = _decomposed(problem.operator, like)
    singular = spectrum.singular.to(like.real.dtype)
    singular = singular if singular.ndim > 1 else singular[None]
    seen = singular > 0
    inverse = torch.where(seen, 1 / torch.where(seen, singular, 1), 0)
    return SpectralData(spectrum, seen, spectrum.measured(problem.y) * inverse, level * inverse, not like.is_complex())


@dataclass(frozen=True, eq=False)
class _Known:
    """A decomposition, and a probe and its image then, (1, *measurement), or (B, *measurement) of each sample's."""

    spectrum: Spectrum
    probe: Tensor
    image: Tensor


_DECOMPOSED: WeakKeyDictionary[LinearOperator, _Known] = WeakKeyDictionary()


def _decomposed(operator: LinearOperator, like: Tensor) -> Spectrum:
    """`spectrum_of`, by brute force only once until A x of a random x changes: every batch of draws asks for it."""
    if isinstance(operator, Decomposable):
        return spectrum_of(operator, like)
    probe = draw(like[:1], torch.Generator().manual_seed(0))
    image = operator(probe.expand_as(like))
    if image.requires_grad or image.is_inference():  # what is made of it fits no other mode
        return spectrum_of(operator, like)
    known = _DECOMPOSED.get(operator)
    if known is None or not _same(known.probe, probe, 0) or not _same(known.image, image, 100):
        spectrum = spectrum_of(operator, like)
        each = spectrum.singular.ndim > 1
        known = _DECOMPOSED[operator] = _Known(spectrum, probe, image if each else image[:1].clone())
    return known.spectrum


def _same(a: Tensor, b: Tensor, roundings: int) -> bool:
    """Whether a, (1, ...) or (B, ...), is b, (B, ...), but for so many roundings of the largest entry."""
    if (a.dtype, a.device, a.shape[1:]) != (b.dtype, b.device, b.shape[1:]) or len(a) not in (1, len(b)):
        return False
    return bool(((a - b).abs() <= roundings * torch.finfo(a.dtype).eps * a.abs().max()).all())
