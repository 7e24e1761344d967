"""Where time goes within a job: seconds inside watched calls, by label, forward and backward."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[..., Any]


def now() -> float:
    """Seconds; waits for the GPU if one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class Stopwatch:
    """Seconds inside watched calls, by label. A watched call within another counts for the outer one only."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, int] = defaultdict(int)
        self._inside = False

    def reset(self) -> None:
        self.seconds.clear()
        self.calls.clear()

    def timed(self, label: str, function: Call) -> Call:
        """The same function, timed; where its first argument requires a gradient, the way back is timed, too."""

        def call(*arguments: Any) -> Any:
            if self._inside:
                return function(*arguments)
            x = arguments[0] if arguments else None
            if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled():
                return _ThereAndBack.apply(x, self, label, function, arguments[1:])
            return self.run(label, function, *arguments)

        return call

    def run(self, label: str, function: Call, *arguments: Any) -> Any:
        """function(*arguments), its time added to the label's."""
        self._inside = True
        start = now()
        try:
            return function(*arguments)
        finally:
            self.seconds[label] += now() - start
            self.calls[label] += 1
            self._inside = False

    def watch(self, module: nn.Module, label: str, *methods: str) -> None:
        """Time these methods of one object, and `forward`; those that it lacks are left out."""
        for name in ("forward", *methods):
            method = getattr(module, name, None)
            if method is not None:
                setattr(module, name, self.timed(label, method))


class WatchedSpectrum:
    """Another decomposition of an operator, whose transforms are timed."""

    def __init__(self, inner: Any, watch: Stopwatch, label: str) -> None:
        self.singular: Tensor = inner.singular
        self.analyse, self.synthesise, self.measured = (
            watch.timed(label, one) for one in (inner.analyse, inner.synthesise, inner.measured)
        )


class _ThereAndBack(torch.autograd.Function):
    """A function with its own graph, so that its backward pass is one call that can be timed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, watch: Stopwatch, label: str, function: Call, rest: tuple[Any, ...]) -> Tensor:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            value: Tensor = watch.run(label, function, point, *rest)
        ctx.graph, ctx.watch, ctx.label = (value, point), watch, label
        return value.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (found,) = ctx.watch.run(ctx.label + ", backward", torch.autograd.grad, *ctx.graph, gradient)
        return found, None, None, None, None
