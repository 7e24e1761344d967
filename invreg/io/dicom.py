"""DICOM: CT in Hounsfield units and MR, one slice or a series in a directory."""

import math
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from invreg.io.dicom_series import derived_slice
from invreg.io.files import as_tensor, atomic, reading, require_file, require_stored
from invreg.io.records import Image, Record

AIR = -1000.0  # HU, given to pixels that are marked as padding
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_META = {
    "Modality": "modality",
    "SeriesDescription": "series_description",
    "SliceThickness": "slice_thickness",
    "KVP": "kvp",
    "RepetitionTime": "repetition_time",
    "EchoTime": "echo_time",
    "MagneticFieldStrength": "field_strength_T",
    "StudyInstanceUID": "study_uid",
    "SeriesInstanceUID": "series_uid",
    "FrameOfReferenceUID": "frame_of_reference_uid",
}


def read(path: Path) -> Image:
    """Read one slice (1, y, x), or the series in a directory as a volume (1, z, y, x).

    Stored values are rescaled by slope and intercept. CT is in HU (`units`); pixels marked as padding become -1000 HU,
    other values stay, also those below -1000 that some scanners use as padding without saying so (`hu_to_mu` clips
    them). Slices are sorted along their normal; y and x are the rows and columns of the file. Metadata holds no entry
    that names the patient.

    Raises:
        FileNotFoundError: there is no such file or directory.
        ValueError: damaged, colour, multi-frame, compressed without a decoder, several series in the directory, slices
            of different geometry, or not evenly spaced.
    """
    if path.is_dir():
        return _read_series(path)
    with reading(path, "DICOM"):
        header = _load(path)
        pixels, units, meta = _pixels(path, header)
        geometry = _geometry(header)
        if geometry is None:
            return Image(as_tensor(pixels, "the image")[None], units, _spacing(header), None, meta=meta)
        affine = _affine(geometry, header, None)
        return Image(as_tensor(pixels, "the image")[None], units, _spacing(header), affine, meta=meta)


