"""Reading HDF5 without trusting it: no links out of the file, no size that is not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from invreg.io.files import require_file, require_stored

MAGIC = b"\x89HDF\r\n\x1a\n"
_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
_HEAPS_KEPT = 64


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
        if part not in node or isinstance(node.get(part, getlink=True), h5py.ExternalLink):
            return False
        try:
            node = node[part]
        except (KeyError, OSError):  # a soft link to nowhere
            return False
        if node.file.filename != group.file.filename:  # a soft link by way of an external one
            return False
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
    filtered = found.id.get_create_plist().get_nfilters() > 0
    if found.chunks is None and found.id.get_storage_size() == 0:  # inside the object header, or nothing at all
        stored = size if found.size * found.dtype.itemsize <= 65536 else 0
    else:
        stored = min(size, found.id.get_storage_size())
    require_stored(path, found.size * found.dtype.itemsize, stored, compressed=filtered)
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
        ValueError: it is missing, damaged or not text.
    """
    import h5py

    found = dataset(path, group, name, (0, 1), "text")
    kind = found.id.get_type()
    if kind.get_class() != h5py.h5t.STRING:
        raise ValueError(f"{path}: {name} must be text, got {found.dtype}; check the kind of file")
    if kind.is_variable_str():
        with Ragged(path, found) as ragged:
            content = ragged[0]
    else:
        content = bytes(found[()] if found.ndim == 0 else found[0])
    return content.rstrip(b"\0").decode("utf-8")


