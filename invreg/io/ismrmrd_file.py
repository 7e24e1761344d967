"""ISMRMRD raw data (.h5): Cartesian multi-coil scans, sorted onto their grid and whitened."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invreg.io import hdf5
from invreg.io.files import reading
from invreg.io.ismrmrd_header import Encoding, Header, parse_header
from invreg.io.records import KSpace
from invreg.mri.prewhitening import noise_covariance, whitening_matrix

# Bits of the acquisition flags, numbered from 1 as in the ISMRMRD standard.
NOISE, CALIBRATION, CALIBRATION_AND_IMAGING, REVERSE = 19, 20, 21, 22
SKIPPED = {
    23: "navigation",
    24: "phase correction",
    26: "feedback",
    27: "dummy",
    28: "feedback",
    29: "surface coil correction",
    30: "phase stabilization",
    31: "phase stabilization",
}
# A batch item for each distinct value, slowest first.
BATCH_COUNTERS = ("contrast", "phase", "set", "repetition", "slice")
_HEAD = (
    "flags",
    "number_of_samples",
    "active_channels",
    "discard_pre",
    "discard_post",
    "center_sample",
    "idx",
    "position",
)
_LARGEST_GRID = 1 << 32  # complex64 entries


def read(path: Path) -> KSpace:
    """Read a Cartesian scan.

    What becomes of the file's parts:

    - Noise scan: its covariance, scaled to the dwell time of the imaging lines and the receiver's noise bandwidth,
      whitens all lines; then noise_sigma is 1 (1 / sqrt(n) after n averages), else it is None.
    - A line lies at its encoding steps less the header's centre plus N // 2; its samples lie so that `center_sample`
      falls on N // 2. Discarded samples count as not measured.
    - Readout oversampling is removed (the image is cropped to the reconstructed field of view) where all lines span
      the readout. With partial echoes it stays, since then cropping would smear the edge of what was measured;
      `crop` says what to show.
    - Lines that meet on the grid (averages, segments) are averaged.
    - Every contrast, phase, set, repetition and slice is a batch item, slices fastest; `meta["batch"]` lists them.
    - Lines that serve calibration only are put into `calibration`; into the data too where their mode is "embedded" and
      no other line was measured there. Navigator, phase correction, feedback and dummy lines are left out and counted.
    - Frequency zero of the image grid, voxel N // 2, lies at the acquisition's position.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ValueError: damaged, or an encoding that is not read: non-Cartesian, EPI, reversed or compressed lines,
            several encodings.
    """
    with reading(path, "ISMRMRD"), hdf5.opened(path) as file:
        group = file[group_name(path, file)]
        header = parse_header(hdf5.text(path, group, "xml"))
        table = hdf5.dataset(path, group, "data", (1,), "acquisitions")
        with hdf5.Ragged(path, table, "data") as lines:
            heads = _heads(lines)
            kinds = _sort(heads)
            encoding = _encoding(header, heads[kinds.imaging])
            grid = _Grid.make(encoding, heads, kinds)
            noise = _noise(lines, heads, kinds, header)
            whiten = None if noise is None else whitening_matrix(noise)
            data, counts = grid.fill(lines, heads, kinds.imaging, whiten)
            calibration = None
            if kinds.calibration.size:
                calibration, calibration_counts = grid.fill(lines, heads, kinds.calibration, whiten)
        if calibration is not None and encoding.calibration == "embedded":
            gaps = (counts == 0) & (calibration_counts > 0)
            data += calibration * gaps
            counts += calibration_counts * gaps
        return _record(header, encoding, heads, kinds, grid, data, counts, calibration, noise)


def group_name(path: Path, file: Any) -> str:
    """The group that holds `xml` and `data`: "dataset", or the only one that does.

    Raises:
        ValueError: none or several.
    """
    found = [name for name in file if hdf5.has(file, f"{name}/xml") and hdf5.has(file, f"{name}/data")]
    if "dataset" in found:
        return "dataset"
    if len(found) != 1:
        raise ValueError(
            f"{path}: wanted one group with xml and data, got {', '.join(found) or 'none'}; keep one scan in a file"
        )
    return str(found[0])


@dataclass(frozen=True, eq=False)
class _Kinds:
    """Which acquisitions serve what: indices into the file."""

    noise: Any
    imaging: Any
    calibration: Any
    skipped: dict[str, int]


def _heads(lines: hdf5.Ragged) -> Any:
    """All acquisition headers, with what this file needs."""
    heads = lines.fixed("head")
    missing = [name for name in _HEAD if name not in (heads.dtype.names or ())]
    if missing:
        raise ValueError(f"the acquisition headers lack {', '.join(missing)}; this is no ISMRMRD scan")
    return heads


def _has_flag(heads: Any, bit: int) -> Any:
    return (heads["flags"] >> np.uint64(bit - 1)) & np.uint64(1) == 1


def _sort(heads: Any) -> _Kinds:
    noise = _has_flag(heads, NOISE)
    left_out = np.zeros(heads.size, dtype=bool)
    skipped: dict[str, int] = {}
    for bit, name in SKIPPED.items():
        chosen = _has_flag(heads, bit) & ~noise & ~left_out
        if chosen.any():
            skipped[name] = skipped.get(name, 0) + int(chosen.sum())
        left_out |= chosen
    useful = ~noise & ~left_out
    both = _has_flag(heads, CALIBRATION_AND_IMAGING)
    calibration_only = useful & _has_flag(heads, CALIBRATION) & ~both
    imaging = useful & ~calibration_only
    if not imaging.any():
        raise ValueError("the file holds no imaging line, only noise, calibration or navigation; get the image scan")
    if (_has_flag(heads, REVERSE) & useful).any():
        raise ValueError("reversed readouts (EPI) are not read; reverse and phase-correct them first")
    if ((heads["flags"] >> np.uint64(52)) & np.uint64(0xF) != 0)[useful].any():
        raise ValueError("compressed acquisitions are not read; write the file again without compression")
    return _Kinds(np.flatnonzero(noise), np.flatnonzero(imaging), np.flatnonzero(calibration_only), skipped)


def _encoding(header: Header, imaging: Any) -> Encoding:
    used = np.unique(imaging["encoding_space_ref"]) if "encoding_space_ref" in imaging.dtype.names else np.array([0])
    if used.size != 1 or used[0] >= len(header.encodings):
        raise ValueError(
            f"imaging lines must refer to one of {len(header.encodings)} encodings, got {used.tolist()}; split the file"
        )
    encoding = header.encodings[int(used[0])]
    if encoding.trajectory != "cartesian":
        raise ValueError(
            f"trajectory {encoding.trajectory or 'not stated'} is not read, only cartesian; grid it first, or give its "
            "k-space as cfl or npz"
        )
    return encoding


def _samples(lines: hdf5.Ragged, heads: Any, index: Any, coils: int) -> Any:
    """The number and the samples (coils, samples) of some acquisitions, one after the other."""
    for i in index:
        content, count = lines[i], int(heads["number_of_samples"][i])
        if len(content) != 8 * coils * count:
            raise ValueError(
                f"acquisition {i} must hold {coils} x {count} complex float samples, got {len(content)} bytes; "
                "the file is damaged"
            )
        yield i, np.frombuffer(content, "<c8").reshape(coils, count)


def _coils(heads: Any, index: Any) -> int:
    found = np.unique(heads["active_channels"][index])
    if found.size != 1 or found[0] < 1:
        raise ValueError(f"all lines must have the same coils, got {found.tolist()}; split the file")
    return int(found[0])


def _noise(lines: hdf5.Ragged, heads: Any, kinds: _Kinds, header: Header) -> Tensor | None:
    """Covariance E n n^H of the noise in an imaging sample, (coil, coil), complex128; None without a noise scan."""
    if kinds.noise.size == 0:
        return None
    coils = _coils(heads, kinds.imaging)
    if _coils(heads, kinds.noise) != coils:
        raise ValueError(
            f"the noise scan has {_coils(heads, kinds.noise)} coils but the image {coils}; they do not belong together"
        )
    samples = np.concatenate([values for _, values in _samples(lines, heads, kinds.noise, coils)], 1)
    ratio = 1 / header.noise_bandwidth  # the receiver's filter took that much from the noise scan
    if "sample_time_us" in heads.dtype.names:
        noise_dwell = float(np.median(heads["sample_time_us"][kinds.noise]))
        dwell = float(np.median(heads["sample_time_us"][kinds.imaging]))
        if math.isfinite(noise_dwell) and math.isfinite(dwell) and noise_dwell > 0 and dwell > 0:
            ratio *= noise_dwell / dwell  # the power of white noise goes with the bandwidth, 1 / dwell
    return noise_covariance(torch.from_numpy(samples.astype(np.complex128)), bandwidth_ratio=ratio)


@dataclass(frozen=True, eq=False)
class _Grid:
    """Where every line goes: the encoded grid and the batch."""

    shape: tuple[int, int, int]  # (z, y, x), encoded
    coils: int
    batch: dict[tuple[int, ...], int]
    steps: tuple[int, int]  # what is added to encoding steps 1 and 2
    origin: int  # where the centre sample goes

    @staticmethod
    def make(encoding: Encoding, heads: Any, kinds: _Kinds) -> "_Grid":
        idx = heads["idx"][kinds.imaging]
        items = sorted({tuple(int(line[name]) for name in BATCH_COUNTERS) for line in idx})
        coils = _coils(heads, np.concatenate([kinds.imaging, kinds.calibration]))
        x, y, z = encoding.matrix
        entries = len(items) * coils * x * y * z
        held = int(heads["number_of_samples"][kinds.imaging].astype(np.int64).sum()) * coils
        if entries > min(_LARGEST_GRID, max(64 * held, 1 << 22)):
            raise ValueError(
                f"the header asks for {len(items)} x {coils} x {z} x {y} x {x} entries but the file holds {held} "
                "samples; the header is damaged, or the scan should be split"
            )
        steps = [
            n // 2 - (n // 2 if centre is None else centre) for n, centre in zip((y, z), encoding.centres, strict=True)
        ]
        return _Grid((z, y, x), coils, {item: i for i, item in enumerate(items)}, (steps[0], steps[1]), x // 2)

    def fill(self, lines: hdf5.Ragged, heads: Any, index: Any, whiten: Tensor | None) -> tuple[Tensor, Tensor]:
        """Averaged samples (B, coil, z, y, x) and how many met in each (B, 1, z, y, x)."""
        z, y, x = self.shape
        data = np.zeros((len(self.batch), z, y, self.coils, x), dtype=np.complex64)
        counts = np.zeros((len(self.batch), z, y, 1, x), dtype=np.float32)
        matrix = None if whiten is None else whiten.numpy().astype(np.complex64)
        for i, values in _samples(lines, heads, index, self.coils):
            head = heads[i]
            item, row, plane = self._place(head)
            first, last = int(head["discard_pre"]), values.shape[1] - int(head["discard_post"])
            start = self.origin - int(head["center_sample"]) + first
            if first >= last or start < 0 or start + last - first > x:
                raise ValueError(
                    f"acquisition {i} has samples {first}:{last} about centre {head['center_sample']}, which do not "
                    f"fit the encoded readout of {x}; the header is damaged"
                )
            taken = values[:, first:last] if matrix is None else matrix @ values[:, first:last]
            data[item, plane, row, :, start : start + last - first] += taken
            counts[item, plane, row, :, start : start + last - first] += 1
        data /= np.maximum(counts, 1)
        return torch.from_numpy(data).permute(0, 3, 1, 2, 4).contiguous(), torch.from_numpy(counts).permute(
            0, 3, 1, 2, 4
        )

    def _place(self, head: Any) -> tuple[int, int, int]:
        idx = head["idx"]
        item = self.batch.get(tuple(int(idx[name]) for name in BATCH_COUNTERS))
        if item is None:  # separate calibration may have been taken once for all repetitions and contrasts
            near = [i for key, i in self.batch.items() if key[-1] == int(idx["slice"])]
            if not near:
                raise ValueError(f"calibration lines of slice {idx['slice']} have no image; the file is incomplete")
            item = near[0]
        row, plane = int(idx["kspace_encode_step_1"]) + self.steps[0], int(idx["kspace_encode_step_2"]) + self.steps[1]
        if not (0 <= row < self.shape[1] and 0 <= plane < self.shape[0]):
            raise ValueError(
                f"encoding steps ({idx['kspace_encode_step_1']}, {idx['kspace_encode_step_2']}) lie outside the "
                f"encoded matrix {self.shape[1]} x {self.shape[0]}; the header's limits are wrong"
            )
        return item, row, plane


def _record(
    header: Header,
    encoding: Encoding,
    heads: Any,
    kinds: _Kinds,
    grid: _Grid,
    data: Tensor,
    counts: Tensor,
    calibration: Tensor | None,
    noise: Tensor | None,
) -> KSpace:
    """The grid as a record: oversampling removed where that is exact, noise level, mask and geometry."""
    shown = encoding.shown[::-1]
    if bool((counts == counts[..., :1]).all()):
        counts = counts[..., :1]
        if shown[-1] < data.shape[-1]:
            data = _crop_readout(data, shown[-1]) * (counts > 0)
            # shorter calibration lines smear at their ends here, far from the centre that calibrates
            calibration = None if calibration is None else _crop_readout(calibration, shown[-1])
    spatial = 2 if grid.shape[0] == 1 else 3
    data, counts = (t.squeeze(2) if spatial == 2 else t for t in (data, counts))
    if calibration is not None and spatial == 2:
        calibration = calibration.squeeze(2)
    mask = counts > 0
    slices = len({item[-1] for item in grid.batch}) if spatial == 2 else 1
    if len({item[:-1] for item in grid.batch}) * slices != len(grid.batch):
        slices = 1  # not every repetition has every slice
    meta: dict[str, Any] = dict(header.meta)
    meta["batch"] = [dict(zip(BATCH_COUNTERS, item, strict=True)) for item in grid.batch]
    meta |= {"recon_matrix": list(encoding.recon_matrix), "slice_thickness": encoding.fov[2]}
    meta |= {"skipped_lines": kinds.skipped, "whitened": noise is not None}
    if encoding.acceleration is not None:
        meta["acceleration"] = list(encoding.acceleration)
    return KSpace(
        data,
        mask=None if bool(mask.all()) else mask,
        calibration=calibration,
        noise_covariance=noise,
        noise_sigma=None if noise is None else _sigma(counts),
        voxel_size=encoding.voxel[::-1][-spatial:],
        affine=_affine(encoding, heads[kinds.imaging], slices, grid, tuple(data.shape[2:])),
        crop=shown[-spatial:],
        slices=slices,
        meta=meta,
    )


def _crop_readout(data: Tensor, n: int) -> Tensor:
    """K-space of the central n columns of the image: centred orthonormal transforms, so the noise level stays."""
    full = data.shape[-1]
    start = full // 2 - n // 2
    image = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(data, dim=-1), norm="ortho"), dim=-1)
    image = image[..., start : start + n]
    kspace: Tensor = torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(image, dim=-1), norm="ortho"), dim=-1)
    return kspace


def _sigma(counts: Tensor) -> float | Tensor:
    """Noise level after averaging `counts` whitened lines: a number if all have as many."""
    met = counts[counts > 0]
    if bool((met == met[0]).all()):
        return 1 / math.sqrt(float(met[0]))
    return 1 / counts.clamp_min(1).sqrt()


def _affine(encoding: Encoding, heads: Any, slices: int, grid: _Grid, spatial: tuple[int, ...]) -> Tensor | None:
    """Voxel (x, y, z) to mm, RAS+, from positions and directions in patient axes LPS; None where they are not set."""
    if len(spatial) == 2 and slices != len(grid.batch) // max(1, len({item[:-1] for item in grid.batch})):
        return None
    numbers = sorted({item[-1] for item in grid.batch})
    first = [heads[np.flatnonzero(heads["idx"]["slice"] == number)[0]] for number in numbers]
    directions = np.stack([first[0][name].astype(np.float64) for name in ("read_dir", "phase_dir", "slice_dir")], 1)
    positions = np.stack([head["position"].astype(np.float64) for head in first])
    if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-3) or not np.isfinite(positions).all():
        return None
    matrix = directions * np.array(encoding.voxel)
    if len(spatial) == 2 and len(numbers) > 1:
        steps = np.diff(positions, axis=0)
        if not np.allclose(steps, steps[0], atol=1e-2) or np.linalg.norm(steps[0]) < 1e-2:
            return None
        matrix[:, 2] = steps.mean(0)
    centre = np.array([*[n // 2 for n in spatial[::-1]], 0])[:3]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, positions[0] - matrix @ centre
    return torch.from_numpy(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
