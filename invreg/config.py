"""Names for operators, regularizers and algorithms: the only place where strings stand for classes."""

import ast
import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from invreg import algorithms, operators, regularizers
from invreg._check import unknown_name
from invreg.algorithms.loop import Algorithm
from invreg.interfaces import Operator, Regularizer

T = TypeVar("T")

OPERATORS: Mapping[str, type[Operator]] = {
    "blur": operators.Blur,
    "downsample": operators.Downsample,
    "fan-beam": operators.FanBeam,
    "fourier": operators.MaskedFourier,
    "mask": operators.Mask,
    "parallel-beam": operators.ParallelBeam,
    "sense": operators.Sense,
    "soft-sense": operators.SoftSense,
}

REGULARIZERS: Mapping[str, type[Regularizer[Any]]] = {
    "box": regularizers.Box,
    "group-l1": regularizers.GroupL1,
    "l1": regularizers.L1,
    "llr": regularizers.LocallyLowRank,
    "nonnegative": regularizers.NonNegative,
    "nuclear": regularizers.NuclearNorm,
    "tgv": regularizers.TotalGeneralizedVariation,
    "tikhonov": regularizers.Tikhonov,
    "tv": regularizers.TotalVariation,
    "wavelet": regularizers.WaveletL1,
}

ALGORITHMS: Mapping[str, type[Algorithm[Any, Any]]] = {
    "admm": algorithms.ADMM,
    "cg": algorithms.ConjugateGradient,
    "fista": algorithms.FISTA,
    "gradient-descent": algorithms.GradientDescent,
    "hqs": algorithms.HQS,
    "pdhg": algorithms.PDHG,
    "proximal-gradient": algorithms.ProximalGradient,
    "sirt": algorithms.SIRT,
}


RULES: Mapping[str, type[Any]] = {
    "discrepancy": algorithms.Discrepancy,
    "gcv": algorithms.GCV,
    "lcurve": algorithms.LCurve,
    "sure": algorithms.SURE,
}


@dataclass(frozen=True)
class Spec:
    """What `NAME[:key=value,...]` says.

    Args:
        name: before the colon.
        options: after it, as Python numbers, booleans, None, tuples or strings.
    """

    name: str
    options: Mapping[str, Any]


def parse(text: str) -> Spec:
    """Read `NAME[:key=value,...]`.

    Values are numbers (`1e-3`), `true`, `false`, `none`, lists in brackets (`[1, 2]`, read as tuples), or else text.

    Raises:
        ValueError: no name, a part without `=`, or a key twice.
    """
    name, _, rest = text.strip().partition(":")
    name = name.strip().lower().replace("_", "-")
    if not name:
        raise ValueError(f"wanted NAME[:key=value,...], got {text!r}")
    options: dict[str, Any] = {}
    for part in _parts(rest):
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key.isidentifier():
            raise ValueError(f"wanted key=value after {name}:, got {part.strip()!r}; separate options by commas")
        if key in options:
            raise ValueError(f"option {key!r} of {name} must be given once, got it twice in {text!r}")
        options[key] = _value(value.strip())
    return Spec(name, options)


def choose(kind: str, name: str, known: Mapping[str, T]) -> T:
    """The entry of that name.

    Raises:
        ValueError: there is none; the message suggests the nearest.
    """
    if name not in known:
        raise ValueError(unknown_name(kind, name, known))
    return known[name]


def build(cls: type[T], name: str, options: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> T:
    """An object of a named class.

    Args:
        cls: the class.
        name: how the user called it, for messages.
        options: the user's, which win.
        given: what the caller knows; keys that the class does not take are left out.

    Raises:
        ValueError: an option that the class does not have, or that is refused by it.
        TypeError: an option of the wrong kind, or one that is missing.
    """
    known = keys(cls)
    for key in options:
        if key not in known:
            raise ValueError(unknown_name(f"option of {name}", key, known))
    arguments = {key: value for key, value in (given or {}).items() if key in known} | dict(options)
    missing = [key for key in required(cls) if key not in arguments]
    if missing:
        raise TypeError(f"{name} needs {', '.join(missing)}; write {name}:{missing[0]}=VALUE")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


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


def keys(cls: type[Any]) -> tuple[str, ...]:
    """The options that a class takes."""
    return tuple(inspect.signature(cls).parameters)


def required(cls: type[Any]) -> tuple[str, ...]:
    """The options that have no default."""
    parameters = inspect.signature(cls).parameters.items()
    return tuple(key for key, value in parameters if value.default is inspect.Parameter.empty)


def summary(thing: Any) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = (inspect.getdoc(thing) or "").split("\n\n")[0]
    return " ".join(paragraph.split())


def read_settings(path: str | os.PathLike[str], known: Iterable[str]) -> dict[str, Any]:
    """Command-line flags from a YAML file: a mapping from flag names, without dashes in front, to values.

    Args:
        path: of the file.
        known: names of the flags, with underscores.

    Returns:
        Values by names with underscores.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a mapping, an unknown flag (the nearest is suggested), or a nested value.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration file; check the path")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold lines such as 'prior: tv', got {type(content).__name__}")
    names = set(known)
    settings: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in names:
            shown = (one.replace("_", "-") for one in names)
            raise ValueError(f"{path}: {unknown_name('setting', str(key), shown)}")
        if isinstance(value, (dict, list)) or value is None:
            raise ValueError(f"{path}: {key} must be a single value, got {value!r}; write NAME:key=value for options")
        settings[name] = value
    return settings


def _parts(text: str) -> list[str]:
    """Split at commas outside brackets; empty text has no parts."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]] if text.strip() else []


def _value(text: str) -> Any:
    word = text.lower()
    if word in ("true", "yes", "on"):
        return True
    if word in ("false", "no", "off"):
        return False
    if word in ("none", "null"):
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return tuple(value) if isinstance(value, list) else value
