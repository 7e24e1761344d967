"""Data in the coordinates of the operator's singular vectors, for the samplers that treat each by itself."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from invreg.interfaces import LinearOperator
from invreg.operators.spectral import Decomposable, Spectrum, spectrum_of
from invreg.problem import Problem


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
    """A decomposition and what it was computed from: the tensors, their versions then, and the kind of signal."""

    spectrum: Spectrum
    sources: list[Tensor]
    state: tuple[object, ...]
    batch: int


_DECOMPOSED: WeakKeyDictionary[LinearOperator, _Known] = WeakKeyDictionary()


def _decomposed(operator: LinearOperator, like: Tensor) -> Spectrum:
    """`spectrum_of`, by brute force only once until the operator changes: every batch of draws asks for it."""
    sources = [*operator.parameters(), *operator.buffers()]
    if isinstance(operator, Decomposable) or any(t.requires_grad or t.is_inference() for t in sources):
        return spectrum_of(operator, like)
    versions = tuple((t._version, t.dtype, t.device) for t in sources)
    state = (*versions, like.dtype, like.device, like.shape[1:])
    known = _DECOMPOSED.get(operator)
    if (
        known is None
        or known.state != state
        or any(a is not b for a, b in zip(known.sources, sources, strict=True))
        or (known.batch != like.shape[0] and known.spectrum.singular.ndim > 1)  # of each sample
    ):
        known = _DECOMPOSED[operator] = _Known(spectrum_of(operator, like), sources, state, like.shape[0])
    return known.spectrum
