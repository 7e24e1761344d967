"""Reading HDF5 without trusting it: no links out of the file, no size that is not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from invreg.io.files import require_file, require_stored

MAGIC = b"\x89HDF\r\n\x1a\n"


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An `h5py.File` open for reading.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ValueError: it is not HDF5.
    """
    require_file(path)
    import h5py

    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{path}: wanted HDF5, got a file of another kind; check the suffix or pass format=")
    with h5py.File(path, "r") as content:
        yield content


def has(group: Any, name: str) -> bool:
    """Whether `name`, such as "exchange/data", is a dataset or group inside this very file."""
    import h5py

    node = group
    for part in name.split("/"):
        if not isinstance(node, h5py.Group):
            return False
        if isinstance(node.get(part, getlink=True), h5py.ExternalLink) or part not in node:
            return False
        node = node[part]
    return True


def dataset(path: Path, group: Any, name: str, ndims: tuple[int, ...], layout: str) -> Any:
    """A dataset whose content is really in this file.

    Args:
        path: the file, for messages.
        group: an open group.
        name: path within the group.
        ndims: how many axes it may have.
        layout: in words, what the axes are.

    Raises:
        ValueError: it is missing, not a dataset, elsewhere (external or virtual), empty, larger than the file, or of
            another number of axes.
    """
    import h5py

    if not has(group, name):
        names = ", ".join(sorted(map(str, group.keys()))[:12]) or "nothing"
        raise ValueError(f"{path}: wanted the dataset {name} = {layout}, got a file with {names}; check its kind")
    found = group[name]
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{path}: {name} must be a dataset = {layout}, got a group; check the kind of file")
    if found.is_virtual or found.external:
        raise ValueError(f"{path}: {name} keeps its data in other files, which is not read; repack it with h5repack")
    if found.shape is None or found.ndim not in ndims:
        raise ValueError(f"{path}: {name} must be {layout}, got shape {found.shape}; check the kind of file")
    size = path.stat().st_size
    if found.chunks is None and found.id.get_storage_size() == 0:  # inside the object header, or nothing at all
        stored = size if found.size * found.dtype.itemsize <= 65536 else 0
    else:
        stored = min(size, found.id.get_storage_size())
    require_stored(path, found.size * found.dtype.itemsize, stored, compressed=found.chunks is not None)
    return found


def numbers(path: Path, group: Any, name: str, ndims: tuple[int, ...], layout: str) -> Any:
    """The content of a numerical dataset as a NumPy array; the errors of `dataset`, or another dtype."""
    found = dataset(path, group, name, ndims, layout)
    if found.dtype.kind not in "biufc":
        raise ValueError(f"{path}: {name} must hold numbers = {layout}, got {found.dtype}; check the kind of file")
    return found[()]


def text(path: Path, group: Any, name: str) -> str:
    """The content of a text dataset: a scalar, or the first of an array.

    Raises:
        ValueError: it is missing or not text.
    """
    found = dataset(path, group, name, (0, 1), "text")
    value = found[()] if found.ndim == 0 else found[0]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, str):
        return value
    raise ValueError(f"{path}: {name} must be text, got {found.dtype}; check the kind of file")
