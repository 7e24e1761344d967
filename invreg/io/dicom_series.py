"""The headers of derived DICOM slices: geometry and pixels from an image, identity from nobody."""

from typing import Any

import numpy as np

from invreg.io.records import Image

_IMPLEMENTATION = "1.2.826.0.1.3680043.8.498.1"  # under the root that pydicom lends


def derived_slice(planes: Any, record: Image) -> list[Any]:
    """One data set for each plane.

    Args:
        planes: (slices, y, x), float64.
        record: where they come from: units, voxel size, affine, meta.

    Returns:
        pydicom data sets, ready to be saved.

    Raises:
        ValueError: no voxel size, units 1/mm, a skewed affine, or HU beyond int16.
    """
    from pydicom.uid import CTImageStorage, MRImageStorage, generate_uid

    if record.units == "1/mm":
        raise ValueError("DICOM holds CT in HU, got 1/mm; convert with mu_to_hu and units='HU'")
    if record.voxel_size is None:
        raise ValueError("DICOM needs the voxel size in mm, got None; set voxel_size")
    if max(planes.shape[1:]) > 65535:
        raise ValueError(f"DICOM slices have at most 65535 rows and columns, got {planes.shape[1:]}; use NIfTI")
    place, row, column, step = _geometry(record)
    is_ct = record.units == "HU"
    stored, slope, intercept = _quantised(planes, is_ct)
    identity = {
        "StudyInstanceUID": record.meta.get("study_uid") or generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": record.meta.get("frame_of_reference_uid") or generate_uid(),
        "SeriesDescription": str(record.meta.get("series_description", "invreg reconstruction"))[:64],
        "SliceThickness": _decimal(float(np.linalg.norm(step))),
    }
    return [
        _slice(
            stored[i],
            {
                **identity,
                "SOPClassUID": CTImageStorage if is_ct else MRImageStorage,
                "SOPInstanceUID": generate_uid(),
                "Modality": "CT" if is_ct else "MR",
                "InstanceNumber": i + 1,
                "ImagePositionPatient": [_decimal(v) for v in place + i * step],
                "ImageOrientationPatient": [_decimal(v) for v in (*row, *column)],
                "PixelSpacing": [_decimal(v) for v in record.voxel_size[-2:]],
                "SliceLocation": _decimal(float(np.cross(row, column) @ (place + i * step))),
                "RescaleSlope": _decimal(slope),
                "RescaleIntercept": _decimal(intercept),
                "RescaleType": "HU" if is_ct else "US",
            },
        )
        for i in range(len(planes))
    ]


def _slice(stored: Any, values: dict[str, Any]) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = values["SOPClassUID"]
    header.file_meta.MediaStorageSOPInstanceUID = values["SOPInstanceUID"]
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.ImplementationClassUID = _IMPLEMENTATION
    header.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if values["Modality"] == "CT" else "OTHER"]
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"):
        setattr(header, name, "")
    for name in ("AccessionNumber", "ReferringPhysicianName", "Manufacturer", "PositionReferenceIndicator"):
        setattr(header, name, "")
    header.SeriesNumber = 1
    header.DerivationDescription = "Reconstructed by invreg"
    for name, value in values.items():
        setattr(header, name, value)
    if values["Modality"] == "CT":
        header.KVP = None
        header.AcquisitionNumber = None
    else:
        header.ScanningSequence, header.SequenceVariant, header.ScanOptions = "RM", "NONE", ""
        header.MRAcquisitionType, header.EchoTime, header.EchoTrainLength = "", None, None
    header.Rows, header.Columns = stored.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    header.PixelRepresentation = int(stored.dtype == np.int16)
    header.PixelData = stored.astype("<i2" if stored.dtype == np.int16 else "<u2").tobytes()
    return header


def _quantised(planes: Any, is_ct: bool) -> tuple[Any, float, float]:
    """Stored values, slope and intercept."""
    if is_ct:
        rounded = np.rint(planes)
        if rounded.min() < -32768 or rounded.max() > 32767:
            raise ValueError(f"HU must fit 16 bits, got {planes.min():.6g} to {planes.max():.6g}; check the units")
        return rounded.astype(np.int16), 1.0, 0.0
    low, high = float(planes.min()), float(planes.max())
    # what the file states is the rounded decimal, so quantise with that
    slope = float(_decimal((high - low) / 65535)) if high > low else 1.0
    intercept = float(_decimal(low))
    return np.clip(np.rint((planes - intercept) / slope), 0, 65535).astype(np.uint16), slope, intercept


def _decimal(value: float) -> str:
    """A number in the 16 characters that DICOM allows."""
    value = float(value) + 0.0  # no minus zero
    for digits in range(14, 0, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    raise ValueError(f"{value} does not fit 16 characters")


def _geometry(record: Image) -> tuple[Any, Any, Any, Any]:
    """Position of the first pixel, directions along a row and a column, and the step between slices, LPS."""
    assert record.voxel_size is not None
    if record.affine is None:
        if record.data.ndim == 3 and record.data.shape[0] > 1:
            raise ValueError("DICOM needs the position of every slice of a stack, got no affine; set affine")
        depth = record.voxel_size[0] if record.data.ndim == 4 else float(record.meta.get("slice_thickness", 1.0))
        return np.zeros(3), np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([0, 0, depth])
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ record.affine.detach().cpu().double().numpy()
    row, column = (affine[:3, k] / np.linalg.norm(affine[:3, k]) for k in (0, 1))
    if abs(row @ column) > 1e-3:
        raise ValueError(
            "DICOM slices have orthogonal rows and columns, got a skewed affine; resample first, or use NIfTI"
        )
    return affine[:3, 3], row, column, affine[:3, 2]
