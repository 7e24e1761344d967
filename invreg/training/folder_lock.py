"""A folder that one process at a time writes to: a lock that the system gives back, however its holder ends."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from pathlib import Path

LOCK = ".lock"


class FolderLock:
    """Holds a folder against other processes until nothing refers to it any longer.

    Args:
        handle: the open and locked file, which is closed in the end; None where there are no such locks.
    """

    def __init__(self, handle: int | None) -> None:
        self._closing = None if handle is None else weakref.finalize(self, os.close, handle)

    def drop(self) -> None:
        """Close the file: in a process that was forked off, which would hold the folder longer than its parent."""
        if self._closing is not None:
            self._closing()


_held: weakref.WeakValueDictionary[Path, FolderLock] = weakref.WeakValueDictionary()


def _forget() -> None:
    for lock in list(_held.values()):
        lock.drop()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def hold(folder: Path) -> FolderLock:
    """The lock of a folder, which exists; the same one again within this process, where a notebook may keep old runs.

    A file system without locks is warned of, and its folders are not held; nor are they where Python has no `fcntl`.

    Raises:
        BlockingIOError: another process holds it.
    """
    place = folder.resolve()
    held = _held.get(place)
    if held is None:
        held = _held[place] = FolderLock(_locked(place / LOCK, folder))
    return held


def _locked(path: Path, folder: Path) -> int | None:
    if sys.platform == "win32":
        return None
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 100).decode(errors="replace") or "unknown"
        os.close(handle)
        raise BlockingIOError(
            f"{folder}: another run is training there, process {holder}; wait for it, stop it, or choose another folder"
        ) from None
    except OSError as error:
        os.close(handle)
        warnings.warn(f"{folder} cannot be locked ({error}): start no second run on it", stacklevel=4)
        return None
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return handle
