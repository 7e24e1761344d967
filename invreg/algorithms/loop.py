"""The one loop of all reconstruction algorithms, its record and its result."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from invreg._check import require_count, require_finite, require_positive, require_tensor
from invreg.interfaces import LinearOperator, Regularizer
from invreg.problem import Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class HasImage(Protocol):
    """What every algorithm's state has: the current image."""

    @property
    def x(self) -> Tensor: ...


P = TypeVar("P")
S = TypeVar("S", bound=HasImage)


class Status(Enum):
    """How the reconstruction of one sample ended."""

    CONVERGED = "converged"
    ITERATION_LIMIT = "iteration limit"
    INTERRUPTED = "interrupted"
    NOT_FINITE = "not finite"


@dataclass(frozen=True, eq=False)
class History:
    """What the iterations did; K of them were run, C of them checked.

    Args:
        change: |x_k - x_(k-1)| / |x_k| of every iteration, (K, B).
        checked: numbers of the checked iterations, from 1, (C,).
        misfit: the negative log-likelihood at those, (C, B).
        penalty: weight * R(x) at those, (C, B), as annealed by then; NaN where the prior has no value.
    """

    change: Tensor
    checked: Tensor
    misfit: Tensor
    penalty: Tensor

    @property
    def objective(self) -> Tensor:
        """Misfit + penalty, (C, B); the misfit alone where the prior has no value."""
        return self.misfit + self.penalty.nan_to_num(0.0)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The result of `Algorithm.solve`.

    Args:
        x: the images, (B, *signal).
        history: the record of the iterations.
        status: how each sample ended, B of them.
        settings: algorithm, prior and operator in plain words and numbers.
        seconds: wall time.
    """

    x: Tensor
    history: History
    status: tuple[Status, ...]
    settings: dict[str, Any]
    seconds: float

    @property
    def iterations(self) -> int:
        """How many iterations were run."""
        return int(self.history.change.shape[0])

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.x.shape))
        ends = ", ".join(f"{one.value} ({self.status.count(one)})" for one in Status if one in self.status)
        text = f"Reconstruction({shape} {str(self.x.dtype).removeprefix('torch.')} by {self.settings.get('algorithm')}"
        text += f": {ends}; {self.iterations} iterations, {self.seconds:.2f} s"
        if self.iterations:
            text += f", last change {float(self.history.change[-1].max()):.1e}"
        if self.history.checked.numel():
            text += f", objective {float(self.history.objective[-1].mean()):.6g}"
        return text + ")"

    def _repr_html_(self) -> str:
        rows = {
            "image": f"{tuple(self.x.shape)} {self.x.dtype}",
            "status": ", ".join(s.value for s in self.status),
            "iterations": self.iterations,
            "seconds": f"{self.seconds:.2f}",
            **self.settings,
        }
        cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
        return f"<table>{cells}</table>"

    def plot(self, sample: int = 0) -> Figure:
        """A figure of one sample's image (magnitude; the middle slice of a volume) beside its record."""
        from matplotlib.figure import Figure

        image = self.x[sample].detach().cpu()
        image = image.abs() if image.is_complex() else image
        while image.ndim > 2:
            image = image[image.shape[0] // 2]
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        left.imshow(image.reshape(-1, image.shape[-1]).numpy(), cmap="gray")
        left.set_title(self.status[sample].value)
        left.set_axis_off()
        middle.semilogy(range(1, self.iterations + 1), self.history.change[:, sample].cpu())
        middle.set(xlabel="iteration", title="relative change")
        right.plot(self.history.checked.cpu(), self.history.objective[:, sample].cpu(), marker=".")
        right.set(xlabel="iteration", title="objective")
        return figure

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all of it to one safetensors file, atomically; `load` reads it back.

        Raises:
            ValueError: the path does not end in .safetensors.
        """
        from safetensors.torch import save_file

        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"path must end in .safetensors, got {path}")
        x = self.x.detach().cpu().resolve_conj()
        tensors = {"x": torch.view_as_real(x).contiguous() if x.is_complex() else x.contiguous()}
        for field in dataclasses.fields(self.history):
            tensors[field.name] = getattr(self.history, field.name).detach().cpu().contiguous()
        about = {
            "complex": x.is_complex(),
            "status": [s.name for s in self.status],
            "settings": self.settings,
            "seconds": self.seconds,
        }
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        os.close(handle)
        os.chmod(temporary, 0o644)  # mkstemp's 0o600 is meant for secrets
        try:
            save_file(tensors, temporary, {"reconstruction": json.dumps(about, default=str)})
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Reconstruction:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not a saved Reconstruction.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(os.fspath(path), "pt") as file:
                about = json.loads((file.metadata() or {})["reconstruction"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            x = tensors.pop("x")
            x = torch.view_as_complex(x) if about["complex"] else x
            status = tuple(Status[name] for name in about["status"])
            return Reconstruction(x, History(**tensors), status, about["settings"], about["seconds"])
        except (SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a saved Reconstruction: {error}") from error


class Run(Generic[P, S], Iterator[S]):
    """Iterations under way: an iterator of states. Stop when you like; `reconstruction()` is the result so far."""

    def __init__(self, algorithm: Algorithm[P, S], problem: Problem, prior: P, x0: Tensor | None) -> None:
        self.algorithm, self.problem, self.prior = algorithm, problem, prior
        self.iteration = 0
        self._start = time.perf_counter()
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
        if isinstance(self.prior, Regularizer):
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
        )

    def _status(self, change: Tensor) -> tuple[Status, ...]:
        finite = torch.isfinite(self.state.x.detach().flatten(1)).all(1)
        if len(change):  # an image so large that its norm overflows has diverged, too
            finite = finite & change[-1].isfinite()
        last = change[-1].tolist() if len(change) else [float("inf")] * len(finite)
        over = self.iteration >= self.algorithm.iterations
        rest = Status.ITERATION_LIMIT if over or self._finished else Status.INTERRUPTED
        return tuple(
            Status.NOT_FINITE if not good else Status.CONVERGED if small <= self.algorithm.rtol else rest
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
    options = {field.name: getattr(algorithm, field.name) for field in dataclasses.fields(algorithm)}
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
