"""A measurement, the operator that made it and its noise: the misfit half of misfit(A x, y) + R(x)."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_batch, require_finite, require_positive, require_tensor
from invreg.interfaces import LinearOperator, Noise, Operator
from invreg.linalg import add_scaled, cg, solve_normal
from invreg.noise import Gaussian, Poisson, TransmissionPoisson


@dataclass(frozen=True, eq=False)
class Problem:
    """y = A(x) with noise; `misfit` is the negative log-likelihood of x.

    Args:
        operator: A.
        y: the measurements, (B, *measurement), finite; zero where the operator samples nothing.
        noise: how they scatter. The default `Gaussian(1)` makes the misfit |A x - y|^2 / 2.

    Raises:
        TypeError: an argument of the wrong kind; y is of integers; sigma is a tensor of another precision than y.
        ValueError: y has the wrong shape, NaN or Inf, or values where nothing is sampled; counts are negative or
            complex; sigma or photons do not broadcast to y.
    """

    operator: Operator
    y: Tensor
    noise: Noise = Gaussian()

    def __post_init__(self) -> None:
        if not isinstance(self.operator, Operator):
            raise TypeError(f"operator must be an Operator, got {type(self.operator).__name__}")
        if not isinstance(self.noise, Noise):
            raise TypeError(f"noise must be a Noise such as Gaussian(0.1), got {type(self.noise).__name__}")
        require_tensor("y", self.y)
        self.operator.check_measurement(self.y)
        if not (self.y.is_floating_point() or self.y.is_complex()):
            raise TypeError(f"y must be floating point or complex, got {self.y.dtype}; use y.float()")
        require_finite("y", self.y)
        self._check_noise()
        mask = self.operator.sampled()
        if mask is not None and mask.ndim == self.y.ndim:
            require_batch("y", self.y, mask.shape[0], "operator")
        if mask is not None and bool((self.y.masked_fill(mask, 0) != 0).any()):
            raise ValueError(
                "y must be 0 where the operator samples nothing, got other values; multiply it by the mask"
            )

    def _check_noise(self) -> None:
        y, noise = self.y, self.noise
        if isinstance(noise, (Poisson, TransmissionPoisson)):
            if y.is_complex() or bool((y < 0).any()):
                raise ValueError(
                    f"y must be counts >= 0 under {type(noise).__name__} noise, got complex or negative values; "
                    "state a background instead of subtracting it, or use Gaussian noise"
                )
            _check_broadcast("photons", noise.photons, y)
        elif isinstance(noise, Gaussian):
            _check_broadcast("sigma", noise.sigma, y)

    def measuring(self, y: Tensor) -> Problem:
        """The same with other measurements of the same shape and kind, which are not checked: for loops."""
        other = copy(self)
        other.__dict__.pop("_backprojection", None)
        object.__setattr__(other, "y", y)
        return other

    @property
    def count(self) -> Tensor:
        """How many real numbers were measured in each sample, (B,), int64: a complex entry counts twice."""
        mask = self.operator.sampled()
        entries = torch.ones_like(self.y, dtype=torch.bool) if mask is None else mask.expand(self.y.shape)
        return entries.flatten(1).sum(1) * (2 if self.y.is_complex() else 1)

    @property
    def is_quadratic(self) -> bool:
        """Whether the misfit is a quadratic: a linear operator under Gaussian noise."""
        return isinstance(self.operator, LinearOperator) and isinstance(self.noise, Gaussian)

    def misfit(self, x: Tensor) -> Tensor:
        """-log p(y | x) up to a constant, (B,)."""
        return self.noise.nll(self.operator(x), self.y, self.operator.sampled())

    def misfit_gradient(self, x: Tensor) -> Tensor:
        """Gradient of the misfit, (B, *signal)."""
        if self.is_quadratic:  # A^H A may be cheaper than A^H after A, and A^H y is the same at every iteration
            return self.normal(x) - _as(x, self.backprojection())
        return self.operator.vjp(x, self.noise.nll_gradient(self.operator(x), self.y))

    def normal(self, x: Tensor) -> Tensor:
        """A^H W A x with W = 1 / sigma^2, (B, *signal): the Hessian of a quadratic misfit; real for a real x.

        Raises:
            TypeError: the misfit is not quadratic.
        """
        operator, noise = self._quadratic()
        if _is_scalar(noise.sigma):
            return _as(x, operator.normal(x)) * noise.sigma**-2  # dividing complex numbers takes five times as long
        return _as(x, operator.adjoint(operator(x) / noise.sigma**2))

    def backprojection(self) -> Tensor:
        """A^H W y with W = 1 / sigma^2, (B, *signal), of a quadratic misfit; computed anew only after a change.

        Raises:
            TypeError: the misfit is not quadratic.
        """
        operator, noise = self._quadratic()
        sources = [
            t for t in (self.y, noise.sigma, *operator.parameters(), *operator.buffers()) if isinstance(t, Tensor)
        ]
        # a graph must not outlive its backward pass, nor a value without graph hide that one is wanted
        if any(t.requires_grad or t.is_inference() for t in sources):
            return operator.adjoint(self.y / noise.sigma**2)
        state = [(t._version, t.dtype, t.device) for t in sources]
        known: _Known | None = self.__dict__.get("_backprojection")
        if (
            known is None
            or known.state != state
            or any(a is not b for a, b in zip(known.sources, sources, strict=True))
        ):
            value = operator.adjoint(self.y / noise.sigma**2)
            if value.requires_grad or value.is_inference():
                return value
            known = self.__dict__["_backprojection"] = _Known(value, sources, state)
        return known.value

    def prox(
        self,
        z: Tensor,
        variance: Tensor | float,
        x0: Tensor | None = None,
        *,
        rtol: float = 1e-6,
        iterations: int = 100,
        check_every: int = 10,
    ) -> Tensor:
        """argmin_x misfit(x) + |x - z|^2 / (2 variance), (B, *signal), of a quadratic misfit.

        In closed form where the operator offers it, else by conjugate gradients to the stated accuracy.

        Args:
            z: centre, (B, *signal).
            variance: > 0, a number, () or (B, 1, ..., 1).
            x0: first guess of the conjugate gradients, default z.
            rtol, iterations, check_every: accuracy of the conjugate gradients, as in `cg`.

        Raises:
            TypeError: the misfit is not quadratic.
            ValueError: variance is a number <= 0.
        """
        operator, noise = self._quadratic()
        if not isinstance(variance, Tensor):
            require_positive("variance", variance)
        start, back = z if x0 is None else x0, _as(z, self.backprojection())
        real = self.backprojection().is_complex() and not z.is_complex()  # which the closed form does not know
        if _is_scalar(noise.sigma) and not real:
            shift = noise.sigma**2 / variance
            b = add_scaled(back * noise.sigma**2, shift, z)
            return solve_normal(
                operator, b, shift, x0=start, rtol=rtol, iterations=iterations, check_every=check_every
            ).x
        b = back + z / variance
        return cg(
            lambda x: add_scaled(self.normal(x), 1 / variance, x),
            b,
            x0=start,
            rtol=rtol,
            iterations=iterations,
            check_every=check_every,
        ).x

    def _quadratic(self) -> tuple[LinearOperator, Gaussian]:
        if isinstance(self.operator, LinearOperator) and isinstance(self.noise, Gaussian):
            return self.operator, self.noise
        raise TypeError(
            "this needs a LinearOperator and Gaussian noise, got "
            f"{type(self.operator).__name__} and {type(self.noise).__name__}; use GradientDescent or FISTA"
        )


@dataclass(frozen=True)
class _Known:
    """A value and what it was computed from: the tensors, and their versions, precisions and devices then."""

    value: Tensor
    sources: list[Tensor]
    state: list[tuple[int, torch.dtype, torch.device]]


def _as(x: Tensor, value: Tensor) -> Tensor:
    """The part of a gradient that a real x sees."""
    return value.real if value.is_complex() and not x.is_complex() else value


def _check_broadcast(name: str, level: float | Tensor, y: Tensor) -> None:
    """Raise unless a tensor of noise levels broadcasts to y without widening its shape or precision."""
    if _is_scalar(level) or not isinstance(level, Tensor):
        return
    trailing = y.shape[y.ndim - level.ndim :] if level.ndim <= y.ndim else ()
    if level.ndim > y.ndim or any(n not in (1, m) for n, m in zip(level.shape, trailing, strict=True)):
        raise ValueError(
            f"{name} must broadcast to y, {tuple(y.shape)}, got {tuple(level.shape)}; "
            f"one for each sample is {(y.shape[0], *(1,) * (y.ndim - 1))}"
        )
    if level.dtype != y.real.dtype:
        raise TypeError(f"{name} is {level.dtype} but y is {y.dtype}; use {name}.to({y.real.dtype})")


def _is_scalar(sigma: float | Tensor) -> bool:
    return not isinstance(sigma, Tensor) or sigma.ndim == 0
