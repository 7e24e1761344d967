"""The contracts: forward operators, priors, denoisers. Every other file implements them or uses them."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from invreg._check import require_shape
from invreg.random import Generator

T = TypeVar("T")


class Operator(nn.Module, ABC):
    """A forward model x -> A(x), noise-free, batched: (B, *signal) -> (B, *measurement).

    `signal_shape` and `measurement_shape` are without the batch axis; None means any.
    `.to(dtype)`, `.float()`, `.double()` change the precision of all buffers: complex ones stay complex.
    """

    signal_shape: tuple[int, ...] | None
    measurement_shape: tuple[int, ...] | None

    def __init__(
        self, signal_shape: tuple[int, ...] | None = None, measurement_shape: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.signal_shape = None if signal_shape is None else tuple(signal_shape)
        self.measurement_shape = None if measurement_shape is None else tuple(measurement_shape)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A(x): (B, *signal) -> (B, *measurement); complex where the physics is."""

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """J(x)^H v: (B, *signal), (B, *measurement) -> (B, *signal). May be overridden by a faster form of the same."""
        differentiable = torch.is_grad_enabled() and (x.requires_grad or v.requires_grad or self._has_gradient())
        with torch.enable_grad():
            point = x if differentiable and x.requires_grad else x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self(point), point, v, create_graph=differentiable)
        return gradient

    def _has_gradient(self) -> bool:
        return any(t.requires_grad for t in itertools.chain(self.parameters(), self.buffers()))

    def sampled(self) -> Tensor | None:
        """Which entries of the measurement are measured: a bool mask that broadcasts to (B, *measurement).

        None means all. May be overridden by operators that leave zeros where nothing is measured;
        likelihoods, chi-square and parameter choice count only these entries.
        """
        return None

    def check_signal(self, x: Tensor) -> None:
        """Raise ValueError unless x is (B, *signal_shape)."""
        if self.signal_shape is not None:
            require_shape("x", x, self.signal_shape, f"the signal of {type(self).__name__}")

    def check_measurement(self, y: Tensor) -> None:
        """Raise ValueError unless y is (B, *measurement_shape)."""
        if self.measurement_shape is not None:
            require_shape("y", y, self.measurement_shape, f"the measurement of {type(self).__name__}")

    def __matmul__(self, other: Operator) -> Operator:
        """A @ B: first B, then A; linear if both are."""
        _require_operator("@", other, linear=False)
        if isinstance(self, LinearOperator) and isinstance(other, LinearOperator):
            return LinearComposition(self, other)
        return Composition(self, other)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Module.to(float64) would cast complex buffers to real ones, and .double() would leave them behind.
        super()._apply(lambda t: _keep_kind(t, fn), recurse)  # type: ignore[no-untyped-call]
        return self


