"""`invreg convert`: pickled weights written anew as safetensors."""

from pathlib import Path
from typing import Any

from invreg.models import convert


def convert_weights(source: Path, target: Path, key: str | None, *, force: bool) -> dict[str, Any]:
    """Write weights as safetensors.

    Args:
        source, target: files.
        key: where the weights are in a file with several models.
        force: whether an existing file may be replaced.

    Returns:
        What was written, in plain words.

    Raises:
        ValueError, OSError: as `invreg.models.convert`, its options by their flags.
    """
    try:
        names = convert(source, target, key=key, overwrite=force)
    except FileExistsError as error:
        raise FileExistsError(str(error).replace("pass overwrite=True", "pass --force")) from None
    except ValueError as error:
        raise ValueError(str(error).replace("choose one with key:", "choose one with --key:")) from error
    return {"input": str(source), "output": str(target), "tensors": list(names)}
