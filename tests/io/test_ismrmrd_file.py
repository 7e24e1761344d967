"""ISMRMRD files written by the ismrmrd library."""

import math
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from invreg.io import KSpace, read

COILS, NX, NY, SLICES = 3, 16, 20, 2
Make = Callable[..., Any]


def gap(a: Any, b: Any) -> float:
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def test_a_scan_is_sorted_onto_its_grid_without_oversampling(make_scan: Make) -> None:
    scan = make_scan(noise=False)
    record = read(scan.path)
    assert isinstance(record, KSpace)
    assert record.data.dtype == torch.complex64
    assert record.data.shape == (SLICES, COILS, NY, NX)
    assert record.mask is not None
    assert record.mask.shape == (SLICES, 1, NY, 1)
    assert record.mask[:, :, :4].sum() == 0
    assert record.mask[:, :, 4:].all()
    assert gap(record.data[:, :, 4:], scan.kspace[:, :, 4:]) < 1e-6
    assert record.data[:, :, :4].abs().max() == 0
    assert record.noise_sigma is None
    assert record.noise_covariance is None
    assert record.voxel_size == (3.0, 2.0)
    assert record.crop == (NY - 4, NX)
    assert record.slices == SLICES
    assert record.meta["skipped_lines"] == {"navigation": 1}
    assert record.meta["TE"] == [12.5]


def test_a_full_scan_gives_back_its_image(make_scan: Make) -> None:
    scan = make_scan(noise=False, skip_lines=0)
    record = read(scan.path)
    assert isinstance(record, KSpace)
    assert record.mask is None
    image = torch.fft.ifftshift(record.data, dim=(-2, -1))
    image = torch.fft.fftshift(torch.fft.ifft2(image, norm="ortho"), dim=(-2, -1))
    assert gap(image, scan.image.astype(np.complex64)) < 1e-6
    shown = record.image(image[:, 0].abs())
    assert shown.data.shape == (SLICES, NY - 4, NX)
    assert gap(shown.data, np.abs(scan.image[:, 0, 2:-2]).astype(np.float32)) < 1e-5


def test_the_noise_scan_whitens_and_states_the_level_after_averaging(make_scan: Make) -> None:
    sigma, averages = 50.0, 8
    scan = make_scan(sigma=sigma, averages=averages, bandwidth=0.8)
    record = read(scan.path)
    assert isinstance(record, KSpace)
    assert record.noise_sigma == pytest.approx(1 / math.sqrt(averages))
    assert record.noise_covariance is not None
    assert gap(record.noise_covariance, scan.covariance) < 0.05
    quiet = read(make_scan(sigma=0.0, averages=1, noise=False, name="quiet.h5").path)
    assert isinstance(quiet, KSpace)
    whitening = math.sqrt(2) * np.linalg.inv(np.linalg.cholesky(record.noise_covariance.numpy()))
    clean = torch.einsum("ij,bjyx->biyx", torch.from_numpy(whitening.astype(np.complex64)), quiet.data)
    noise = (record.data - clean)[:, :, 4:].transpose(0, 1).reshape(COILS, -1).numpy()
    found = noise @ noise.conj().T / noise.shape[1]
    assert np.abs(found * averages - 2 * np.eye(COILS)).max() < 0.35  # E|n|^2 = 2 sigma^2, coils independent


def test_a_partial_echo_lies_by_its_centre_sample_and_keeps_its_oversampling(make_scan: Make) -> None:
    scan = make_scan(noise=False, skip_lines=0, partial_echo=6)
    record = read(scan.path)
    assert isinstance(record, KSpace)
    assert record.data.shape == (SLICES, COILS, NY, 2 * NX)
    assert record.mask is not None
    assert record.mask.shape == (SLICES, 1, NY, 2 * NX)
    assert not record.mask[..., :6].any()
    assert record.mask[..., 6:].all()
    whole = read(make_scan(noise=False, skip_lines=0, name="whole.h5").path)
    assert isinstance(whole, KSpace)
    # twice the field of view: every second sample is one of the smaller grid, up to the norm
    assert gap(record.data[..., 6::2] * math.sqrt(2), whole.data[..., 3:]) < 1e-6
    assert record.crop == (NY - 4, NX)


