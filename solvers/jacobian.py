"""The dynamics made linear at one point: products with the Jacobian, the Jacobian itself, the derivative in time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .dynamics import Dynamics
from .method import Dynamics as Field

CHUNK = 2**22  # numbers in the tangents that are pushed forward at once
SWEEPS = 5  # of the power iteration that estimates a stiffness without a matrix


class Linearized:
    """The dynamics near (t, y), in real coordinates (blocks, size).

    Where t is (B, 1, ..., 1) the samples are independent: B blocks, of which one product with the Jacobian serves all.
    Where t is () the state is one block, whatever its axes mean. A complex state counts as its real and imaginary
    parts, which is right for fields that are not holomorphic, too. What is computed with gradients enabled carries
    them: to t, y, and what the dynamics hold. Nothing here counts as an evaluation of the field.

    Forward mode is used, vectorised over the columns where the field allows it (`torch.func.vmap`); else column by
    column; and reverse mode for fields that forward mode cannot pass, such as those that call `torch.autograd.grad`.
    """

    def __init__(self, dynamics: Field, t: Tensor, y: Tensor) -> None:
        self.field = uncounted(dynamics)
        self.t, self.y = t, y
        self.blocks = y.shape[0] if t.ndim else 1
        self.size = y.numel() // max(self.blocks, 1) * (2 if y.is_complex() else 1)
        self._matrix: Tensor | None = None
        self._dynamics = dynamics

    def coordinates(self, y: Tensor) -> Tensor:
        """(*y) -> (blocks, size)."""
        return (torch.view_as_real(y) if y.is_complex() else y).reshape(self.blocks, self.size)

    def state(self, x: Tensor) -> Tensor:
        """(blocks, size) -> (*y)."""
        if self.y.is_complex():
            return torch.view_as_complex(x.reshape(*self.y.shape, 2))
        return x.reshape(self.y.shape)

    def spread(self, scale: float | Tensor) -> float | Tensor:
        """A number for each block, in whatever shape broadcasts to y -> (blocks, 1)."""
        return scale.reshape(-1, 1) if isinstance(scale, Tensor) else scale

    def product(self, v: Tensor) -> Tensor:
        """J v, (blocks, size)."""
        return pushed(self._flat, self.coordinates(self.y), v)

    def transposed(self, v: Tensor) -> Tensor:
        """J^T v, (blocks, size)."""
        return pulled(self._flat, self.coordinates(self.y), v)

    def time_derivative(self) -> Tensor:
        """df/dt at fixed y, shaped as y."""
        return pushed(lambda t: self.field(t, self.y), self.t, torch.ones_like(self.t))

    def matrix(self) -> Tensor:
        """J, (blocks, size, size): rows are the outputs."""
        if self._matrix is None:
            count(self._dynamics, jacobians=1)
            x = self.coordinates(self.y)
            self._matrix = jacobian(self._flat, x) if x.numel() else x.new_zeros(self.blocks, self.size, self.size)
        return self._matrix

    def solved(self) -> None:
        """Count a linear solve."""
        count(self._dynamics, solves=1)

    def norm(self, samples: bool) -> Tensor:
        """The infinity norm of J, which bounds its eigenvalues: (B,), of the rows of each sample, or ()."""
        rows = self.matrix().abs().sum(-1)
        if not rows.numel():
            return rows.new_zeros(self.y.shape[:1] if samples else ())
        return rows.reshape(self.y.shape[0], -1).amax(1) if samples else rows.amax()

    def growth(self, samples: bool) -> Tensor:
        """|J v| / |v| after some sweeps of the power iteration, an estimate of the largest |eigenvalue| from below.

        (B,) if `samples`, else (). Gradients take v for a constant.
        """

        def norm(v: Tensor) -> Tensor:
            flat = v.reshape(self.y.shape[0], -1) if samples else v.reshape(1, -1)
            size: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
            return size

        def scaled(v: Tensor) -> Tensor:
            size: Tensor = norm(v).clamp_min(torch.finfo(v.dtype).tiny)
            return (v.reshape(size.shape[0], -1) / size).reshape(v.shape)

        with torch.no_grad():
            x = self.coordinates(self.y)
            phases = torch.arange(self.size, dtype=x.dtype, device=x.device)
            v = scaled((1 + (phases * 2.4).cos()).expand_as(x))  # in no eigenspace of matrices that one meets
            for _ in range(SWEEPS):
                v = scaled(self.product(v))
        return norm(self.product(v)).reshape(self.y.shape[:1] if samples else ())

    def _flat(self, x: Tensor) -> Tensor:
        return self.coordinates(self.field(self.t, self.state(x)))


def count(dynamics: Field, jacobians: int = 0, solves: int = 0) -> None:
    """Add to the counts that `Dynamics` keep; replays do not count."""
    if isinstance(dynamics, Dynamics):
        dynamics.jacobians += jacobians
        dynamics.solves += solves


def uncounted(dynamics: Field) -> Field:
    """The dynamics without the count of their evaluations."""
    return dynamics.evaluate if isinstance(dynamics, Dynamics) else dynamics


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The Jacobian (blocks, size, size) of a function of (blocks, size) whose blocks are independent."""
    blocks, size = x.shape
    basis = torch.eye(size, dtype=x.dtype, device=x.device)[:, None].expand(size, blocks, size)

    def column(v: Tensor) -> Tensor:
        return torch.func.jvp(function, (x,), (v,))[1]  # type: ignore[no-any-return]

    chunk = max(1, CHUNK // max(x.numel(), 1))
    try:
        columns = torch.func.vmap(column, chunk_size=chunk, randomness="same")(basis)
    except (RuntimeError, NotImplementedError):
        try:
            columns = torch.stack([column(v) for v in basis])
        except (RuntimeError, NotImplementedError):
            rows = [pulled(function, x, v) for v in basis]
            return torch.stack(rows).transpose(0, 1)
    return columns.permute(1, 2, 0)


def pushed(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """The derivative of a function at x along v."""
    try:
        return torch.func.jvp(function, (x,), (v,))[1]  # type: ignore[no-any-return]
    except (RuntimeError, NotImplementedError):
        pass
    taped = torch.is_grad_enabled()
    with torch.enable_grad():  # twice in reverse: u -> J^T u is linear, and its own transposed is J
        point = x if x.requires_grad else x.detach().requires_grad_()
        out = function(point)
        u = torch.zeros_like(out, requires_grad=True)
        pull = _pull(out, point, u, taped=True)
        return torch.zeros_like(out) if pull.grad_fn is None else _pull(pull, u, v, taped)


def pulled(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """The transposed derivative of a function at x, applied to v."""
    taped = torch.is_grad_enabled()
    with torch.enable_grad():
        # its own node, so that the gradient is of this evaluation only
        point = x.view_as(x) if taped and x.requires_grad else x.detach().requires_grad_()
        return _pull(function(point), point, v, taped)


def _pull(out: Tensor, x: Tensor, v: Tensor, taped: bool) -> Tensor:
    if out.grad_fn is None:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(out, x, v, create_graph=taped, allow_unused=True)
    return torch.zeros_like(x) if found is None else found
