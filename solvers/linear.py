"""Linear solves with I - scale J: by a factorised matrix, or by products alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .jacobian import Linearized

Product = Callable[[Tensor], Tensor]  # (blocks, size) -> (blocks, size)

DENSE_LIMIT = 256  # unknowns of a block up to which a matrix is the default
SAFE = 8  # resolutions of the dtype: no relative residual is asked to be below


class Inverse(ABC):
    """The inverse of I - scale J at one point, for any number of right-hand sides."""

    @abstractmethod
    def solve(self, b: Tensor) -> Tensor:
        """x with (I - scale J) x = b, shaped as the state; NaN in blocks where it is not found.

        Differentiable in b and, where it was made with gradients enabled, in all that J depends on.
        """


@dataclass(frozen=True)
class Dense:
    """Solve with the Jacobian as a matrix and its LU factors.

    The Jacobian costs as many forward derivatives of the field as there are unknowns, in one vectorised call. With
    per-sample steps there is one small matrix for each sample; with joint steps one for the whole state.
    """

    def inverse(self, linearized: Linearized, scale: float | Tensor) -> Inverse:
        """The inverse of I - scale J; `scale` is a number for each block."""
        return _DenseInverse(linearized, scale)

    def stiffness(self, linearized: Linearized, samples: bool) -> Tensor:
        """The infinity norm of the Jacobian: (B,) if `samples`, else ()."""
        return linearized.norm(samples)


@dataclass(frozen=True)
class GMRES:
    """Solve with products of the Jacobian alone, by restarted GMRES: for large states.

    No gradient goes through the iterations: that of the solution is found by solving with the transposed Jacobian.
    Rosenbrock methods, which differentiate the Jacobian, can then be differentiated once; asked for more they raise.
    A block that does not converge becomes NaN, which rejects its step. Each iteration reads one value from the device.

    Args:
        rtol: residual at which to stop, relative to the right-hand side; of each sample with per-sample steps.
        restart: directions kept at once.
        iterations: most products for one solve.

    Source: Saad and Schultz 1986; orthogonalised twice by classical Gram-Schmidt.
    """

    rtol: float = 1e-8
    restart: int = 40
    iterations: int = 400

    def __post_init__(self) -> None:
        if not 0 < self.rtol < 1:
            raise ValueError(f"rtol must be between 0 and 1, got {self.rtol}")
        for name in ("restart", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be an integer > 0, got {getattr(self, name)}")

    def inverse(self, linearized: Linearized, scale: float | Tensor) -> Inverse:
        """The inverse of I - scale J; `scale` is a number for each block."""
        return _KrylovInverse(self, linearized, scale)

    def stiffness(self, linearized: Linearized, samples: bool) -> Tensor:
        """An estimate of the largest |eigenvalue| of the Jacobian by power iterations: (B,) if `samples`, else ()."""
        return linearized.growth(samples)


Linear = Dense | GMRES


def chosen(linear: Linear | None, linearized: Linearized) -> Linear:
    """The linear solver; None chooses by the number of unknowns."""
    if linear is not None:
        return linear
    return Dense() if linearized.size <= DENSE_LIMIT else GMRES()


def require_linear(linear: object) -> None:
    """Raise unless this is a way to solve linear systems.

    Raises:
        TypeError: it is not.
    """
    if linear is not None and not isinstance(linear, (Dense, GMRES)):
        raise TypeError(f"linear must be Dense(), GMRES() or None, which chooses by the size, got {linear!r}")


class _DenseInverse(Inverse):
    def __init__(self, linearized: Linearized, scale: float | Tensor) -> None:
        self.linearized = linearized
        J = linearized.matrix()
        if J.dtype not in {torch.float32, torch.float64}:
            J = J.float()  # there are no LU factors in half precision
        spread = linearized.spread(scale)
        step = spread[..., None].to(J.dtype) if isinstance(spread, Tensor) else spread
        eye = torch.eye(linearized.size, dtype=J.dtype, device=J.device)
        self.factors, self.pivots, _ = torch.linalg.lu_factor_ex(eye - step * J)

    def solve(self, b: Tensor) -> Tensor:
        self.linearized.solved()
        rhs = self.linearized.coordinates(b)
        x = torch.linalg.lu_solve(self.factors, self.pivots, rhs[..., None].to(self.factors.dtype))
        return self.linearized.state(x[..., 0].to(rhs.dtype))


class _KrylovInverse(Inverse):
    def __init__(self, options: GMRES, linearized: Linearized, scale: float | Tensor) -> None:
        self.options, self.linearized = options, linearized
        spread = linearized.spread(scale)
        self.scale = spread.to(linearized.y.dtype.to_real()) if isinstance(spread, Tensor) else spread
        self.taped = torch.is_grad_enabled()

    def solve(self, b: Tensor) -> Tensor:
        self.linearized.solved()
        rhs = self.linearized.coordinates(b)
        return self.linearized.state(self._solve(rhs, self._forward, self._backward))

    def _solve(self, b: Tensor, product: Product, transposed: Product) -> Tensor:
        with torch.no_grad():
            x, converged = gmres(product, b, self.options.rtol, self.options.restart, self.options.iterations)
            x = torch.where(converged[:, None], x, torch.nan)
        if not torch.is_grad_enabled():
            return x
        if self.taped:
            residual = b - product(x)
        else:
            with torch.no_grad():
                constant = product(x)
            residual = b - constant

        def correction(gradient: Tensor) -> Tensor:
            return self._solve(gradient, transposed, product)

        Correction = _TapedCorrection if self.taped else _Correction
        shift: Tensor = Correction.apply(residual, correction)  # type: ignore[no-untyped-call]
        return x + shift

    def _forward(self, v: Tensor) -> Tensor:
        return v - self.scale * self.linearized.product(v)

    def _backward(self, v: Tensor) -> Tensor:
        return v - self.scale * self.linearized.transposed(v)


class _Correction(torch.autograd.Function):
    """Residual -> what solving for it would add: nothing in value, but with the gradient of the solve."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, solve_transposed: Product) -> Tensor:
        ctx.solve_transposed = solve_transposed
        ctx.save_for_backward(residual)
        return torch.zeros_like(residual)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.solve_transposed(gradient), None


