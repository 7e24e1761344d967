"""`invreg reconstruct`: from file to image, refusals, interrupts, resuming."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from invreg.cli import reconstruct as command
from invreg.io import Image, KSpace, Sinogram, read, write
from invreg.metrics import psnr


def folder_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.invreg")


def test_multi_coil_scan_needs_no_further_flags(invoke, scans: Path, tmp_path: Path) -> None:
    output = tmp_path / "image.npz"
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", output)
    assert outcome.code == 0, outcome.err
    image = read(output)
    truth = read(scans / "truth.npz")
    assert isinstance(image, Image)
    zero_filled = tmp_path / "zero.npz"
    assert invoke("reconstruct", scans / "mri.npz", "-o", zero_filled, "--algorithm", "adjoint").code == 0
    quality, before = (float(psnr(one.data, truth.data)) for one in (image, read(zero_filled)))
    assert quality > before + 5
    assert image.voxel_size == (3.75, 3.75)
    about = json.loads((tmp_path / "image.npz.json").read_text())
    assert about["status"] == "finished"
    assert about["versions"]["torch"] == torch.__version__
    assert about["seed"] == 0
    assert about["plan"]["noise level"] == "sigma = 0.01 (noise scan of the file)"
    assert "ESPIRiT" in about["plan"]["coil maps"]
    assert about["slices"][0]["checked"][0] == 10
    assert len(about["slices"][0]["misfit"]) == len(about["slices"][0]["checked"])
    assert not folder_of(output).exists()
    assert "noise level: sigma = 0.01" in outcome.err


def test_scan_a_million_times_weaker_gives_the_same_image_at_the_same_weight(
    invoke, scans: Path, tmp_path: Path
) -> None:
    scan = read(scans / "mri.npz")
    assert isinstance(scan, KSpace)
    write(tmp_path / "weak.npz", replace(scan, data=scan.data * 1e-6, noise_sigma=scan.noise_sigma * 1e-6))
    for extra in (("--prior", "tv", "--weight", "0.003"), ("--prior", "wavelet")):
        images = []
        for source in (scans / "mri.npz", tmp_path / "weak.npz"):
            outcome = invoke("reconstruct", source, "-o", tmp_path / "x.npz", "--force", "--iterations", 30, *extra)
            assert outcome.code == 0, outcome.err
            images.append(read(tmp_path / "x.npz").data)
        torch.testing.assert_close(images[1] * 1e6, images[0], rtol=1e-3, atol=1e-4 * float(images[0].abs().max()))


def test_sinogram_becomes_hounsfield_units(invoke, scans: Path, tmp_path: Path) -> None:
    output = tmp_path / "image.nii.gz"
    outcome = invoke("reconstruct", scans / "ct.npz", "-o", output, "--algorithm", "fbp")
    assert outcome.code == 0, outcome.err
    image = read(output)
    assert image.data.shape == (1, 256, 256)
    assert image.voxel_size == pytest.approx((0.862, 0.862), abs=1e-4)
    head = image.data[0, 100:180, 100:160]
    assert 0 < float(head.median()) < 120  # twelve views only


def test_ct_prior_keeps_the_attenuation_positive(invoke, scans: Path, tmp_path: Path) -> None:
    flags = ("--iterations", 4, "--size", 32, "--pixel-size", 7.0)
    outcome = invoke("reconstruct", scans / "ct.npz", "-o", tmp_path / "a.npz", "--json", *flags)
    assert outcome.code == 0, outcome.err
    assert outcome.json["plan"]["noise level"].endswith("(photon counts of the file)")
    assert outcome.json["plan"]["pixel size (mm)"] == 7.0
    image = read(tmp_path / "a.npz")
    assert isinstance(image, Image)
    assert image.units == "HU"
    assert float(image.data.min()) >= -1000.01


def test_image_is_denoised_and_deblurred(invoke, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.zeros(1, 48, 48)
    clean[:, 12:36, 16:32] = 5
    write(tmp_path / "noisy.npz", Image(clean + 0.5 * torch.randn(1, 48, 48, generator=generator)))
    outcome = invoke("reconstruct", tmp_path / "noisy.npz", "-o", tmp_path / "x.npz", "--json", "--iterations", 20)
    assert outcome.code == 0, outcome.err
    assert "estimated from mixed differences" in outcome.json["plan"]["noise level"]
    found = read(tmp_path / "x.npz").data
    noisy = read(tmp_path / "noisy.npz").data
    assert float((found - clean).norm()) < 0.6 * float((noisy - clean).norm())
    blurred = invoke(
        "reconstruct", tmp_path / "noisy.npz", "-o", tmp_path / "y.npz", "--operator", "blur:sigma=1.5",
        "--iterations", 3,
    )  # fmt: skip
    assert blurred.code == 0, blurred.err
    finer = invoke(
        "reconstruct", tmp_path / "noisy.npz", "-o", tmp_path / "z.npz", "--operator", "downsample:factor=2",
        "--iterations", 3,
    )  # fmt: skip
    assert finer.code == 0, finer.err
    assert read(tmp_path / "z.npz").data.shape == (1, 96, 96)


def test_automatic_weight_states_its_rule_and_needs_a_noise_level(invoke, scans: Path, tmp_path: Path) -> None:
    flags = ("--weight", "auto", "--iterations", 15, "--json")
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "a.npz", *flags)
    assert outcome.code == 0, outcome.err
    assert outcome.json["plan"]["weight"] > 0
    assert "by discrepancy with" in outcome.json["plan"]["weight source"]
    write(tmp_path / "silent.npz", Image(torch.ones(1, 32, 32)))
    silent = invoke("reconstruct", tmp_path / "silent.npz", "-o", tmp_path / "b.npz", *flags)
    assert silent.code == 2
    assert "--weight auto needs the noise level, which is unknown: no noise found; give --sigma" in silent.json["error"]
    wrong = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "b.npz", "--rule", "sire", *flags)
    assert "did you mean 'sure'" in wrong.json["error"]


@pytest.mark.parametrize("rule", ["sure", "gcv", "lcurve"])
def test_other_rules_choose_a_weight_of_the_same_order(rule: str, invoke, scans: Path, tmp_path: Path) -> None:
    flags = ("--weight", "auto", "--rule", rule, "--iterations", 10, "--json")
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "a.npz", *flags)
    assert outcome.code == 0, outcome.err
    assert 1e-5 < outcome.json["plan"]["weight"] < 1


BAD = {
    "unknown prior": (("--prior", "wavlet"), "unknown prior 'wavlet'; did you mean 'wavelet'"),
    "unknown option": (("--prior", "tv:wieght=1"), "unknown option of tv 'wieght'; did you mean 'weight'"),
    "unknown algorithm": (("--algorithm", "fitsa"), "unknown algorithm 'fitsa'; did you mean 'fista'"),
    "unknown operator": (("--operator", "sence"), "unknown operator 'sence'; did you mean 'sense'"),
    "unknown map option": (("--operator", "sense:kernal=5"), "did you mean 'kernel'"),
    "wrong operator": (("--operator", "parallel-beam"), "operator of k-space must be sense, soft-sense or fourier"),
    "too many coils": (("--operator", "fourier"), "fourier takes one coil, got 4"),
    "weight word": (("--weight", "much"), "weight must be a number or auto, got 'much'"),
    "negative weight": (("--weight", "-1"), "weight must be finite and >= 0"),
    "weight twice": (("--prior", "tv:weight=1", "--weight", "2"), "has its weight already"),
    "rule of a number": (("--weight", "2", "--rule", "gcv"), "--rule gcv says how --weight auto chooses"),
    "rule of nothing": (("--rule", "discrepancy"), "add --weight auto or leave it away"),
    "weight of nothing": (("--prior", "none", "--weight", "2"), "weight needs a prior"),
    "negative sigma": (("--sigma", "-1"), "sigma must be finite and > 0"),
    "no device": (("--device", "tpu"), "device must be auto, cpu or cuda"),
    "complex box": (("--prior", "nonnegative"), "NonNegative"),
    "no pair": (("--algorithm", "cg", "--prior", "tv"), "ConjugateGradient needs no prior or Tikhonov"),
    "fbp of k-space": (("--algorithm", "fbp"), "fbp goes with parallel-beam and fan-beam, got Sense"),
    "iterations": (("--iterations", "0"), "iterations must be >= 1"),
    "format": (("--format", "bmp"), "unknown format 'bmp'"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_flags_are_one_line_with_code_two_and_nothing_written(
    case: str, invoke, scans: Path, tmp_path: Path
) -> None:
    words, message = BAD[case]
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "x.npz", "--quiet", *words)
    assert outcome.code == 2, outcome.err
    assert message in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""
    assert list(tmp_path.iterdir()) == []


def save(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_bad_data_is_refused_in_one_line(invoke, scans: Path, tmp_path: Path) -> None:
    good = (scans / "mri.npz").read_bytes()
    data = read(scans / "mri.npz").data.numpy()
    spoiled = data.copy()
    spoiled[0, 0, 32, 32] = np.nan
    cases = {
        "truncated.npz": (good[: len(good) // 2], "truncated"),
        "empty.npz": (b"", "empty"),
        "text.npz": (b"hello, I am no scan at all" * 40, "text.npz"),
        "noise.bin": (os.urandom(2000), "noise.bin"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        outcome = invoke("reconstruct", tmp_path / name, "-o", tmp_path / "x.npz")
        assert outcome.code == 2, (name, outcome.err)
        assert message in outcome.err
        assert outcome.err.count("\n") == 1
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.save(tmp_path / "nan.npy", spoiled[0])
    np.save(tmp_path / "zero.npy", np.zeros((16, 16), np.complex64))
    np.save(tmp_path / "flat.npy", np.zeros(7, np.float32))
    for name, message in (
        ("words.npy", "words.npy"),
        ("nan.npy", "finite"),
        ("zero.npy", "samples nothing"),
        ("flat.npy", "flat.npy"),
    ):
        words = ("--operator", "fourier") if name == "zero.npy" else ()
        outcome = invoke("reconstruct", tmp_path / name, "-o", tmp_path / "x.npz", *words)
        assert outcome.code == 2, (name, outcome.err)
        assert message in outcome.err, name
        assert outcome.err.count("\n") == 1
    assert not (tmp_path / "x.npz").exists()
    assert not (tmp_path / "x.npz.json").exists()


def test_coil_maps_must_fit(invoke, scans: Path, tmp_path: Path) -> None:
    shapes = {"three.cfl": ((1, 3, 64, 64), "maps must have 4 coils as the k-space, got 3"),
              "small.cfl": ((1, 4, 32, 64), "maps must be on the k-space's grid (64, 64)")}  # fmt: skip
    for name, (shape, message) in shapes.items():
        write(tmp_path / name, KSpace(torch.ones(shape, dtype=torch.complex64)))
        outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "x.npz", "--maps", tmp_path / name)
        assert outcome.code == 2
        assert message in outcome.err, outcome.err
    write(tmp_path / "good.cfl", KSpace(0.5 * torch.ones(1, 4, 64, 64, dtype=torch.complex64)))
    flags = ("--maps", tmp_path / "good.cfl", "--iterations", 3, "--json")
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "x.npz", *flags)
    assert outcome.code == 0, outcome.err
    assert outcome.json["plan"]["coil maps"] == "given"
    outcome = invoke("reconstruct", scans / "ct.npz", "-o", tmp_path / "y.npz", "--maps", tmp_path / "good.cfl")
    assert outcome.code == 2
    assert "--maps goes with k-space" in outcome.err


def test_scan_without_calibration_lines_says_what_is_missing(invoke, tmp_path: Path) -> None:
    data = torch.zeros(1, 2, 32, 32, dtype=torch.complex64)
    data[:, :, 1::4] = 1
    write(tmp_path / "scan.npz", KSpace(data, mask=(data != 0).any(1, keepdim=True)))
    outcome = invoke("reconstruct", tmp_path / "scan.npz", "-o", tmp_path / "x.npz")
    assert outcome.code == 2
    assert "coil maps need calibration lines" in outcome.err


def test_existing_output_and_impossible_names_are_refused_before_the_work(invoke, scans: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.npz"
    output.write_text("mine")
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", output)
    assert outcome.code == 2
    assert "exists already; choose another name or pass --force" in outcome.err
    assert output.read_text() == "mine"
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "x.bmp")
    assert outcome.code == 2
    assert "cannot be written as an image" in outcome.err
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "no" / "x.npz")
    assert outcome.code == 2
    assert "does not exist" in outcome.err
    assert invoke("reconstruct", scans / "mri.npz", "-o", output, "--force", "--iterations", 2).code == 0
    assert isinstance(read(output), Image)


def test_missing_extra_is_named(invoke, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    (tmp_path / "scan.tif").write_bytes(b"II*\0" + bytes(64))
    outcome = invoke("reconstruct", tmp_path / "scan.tif", "-o", tmp_path / "x.npz")
    assert outcome.code == 2
    assert "pip install 'invreg[ct]'" in outcome.err


def test_angles_that_look_like_degrees_are_remarked(invoke, tmp_path: Path) -> None:
    write(tmp_path / "ct.npz", Sinogram(torch.rand(1, 12, 24), torch.arange(0, 180, 15.0), 1.0))
    outcome = invoke("reconstruct", tmp_path / "ct.npz", "-o", tmp_path / "x.npz", "--algorithm", "adjoint")
    assert outcome.code == 0
    assert "warning: " in outcome.err
    assert "degrees" in outcome.err


def test_failed_computation_is_code_one(invoke, scans: Path, tmp_path: Path) -> None:
    flags = ("--algorithm", "gradient-descent:step_size=1e30", "--prior", "tikhonov", "--iterations", 60)
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "x.npz", "--quiet", *flags)
    assert outcome.code == 1
    assert "NaN or Inf after" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "x.npz").exists()


def start(*words: object, cwd: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "invreg.cli", *map(str, words)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


LONG = ("--prior", "tv", "--algorithm", "fista:rtol=0", "--iterations", 60)


@pytest.mark.slow
def test_interrupt_keeps_the_best_so_far_and_a_second_run_goes_on(scans: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.npz"
    process = start("reconstruct", scans / "stack.npz", "-o", output, *LONG, cwd=tmp_path)
    wait_for(folder_of(output) / "slice_00000.safetensors", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "interrupted after" in err
    about = json.loads((tmp_path / "x.npz.json").read_text())
    assert about["status"] == "interrupted"
    image = read(output)
    assert image.data.shape == (4, 64, 64)
    assert float(image.data[0].abs().max()) > 0.5
    assert about["slices"][0]["status"] in ("iteration limit", "converged")
    assert about["slices"][-1]["status"] == "not reached"
    first = (folder_of(output) / "slice_00000.safetensors").stat().st_mtime_ns
    again = start("reconstruct", scans / "stack.npz", "-o", output, "--force", *LONG, cwd=tmp_path)
    wait_for(folder_of(output) / "slice_00002.safetensors", again)
    assert (folder_of(output) / "slice_00000.safetensors").stat().st_mtime_ns == first
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert not folder_of(output).exists()
    assert json.loads((tmp_path / "x.npz.json").read_text())["status"] == "finished"


@pytest.mark.slow(seconds=60)
def test_killed_run_resumes_and_ends_as_an_undisturbed_one(scans: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.npz"
    process = start("reconstruct", scans / "stack.npz", "-o", output, *LONG, cwd=tmp_path)
    wait_for(folder_of(output) / "slice_00001.safetensors", process)
    process.kill()
    process.communicate()
    assert not output.exists()
    kept = (folder_of(output) / "slice_00000.safetensors").stat().st_mtime_ns
    resumed = start("reconstruct", scans / "stack.npz", "-o", output, *LONG, cwd=tmp_path)
    wait_for(folder_of(output) / "slice_00002.safetensors", resumed)
    assert (folder_of(output) / "slice_00000.safetensors").stat().st_mtime_ns == kept
    _, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err
    whole = start("reconstruct", scans / "stack.npz", "-o", tmp_path / "y.npz", *LONG, cwd=tmp_path)
    _, err = whole.communicate(timeout=300)
    assert whole.returncode == 0, err
    assert torch.equal(read(output).data, read(tmp_path / "y.npz").data)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.npz", "x.npz.json", "y.npz", "y.npz.json"]


def test_slices_of_other_settings_are_not_taken(
    invoke, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "x.npz"

    def fail(*_: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(command, "write_outputs", fail)
    words = ("reconstruct", scans / "mri.npz", "-o", output, "--prior", "tv", "--algorithm", "fista")
    assert invoke(*words, "--iterations", 2).code == 1
    assert (folder_of(output) / "slice_00000.safetensors").exists()
    monkeypatch.undo()
    outcome = invoke(*words, "--iterations", 3, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["slices"][0]["iterations"] == 3


def test_force_does_not_replace_the_scan_itself(tmp_path: Path, invoke) -> None:
    scan = tmp_path / "scan.npz"
    assert invoke("simulate", scan, "--matrix", 32, "--calibration", 12).code == 0
    before = scan.read_bytes()
    outcome = invoke("reconstruct", scan, "-o", scan, "--force", "--prior", "none")
    assert outcome.code == 2
    assert "must be different files; choose another name" in outcome.err
    assert scan.read_bytes() == before


STACK = Image(torch.linspace(0, 1, 128).reshape(2, 8, 8), voxel_size=(1.0, 1.0), affine=torch.eye(4), slices=2)


@pytest.mark.parametrize("kind", ["input", "maps", "pair", "series", "slice"])
def test_force_removes_nothing_that_is_read(kind: str, tmp_path: Path, invoke) -> None:
    write(tmp_path / "k.npz", KSpace(torch.ones(1, 2, 8, 8, dtype=torch.complex64)))
    output, spread = {"pair": ("x.cfl", "x-std.cfl"), "series": ("x", "x-std"), "slice": ("x", "x-std")}.get(
        kind, ("x.npz", "x-std.npz")
    )
    write(tmp_path / spread, STACK)
    (tmp_path / f"{output}.json").write_text(json.dumps({"spread": str(tmp_path / spread)}))
    words: tuple[object, ...] = {
        "maps": (tmp_path / "k.npz", "--maps", tmp_path / spread),
        "pair": (tmp_path / "x-std",),
        "slice": (min((tmp_path / spread).iterdir()) if kind == "slice" else None,),
    }.get(kind, (tmp_path / spread,))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    outcome = invoke("reconstruct", *words, "-o", tmp_path / output, "--force", "--prior", "none")
    assert outcome.code == 2, outcome.err
    assert f"what is read must not be in {tmp_path / spread}, which would be replaced or removed" in outcome.err
    assert f"got {words[-1]}; choose another name for the output" in outcome.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("source", "output"), [("x", "x.cfl"), ("x/slice", "x")])
def test_force_does_not_replace_what_a_scan_is_part_of(source: str, output: str, tmp_path: Path, invoke) -> None:
    write(tmp_path / output, STACK)
    scan = min((tmp_path / "x").iterdir()) if source == "x/slice" else tmp_path / source
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    outcome = invoke("reconstruct", scan, "-o", tmp_path / output, "--force", "--prior", "none")
    assert outcome.code == 2, outcome.err
    assert f"must not be in {tmp_path / output}, which would be replaced or removed, got {scan}" in outcome.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_flags_of_learned_priors_are_refused_without_one(tmp_path: Path, invoke) -> None:
    scan = tmp_path / "scan.npz"
    assert invoke("simulate", scan, "--matrix", 32, "--calibration", 12).code == 0
    for words in (("--samples", 2), ("--with", "tv"), ("--no-check",)):
        outcome = invoke("reconstruct", scan, "-o", tmp_path / "x.npz", "--prior", "tv", *words)
        assert outcome.code == 2
        assert f"{words[0]} goes with a learned prior" in outcome.err
