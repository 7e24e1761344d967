"""HDF5 without trust: the entries of variable length are ours to read, for the library crashes on damaged ones."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from invreg.io import hdf5

VALUES = [np.arange(n, dtype=np.float32) for n in (3, 0, 700, 1, 5000)]
KIND = np.dtype(
    [("id", "<u2"), ("data", h5py.special_dtype(vlen=np.float32)), ("head", [("a", "<f8"), ("b", "<i2", (2,))])]
)


def table(path: Path, **options: object) -> None:
    rows = np.empty(len(VALUES), KIND)
    for i, value in enumerate(VALUES):
        rows[i]["id"], rows[i]["data"], rows[i]["head"] = i, value, (i / 2, (i, -i))
    with h5py.File(path, "w", libver=options.pop("libver", None)) as file:
        file.create_dataset("t", data=rows, **options)
        file["text"] = "größe"
        file["fixed"] = np.bytes_("größe".encode())
        file["texts"] = ["a", "b"]


@pytest.mark.parametrize(
    "options", [{}, {"chunks": (1,)}, {"chunks": (2,), "maxshape": (None,)}, {"libver": "latest", "chunks": (3,)}]
)
def test_entries_of_variable_length_are_read_as_the_library_does(tmp_path: Path, options: dict[str, object]) -> None:
    path = tmp_path / "x.h5"
    table(path, **options)
    with hdf5.opened(path) as file:
        with hdf5.Ragged(path, hdf5.dataset(path, file, "t", (1,), "rows"), "data") as ragged:
            for i, value in enumerate(VALUES):
                assert ragged[i] == file["t"][i]["data"].tobytes() == value.tobytes()
            assert ragged.fixed("id").tolist() == list(range(5))
            assert np.array_equal(ragged.fixed("head"), file["t"]["head"])
            with pytest.raises(ValueError, match="must have the field x"):
                ragged.fixed("x")
            with pytest.raises(ValueError, match="fixed size"):
                ragged.fixed("data")
        assert [hdf5.text(path, file, name) for name in ("text", "fixed", "texts")] == ["größe", "größe", "a"]


def test_a_damaged_reference_is_refused_where_the_library_would_crash(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    table(path)
    with h5py.File(path) as file:
        start, width = file["t"].id.get_offset(), file["t"].id.get_type().get_size()
    whole = path.read_bytes()
    reference = start + 2 * width + 2
    for place, value, message in (
        (reference, 2**31, "refers to"),  # its length
        (reference + 4, len(whole) + 5, "lie beyond"),  # the address of its heap
        (reference + 4, 8, "no heap at 8"),
        (reference + 12, 999, "refers to 0 bytes"),  # its index in the heap
    ):
        damaged = bytearray(whole)
        damaged[place : place + 4] = value.to_bytes(4, "little")
        path.write_bytes(damaged)
        with hdf5.opened(path) as file, hdf5.Ragged(path, file["t"], "data") as ragged:
            assert ragged[0] == VALUES[0].tobytes()
            with pytest.raises(ValueError, match=message):
                ragged[2]


def test_a_damaged_heap_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    table(path)
    whole = path.read_bytes()
    heap = whole.index(b"GCOL")
    for offset, value, message in (
        (8, 2**40, "larger than the file|lie beyond"),
        (8, 8, "no heap"),
        (24, 2**33, "leaves its heap"),
    ):
        damaged = bytearray(whole)
        damaged[heap + offset : heap + offset + 8] = value.to_bytes(8, "little")
        path.write_bytes(damaged)
        with (
            hdf5.opened(path) as file,
            hdf5.Ragged(path, file["t"], "data") as ragged,
            pytest.raises(ValueError, match=message),
        ):
            [ragged[i] for i in range(len(VALUES))]


def test_other_layouts_and_types_are_refused_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    table(path, chunks=(2,), compression="gzip")
    with h5py.File(path, "a") as file:
        file["number"] = 3.0
        with pytest.raises(ValueError, match="h5repack -f NONE"):
            hdf5.Ragged(path, file["t"], "data")
        with pytest.raises(ValueError, match="variable length"):
            hdf5.Ragged(path, file["t"], "id")
        with pytest.raises(ValueError, match="variable length"):
            hdf5.Ragged(path, file["number"])
        with pytest.raises(ValueError, match="number must be text"):
            hdf5.text(path, file, "number")


def test_names_outside_the_file_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    table(path)
    table(tmp_path / "other.h5")
    with h5py.File(path, "a") as file:
        file["group/inner"] = 1
        file["out"] = h5py.ExternalLink("other.h5", "text")
        file["detour"] = h5py.SoftLink("/out")
        file["nowhere"] = h5py.SoftLink("/missing")
        assert hdf5.has(file, "group/inner")
        assert not any(hdf5.has(file, name) for name in ("out", "detour", "nowhere", "group/no", "t/x", "no/inner"))
