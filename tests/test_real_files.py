"""The command line from end to end, on files written by each format's own library."""

import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from invreg.cli.app import app
from invreg.io import Image, KSpace, Sinogram, read, write
from invreg.phantom import Ellipse, fan_sinogram, parallel_sinogram, rasterise, shepp_logan
from invreg.simulate import coil_maps

N, COILS, NOISE = 48, 4, 0.01
MU_WATER = 0.02  # 1/mm

HEADER = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<experimentalConditions><H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions><encoding>
<encodedSpace><matrixSize><x>{wide}</x><y>{n}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{wide_mm}</x><y>{mm}</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{n}</x><y>{n}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{mm}</x><y>{mm}</y><z>5</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>{half}</center>
</kspace_encoding_step_1></encodingLimits><trajectory>cartesian</trajectory></encoding></ismrmrdHeader>""".format(
    wide=2 * N, n=N, wide_mm=8.0 * N, mm=4.0 * N, last=N - 1, half=N // 2
)


def reconstruct(*words: object) -> Any:
    """The command run in this process; its exit code, stdout and stderr."""
    return CliRunner().invoke(app, ["reconstruct", *map(str, words)])


def done(*words: object) -> Any:
    result = reconstruct(*words)
    assert result.exit_code == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result


def correlation(a: Any, b: Any) -> float:
    return float(np.corrcoef(np.abs(np.asarray(a)).ravel(), np.abs(np.asarray(b)).ravel())[0, 1])


def head() -> np.ndarray:
    """The Shepp-Logan head, (y, x), real."""
    return rasterise(shepp_logan(N), (N, N)).numpy()


def coil_kspace(*, oversampling: int = 1, noise: float = NOISE, seed: int = 0) -> np.ndarray:
    """Noisy k-space of the head, (coil, y, oversampling * x), complex64; E|n|^2 = 2 noise^2."""
    rng = np.random.default_rng(seed)
    images = head() * coil_maps((N, N), (4.0 * N, 4.0 * N), COILS)[0].numpy()
    side = (oversampling - 1) * N // 2
    images = np.fft.ifftshift(np.pad(images, ((0, 0), (0, 0), (side, side))), axes=(-2, -1))
    clean = np.fft.fftshift(np.fft.fft2(images, norm="ortho"), axes=(-2, -1))
    return (clean + noise * (rng.normal(size=clean.shape) + 1j * rng.normal(size=clean.shape))).astype(np.complex64)


def sampled_lines() -> np.ndarray:
    """Every second line and 16 calibration lines about the centre, (y,), bool."""
    line = np.arange(N)
    return (line % 2 == 0) | (abs(line - N // 2) < 8)


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def mri_npz(path: Path, factor: float = 1.0, **more: Any) -> Path:
    return write_npz(path, kspace=(factor * coil_kspace() * sampled_lines()[:, None])[None], **more)


def water_scan(views: int = 180, detectors: int = 96, pitch: float = 1.0) -> Sinogram:
    """A parallel-beam sinogram of a disk of water of 35 mm radius."""
    angles = torch.arange(views) * math.pi / views
    offsets = (torch.arange(detectors) - (detectors - 1) / 2) * pitch
    data = parallel_sinogram((Ellipse(MU_WATER, (35.0, 35.0)),), angles, offsets)
    return Sinogram(data[None], angles, pitch, (detectors - 1) / 2)


def disk(size: int, pixel: float, radius: float) -> torch.Tensor:
    """The pixels whose centres lie within `radius` of the image's, (size, size), bool."""
    centre = (torch.arange(size) - (size - 1) / 2) * pixel
    return torch.hypot(centre[:, None], centre[None]) < radius


# ---- scans


def write_ismrmrd(path: Path) -> None:
    """A noise scan of correlated coils, then lines that are oversampled twice along the readout."""
    ismrmrd = pytest.importorskip("ismrmrd")
    rng = np.random.default_rng(1)
    mix = np.eye(COILS) + 0.1 * rng.normal(size=(COILS, COILS)) + 0.1j * rng.normal(size=(COILS, COILS))

    def noise(count: int) -> np.ndarray:
        return NOISE * mix @ (rng.normal(size=(COILS, count)) + 1j * rng.normal(size=(COILS, count)))

    def acquisition(values: np.ndarray, centre: int, row: int = 0) -> Any:
        made = ismrmrd.Acquisition.from_array(np.ascontiguousarray(values.astype(np.complex64)))
        made.center_sample, made.sample_time_us, made.idx.kspace_encode_step_1 = centre, 4.0, row
        made.read_dir[:], made.phase_dir[:], made.slice_dir[:] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
        return made

    kspace = coil_kspace(oversampling=2, noise=0.0)
    with ismrmrd.Dataset(path, "dataset") as file:
        file.write_xml_header(HEADER.encode())
        for _ in range(8):
            measured = acquisition(noise(512), 0)
            measured.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
            file.append_acquisition(measured)
        for row in np.flatnonzero(sampled_lines()):
            file.append_acquisition(acquisition(kspace[:, row] + noise(2 * N), N, int(row)))


