"""Largest eigenvalues and operator norms, batched, by the iteration of Lanczos."""

import torch
from torch import Tensor

from invreg._check import require_count, require_positive, require_tensor
from invreg.interfaces import LinearOperator
from invreg.linalg import Map, expand, inner, normalised
from invreg.random import Generator, draw

LEAST_STEPS = 8  # before the error bound is believed


def operator_norm(
    operator: LinearOperator, like: Tensor, *, iterations: int = 40, rtol: float = 1e-2, generator: Generator = None
) -> Tensor:
    """Spectral norm |A| of each sample's operator, (B,), from above: the root of `largest_eigenvalue` of A^H A.

    Args:
        operator: A.
        like, iterations, generator: as in `largest_eigenvalue`.
        rtol: the result exceeds |A| by at most a factor 1 + rtol unless `iterations` end earlier.
    """
    require_positive("rtol", rtol)
    found = largest_eigenvalue(operator.normal, like, iterations=iterations, rtol=2 * rtol, generator=generator)
    return found.sqrt()


def largest_eigenvalue(
    apply: Map, like: Tensor, *, iterations: int = 40, rtol: float = 2e-2, generator: Generator = None
) -> Tensor:
    """Largest eigenvalue of each sample's Hermitian, positive semidefinite H, (B,), from above, by Lanczos.

    The largest Ritz value bounds it from below; its residual norm is added, so that the inverse is a safe step size.
    That bounds the nearest eigenvalue, not always the largest: a random start holds little of a few large ones above
    many equal ones, so that some steps are taken whatever the bound says, each of which brings these out by the ratio
    of the two. Nothing is reorthogonalised: that would only keep copies of converged Ritz values away.

    Args:
        apply: x -> H x, (B, *signal) -> (B, *signal).
        like: a signal, (B, *signal), for shape, dtype and device; its values are not used.
        iterations: Lanczos steps at most.
        rtol: stop once the bounds from below and above are this close, after 8 steps or when no direction is left.
        generator: source of the random start; default a fixed seed and the same start for all samples, so that a run
            repeats itself and no sample's result depends on the others.

    Source: Parlett 1998, "The Symmetric Eigenvalue Problem", chapter 13.
    """
    require_tensor("like", like)
    require_count("iterations", iterations)
    require_positive("rtol", rtol)
    real = like.real.dtype
    tiny = 10 * torch.finfo(real).eps
    with torch.no_grad():
        if generator is None:
            v, _ = normalised(draw(like[:1], torch.Generator().manual_seed(0)).expand_as(like))
        else:
            v, _ = normalised(draw(like, generator))
        previous, beta = torch.zeros_like(v), torch.zeros_like(v.real).flatten(1).sum(1)
        diagonal, off_diagonal = list[Tensor](), list[Tensor]()
        found, done = beta.double(), torch.zeros_like(beta, dtype=torch.bool)
        for step in range(1, iterations + 1):
            w = apply(v)
            w = w.real if w.is_complex() and not v.is_complex() else w  # as real signals see it
            w = w - expand(beta, w) * previous
            alpha = inner(v, w)
            diagonal.append(alpha.double())
            previous, (v, beta) = v, normalised(w - expand(alpha, w) * v)
            largest, last = _largest_ritz(diagonal, off_diagonal)
            exhausted = beta.double() <= tiny * largest  # only rounding is left: no direction to follow
            v, beta = torch.where(expand(exhausted, v), 0, v), torch.where(exhausted, 0, beta)
            off_diagonal.append(beta.double())
            residual = off_diagonal[-1] * last.abs()
            found = torch.where(done, found, largest + residual)
            done = done | ((residual <= rtol * largest) & (exhausted | (step >= LEAST_STEPS)))
            if bool(done.all()):
                break
    return (found.clamp_min(0) * (1 + 2 * tiny)).to(real)


def _largest_ritz(diagonal: list[Tensor], off_diagonal: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue of each tridiagonal matrix, (B,), and the last entry of its eigenvector, (B,)."""
    matrix = torch.diag_embed(torch.stack(diagonal, 1))
    if off_diagonal:
        side = torch.stack(off_diagonal, 1)
        matrix = matrix + torch.diag_embed(side, 1) + torch.diag_embed(side, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values[:, -1], vectors[:, -1, -1]
