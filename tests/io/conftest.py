"""Files written by the formats' own libraries."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

COILS, NX, NY, SLICES, AVERAGES = 3, 16, 20, 2, 2
SLICE_GAP = 5.0

XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <acquisitionSystemInformation>
    <systemFieldStrength_T>2.89</systemFieldStrength_T>
    <relativeReceiverNoiseBandwidth>{bandwidth}</relativeReceiverNoiseBandwidth>
  </acquisitionSystemInformation>
  <experimentalConditions><H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions>
  <encoding>
    <encodedSpace>
      <matrixSize><x>{ex}</x><y>{ey}</y><z>{ez}</z></matrixSize>
      <fieldOfView_mm><x>{fx}</x><y>{fy}</y><z>{fz}</z></fieldOfView_mm>
    </encodedSpace>
    <reconSpace>
      <matrixSize><x>{rx}</x><y>{ry}</y><z>{ez}</z></matrixSize>
      <fieldOfView_mm><x>{gx}</x><y>{gy}</y><z>{fz}</z></fieldOfView_mm>
    </reconSpace>
    <encodingLimits>
      <kspace_encoding_step_1><minimum>0</minimum><maximum>{top}</maximum><center>{centre}</center></kspace_encoding_step_1>
      <kspace_encoding_step_2><minimum>0</minimum><maximum>{ztop}</maximum><center>{zcentre}</center></kspace_encoding_step_2>
    </encodingLimits>
    <trajectory>{trajectory}</trajectory>
    <parallelImaging>
      <accelerationFactor><kspace_encoding_step_1>1</kspace_encoding_step_1><kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>
      <calibrationMode>{calibration}</calibrationMode>
    </parallelImaging>
  </encoding>
  <sequenceParameters><TR>500</TR><TE>12.5</TE></sequenceParameters>
</ismrmrdHeader>
"""


def centred_fft(image: np.ndarray, axes: tuple[int, ...] = (-2, -1)) -> np.ndarray:
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(image, axes=axes), axes=axes, norm="ortho"), axes=axes)


@dataclass
class Scan:
    """What was put into the file: an image, readout along x, sampled without noise unless `sigma` says so."""

    path: Path
    image: np.ndarray  # (slice, coil, NY, NX), the image within the reconstructed field of view
    covariance: np.ndarray  # E n n^H of an imaging sample
    kspace: np.ndarray  # (slice, coil, NY, NX) of `image`, fully sampled


@pytest.fixture
def make_scan(tmp_path: Path) -> Callable[..., Scan]:
    """A multi-coil scan: noise scan, readout oversampled twice, partial Fourier by a fifth, 2 slices, 2 averages."""
    ismrmrd = pytest.importorskip("ismrmrd")

    def line(values, *, flag=None, centre=NX, dwell=4.0, **counters):
        acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(values.astype(np.complex64)))
        acquisition.center_sample = centre
        acquisition.sample_time_us = dwell
        for name, value in counters.items():
            setattr(acquisition.idx, name, value)
        acquisition.position[:] = (7.0, -3.0, 11.0 + SLICE_GAP * counters.get("slice", 0))
        acquisition.read_dir[:], acquisition.phase_dir[:], acquisition.slice_dir[:] = (0, 1, 0), (1, 0, 0), (0, 0, 1)
        if flag is not None:
            acquisition.set_flag(flag)
        return acquisition

    def make(
        *,
        noise: bool = True,
        sigma: float = 0.0,
        skip_lines: int = 4,
        partial_echo: int = 0,
        averages: int = AVERAGES,
        repetitions: int = 1,
        calibration_lines: tuple[int, ...] = (),
        calibration: str = "embedded",
        trajectory: str = "cartesian",
        bandwidth: float = 1.0,
        flag: int | None = None,
        name: str = "scan.h5",
        group: str = "dataset",
        tamper: Callable[[str], str] = lambda xml: xml,
    ) -> Scan:
        rng = np.random.default_rng(3)
        image = np.zeros((SLICES, COILS, NY, NX), complex)
        image[:, :, 5:12, 3:9] = rng.normal(size=(SLICES, COILS, 7, 6)) + 1j * rng.normal(size=(SLICES, COILS, 7, 6))
        wide = np.zeros((SLICES, COILS, NY, 2 * NX), complex)
        wide[..., NX - NX // 2 : NX + NX - NX // 2] = image
        kspace = centred_fft(wide)
        mix = np.eye(COILS) + 0.3 * rng.normal(size=(COILS, COILS)) + 0.2j * rng.normal(size=(COILS, COILS))

        def noisy(count: int, level: float) -> np.ndarray:
            return level * mix @ (rng.normal(size=(COILS, count)) + 1j * rng.normal(size=(COILS, count))) / math.sqrt(2)

        path = tmp_path / name
        with ismrmrd.Dataset(path, group) as file:
            file.write_xml_header(
                tamper(
                    XML.format(
                        ex=2 * NX, ey=NY, ez=1, fx=4.0 * NX, fy=3.0 * NY, fz=4.0, rx=NX, ry=NY - 4, gx=2.0 * NX,
                        gy=3.0 * (NY - 4), top=NY - 1 - skip_lines, centre=NY // 2 - skip_lines, ztop=0, zcentre=0,
                        trajectory=trajectory, calibration=calibration, bandwidth=bandwidth,
                    )
                ).encode()
            )  # fmt: skip
            if noise:
                for _ in range(40):  # twice the dwell time, so half the noise power of an imaging line
                    values = noisy(512, max(sigma, 1.0) * math.sqrt(0.5 * bandwidth))
                    file.append_acquisition(line(values, flag=ismrmrd.ACQ_IS_NOISE_MEASUREMENT, centre=0, dwell=8.0))
            file.append_acquisition(line(np.full((COILS, 7), 99), flag=ismrmrd.ACQ_IS_NAVIGATION_DATA, centre=0))
            for repetition in range(repetitions):
                for average in range(averages):
                    for s in range(SLICES):
                        for ky in range(skip_lines, NY):
                            values = kspace[s, :, ky, partial_echo:] * (1 + repetition)
                            if noise and sigma:
                                values = values + noisy(values.shape[1], sigma)
                            counters = {"kspace_encode_step_1": ky - skip_lines, "slice": s, "average": average}
                            only = ky in calibration_lines
                            file.append_acquisition(
                                line(
                                    values,
                                    flag=ismrmrd.ACQ_IS_PARALLEL_CALIBRATION if only else flag,
                                    centre=NX - partial_echo,
                                    repetition=repetition,
                                    **counters,
                                )
                            )
        return Scan(path, image, max(sigma, 1.0) ** 2 * mix @ mix.conj().T, centred_fft(image))

    return make
