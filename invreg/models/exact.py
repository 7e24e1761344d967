"""What exact denoisers stand on: signals and noise of either kind, mixtures by their spectra, what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from invreg._check import require_count, require_finite, require_tensor
from invreg.interfaces import Denoiser, LinearOperator, Operator, _keep_kind
from invreg.random import Generator, draw

CHUNK = 256  # columns of a dense matrix that an operator is asked for at once
LINEAR = 1e-4  # relative: how far A(x) of a random x may be from the matrix of A times x


class LinearGaussian(Protocol):
    """What a posterior in closed form needs of a `Problem`, which lies a floor above."""

    @property
    def operator(self) -> Operator: ...

    @property
    def y(self) -> Tensor: ...

    @property
    def noise(self) -> Any: ...

    @property
    def is_quadratic(self) -> bool: ...


class ExactDenoiser(Denoiser):
    """What all oracles share: the shape and kind of their signals, noise levels as variances."""

    def __init__(self, signal_shape: tuple[int, ...], complex_valued: bool) -> None:
        super().__init__()
        self.signal_shape, self.complex_valued = tuple(signal_shape), complex_valued

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(lambda t: _keep_kind(t, fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"signal_shape={self.signal_shape}, complex_valued={self.complex_valued}"

    @property
    def share(self) -> float:
        """By which |r|^2 / variance counts in -log p."""
        return 1.0 if self.complex_valued else 0.5

    def check(self, x: Tensor) -> None:
        """Raise unless x is (B, *signal), of the kind of the signals."""
        if x.is_complex() != self.complex_valued:
            wanted, hint = ("complex", "x.to(torch.complex64)") if self.complex_valued else ("real", "x.real")
            raise TypeError(f"x must be {wanted}, as this oracle's signals are, got {x.dtype}; use {hint}")
        if tuple(x.shape[1:]) != self.signal_shape:
            wanted = ", ".join(["B", *map(str, self.signal_shape)])
            raise ValueError(f"x must be ({wanted}), got {tuple(x.shape)}")

    def noise_variance(self, x: Tensor, sigma: Tensor | float, like: Tensor) -> Tensor:
        """E|noise|^2 of an entry, (B,) or (1,)."""
        level = torch.as_tensor(sigma, dtype=like.real.dtype, device=like.device).reshape(-1)
        if level.numel() not in (1, x.shape[0]):
            raise ValueError(f"sigma must be () or ({x.shape[0]},), got {tuple(level.shape)}")
        return level.square() * (2 if self.complex_valued else 1)

    def draw_unit(self, n: int, like: Tensor, generator: Generator) -> Tensor:
        """Noise with E|n|^2 = 1, (n, *like.shape[1:])."""
        require_count("n", n)
        noise = draw(like[:1].expand(n, *like.shape[1:]), generator)
        return noise / math.sqrt(2) if self.complex_valued else noise


class _View(NamedTuple):
    """A batch seen by every part: residuals (B, K, d), their coordinates (B, K, r), variances and log densities."""

    residual: Tensor
    coordinates: Tensor
    noise: Tensor
    log_densities: Tensor


class SpectralMixture(ExactDenoiser):
    """sum_k w_k N(m_k, C_k) with C_k = U_k diag(values_k) U_k^H + rest_k (1 - U_k U_k^H)."""

    log_weights: Tensor
    centres: Tensor
    vectors: Tensor
    values: Tensor
    rest: Tensor

    def __init__(
        self, weights: Tensor, means: Tensor, vectors: Tensor, values: Tensor, rest: Tensor, shape: tuple[int, ...]
    ) -> None:
        super().__init__(shape, means.is_complex())
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.register_buffer("centres", means)  # (K, d)
        self.register_buffer("vectors", vectors)  # (K, d, r)
        self.register_buffer("values", values)  # (K, r)
        self.register_buffer("rest", rest)  # (K,)

    @property
    def weights(self) -> Tensor:
        """Probability of each part, (K,)."""
        return self.log_weights.exp()

    @property
    def means(self) -> Tensor:
        """Mean of each part, (K, *signal)."""
        return self.centres.reshape(-1, *self.signal_shape)

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        view = self._view(x, sigma)
        portion = (view.log_densities + self.log_weights).softmax(1)  # (B, K)
        noise = view.noise[:, None]
        whole = self.rest / self._positive(self.rest + noise)
        gain = self.values / self._positive(self.values + noise[..., None])
        found = torch.einsum("bk,kd->bd", portion.to(self.centres.dtype), self.centres)
        found = found + torch.einsum("bk,bkd->bd", (portion * whole).to(found.dtype), view.residual)
        inside = (portion[..., None] * (gain - whole[..., None])).to(found.dtype) * view.coordinates
        found = found + torch.einsum("kdr,bkr->bd", self.vectors, inside)
        return found.reshape(x.shape).to(x.dtype)

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Log density of x0 + sigma n at x, (B,), per real or complex volume; sigma as in `forward`.

        Raises:
            ValueError: sigma is 0 and a covariance is singular, so that there is no density.
        """
        view = self._view(x, sigma)
        partial = self.vectors.shape[2] < self.vectors.shape[1]
        least = torch.minimum(self.values.amin(), self.rest.amin()) if partial else self.values.amin()
        if bool((least + view.noise <= 0).any()):
            raise ValueError("sigma must be > 0 where a covariance is singular, got 0; there is no density")
        return (view.log_densities + self.log_weights).logsumexp(1).to(x.real.dtype)

    def sample(self, n: int, generator: Generator = None) -> Tensor:
        """Draw n signals, (n, *signal); generator is one for all or one for each."""
        require_count("n", n)
        cuts = self.weights.cumsum(0)
        number = torch.special.ndtr(draw(cuts[:1].expand(n, 1), generator))[:, 0]
        part = torch.searchsorted(cuts, number.contiguous()).clamp_max(len(cuts) - 1)
        noise = self.draw_unit(n, self.centres, generator)
        found = torch.empty_like(noise)
        for k in sorted(set(part.tolist())):
            mine, U = noise[part == k], self.vectors[k]
            spread = self.rest[k].sqrt()
            inside = (mine @ U.conj()) * (self.values[k].sqrt() - spread)
            found[part == k] = self.centres[k] + spread * mine + inside @ U.mT
        return found.reshape(n, *self.signal_shape)

    def _positive(self, variance: Tensor) -> Tensor:
        """Kept from 0, where a singular part meets no noise, by what rounding cannot tell from 0."""
        largest = torch.maximum(self.values.amax(), self.centres.abs().square().amax())
        tiny = torch.finfo(variance.dtype)
        return variance.clamp_min(torch.clamp(largest * tiny.eps**2, min=tiny.tiny))

    def _view(self, x: Tensor, sigma: Tensor | float) -> _View:
        self.check(x)
        noise = self.noise_variance(x, sigma, self.centres)
        residual = x.flatten(1).to(self.centres.dtype)[:, None] - self.centres
        coordinates = torch.einsum("kdr,bkd->bkr", self.vectors.conj(), residual)
        d, r = self.vectors.shape[1:]
        variance = self._positive(self.values + noise[:, None, None])
        cost = (square(coordinates) / variance + variance.log()).sum(2) + d * math.log(math.pi / self.share)
        if r < d:
            outside = residual - torch.einsum("kdr,bkr->bkd", self.vectors, coordinates)
            variance = self._positive(self.rest + noise[:, None])
            cost = cost + square(outside).sum(2) / variance + (d - r) * variance.log()
        return _View(residual, coordinates, noise, -self.share * cost)

    def dense_covariances(self) -> Tensor:
        """Covariance of each part, (K, d, d)."""
        root = self._roots()
        return root @ root.mH

    def _roots(self) -> Tensor:
        """R with R R^H the covariance of each part, (K, d, d)."""
        d, r = self.vectors.shape[1:]
        if r == d:
            return self.vectors * self.values.sqrt()[:, None]
        spread = self.rest.sqrt()[:, None]
        inside = (self.vectors * (self.values.sqrt() - spread)[:, None]) @ self.vectors.mH
        return inside + torch.diag_embed(spread.expand(-1, d))

    def condition(self, problem: LinearGaussian) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (K,), means (K, d) and covariances (K, d, d) given the measurement."""
        A, y, sigma = measured(problem, self.signal_shape, self.centres)
        std = sigma * math.sqrt(2) if self.complex_valued else sigma
        root = self._roots()
        A, y = A / std[:, None], y / std
        P, s, Vh = torch.linalg.svd(A @ root, full_matrices=False)
        residual = y - self.centres @ A.mT
        coordinates = torch.einsum("kmp,km->kp", P.conj(), residual)
        outside = residual - torch.einsum("kmp,kp->km", P, coordinates)
        damping = 1 + s.square()
        means = self.centres + torch.einsum("kdr,kpr,kp->kd", root, Vh.conj(), s / damping * coordinates)
        # the root of the posterior covariance: nothing is subtracted from it, so that it stays positive
        shrunk = root - (root @ Vh.mH * (1 - damping.rsqrt())[:, None]) @ Vh
        cost = (square(coordinates) / damping + damping.log()).sum(1) + square(outside).sum(1)
        return (self.log_weights - self.share * cost).softmax(0), means, shrunk @ shrunk.mH


def square(x: Tensor) -> Tensor:
    """|x|^2 of each entry, real."""
    return x.real.square() + x.imag.square() if x.is_complex() else x.square()


def together(**tensors: Tensor) -> tuple[Tensor, ...]:
    """Copies of one floating-point dtype, complex if one of them is."""
    for name, value in tensors.items():
        if not (value.is_floating_point() or value.is_complex()):
            raise TypeError(f"{name} must be floating point or complex, got {value.dtype}; use {name}.float()")
        require_finite(name, value)
    dtype = torch.result_type(*tensors.values())
    return tuple(value.detach().resolve_conj().to(dtype, copy=True) for value in tensors.values())


def checked_weights(weights: Tensor, means: Tensor) -> Tensor:
    """The weights (K,) of parts with these means, (K, *signal), or an error."""
    require_tensor("weights", weights)
    require_tensor("means", means)
    if means.ndim < 2 or weights.shape != means.shape[:1]:
        raise ValueError(
            f"weights must be (K,) and means (K, *signal), got {tuple(weights.shape)} and {tuple(means.shape)}"
        )
    require_finite("weights", weights)
    if bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise ValueError(f"weights must be >= 0 and not all 0, got {weights.tolist()}")
    return weights.detach()


def spectrum_of(covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors (K, d, d) and eigenvalues (K, d) of covariances; those that are rounding are made 0."""
    epsilon = torch.finfo(covariances.dtype).eps * covariances.shape[-1]
    size = covariances.abs().amax()
    if bool(((covariances - covariances.mH).abs() > 10 * epsilon * size).any()):
        raise ValueError("covariance must be Hermitian, C = C^H; use (C + C.mH) / 2")
    values, vectors = torch.linalg.eigh((covariances + covariances.mH) / 2)
    largest = values.amax(1, keepdim=True).clamp_min(0)
    if bool((values < -10 * epsilon * largest).any()) or bool((values.amax(1) < 0).any()):
        raise ValueError(f"covariance must be positive semidefinite, got an eigenvalue of {float(values.min()):g}")
    return vectors, torch.where(values > epsilon * largest, values, 0)


