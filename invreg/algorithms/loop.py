"""The one loop of all reconstruction algorithms."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from invreg._check import require_count, require_finite, require_positive, require_tensor
from invreg._memory import keep_freed_memory
from invreg.algorithms.reconstruction import History, Reconstruction, Status
from invreg.interfaces import Denoiser, LinearOperator, Regularizer
from invreg.problem import Problem
from invreg.random import Generator


class HasImage(Protocol):
    """What every algorithm's state has: the current image."""

    @property
    def x(self) -> Tensor: ...


P = TypeVar("P")
S = TypeVar("S", bound=HasImage)


class Run(Generic[P, S], Iterator[S]):
    """Iterations under way: an iterator of states. Stop when you like; `reconstruction()` is the result so far."""

    def __init__(self, algorithm: Algorithm[P, S], problem: Problem, prior: P, x0: Tensor | None) -> None:
        self.algorithm, self.problem, self.prior = algorithm, problem, prior
        self.iteration = 0
        self._start = time.perf_counter()
        keep_freed_memory()
        with torch.no_grad():  # a learned prior would else keep the graph of every iteration
            self.state = algorithm.init(problem, prior, x0)
        self._change: list[Tensor] = []
        self._record: list[tuple[int, Tensor, Tensor]] = []
        self._finished = False

    def __iter__(self) -> Run[P, S]:
        return self

    def __next__(self) -> S:
        algorithm = self.algorithm
        if self._finished or self.iteration >= algorithm.iterations:
            raise StopIteration
        before = self.state.x
        with torch.no_grad():
            state = algorithm.step(self.problem, self.prior, self.state, (self.iteration + 1) / algorithm.iterations)
            change = _relative_change(state.x, before)
        # nothing that takes time between these lines, so that an interrupt finds them all done or none
        self.state = state
        self.iteration += 1
        self._change.append(change)
        if self.iteration % algorithm.check_every == 0 or self.iteration == algorithm.iterations:
            self._check()
        return self.state

    @torch.no_grad()
    def _check(self) -> None:
        """The one place where the host looks at the device."""
        x, change, rtol = self.state.x, self._change[-1], self.algorithm.rtol
        misfit = self.problem.misfit(x)
        self._record.append((self.iteration, misfit, self._penalty_of(x, misfit)))
        done = ~change.isfinite()
        if rtol:
            done = done | (change <= rtol)
        self._finished = bool(done.all())

    def _penalty_of(self, x: Tensor, misfit: Tensor) -> Tensor:
        if isinstance(self.prior, Regularizer) and self.prior.exact and self.prior.cheap:
            return self.prior.at(self.iteration / self.algorithm.iterations)(x).expand_as(misfit)
        return torch.full_like(misfit, 0.0 if self.prior is None else float("nan"))

    def reconstruction(self) -> Reconstruction:
        """The image of the last finished iteration with its record."""
        empty = self.problem.y.real.new_zeros(0, self.state.x.shape[0])
        change = torch.stack(self._change) if self._change else empty
        misfit = torch.stack([m for _, m, _ in self._record]) if self._record else empty
        penalty = torch.stack([p for _, _, p in self._record]) if self._record else empty
        checked = torch.tensor([k for k, _, _ in self._record], dtype=torch.int64)
        history = History(change, checked, misfit, penalty)
        return Reconstruction(
            self.state.x,
            history,
            self._status(change),
            describe(self.algorithm)
            | {
                "prior": _name(self.prior),
                "operator": _name(self.problem.operator),
                "noise": _name(self.problem.noise),
            },
            time.perf_counter() - self._start,
            self.problem.count,
        )

    def _status(self, change: Tensor) -> tuple[Status, ...]:
        finite = torch.isfinite(self.state.x.detach().flatten(1)).all(1)
        if len(change):  # an image so large that its norm overflows has diverged, too
            finite = finite & change[-1].isfinite()
        last = change[-1].tolist() if len(change) else [float("inf")] * len(finite)
        over = self.iteration >= self.algorithm.iterations
        ended = Status.COMPLETE if self.algorithm.complete else Status.ITERATION_LIMIT
        rest = ended if over or self._finished else Status.INTERRUPTED
        return tuple(
            Status.NOT_FINITE
            if not good
            else Status.CONVERGED
            if small <= self.algorithm.rtol and not self.algorithm.complete
            else rest
            for good, small in zip(finite.tolist(), last, strict=True)
        )


def _relative_change(x: Tensor, before: Tensor) -> Tensor:
    """|x - before| / |x| of each sample, (B,); where x is zero, 1 if it moved and 0 if not."""
    size, moved = _size(x), _size(x - before)
    return torch.where(size == 0, (moved > 0).to(moved.dtype), moved / size)


