"""The laws that operators, regularizers and noise models obey, as numbers that should be small.

For the tests of this package and for those who write their own operators and priors.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from invreg.interfaces import LinearOperator, Noise, Operator, Proximal, Regularizer
from invreg.linalg import inner
from invreg.random import draw


def adjoint_gap(operator: LinearOperator, x: Tensor, y: Tensor) -> float:
    """|<A x, y> - <x, A^H y>| / (|A x| |y|), the complex inner product included, accumulated in double precision.

    Args:
        operator: A.
        x, y: any signal (B, *signal) and measurement (B, *measurement).
    """
    image, back = _wide(operator(x)), _wide(operator.adjoint(y))
    left = torch.vdot(_wide(y).flatten(), image.flatten())
    right = torch.vdot(back.flatten(), _wide(x).flatten())
    return float((left - right).abs() / (image.norm() * _wide(y).norm()).clamp_min(1e-300))


def _wide(t: Tensor) -> Tensor:
    return t.detach().to(torch.complex128)


def vjp_gap(operator: Operator, x: Tensor, v: Tensor) -> float:
    """Relative difference of `operator.vjp` and autograd through `operator.forward`."""
    point = x.detach().clone().requires_grad_()
    (wanted,) = torch.autograd.grad(operator(point), point, v)
    return relative_gap(operator.vjp(x, v), wanted)


def normal_gap(operator: LinearOperator, x: Tensor) -> float:
    """Relative difference of `operator.normal` and adjoint after forward."""
    return relative_gap(operator.normal(x), operator.adjoint(operator(x)))


def linearity_gap(operator: LinearOperator, x: Tensor, z: Tensor) -> float:
    """Relative difference of A(x + c z) and A x + c A z, with complex c for complex signals."""
    c = (0.3 - 0.8j) if x.is_complex() else -0.8
    return relative_gap(operator(x + c * z), operator(x) + c * operator(z))


def batch_gap(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Largest relative difference between a batch's items and the same items alone; x is (B, ...) with B >= 2."""
    together = function(x)
    return _worst(relative_gap(together[i : i + 1], function(x[i : i + 1])) for i in range(x.shape[0]))


def _worst(gaps: Iterable[float]) -> float:
    """The largest; NaN if there is one, where `max` would lose it."""
    return float(torch.tensor(list(gaps), dtype=torch.float64).max())


def gradient_gap(function: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor, *, step: float = 1e-6) -> float:
    """Relative difference of a gradient and central finite differences of sum(function(x)) along 8 directions.

    Args:
        function: x -> real numbers of any shape.
        x: the point, double precision.
        gradient: claimed gradient there, shaped as x.
        step: length of the finite difference, relative to the largest entry of x.
    """
    if x.dtype not in (torch.float64, torch.complex128):
        raise TypeError(f"x must be float64 or complex128, got {x.dtype}; finite differences need double precision")
    generator = torch.Generator().manual_seed(0)
    h = step * max(float(x.abs().max()), 1e-3)
    gaps = []
    for _ in range(8):
        d = draw(x, generator)
        with torch.no_grad():
            wanted = float((function(x + h * d).sum() - function(x - h * d).sum()) / (2 * h))
        got = float(inner(gradient, d).sum())
        gaps.append(abs(got - wanted) / max(abs(wanted), float(gradient.norm()), 1e-12))
    return _worst(gaps)


def prox_gap(regularizer: Regularizer[Tensor], x: Tensor, step: float, *, trials: int = 200) -> float:
    """How far `prox` misses the minimum of step * R(z) + |z - x|^2 / 2, relative to the value there.

    The objective is strongly convex for convex R, so a point that no random move, of any length and none along the
    line to x and to 0, can improve is the minimum. Positive if a better point was found.
    """
    if not isinstance(regularizer, Proximal):
        raise TypeError(f"regularizer must have a prox, got {type(regularizer).__name__}")

    def objective(z: Tensor) -> Tensor:
        return step * regularizer(z) + 0.5 * inner(z - x, z - x)

    with torch.no_grad():
        best = regularizer.prox(x, step)
        value = objective(best)
        generator = torch.Generator().manual_seed(0)
        worst = torch.zeros_like(value)
        moves = [t * (x - best) for t in (-0.5, -0.05, 0.05, 0.5, 1.0)] + [t * best for t in (-1.0, -0.1, 0.1, 0.5)]
        scale = float(x.abs().max())
        for k in range(trials):
            d = draw(x, generator)
            if k % 2:  # sparse moves, which smooth ones never imitate
                d = d * (torch.rand(x.shape, generator=generator, device="cpu").to(x.device) < 0.1)
            moves.append(scale * 10.0 ** (-(k % 7)) * d)
        for move in moves:
            worst = torch.maximum(worst, value - objective(best + move))
        return float((worst / value.abs().clamp_min(1e-12)).max())


def noise_gap(noise: Noise, clean: Tensor, y: Tensor) -> float:
    """Relative difference of `nll_gradient` and finite differences of `nll` in double precision."""
    return gradient_gap(lambda c: noise.nll(c, y), clean, noise.nll_gradient(clean, y))


def relative_gap(got: Tensor, wanted: Tensor) -> float:
    """|got - wanted| / |wanted|; shapes must agree, so that a lost axis does not hide in broadcasting."""
    if got.shape != wanted.shape:
        raise ValueError(f"got must have the shape of wanted, {tuple(wanted.shape)}, got {tuple(got.shape)}")
    return float((got - wanted).detach().norm() / wanted.detach().norm().clamp_min(1e-300))