def measured(problem: LinearGaussian, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The matrix (m, d), data (m,) and noise levels (m,) of all that is measured, real for real signals."""
    operator, noise, y = problem.operator, problem.noise, problem.y
    if not isinstance(operator, LinearOperator) or not problem.is_quadratic:
        raise TypeError(
            "a posterior in closed form needs a LinearOperator and Gaussian noise, got "
            f"{type(operator).__name__} and {type(noise).__name__}"
        )
    if y.shape[0] != 1:
        raise ValueError(f"y must hold one measurement, (1, *measurement), got {tuple(y.shape)}; take y[i : i + 1]")
    d = math.prod(shape)
    with torch.no_grad():
        identity = torch.eye(d, dtype=like.dtype, device=like.device).reshape(d, *shape)
        columns = torch.cat([operator(one).flatten(1) for one in torch.split(identity, CHUNK)])
        probe = draw(identity[:1], torch.Generator().manual_seed(0))
        seen, dtype = operator(probe).flatten(1), torch.promote_types(like.dtype, columns.dtype)
        gap = (seen - probe.flatten(1).to(dtype) @ columns.to(dtype)).abs().amax()
        if not bool(gap <= LINEAR * seen.abs().amax()):
            law = " over complex numbers, A(i x) = i A(x)" if like.is_complex() else ""
            raise ValueError(f"the operator must be linear{law}, got {type(operator).__name__}, which is not")
    mask = operator.sampled()
    kept = slice(None) if mask is None else mask.expand(y.shape).flatten()
    sigma = torch.as_tensor(noise.sigma, dtype=like.real.dtype, device=y.device).expand(y.shape).flatten()[kept]
    A, data = columns.mT[kept], y.flatten()[kept]
    if not like.is_complex() and (A.is_complex() or data.is_complex()):
        A, data, sigma = (
            torch.cat([A.real, A.imag if A.is_complex() else torch.zeros_like(A)]),
            torch.cat([data.real, data.imag if data.is_complex() else torch.zeros_like(data)]),
            torch.cat([sigma, sigma]),
        )
    return A.to(like.dtype), data.to(like.dtype), sigma
