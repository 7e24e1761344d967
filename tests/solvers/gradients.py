"""Fields to take gradients through, a plain one and one that holds tensors of every kind, and how gradients differ."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from invreg.solvers import Checkpointed, Direct, odeint
from invreg.solvers.adjoint import Adjoint

ADJOINTS = {"checkpointed": Checkpointed(), "replayed": Checkpointed(tape=0), "direct": Direct()}
REFERENCE = 1e-10  # tolerance of the solve that is differentiated directly


def weights() -> Tensor:
    random = torch.Generator().manual_seed(1)
    return (0.8 * torch.randn(3, 3, dtype=torch.float64, generator=random)).requires_grad_()


def start() -> Tensor:
    random = torch.Generator().manual_seed(2)
    return torch.randn(2, 3, dtype=torch.float64, generator=random).requires_grad_()


def driven(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(y @ w) - 0.3 * y * torch.cos(2 * t)


def weighted_sum(x: Tensor) -> Tensor:
    """A sum with weights that differ, so that no gradient hides behind another."""
    return (x * torch.linspace(0.5, 1.5, x.numel(), dtype=torch.float64).reshape(x.shape)).sum()


class Net(nn.Module):
    """dy/dt = net(y) cos t, which counts its evaluations."""

    def __init__(self, size: int = 3, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(size, width), nn.Tanh(), nn.Linear(width, size)).double()
        self.calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.net(y) * torch.cos(t)


def tensors(seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """A start, (2, 3), a leaf, (3,), and an argument, ()."""
    generator = torch.Generator().manual_seed(seed)
    y0 = torch.randn(2, 3, dtype=torch.float64, generator=generator).requires_grad_()
    leaf = torch.randn(3, dtype=torch.float64, generator=generator).requires_grad_()
    return y0, leaf, torch.tensor(0.7, dtype=torch.float64, requires_grad=True)


def weighted(ys: Tensor) -> Tensor:
    """A sum of squares with weights that differ, so that no gradient hides behind another."""
    weights = torch.linspace(-1, 1, ys.numel(), dtype=torch.float64).reshape(ys.shape)
    return (ys.abs().square() * weights).sum()


def gradients(
    adjoint: Adjoint, tol: float | Tensor, sign: float = 1.0, estimates: bool = False, **options: Any
) -> tuple[Tensor, ...]:
    """Of y0, ts, a leaf behind a closed-over tensor, an argument, the parameters of a module.

    With `estimates` those of the errors and ratios of the steps, too.
    """
    y0, leaf, arg = tensors()
    net = Net()
    closed = leaf.sin() * 2
    ts = (torch.tensor([0.1, 0.5, 0.9, 2.0], dtype=torch.float64) * sign).requires_grad_()

    def field(t: Tensor, y: Tensor, a: Tensor) -> Tensor:
        return net(t, y) * a + closed * torch.cos(t * y)

    solution = odeint(field, y0, ts, args=(arg,), rtol=tol, atol=tol, adjoint=adjoint, **options)
    loss = weighted(solution.ys)
    if estimates:
        loss = loss + 3 * solution.steps.error.sum() + solution.steps.ratio.square().sum()
    return torch.autograd.grad(loss, [y0, ts, leaf, arg, *net.parameters()])


@functools.cache
def reference_gradients(sign: float = 1.0) -> tuple[Tensor, ...]:
    """`gradients` of a tight solve that is differentiated directly."""
    return gradients(Direct(), REFERENCE, sign)


def saved_entries(field: Callable[[Tensor, Tensor], Tensor], y0: Tensor, **options: Any) -> int:
    """Entries of all tensors that a solve from 0 to 1 saves for its backward pass."""
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        odeint(field, y0, [0.0, 1.0], **options)
    return sum(sizes)


def distance(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> float:
    """Largest |one - other| of all entries."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def relative_distance(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> float:
    """Largest |one - other| of a tensor over the largest |other| of it."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, other, strict=True))
