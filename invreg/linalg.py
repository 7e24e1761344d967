"""Batched iterative linear algebra: CG and LSQR with relative per-sample stopping."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invreg._check import require_count, require_positive, require_tensor
from invreg.interfaces import LinearOperator, NormalSolvable

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class LinearSolve:
    """The result of a batched iterative solve.

    Args:
        x: the solutions, (B, *signal).
        residual: final residual norm relative to the right-hand side's, (B,); for `lsqr` see there.
        iterations: iterations each sample took, (B,), int64.
        converged: whether each sample met its tolerance, (B,), bool.
    """

    x: Tensor
    residual: Tensor
    iterations: Tensor
    converged: Tensor


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Real part of <a, b> for each sample, (B,): the inner product that gradients of real functions see."""
    if a.is_complex():
        a, b = _real_view(a), _real_view(b)
    return (a * b).flatten(1).sum(1)


def _real_view(a: Tensor) -> Tensor:
    return torch.view_as_real(a.resolve_conj())


def norm(a: Tensor) -> Tensor:
    """Euclidean norm of each sample, (B,); its gradient at zero is zero, and no square under- or overflows."""
    flat = (_real_view(a) if a.is_complex() else a).flatten(1)
    if flat.dtype in (torch.float16, torch.bfloat16):  # many entries: their squares need more range and digits
        return norm(flat.float()).to(flat.dtype)
    largest = flat.detach().abs().amax(1, keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    square = (flat / scale).square().sum(1)
    zero = square == 0  # NaN is not zero: it must show
    return torch.where(zero, 0, torch.where(zero, 1, square).sqrt() * scale[:, 0])


def expand(per_sample: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1), to broadcast against `like`."""
    return per_sample.reshape(-1, *(1,) * (like.ndim - 1))


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """A / b where b > 0, else 0: no absolute epsilon, so that nothing depends on scale."""
    return torch.where(b > 0, a / b, 0)


def cg(
    apply: Map,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    rtol: float = 1e-6,
    iterations: int = 100,
    check_every: int = 10,
    preconditioner: Map | None = None,
) -> LinearSolve:
    """Conjugate gradients for H x = b, every sample at its own pace, differentiable implicitly.

    A sample stops once |b - H x| <= rtol |b|; it is then frozen while others go on. The host looks every
    `check_every` iterations. Solving for c b gives c times the path of b, whatever the scale.
    Where the recurrence meets the tolerance, the true residual is computed, and the iteration restarts from it if it
    does not (by ten machine epsilons), so the one reported is true; a tolerance below what the precision allows, about
    the epsilon times the condition number, reads as not converged. With rtol = 0 the recurrence is taken at its word,
    down to rounding.
    The backward pass solves one more system with H to the same tolerance; gradients reach b and every tensor that
    `apply` closes over. Differentiable once.

    Args:
        apply: x -> H x with H Hermitian positive definite, (B, *signal) -> (B, *signal).
        b: right-hand sides, (B, *signal), real or complex.
        x0: first guess, default zero.
        rtol: relative tolerance on the residual; 0 runs all iterations and never looks at the device.
        iterations: at most so many.
        check_every: iterations between two looks at the device.
        preconditioner: x -> M x, Hermitian positive definite, near the inverse of H.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, or shapes that differ.

    Source: Hestenes and Stiefel 1952.
    """
    require_tensor("b", b)
    _check_options(rtol, iterations, check_every)
    if x0 is not None and x0.shape != b.shape:
        raise ValueError(f"x0 must have the shape of b, {tuple(b.shape)}, got {tuple(x0.shape)}")
    if x0 is not None and x0.is_complex() and not b.is_complex():
        raise TypeError(f"x0 must be real as b is, {b.dtype}, got {x0.dtype}; use x0.real")
    if x0 is not None and x0.real.dtype != b.real.dtype:
        raise TypeError(f"x0 must have the precision of b, {b.dtype}, got {x0.dtype}; use x0.to(b.dtype)")
    with torch.no_grad():
        found = _cg(apply, b, x0, rtol, iterations, check_every, preconditioner)
    if not torch.is_grad_enabled():
        return found
    # the remainder is zero in value (to tolerance) but carries the graph of b and of all that `apply` closes over:
    # d x = H^-1 (d b - d H x) is the implicit function theorem
    return _with_graph(
        found, b - apply(found.x), lambda g: _cg(apply, g, None, rtol, iterations, check_every, preconditioner).x
    )


def _check_options(rtol: float, iterations: int, check_every: int) -> None:
    require_positive("rtol", rtol, zero_allowed=True)
    require_count("iterations", iterations, least=0)
    require_count("check_every", check_every)


def _with_graph(found: LinearSolve, remainder: Tensor, solve: Map) -> LinearSolve:
    """The same solution, differentiable if `remainder` is; `solve` is g -> H^-1 g."""
    if not remainder.requires_grad:
        return found
    x: Tensor = _ImplicitSolution.apply(remainder, found.x, solve)  # type: ignore[no-untyped-call]
    return LinearSolve(x, found.residual, found.iterations, found.converged)


class _ImplicitSolution(torch.autograd.Function):
    """The solution in the forward pass, H^-1 g to the remainder in the backward pass."""

    @staticmethod
    def forward(ctx: Any, remainder: Tensor, x: Tensor, solve: Map) -> Tensor:
        ctx.solve = solve
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.solve(gradient), None, None


def _cg(
    apply: Map, b: Tensor, x0: Tensor | None, rtol: float, iterations: int, check_every: int, preconditioner: Map | None
) -> LinearSolve:
    if b.is_complex():  # complex arithmetic is several times slower than that of the two parts
        found = _cg(
            _on_parts(apply),
            _real_view(b),
            None if x0 is None else _real_view(x0.to(b.dtype)),
            rtol,
            iterations,
            check_every,
            None if preconditioner is None else _on_parts(preconditioner),
        )
        return LinearSolve(torch.view_as_complex(found.x), found.residual, found.iterations, found.converged)
    size = norm(b)
    solvable = size > 0
    unit = expand(torch.where(solvable, size, 1), b)
    b = b / unit  # so that no square under- or overflows, at any scale of b
    if x0 is None:
        x, residual = torch.zeros_like(b), b
    else:
        x = (x0 / expand(torch.where(solvable, size, torch.inf), b)).to(b.dtype)  # b = 0 has the solution 0
        residual = b - apply(x)
    threshold = rtol * solvable.to(size.dtype)
    accepted = (rtol + 10 * torch.finfo(size.dtype).eps) * solvable.to(size.dtype) if rtol else threshold
    goal, start = threshold, torch.full_like(size, torch.inf)
    if not rtol:  # behind rounding there is nothing to follow, and a singular H would lead astray
        goal = torch.finfo(size.dtype).eps * solvable.to(size.dtype)
    taken, left = torch.zeros_like(size, dtype=torch.int64), iterations
    while True:
        x, error, steps, used = _descend(apply, preconditioner, x, residual, goal, left, check_every if rtol else 0)
        taken, left = taken + steps, left - used
        if rtol == 0 or not used or not bool(((error <= goal) & (goal == threshold)).any()):
            break
        residual = b - apply(x)
        error = norm(residual)
        # the recurrence promised too much, unless this is as good as the precision allows
        again = (error > accepted) & (error < 0.5 * start)
        if not left or not bool(again.any()):
            break
        goal, start = torch.where(again, threshold, torch.inf), error
    return LinearSolve(x * unit, error, taken, (error <= accepted) & size.isfinite())


def _on_parts(apply: Map) -> Map:
    """The same map between real and imaginary parts on a last axis of their own."""
    return lambda parts: _real_view(apply(torch.view_as_complex(parts)))


def _descend(
    apply: Map, preconditioner: Map | None, x: Tensor, residual: Tensor, goal: Tensor, iterations: int, check_every: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Conjugate directions until each residual is within its goal: x, residual norms, steps of each, steps of all."""
    z = residual if preconditioner is None else preconditioner(residual)
    direction, rho = z, inner(residual, z)
    error = (rho if preconditioner is None else inner(residual, residual)).sqrt()
    active, taken = error > goal, torch.zeros_like(error, dtype=torch.int64)
    for k in range(iterations):
        if check_every and k % check_every == 0 and not bool(active.any()):
            return x, error, taken, k
        image = apply(direction)
        bend = inner(direction, image)
        step = torch.where(active & (bend > 0), rho / bend, 0)
        x = torch.addcmul(x, expand(step, x), direction)
        residual = torch.addcmul(residual, expand(step, x), image, value=-1)
        z = residual if preconditioner is None else preconditioner(residual)
        rho_next = inner(residual, z)
        direction = torch.addcmul(z, expand(_divide(rho_next, rho), x), direction)
        taken = taken + active
        squared = rho_next if preconditioner is None else inner(residual, residual)
        error = torch.where(active, squared.sqrt(), error)
        rho = rho_next
        active = active & (error > goal)
    return x, error, taken, iterations


def solve_normal(
    operator: LinearOperator,
    b: Tensor,
    shift: Tensor | float,
    *,
    x0: Tensor | None = None,
    rtol: float = 1e-6,
    iterations: int = 100,
    check_every: int = 10,
) -> LinearSolve:
    """X with (A^H A + shift) x = b, in closed form where the operator offers it, else by `cg`.

    Args:
        operator: A.
        b: (B, *signal).
        shift: > 0, a number, () or (B, 1, ..., 1); 0 only where A^H A is invertible.
        x0, rtol, iterations, check_every: as in `cg`.

    Raises:
        ValueError: shift is a number < 0.
    """
    if not isinstance(shift, Tensor):
        require_positive("shift", shift, zero_allowed=True)
    if isinstance(operator, NormalSolvable):
        real = b.real.dtype
        level = shift.to(b.device, real) if isinstance(shift, Tensor) else b.real.new_full((), shift)
        x = operator.solve_normal(b, level)
        zero = torch.zeros(b.shape[0], dtype=real, device=b.device)
        return LinearSolve(x, zero, zero.long(), x.detach().isfinite().flatten(1).all(1))
    return cg(
        lambda x: add_scaled(operator.normal(x), shift, x),
        b,
        x0=x0,
        rtol=rtol,
        iterations=iterations,
        check_every=check_every,
    )


def add_scaled(a: Tensor, factor: Tensor | float, b: Tensor) -> Tensor:
    """A + factor * b for a real factor, a number or a tensor that broadcasts to b, in one pass."""
    if a.is_complex() and b.is_complex():
        parts = factor[..., None] if isinstance(factor, Tensor) and factor.ndim else factor
        return torch.view_as_complex(add_scaled(_real_view(a), parts, _real_view(b)))
    if isinstance(factor, Tensor):
        return torch.addcmul(a, factor, b)
    return torch.add(a, b, alpha=factor)


def lsqr(
    operator: LinearOperator,
    y: Tensor,
    *,
    damping: float = 0.0,
    rtol: float = 1e-6,
    iterations: int = 100,
    check_every: int = 10,
) -> LinearSolve:
    """argmin_x |A x - y|^2 + damping^2 |x|^2 by Golub-Kahan bidiagonalisation, every sample at its own pace.

    A sample stops once |A^H r - damping^2 x| <= rtol |A| |r| (estimates of the recurrence), or |r| <= rtol |y|.
    It needs no A^H A and so sees the condition number of A once, where CG on the normal equations sees it twice.
    Gradients reach y and A's tensors implicitly if damping > 0 or A has full column rank.

    Args:
        operator: A, (B, *signal) -> (B, *measurement).
        y: measurements, (B, *measurement).
        damping: >= 0.
        rtol: relative tolerance of either stopping rule.
        iterations: at most so many.
        check_every: iterations between two looks at the device.

    Returns:
        `residual` is the smaller of the two relative measures above.

    Source: Paige and Saunders 1982, "LSQR", with their stopping rules 1 and 2.
    """
    require_tensor("y", y)
    _check_options(rtol, iterations, check_every)
    require_positive("damping", damping, zero_allowed=True)
    with torch.no_grad():
        found = _lsqr(operator, y, damping, rtol, iterations, check_every)
    if not torch.is_grad_enabled():
        return found
    return _with_graph(
        found,
        operator.adjoint(y - operator(found.x)) - damping**2 * found.x,
        lambda g: _cg(lambda v: operator.normal(v) + damping**2 * v, g, None, rtol, iterations, check_every, None).x,
    )


def normalised(v: Tensor) -> tuple[Tensor, Tensor]:
    """V / |v| of each sample, 0 where v is, and |v|, (B,)."""
    size = norm(v)
    return v / expand(torch.where(size > 0, size, 1), v), size


def _lsqr(
    operator: LinearOperator, y: Tensor, damping: float, rtol: float, iterations: int, check_every: int
) -> LinearSolve:
    u, size = normalised(y)
    v, alpha = normalised(operator.adjoint(u))
    x, w = torch.zeros_like(v), v
    rho_bar, phi_bar = alpha, (size > 0).to(alpha.dtype)  # in units of |y|
    frobenius = torch.zeros_like(alpha)  # estimate of sqrt(|A|^2 + damping^2); hypot, since squares under- and overflow
    damped, level = torch.zeros_like(alpha), torch.full_like(alpha, damping)
    solved = (size == 0) | (alpha == 0)  # NaN is neither, and must not read as solved
    error = torch.where(solved, torch.zeros_like(alpha), torch.ones_like(alpha))
    active = error > 0
    taken = torch.zeros_like(alpha, dtype=torch.int64)
    for k in range(iterations):
        if rtol and k % check_every == 0 and not bool(active.any()):
            break
        u, beta = normalised(operator(v) - expand(alpha, u) * u)
        frobenius = torch.hypot(torch.hypot(frobenius, alpha), torch.hypot(beta, level))
        v_next, alpha_next = normalised(operator.adjoint(u) - expand(beta, v) * v)
        rho_damped = torch.hypot(rho_bar, level)
        psi = _divide(level, rho_damped) * phi_bar
        phi_bar = _divide(rho_bar, rho_damped) * phi_bar
        rho = torch.hypot(rho_damped, beta)
        c, s = _divide(rho_damped, rho), _divide(beta, rho)
        theta, phi = s * alpha_next, c * phi_bar
        x = torch.where(expand(active, x), x + expand(_divide(phi, rho), x) * w, x)
        w = v_next - expand(_divide(theta, rho), v) * w
        rho_bar, phi_bar = -c * alpha_next, s * phi_bar
        v, alpha = v_next, alpha_next
        damped = torch.hypot(damped, psi)
        taken = taken + active
        residual = torch.hypot(phi_bar, damped)
        optimality = _divide(alpha, frobenius) * _divide((c * phi_bar).abs(), residual)
        error = torch.where(active, torch.minimum(residual, optimality), error)
        active = active & (error > rtol)
    return LinearSolve(x * expand(size, x), error, taken, (error <= rtol) & size.isfinite())
