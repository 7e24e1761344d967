"""Writes that are whole or not at all, and checks of declared sizes."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from invreg.io.files import as_tensor, atomic, reading, require_file, require_module, require_stored


def replace(path: Path, content: bytes, error: BaseException | None = None, meanwhile: bytes | None = None) -> None:
    """Write `content`, but fail before the end or let somebody else write to the same place."""
    with atomic(path, overwrite=meanwhile is None) as (temporary,):
        temporary.write_bytes(content)
        if error is not None:
            raise error
        if meanwhile is not None:
            path.write_bytes(meanwhile)


def test_a_failure_midway_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="half"):
        replace(path, b"half of the n", RuntimeError("half"))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        replace(path, b"half", KeyboardInterrupt())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_replaces_the_old_only_when_told(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with atomic(path, overwrite=False) as (temporary,):
        assert temporary.suffix == ".bin"  # libraries choose by it
        temporary.write_bytes(b"one")
    with pytest.raises(FileExistsError, match="overwrite=True"), atomic(path, overwrite=False):
        pytest.fail("must refuse before anything is written")
    with atomic(path, overwrite=True) as (temporary,):
        temporary.write_bytes(b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_made_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with pytest.raises(FileExistsError, match="meanwhile"):
        replace(path, b"mine", meanwhile=b"theirs")
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic(tmp_path / "link", overwrite=True) as (temporary,):
        temporary.write_bytes(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_places_where_no_file_can_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make it first"), atomic(tmp_path / "no" / "x", overwrite=True):
        pass
    with pytest.raises(IsADirectoryError, match="name a file in it"), atomic(tmp_path, overwrite=True):
        pass


def test_only_regular_files_with_content_are_read(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="empty file"):
        require_file(tmp_path / "empty")
    with pytest.raises(ValueError, match="device or pipe"):
        require_file(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="no such file"):
        require_file(tmp_path / "none")
    with pytest.raises(IsADirectoryError, match="got a directory"):
        require_file(tmp_path)


@pytest.mark.parametrize(
    "error", [KeyError("x"), RecursionError("deep"), MemoryError(), OverflowError("big"), OSError("h5")]
)
def test_whatever_a_library_raises_becomes_one_value_error(error: Exception) -> None:
    with (
        pytest.raises(ValueError, match=f"a/b: cannot be read as X: {type(error).__name__}"),
        reading(Path("a/b"), "X"),
    ):
        raise error


def test_messages_that_name_the_file_stay_as_they_are() -> None:
    with pytest.raises(ValueError, match=r"^a: wrong$"), reading(Path("a"), "X"):
        raise ValueError("a: wrong")
    with pytest.raises(FileNotFoundError), reading(Path("a"), "X"):
        raise FileNotFoundError("a")


def test_declared_sizes_are_compared_with_what_is_there() -> None:
    require_stored(Path("a"), 100, 100)
    require_stored(Path("a"), 100_000, 100, compressed=True)
    for declared, stored, compressed in ((101, 100, False), (200_000, 100, True), (0, 100, False), (-5, 100, True)):
        with pytest.raises(ValueError, match=r"^a: "):
            require_stored(Path("a"), declared, stored, compressed=compressed)


def test_numbers_keep_or_gain_precision_and_other_things_are_refused() -> None:
    for given, wanted in (
        *((one, torch.float32) for one in ("?", "u1", "i2", "f2", ">f4")),
        *((one, torch.float64) for one in ("u4", "i8", "f8")),
        (">c8", torch.complex64),
        ("c16", torch.complex128),
    ):
        assert as_tensor(np.ones(3, given), "x").dtype == wanted
    for array in (np.array([None]), np.array(["a"]), np.ones(2, "g"), np.ones(2, "M8[s]"), np.ones(2, [("a", "f4")])):
        with pytest.raises(ValueError, match="x must be an array of numbers"):
            as_tensor(array, "x")
    with pytest.raises(ValueError, match="not be empty"):
        as_tensor(np.ones((0, 3)), "x")


def test_a_tensor_does_not_share_memory_with_its_source() -> None:
    array = np.ones(3)
    tensor = as_tensor(array, "x")
    array[0] = 5
    assert tensor[0] == 1


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"reading X needs no_such_library.*pip install 'invreg\[ct\]'"):
        require_module("no_such_library", "ct", "reading X")
