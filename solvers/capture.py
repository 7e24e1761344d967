"""Which tensors a field depends on: those that it closes over, found in the graph of its first evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from .dynamics import Dynamics

DEPTH = 4  # of containers, closures and partials that are looked through for modules


class _Watch(TorchFunctionMode):
    """Collects the tensors with gradients that come from outside into the operations within."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, Tensor] = {}
        self._made: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for one in _tensors((args, kwargs or {})):
            if id(one) not in self._made and one.requires_grad:
                self.found.setdefault(id(one), one)
        out = func(*args, **(kwargs or {}))
        for one in _tensors(out):
            self._made[id(one)] = one  # held, so that its id is not used again
        return out

    def leaves(self) -> list[Tensor]:
        """The leaves that were made within, as by fields that differentiate."""
        return [one for one in self._made.values() if one.requires_grad and one.grad_fn is None]


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
        inside = (field.__self__, field.__func__)
    elif isinstance(field, FunctionType):
        cells = (cell.cell_contents for cell in field.__closure__ or () if cell.cell_contents is not field)
        named = (field.__globals__.get(name) for name in field.__code__.co_names)
        inside = (*cells, *(one for one in named if isinstance(one, nn.Module)))
    elif isinstance(field, (tuple, list)):
        inside = field
    elif isinstance(field, dict):
        inside = field.values()
    return [module for one in inside for module in modules_of(one, depth - 1)] if depth else []


@dataclass(frozen=True, eq=False)
class Captured:
    """Tensors with gradients on which dynamics depend.

    `shared`: they are leaves, and the graph between them and the dynamics is used again at every step.
    """

    tensors: tuple[Tensor, ...] = ()
    shared: bool = False


def first_slope(dynamics: Dynamics, t: Tensor, y: Tensor) -> tuple[Tensor, Captured]:
    """The slope at (t, y), without a graph, and what the dynamics depend on.

    Raises:
        RuntimeError: the slope depends on a tensor that cannot be found.
    """
    if not torch.is_grad_enabled():
        return dynamics.checked(t, y), Captured()
    moment, state = t.detach(), y.detach()
    with _Watch() as watch:  # sees y itself only where the field holds it too
        slope = dynamics.checked(moment, state)
    held = (p for module in modules_of(dynamics.field) for p in module.parameters() if p.requires_grad)
    passed = (one for one in _tensors(dynamics.args) if one.requires_grad)
    found = {id(one): one for one in (*watch.found.values(), *held, *passed)}
    tensors = tuple(found.values())
    leaves = _leaves(tensors)
    require_known(slope, (state, *watch.leaves(), *(tensors if leaves is None else leaves)))
    return slope.detach(), Captured(tensors) if leaves is None else Captured(leaves, shared=True)


def _edge(x: Tensor) -> object:
    """What the graph knows a tensor by: the leaf itself, or its node."""
    return id(x) if x.grad_fn is None else x.grad_fn


def _leaves(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """The leaves behind tensors of which one depends on another, whose gradients would else count twice."""
    computed = [one for one in tensors if one.grad_fn is not None]
    edges = {_edge(one) for one in tensors}
    for one in computed:
        assert one.grad_fn is not None
        for node in _nodes(one.grad_fn, set()):
            if node is not one.grad_fn and (node in edges or id(getattr(node, "variable", None)) in edges):
                break
        else:
            continue
        found: dict[int, Tensor] = {id(leaf): leaf for leaf in tensors if leaf.grad_fn is None}
        for other in computed:
            assert other.grad_fn is not None
            for node in _nodes(other.grad_fn, set()):
                variable = getattr(node, "variable", None)
                if variable is not None:
                    found.setdefault(id(variable), variable)
        return tuple(found.values())
    return None


def _nodes(root: Node, stop: set[object]) -> Iterator[Node]:
    """The nodes from which a graph was computed, not going beyond those in `stop`."""
    pending, seen = [root], {root}
    while pending:
        node = pending.pop()
        yield node
        if node in stop:
            continue
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                pending.append(before)


def require_known(slope: Tensor, tensors: Iterable[Tensor]) -> None:
    """Raise unless all that a slope depends on is among the tensors given.

    Raises:
        RuntimeError: its gradient would be lost.
    """
    if slope.grad_fn is None:
        return
    known = {_edge(one) for one in tensors}
    for node in _nodes(slope.grad_fn, known):
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in known and node not in known:
            raise RuntimeError(
                f"field depends on a tensor of shape {tuple(variable.shape)} that requires grad and was not seen in "
                f"its first evaluation, so that its gradient would be lost: pass it in args, make it a parameter of "
                f"a module, or use adjoint=Direct()"
            )
