"""HDF5 laid out as the fastMRI data: kspace (slice, [coil,] y, x), mask over columns, maybe an ISMRMRD header."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from invreg.io import hdf5
from invreg.io.files import as_tensor, atomic, reading
from invreg.io.ismrmrd_header import parse_header
from invreg.io.records import Image, KSpace, Record, Sinogram, fields_from_json, sampled, to_json

_TENSORS = ("mask", "maps", "calibration", "noise_sigma")
_LAYOUT = "(slice, [coil,] y, x)"


def read(path: Path) -> KSpace | Image:
    """Read k-space, or a file that only has images under `reconstruction` (B, [z,] y, x).

    The axes stay as they are in the file: y is the readout (rows), x the phase encoding (columns); the readout keeps
    its oversampling and `crop` says which centre the scan was meant to show (from the header, else from the stored
    reconstruction). The mask is the file's, over columns or the whole grid, less what is exactly zero in all coils,
    which is how padded columns are stored; k-space outside the file's mask is set to zero.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ValueError: damaged, missing datasets, or a record's own check.
    """
    with reading(path, "fastMRI HDF5"), hdf5.opened(path) as file:
        fields: dict[str, Any] = {}
        if hdf5.has(file, "invreg/header"):
            fields = fields_from_json(hdf5.text(path, file, "invreg/header"))
            fields.pop("ndim", None)
        kind = fields.pop("kind", None)
        if not hdf5.has(file, "kspace") and hdf5.has(file, "reconstruction"):
            if kind not in (None, "Image"):
                raise ValueError("its header says k-space but there are only images; write it again")
            data = hdf5.numbers(path, file, "reconstruction", (3, 4), "(B, [z,] y, x)")
            return Image(as_tensor(data, "reconstruction"), **fields)
        data = hdf5.numbers(path, file, "kspace", (3, 4), _LAYOUT)
        if data.dtype.kind != "c":
            raise ValueError(f"kspace must be complex = {_LAYOUT}, got {data.dtype}; check the kind of file")
        kspace = as_tensor(data, "kspace")
        if kspace.ndim == 3:
            kspace = kspace[:, None]
        if kind is None:
            fields = _foreign(path, file, tuple(kspace.shape))
        elif kind != "KSpace":
            raise ValueError(f"its header says {kind} but there is k-space; write it again")
        for name in _TENSORS:
            if hdf5.has(file, f"invreg/{name}"):
                value = hdf5.numbers(path, file, f"invreg/{name}", (kspace.ndim,), f"as kspace, {_LAYOUT}")
                fields[name] = torch.from_numpy(value) if value.dtype == bool else as_tensor(value, name)
        if kind is None:
            kspace, fields["mask"] = _masked(path, file, kspace)
        return KSpace(kspace, **fields)


def _foreign(path: Path, file: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """Geometry and metadata of a file by others."""
    grid = shape[-2:]
    fields: dict[str, Any] = {"slices": shape[0], "meta": {}}
    for name in ("acquisition", "max", "norm"):
        if name in file.attrs:
            value = file.attrs[name]
            fields["meta"][name] = value if isinstance(value, str) else float(value)
    if hdf5.has(file, "ismrmrd_header"):
        header = parse_header(hdf5.text(path, file, "ismrmrd_header"))
        encoding = header.encodings[0]
        voxel = encoding.voxel[:2]  # rows are the readout, the header's x
        fields["voxel_size"] = voxel
        fields["crop"] = tuple(
            max(1, min(n, round(size / step))) for n, size, step in zip(grid, encoding.recon_fov, voxel, strict=False)
        )
        fields["meta"] |= header.meta | {"slice_thickness": encoding.fov[2]}
        return fields
    for name in ("reconstruction_rss", "reconstruction_esc"):
        if hdf5.has(file, name):
            shown = hdf5.dataset(path, file, name, (3,), "(slice, y, x)").shape[-2:]
            fields["crop"] = tuple(min(n, full) for n, full in zip(shown, grid, strict=True))
            break
    return fields


def _masked(path: Path, file: Any, kspace: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """K-space with zeros outside the file's mask, and what is left."""
    if hdf5.has(file, "mask"):
        value = hdf5.numbers(path, file, "mask", (1, 2, 3), "(x,), (y, x) or (slice, y, x)") != 0
        wanted = (kspace.shape[0], *kspace.shape[-2:])[-value.ndim :]
        if any(n not in (1, full) for n, full in zip(value.shape, wanted, strict=True)):
            raise ValueError(f"mask must be {wanted} to fit kspace {tuple(kspace.shape)}, got {value.shape}")
        mask = torch.from_numpy(np.ascontiguousarray(value))
        kspace = kspace * (mask[:, None] if mask.ndim == 3 else mask)
    return kspace, sampled(kspace)


def write(path: Path, record: Record, *, overwrite: bool = False) -> None:
    """Write 2D k-space as `kspace` with `mask` over columns where that says it all, or images as `reconstruction`.

    What fastMRI has no place for stands in the group `invreg`, so that nothing is lost.

    Raises:
        TypeError: a sinogram.
        ValueError: 3D k-space, which this layout lacks.
        FileExistsError: the file exists and `overwrite` is False.
    """
    if isinstance(record, Sinogram):
        raise TypeError(f"{path}: this layout holds k-space or images, got Sinogram; use .npz")
    if isinstance(record, KSpace) and record.data.ndim == 5:
        raise ValueError(f"{path}: this layout holds 2D k-space, got {tuple(record.data.shape)}; use .npz or .cfl")
    import h5py

    with atomic(path, overwrite=overwrite) as (temporary,), h5py.File(temporary, "w") as file:
        file["invreg/header"] = np.bytes_(to_json(record).encode())  # an attribute would be limited to 64 KiB
        name = "kspace" if isinstance(record, KSpace) else "reconstruction"
        file.create_dataset(name, data=record.data.detach().cpu().numpy())
        if isinstance(record, Image):
            return
        for name in _TENSORS:
            value = getattr(record, name)
            if isinstance(value, torch.Tensor):
                file.create_dataset(f"invreg/{name}", data=value.detach().cpu().numpy())
        mask = record.mask
        if mask is not None and mask[:1, :, :1].expand_as(mask).equal(mask):
            columns = mask[0, 0, 0].expand(record.data.shape[-1])
            file.create_dataset("mask", data=columns.cpu().numpy().astype(np.float32))
