"""`invreg simulate`: scans of real images to play with."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from invreg.assets import HEAD_SLICES, head_slice
from invreg.cli.outputs import rehearse, require_apart, require_free, require_writable
from invreg.io import Image, KSpace, Record, Sinogram, hu_to_mu, write
from invreg.mri import noise_covariance
from invreg.simulate import cartesian_mask, ct_scan, head_ct, mri_scan

FIELD_OF_VIEW = 240.0  # mm
MU_WATER = 0.02  # 1/mm


@dataclass(frozen=True)
class Wish:
    """What to simulate; see the flags of `invreg simulate`."""

    what: str = "mri"
    slice: int = 0
    slices: int = 1
    acceleration: float = 4.0
    calibration: int = 24
    pattern: str = "equispaced"
    coils: int = 8
    sigma: float = 0.01
    matrix: int = 192
    views: int = 90
    photons: float = 5e4
    seed: int = 0


def wish_of(what: str, seed: int, **flags: Mapping[str, Any]) -> Wish:
    """A wish from the flags of each kind of scan, None where the user said nothing.

    Raises:
        ValueError: a kind that is none, or a flag of the other kind.
    """
    if what not in flags:
        raise ValueError(f"--what must be {' or '.join(flags)}, got {what!r}")
    said = {kind: {key: one for key, one in group.items() if one is not None} for kind, group in flags.items()}
    for kind, group in said.items():
        if kind != what and group:
            raise ValueError(f"--{next(iter(group))} goes with --what {kind}, got --what {what}; leave it away")
    return Wish(what, seed=seed, **said[what])


def write_simulated(output: Path, truth: Path | None, wish: Wish, *, force: bool) -> dict[str, Any]:
    """Simulate a scan and write it, and the truth if wanted.

    Args:
        output, truth: files.
        wish: what to simulate.
        force: whether existing files may be replaced.

    Returns:
        What was done, in plain words and numbers.

    Raises:
        TypeError, ValueError, OSError: numbers out of range, or a file that cannot be written.
    """
    require_writable(output, "KSpace" if wish.what == "mri" else "Sinogram")
    require_free(output, force)
    if truth is not None:
        require_writable(truth, "Image")
        require_free(truth, force, series=True)
        require_apart(output, truth)
    scan, image, about = simulated_mri(wish) if wish.what == "mri" else simulated_ct(wish)
    rehearse(output, scan)
    if truth is not None:
        rehearse(truth, image)
        write(truth, image, overwrite=force)
    write(output, scan, overwrite=force)
    return {"output": str(output), "truth": None if truth is None else str(truth), "about": about} | asdict(wish)


def simulated_mri(wish: Wish) -> tuple[Record, Image, str]:
    """A scan of consecutive slices of the head, its truth, and what it is in words.

    Raises:
        TypeError, ValueError: numbers out of range.
    """
    if not 0 <= wish.slice <= wish.slice + wish.slices <= HEAD_SLICES:
        raise ValueError(f"slices must be within 0 to {HEAD_SLICES - 1}, got {wish.slices} from {wish.slice} on")
    generator = torch.Generator().manual_seed(wish.seed)
    pattern = cast(Literal["equispaced", "random", "variable-density"], wish.pattern)
    mask = cartesian_mask(wish.matrix, wish.acceleration, wish.calibration, pattern, generator)
    scans = []
    for index in range(wish.slice, wish.slice + wish.slices):
        head = head_slice(index)
        scans.append(
            mri_scan(
                head.image,
                head.voxel_size,
                mask,
                field_of_view=(FIELD_OF_VIEW, FIELD_OF_VIEW),
                matrix=(wish.matrix, wish.matrix),
                coils=wish.coils,
                sigma=wish.sigma,
                generator=generator,
            )
        )
    sampled = f"{int(mask.sum())} of {wish.matrix} lines ({wish.pattern}, {wish.calibration} for calibration)"
    about = (
        f"SIMULATED {wish.coils}-coil scan of the Colin27 head, {sampled}, noise {wish.sigma:g}; made from a 3 times "
        "finer, turned copy with Biot-Savart coil fields and a smooth phase, not by the reconstruction's operator"
    )
    record = KSpace(
        torch.cat([one.kspace for one in scans]),
        mask=scans[0].mask,
        noise_covariance=noise_covariance(scans[0].noise[0]) if wish.sigma else None,
        noise_sigma=wish.sigma or None,
        voxel_size=scans[0].voxel_size,
        slices=wish.slices,
        meta={"simulated": about},
    )
    truth = Image(torch.cat([one.truth for one in scans]), voxel_size=scans[0].voxel_size, slices=wish.slices)
    return record, truth, about


def simulated_ct(wish: Wish) -> tuple[Record, Image, str]:
    """A parallel-beam scan of the head slice, its truth in HU, and what it is in words.

    Raises:
        TypeError, ValueError: numbers out of range.
    """
    head = head_ct()
    size = head.voxel_size or (1.0, 1.0)
    angles = torch.arange(wish.views, dtype=torch.float64) * torch.pi / wish.views
    generator = torch.Generator().manual_seed(wish.seed)
    scan = ct_scan(
        hu_to_mu(head.data.float(), MU_WATER), (size[0], size[1]), angles, photons=wish.photons, generator=generator
    )
    about = (
        f"SIMULATED parallel-beam scan of the head slice that pydicom carries, {wish.views} views, {wish.photons:g} "
        "photons; three rays through a twice finer image for each detector, not the reconstruction's operator"
    )
    record = Sinogram(
        scan.sinogram,
        scan.angles.float(),
        scan.detector_spacing,
        (scan.sinogram.shape[-1] - 1) / 2,
        counts=scan.counts,
        photons=scan.photons,
        meta={"simulated": about, "image_size": scan.truth.shape[-1], "mu_water": MU_WATER},
    )
    return record, Image(1000 * (scan.truth / MU_WATER - 1), "HU", scan.voxel_size), about
