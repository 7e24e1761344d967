"""The XML header of ISMRMRD, as far as Cartesian reconstruction needs it."""

import math
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from invreg._check import require_count, require_positive

Element = ElementTree.Element
_LARGEST_MATRIX = 65536


@dataclass(frozen=True)
class Encoding:
    """One encoding: matrix sizes and fields of view are (x, y, z), x the readout, in mm.

    Args:
        trajectory: "cartesian", "radial", ...
        matrix, fov: of the encoded space.
        recon_matrix, recon_fov: of the image that is meant to be shown.
        centres: the index of frequency zero in encoding steps 1 and 2, None where the header does not say.
        acceleration: nominal acceleration of steps 1 and 2, or None.
        calibration: "embedded", "separate", ... or None.
    """

    trajectory: str
    matrix: tuple[int, int, int]
    fov: tuple[float, float, float]
    recon_matrix: tuple[int, int, int]
    recon_fov: tuple[float, float, float]
    centres: tuple[int | None, int | None]
    acceleration: tuple[int, int] | None
    calibration: str | None

    @property
    def voxel(self) -> tuple[float, float, float]:
        """Size of an encoded voxel (x, y, z), mm."""
        x, y, z = (size / n for size, n in zip(self.fov, self.matrix, strict=True))
        return x, y, z

    @property
    def shown(self) -> tuple[int, int, int]:
        """How many encoded voxels (x, y, z) the reconstructed field of view covers, at most `matrix`."""
        x, y, z = (
            max(1, min(n, round(size / step)))
            for n, size, step in zip(self.matrix, self.recon_fov, self.voxel, strict=True)
        )
        return x, y, z


@dataclass(frozen=True)
class Header:
    """What the header says.

    Args:
        encodings: at least one.
        noise_bandwidth: relative receiver noise bandwidth of the noise scan, 1 if not said.
        meta: field strength, sequence times and the like, plain values; nothing about the patient.
    """

    encodings: tuple[Encoding, ...]
    noise_bandwidth: float = 1.0
    meta: dict[str, Any] = field(default_factory=dict)


def parse_header(xml: str) -> Header:
    """Parse the header.

    Raises:
        ValueError: no XML, no ISMRMRD header, entity declarations, or missing or impossible entries.
    """
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise ValueError("the ISMRMRD header declares XML entities, which are not read; remove them")
    try:
        root = ElementTree.fromstring(xml.encode("utf-8"))
    except ElementTree.ParseError as error:
        raise ValueError(f"the ISMRMRD header is no XML: {error}") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.tag != "ismrmrdHeader":
        raise ValueError(f"the header must be an ismrmrdHeader, got {root.tag}")
    encodings = tuple(_encoding(element) for element in root.findall("encoding"))
    if not encodings:
        raise ValueError("the ISMRMRD header has no encoding; it cannot be reconstructed")
    bandwidth = _number(root, "acquisitionSystemInformation/relativeReceiverNoiseBandwidth", 1.0)
    require_positive("relativeReceiverNoiseBandwidth", bandwidth)
    return Header(encodings, bandwidth, _meta(root))


def _encoding(element: Element) -> Encoding:
    spaces = [_space(element, name) for name in ("encodedSpace", "reconSpace")]
    acceleration = None
    if element.find("parallelImaging/accelerationFactor") is not None:
        steps = [
            int(_number(element, f"parallelImaging/accelerationFactor/kspace_encoding_step_{n}", 1)) for n in (1, 2)
        ]
        acceleration = steps[0], steps[1]
    centres: list[int | None] = []
    for n in (1, 2):
        path = f"encodingLimits/kspace_encoding_step_{n}/center"
        centres.append(int(_number(element, path, 0)) if element.find(path) is not None else None)
    return Encoding(
        (element.findtext("trajectory") or "").strip().lower(),
        *spaces[0],
        *spaces[1],
        (centres[0], centres[1]),
        acceleration,
        element.findtext("parallelImaging/calibrationMode"),
    )


def _space(element: Element, name: str) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    matrix, fov = [], []
    for axis in "xyz":
        count, size = _number(element, f"{name}/matrixSize/{axis}"), _number(element, f"{name}/fieldOfView_mm/{axis}")
        if count != int(count) or count > _LARGEST_MATRIX:
            raise ValueError(f"{name}/matrixSize/{axis} must be a count below {_LARGEST_MATRIX}, got {count}")
        require_count(f"{name}/matrixSize/{axis}", int(count))
        require_positive(f"{name}/fieldOfView_mm/{axis}", size)
        matrix.append(int(count))
        fov.append(size)
    return (matrix[0], matrix[1], matrix[2]), (fov[0], fov[1], fov[2])


def _number(element: Element, path: str, default: float | None = None) -> float:
    text = element.findtext(path)
    if text is None:
        if default is None:
            raise ValueError(f"the ISMRMRD header lacks {path}; it cannot be reconstructed")
        return default
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{path} must be finite, got {text}")
    return value


def _meta(root: Element) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    strength = root.findtext("acquisitionSystemInformation/systemFieldStrength_T")
    if strength is not None:
        meta["field_strength_T"] = float(strength)
    for name in ("TR", "TE", "TI", "flipAngle_deg", "echo_spacing"):
        values = [float(e.text) for e in root.findall(f"sequenceParameters/{name}") if e.text]
        if values:
            meta[name] = values
    protocol = root.findtext("measurementInformation/protocolName")
    if protocol:
        meta["protocol"] = protocol
    return meta
