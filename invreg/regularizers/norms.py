"""Norms and constraints with exact proximal maps, and what the other regularizers of this folder share with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from invreg._check import require_count, require_positive, require_same_precision
from invreg.interfaces import LinearOperator, NormalSolvable, Regularizer
from invreg.linalg import cg, expand, norm, solve_normal

Pullback = Callable[[Tensor], tuple[Tensor, Tensor]]


def scaled_step(weight: float | Tensor, step: float | Tensor, x: Tensor) -> float | Tensor:
    """Weight * step: a number, or real like x and shaped () or (B, 1, ..., 1).

    Raises:
        ValueError: step is a tensor of another shape.
    """
    if isinstance(step, Tensor) and step.ndim:
        if step.ndim != x.ndim or step.numel() != step.shape[0]:
            wanted = ", ".join(["B", *["1"] * (x.ndim - 1)])
            raise ValueError(f"step must be a number, () or ({wanted}), got shape {tuple(step.shape)}")
        step = step.to(x.real.dtype)
    return weight * step


def sample_sum(values: Tensor) -> Tensor:
    """Sum over all but the batch axis, (B,)."""
    return values.reshape(values.shape[0], -1).sum(1)


def group_norm(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Euclidean norm over `axes`, which stay with length 1; real; its gradient at a zero group is zero."""
    square = x.real.square() + x.imag.square() if x.is_complex() else x.square()
    square = square.sum(
        axes, keepdim=True
    )  # many times faster on a CPU than torch.linalg.vector_norm over a short axis
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), square)


def shrink(x: Tensor, size: Tensor, threshold: float | Tensor) -> Tensor:
    """X shortened by `threshold` where its group has norm `size`; zero where that is shorter."""
    kept = size >= threshold
    factor = torch.where(kept, 1 - threshold / torch.where(kept & (size > 0), size, 1), 0)
    return x * factor


def binary_scale(x: Tensor) -> Tensor:
    """The power of two next to each sample's norm, (B, 1, ..., 1): dividing by it is exact, squares stay in range."""
    return expand(torch.exp2(torch.frexp(norm(x)).exponent.to(x.real.dtype)), x)


class ImplicitProx(torch.autograd.Function):
    """A proximal map whose derivative is computed from its optimality conditions, not from a tape of iterations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, t: Tensor, z: Tensor, pullback: Pullback) -> Tensor:
        """Z, already computed from x and t; `pullback` maps a gradient in z to those in x and in t, the latter (B,)."""
        ctx.pullback, ctx.t_shape = pullback, t.shape
        return z.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The gradients in x and t."""
        to_x, to_t = ctx.pullback(gradient)
        to_t = to_t.sum() if ctx.t_shape.numel() == 1 else to_t
        return to_x, to_t.reshape(ctx.t_shape), None, None


def threshold_tensor(t: float | Tensor, x: Tensor) -> Tensor:
    """T as a real tensor of x's precision and device, () or (B, 1, ..., 1)."""
    real = x.real.dtype
    return t.to(x.device, real) if isinstance(t, Tensor) else x.new_full((), t, dtype=real)


def needs_graph(x: Tensor, t: Tensor) -> bool:
    """Whether a gradient in x or t is asked for."""
    return torch.is_grad_enabled() and (x.requires_grad or t.requires_grad)


class L1(Regularizer[Tensor]):
    """weight * sum_i |x_i|, with the modulus of complex entries.

    Args:
        weight: >= 0, a number or a 0-d tensor, which may require a gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * sample_sum(x.abs())

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """Soft thresholding, exact: every modulus falls by step * weight, the phase stays."""
        t = scaled_step(self.weight, step, x)
        if x.is_complex():
            return shrink(x, x.abs(), t)
        t = threshold_tensor(t, x)
        return x - x.clamp(-t, t)


class GroupL1(Regularizer[Tensor]):
    """weight * sum over groups of |x_group|_2; a group is what lies along `axis`.

    Args:
        weight: >= 0, a number or a 0-d tensor, which may require a gradient.
        axis: one or several axes of (B, ...), not the batch; negative counts from the end.

    Raises:
        ValueError: axis is 0, the batch axis, or repeats.
    """

    def __init__(self, weight: float | Tensor = 1.0, axis: int | tuple[int, ...] = 1) -> None:
        super().__init__(weight)
        axes = (axis,) if isinstance(axis, int) else tuple(axis)
        if not axes or 0 in axes or len(set(axes)) != len(axes):
            raise ValueError(f"axis must name different axes, and not 0, the batch axis, got {axis}")
        self.axis = axes

    def _axes(self, x: Tensor) -> tuple[int, ...]:
        axes = tuple(a % x.ndim if -x.ndim < a < x.ndim else 0 for a in self.axis)
        if 0 in axes:
            raise ValueError(f"axis {self.axis} must lie within (B, ...) behind the batch, got x {tuple(x.shape)}")
        return axes

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * sample_sum(group_norm(x, self._axes(x)))

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """Block soft thresholding, exact: every group's norm falls by step * weight, its direction stays."""
        return shrink(x, group_norm(x, self._axes(x)), scaled_step(self.weight, step, x))


