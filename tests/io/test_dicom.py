"""DICOM files of pydicom's own tests, and series written with pydicom."""

import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.data import get_testdata_file

from invreg.io import Image, KSpace, hu_to_mu, read, write

# RAS, rotated about x: columns are the steps along x, y, z
_COS, _SIN = np.cos(0.3), np.sin(0.3)
ROTATION = np.array([[-1.0, 0, 0], [0, -_COS, _SIN], [0, _SIN, _COS]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = ROTATION * [0.8, 0.9, 2.5]
AFFINE[:3, 3] = [30, -40, 12]
VOXEL = (2.5, 0.9, 0.8)


def sample(name: str) -> str:
    """A file inside the pydicom package; never downloaded."""
    path = get_testdata_file(name, download=False)
    assert path is not None
    return str(path)


def volume() -> Image:
    data = torch.randint(-1000, 2000, (1, 4, 5, 6), generator=torch.Generator().manual_seed(0)).float()
    data[0, 2, 3, 1] = 3000
    return Image(data, "HU", VOXEL, torch.from_numpy(AFFINE), meta={"study_uid": "1.2.3", "kvp": 120.0})


def test_ct_small_is_read_in_hounsfield_units_at_its_place() -> None:
    path = sample("CT_small.dcm")
    source = pydicom.dcmread(path)
    record = read(path)
    assert isinstance(record, Image)
    assert record.units == "HU"
    assert torch.equal(record.data[0], torch.from_numpy(source.pixel_array.astype(np.float32) - 1024))
    assert record.voxel_size == (0.661468, 0.661468)
    assert record.affine is not None
    # columns run along x, rows along y in LPS; RAS turns both
    corner = record.affine @ torch.tensor([10, 20, 0, 1.0], dtype=torch.float64)
    assert corner[:3].tolist() == pytest.approx(
        [158.135803 - 10 * 0.661468, 179.035797 - 20 * 0.661468, -75.699997], abs=1e-5
    )
    assert record.meta["modality"] == "CT"
    assert not any("CompressedSamples" in str(v) for v in record.meta.values())  # the patient's name


def test_the_head_ct_in_jpeg_2000_is_decoded_and_its_padding_becomes_no_attenuation() -> None:
    record = read(sample("J2K_pixelrep_mismatch.dcm"))
    assert isinstance(record, Image)
    assert record.data.shape == (1, 512, 512)
    assert record.data.min() == -2000  # padding that the file does not declare stays as it is stored
    mu = hu_to_mu(record.data)
    assert mu.min() == 0
    assert 0.015 < float(mu[0, 200:300, 200:300].median()) < 0.03
    assert record.affine is not None  # a tilted gantry
    assert float(record.affine[2, 1]) == pytest.approx(-0.3746 * 0.431, abs=1e-4)


def test_declared_padding_becomes_air(tmp_path: Path) -> None:
    header = pydicom.dcmread(sample("CT_small.dcm"))
    pixels = header.pixel_array.copy()
    pixels[:2] = -2000
    header.PixelData = pixels.tobytes()
    header.save_as(tmp_path / "x.dcm")
    record = read(tmp_path / "x.dcm")
    assert isinstance(record, Image)
    assert torch.equal(record.data[0, :2], torch.full((2, 128), -1000.0))
    assert record.meta["padded_pixels"] == 256


def test_mr_has_arbitrary_units() -> None:
    record = read(sample("MR_small.dcm"))
    assert isinstance(record, Image)
    assert record.units == "arbitrary"


@pytest.mark.parametrize("trailing", [True, False])
def test_a_volume_becomes_a_series_and_comes_back(tmp_path: Path, trailing: bool) -> None:
    image = volume()
    path = tmp_path / "series"
    write(f"{path}{os.sep}" if trailing else path, image, format=None if trailing else "dicom")
    assert len(list(path.iterdir())) == 4
    (path / "README").write_text("not a slice")
    for i, name in enumerate(sorted(path.glob("*.dcm"))):  # any names, any order
        name.rename(path / f"{(i * 7) % 4}.IMA")
    back = read(path)
    assert isinstance(back, Image)
    assert torch.equal(back.data, image.data)
    assert back.units == "HU"
    assert back.voxel_size == pytest.approx(VOXEL)
    assert back.affine is not None
    assert np.allclose(back.affine.numpy(), AFFINE, atol=1e-4)
    assert back.meta["study_uid"] == "1.2.3"


def test_a_voxel_keeps_its_point_in_the_world(tmp_path: Path) -> None:
    write(tmp_path / "s", volume(), format="dicom")
    for name in (tmp_path / "s").iterdir():
        header = pydicom.dcmread(name)
        rows, columns = np.nonzero(header.pixel_array * header.RescaleSlope + header.RescaleIntercept == 3000)
        if rows.size:
            along_row, along_column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
            spacing = [float(v) for v in header.PixelSpacing]
            place = np.array(header.ImagePositionPatient, float)
            point = place + columns[0] * spacing[1] * along_row + rows[0] * spacing[0] * along_column
            assert (point * [-1, -1, 1]).tolist() == pytest.approx((AFFINE @ [1, 3, 2, 1])[:3].tolist(), abs=1e-4)
            break
    else:
        pytest.fail("the marked voxel is gone")


def test_what_is_written_is_derived_ct_of_16_bits_without_a_name(tmp_path: Path) -> None:
    image = Image(torch.tensor([[[-1000.0, 0.4], [40.6, 3071]]]), "HU", (0.5, 0.7))
    write(tmp_path / "x.dcm", image)
    header = pydicom.dcmread(tmp_path / "x.dcm")
    assert header.SOPClassUID == pydicom.uid.CTImageStorage
    assert (header.PixelRepresentation, header.BitsStored, header.Modality) == (1, 16, "CT")
    assert header.pixel_array.tolist() == [[-1000, 0], [41, 3071]]
    assert (header.RescaleSlope, header.RescaleIntercept, header.RescaleType) == (1, 0, "HU")
    assert [float(v) for v in header.PixelSpacing] == [0.5, 0.7]
    assert header.ImageType[0] == "DERIVED"
    assert header.PatientName == ""


def test_magnitudes_become_mr_within_their_quantisation(tmp_path: Path) -> None:
    data = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(1)) * 1e-6
    affine = torch.from_numpy(AFFINE)
    write(tmp_path / "s", Image(data, "arbitrary", VOXEL[1:], affine, slices=3), format="dicom")
    back = read(tmp_path / "s")
    assert isinstance(back, Image)
    assert back.data.shape == (1, 3, 5, 6)
    for z in range(3):
        step = float(data[z].max() - data[z].min()) / 65535
        assert float((back.data[0, z] - data[z]).abs().max()) <= 0.6 * max(step, float(data.max()) / 65535)
    write(tmp_path / "flat.dcm", Image(torch.full((1, 3, 3), 2.5), voxel_size=(1.0, 1.0)))
    assert torch.equal(read(tmp_path / "flat.dcm").data, torch.full((1, 3, 3), 2.5))


def slices(tmp_path: Path) -> list[Path]:
    write(tmp_path / "s", volume(), format="dicom")
    return sorted((tmp_path / "s").iterdir())


def alter(path: Path, **values: object) -> None:
    header = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(header, name, value)
    header.save_as(path)


def test_a_series_with_a_missing_doubled_or_foreign_slice_is_refused(tmp_path: Path) -> None:
    names = slices(tmp_path)
    content = names[1].read_bytes()
    names[1].unlink()
    with pytest.raises(ValueError, match=r"not evenly spaced, 2\.5 to 5 mm"):
        read(tmp_path / "s")
    names[1].write_bytes(content)
    shutil.copy(names[1], tmp_path / "s" / "copy.dcm")
    with pytest.raises(ValueError, match="several slices lie at one position"):
        read(tmp_path / "s")
    (tmp_path / "s" / "copy.dcm").unlink()
    alter(names[0], PixelSpacing=[1, 1])
    with pytest.raises(ValueError, match="differ in size, spacing or orientation"):
        read(tmp_path / "s")
    alter(names[0], SeriesInstanceUID="1.2.3.4")
    with pytest.raises(ValueError, match="holds 2 series"):
        read(tmp_path / "s")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="wanted DICOM files"):
        read(tmp_path / "empty")