def _keep_kind(t: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a device or precision change without turning complex into real or real into complex."""
    if t.is_complex():
        parts = torch.view_as_real(t.resolve_conj())
        moved = fn(parts)
        if moved is parts:
            return t
        return torch.view_as_complex((moved.real if moved.is_complex() else moved).contiguous())
    moved = fn(t)
    return moved.real.clone() if moved.is_complex() else moved


class LinearOperator(Operator):
    """A linear forward model with its exact adjoint: <A x, y> = <x, A^H y>.

    Algebra: `A @ B`, `A + B`, `A - B`, `c * A`, `-A`, `A.H`.
    """

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y: (B, *measurement) -> (B, *signal)."""

    def normal(self, x: Tensor) -> Tensor:
        """A^H A x. May be overridden where a cheaper form exists."""
        return self.adjoint(self(x))

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        gradient = self.adjoint(v)
        return gradient.real if gradient.is_complex() and not x.is_complex() else gradient

    @property
    def H(self) -> LinearOperator:
        """The adjoint as an operator; A.H.H is A."""
        return Adjoint(self)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        _require_operator("+", other, linear=True)
        return Sum(self, other)

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        _require_operator("-", other, linear=True)
        return Sum(self, Scaled(other, -1.0))

    def __neg__(self) -> LinearOperator:
        return Scaled(self, -1.0)

    def __rmul__(self, scale: complex | Tensor) -> LinearOperator:
        return Scaled(self, scale)


def _require_operator(symbol: str, other: object, *, linear: bool) -> None:
    if not isinstance(other, LinearOperator if linear else Operator):
        wanted = "a LinearOperator" if linear else "an Operator"
        hint = "; apply an operator with A(x)" if isinstance(other, Tensor) else ""
        raise TypeError(f"A {symbol} B needs {wanted} on its right, got {type(other).__name__}{hint}")


def _meet(a: tuple[int, ...] | None, b: tuple[int, ...] | None, what: str) -> tuple[int, ...] | None:
    """The known one of two shapes that must agree."""
    if a is not None and b is not None and a != b:
        raise ValueError(f"{what} must agree, got {a} and {b}")
    return b if a is None else a


class Composition(Operator):
    """x -> outer(inner(x)) where at least one of the two is not linear. Written `outer @ inner`."""

    def __init__(self, outer: Operator, inner: Operator) -> None:
        _meet(outer.signal_shape, inner.measurement_shape, "signal of the outer and measurement of the inner operator")
        super().__init__(inner.signal_shape, outer.measurement_shape)
        self.outer, self.inner = outer, inner

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.inner.vjp(x, self.outer.vjp(self.inner(x), v))

    def sampled(self) -> Tensor | None:
        return self.outer.sampled()


class LinearComposition(LinearOperator):
    """outer @ inner of two linear operators."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        _meet(outer.signal_shape, inner.measurement_shape, "signal of the outer and measurement of the inner operator")
        super().__init__(inner.signal_shape, outer.measurement_shape)
        self.outer, self.inner = outer, inner

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))

    def normal(self, x: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.normal(self.inner(x)))

    def sampled(self) -> Tensor | None:
        return self.outer.sampled()


class Adjoint(LinearOperator):
    """A.H."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.measurement_shape, operator.signal_shape)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator(y)

    @property
    def H(self) -> LinearOperator:
        return self.operator


class Sum(LinearOperator):
    """A + B."""

    def __init__(self, first: LinearOperator, second: LinearOperator) -> None:
        super().__init__(
            _meet(first.signal_shape, second.signal_shape, "signals of the summands"),
            _meet(first.measurement_shape, second.measurement_shape, "measurements of the summands"),
        )
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.first.adjoint(y) + self.second.adjoint(y)

    def sampled(self) -> Tensor | None:
        first, second = self.first.sampled(), self.second.sampled()
        return None if first is None or second is None else first | second


class Scaled(LinearOperator):
    """c * A; c a number or a 0-d tensor, which may require a gradient."""

    scale: complex | Tensor

    def __init__(self, operator: LinearOperator, scale: complex | Tensor) -> None:
        if not isinstance(scale, (int, float, complex, Tensor)) or (isinstance(scale, Tensor) and scale.ndim):
            raise TypeError(f"scale must be a number or a 0-d tensor, got {scale!r}")
        super().__init__(operator.signal_shape, operator.measurement_shape)
        self.operator = operator
        if isinstance(scale, Tensor) and not isinstance(scale, nn.Parameter):
            self.register_buffer("scale", scale)
        else:
            self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.operator(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return (
            self.scale.conj() * self.operator.adjoint(y)
            if isinstance(self.scale, Tensor)
            else (self.scale.conjugate() * self.operator.adjoint(y))
        )

    def normal(self, x: Tensor) -> Tensor:
        power = (self.scale.conj() * self.scale).real if isinstance(self.scale, Tensor) else abs(self.scale) ** 2
        return power * self.operator.normal(x)

    def sampled(self) -> Tensor | None:
        return self.operator.sampled()


@runtime_checkable
class NormalSolvable(Protocol):
    """A faculty of a LinearOperator: (A^H A + shift I) x = b in closed form."""

    def solve_normal(self, b: Tensor, shift: Tensor) -> Tensor:
        """x, shaped as b, (B, *signal); shift > 0 broadcasts to b: () or (B, 1, ..., 1)."""
        ...


class Noise(ABC):
    """How measurements scatter about the clean ones; its negative log-likelihood is the data term."""

    @abstractmethod
    def sample(self, clean: Tensor, generator: Generator = None) -> Tensor:
        """A noisy measurement of `clean`, (B, *measurement)."""

    @abstractmethod
    def nll_terms(self, clean: Tensor, y: Tensor) -> Tensor:
        """-log p(y | clean) of each entry up to a constant that depends on y only, real, shaped as y.

        0 where clean explains y best.
        """

    def nll(self, clean: Tensor, y: Tensor, sampled: Tensor | None = None) -> Tensor:
        """The sum of `nll_terms` over the entries that are sampled (bool, broadcasts to y; default all), (B,)."""
        terms = self.nll_terms(clean, y)
        return (terms if sampled is None else torch.where(sampled, terms, 0)).flatten(1).sum(1)

    @abstractmethod
    def nll_gradient(self, clean: Tensor, y: Tensor) -> Tensor:
        """Gradient of `nll` in `clean`, as autograd gives it: d/d re + i d/d im for complex entries."""


@runtime_checkable
class ProximalNoise(Protocol):
    """A faculty of a Noise: the proximal map of its negative log-likelihood."""

    def prox(self, z: Tensor, y: Tensor, step: Tensor | float) -> Tensor:
        """argmin_c step * nll(c, y) + |c - z|^2 / 2, shaped as z; step broadcasts."""
        ...


class Regularizer(nn.Module, ABC, Generic[T]):
    """weight * R(x) of an image, a trajectory, a map or a field, as its argument type T says.

    The promise is the gradient. `exact`: the number is also the penalty, not a surrogate. `finite`: of no image is it
    infinite (as for constraints). `cheap`: it takes no longer than a few proxes; else histories leave it out.
    """

    exact: ClassVar[bool] = True
    finite: ClassVar[bool] = True
    cheap: ClassVar[bool] = True
    weight: float | Tensor

    def __init__(self, weight: float | Tensor = 1.0) -> None:
        super().__init__()
        if isinstance(weight, Tensor):
            if weight.ndim or weight.is_complex():
                raise ValueError(f"weight must be a real 0-d tensor or a number, got shape {tuple(weight.shape)}")
        elif isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise TypeError(f"weight must be a number or a 0-d tensor, got {type(weight).__name__}")
        elif not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be finite and >= 0, got {weight}")
        self.weight = weight

    if TYPE_CHECKING:

        def __call__(self, x: T) -> Tensor: ...

    @abstractmethod
    def forward(self, x: T) -> Tensor:
        """Weight * R(x): one number per independent problem, (B,) or ()."""

    def at(self, progress: float) -> Regularizer[T]:
        """The regularizer to use when `progress` (0 to 1) of the iterations are done. May be overridden: annealing."""
        return self


@runtime_checkable
class Proximal(Protocol):
    """A faculty: a proximal map. Plug-and-play priors have it and no value."""

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """argmin_z step * weight * R(z) + |z - x|^2 / 2, shaped as x; step is () or broadcasts as (B, 1, ..., 1)."""
        ...


@runtime_checkable
class ConvexPotential(Protocol):
    """A faculty: a convex function psi of a signal, whose gradient is the proximal map of some penalty."""

    @property
    def strong_convexity(self) -> float:
        """The modulus m >= 0: psi - m / 2 |x|^2 is convex, too."""
        ...

    def value(self, x: Tensor) -> Tensor:
        """psi(x), (B, *signal) -> (B,)."""
        ...

    def gradient(self, x: Tensor) -> Tensor:
        """Its gradient, shaped as x; differentiable in x where x requires a gradient and gradients are enabled."""
        ...


@runtime_checkable
class Splitting(Protocol):
    """A faculty: R(x) = sum_i h_i(L_i x) with every h_i proximal; what PDHG and ADMM take. L_i None is the identity."""

    @property
    def terms(self) -> tuple[tuple[LinearOperator | None, Proximal], ...]: ...


class Denoiser(nn.Module, ABC):
    """E[x0 | x0 + sigma n = x]: the one face of denoising networks, diffusion and flow models.

    sigma is the standard deviation of each real component of the noise, also where x is complex.
    """

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The least and the largest noise level that it is made for. May be overridden; the default is any."""
        return 0.0, float("inf")

    @property
    def image_scale(self) -> float:
        """The size of the images that it is made for, in whose units default noise levels and weights are.

        May be overridden; the default is 1.
        """
        return 1.0

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor: ...

    @abstractmethod
    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The denoised x, (B, *signal); sigma is () or (B,), in the units of x."""
