"""Which tensors a field depends on: those that it closes over, found in the graph of its first evaluation."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from .method import Dynamics as Slope
from .problem import InitialValueProblem

DEPTH = 4  # of containers, closures and partials that are looked through for modules


class _Watch(TorchFunctionMode):
    """Collects the tensors with gradients that come from outside into the operations within; `own` do not count."""

    def __init__(self, *own: Tensor) -> None:
        super().__init__()
        self.found: dict[int, Tensor] = {}
        self._own = own
        self.drew = False  # from a generator of the field's own
        self._made = {id(one): one for one in own}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.drew |= kwargs is not None and kwargs.get("generator") is not None
        for one in _tensors((args, kwargs or {})):
            if id(one) not in self._made and one.requires_grad:
                self.found.setdefault(id(one), one)
        out = func(*args, **(kwargs or {}))
        for one in _tensors(out):
            self._made[id(one)] = one  # held, so that its id is not used again
        return out

    def leaves(self) -> list[Tensor]:
        """The leaves that were made within, as by fields that differentiate."""
        made = [one for one in self._made.values() if one.requires_grad and one.grad_fn is None]
        return [one for one in made if all(one is not other for other in self._own)]


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for one in tree:
            yield from _tensors(one)
    elif isinstance(tree, dict):
        for one in tree.values():
            yield from _tensors(one)


def modules_of(field: object, depth: int = DEPTH) -> list[nn.Module]:
    """The modules that a field is, or holds in a closure, a partial, a bound method or a container."""
    if isinstance(field, nn.Module):
        return [field]
    inside: Iterable[Any] = ()
    if isinstance(field, functools.partial):
        inside = (field.func, *field.args, *field.keywords.values())
    elif isinstance(field, MethodType):
        inside = (field.__self__, field.__func__, *getattr(field.__self__, "__dict__", {}).values())
    elif isinstance(field, FunctionType):
        cells = (one for one in _contents(field.__closure__ or ()) if one is not field)
        named = (field.__globals__.get(name) for name in field.__code__.co_names)
        inside = (*cells, *(one for one in named if isinstance(one, nn.Module)))
    elif isinstance(field, (tuple, list)):
        inside = field
    elif isinstance(field, dict):
        inside = field.values()
    elif callable(field) and not isinstance(field, type):
        inside = getattr(field, "__dict__", {}).values()
    return [module for one in inside for module in modules_of(one, depth - 1)] if depth else []


def moving_buffers(fields: object) -> list[Tensor]:
    """The buffers of modules that are being trained, which an evaluation may change."""
    modules = modules_of(fields)
    return [buffer for module in modules for buffer in module.buffers()] if any(m.training for m in modules) else []


def _contents(cells: Iterable[CellType]) -> Iterator[Any]:
    for cell in cells:
        with contextlib.suppress(ValueError):  # a name that is assigned later
            yield cell.cell_contents


@dataclass(frozen=True, eq=False)
class Captured:
    """Tensors with gradients on which dynamics depend.

    `origin`: the problem whose first slope showed them; its ts and y0 are leaves of their own.
    `shared`: the tensors are leaves, and the graph between them and the dynamics is used again at every step.
    `held`, `nodes`: bytes that the graph of one evaluation holds beside them, nearly, and its nodes.
    `differentiating`: the field makes leaves of its own, or of the state, to differentiate within.
    """

    origin: InitialValueProblem
    tensors: tuple[Tensor, ...] = ()
    shared: bool = False
    held: int = 0
    nodes: int = 0
    differentiating: bool = False


def first_slope(problem: InitialValueProblem) -> tuple[Tensor, Captured]:
    """The slope at the start of a problem, and what the dynamics depend on beside time and state.

    Raises:
        RuntimeError: the slope depends on a tensor that cannot be found, or on numbers that cannot be drawn again.
    """
    origin = problem.over(ts=_leaf(problem.ts), y0=_leaf(problem.y0))
    dynamics, (t, y) = problem.dynamics, origin.first()
    if not torch.is_grad_enabled():
        return dynamics.first(t, y)[0], Captured(origin)
    with _Watch(t, y) as watch:  # sees y0 itself only where the field holds it too
        results = dynamics.first(t, y)
    held = (p for module in modules_of(dynamics.fields) for p in module.parameters() if p.requires_grad)
    passed = (one for one in _tensors(dynamics.args) if one.requires_grad)
    found = {id(one): one for one in (*watch.found.values(), *held, *passed)}
    leaves = _leaves(tuple(found.values()))
    tensors = tuple(found.values()) if leaves is None else leaves
    own = watch.leaves()
    known = (t, y, *own, *tensors)
    require_known(results, known)
    if watch.drew and any(one.requires_grad for one in (t, y, *tensors)):
        raise RuntimeError(
            "field draws from a generator of its own, which a replay cannot set back: draw from torch's, or use "
            "adjoint=Direct()"
        )
    marked = origin.y0.requires_grad != problem.y0.requires_grad  # by the field, which then differentiates in y itself
    sizes = [size_of(one, known) for one in results]
    held, nodes = (sum(column) for column in zip(*sizes, strict=True))
    return results[0], Captured(origin, tensors, leaves is not None, held, nodes, bool(own) or marked)


class Guarded:
    """Dynamics that check that no gradient would be lost.

    Args:
        slope: one of their functions.
        known: the tensors beside t and y whose gradients are seen to.
        differentiating: as in `Captured`.
    """

    def __init__(self, slope: Slope, known: tuple[Tensor, ...], differentiating: bool) -> None:
        self.slope, self.known, self.differentiating = slope, known, differentiating

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        with _Watch(t, y) if self.differentiating else contextlib.nullcontext() as watch:
            slope = self.slope(t, y)
        require_known([slope], (t, y, *self.known, *(watch.leaves() if watch else ())))
        return slope


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.requires_grad)


def _edge(x: Tensor) -> object:
    """What the graph knows a tensor by: the leaf itself, or its node."""
    return id(x) if x.grad_fn is None else x.grad_fn


def _leaves(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """The leaves behind tensors of which one depends on another, whose gradients would else count twice."""
    computed = [one for one in tensors if one.grad_fn is not None]
    edges = {_edge(one) for one in tensors}
    for one in computed:
        assert one.grad_fn is not None
        for node in _nodes([one.grad_fn], set()):
            if node is not one.grad_fn and (node in edges or id(getattr(node, "variable", None)) in edges):
                break
        else:
            continue
        found: dict[int, Tensor] = {id(leaf): leaf for leaf in tensors if leaf.grad_fn is None}
        for other in computed:
            assert other.grad_fn is not None
            for node in _nodes([other.grad_fn], set()):
                variable = getattr(node, "variable", None)
                if variable is not None:
                    found.setdefault(id(variable), variable)
        return tuple(found.values())
    return None


def _nodes(roots: Iterable[Node], stop: set[object]) -> Iterator[Node]:
    """The nodes from which some were computed, not going beyond those in `stop`."""
    pending = list(roots)
    seen = set(pending)
    while pending:
        node = pending.pop()
        yield node
        if node in stop:
            continue
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                pending.append(before)


def require_known(results: Iterable[Tensor], tensors: Iterable[Tensor]) -> None:
    """Raise unless all that results of the dynamics depend on is among the tensors given.

    Raises:
        RuntimeError: its gradient would be lost.
    """
    known = {_edge(one) for one in tensors}
    for node in _nodes((one.grad_fn for one in results if one.grad_fn is not None), known):
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in known and node not in known:
            raise RuntimeError(
                f"field depends on a tensor of shape {tuple(variable.shape)} that requires grad and was not seen in "
                f"its first evaluation, so that its gradient would be lost: pass it in args, make it a parameter of "
                f"a module, or use adjoint=Direct()"
            )


def size_of(result: Tensor, tensors: Sequence[Tensor]) -> tuple[int, int]:
    """Bytes that the graph between tensors and a result of theirs holds beside them, nearly, and its nodes."""
    sizes: dict[int, int] = {}
    nodes = 0
    for node in _nodes([] if result.grad_fn is None else [result.grad_fn], {_edge(one) for one in tensors}):
        nodes += 1
        for name in _saved_names(type(node)):
            with contextlib.suppress(RuntimeError):  # it was overwritten or let go
                for one in _tensors(getattr(node, name)):
                    storage = one.untyped_storage()
                    sizes[storage.data_ptr()] = storage.nbytes()
    known = sum(sizes.get(pointer, 0) for pointer in {_pointer(one) for one in tensors})
    return sum(sizes.values()) - known, nodes


def _pointer(x: Tensor) -> int:
    """Where a tensor lies; 0 for those of torch.func, which lie nowhere."""
    try:
        return x.data_ptr()
    except RuntimeError:
        return 0


@functools.cache
def _saved_names(kind: type[Node]) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_saved_") or name == "saved_tensors")