@pytest.mark.parametrize(
    ("values", "message"),
    [({"NumberOfFrames": 2}, "multi-frame DICOM"), ({"SamplesPerPixel": 3}, "grey pixels")],
)
def test_other_kinds_of_dicom_are_refused_by_name(tmp_path: Path, values: dict[str, int], message: str) -> None:
    path = tmp_path / "x.dcm"
    shutil.copy(sample("CT_small.dcm"), path)
    alter(path, **values)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_dicom_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="got RTPLAN without PixelData"):
        read(sample("rtplan.dcm"))


def test_a_compression_without_decoder_is_refused_by_name(tmp_path: Path) -> None:
    header = pydicom.dcmread(sample("J2K_pixelrep_mismatch.dcm"))
    header.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    header.save_as(tmp_path / "x.dcm")
    with pytest.raises(ValueError, match=r"MPEG2 Main Profile .* cannot be decoded"):
        read(tmp_path / "x.dcm")


def test_slopes_and_directions_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    for values, message in (
        ({"RescaleSlope": 0}, "slope must be"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "orthogonal"),
        ({"Rows": 60000}, "declares"),
        ({"Rows": 127, "Columns": 127}, None),
    ):
        write(path, Image(torch.zeros(1, 128, 128), "HU", (1.0, 1.0)), overwrite=True)
        alter(path, **values)
        if message is None:
            assert read(path).data.shape == (1, 127, 127)  # padded pixel data, as DICOM allows
        else:
            with pytest.raises(ValueError, match=message):
                read(path)


