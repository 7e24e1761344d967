"""Where results go: refused before the work, not after it."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from invreg.io import Image, Record, formats, targets, write
from invreg.io.dicom import require_place_for_series
from invreg.io.files import require_vacant


def require_writable(path: Path, kind: str) -> None:
    """Raise ValueError unless the suffix of a path, or its absence, names a format that holds a kind of record.

    Args:
        path: to be written; without a suffix it is a directory with a DICOM series.
        kind: "Image", "KSpace" or "Sinogram".
    """
    name = path.name.lower()
    can = sorted(suffix for one in formats() if one.writes and kind in one.holds for suffix in one.suffixes)
    if any(name.endswith(suffix) for suffix in can) or (kind == "Image" and not path.suffix):
        return
    word = {"Image": "an image", "KSpace": "k-space", "Sinogram": "a sinogram"}[kind]
    raise ValueError(f"{path}: cannot be written as {word}; name it with one of {', '.join(can)}")


def require_free(path: Path, force: bool, *, series: bool = False) -> None:
    """Raise unless all that is written for a path may be written.

    Args:
        path: to be written.
        force: whether what is there may be replaced.
        series: a path without a suffix is a directory with a DICOM series.

    Raises:
        FileExistsError: something is there that may not be replaced.
        FileNotFoundError, IsADirectoryError: its directory is missing, or it is one.
    """
    require = require_place_for_series if series and not path.suffix else require_vacant
    for place in targets(path):
        try:
            require(place, overwrite=force)
        except FileExistsError as error:
            raise FileExistsError(str(error).replace("overwrite=True", "--force")) from None


def require_apart(*paths: Path) -> None:
    """Raise ValueError if two outputs are one file."""
    seen: dict[str, Path] = {}
    for path in paths:
        for place in targets(path):
            other = seen.setdefault(os.path.realpath(place), path)
            if other is not path:
                raise ValueError(f"{other} and {path} must be different files; choose another name")


def require_kept(sources: Iterable[Path], lost: Iterable[Path]) -> None:
    """Raise ValueError if a file that is read is, or lies within, one that is replaced or removed.

    Args:
        sources: files, directories, or what the files of a pair have in common.
        lost: as they were written.
    """
    kept = [(path, place) for path in sources for place in targets(path if path.exists() else f"{path}.cfl")]
    for gone in lost:
        for place in map(os.path.realpath, targets(gone)):
            for path, source in kept:
                if Path(os.path.realpath(source)).is_relative_to(place):
                    raise ValueError(
                        f"what is read must not be in {gone}, which would be replaced or removed, got {path}; "
                        "choose another name for the output"
                    )


def beside(path: Path, ending: str) -> Path:
    """The path with an ending put before its suffix, `.nii.gz` counted as one."""
    name = path.name.rstrip("/")
    suffixes = [one for kind in formats() for one in kind.suffixes if name.lower().endswith(one)]
    length = max(map(len, suffixes), default=0)
    return path.with_name(f"{name[: len(name) - length]}{ending}{name[len(name) - length :]}")


def is_spread(path: Path, sidecar: Path) -> bool:
    """Whether a sidecar says that the run before wrote its spread as `path`."""
    try:
        about = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    named = about.get("spread") if isinstance(about, dict) else None
    return isinstance(named, str) and Path(named).name == path.name


def forget_spread(path: Path, sidecar: Path) -> None:
    """Remove the spread that an earlier run wrote as `path`, if its sidecar says so: it is none of the new image."""
    if not is_spread(path, sidecar):
        return
    for place in targets(path):
        if not place.is_dir():
            place.unlink(missing_ok=True)
            continue
        with contextlib.suppress(FileExistsError):  # of somebody else's files in it
            require_place_for_series(place, overwrite=True)
            shutil.rmtree(place)


def rehearse(path: Path, record: Record) -> None:
    """Write a record elsewhere, to see whether the format of `path` can hold it.

    Raises:
        TypeError, ValueError: it cannot; the message names `path`.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(os.path.realpath(folder)) / path.name
        if path.is_dir():
            place.mkdir()
        try:
            write(place, record)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(str(error).replace(str(place), str(path))) from error
        except OSError:  # no room there tells nothing about the room where the record will go
            return


def real_if_needed(path: Path, image: Image) -> Image:
    """Magnitudes for the formats of real images."""
    holds_complex = path.name.lower().endswith((".npz", ".npy", ".cfl", ".hdr", ".h5", ".hdf5"))
    return image if holds_complex else image.abs()