class Tikhonov(Regularizer[Tensor]):
    """weight / 2 * |L x|^2.

    Args:
        weight: >= 0, a number or a 0-d tensor, which may require a gradient.
        operator: L, default the identity.
        rtol, iterations: accuracy of the conjugate gradients in `prox`, relative to |x|, and their limit; not used
            for the identity or where L solves its normal equations in closed form. It warns where they were not enough
            for rtol, unless it is the precision that ends them.

    Raises:
        TypeError: operator is not a LinearOperator.
    """

    def __init__(
        self,
        weight: float | Tensor = 1.0,
        operator: LinearOperator | None = None,
        *,
        rtol: float = 1e-6,
        iterations: int = 1000,
    ) -> None:
        super().__init__(weight)
        if operator is not None and not isinstance(operator, LinearOperator):
            raise TypeError(f"operator must be a LinearOperator or None, got {type(operator).__name__}")
        require_positive("rtol", rtol, zero_allowed=True)
        require_count("iterations", iterations)
        self.operator, self.rtol, self.iterations = operator, rtol, iterations

    def forward(self, x: Tensor) -> Tensor:
        image = x if self.operator is None else self.operator(x)
        square = image.real.square() + image.imag.square() if image.is_complex() else image.square()
        return self.weight * sample_sum(square) / 2

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """(I + step * weight * L^H L)^-1 x: closed form where L offers it, else conjugate gradients to `rtol`."""
        t = scaled_step(self.weight, step, x)
        operator = self.operator
        if operator is None:
            return x / (1 + t)
        if isinstance(operator, NormalSolvable):
            t = threshold_tensor(t, x)
            safe = torch.where(t > 0, t, 1)
            return torch.where(t > 0, solve_normal(operator, x / safe, 1 / safe).x, x)
        found = cg(
            lambda z: z + t * operator.normal(z), x, x0=x, rtol=self.rtol, iterations=self.iterations, check_every=5
        )
        short = ~found.converged & (found.iterations >= self.iterations)
        if self.rtol and bool(short.any()):
            warnings.warn(
                f"Tikhonov.prox reached accuracy {float(found.residual[short].max()):.1e} > rtol = {self.rtol:g} "
                f"in {self.iterations} iterations; raise iterations or loosen rtol",
                stacklevel=2,
            )
        return found.x

    @property
    def terms(self) -> tuple[tuple[LinearOperator | None, Tikhonov], ...]:
        """The square norm of L x, with the weight."""
        return ((self.operator, Tikhonov(self.weight)),)


class Box(Regularizer[Tensor]):
    """0 where lower <= x <= upper everywhere, else infinity; for real x. Its weight is 1 and changes nothing.

    Args:
        lower, upper: bounds, numbers or tensors that broadcast to (B, *signal); None is no bound.

    Raises:
        ValueError: neither is given, or lower > upper somewhere.
        TypeError: (when used) x is complex.
    """

    finite: ClassVar[bool] = False
    lower: float | Tensor | None
    upper: float | Tensor | None

    def __init__(self, lower: float | Tensor | None = None, upper: float | Tensor | None = None) -> None:
        super().__init__()
        if lower is None and upper is None:
            raise ValueError("lower or upper must be given, got neither")
        if lower is not None and upper is not None and bool((torch.as_tensor(lower) > torch.as_tensor(upper)).any()):
            raise ValueError(f"lower must be <= upper, got {lower} and {upper}")
        for name, bound in (("lower", lower), ("upper", upper)):
            if isinstance(bound, Tensor) and not isinstance(bound, nn.Parameter):
                self.register_buffer(name, bound)
            else:
                setattr(self, name, bound)

    def forward(self, x: Tensor) -> Tensor:
        return indicator(x, self.prox(x, 1.0))

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """The projection, exact; the same for every step."""
        require_real(x, "Box")
        for name, bound in (("lower", self.lower), ("upper", self.upper)):
            if isinstance(bound, Tensor) and bound.ndim:
                require_same_precision(name, bound, "x", x)
        x = x if self.lower is None else x.clamp(min=self.lower)
        return x if self.upper is None else x.clamp(max=self.upper)


class NonNegative(Regularizer[Tensor]):
    """0 where x >= 0 everywhere, else infinity; for real x. Its weight is 1 and changes nothing.

    Raises:
        TypeError: (when used) x is complex.
    """

    finite: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return indicator(x, self.prox(x, 1.0))

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """The projection, exact; the same for every step."""
        require_real(x, "NonNegative")
        return x.clamp_min(0)


def indicator(x: Tensor, projected: Tensor) -> Tensor:
    """0 where x is its own projection, else infinity, (B,); its gradient is 0."""
    violation = sample_sum((x - projected).abs())
    return torch.where(violation > 0, torch.inf, violation)


def require_real(x: Tensor, name: str) -> None:
    """Raise TypeError if x is complex: order has no meaning there."""
    if x.is_complex():
        raise TypeError(f"{name} needs a real x, got {x.dtype}; constrain x.real, or use a prior of the modulus")
