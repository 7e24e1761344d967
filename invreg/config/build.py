"""Objects from what users write: priors, algorithms, and whatever a training is made of; models from their folders."""

import inspect
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from invreg import operators, regularizers
from invreg._check import unknown_name
from invreg.algorithms.loop import Algorithm
from invreg.config.names import ALGORITHMS, REGULARIZERS, SAVED, SLOTS, USUAL
from invreg.config.spec import Spec, build, choose, keys, parse, plain, required
from invreg.interfaces import Regularizer
from invreg.models import pretrained


def regularizer(
    text: str,
    shape: tuple[int, ...] | None,
    weight: float | None = None,
    dim: int | None = None,
    channel_dim: int | None = None,
) -> Regularizer[Any]:
    """A regularizer from `NAME[:key=value,...]`; what the text says wins over the arguments.

    Args:
        text: the name with options; those of `wavelet` are its operator's too, such as `wavelet:wavelet=db4,levels=3`.
        shape: of the images, which wavelets need.
        weight, dim, channel_dim: where the class takes them and the text does not say.

    Raises:
        TypeError, ValueError: as `parse`, `choose` and `build`; wavelets without a shape.
    """
    spec = parse(text)
    cls = choose("prior", spec.name, REGULARIZERS)
    known = {"weight": weight, "dim": dim, "channel_dim": channel_dim}
    given = {key: value for key, value in known.items() if value is not None}
    if cls is not regularizers.WaveletL1:
        return build(cls, spec.name, spec.options, given)
    if shape is None:
        raise ValueError("wavelet needs the shape of the images, got None")
    own = {key for key in keys(operators.Wavelet) if key not in required(operators.Wavelet)}
    for key in spec.options:
        if key not in own | {"weight", "penalize_approximation"}:
            raise ValueError(unknown_name("option of wavelet", key, own | {"weight", "penalize_approximation"}))
    chosen = {key: value for key, value in spec.options.items() if key in own}
    rest = {key: value for key, value in spec.options.items() if key not in own}
    wavelet = build(operators.Wavelet, spec.name, chosen, given | {required(operators.Wavelet)[0]: shape})
    return build(cls, spec.name, rest, given | {"wavelet": wavelet})


def algorithm(text: str, iterations: int | None = None) -> Algorithm[Any, Any]:
    """An algorithm from `NAME[:key=value,...]`; iterations in the text win over the argument.

    Raises:
        TypeError, ValueError: as `parse`, `choose` and `build`.
    """
    spec = parse(text)
    given = {} if iterations is None else {"iterations": iterations}
    return build(choose("algorithm", spec.name, ALGORITHMS), spec.name, spec.options, given)


def part(slot: str, content: Any, given: Mapping[str, Any] | None = None, owner: type[Any] | None = None) -> Any:
    """An object for an argument, with all that it is made of.

    Args:
        slot: the argument's name, of `SLOTS`.
        content: `NAME[:key=value,...]`, or a mapping with the key `name`, which may be left out where `USUAL` has one,
            and options, which may be such contents in their turn; for `regularizers` a mapping of these.
        given: arguments that the caller knows, as for `build`; parts of parts get those that are no parts themselves,
            such as `generator`.
        owner: the class whose argument it is; where a name is left out, its default says which class is meant.

    Raises:
        TypeError, ValueError: as `parse`, `choose` and `build`; content of another kind.
    """
    known = SLOTS[slot]
    if slot == "regularizers" and isinstance(content, Mapping) and "name" not in content:
        return {str(name): _one_part(slot, known, one, given, owner) for name, one in content.items()}
    return _one_part(slot, known, content, given, owner)


def _one_part(
    slot: str, known: Mapping[str, Any], content: Any, given: Mapping[str, Any] | None, owner: type[Any] | None
) -> Any:
    if content is None:
        return None
    if isinstance(content, str):
        spec = parse(content)
    elif isinstance(content, Mapping):
        name = content.get("name", _usual(slot, owner))
        if not isinstance(name, str):
            raise ValueError(f"{slot} must have a name, one of {', '.join(sorted(known))}, got {dict(content)}")
        spec = Spec(parse(name).name, {str(key): plain(one) for key, one in content.items() if key != "name"})
    else:
        raise TypeError(f"{slot} must be NAME[:key=value,...] or a mapping with a name, got {content!r}")
    cls = choose(slot, spec.name, known)
    if not isinstance(cls, type) and slot != "data":  # a function stands for itself
        if spec.options:
            raise ValueError(f"{slot} {spec.name} takes no options, got {', '.join(spec.options)}")
        return cls
    for key in spec.options:
        if key not in keys(cls):
            raise ValueError(unknown_name(f"option of {spec.name}", key, keys(cls)))
    passed = {key: one for key, one in (given or {}).items() if key not in SLOTS}
    options = {key: part(key, one, passed, cls) if key in SLOTS else one for key, one in spec.options.items()}
    return build(cls, spec.name, options, given)


def _usual(slot: str, owner: type[Any] | None) -> str | None:
    """The name that a mapping may leave out."""
    if slot not in USUAL or owner is None:
        return USUAL.get(slot)
    default = inspect.signature(owner).parameters[slot].default
    return next((name for name, one in SLOTS[slot].items() if type(default) is one), USUAL[slot])


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    info: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model of this package to a folder; as `invreg.models.pretrained.save_pretrained` with its names."""
    pretrained.save_pretrained(model, folder, SAVED, info=info, overwrite=overwrite)


def from_pretrained(folder: str | os.PathLike[str]) -> nn.Module:
    """The model in a folder; as `invreg.models.pretrained.from_pretrained` with the names of this package."""
    return pretrained.from_pretrained(folder, SAVED)