def test_repetitions_and_slices_are_the_batch_with_slices_fastest(make_scan: Make) -> None:
    scan = make_scan(noise=False, repetitions=3)
    record = read(scan.path)
    assert isinstance(record, KSpace)
    assert record.data.shape[0] == 3 * SLICES
    assert [(b["repetition"], b["slice"]) for b in record.meta["batch"]] == [(r, s) for r in range(3) for s in range(2)]
    for r in range(3):
        assert gap(record.data[2 * r : 2 * r + 2, :, 4:], (1 + r) * scan.kspace[:, :, 4:]) < 1e-6


def test_embedded_calibration_lines_fill_gaps_and_separate_ones_do_not(make_scan: Make) -> None:
    lines = tuple(range(8, 13))
    for mode in ("embedded", "separate"):
        record = read(make_scan(noise=False, calibration_lines=lines, calibration=mode, name=f"{mode}.h5").path)
        assert isinstance(record, KSpace)
        assert record.mask is not None
        assert bool(record.mask[:, :, 8:13].any()) == (mode == "embedded")
        assert record.calibration is not None
        assert record.calibration.shape == record.data.shape
        assert record.calibration[:, :, 8:13].abs().min() > 0
        assert record.calibration[:, :, 13:].abs().max() == 0


def test_the_affine_puts_the_voxel_of_frequency_zero_at_the_position(make_scan: Make) -> None:
    record = read(make_scan(noise=False).path)
    assert isinstance(record, KSpace)
    assert record.affine is not None
    for z in range(SLICES):
        point = record.affine @ torch.tensor([NX // 2, NY // 2, z, 1.0], dtype=torch.float64)
        assert point[:3].tolist() == pytest.approx([-7, 3, 11 + 5 * z])  # LPS to RAS
    # the readout runs along the patient's +y (posterior), that is -y in RAS, and is our x
    assert record.affine[:3, 0].tolist() == pytest.approx([0, -2, 0])
    assert record.affine[:3, 1].tolist() == pytest.approx([-3, 0, 0])
    image = record.image(torch.zeros(SLICES, NY, NX))
    assert image.affine is not None
    centre = image.affine @ torch.tensor([NX // 2, (NY - 4) // 2, 1, 1.0], dtype=torch.float64)
    assert centre[:3].tolist() == pytest.approx([-7, 3, 16])


def test_unevenly_averaged_lines_have_their_own_noise_level(make_scan: Make) -> None:
    scan = make_scan(sigma=1.0)
    with h5py.File(scan.path, "r+") as file:  # the last line of the second average was lost
        file["dataset/data"].resize(file["dataset/data"].shape[0] - 1, axis=0)
    record = read(scan.path)
    assert isinstance(record, KSpace)
    assert isinstance(record.noise_sigma, torch.Tensor)
    assert record.noise_sigma.shape == (SLICES, 1, NY, 1)
    assert record.noise_sigma[1, 0, NY - 1, 0] == 1
    assert record.noise_sigma[0, 0, NY - 1, 0] == pytest.approx(1 / math.sqrt(2))


def test_a_volume_has_its_second_encoding_step_along_z(make_scan: Make) -> None:
    scan = make_scan(
        noise=False, tamper=lambda xml: xml.replace("<z>1</z>", "<z>2</z>").replace("<center>0<", "<center>1<")
    )
    with h5py.File(scan.path, "r+") as file:  # the two slices become two planes of k-space
        lines = file["dataset/data"][:]
        lines["head"]["idx"]["kspace_encode_step_2"] = lines["head"]["idx"]["slice"]
        lines["head"]["idx"]["slice"] = 0
        file["dataset/data"][:] = lines
    record = read(scan.path)
    assert isinstance(record, KSpace)
    assert record.data.shape == (1, COILS, 2, NY, NX)
    assert gap(record.data[0, :, :, 4:], scan.kspace[:, :, 4:].swapaxes(0, 1)) < 1e-6
    assert record.mask is not None
    assert record.mask.shape == (1, 1, 2, NY, 1)
    assert record.voxel_size == (2.0, 3.0, 2.0)
    assert record.crop == (2, NY - 4, NX)
    assert record.affine is not None
    point = record.affine @ torch.tensor([NX // 2, NY // 2, 1, 1.0], dtype=torch.float64)
    assert point[:3].tolist() == pytest.approx([-7, 3, 11])


def test_another_group_name_is_found(make_scan: Make) -> None:
    assert isinstance(read(make_scan(noise=False, group="scan7").path), KSpace)


@pytest.mark.parametrize("trajectory", ["radial", "spiral", "epi", "goldenangle", "other"])
def test_other_trajectories_are_refused_by_name(make_scan: Make, trajectory: str) -> None:
    with pytest.raises(ValueError, match=f"trajectory {trajectory} is not read, only cartesian"):
        read(make_scan(noise=False, trajectory=trajectory).path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flag": 22}, "reversed readouts"),
        ({"flag": 53}, "compressed acquisitions"),
        ({"flag": 24}, "no imaging line"),
        ({"tamper": lambda xml: xml.replace("<ismrmrdHeader", "<!DOCTYPE x><ismrmrdHeader")}, "entities"),
        ({"tamper": lambda xml: xml[:400]}, "no XML"),
        ({"tamper": lambda xml: xml.replace("ismrmrdHeader", "html")}, "must be an ismrmrdHeader"),
        ({"tamper": lambda xml: xml.replace("<y>20</y>", "<y>60000</y>")}, "asks for"),
        ({"tamper": lambda xml: xml.replace("<y>20</y>", "<y>8</y>")}, "outside the encoded matrix"),
        ({"tamper": lambda xml: xml.replace("<x>32</x>", "<x>24</x>")}, "do not fit"),
        ({"tamper": lambda xml: xml.replace("<y>20</y>", "<y>0</y>")}, "must be >= 1"),
        ({"tamper": lambda xml: xml.replace("<y>20</y>", "<y>nan</y>")}, "must be finite"),
        ({"tamper": lambda xml: xml.replace("encoding>", "coding>")}, "no encoding"),
        ({"centre": 3}, "do not fit"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(make_scan: Make, options: Any, message: str) -> None:
    if "centre" in options:
        scan = make_scan(noise=False)
        with h5py.File(scan.path, "r+") as file:
            lines = file["dataset/data"][:]
            lines["head"]["center_sample"] = options["centre"]
            file["dataset/data"][:] = lines
    else:
        scan = make_scan(noise=False, **options)
    with pytest.raises(ValueError, match=message) as caught:
        read(scan.path)
    assert str(scan.path) in str(caught.value)


def test_a_noise_scan_of_other_coils_is_refused(make_scan: Make) -> None:
    scan = make_scan()
    with h5py.File(scan.path, "r+") as file:
        lines = file["dataset/data"][:]
        for i in range(40):
            lines["head"]["active_channels"][i] = COILS - 1
            lines["data"][i] = lines["data"][i][: 2 * 512 * (COILS - 1)]
        file["dataset/data"][:] = lines
    with pytest.raises(ValueError, match="noise scan has 2 coils but the image 3"):
        read(scan.path)


def test_a_line_shorter_than_its_header_says_is_refused(make_scan: Make) -> None:
    scan = make_scan(noise=False)
    with h5py.File(scan.path, "r+") as file:
        lines = file["dataset/data"][:]
        lines["data"][5] = lines["data"][5][:-2]
        file["dataset/data"][:] = lines
    with pytest.raises(ValueError, match="acquisition 5 must hold 3 x 32"):
        read(scan.path)


def test_a_scan_without_header_is_refused(make_scan: Make) -> None:
    scan = make_scan(noise=False)
    with h5py.File(scan.path, "r+") as file:
        del file["dataset/xml"]
    with pytest.raises(ValueError, match="none of the known layouts"):
        read(scan.path)
    with pytest.raises(ValueError, match="wanted one group with xml and data"):
        read(scan.path, format="ismrmrd")