class Ragged:
    """Entries of variable length, read from the file itself and not through the HDF5 library.

    The library trusts the lengths that a file states and crashes the process where they are wrong. Here every
    reference is checked against the global heap that it points to. A context manager.

    Args:
        path: the file.
        found: a dataset from `dataset`, of at most one axis.
        member: the field of a compound type that has variable length; None if the entries themselves have.

    Raises:
        ValueError: another type, a filter, or a layout without an address.

    Source: HDF5 File Format Specification 3.0, sections III.E (global heap) and IV.A.2.d (variable-length data).
    """

    def __init__(self, path: Path, found: Any, member: str | None = None) -> None:
        self._path, self._name = path, f"{found.name}" + (f"/{member}" if member else "")
        self._size = path.stat().st_size
        self._unit = 1 if member is None else 4  # lengths count bytes of text, or float32
        self._seen: dict[int, int] = {}
        self._heaps: dict[int, tuple[bytes, dict[int, tuple[int, int]]]] = {}
        offset = _offset_of_reference(found, member)
        if found.file.id.get_create_plist().get_sizes() != (8, 8) or offset is None:
            raise ValueError(f"{self._name} must have variable length with 64-bit addresses, got {found.dtype}")
        self._type, self._offset = found.id.get_type(), offset
        self._file = open(path, "rb")  # noqa: SIM115  closed by __exit__
        try:
            self._table = self._read_table(found)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getitem__(self, i: int) -> bytes:
        """The bytes of entry i.

        Raises:
            ValueError: its reference is damaged.
        """
        length, address, index = (
            self._table[i, self._offset : self._offset + _REFERENCE.itemsize].view(_REFERENCE)[0].tolist()
        )
        length *= self._unit
        if length == 0:
            return b""
        heap, objects = self._heap(address)
        start, size = objects.get(index, (0, -1))
        if length > size:
            raise self._damaged(f"entry {i} of {length} bytes refers to {max(size, 0)} bytes in the heap")
        return heap[start : start + length]

    def fixed(self, member: str) -> Any:
        """The field of a compound type that has a fixed size, of all entries, as a NumPy array.

        Raises:
            ValueError: there is no such field, or it has variable length.
        """
        import h5py

        names = _member_names(self._type) if self._type.get_class() == h5py.h5t.COMPOUND else []
        if member not in names:
            raise ValueError(f"{self._name}: entries must have the field {member}, got {', '.join(names) or 'none'}")
        kind = self._type.get_member_type(names.index(member)).dtype
        if kind.hasobject:
            raise ValueError(f"{self._name}: the field {member} must have a fixed size, got {kind}")
        offset = self._type.get_member_offset(names.index(member))
        return np.ascontiguousarray(self._table[:, offset : offset + kind.itemsize]).view(kind)[:, 0]

    def _damaged(self, what: str) -> ValueError:
        return ValueError(f"{self._name}: {what}; the file is damaged, get a fresh copy")

    def _bytes(self, address: int, count: int) -> bytes:
        if address + count > self._size:
            raise self._damaged(f"{count} bytes at {address} lie beyond the file's {self._size}")
        self._file.seek(address)
        return self._file.read(count)

    def _read_table(self, found: Any) -> Any:
        """All entries as they are stored, (entries, bytes)."""
        # the library states sizes in memory: a reference to text has 8 bytes there, but 16 in the file, as all have
        compound = found.dtype.names is not None
        width, count = self._type.get_size() if compound else _REFERENCE.itemsize, max(1, found.size)
        if found.chunks is None:
            start = found.id.get_offset()
            if start is None:
                raise ValueError(
                    f"{self._name} lies in the object header, which is not read; repack: h5repack -l CONTI"
                )
            return np.frombuffer(self._bytes(start, count * width), np.uint8).reshape(count, width)
        if found.id.get_create_plist().get_nfilters():
            raise ValueError(f"{self._name} is filtered, which is not read; repack it with h5repack -f NONE")
        table = np.zeros((count, width), np.uint8)
        chunks: list[Any] = []
        found.id.chunk_iter(chunks.append)
        for chunk in chunks:
            first = chunk.chunk_offset[0]
            if chunk.size != found.chunks[0] * width:
                raise self._damaged(f"a chunk has {chunk.size} bytes, want {found.chunks[0]} entries of {width}")
            rows = min(found.chunks[0], count - first)
            if first < count:
                content = self._bytes(chunk.byte_offset, rows * width)
                table[first : first + rows] = np.frombuffer(content, np.uint8).reshape(rows, width)
        return table

    def _heap(self, address: int) -> tuple[bytes, dict[int, tuple[int, int]]]:
        """The content of the heap at an address, and where its objects are in it: start and size by index."""
        if address in self._heaps:
            return self._heaps[address]
        head = self._bytes(address, 16)
        size = int.from_bytes(head[8:16], "little")
        if head[:5] != b"GCOL\1" or size < 16:
            raise self._damaged(f"there is no heap at {address}")
        self._seen[address] = size
        if sum(self._seen.values()) > self._size:  # heaps do not overlap
            raise self._damaged("its heaps are larger than the file")
        heap = self._bytes(address, size)
        objects: dict[int, tuple[int, int]] = {}
        place = 16
        while place + 16 <= size:
            index, length = (
                int.from_bytes(heap[place : place + 2], "little"),
                int.from_bytes(heap[place + 8 : place + 16], "little"),
            )
            if index == 0:  # the free space at the end
                break
            if place + 16 + length > size:
                raise self._damaged(f"object {index} of {length} bytes leaves its heap at {address}")
            objects[index] = (place + 16, length)
            place += 16 + (length + 7) // 8 * 8
        if len(self._heaps) >= _HEAPS_KEPT:
            del self._heaps[next(iter(self._heaps))]
        self._heaps[address] = (heap, objects)
        return self._heaps[address]


def _offset_of_reference(found: Any, member: str | None) -> int | None:
    """Where in a stored entry its reference into the heap lies; None if it has none of the kind that is read."""
    import h5py

    kind = found.id.get_type()
    if member is None:
        return 0 if kind.get_class() == h5py.h5t.STRING and kind.is_variable_str() else None
    if kind.get_class() != h5py.h5t.COMPOUND:
        return None
    if member not in _member_names(kind):
        return None
    number = _member_names(kind).index(member)
    inner = kind.get_member_type(number)
    if inner.get_class() != h5py.h5t.VLEN or inner.get_super().dtype != np.dtype("<f4"):
        return None
    return int(kind.get_member_offset(number))


def _member_names(kind: Any) -> list[str]:
    return [kind.get_member_name(i).decode("utf-8", "replace") for i in range(kind.get_nmembers())]
