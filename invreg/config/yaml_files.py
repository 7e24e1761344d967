"""Settings in YAML files."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from invreg._check import unknown_name


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
    settings = read_yaml(path, known)
    for key, value in settings.items():
        if isinstance(value, (dict, list)) or value is None:
            shown = key.replace("_", "-")
            raise ValueError(f"{path}: {shown} must be a single value, got {value!r}; write NAME:key=value for options")
    return settings


def read_yaml(path: str | os.PathLike[str], known: Iterable[str]) -> dict[str, Any]:
    """The content of a YAML file by names with underscores, where values may be mappings and lists.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no mapping, a key twice, or an unknown name; the nearest is suggested.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration file; check the path")
    try:
        text = path.read_text(encoding="utf-8")
        _require_single_keys(yaml.compose(text, Loader=yaml.SafeLoader), path)
        content = yaml.safe_load(text)
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
        settings[name] = value
    return settings


def _require_single_keys(root: Any, path: Path) -> None:
    """Raise ValueError where a mapping says a key twice, of which YAML would take the last."""
    import yaml

    pending, seen = [root], set[int]()
    while pending:
        node = pending.pop()
        if id(node) in seen:  # an alias, perhaps of what it lies in
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            twice = [key for key, count in Counter(str(key.value) for key, _ in node.value).items() if count > 1]
            if twice:
                raise ValueError(f"{path}: {twice[0]} is given twice; leave one away")
            pending.extend(value for _, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            pending.extend(node.value)