def _size(x: Tensor) -> Tensor:
    """|x| of each sample, (B,); through real numbers, since complex norms are up to 50 times slower on a CPU."""
    real = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    size: Tensor = torch.linalg.vector_norm(real.flatten(1), dim=1)
    return size


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC, Generic[P, S]):
    """How to minimise misfit + R. A subclass gives `init` and a pure `step`; the loop is here.

    Args:
        iterations: how many at most.
        rtol: stop once every sample's relative change |x_k - x_(k-1)| / |x_k| is at most this at a check; 0 never.
        check_every: iterations between two checks, the only moments at which the host waits for the device; misfit
            and penalty are recorded then.
    """

    complete: ClassVar[bool] = False
    """Whether the last iteration ends a schedule, so that there is nothing left to converge."""
    iterations: int = 100
    rtol: float = 1e-5
    check_every: int = 10

    def __post_init__(self) -> None:
        require_count("iterations", self.iterations)
        require_count("check_every", self.check_every)
        require_positive("rtol", self.rtol, zero_allowed=True)

    @abstractmethod
    def init(self, problem: Problem, prior: P, x0: Tensor | None) -> S:
        """The state before the first step. Checks that problem and prior are of a kind the algorithm can do."""

    @abstractmethod
    def step(self, problem: Problem, prior: P, state: S, progress: float) -> S:
        """The next state; `progress` is the fraction of the iterations done after it. Writes into nothing."""

    def iterate(self, problem: Problem, prior: P, x0: Tensor | None = None) -> Run[P, S]:
        """An iterator of states, for progress, live plots and early stop; its `reconstruction()` is the result so far.

        No graph is kept. To differentiate through the iterations, call `init` and `step` yourself.

        Args:
            problem: what to fit.
            prior: what is believed of the image; which kinds are possible, the algorithm says.
            x0: first image, (B, *signal); default zero for a linear operator.

        Raises:
            TypeError: the prior or the problem is of a kind that the algorithm cannot do, or x0 has another precision.
            ValueError: x0 is missing for a non-linear operator, has the wrong shape, or NaN or Inf.
        """
        if not isinstance(problem, Problem):
            raise TypeError(f"problem must be a Problem, got {type(problem).__name__}; use Problem(operator, y)")
        if isinstance(prior, type):  # which has a prox, too
            raise TypeError(f"prior must be an object, got the class {prior.__name__}; use {prior.__name__}(...)")
        if x0 is not None:
            _check_start(problem, x0)
        return Run(self, problem, prior, x0)

    def solve(self, problem: Problem, prior: P, x0: Tensor | None = None, *, throw: bool = True) -> Reconstruction:
        """Run all iterations. An interrupt (Ctrl-C) ends them early and returns the last image, marked INTERRUPTED.

        Args:
            problem, prior, x0: as in `iterate`.
            throw: raise if NaN or Inf appear; False returns them with status NOT_FINITE.

        Raises:
            RuntimeError: NaN or Inf appeared.
        """
        run = self.iterate(problem, prior, x0)
        try:
            for _ in run:
                continue
        except KeyboardInterrupt:
            pass  # the state is that of the last finished step
        result = run.reconstruction()
        if throw and Status.NOT_FINITE in result.status:
            raise RuntimeError(
                f"{type(self).__name__} met NaN or Inf after {result.iterations} iterations; "
                "use a smaller step size, check the scale of y, or look at it with throw=False"
            )
        return result


@dataclass(frozen=True, kw_only=True)
class Sampler(Algorithm[Denoiser, S], ABC):
    """An algorithm whose result is one draw, made of noise by a schedule: what `posterior` and `sample_prior` take.

    Args:
        rtol: 0: the schedule is gone through to its end.
        generator: source of all noise; one per sample, or one for the batch. Samples with generators of their own do
            not depend on the batch they are in.
    """

    complete: ClassVar[bool] = True
    rtol: float = 0.0
    generator: Generator = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rtol:
            raise ValueError(f"rtol must be 0, as a schedule is gone through to its end, got {self.rtol}")
        for one in self.generator if isinstance(self.generator, Sequence) else (self.generator,):
            if one is not None and not isinstance(one, torch.Generator):
                raise TypeError(f"generator must be a torch.Generator, or one for each sample, got {one!r}")


def _check_start(problem: Problem, x0: Tensor) -> None:
    require_tensor("x0", x0)
    problem.operator.check_signal(x0)
    if x0.shape[0] != problem.y.shape[0]:
        raise ValueError(f"x0 must have the batch size of y, {problem.y.shape[0]}, got {x0.shape[0]}")
    if x0.real.dtype != problem.y.real.dtype:
        raise TypeError(f"x0 must have the precision of y, {problem.y.dtype}, got {x0.dtype}; use x0.to(...)")
    require_finite("x0", x0)


def starting_point(problem: Problem, x0: Tensor | None) -> Tensor:
    """x0, or zeros shaped as A^H y for a linear operator.

    Raises:
        ValueError: x0 is None and the operator is not linear.
    """
    if x0 is not None:
        return x0
    if not isinstance(problem.operator, LinearOperator):
        raise ValueError(f"x0 must be given for {type(problem.operator).__name__}, which is not linear")
    with torch.no_grad():
        return torch.zeros_like(
            problem.backprojection() if problem.is_quadratic else problem.operator.adjoint(problem.y)
        )


def describe(algorithm: Algorithm[Any, Any]) -> dict[str, Any]:
    """An algorithm's name and options in plain words and numbers."""
    options = {field.name: getattr(algorithm, field.name) for field in dataclasses.fields(algorithm) if field.repr}
    plain = {k: v if isinstance(v, (int, float, str, bool, type(None))) else str(v) for k, v in options.items()}
    return {"algorithm": type(algorithm).__name__, **plain}


def _name(thing: object) -> str:
    kind = type(thing).__name__
    parts = getattr(thing, "parts", None)
    if isinstance(thing, Regularizer) and parts is not None:
        return f"{kind}({', '.join(map(_name, parts))})"
    weight = None if isinstance(thing, Regularizer) and not thing.finite else getattr(thing, "weight", None)
    for label, value in (("weight", weight), ("sigma", getattr(thing, "sigma", None))):
        if value is not None and (not isinstance(value, Tensor) or value.ndim == 0):
            number = float(value.detach() if isinstance(value, Tensor) else value)
            return f"{kind}({label}={number:g})"
    return "none" if thing is None else kind