class _TapedCorrection(_Correction):
    """Where J has gradients, too: x is a constant in its residual, which is right for first derivatives only."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        with torch.no_grad():
            found: Tensor = ctx.solve_transposed(gradient)
        if torch.is_grad_enabled():
            found = _Refusal.apply(found, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return found, None


class _Refusal(torch.autograd.Function):
    """The identity, which cannot be differentiated; it stands between what it is given and all that `origin` is of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, origin: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("Rosenbrock methods with GMRES() give first derivatives only: use linear=Dense()")


def gmres(product: Product, b: Tensor, rtol: float, restart: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Solve A x = b for independent blocks at once.

    Args:
        product: v -> A v, (blocks, size); applied to all blocks together.
        b: right-hand sides, (blocks, size).
        rtol: residual at which a block is done, relative to its b.
        restart: directions kept at once.
        iterations: most products.

    Returns:
        x, (blocks, size), and whether each block converged, (blocks,). What a block gets does not depend on others.
    """
    target = torch.linalg.vector_norm(b, dim=1) * max(rtol, SAFE * torch.finfo(b.dtype).eps)
    x, r, used = torch.zeros_like(b), b, 0
    while True:
        size = torch.linalg.vector_norm(r, dim=1)
        if used >= iterations or not bool((size > target).any()):
            return x, size <= target
        change, products = _cycle(product, r, target, min(restart, b.shape[1], iterations - used))
        x = x + change
        r = b - product(x)
        used += products + 1


def _cycle(product: Product, r: Tensor, target: Tensor, steps: int) -> tuple[Tensor, int]:
    """One cycle of GMRES from x = 0 for A x = r: x, and the products it took."""
    blocks, tiny = r.shape[0], torch.finfo(r.dtype).tiny
    size = torch.linalg.vector_norm(r, dim=1)
    basis = [r / size.clamp_min(tiny)[:, None]]
    rhs = [size]
    columns: list[list[Tensor]] = []  # of the triangular system
    turns: list[tuple[Tensor, Tensor]] = []  # the rotations that make it so
    done = size <= target
    for j in range(steps):
        Q = torch.stack(basis, dim=1)  # (blocks, j + 1, size)
        w = product(basis[-1])
        h = torch.zeros(blocks, j + 1, dtype=r.dtype, device=r.device)
        for _ in range(2):
            again = (Q @ w[..., None])[..., 0]
            w, h = w - (again[:, None] @ Q)[:, 0], h + again
        length = torch.linalg.vector_norm(w, dim=1)
        basis.append(w / length.clamp_min(tiny)[:, None])
        entries = list(h.unbind(1))
        for i, (c, s) in enumerate(turns):
            entries[i], entries[i + 1] = c * entries[i] + s * entries[i + 1], c * entries[i + 1] - s * entries[i]
        radius = torch.hypot(entries[j], length)
        c, s = entries[j] / radius.clamp_min(tiny), length / radius.clamp_min(tiny)
        entries[j] = radius
        # a block that is done goes on with directions of weight 0
        turns.append((torch.where(done, 1, c), torch.where(done, 0, s)))
        columns.append([torch.where(done, 0, e) for e in entries[:-1]] + [torch.where(done, 1, entries[j])])
        rhs[j : j + 1] = [torch.where(done, 0, c * rhs[j]), torch.where(done, rhs[j], -s * rhs[j])]
        done = done | (rhs[j + 1].abs() <= target)
        if bool(done.all()):
            break
    return _combined(basis, columns, rhs), len(columns)


def _combined(basis: list[Tensor], columns: list[list[Tensor]], rhs: list[Tensor]) -> Tensor:
    """The sum of the basis with the weights that solve the triangular system."""
    weights: list[Tensor] = [torch.empty(0)] * len(columns)
    tiny = torch.finfo(rhs[0].dtype).tiny
    for i in reversed(range(len(columns))):
        total = rhs[i]
        for k in range(i + 1, len(columns)):
            total = total - columns[k][i] * weights[k]
        pivot = columns[i][i]
        weights[i] = total / torch.where(pivot.abs() < tiny, tiny, pivot)
    return torch.stack([w[:, None] * q for w, q in zip(weights, basis, strict=False)]).sum(0)