def test_an_ismrmrd_scan_without_maps_becomes_a_nifti_image(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    write_ismrmrd(tmp_path / "scan.h5")
    result = done(tmp_path / "scan.h5", "-o", tmp_path / "image.nii.gz")
    found = nibabel.load(tmp_path / "image.nii.gz")
    assert np.squeeze(found.dataobj).shape == (N, N)  # the oversampling is gone
    assert found.header.get_zooms()[:2] == (4.0, 4.0)
    assert correlation(np.squeeze(found.dataobj).T, head()) > 0.95
    about = json.loads((tmp_path / "image.nii.gz.json").read_text())
    assert about["status"] == "finished"
    assert "noise scan" in about["plan"]["noise level"]
    assert "ESPIRiT" in about["plan"]["coil maps"]
    assert "image.nii.gz: finished" in result.stdout
    assert sorted(one.name for one in tmp_path.iterdir()) == ["image.nii.gz", "image.nii.gz.json", "scan.h5"]


def test_a_fastmri_scan_without_maps_becomes_an_image(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    nibabel = pytest.importorskip("nibabel")
    # readout first, as fastMRI stores it: the lines are columns
    kspace = np.stack([coil_kspace(seed=seed) for seed in (0, 1)]).swapaxes(-2, -1) * sampled_lines()
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = kspace.astype(np.complex64)
        file["mask"] = sampled_lines().astype(np.float32)
        file["ismrmrd_header"] = HEADER
        file.attrs["acquisition"] = "AXT2"
    done(tmp_path / "scan.h5", "-o", tmp_path / "image.nii.gz")
    found = read(tmp_path / "image.nii.gz")
    assert isinstance(found, Image)
    data = found.data.reshape(2, N, N)
    assert min(correlation(one.T, head()) for one in data) > 0.95
    assert nibabel.load(tmp_path / "image.nii.gz").header.get_zooms() == (4.0, 4.0, 5.0)  # its slices are 5 mm thick
    about = json.loads((tmp_path / "image.nii.gz.json").read_text())
    assert len(about["slices"]) == 2
    assert "estimated" in about["plan"]["noise level"]


def test_a_data_exchange_scan_with_flats_and_darks_becomes_an_image(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("tifffile")
    rng = np.random.default_rng(0)
    phantom, angles = shepp_logan(0.9 * N, peak=0.05), torch.arange(60) * math.pi / 60
    clean = parallel_sinogram(phantom, angles, torch.arange(N) - (N - 1) / 2).numpy()
    flat = 20000 * (1 + 0.2 * np.cos(np.arange(N)))
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["exchange/data"] = (rng.poisson(flat * np.exp(-clean)) + 100)[:, None].astype(np.uint16)
        file["exchange/data_white"] = (rng.poisson(flat, (10, N)) + 100)[:, None].astype(np.uint16)
        file["exchange/data_dark"] = np.full((3, 1, N), 100, np.uint16)
        file["exchange/theta"] = np.rad2deg(angles.numpy())
    done(tmp_path / "scan.h5", "-o", tmp_path / "image.tif", "--iterations", 60)
    found, truth = read(tmp_path / "image.tif"), rasterise(phantom, (N, N))
    assert isinstance(found, Image)
    assert found.data.shape == (1, N, N)
    assert correlation(found.data[0], truth) > 0.95
    # without a pitch the image is in 1/pixel, which is what it was simulated in
    assert float((found.data[0] - truth).norm() / truth.norm()) < 0.3
    about = json.loads((tmp_path / "image.tif.json").read_text())
    assert about["plan"]["noise level"].endswith("(photon counts of the file)")


def test_a_bart_pair_becomes_a_bart_pair(tmp_path: Path) -> None:
    kspace = (coil_kspace() * sampled_lines()[:, None]).transpose(2, 1, 0)[:, :, None]  # x, y, z, coil
    (tmp_path / "ksp.hdr").write_text("# Dimensions\n" + " ".join(map(str, kspace.shape)) + " 1 1 1 1 1 1 1\n")
    kspace.astype("<c8").ravel(order="F").tofile(tmp_path / "ksp.cfl")
    done(tmp_path / "ksp", "-o", tmp_path / "img.cfl", "--iterations", 30)
    image = np.fromfile(tmp_path / "img.cfl", "<c8").reshape(N, N, order="F").T
    assert correlation(image, head()) > 0.95
    assert (tmp_path / "img.cfl.json").is_file()


@pytest.mark.skipif(shutil.which("bart") is None, reason="needs BART")
def test_what_bart_simulates_is_reconstructed(tmp_path: Path) -> None:
    words = ["bart", "phantom", "-k", "-s", str(COILS), "-x", str(N), "ksp"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    done(tmp_path / "ksp.cfl", "-o", tmp_path / "img.npy", "--iterations", 30)
    kspace = np.fromfile(tmp_path / "ksp.cfl", "<c8").reshape(N, N, COILS, order="F").T
    coils = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))
    # ESPIRiT's maps have sum of squares 1, so its image is shaded as the root of the sum of squares is
    truth = np.linalg.norm(coils, axis=0)
    assert correlation(np.load(tmp_path / "img.npy")[0], truth) > 0.98


def test_numpy_k_space_with_maps_beside_it_is_reconstructed(tmp_path: Path) -> None:
    maps = coil_maps((N, N), (4.0 * N, 4.0 * N), COILS).numpy()
    scan = mri_npz(tmp_path / "scan.npz")
    write_npz(tmp_path / "maps.npz", image=maps)
    done(scan, "-o", tmp_path / "image.npy", "--maps", tmp_path / "maps.npz", "--iterations", 30)
    found = np.load(tmp_path / "image.npy")[0]
    assert correlation(found, head()) > 0.95
    assert np.linalg.norm(found - head()) / np.linalg.norm(head()) < 0.25  # in the units of the scan


def test_a_scan_in_smaller_units_gives_the_same_image_in_these_units(tmp_path: Path) -> None:
    images = []
    for name, factor in (("a", 1.0), ("b", 1e-6)):
        scan = mri_npz(tmp_path / f"{name}.npz", factor)
        done(scan, "-o", tmp_path / f"{name}.npy", "--weight", 1e-3, "--iterations", 15)
        images.append(np.load(tmp_path / f"{name}.npy"))
    assert np.linalg.norm(images[1] * 1e6 - images[0]) / np.linalg.norm(images[0]) < 1e-4


def test_water_reads_zero_hounsfield_units_in_the_dicom_file(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    write(tmp_path / "scan.npz", water_scan())
    done(tmp_path / "scan.npz", "-o", tmp_path / "image.dcm", "--algorithm", "fbp", "--mu-water", MU_WATER)
    source = pydicom.dcmread(tmp_path / "image.dcm")
    assert [float(v) for v in source.PixelSpacing] == [1.0, 1.0]
    hu = source.pixel_array * float(source.RescaleSlope) + float(source.RescaleIntercept)
    inside, outside = disk(96, 1.0, 25.0), disk(96, 1.0, 45.0) & ~disk(96, 1.0, 40.0)
    assert np.abs(hu[inside.numpy()]).max() < 5
    assert abs(hu[outside.numpy()].mean() + 1000) < 20


def test_a_fan_beam_scan_is_reconstructed_with_its_distances(tmp_path: Path) -> None:
    angles = torch.arange(72) * 2 * math.pi / 72
    offsets = (torch.arange(N + 16) - (N + 15) / 2) * 2.0
    phantom = (Ellipse(MU_WATER, (24.0, 24.0)),)
    data = fan_sinogram(phantom, angles, offsets, source_origin=300.0, origin_detector=200.0)
    write(tmp_path / "scan.npz", Sinogram(data[None], angles, 2.0, (N + 15) / 2))
    beam = ["--operator", "fan-beam:source_origin=300,origin_detector=200"]
    for name, more in (("fbp", ["--algorithm", "fbp"]), ("tv", ["--iterations", "30"])):
        done(tmp_path / "scan.npz", "-o", tmp_path / f"{name}.npz", *beam, "--size", N, *more)
        found = read(tmp_path / f"{name}.npz")
        assert isinstance(found, Image)
        assert found.units == "HU"
        # the pitch of 2 mm as it is seen at the centre of rotation
        assert found.voxel_size == pytest.approx((1.2, 1.2))
        assert found.data[0][disk(N, 1.2, 18.0)].abs().mean() < 10
    refused = reconstruct(tmp_path / "scan.npz", "-o", tmp_path / "x.npz", "--operator", "fan-beam")
    assert refused.exit_code == 2
    assert "source_origin" in refused.stderr


# ---- images to and from each format


def noisy_head() -> np.ndarray:
    return (head() + 0.03 * np.random.default_rng(2).normal(size=(N, N))).astype(np.float32)


def image_nifti(folder: Path) -> Path:
    nibabel = pytest.importorskip("nibabel")
    affine = np.diag([-1.5, 2.0, 3.0, 1.0])
    affine[:3, 3] = 10, -20, 30
    nibabel.save(nibabel.Nifti1Image(noisy_head().T[:, :, None], affine), folder / "a.nii.gz")
    return folder / "a.nii.gz"


def image_tiff(folder: Path) -> Path:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(folder / "a.tif", noisy_head(), resolution=(20, 40), resolutionunit="CENTIMETER")
    return folder / "a.tif"


def image_npy(folder: Path) -> Path:
    np.save(folder / "a.npy", noisy_head())
    return folder / "a.npy"


def image_dicom(folder: Path) -> Path:
    pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    shutil.copy(str(get_testdata_file("CT_small.dcm", download=False)), folder / "a.dcm")
    return folder / "a.dcm"


@pytest.mark.parametrize("make", [image_nifti, image_tiff, image_npy, image_dicom])
def test_an_image_is_denoised_into_its_own_format_and_keeps_its_place(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    source = make(tmp_path)
    target = source.with_name("b" + source.name[1:])
    done(source, "-o", target, "--iterations", 15)
    before, after = read(source), read(target)
    assert isinstance(before, Image)
    assert isinstance(after, Image)
    assert after.data.shape == before.data.shape
    assert after.units == before.units
    assert after.voxel_size == (None if before.voxel_size is None else pytest.approx(before.voxel_size))
    if before.affine is None:
        assert after.affine is None
    else:
        assert after.affine is not None
        assert torch.allclose(after.affine, before.affine, atol=1e-4)
    assert 0.97 < np.corrcoef(before.data.numpy().ravel(), after.data.numpy().ravel())[0, 1] < 1
    if source.suffix != ".dcm":
        truth = head()
        error = [float(np.linalg.norm(one.data.numpy().reshape(N, N) - truth)) for one in (before, after)]
        assert error[1] < 0.8 * error[0]


def test_an_existing_empty_directory_takes_a_dicom_series(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    write(tmp_path / "scan.npz", water_scan(views=16))
    (tmp_path / "series").mkdir()
    done(tmp_path / "scan.npz", "-o", tmp_path / "series", "--algorithm", "fbp")
    files = [one for one in (tmp_path / "series").rglob("*") if one.is_file()]
    assert [pydicom.dcmread(one).Modality for one in files] == ["CT"]
    assert (tmp_path / "series.json").is_file()


# ---- what cannot be done


def refused(folder: Path, *words: object, output: str = "out.npz") -> str:
    """The one line that says why; nothing was written."""
    before = {one: (one.stat().st_mtime_ns, one.stat().st_size) for one in folder.rglob("*")}
    result = reconstruct(*words, "-o", folder / output, "--quiet")
    assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr)
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.stderr
    assert {one: (one.stat().st_mtime_ns, one.stat().st_size) for one in folder.rglob("*")} == before
    return str(lines[0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_k_space_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    kspace = coil_kspace()[None]
    kspace[0, 1, 3, 4] = value
    line = refused(tmp_path, write_npz(tmp_path / "scan.npz", kspace=kspace))
    assert "finite" in line
    assert "scan.npz" in line


def cut(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


@pytest.mark.parametrize("make", [image_nifti, image_tiff, image_npy, image_dicom])
def test_a_truncated_image_is_refused_by_its_name(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = cut(make(tmp_path))
    assert str(path) in refused(tmp_path, path)


def test_a_truncated_scan_is_refused_by_its_name(tmp_path: Path) -> None:
    write_ismrmrd(tmp_path / "scan.h5")
    kspace = coil_kspace().transpose(2, 1, 0)[:, :, None]
    (tmp_path / "ksp.hdr").write_text("# Dimensions\n" + " ".join(map(str, kspace.shape)) + "\n")
    kspace.ravel(order="F").tofile(tmp_path / "ksp.cfl")
    for path in (tmp_path / "scan.h5", mri_npz(tmp_path / "scan.npz"), tmp_path / "ksp.cfl"):
        assert str(cut(path).with_suffix("")) in refused(tmp_path, path)
    (tmp_path / "empty.h5").touch()
    assert "empty.h5" in refused(tmp_path, tmp_path / "empty.h5")
    assert "missing.h5" in refused(tmp_path, tmp_path / "missing.h5")


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--prior", "wavlet"], "wavelet"),
        (["--algorithm", "fitsa"], "fista"),
        (["--operator", "sens"], "sense"),
        (["--operator", "parallel-beam"], "must be sense, soft-sense or fourier"),
        (["--operator", "sense:kernal=5"], "kernel"),
        (["--prior", "wavelet:levles=2"], "levels"),
        (["--algorithm", "fista:step_sise=1"], "step_size"),
        (["--algorithm", "fbp"], "try adjoint"),
        (["--weight", "heavy"], "a number or auto"),
        (["--weight", "-1"], "weight must be"),
        (["--weight", "auto", "--rule", "discrepency"], "discrepancy"),
        (["--prior", "none", "--weight", "1"], "weight needs a prior"),
        (["--sigma", "0"], "sigma must be finite and > 0"),
        (["--iterations", "0"], "iterations must be"),
        (["--device", "gpu"], "auto, cpu or cuda"),
        (["--format", "nifty"], "nifti"),
        (["--iteration", "3"], "--iterations"),
    ],
)
def test_a_flag_that_does_not_fit_is_refused_with_what_does(tmp_path: Path, flags: list[str], wanted: str) -> None:
    assert wanted in refused(tmp_path, mri_npz(tmp_path / "scan.npz"), *flags)


def test_maps_that_do_not_fit_are_refused_with_both_numbers(tmp_path: Path) -> None:
    scan = mri_npz(tmp_path / "scan.npz")
    three = write_npz(tmp_path / "three.npz", image=np.ones((1, 3, N, N), np.complex64))
    line = refused(tmp_path, scan, "--maps", three)
    assert "4 coils" in line
    assert "got 3" in line
    real = write_npz(tmp_path / "real.npz", image=np.ones((1, COILS, N, N), np.float32))
    assert "complex coil maps" in refused(tmp_path, scan, "--maps", real)
    small = write_npz(tmp_path / "small.npz", image=np.ones((1, COILS, N // 2, N), np.complex64))
    assert f"({N}, {N})" in refused(tmp_path, scan, "--maps", small)
    double = write_npz(tmp_path / "double.npz", image=coil_maps((N, N), (192.0, 192.0), COILS).numpy().astype("c16"))
    done(scan, "-o", tmp_path / "ok.npy", "--maps", double, "--iterations", 2)


def test_a_mask_that_samples_nothing_is_refused(tmp_path: Path) -> None:
    scan = write_npz(tmp_path / "scan.npz", kspace=np.zeros((1, COILS, N, N), "c8"), mask=np.zeros((N, 1), bool))
    assert "mask samples nothing" in refused(tmp_path, scan)
    zeros = write_npz(tmp_path / "zeros.npz", kspace=np.zeros((1, COILS, N, N), "c8"), mask=np.ones((N, 1), bool))
    assert "zeros only" in refused(tmp_path, zeros)


def test_an_automatic_weight_without_a_noise_level_asks_for_sigma(tmp_path: Path) -> None:
    flat = np.zeros((N, N), np.float32)
    flat[10:30, 10:30] = 1
    np.save(tmp_path / "flat.npy", flat)
    line = refused(tmp_path, tmp_path / "flat.npy", "--weight", "auto")
    assert "give --sigma or a weight" in line


def test_an_existing_output_is_kept_unless_forced(tmp_path: Path) -> None:
    source = image_npy(tmp_path)
    (tmp_path / "out.npz").write_bytes(b"mine")
    assert "--force" in refused(tmp_path, source)
    (tmp_path / "other.npz.json").write_text("{}")
    assert "--force" in refused(tmp_path, source, output="other.npz")
    done(source, "-o", tmp_path / "out.npz", "--iterations", 2, "--force")
    assert isinstance(read(tmp_path / "out.npz"), Image)


def test_an_output_that_cannot_hold_the_image_leaves_nothing_behind(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    source = image_npy(tmp_path)
    assert "voxel size" in refused(tmp_path, source, "--iterations", 2, output="out.dcm")
    assert "cannot be written as an image" in refused(tmp_path, source, output="out.jpeg")
    assert "nowhere" in refused(tmp_path, source, "--iterations", 2, output="nowhere/out.npz")


def test_a_record_of_another_kind_refuses_maps(tmp_path: Path) -> None:
    write(tmp_path / "scan.npz", water_scan(views=8))
    maps = write_npz(tmp_path / "maps.npz", image=np.ones((1, COILS, N, N), np.complex64))
    assert "--maps goes with k-space" in refused(tmp_path, tmp_path / "scan.npz", "--maps", maps)
    assert isinstance(read(mri_npz(tmp_path / "mri.npz")), KSpace)
