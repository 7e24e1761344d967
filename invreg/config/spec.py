"""Choices in text, `NAME[:key=value,...]`, and objects of named classes."""

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from invreg._check import unknown_name

T = TypeVar("T")


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


def plain(content: Any) -> Any:
    """A value of a YAML file as Python has it: lists as tuples, texts such as 1e-3 as numbers."""
    if isinstance(content, Mapping):
        return {str(key): plain(one) for key, one in content.items()}
    if isinstance(content, list | tuple):
        return tuple(plain(one) for one in content)
    return _value(content) if isinstance(content, str) else content


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
