import math
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from invreg.linalg import solve_normal
from invreg.mri import compression_matrix, espirit, find_calibration
from invreg.operators import Sense, SoftSense, centred_fft
from invreg.random import draw
from invreg.testing import relative_gap


def coordinates(*shape: int) -> list[Tensor]:
    lines = [(torch.arange(n, dtype=torch.float64) - n // 2) / (n / 2) for n in shape]
    return list(torch.meshgrid(*lines, indexing="ij"))


def analytic_maps(coils: int, *shape: int) -> Tensor:
    """Smooth coils on a ring, of unit norm at every voxel, (1, coil, *shape), with smooth phases."""
    *front, y, x = coordinates(*shape)
    maps = []
    for c in range(coils):
        angle = 2 * math.pi * c / coils
        height = 0.6 * (-1) ** c
        square = (x - 1.4 * math.cos(angle)) ** 2 + (y - 1.4 * math.sin(angle)) ** 2
        square = square + sum((z - height) ** 2 for z in front)
        phase = angle + 0.7 * x * math.sin(angle) - 0.5 * y * math.cos(angle)
        maps.append(torch.polar(torch.exp(-square / 2.5), phase))
    stacked = torch.stack(maps)[None]
    return stacked / stacked.norm(dim=1, keepdim=True)


def phantom(*shape: int) -> Tensor:
    """A few ellipses, (1, *shape), zero outside."""
    *front, y, x = coordinates(*shape)
    depth = sum((z**2 for z in front), torch.zeros_like(x))
    image = (x**2 / 0.5 + y**2 / 0.7 + depth / 0.7 < 1).double()
    image = image + 0.5 * ((x - 0.2) ** 2 / 0.04 + (y + 0.1) ** 2 / 0.1 < 1) * (depth < 0.3)
    image = image - 0.4 * ((x + 0.3) ** 2 / 0.03 + (y - 0.2) ** 2 / 0.08 < 1) * (depth < 0.3)
    return image[None].to(torch.complex128)


def lines_mask(n: int, every: int = 3, centre: int = 24) -> Tensor:
    mask = torch.zeros(n, 1, dtype=torch.bool)
    mask[::every] = True
    mask[n // 2 - centre // 2 : n // 2 - centre // 2 + centre] = True
    return mask


def correlation(maps: Tensor, truth: Tensor, inside: Tensor) -> float:
    truth = truth / truth.norm(dim=1, keepdim=True)
    return float((maps.conj() * truth).sum(1).abs()[inside].mean())


def scan(shape: tuple[int, ...], coils: int, noise: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """k-space, mask, true maps and where the object is."""
    maps, image = analytic_maps(coils, *shape), phantom(*shape)
    kspace = centred_fft(maps * image[:, None], len(shape))
    kspace = kspace + noise * draw(kspace, torch.Generator().manual_seed(0))
    mask = lines_mask(shape[-2]).expand(shape)
    return (kspace * mask).to(dtype), mask, maps.to(dtype), image.abs() > 0.05


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_maps_correlate_with_the_true_ones(noise: float) -> None:
    kspace, mask, truth, inside = scan((80, 78), 8, noise, torch.complex64)
    found = espirit(kspace, mask)
    assert correlation(found.maps, truth, inside) >= 0.9995
    assert found.maps.dtype == torch.complex64
    assert found.calibration == (24, 24)
    assert bool((found.eigenvalues[:, 0][inside] > 0.95).double().mean() > 0.999)


def test_maps_have_unit_norm_and_are_cropped_where_the_eigenvalue_is_small() -> None:
    kspace, mask, _, _ = scan((64, 63), 4, 0.01, torch.complex128)
    found = espirit(kspace, mask, crop=0.97)
    norms, keep = found.maps.norm(dim=1), found.eigenvalues[:, 0] >= 0.97
    assert torch.allclose(norms[keep], torch.ones_like(norms[keep]))
    assert bool((norms[~keep] == 0).all()) and bool((~keep).any())
    assert float(found.eigenvalues.max()) <= 1 + 1e-12
    assert bool((espirit(kspace, mask, crop=0).maps.norm(dim=1) > 0.99).all())


def test_phase_follows_the_principal_coil_so_that_maps_are_smooth() -> None:
    kspace, mask, _, inside = scan((64, 64), 6, 0.0, torch.complex128)
    maps = espirit(kspace, mask).maps
    principal = compression_matrix(kspace[..., 20:44, 20:44], 1)[0, 0].conj()
    overlap = torch.einsum("c,bcyx->byx", principal.conj(), maps)[inside]
    assert float(overlap.imag.abs().max()) <= 1e-10 and float(overlap.real.min()) > 0
    step = (maps[..., 1:] - maps[..., :-1]).abs().amax(1)
    assert float(step[inside[..., 1:] & inside[..., :-1]].max()) < 0.25


def test_phase_does_not_depend_on_the_order_of_the_coils() -> None:
    kspace, mask, _, _ = scan((48, 48), 6, 0.01, torch.complex128)
    maps = espirit(kspace, mask).maps
    for shift in (1, 2, 3):
        assert relative_gap(espirit(kspace.roll(shift, 1), mask).maps.roll(-shift, 1), maps) <= 1e-8


def test_maps_of_a_global_rephasing_are_the_same_up_to_that_phase() -> None:
    kspace, mask, _, _ = scan((48, 48), 4, 0.01, torch.complex128)
    turn = torch.polar(torch.tensor(1.0).double(), torch.tensor(0.7).double())
    first, second = espirit(kspace, mask).maps, espirit(kspace * turn, mask).maps
    assert relative_gap((first.conj() * second).sum(1).abs(), first.norm(dim=1).square()) <= 1e-8


@pytest.mark.parametrize("scale", [1e-10, 1e8])
def test_maps_do_not_depend_on_the_scale_of_the_data(scale: float) -> None:
    kspace, mask, _, inside = scan((48, 48), 4, 0.01, torch.complex64)
    first, second = espirit(kspace, mask).maps, espirit(kspace * scale, mask).maps
    assert float((first.conj() * second).sum(1).abs()[inside].min()) >= 1 - 1e-4


def test_item_of_a_batch_is_the_item_alone() -> None:
    one, mask, _, _ = scan((48, 44), 4, 0.02, torch.complex128)
    both = torch.cat((one, one.flip(1).conj() * 3))
    together = espirit(both, mask)
    for i in range(2):
        alone = espirit(both[i : i + 1], mask)
        assert relative_gap(together.eigenvalues[i : i + 1], alone.eigenvalues) <= 1e-10
        products = (together.maps[i : i + 1].conj() * alone.maps).sum(1)
        assert relative_gap(products.abs(), alone.maps.norm(dim=1).square()) <= 1e-8


def test_sampling_is_read_from_kspace_where_no_mask_is_given() -> None:
    kspace, mask, _, _ = scan((48, 48), 4, 0.02, torch.complex128)
    given, read = espirit(kspace, mask[None, None]), espirit(kspace)
    assert read.calibration == given.calibration == (24, 24)
    assert torch.equal(given.maps, read.maps)
    shrunk = Sense(given.maps, mask).sampled()
    assert torch.equal(espirit(kspace, shrunk).maps, given.maps)


@pytest.mark.slow
def test_maps_of_a_volume_correlate_with_the_true_ones() -> None:
    kspace, mask, truth, inside = scan((24, 32, 30), 5, 0.005, torch.complex64)
    found = espirit(kspace, mask, kernel=4, calibration=20)
    assert found.maps.shape == truth.shape and found.calibration == (20, 20, 20)
    assert correlation(found.maps, truth, inside) >= 0.999


def test_volume_that_is_one_slice_thick_in_content_has_the_maps_of_the_slice() -> None:
    maps, image = analytic_maps(3, 24, 24), phantom(24, 24)
    coils = (maps * image[:, None])[:, :, None].repeat(1, 1, 8, 1, 1)
    volume = espirit(centred_fft(coils, 3), torch.ones(8, 24, 24) > 0, kernel=4, calibration=16, crop=0)
    flat = espirit(centred_fft(coils[:, :, 0]), torch.ones(24, 24) > 0, kernel=4, calibration=16, crop=0)
    inside = (image.abs() > 0.05)[0]
    products = (volume.maps[0, :, 4].conj() * flat.maps[0]).sum(0).abs()
    assert float(products[inside].min()) >= 0.999


def test_second_set_explains_an_object_larger_than_the_image() -> None:
    n = 64
    maps, image = analytic_maps(6, 2 * n, n), phantom(2 * n, n)
    coils = maps * image[:, None] * 1.0
    folded = coils[:, :, n // 2 : n // 2 + n] + coils.roll(n, 2)[:, :, n // 2 : n // 2 + n]
    kspace = centred_fft(folded)
    found = espirit(kspace, torch.ones(n, n) > 0, sets=2, threshold=0.01, crop=0.8)
    assert found.sets.shape == (1, 2, 6, n, n) and found.eigenvalues.shape == (1, 2, n, n)
    assert torch.equal(found.maps, found.sets[:, 0])
    one, two = Sense(found.maps), SoftSense(found.sets)

    def misfit(operator: Sense | SoftSense) -> float:
        x = solve_normal(operator, operator.adjoint(kspace), 1e-8, rtol=1e-8).x
        return relative_gap(operator(x), kspace)

    assert misfit(two) < 0.01
    assert misfit(one) > 10 * misfit(two)


def test_calibration_region_is_the_largest_centred_box() -> None:
    mask = lines_mask(64, 4, 20).expand(64, 48)
    assert find_calibration(mask) == (20, 48)
    assert find_calibration(mask, largest=16) == (16, 16)
    for sizes in ((1, 1), (2, 3), (5, 4), (8, 8), (7, 9)):
        one = torch.zeros(8, 9, dtype=torch.bool)
        one[4 - sizes[0] // 2 :, 4 - sizes[1] // 2 :][: sizes[0], : sizes[1]] = True
        assert find_calibration(one) == sizes


def test_calibration_box_agrees_with_a_search_of_all_boxes() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        mask = torch.rand(7, 6, 5, generator=generator) < 0.9
        mask[2:5, 2:5, 1:4] = True
        volumes = [
            a * b * c
            for a in range(1, 8)
            for b in range(1, 7)
            for c in range(1, 6)
            if bool(mask[3 - a // 2 :, 3 - b // 2 :, 2 - c // 2 :][:a, :b, :c].all())
        ]
        assert math.prod(find_calibration(mask)) == max(volumes)


def test_one_long_line_does_not_win_over_a_compact_region() -> None:
    mask = torch.zeros(64, 512, dtype=torch.bool)
    mask[32] = True
    mask[24:40, 248:264] = True
    assert find_calibration(mask) == (1, 512)
    assert find_calibration(mask, largest=24, least=6) == (16, 16)


@pytest.mark.parametrize("lines", [4, 6, 8, 10])
def test_few_calibration_lines_get_patches_that_they_can_fill(lines: int) -> None:
    kspace, _, truth, inside = scan((80, 78), 8, 0.01, torch.complex64)
    mask = lines_mask(80, every=7, centre=lines).expand(80, 78)
    found, wide = espirit(kspace * mask, mask), espirit(kspace * mask, mask, kernel=min(lines, 6))
    covered = (found.maps[:, 0] != 0)[inside].double().mean()
    assert float(covered) >= 0.97
    assert float((wide.maps[:, 0] != 0)[inside].double().mean()) < covered
    assert correlation(found.maps, truth, inside & (found.maps[:, 0] != 0)) >= 0.98


def test_patches_are_six_wide_where_the_region_is_twelve() -> None:
    kspace, _, _, _ = scan((64, 63), 4, 0.01, torch.complex64)
    mask = lines_mask(64, every=7, centre=12).expand(64, 63)
    assert torch.equal(espirit(kspace * mask, mask).maps, espirit(kspace * mask, mask, kernel=6).maps)


def test_missing_calibration_lines_are_named() -> None:
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[::2] = True
    with pytest.raises(ValueError, match="mask has no fully sampled centre of at least 2 x 2; coil maps need"):
        espirit(draw(torch.empty(1, 3, 32, 32, dtype=torch.complex64)) * mask, mask)
    with pytest.raises(ValueError, match="mask has no fully sampled centre of at least 1 x 1"):
        find_calibration(torch.zeros(4, 4, dtype=torch.bool))


def test_bad_arguments_are_named() -> None:
    kspace = draw(torch.empty(1, 3, 12, 12, dtype=torch.complex64))
    with pytest.raises(TypeError, match="kspace must be complex"):
        espirit(kspace.real)
    with pytest.raises(ValueError, match=r"kspace must be \(B, coil, y, x\) or"):
        espirit(kspace[0])
    with pytest.raises(ValueError, match="kspace must be finite"):
        espirit(kspace * torch.nan)
    with pytest.raises(ValueError, match="sets must be at most the number of coils, 3, got 4"):
        espirit(kspace, sets=4)
    with pytest.raises(ValueError, match="kernel must be >= 1"):
        espirit(kspace, kernel=0)
    with pytest.raises(ValueError, match=r"threshold must be < 1 and crop <= 1, got 2 and 0\.95"):
        espirit(kspace, threshold=2)
    with pytest.raises(ValueError, match="makes 6912 columns, more than 4096; use compress_coils first"):
        espirit(torch.ones(1, 32, 8, 8, 8, dtype=torch.complex64), kernel=6)
    with pytest.raises(TypeError, match="mask must be bool"):
        espirit(kspace, torch.ones(12, 12))
    with pytest.raises(ValueError, match=r"mask must be \(12, 12\) or \(B, 1, \*\(12, 12\)\), got \(6, 6\)"):
        espirit(kspace, torch.ones(6, 6) > 0)
    with pytest.raises(ValueError, match="kspace is 0 in the calibration region"):
        espirit(torch.zeros_like(kspace), torch.ones(12, 12) > 0)
    with pytest.raises(TypeError, match="mask must be bool, got"):
        find_calibration(torch.ones(4, 4))
    with pytest.raises(ValueError, match=r"mask must be \(x\), \(y, x\) or \(z, y, x\)"):
        find_calibration(torch.ones(1, 1, 4, 4) > 0)


@pytest.mark.slow
def test_maps_of_a_usual_slice_take_well_under_a_second() -> None:
    kspace, mask, truth, inside = scan((128, 128), 8, 0.01, torch.complex64)
    espirit(kspace, mask)
    start = time.perf_counter()
    found = espirit(kspace, mask)
    assert time.perf_counter() - start < 5  # 0.1 s alone on two cores; the bound forgives a busy machine
    assert correlation(found.maps, truth, inside) >= 0.9995


def read_cfl(path: Path) -> Tensor:
    sizes = [int(n) for n in path.with_suffix(".hdr").read_text().splitlines()[1].split()]
    values = np.fromfile(path.with_suffix(".cfl"), dtype=np.complex64).reshape(sizes, order="F")
    return torch.from_numpy(values.squeeze().T.copy())[None]


def write_cfl(path: Path, kspace: Tensor) -> None:
    values = kspace[0].permute(2, 1, 0)[:, :, None].numpy()
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, values.shape)) + "\n")
    values.astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bart") is None, reason="needs the bart binary")
def test_maps_of_analytic_kspace_are_as_good_as_those_of_bart(tmp_path: Path) -> None:
    def bart(*arguments: str) -> None:
        subprocess.run(["bart", *arguments], cwd=tmp_path, check=True, capture_output=True, timeout=60)

    bart("phantom", "-k", "-x64", "-s8", "kspace")
    bart("phantom", "-S8", "-x64", "maps")
    bart("phantom", "-x64", "image")
    kspace, truth, image = (read_cfl(tmp_path / name) for name in ("kspace", "maps", "image"))
    mask, inside = lines_mask(64, 3, 24).expand(64, 64), image.abs() > 1e-3
    kspace = kspace * mask
    write_cfl(tmp_path / "sampled", kspace)
    bart("ecalib", "-m1", "-r24", "-c0.95", "sampled", "theirs")
    theirs = read_cfl(tmp_path / "theirs")
    theirs = theirs / theirs.norm(dim=1, keepdim=True).clamp_min(1e-12)
    ours = espirit(kspace, mask).maps
    assert correlation(ours, truth, inside) >= max(0.9995, correlation(theirs, truth, inside) - 1e-4)
    assert correlation(theirs, ours + 1e-12, inside) >= 0.997


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bart") is None, reason="needs the bart binary")
def test_cg_sense_agrees_with_bart(tmp_path: Path) -> None:
    kspace, mask, truth, _ = scan((64, 60), 4, 0.02, torch.complex64)
    write_cfl(tmp_path / "y", kspace)
    write_cfl(tmp_path / "s", truth)
    command = ["bart", "pics", "-l2", "-r0.01", "-i100", "-w1", "y", "s", "x"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    operator = Sense(truth, mask)
    got = solve_normal(operator, operator.adjoint(kspace), 0.01, rtol=1e-7).x
    assert relative_gap(read_cfl(tmp_path / "x"), got) <= 1e-5