def test_what_dicom_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    flat = torch.zeros(1, 4, 4)
    cases = [
        (Image(flat.to(torch.complex64), voxel_size=(1.0, 1.0)), TypeError, r"use image\.abs"),
        (KSpace(torch.ones(1, 1, 4, 4, dtype=torch.complex64)), TypeError, "KSpace"),
        (Image(flat, "1/mm", (1.0, 1.0)), ValueError, "mu_to_hu"),
        (Image(flat, "HU"), ValueError, "voxel size"),
        (Image(flat + 40000, "HU", (1.0, 1.0)), ValueError, "16 bits"),
        (Image(flat.expand(2, 4, 4), "HU", (1.0, 1.0)), ValueError, "one by one"),
        (volume(), ValueError, "need a directory"),
    ]
    for image, kind, message in cases:
        with pytest.raises(kind, match=message):
            write(path, image)
    with pytest.raises(ValueError, match="position of every slice"):
        write(tmp_path / "s", Image(flat.expand(2, 4, 4), "HU", (1.0, 1.0), slices=2), format="dicom")
    skewed = torch.eye(4, dtype=torch.float64)
    skewed[0, 1] = 0.5
    steps = (1.0, float(skewed[:3, 1].norm()), 1.0)
    with pytest.raises(ValueError, match="skewed"):
        write(tmp_path / "s", Image(torch.zeros(1, 2, 4, 4), "HU", steps, skewed), format="dicom")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("slices", [1, 3])
def test_a_new_name_without_suffix_is_a_directory_with_a_series(tmp_path: Path, slices: int) -> None:
    affine = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=torch.float64))
    stack = Image(torch.zeros(slices, 4, 4), "HU", (1.0, 1.0), affine, slices)
    write(tmp_path / "s", stack)
    assert len(list((tmp_path / "s").iterdir())) == slices
    back = read(tmp_path / "s")
    assert isinstance(back, Image)
    assert back.data.numel() == stack.data.numel()


def test_a_directory_of_other_things_is_never_deleted(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path, volume(), format="dicom")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write(path, volume(), format="dicom")
    write(path, volume(), format="dicom", overwrite=True)
    (path / "thesis.txt").write_text("four years")
    with pytest.raises(FileExistsError, match="not deleted"):
        write(path, volume(), format="dicom", overwrite=True)
    assert (path / "thesis.txt").read_text() == "four years"


def test_a_failure_midway_leaves_the_old_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    write(path, volume(), format="dicom")
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    real, saved = pydicom.Dataset.save_as, []

    def save_as(self: pydicom.Dataset, *args: object, **options: object) -> None:
        saved.append(1)
        if len(saved) == 3:
            raise OSError("disk full")
        real(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pydicom.Dataset, "save_as", save_as)
    with pytest.raises(OSError, match="disk full"):
        write(path, volume(), format="dicom", overwrite=True)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
