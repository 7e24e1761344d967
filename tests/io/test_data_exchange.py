"""Data Exchange HDF5 written with h5py, and the centre of rotation."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from invreg.io import KSpace, Sinogram, find_centre, read, write
from invreg.operators.radon import ParallelBeam

ANGLES, ROWS, CELLS, PHOTONS, DARK = 90, 2, 64, 50000, 100


def blobs(angles: torch.Tensor, cells: int, centre: float, *, wide: bool = False) -> torch.Tensor:
    """Exact projections of three Gaussian blobs, (1, angles, cells); `wide` reaches beyond the detector."""
    spread = 0.9 if wide else 0.28
    s = torch.arange(cells, dtype=torch.float64) - centre
    total = torch.zeros(1, angles.numel(), cells, dtype=torch.float64)
    for x, y, width, height in ((0.5, 0.2, 0.08, 1.0), (-0.7, 0.4, 0.11, 0.6), (0.1, -0.9, 0.06, 0.8)):
        place = spread * cells / 2 * (x * torch.cos(angles) + y * torch.sin(angles))[:, None]
        total += height * torch.exp(-((s - place) ** 2) / (2 * (width * cells) ** 2))
    return total


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., Path]:
    def make(omit: tuple[str, ...] = (), centre: float = 33.3, attrs: Any = None, **changes: Any) -> Path:
        theta = np.arange(ANGLES) * 180 / ANGLES
        clean = blobs(torch.from_numpy(np.deg2rad(theta)), CELLS, centre).expand(ROWS, -1, -1).numpy()
        flat = PHOTONS * (1 + 0.2 * np.cos(np.arange(CELLS)))[None] * np.ones((ROWS, 1))
        counts = np.rint(flat * np.exp(-clean.transpose(1, 0, 2)) + DARK)
        datasets = {
            "exchange/data": counts.astype(np.uint16),
            "exchange/data_white": np.stack([flat + DARK] * 3).astype(np.float32),
            "exchange/data_dark": np.full((2, ROWS, CELLS), DARK, np.uint16),
            "exchange/theta": theta,
        } | changes
        path = tmp_path / "scan.h5"
        with h5py.File(path, "w") as file:
            for name, value in datasets.items():
                if name not in omit:
                    file[name] = value
            for name, units in (attrs or {}).items():
                file[name].attrs["units"] = units
        return path

    return make


def test_counts_become_line_integrals_per_row(make_file: Callable[..., Path]) -> None:
    record = read(make_file())
    assert isinstance(record, Sinogram)
    assert record.data.shape == (ROWS, ANGLES, CELLS)
    angles = torch.arange(ANGLES) * math.pi / ANGLES
    assert torch.allclose(record.angles, angles.float())
    truth = blobs(angles.double(), CELLS, 33.3).float()
    assert float((record.data - truth).abs().max()) < 2e-4  # counts are rounded to integers
    assert record.centre_of_rotation == pytest.approx(33.3, abs=0.1)
    assert record.meta["centre_of_rotation"] == "estimated"
    assert record.counts is not None
    assert isinstance(record.photons, torch.Tensor)
    assert record.photons.shape == (ROWS, 1, CELLS)
    assert torch.allclose(-torch.log(record.counts / record.photons), record.data, atol=1e-6)
    assert record.detector_pitch is None
    assert record.detector_offset is None


def test_a_zero_count_follows_the_rule_for_low_counts(make_file: Callable[..., Path]) -> None:
    counts = np.full((ANGLES, ROWS, CELLS), DARK, np.uint16)
    record = read(make_file(**{"exchange/data": counts}))
    assert isinstance(record, Sinogram)
    assert isinstance(record.photons, torch.Tensor)
    assert torch.allclose(record.data, torch.log(2 * record.photons).expand_as(record.data))


def test_fewer_counts_than_the_dark_field_are_read_as_none(make_file: Callable[..., Path]) -> None:
    counts = np.full((ANGLES, ROWS, CELLS), DARK - 3, np.uint16)
    record = read(make_file(**{"exchange/data": counts}))
    assert isinstance(record, Sinogram)
    assert record.counts is not None
    assert isinstance(record.photons, torch.Tensor)
    assert float(record.counts.max()) == 0
    assert torch.allclose(record.data, torch.log(2 * record.photons).expand_as(record.data))


def test_data_that_were_divided_by_their_flat_field_are_no_counts(make_file: Callable[..., Path]) -> None:
    theta = np.arange(ANGLES) * 180 / ANGLES
    clean = 10 * blobs(torch.from_numpy(np.deg2rad(theta)), CELLS, 33.3).expand(ROWS, -1, -1)
    data = torch.exp(-clean).numpy().transpose(1, 0, 2).astype(np.float32)
    assert data.min() < 1e-4  # deeper than half a count in one
    data[0, 0, :2] = 0, -0.01
    white = np.ones((1, ROWS, CELLS), np.float32)
    white[:, 1, 5] = 0
    dark = np.zeros((1, ROWS, CELLS), np.float32)
    names = ("exchange/data", "exchange/data_white", "exchange/data_dark")
    record = read(make_file(**dict(zip(names, (data, white, dark), strict=True))))
    assert isinstance(record, Sinogram)
    assert record.counts is None
    assert record.photons is None
    assert record.meta["normalised"] is True
    assert record.meta["dead_cells"] == 1
    assert record.data[0, 0, :2].tolist() == pytest.approx([17 * math.log(2)] * 2)
    shown = clean.clone().float()
    shown[0, 0, :2], shown[1, :, 5] = 17 * math.log(2), (shown[1, :, 4] + shown[1, :, 6]) / 2
    assert torch.allclose(record.data, shown.clamp_max(17 * math.log(2)), atol=1e-4)
    few = read(make_file(**{names[0]: (5 * data).astype(np.uint8), names[1]: 5 * white, names[2]: dark}))
    assert isinstance(few, Sinogram)
    assert few.counts is not None  # integers are counts, however few


def test_dead_cells_are_bridged_and_counted(make_file: Callable[..., Path]) -> None:
    path = make_file()
    whole = read(path)
    with h5py.File(path, "r+") as file:
        for cell in (0, 20, 21):
            file["exchange/data_white"][:, 0, cell] = 0
            file["exchange/data"][:, 0, cell] = 0
    record = read(path)
    assert record.meta["dead_cells"] == 3
    a, b = record.data[0, :, 19], record.data[0, :, 22]
    assert torch.allclose(record.data[0, :, 20], (2 * a + b) / 3, atol=1e-6)
    assert torch.allclose(record.data[0, :, 21], (a + 2 * b) / 3, atol=1e-6)
    assert torch.equal(record.data[0, :, 0], record.data[0, :, 1])
    assert torch.equal(record.data[1], whole.data[1])


def test_without_dark_fields_the_dark_is_zero(make_file: Callable[..., Path]) -> None:
    record = read(make_file(omit=("exchange/data_dark",)))
    assert record.meta["dark_field"] is False


@pytest.mark.parametrize(
    ("name", "value", "units", "pitch"),
    [
        ("measurement/instrument/detection_system/objective/resolution", 1.3, "um", 1.3e-3),
        ("measurement/instrument/detection_system/objective/resolution", 1.3, None, 1.3e-3),
        ("measurement/instrument/detector/pixel_size_x", 6.5e-6, "m", 6.5e-3),
        ("measurement/instrument/detector/x_pixel_size", 6.5e-3, b"mm", 6.5e-3),
        ("measurement/instrument/detector/pixel_size", 6.5, "parsec", None),
        ("measurement/instrument/detector/pixel_size", -1.0, "um", None),
    ],
)
def test_the_pitch_is_in_millimetres(
    make_file: Callable[..., Path], name: str, value: float, units: Any, pitch: float | None
) -> None:
    record = read(make_file(attrs={name: units} if units else None, **{name: value}))
    assert isinstance(record, Sinogram)
    assert record.detector_pitch == (None if pitch is None else pytest.approx(pitch))
    if pitch is not None:
        assert record.detector_offset == pytest.approx((31.5 - 33.3) * pitch, abs=0.1 * pitch)


def test_the_magnification_divides_the_cell(make_file: Callable[..., Path]) -> None:
    cell, times = "measurement/instrument/detector/pixel_size", "measurement/instrument/detection_system/objective"
    record = read(make_file(attrs={cell: "um"}, **{cell: 6.5, f"{times}/magnification": 5.0}))
    assert isinstance(record, Sinogram)
    assert record.detector_pitch == pytest.approx(1.3e-3)


def test_angles_that_look_like_radians_are_warned_about(make_file: Callable[..., Path]) -> None:
    theta = np.arange(ANGLES) * math.pi / ANGLES
    with pytest.warns(UserWarning, match="read as degrees"):
        read(make_file(**{"exchange/theta": theta}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = read(make_file(attrs={"exchange/theta": "rad"}, **{"exchange/theta": theta}))
    assert isinstance(record, Sinogram)
    assert torch.allclose(record.angles, torch.from_numpy(theta).float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"omit": ("exchange/theta",)}, "wanted the dataset exchange/theta"),
        ({"omit": ("exchange/data_white",)}, "wanted the dataset exchange/data_white"),
        ({"exchange/theta": np.arange(5)}, "must have 90 angles"),
        ({"exchange/theta": np.full(ANGLES, np.nan)}, "finite angles"),
        ({"exchange/data": np.zeros((3, 4))}, "must be"),
        ({"exchange/data": np.full((ANGLES, ROWS, CELLS), np.inf)}, "finite real counts"),
        ({"exchange/data_white": np.ones((3, 1, CELLS))}, r"must be \(fields, 2, 64\)"),
        ({"exchange/data_white": np.zeros((3, ROWS, CELLS))}, "without light"),
        ({"exchange/data_dark": np.full((1, ROWS, CELLS), np.nan)}, "finite real counts"),
    ],
)
def test_what_is_wrong_in_the_file_is_said(make_file: Callable[..., Path], options: Any, message: str) -> None:
    path = make_file(**options)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_the_format_is_read_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data_exchange is read only"):
        write(tmp_path / "x.h5", Sinogram(torch.ones(1, 3, 4), torch.arange(3.0)), format="data_exchange")
    with pytest.raises(TypeError, match="KSpace"):
        write(tmp_path / "x.nii", KSpace(torch.ones(1, 1, 3, 4, dtype=torch.complex64)))


@pytest.mark.parametrize("turn", [math.pi, 2 * math.pi])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("centre", [63.5, 59.2, 70.75])
def test_the_centre_of_rotation_is_found(centre: float, wide: bool, turn: float) -> None:
    angles = torch.arange(180, dtype=torch.float64) * turn / 180
    assert find_centre(blobs(angles, 128, centre, wide=wide), angles) == pytest.approx(centre, abs=0.1)


def test_the_offset_of_a_record_is_what_the_projector_takes() -> None:
    angles = torch.arange(120, dtype=torch.float64) * math.pi / 120
    image = torch.zeros(1, 64, 64, dtype=torch.float64)
    image[0, 20:45, 15:30], image[0, 35:40, 30:50] = 0.02, 0.05
    beam = ParallelBeam((64, 64), angles, 96, pixel_size=0.5, detector_offset=2.6)
    sinogram = beam(image)
    record = Sinogram(sinogram, angles, 0.5, find_centre(sinogram, angles))
    assert record.detector_offset == pytest.approx(2.6, abs=0.1 * 0.5)


def test_a_far_centre_is_found_from_a_whole_turn() -> None:
    angles = torch.arange(360, dtype=torch.float64) * 2 * math.pi / 360
    assert find_centre(blobs(angles, 128, 100.3), angles) == pytest.approx(100.3, abs=0.1)


def test_noise_and_the_order_of_angles_do_not_move_the_centre() -> None:
    generator = torch.Generator().manual_seed(0)
    angles = torch.arange(180, dtype=torch.float64) * math.pi / 180
    sinogram = blobs(angles, 128, 60.4)
    noisy = sinogram + 0.05 * torch.randn(sinogram.shape, generator=generator, dtype=torch.float64)
    assert find_centre(noisy, angles) == pytest.approx(60.4, abs=0.3)
    order = torch.randperm(180, generator=generator)
    assert find_centre(sinogram[:, order], angles[order]) == pytest.approx(find_centre(sinogram, angles), abs=1e-9)


def test_a_centre_that_the_data_do_not_determine_is_not_invented() -> None:
    angles = torch.arange(60, dtype=torch.float64) * math.pi / 180
    sinogram = blobs(angles, 64, 30.0)
    with pytest.raises(ValueError, match=r"cover half a turn, got 59\.0 degrees"):
        find_centre(sinogram, angles)
    noise = torch.randn(1, 181, 64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="agree by"):
        find_centre(noise, torch.linspace(0, math.pi, 181))
    with pytest.raises(ValueError, match="3 angles and 8 cells"):
        find_centre(sinogram[:, :2], angles[:2])
    with pytest.raises(ValueError, match=r"real \(B, angles, detectors\)"):
        find_centre(sinogram[0], angles)


def test_a_file_of_limited_angles_has_no_centre_but_says_why(make_file: Callable[..., Path]) -> None:
    record = read(make_file(**{"exchange/theta": np.arange(ANGLES) * 60 / ANGLES}))
    assert isinstance(record, Sinogram)
    assert record.centre_of_rotation is None
    assert "cover half a turn" in record.meta["centre_of_rotation"]
