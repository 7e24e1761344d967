"""Exact denoisers: priors whose E[x0 | x0 + sigma n = x] is known in closed form at every noise level.

Covariances of complex signals are E[(x - m)(x - m)^H], and E[(x - m)(x - m)^T] = 0: real and imaginary part of an entry
share its variance evenly, as those of noise do, where E|n|^2 = 2 sigma^2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invreg._check import require_count, require_finite, require_tensor
from invreg.linalg import expand
from invreg.models.exact import (
    ExactDenoiser,
    LinearGaussian,
    SpectralMixture,
    checked_weights,
    spectrum_of,
    square,
    together,
)
from invreg.random import Generator


class GaussianOracle(SpectralMixture):
    """The exact denoiser of signals x0 ~ N(mean, covariance), real or complex.

    Args:
        mean: (*signal), real or complex.
        covariance: (d, d) with d the number of entries of a signal, Hermitian and positive semidefinite.

    Raises:
        TypeError, ValueError: other kinds or shapes, NaN or Inf, or a covariance that is not one.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        require_tensor("mean", mean)
        require_tensor("covariance", covariance)
        mean, covariance = together(mean=mean, covariance=covariance)
        if mean.ndim < 1 or tuple(covariance.shape) != (mean.numel(), mean.numel()):
            raise ValueError(
                f"covariance must be (d, d) for a mean of d entries, got {tuple(covariance.shape)} "
                f"and a mean {tuple(mean.shape)}"
            )
        vectors, values = spectrum_of(covariance[None])
        one = torch.ones_like(values[:, 0])
        super().__init__(one, mean.reshape(1, -1), vectors, values, torch.zeros_like(one), tuple(mean.shape))

    @property
    def mean(self) -> Tensor:
        """(*signal)."""
        return self.means[0]

    @property
    def covariance(self) -> Tensor:
        """(d, d)."""
        return self.dense_covariances()[0]

    def posterior(self, problem: LinearGaussian) -> GaussianOracle:
        """The oracle of p(x0 | y), also a Gaussian, by the operator's dense matrix.

        Args:
            problem: a LinearOperator and Gaussian noise, with one measurement, (1, *measurement). Where the signals are
                complex, the operator is linear over complex numbers.

        Raises:
            TypeError, ValueError: a problem of another kind, or several measurements.
        """
        _, means, covariances = self.condition(problem)
        return GaussianOracle(means[0].reshape(self.signal_shape), covariances[0])