def _load(path: Path) -> Any:
    """The whole header of one file, whose pixels can be read."""
    size = require_file(path)
    import pydicom

    header = pydicom.dcmread(path)
    if "PixelData" not in header:
        raise ValueError(
            f"{path}: wanted an image, got {header.get('Modality', 'DICOM')} without PixelData; check the file"
        )
    frames = int(header.get("NumberOfFrames", 1) or 1)
    if frames != 1:
        raise ValueError(f"{path}: multi-frame DICOM ({frames} frames) is not read; split it into single slices")
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise ValueError(
            f"{path}: wanted grey pixels, got {header.get('PhotometricInterpretation')}; take a grey image"
        )
    if "ModalityLUTSequence" in header:
        raise ValueError(f"{path}: a modality lookup table is not read; convert it to slope and intercept")
    declared = int(header.Rows) * int(header.Columns) * (int(header.BitsAllocated) // 8)
    syntax = header.file_meta.TransferSyntaxUID
    require_stored(path, declared, size, compressed=syntax.is_compressed)
    return header


def _pixels(path: Path, header: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Rescaled pixels (y, x) in float32, their units, and plain metadata."""
    syntax = header.file_meta.TransferSyntaxUID
    try:
        stored = header.pixel_array
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"{path}: pixels in {syntax.name} cannot be decoded ({' '.join(str(error).split())[:200]}); "
            "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or decompress the file"
        ) from error
    if stored.shape != (int(header.Rows), int(header.Columns)):
        raise ValueError(f"{path}: wanted {header.Rows} x {header.Columns} pixels, got {stored.shape}; it is damaged")
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    if not math.isfinite(slope) or not math.isfinite(intercept) or slope == 0:
        raise ValueError(f"{path}: slope must be finite and not 0, got slope {slope}, intercept {intercept}; repair it")
    values = (stored * np.float64(slope) + intercept).astype(np.float32)
    is_ct = header.get("Modality") == "CT" and header.get("RescaleType", "HU") in ("HU", "", None)
    meta = {ours: _plain(header.get(name)) for name, ours in _META.items() if header.get(name) not in (None, "")}
    padding = header.get("PixelPaddingValue")
    if padding is not None:
        limit = header.get("PixelPaddingRangeLimit", padding)
        marked = (stored >= min(padding, limit)) & (stored <= max(padding, limit))
        values[marked] = AIR if is_ct else 0.0
        meta["padded_pixels"] = int(marked.sum())
    return values, ("HU" if is_ct else "arbitrary"), meta


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) else str(value)


def _spacing(header: Any) -> tuple[float, float] | None:
    """Distance between rows and between columns, mm; None if not stated."""
    spacing = header.get("PixelSpacing")
    if spacing is None:
        return None
    rows, columns = (float(v) for v in spacing)
    return rows, columns


def _geometry(header: Any) -> tuple[Any, Any, Any] | None:
    """Direction along a row, along a column, and the position of the first pixel, in patient axes LPS, mm."""
    orientation, position = header.get("ImageOrientationPatient"), header.get("ImagePositionPatient")
    if orientation is None or position is None or _spacing(header) is None:
        return None
    directions = np.array([float(v) for v in orientation]).reshape(2, 3)
    if not np.allclose(directions @ directions.T, np.eye(2), atol=1e-2):
        raise ValueError(f"ImageOrientationPatient must be two orthogonal unit vectors, got {list(orientation)}")
    place = np.array([float(v) for v in position])
    if place.shape != (3,):
        raise ValueError(f"ImagePositionPatient must have 3 entries, got {list(position)}; repair it")
    return directions[0], directions[1], place


def _affine(geometry: tuple[Any, Any, Any], header: Any, step: Any) -> torch.Tensor:
    """Voxel (column, row, slice) to mm, RAS+; without a step the slices go along the normal."""
    row, column, place = geometry
    spacing = _spacing(header)
    assert spacing is not None
    if step is None:
        thickness = float(header.get("SliceThickness") or 1.0)
        step = np.cross(row, column) * (thickness if thickness > 0 else 1.0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = row * spacing[1], column * spacing[0], step, place
    return torch.from_numpy(_LPS_TO_RAS @ affine)


def _read_series(path: Path) -> Image:
    names = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".") and is_dicom(p))
    if not names:
        raise ValueError(f"{path}: wanted DICOM files in the directory, got none; name the directory of one series")
    headers = []
    for name in names:
        with reading(name, "DICOM"):
            headers.append(_load(name))
    with reading(path, "DICOM series"):
        series = sorted({str(header.get("SeriesInstanceUID")) for header in headers})
        if len(series) > 1:
            raise ValueError(
                f"holds {len(series)} series ({', '.join(series[:3])}...); put each into its own directory"
            )
        if len(names) == 1:
            return read(names[0])
        order, affine, voxel = _stack(headers)
        planes, all_units, metas = zip(*(_pixels(names[i], headers[i]) for i in order), strict=True)
        if len(set(all_units)) > 1:
            raise ValueError(f"slices differ in their units {sorted(set(all_units))}; put each kind apart")
        meta = dict(metas[0])
        if "padded_pixels" in meta:
            meta["padded_pixels"] = sum(one.get("padded_pixels", 0) for one in metas)
        return Image(as_tensor(np.stack(planes)[None], "the series"), all_units[0], voxel, affine, meta=meta)


def _stack(headers: list[Any]) -> tuple[list[int], torch.Tensor, tuple[float, ...]]:
    """The order of the slices along their normal, the affine of the volume, and its voxel size (z, y, x)."""
    known = [_geometry(header) for header in headers]
    if any(one is None for one in known):
        raise ValueError(
            "every slice needs PixelSpacing, ImageOrientationPatient and ImagePositionPatient; repair them"
        )
    geometry = [one for one in known if one is not None]
    row, column, _ = geometry[0]
    first_spacing = np.array(_spacing(headers[0]))
    for header, one in zip(headers, geometry, strict=True):
        same = (header.Rows, header.Columns) == (headers[0].Rows, headers[0].Columns)
        same = same and np.allclose(np.array(_spacing(header)), first_spacing, rtol=1e-4)
        if not same or not np.allclose((one[0], one[1]), (row, column), atol=1e-3):
            raise ValueError("slices differ in size, spacing or orientation; put each stack into its own directory")
    heights = np.array([one[2] @ np.cross(row, column) for one in geometry])
    order = [int(i) for i in np.argsort(heights, kind="stable")]
    places = np.stack([geometry[i][2] for i in order])
    steps = np.diff(places, axis=0)
    lengths = np.diff(heights[order])
    if lengths.min() <= 1e-3:
        raise ValueError(
            "several slices lie at one position (phases or echoes?); put each stack into its own directory"
        )
    if not np.allclose(steps, steps.mean(0), atol=max(0.02 * float(np.median(lengths)), 1e-3)):
        raise ValueError(
            f"slices are not evenly spaced, {lengths.min():.4g} to {lengths.max():.4g} mm; is one missing?"
        )
    step = (places[-1] - places[0]) / (len(order) - 1)
    first = headers[order[0]]
    spacing = _spacing(first)
    assert spacing is not None
    affine = _affine((row, column, places[0]), first, step)
    return order, affine, (float(np.linalg.norm(step)), *spacing)


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does, and is no index of others."""
    with open(path, "rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" and path.name.upper() != "DICOMDIR"


def write(path: Path, record: Record, *, overwrite: bool = False) -> None:
    """Write a real image as derived DICOM: a file where the path has a suffix, else a directory with one file a slice.

    HU go to CT as int16 (rounded); other values to MR as uint16 with slope and intercept, rounded to 1/65535 of their
    range. Study and frame of reference are kept where `meta` has them, so that the result lies beside its source; the
    patient's name and number stay empty.

    Raises:
        TypeError: no image, or a complex one.
        ValueError: units 1/mm, no voxel size, a skewed affine, unrelated images, HU beyond int16, or several slices for
            a path with a suffix.
        FileExistsError: the path exists and `overwrite` is False, or the directory holds other files.
    """
    if not isinstance(record, Image):
        raise TypeError(f"{path}: DICOM holds images, got {type(record).__name__}; use .npz")
    if record.data.is_complex():
        raise TypeError(f"{path}: DICOM is written real, got {record.data.dtype}; use image.abs(), or .cfl, .h5, .npz")
    data = record.data.detach().cpu().double()
    if data.shape[0] != (record.slices if data.ndim == 3 else 1):
        raise ValueError(
            f"{path}: DICOM holds one slice, stack or volume, got {tuple(data.shape)}; write them one by one"
        )
    planes = (data[0] if data.ndim == 4 else data).numpy()
    if len(planes) > 1 and path.suffix:
        raise ValueError(f"{path}: {len(planes)} slices need a directory; give a name without a suffix")
    headers = derived_slice(planes, record)
    if path.suffix and not path.is_dir():
        with atomic(path, overwrite=overwrite) as (temporary,):
            headers[0].save_as(temporary, enforce_file_format=True)
        return
    _write_directory(path, headers, overwrite)


def require_place_for_series(path: Path, *, overwrite: bool) -> None:
    """Raise unless a series may be written as the directory `path`: nothing there, an empty one, or an old series.

    Raises:
        FileExistsError: a file, other things than DICOM, or a series and `overwrite` is False.
        FileNotFoundError: the directory around it is missing.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the directory {path.parent} does not exist; make it first")
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path}: is a file, a series needs a directory; choose another name")
    old = sorted(path.iterdir()) if path.is_dir() else []
    if any(not p.is_file() or not is_dicom(p) for p in old):
        raise FileExistsError(
            f"{path}: holds other things than DICOM slices, which are not deleted; choose another name"
        )
    if old and not overwrite:
        raise FileExistsError(f"{path}: exists already and is not empty; choose another name or pass overwrite=True")


def _write_directory(path: Path, headers: list[Any], overwrite: bool) -> None:
    """All files in a new directory, which then takes the name; an old series is moved aside, and back on failure."""
    path = Path(os.path.realpath(path))
    require_place_for_series(path, overwrite=overwrite)
    token = secrets.token_hex(4)
    fresh, aside = path.with_name(f".{token}-{path.name}"), path.with_name(f".{token}-old-{path.name}")
    fresh.mkdir()
    try:
        for i, header in enumerate(headers):
            header.save_as(fresh / f"slice{i:05d}.dcm", enforce_file_format=True)
        moved = path.exists()
        if moved:
            os.rename(path, aside)
        try:
            os.rename(fresh, path)
        except BaseException:
            if moved:
                os.rename(aside, path)
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)
