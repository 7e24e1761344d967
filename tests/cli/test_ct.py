"""A sinogram as problems to solve: pitch, centre of rotation, stacks."""

from pathlib import Path

import pytest
import torch

from invreg.cli.ct import CT
from invreg.io import Image, Sinogram, read, write

CPU = torch.device("cpu")


def sinogram(slices: int = 1, **more: object) -> Sinogram:
    data = torch.rand(slices, 12, 32, generator=torch.Generator().manual_seed(0))
    return Sinogram(data, torch.arange(12) * torch.pi / 12, **more)  # type: ignore[arg-type]


def scan(record: Sinogram, operator: str | None = None, centre: float | None = None) -> CT:
    return CT(record, operator, None, None, None, centre, CPU)


def test_a_stated_pitch_takes_the_place_of_the_files_everywhere() -> None:
    made = scan(sinogram(detector_pitch=1.0, centre_of_rotation=12.5), "parallel-beam:detector_pitch=0.5")
    operator = made.operator(0)
    assert operator.detector_pitch == 0.5
    assert operator.detector_offset == pytest.approx(1.5)  # three cells
    assert made.pixel_size == 0.5


def test_a_stated_pitch_makes_a_scan_without_one_physical() -> None:
    bare = scan(sinogram(centre_of_rotation=12.5))
    assert not bare.physical
    assert "detector_pitch=MM" in bare.about()["pixel size (mm)"]
    stated = scan(sinogram(centre_of_rotation=12.5), "parallel-beam:detector_pitch=0.5")
    assert stated.physical
    assert stated.scale == 0.02
    assert stated.operator(0).detector_offset == pytest.approx(1.5)
    assert stated.image(torch.zeros(1, 32, 32)).units == "HU"
    with pytest.raises(ValueError, match="detector_pitch must be finite and > 0"):
        scan(sinogram(), "parallel-beam:detector_pitch=0")


def test_the_centre_of_rotation_says_where_it_comes_from() -> None:
    said = {
        "12.5 (given by the file)": scan(sinogram(centre_of_rotation=12.5)),
        "12.5 (estimated)": scan(sinogram(centre_of_rotation=12.5, meta={"centre_of_rotation": "estimated"})),
        "14.25 (given)": scan(sinogram(centre_of_rotation=12.5, detector_pitch=2.0), centre=14.25),
        "14.5 (given)": scan(sinogram(detector_pitch=2.0), "parallel-beam:detector_offset=2"),
        "15.5 (assumed: the middle, --centre sets it)": scan(sinogram()),
        "15.5 (assumed: the middle, --centre sets it; not found: too short)": scan(
            sinogram(meta={"centre_of_rotation": "not found: too short"})
        ),
    }
    for words, made in said.items():
        assert made.about()["centre of rotation"] == words
    assert scan(sinogram(detector_pitch=2.0), centre=14.5).operator(0).detector_offset == pytest.approx(2.0)


def test_a_centre_beyond_the_detector_or_stated_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="centre must be a cell of the detector, 0 to 31, got 40"):
        scan(sinogram(), centre=40.0)
    with pytest.raises(ValueError, match="--centre says the same as parallel-beam:detector_offset"):
        scan(sinogram(), "parallel-beam:detector_offset=2", centre=3.0)


def test_an_image_smaller_than_what_was_seen_is_warned_of(invoke, tmp_path: Path) -> None:
    write(tmp_path / "ct.npz", sinogram(detector_pitch=2.0))
    words = ("reconstruct", tmp_path / "ct.npz", "-o", tmp_path / "x.npz", "--algorithm", "fbp", "--force")
    for more, cut in (
        ((), None),
        (("--size", 16), "field of view: WARNING: 32 mm of the 64 that the scan saw"),
        (("--size", 16, "--pixel-size", 4), None),
        (("--pixel-size", 1), "give --pixel-size 2 for the same size"),
        (("--size", 16, "--operator", "fan-beam:source_origin=100,origin_detector=100"), "16 mm of the 32 that"),
        (("--operator", "fan-beam:source_origin=100,origin_detector=100"), None),
    ):
        outcome = invoke(*words, *more)
        assert outcome.code == 0, outcome.err
        said = " ".join(outcome.err.split())
        assert (cut is None and "WARNING" not in said) or (cut is not None and cut in said), said
    stored = sinogram(detector_pitch=2.0, meta={"image_size": 24})
    assert scan(stored).about()["field of view"] is None


def test_the_centre_is_printed_and_can_be_given(invoke, tmp_path: Path) -> None:
    write(tmp_path / "ct.npz", sinogram(detector_pitch=1.0))
    words = ("reconstruct", tmp_path / "ct.npz", "-o", tmp_path / "x.npz", "--algorithm", "fbp")
    assert "centre of rotation: 15.5 (assumed: the middle" in invoke(*words).err
    assert "centre of rotation: 14 (given)" in invoke(*words, "--centre", 14, "--force").err


def test_the_slices_of_a_stack_lie_a_row_of_the_detector_apart(invoke, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    write(tmp_path / "ct.npz", sinogram(3, detector_pitch=0.5))
    output = tmp_path / "x.nii"
    outcome = invoke("reconstruct", tmp_path / "ct.npz", "-o", output, "--algorithm", "fbp", "--pixel-size", 0.25)
    assert outcome.code == 0, outcome.err
    image = nibabel.load(output)
    assert image.header.get_zooms() == (0.25, 0.25, 0.5)
    middle = image.affine @ [15.5, 15.5, 1, 1]
    assert middle[:3] == pytest.approx([0, 0, 0])
    fan = scan(sinogram(3, detector_pitch=0.5), "fan-beam:source_origin=300,origin_detector=200")
    affine = fan.image(torch.zeros(3, 32, 32)).affine
    assert affine is not None
    assert float(affine[2, 2]) == pytest.approx(0.3)


def test_a_stack_is_written_as_a_series_under_a_new_name(invoke, tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    write(tmp_path / "ct.npz", sinogram(3, detector_pitch=0.5))
    words = ("reconstruct", tmp_path / "ct.npz", "--algorithm", "fbp")
    refused = invoke(*words, "-o", tmp_path / "x.dcm")
    assert refused.code == 2
    assert "3 slices need a directory; give a name without a suffix" in refused.err
    for name in ("series", "other/"):
        outcome = invoke(*words, "-o", f"{tmp_path}/{name}")
        assert outcome.code == 0, outcome.err
        found = read(tmp_path / name)
        assert isinstance(found, Image)
        assert found.units == "HU"
        assert found.voxel_size == (0.5, 0.5, 0.5)
    assert "exists already and is not empty; choose another name or pass --force" in invoke(
        *words, "-o", tmp_path / "series"
    ).err  # fmt: skip
    assert invoke(*words, "-o", tmp_path / "series", "--force").code == 0