class MixtureOracle(SpectralMixture):
    """The exact denoiser of a Gaussian mixture, real or complex.

    Args:
        weights: >= 0, (K,); their sum is made 1.
        means: (K, *signal), real or complex.
        covariances: (K, d, d) with d the number of entries of a signal; zeros make a part one point.

    Raises:
        TypeError, ValueError: other kinds or shapes, NaN or Inf, negative weights, covariances that are none.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        require_tensor("covariances", covariances)
        weights = checked_weights(weights, means)
        means, covariances = together(means=means, covariances=covariances)
        count, d = len(means), means[0].numel()
        if tuple(covariances.shape) != (count, d, d):
            raise ValueError(
                f"covariances must be {(count, d, d)} for means {tuple(means.shape)}, got {tuple(covariances.shape)}"
            )
        vectors, values = spectrum_of(covariances)
        weights = weights.to(values)
        super().__init__(weights, means.flatten(1), vectors, values, torch.zeros_like(weights), tuple(means.shape[1:]))

    @property
    def covariances(self) -> Tensor:
        """Covariance of each part, (K, d, d)."""
        return self.dense_covariances()

    @property
    def mean(self) -> Tensor:
        """Of the whole mixture, (*signal)."""
        return torch.einsum("k,k...->...", self.weights.to(self.means.dtype), self.means)

    @property
    def covariance(self) -> Tensor:
        """Of the whole mixture, (d, d)."""
        away = self.centres - self.mean.reshape(1, -1)
        between = (self.weights[:, None] * away).mT @ away.conj()
        return (self.weights[:, None, None] * self.dense_covariances()).sum(0) + between

    def posterior(self, problem: LinearGaussian) -> MixtureOracle:
        """The oracle of p(x0 | y), also a mixture; argument and errors as of `GaussianOracle.posterior`."""
        weights, means, covariances = self.condition(problem)
        return MixtureOracle(weights, means.reshape(-1, *self.signal_shape), covariances)


class LowRankMixtureOracle(SpectralMixture):
    """The exact denoiser of mixtures whose parts spread along few directions, for signals too large for matrices.

    Part k is m_k + sum_j z_j factors[k, j] + sqrt(floor_k) n with z and n standard normal: its covariance is
    F F^H + floor.

    Args:
        weights: >= 0, (K,); their sum is made 1.
        means: (K, *signal), real or complex.
        factors: (K, r, *signal) with r at most the number of entries of a signal.
        floor: variance of every entry besides, >= 0, a number or (K,).

    Raises:
        TypeError, ValueError: other kinds or shapes, NaN or Inf, negative weights or variances.
    """

    def __init__(self, weights: Tensor, means: Tensor, factors: Tensor, floor: Tensor | float) -> None:
        require_tensor("factors", factors)
        weights = checked_weights(weights, means)
        means, factors = together(means=means, factors=factors)
        count, shape = len(means), tuple(means.shape[1:])
        if factors.ndim != means.ndim + 1 or (factors.shape[0], *factors.shape[2:]) != (count, *shape):
            raise ValueError(f"factors must be ({count}, r, *{shape}) as the means are, got {tuple(factors.shape)}")
        if not 1 <= factors.shape[1] <= means[0].numel():
            raise ValueError(f"factors must have 1 <= r <= {means[0].numel()}, got r = {factors.shape[1]}")
        rest = torch.as_tensor(floor, dtype=means.real.dtype, device=means.device)
        if rest.shape not in ((), (count,)) or not bool(((rest >= 0) & rest.isfinite()).all()):
            raise ValueError(f"floor must be finite and >= 0, a number or ({count},), got {floor}")
        U, s, _ = torch.linalg.svd(factors.flatten(2).mT, full_matrices=False)
        rest = rest.expand(count).clone()
        values = s.square() + rest[:, None]
        super().__init__(weights.to(values), means.flatten(1), U, values, rest, shape)


class StationaryOracle(ExactDenoiser):
    """The exact denoiser of a stationary Gaussian field on a periodic grid, by FFT.

    Args:
        spectrum: E|X|^2 of the orthonormal FFT X of x0 - mean, >= 0, shaped as a signal, frequency 0 first; its mean is
            the variance of a pixel. It is the FFT of the autocovariance.
        mean: a number or a tensor that broadcasts to a signal.
        axes: how many of the last axes are the grid, default all; those before, such as channels, are independent.
        complex_valued: whether signals are complex.

    Raises:
        TypeError, ValueError: negative values, NaN or Inf, or shapes that do not go together; signals are real and the
            spectrum is not even or the mean is complex.
    """

    spectrum: Tensor
    mean: Tensor

    def __init__(
        self,
        spectrum: Tensor,
        mean: Tensor | complex = 0.0,
        *,
        axes: int | None = None,
        complex_valued: bool = False,
    ) -> None:
        require_tensor("spectrum", spectrum)
        if not spectrum.is_floating_point():
            raise TypeError(f"spectrum must be real and floating point, got {spectrum.dtype}")
        require_finite("spectrum", spectrum)
        axes = spectrum.ndim if axes is None else axes
        require_count("axes", axes)
        if axes > spectrum.ndim or bool((spectrum < 0).any()):
            raise ValueError(
                f"spectrum must be >= 0 with {axes} axes or more, got {tuple(spectrum.shape)} down to "
                f"{float(spectrum.min()):g}"
            )
        super().__init__(tuple(spectrum.shape), complex_valued)
        self.axes = tuple(range(-axes, 0))
        if not complex_valued:
            mirrored = spectrum.flip(self.axes).roll((1,) * axes, self.axes)
            if not torch.allclose(spectrum, mirrored, rtol=1e-4, atol=1e-6 * float(spectrum.max())):
                raise ValueError(
                    "spectrum must be even, S(k) = S(-k), for real signals; use (S(k) + S(-k)) / 2, or complex_valued"
                )
            spectrum = (spectrum + mirrored) / 2
        dtype = spectrum.dtype.to_complex() if complex_valued else spectrum.dtype
        centre = torch.as_tensor(mean, device=spectrum.device)
        if centre.is_complex() and not complex_valued:
            raise TypeError(f"mean must be real for real signals, got {centre.dtype}; use complex_valued=True")
        if centre.ndim > spectrum.ndim or any(
            n not in (1, m) for n, m in zip(reversed(centre.shape), reversed(spectrum.shape), strict=False)
        ):
            raise ValueError(f"mean must broadcast to {tuple(spectrum.shape)}, got {tuple(centre.shape)}")
        self.register_buffer("spectrum", spectrum)
        self.register_buffer("mean", centre.to(dtype).expand(spectrum.shape).clone())

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        frequencies, noise = self._view(x, sigma)
        total = (self.spectrum + noise).clamp_min(torch.finfo(self.spectrum.dtype).tiny)
        return (self.mean + self._back(self.spectrum / total * frequencies)).to(x.dtype)

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Log density of x0 + sigma n at x, (B,), per real or complex volume; sigma as in `forward`.

        Raises:
            ValueError: sigma is 0 and the spectrum too somewhere, so that there is no density.
        """
        frequencies, noise = self._view(x, sigma)
        variance = self.spectrum + noise
        if bool((variance <= 0).any()):
            raise ValueError("sigma must be > 0 where the spectrum is 0, got 0; there is no density")
        cost = square(frequencies) / variance + variance.log() + math.log(math.pi / self.share)
        return (-self.share * cost.flatten(1).sum(1)).to(x.real.dtype)

    def sample(self, n: int, generator: Generator = None) -> Tensor:
        """Draw n signals, (n, *signal); generator is one for all or one for each."""
        noise = self.draw_unit(n, self.mean[None], generator)
        return self.mean + self._back(self.spectrum.sqrt() * torch.fft.fftn(noise, dim=self.axes, norm="ortho"))

    def _back(self, frequencies: Tensor) -> Tensor:
        x: Tensor = torch.fft.ifftn(frequencies, dim=self.axes, norm="ortho")
        return x if self.complex_valued else x.real

    def _view(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        self.check(x)
        noise = expand(self.noise_variance(x, sigma, self.mean), x)
        return torch.fft.fftn(x.to(self.mean.dtype) - self.mean, dim=self.axes, norm="ortho"), noise
