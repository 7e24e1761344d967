"""What a training asks of the parts that it is given: of terms, models, solvers and optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from invreg.solvers import NoisySolver
from invreg.training.average import Average


def require_terms(terms: object) -> None:
    """Raise unless an objective gave named scalars, of which one at least has a gradient.

    Raises:
        TypeError: no mapping. ValueError: anything else.
    """
    if not isinstance(terms, Mapping):
        raise TypeError(
            f"objective must give a mapping from names to terms, got {type(terms).__name__}; return {{'data': loss}}"
        )
    if not terms:
        raise ValueError("objective must give at least one named term, got none")
    if "total" in terms:
        raise ValueError('objective must not call a term "total", which is the sum of all')
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.ndim:
            got = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
            raise ValueError(f"term {name!r} of the objective must be a tensor of shape (), got {got}; take its mean")
    if not any(term.requires_grad for term in terms.values()):
        raise ValueError(
            f"a term of the objective must have a gradient, but none of {', '.join(map(repr, terms))} has; compute it "
            "from the parameters that are trained, without detach() or no_grad()"
        )


def require_names(regularizers: Mapping[str, object], *own: str) -> None:
    """Raise unless regularizers have names, none of which is that of the sum or of an objective's own term.

    Raises:
        TypeError: no mapping. ValueError: such a name.
    """
    if not isinstance(regularizers, Mapping):
        raise TypeError(
            f"regularizers must be a mapping from names to regularizers, got {type(regularizers).__name__}; write "
            "{'error': ...} for one"
        )
    for name in (*own, "total"):
        if name in regularizers:
            raise ValueError(f"regularizers must not be called {name!r}, which is a term already; choose another name")


def require_model(objective: str, model: object, wanted: type[nn.Module]) -> None:
    """Raise TypeError unless an objective was given the kind of model that it is about."""
    if not isinstance(model, wanted):
        raise TypeError(
            f"model of {objective} must be a {wanted.__name__}, got {type(model).__name__}; choose the objective that "
            "goes with it"
        )


def require_modules(**parts: object) -> None:
    """Raise TypeError unless each is a module."""
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            raise TypeError(
                f"{name} must be a torch.nn.Module, got {type(part).__name__}; wrap it in a class of your own"
            )


def require_solver(solver: object) -> None:
    """Raise TypeError unless it may solve ordinary differential equations."""
    if isinstance(solver, NoisySolver):
        raise TypeError("solver must be one without noise, got NoisySolver; use Solver, or a NeuralSDE")
    if not callable(solver):
        raise TypeError(f"solver must be a Solver or a function of (field, y0, ts), got {type(solver).__name__}")


def require_parts(
    optimizer: Optimizer, model: nn.Module | None, scheduler: LRScheduler | None, average: Average | None, folder: Any
) -> None:
    """Raise unless the parts of a training go together.

    Raises:
        TypeError: an optimizer or a scheduler that needs more than a step. ValueError: a model that is missing, or that
            lacks parameters of the optimizer; a scheduler of another optimizer, an average of another model.
    """
    if isinstance(optimizer, LBFGS):
        raise TypeError("optimizer must step by one gradient, got LBFGS, which asks for several; use Adam or others")
    if isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError(
            "scheduler must depend on the step only, got ReduceLROnPlateau; use CosineAnnealingLR or others"
        )
    if scheduler is not None and scheduler.optimizer is not optimizer:
        raise ValueError("scheduler must be made for the optimizer that is passed, but it belongs to another one")
    for name, given in (("average", average), ("folder", folder)):
        if model is None and given is not None:
            raise ValueError(f"{name} needs the model whose parameters are trained, got none; pass model=...")
    if average is not None and model is not None and _shapes(average.module) != _shapes(model):
        raise ValueError(
            "average must be made of the model that is passed, but its parameters or buffers are others; pass "
            "average=Average(model), with an nn.ModuleDict as model where there is one"
        )
    if model is not None:
        known = {id(one) for one in model.parameters()}
        trained = [one for group in optimizer.param_groups for one in group["params"]]
        foreign = sum(id(one) not in known for one in trained)
        if foreign:
            raise ValueError(
                f"model must hold all parameters of the optimizer, but lacks {foreign} of {len(trained)}; pass the "
                "module that holds them all, such as an nn.ModuleList"
            )


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(one.shape) for name, one in (*module.named_parameters(), *module.named_buffers())}
