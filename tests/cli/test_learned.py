"""`invreg reconstruct --prior` of learned priors: samples, spread, checks, refusals, resuming."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from invreg import config
from invreg._torchvision import guard_torchvision
from invreg.algorithms import DDS, posterior
from invreg.cli import learned
from invreg.cli import reconstruct as command
from invreg.cli.denoisers import Fitted
from invreg.cli.descent import descent, sized
from invreg.io import Image, KSpace, Sinogram, read, write
from invreg.models import EDM, Calibrated, ConvexCNN, GaussianOracle, NetworkDenoiser, UNet
from invreg.noise import Gaussian
from invreg.operators import MatrixSensing
from invreg.problem import Problem
from invreg.regularizers import PlugAndPlay

FEW = ("--iterations", 4, "--no-check")


def folder_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.invreg")


def save(folder: Path, layout: str, **info: Any) -> Path:
    """A network that gives 0, so that the denoiser is the exact one of N(0, 0.5^2): x / (1 + 4 sigma^2)."""
    torch.manual_seed(0)
    network = UNet(2 if layout == "real2" else 1, widths=(4,), blocks=1, fold=1, embedding=4)
    config.save_pretrained(NetworkDenoiser(network, EDM(0.5), "edm", layout), folder, info=info)
    return folder


@pytest.fixture(scope="module")
def priors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("priors")
    save(folder / "complex", "real2", **{"pixel size (mm)": [1.0, 4.0]})
    save(folder / "real", "channels")
    return folder


def reconstruct(invoke: Any, source: Path, output: Path, *words: object) -> Any:
    outcome = invoke("reconstruct", source, "-o", output, "--json", *words)
    assert outcome.code == 0, outcome.err
    return outcome.json


def test_the_usual_method_is_dds_with_the_true_noise_level(invoke, scans: Path, priors: Path, tmp_path: Path) -> None:
    prior = f"model:folder={priors / 'complex'}"
    about = reconstruct(invoke, scans / "mri.npz", tmp_path / "x.npz", "--prior", prior, *FEW)
    assert about["plan"]["algorithm"].startswith("dds: DDS(iterations=4")
    assert about["plan"]["prior"] == prior
    assert about["plan"]["noise level"] == "sigma = 0.01 (noise scan of the file)"
    scale = float(about["plan"]["scale"].split()[0])
    assert about["algorithm settings"]["noise"] == f"Gaussian(sigma={0.01 / scale:g})"
    assert about["slices"][0]["samples"] == 1
    assert not (tmp_path / "x-std.npz").exists()
    usual = config.learned_method(config.parse("dds"), "mri")
    assert usual.algorithm == DDS(iterations=50)


def test_mean_and_spread_of_samples_are_those_of_the_library(invoke, scans: Path, priors: Path, tmp_path: Path) -> None:
    words = ("--prior", f"model:folder={priors / 'complex'}", "--samples", 3, "--seed", 5, *FEW)
    about = reconstruct(invoke, scans / "mri.npz", tmp_path / "x.nii.gz", *words)
    mean, spread = read(tmp_path / "x.nii.gz"), read(tmp_path / "x-std.nii.gz")
    record = read(scans / "mri.npz")
    assert isinstance(record, KSpace) and isinstance(mean, Image) and isinstance(spread, Image)
    scan = command.make_scan(record, command.Request(scans / "mri.npz", tmp_path), torch.device("cpu"))
    problem = learned.noisy_problem(scan, 0, command.noise_level(record, None))
    found = posterior(
        DDS(iterations=4), problem, config.learned_prior(config.parse(words[1])).model, samples=3, batch=3, seed=5
    )
    wanted = (found.mean.abs(), found.std)
    for image, exact in zip((mean, spread), wanted, strict=True):
        torch.testing.assert_close(image.data, scan.scale * scan.covered(0, exact), rtol=1e-4, atol=1e-5)
        assert image.voxel_size == pytest.approx((3.75, 3.75))
    assert about["slices"][0]["samples"] == 3
    assert about["slices"][0]["chi-square of samples"] == pytest.approx(found.chi_square[:, 0].tolist(), rel=1e-3)


def test_a_spread_of_attenuation_has_no_offset_in_hounsfield_units(
    invoke, scans: Path, priors: Path, tmp_path: Path
) -> None:
    small = ("--size", 32, "--pixel-size", 7.0)
    words = ("--prior", f"model:folder={priors / 'real'}", "--samples", 2, *small, *FEW)
    reconstruct(invoke, scans / "ct.npz", tmp_path / "x.npz", *words)
    spread = read(tmp_path / "x-std.npz")
    assert isinstance(spread, Image)
    assert spread.units == "HU"
    assert 0 <= float(spread.data.min()) <= float(spread.data.max()) < 1000
    assert float(spread.data.mean()) > 1


SLOW = {"dps": 60, "predictor-corrector": 60}


@pytest.mark.parametrize("name", sorted(set(config.PRESETS) - {"ddnm", "ddrm", "lpn-admm", "lpn-pgd"}))
def test_every_method_reconstructs_scans_of_several_coils(
    name: str, invoke, scans: Path, priors: Path, tmp_path: Path
) -> None:
    prior = f"model:folder={priors / 'complex'}"
    words = ("--prior", prior, "--algorithm", name, "--iterations", SLOW.get(name, 12), "--no-check")
    about = reconstruct(invoke, scans / "mri.npz", tmp_path / "x.npz", *words)
    assert about["plan"]["algorithm"].startswith(f"{name}: ")
    image, truth = read(tmp_path / "x.npz").data, read(scans / "truth.npz").data
    error = float((image.abs() - truth.abs()).norm() / truth.norm())
    assert error < 0.25, error


@pytest.mark.parametrize("name", ["ddnm", "ddrm", "dds", "pnp-admm", "red-diff"])
def test_methods_that_decompose_the_operator_denoise_and_fill_in_images(
    name: str, invoke, priors: Path, tmp_path: Path
) -> None:
    clean = torch.zeros(1, 32, 32)
    clean[:, 8:24, 10:22] = 7
    noisy = clean + 0.35 * torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(0))
    write(tmp_path / "noisy.npz", Image(noisy))
    prior = f"model:folder={priors / 'real'}"
    words = ("--prior", prior, "--algorithm", name, "--sigma", 0.35, "--iterations", 30)
    about = reconstruct(invoke, tmp_path / "noisy.npz", tmp_path / "x.npz", *words)
    # the Wiener filter of N(0, 0.5^2), in units where the image has size 1, hardly changes pixels this precise
    assert float((read(tmp_path / "x.npz").data - noisy).abs().mean()) < 0.5
    trust = about["slices"][0]["trust"]
    assert 0 < trust["difference from tv"] < 0.25


def test_options_in_the_text_win_over_the_flag_and_the_preset(
    invoke, scans: Path, priors: Path, tmp_path: Path
) -> None:
    words = ("--prior", f"model:folder={priors / 'complex'}", "--no-check", "--iterations", 9)
    text = "dds:iterations=3,eta=0.5,sigma_max=2,sigma_min=0.01"
    about = reconstruct(invoke, scans / "mri.npz", tmp_path / "x.npz", "--algorithm", text, *words)
    settings = about["algorithm settings"]
    assert (settings["iterations"], settings["eta"]) == (3, 0.5)
    assert "sigma_min=0.01, sigma_max=2" in settings["schedule"]
    text = "red-diff:iterations=3,weighting=square,weight=0.1"
    about = reconstruct(invoke, scans / "mri.npz", tmp_path / "y.npz", "--algorithm", text, *words)
    assert about["plan"]["weight"] == 0.1


def test_total_variation_may_stand_beside_the_learned_prior(invoke, scans: Path, priors: Path, tmp_path: Path) -> None:
    # in four steps, each at a hundredth of the noise before, every weight is either all or nothing
    prior = ("--prior", f"model:folder={priors / 'complex'}", "--iterations", 15, "--no-check")
    roughness = {}
    for name, more in {"alone": (), "both": ("--with", "tv"), "much": ("--with", "tv:weight=0.05")}.items():
        about = reconstruct(invoke, scans / "mri.npz", tmp_path / f"{name}.npz", *prior, *more)
        image = read(tmp_path / f"{name}.npz").data
        roughness[name] = float((image[:, 1:] - image[:, :-1]).abs().sum())
    assert about["plan"]["with weight"] == 0.05
    assert roughness["alone"] > roughness["both"] > roughness["much"]
    plain = reconstruct(invoke, scans / "mri.npz", tmp_path / "tv.npz", "--prior", "tv", "--iterations", 2)
    both = reconstruct(invoke, scans / "mri.npz", tmp_path / "again.npz", *prior, "--with", "tv")
    assert both["plan"]["with weight"] == pytest.approx(plain["plan"]["weight"])
    wave = ("--with", "wavelet:levels=2")
    assert reconstruct(invoke, scans / "mri.npz", tmp_path / "w.npz", *prior, *wave)["plan"]["with"] == wave[1]


def test_a_network_of_real_images_takes_the_parts_of_complex_ones(
    invoke, scans: Path, priors: Path, tmp_path: Path
) -> None:
    images = []
    for name in ("complex", "real"):  # both are the same Gaussian
        prior = f"model:folder={priors / name}"
        reconstruct(invoke, scans / "mri.npz", tmp_path / f"{name}.npz", "--prior", prior, *FEW)
        images.append(read(tmp_path / f"{name}.npz").data)
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-5)


def test_volumes_are_denoised_slice_by_slice(invoke, priors: Path, tmp_path: Path) -> None:
    data = torch.randn(1, 1, 3, 16, 20, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    write(tmp_path / "volume.npz", KSpace(data, noise_sigma=0.1))
    prior = f"model:folder={priors / 'complex'}"
    reconstruct(invoke, tmp_path / "volume.npz", tmp_path / "x.npz", "--prior", prior, "--samples", 2, *FEW)
    assert read(tmp_path / "x.npz").data.shape == read(tmp_path / "x-std.npz").data.shape == (1, 3, 16, 20)
    more = ("--iterations", 15, "--no-check")
    for name, words in (("w.npz", ()), ("y.npz", ("--with", "tv:along=[0],weight=0.5"))):
        reconstruct(invoke, tmp_path / "volume.npz", tmp_path / name, "--prior", prior, *words, *more)
    steps = [read(tmp_path / name).data.diff(dim=1).norm() for name in ("w.npz", "y.npz")]
    assert float(steps[1]) < 0.9 * float(steps[0])
    write(tmp_path / "flat.npz", KSpace(data[:, :, 1], noise_sigma=0.1))
    reconstruct(invoke, tmp_path / "flat.npz", tmp_path / "z.npz", "--prior", prior, "--operator", "fourier", *FEW)


def test_the_range_of_a_network_follows_its_card_and_the_user_wins(invoke, priors: Path, tmp_path: Path) -> None:
    save(tmp_path / "wide", "channels", scale=0.5, offset=0.5)
    write(tmp_path / "image.npz", Image(torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.1))
    seen = {}
    for name, more in {"card": "", "user": ",scale=2,offset=0"}.items():
        words = ("--prior", f"model:folder={tmp_path / 'wide'}{more}", "--sigma", 0.1, *FEW)
        seen[name] = reconstruct(invoke, tmp_path / "image.npz", tmp_path / f"{name}.npz", *words)["plan"]
    assert seen["card"]["prior range"] == "image = 0.5 x the network's + 0.5"
    assert seen["user"]["prior range"] == "image = 2 x the network's"
    finer = ("--operator", "downsample:factor=2", "--prior", f"model:folder={tmp_path / 'wide'}", "--sigma", 0.1)
    about = reconstruct(invoke, tmp_path / "image.npz", tmp_path / "finer.npz", *finer, *FEW)
    assert about["plan"]["prior range"] == "image = 2 x the network's + 2"  # A^H y is a quarter of the image


def test_red_diff_follows_the_size_of_the_images() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, root = (torch.randn(n, 12, generator=generator, dtype=torch.float64) for n in (8, 12))
    oracle = GaussianOracle(torch.full((12,), 0.5, dtype=torch.float64), 0.02 * root @ root.mT)
    y = torch.randn(1, 8, generator=generator, dtype=torch.float64)
    spec = config.parse("red-diff:iterations=30")
    images = []
    for size in (1.0, 4.0):
        prior = Fitted(Calibrated(oracle, size), None, {}, size=size)
        method = sized(config.learned_method(spec, "image"), spec.options, size)
        problem = Problem(MatrixSensing(matrix / size), y, Gaussian(0.1))
        run = descent(method, prior, problem, None, torch.Generator().manual_seed(2), None)
        assert len(list(run)) == 30
        images.append(run.reconstruction().x / size)
    torch.testing.assert_close(*images, rtol=1e-9, atol=1e-9)


def test_the_usual_step_of_red_diff_follows_the_scan_and_the_user_wins(invoke, priors: Path, tmp_path: Path) -> None:
    image = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.1
    write(tmp_path / "image.npz", Image(image))
    write(tmp_path / "hu.npz", Image(1000 * image, "HU"))
    plain = ("image.npz", "--sigma", 0.1, "--prior", f"model:folder={priors / 'real'}")
    finer = (*plain, "--operator", "downsample:factor=2")
    water = save(tmp_path / "water", "channels", units="water", scale=2.0)
    hounsfield = ("hu.npz", "--sigma", 100, "--prior", f"model:folder={water}")
    for (name, *words), more, norm, size, step in (
        (plain, "", 1, 1, 0.05),
        (finer, "", 0.5, 4, 0.2),  # A^H y is a quarter of the image
        (finer, ":step_size=0.03", 0.5, 4, 0.03),
        (hounsfield, "", 1, None, None),
    ):
        algorithm = ("--algorithm", f"red-diff{more}", "--force", *FEW)
        about = reconstruct(invoke, tmp_path / name, tmp_path / "x.npz", *words, *algorithm)
        scale = float(about["plan"]["scale"].split()[0])
        size, step = (1000 / scale, 0.05 * 1000 / scale) if size is None else (size, step)
        assert about["algorithm settings"]["step_size"] == pytest.approx(step, rel=1e-5)
        assert f"step_size={about['algorithm settings']['step_size']}," in about["plan"]["algorithm"]
        sigma = words[1] / scale / norm
        weight = float(about["algorithm settings"]["prior"].removeprefix("REDDiff(weight=").rstrip(")"))
        assert weight == pytest.approx(10 / (sigma * size), rel=1e-4)


def test_a_prior_in_units_of_water_meets_the_units_of_the_scan(
    invoke, scans: Path, priors: Path, tmp_path: Path
) -> None:
    water = f"model:folder={save(tmp_path / 'water', 'channels', units='water')}"
    small = ("--size", 32, "--pixel-size", 7.0)
    about = reconstruct(invoke, scans / "ct.npz", tmp_path / "ct.npz", "--prior", water, *small, *FEW)
    assert about["plan"]["prior range"] == "image = 1 x the network's"
    hu = 400 * torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0)) - 100
    write(tmp_path / "hu.npz", Image(hu, "HU"))
    words = ("--prior", water, "--algorithm", "ddrm:iterations=3", "--no-check", "--sigma", 250)
    about = reconstruct(invoke, tmp_path / "hu.npz", tmp_path / "x.npz", *words)
    scale = float(about["plan"]["scale"].split()[0])
    assert about["plan"]["prior range"] == f"image = {1000 / scale:g} x the network's + {-1000 / scale:g}"
    record = read(scans / "ct.npz")
    assert isinstance(record, Sinogram)
    write(tmp_path / "pixels.npz", replace(record, detector_pitch=None))
    write(tmp_path / "plain.npz", Image(hu))
    for source, message in (
        (scans / "mri.npz", "but those of k-space are not; take --prior brain"),
        (tmp_path / "pixels.npz", "without a detector pitch those of this sinogram are not"),
        (tmp_path / "plain.npz", "this one has no HU"),
    ):
        outcome = invoke("reconstruct", source, "-o", tmp_path / "y.npz", "--prior", water, *FEW)
        assert outcome.code == 2
        assert "is for images of attenuation over that of water" in outcome.err
        assert message in outcome.err
    said = reconstruct(invoke, tmp_path / "plain.npz", tmp_path / "y.npz", "--prior", f"{water},scale=0.5", *FEW)
    assert said["plan"]["prior range"] == "image = 0.5 x the network's"


def test_doubts_are_remarked_and_recorded(invoke, scans: Path, priors: Path, tmp_path: Path) -> None:
    save(tmp_path / "fine", "real2", **{"pixel size (mm)": [0.5, 1.0]})
    words = ("--prior", f"model:folder={tmp_path / 'fine'}", "--sigma", 0.001, "--iterations", 4)
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "x.npz", *words)
    assert outcome.code == 0, outcome.err
    assert "look twice: slice 0: chi-square" in outcome.err
    assert "look twice: slice 0: pixels of 3.75 mm, but the prior has seen 0.5 to 1 mm only" in outcome.err
    trust = json.loads((tmp_path / "x.npz.json").read_text())["slices"][0]["trust"]
    assert len(trust["reasons"]) >= 2
    assert trust["chi-square"] > 1.5
    assert trust["difference from tv"] > 0
    words = ("--prior", f"model:folder={priors / 'complex'}", "--no-check", "--iterations", 20)
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "y.npz", *words)
    assert "look twice" not in outcome.err
    trust = json.loads((tmp_path / "y.npz.json").read_text())["slices"][0]["trust"]
    assert trust["difference from tv"] is None and trust["reasons"] == []


BAD = {
    "weight of none": (("--weight", "2"), "dds has no weight; leave --weight 2 away"),
    "weight by rule": (("--algorithm", "red", "--weight", "auto"), "red has no rule that chooses its weight"),
    "weight twice": (("--algorithm", "red:weight=1", "--weight", "2"), "red has its weight already"),
    "weight word": (("--algorithm", "red", "--weight", "much"), "weight must be a number or auto, got 'much'"),
    "weight of dps": (
        ("--algorithm", "dps", "--weight", "2"),
        "dps takes its weight, which is of another kind, as an option, dps:weight=NUMBER; leave --weight 2 away",
    ),
    "rule": (("--rule", "sure"), "--rule sure says how --weight auto chooses; add --weight auto or leave it away"),
    "samples of one": (("--algorithm", "pnp", "--samples", "2"), "--samples goes with ddnm, ddrm, dds, diffpir, dps"),
    "no samples": (("--samples", "0"), "--samples"),
    "algorithm": (("--algorithm", "ddss"), "unknown algorithm 'ddss'; did you mean 'dds'"),
    "analytic": (("--algorithm", "fista"), "unknown algorithm 'fista'"),
    "option": (("--algorithm", "dds:etta=1"), "unknown option of dds 'etta'; did you mean 'eta'"),
    "generator": (("--algorithm", "dds:generator=1"), "unknown option of dds 'generator'"),
    "levels": (("--algorithm", "predictor-corrector:sigma_max=2"), "unknown option of predictor-corrector 'sigma_max'"),
    "value": (("--algorithm", "dds:eta=2"), "dds: eta must be from 0 to 1, got 2"),
    "weighting": (("--algorithm", "red-diff:weighting=cubic"), "unknown weighting 'cubic'"),
    "decomposition": (("--algorithm", "ddrm"), "ddrm needs an operator whose singular values are known"),
    "with": (("--with", "tvv"), "unknown regularizer 'tvv'; did you mean 'tv'"),
    "with another": (("--algorithm", "diffpir", "--with", "tv"), "--with goes with dds, got diffpir"),
    "sigma": (("--sigma", "-1"), "sigma must be finite and > 0"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_what_does_not_go_together_is_one_line_before_the_work(
    case: str, invoke, scans: Path, priors: Path, tmp_path: Path
) -> None:
    words, message = BAD[case]
    prior = ("--prior", f"model:folder={priors / 'complex'}")
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "x.npz", "--quiet", *prior, *words)
    assert outcome.code == 2, outcome.err
    assert message in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_priors_that_are_not_there_or_not_for_these_images_are_named(
    invoke, scans: Path, priors: Path, tmp_path: Path
) -> None:
    config.save_pretrained(config.part("model", "mlp:inputs=2,hidden=[2],outputs=2"), tmp_path / "mlp")
    torch.manual_seed(0)
    coloured = NetworkDenoiser(UNet(3, widths=(4,), blocks=1, fold=1, embedding=4), EDM(0.5), "edm", "native")
    config.save_pretrained(coloured, tmp_path / "colour")
    cases = {
        "model": ("mri.npz", "model needs folder, a path; write model:folder=./NAME"),
        f"model:folder={tmp_path / 'none'}": ("mri.npz", "no such folder of a model"),
        f"model:path={tmp_path}": ("mri.npz", "unknown option of model 'path'"),
        f"model:folder={priors / 'real'},scale=big": ("mri.npz", "scale of a prior must be a number, got 'big'"),
        f"model:folder={tmp_path / 'mlp'}": ("mri.npz", "must hold a denoiser or a learned proximal network, got MLP"),
        f"model:folder={tmp_path / 'colour'}": ("mri.npz", "is for images with channels"),
        f"model:folder={priors / 'complex'}": ("ct.npz", "is for complex images, such as those of k-space"),
        "brian": ("mri.npz", "unknown prior 'brian'; did you mean 'brain'"),
        "diffusers": ("mri.npz", "diffusers needs folder, a path"),
    }
    for prior, (scan, message) in cases.items():
        outcome = invoke("reconstruct", scans / scan, "-o", tmp_path / "x.npz", "--quiet", "--prior", prior)
        assert outcome.code == 2, (prior, outcome.err)
        assert message in outcome.err, prior
        assert outcome.err.count("\n") == 1, prior


def test_words_of_learned_priors_without_one_are_refused(invoke, scans: Path, tmp_path: Path) -> None:
    for words, message in (
        (("--samples", 3), "--samples goes with a learned prior; give --prior with one of brain, brain-lpn, head-ct,"),
        (("--with", "tv"), "--with goes with a learned prior"),
        (("--algorithm", "dds"), "dds goes with a learned prior"),
    ):
        outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "x.npz", "--quiet", *words)
        assert outcome.code == 2
        assert message in outcome.err
        assert outcome.err.count("\n") == 1


def test_without_a_noise_level_one_is_asked_for(invoke, priors: Path, tmp_path: Path) -> None:
    write(tmp_path / "silent.npz", Image(torch.ones(1, 32, 32)))
    words = ("--prior", f"model:folder={priors / 'real'}")
    outcome = invoke("reconstruct", tmp_path / "silent.npz", "-o", tmp_path / "x.npz", *words)
    assert outcome.code == 2
    assert "a learned prior needs the noise level, which is unknown: no noise found; give --sigma" in outcome.err


def test_the_spread_needs_a_free_place_before_the_work(invoke, scans: Path, priors: Path, tmp_path: Path) -> None:
    (tmp_path / "x-std.nii.gz").write_text("mine")
    words = ("--prior", f"model:folder={priors / 'complex'}", "--samples", 2, *FEW)
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "x.nii.gz", *words)
    assert outcome.code == 2
    assert f"{tmp_path / 'x-std.nii.gz'}: exists already; choose another name or pass --force" in outcome.err
    assert [one.name for one in tmp_path.iterdir()] == ["x-std.nii.gz"]
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "x.nii.gz", "--force", *words)
    assert outcome.code == 0, outcome.err
    assert isinstance(read(tmp_path / "x-std.nii.gz"), Image)


def test_finished_slices_are_taken_up_with_their_spread_and_not_done_again(
    invoke, scans: Path, priors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = ("--prior", f"model:folder={priors / 'complex'}", "--samples", 2, *FEW)
    words = ("reconstruct", scans / "stack.npz", "-o", tmp_path / "x.npz", *prior)
    solve = learned.LearnedPlan.solve

    def failing(plan: Any, index: int, *more: Any) -> Any:
        if index == 2:
            raise RuntimeError("the machine caught fire")
        return solve(plan, index, *more)

    monkeypatch.setattr(learned.LearnedPlan, "solve", failing)
    assert invoke(*words).code == 1
    assert len(list(folder_of(tmp_path / "x.npz").glob("slice_*"))) == 2
    seen = list[int]()
    monkeypatch.setattr(learned.LearnedPlan, "solve", lambda *a: (seen.append(a[1]), solve(*a))[1])
    assert invoke(*words).code == 0
    assert seen == [2, 3]
    monkeypatch.undo()
    whole = (*words[:2], "-o", tmp_path / "y.npz", *prior)
    assert invoke(*whole).code == 0
    for name in ("{}.npz", "{}-std.npz"):
        assert torch.equal(read(tmp_path / name.format("x")).data, read(tmp_path / name.format("y")).data)
    assert not folder_of(tmp_path / "x.npz").exists()


def test_slices_of_other_weights_under_the_same_name_are_not_taken(
    invoke, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the disk is full")

    words = ("--prior", f"model:folder={save(tmp_path / 'net', 'real2')}", *FEW)
    monkeypatch.setattr(command, "write_outputs", fail)
    assert invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "x.npz", *words).code == 1
    first = (folder_of(tmp_path / "x.npz") / "run.json").read_text()
    model = config.from_pretrained(tmp_path / "net")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    config.save_pretrained(model, tmp_path / "net", overwrite=True)
    assert invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "x.npz", *words).code == 1
    assert (folder_of(tmp_path / "x.npz") / "run.json").read_text() != first


def test_an_interrupt_keeps_the_samples_that_are_finished(
    invoke, scans: Path, priors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renoise, calls = DDS.renoise, list[None]()

    def interrupting(*words: Any) -> Any:
        calls.append(None)
        if len(calls) == 8:  # three a sample: in the third
            signal.raise_signal(signal.SIGINT)
        return renoise(*words)

    monkeypatch.setattr(DDS, "renoise", interrupting)
    words = ("--prior", f"model:folder={priors / 'complex'}", "--samples", 5, *FEW)
    outcome = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "x.npz", *words)
    assert outcome.code == 1
    assert "interrupted after 0 of 1 slices; the best so far is in" in outcome.err
    about = json.loads((tmp_path / "x.npz.json").read_text())
    assert about["slices"][0]["status"] == "interrupted"
    assert about["slices"][0]["samples"] == 2
    monkeypatch.undo()
    five = reconstruct(invoke, scans / "mri.npz", tmp_path / "five.npz", *words)["slices"][0]
    first = [read(tmp_path / name).data for name in ("x.npz", "x-std.npz")]
    monkeypatch.setattr(DDS, "renoise", lambda *some: (calls.append(None), renoise(*some))[1])
    calls.clear()
    again = reconstruct(invoke, scans / "mri.npz", tmp_path / "x.npz", "--force", *words)["slices"][0]
    assert len(calls) == 9  # three samples, not five
    monkeypatch.undo()
    assert (again["status"], again["samples"]) == (five["status"], 5)
    assert again["chi-square of samples"] == five["chi-square of samples"]
    for name in ("{}.npz", "{}-std.npz"):
        found, wanted = (read(tmp_path / name.format(one)).data for one in ("x", "five"))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    two = ("--prior", f"model:folder={priors / 'complex'}", "--samples", 2, *FEW)
    reconstruct(invoke, scans / "mri.npz", tmp_path / "y.npz", *two)
    for name in ("{}.npz", "{}-std.npz"):
        assert torch.equal(first.pop(0), read(tmp_path / name.format("y")).data)


def test_an_interrupt_before_every_slice_has_two_samples_writes_no_spread(
    invoke, scans: Path, priors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renoise, calls = DDS.renoise, list[None]()

    def interrupting(*words: Any) -> Any:
        calls.append(None)
        if len(calls) == 8:  # three a sample: in the first of the second slice
            signal.raise_signal(signal.SIGINT)
        return renoise(*words)

    words = ("--prior", f"model:folder={priors / 'complex'}", "--samples", 2, *FEW)
    monkeypatch.setattr(DDS, "renoise", interrupting)
    outcome = invoke("reconstruct", scans / "stack.npz", "-o", tmp_path / "x.npz", *words)
    assert outcome.code == 1
    assert "no spread is written: 1 of 4 slices have two samples" in outcome.err
    assert json.loads((tmp_path / "x.npz.json").read_text())["spread"] is None
    assert not (tmp_path / "x-std.npz").exists()
    monkeypatch.undo()
    about = reconstruct(invoke, scans / "stack.npz", tmp_path / "x.npz", "--force", *words)
    assert Path(about["spread"]) == tmp_path / "x-std.npz"
    assert float(read(tmp_path / "x-std.npz").data.flatten(1).amax(1).min()) > 0


@pytest.mark.parametrize("name", ["x.npz", "x.cfl", "x"])
def test_the_spread_of_an_earlier_run_goes_with_its_image(
    name: str, invoke, scans: Path, priors: Path, tmp_path: Path
) -> None:
    prior = ("--prior", f"model:folder={priors / 'complex'}", *FEW)
    before = set(tmp_path.iterdir())
    reconstruct(invoke, scans / "mri.npz", tmp_path / name, *prior, "--samples", 2)
    assert any("-std" in one.name for one in tmp_path.iterdir())
    reconstruct(invoke, scans / "mri.npz", tmp_path / name, *prior, "--force")
    assert set(tmp_path.iterdir()) - before
    assert not any("-std" in one.name for one in tmp_path.iterdir())
    mine = tmp_path / "x-std.npz"
    mine.write_text("not written by the run before")
    reconstruct(invoke, scans / "mri.npz", tmp_path / name, *prior, "--force")
    assert mine.exists()


def test_presets_build_and_hold_for_every_kind_of_scan() -> None:
    denoiser = NetworkDenoiser(UNet(1, widths=(4,), blocks=1, fold=1, embedding=4), EDM(0.5), "edm", "channels")
    for name, preset in config.PRESETS.items():
        assert preset.about
        for kind in ("mri", "ct", "image"):
            method = config.learned_method(config.parse(name), kind)
            assert isinstance(method.algorithm, preset.algorithm)
            if preset.of_potentials:
                made = method.prior(ConvexCNN(hidden=2), {"step": 0.01, "scale": 1.0, "weight": 3.0})
                x = torch.rand(1, 8, 8)
                torch.testing.assert_close(made.prox(x, 0.01 / 3), made.potential.gradient(x))
                continue
            made = method.prior(denoiser, {"sigma": 0.1} if name == "red" else {})
            assert (made is denoiser) == (preset.prior is None)
    assert config.learned_method(config.parse("dds"), "ct").algorithm == DDS(iterations=25, inner_iterations=20)
    assert isinstance(config.learned_method(config.parse("pnp"), "ct").prior(denoiser, {}), PlugAndPlay)
    assert config.learned_method(config.parse("pnp:sigma=0.2"), "ct").prior(denoiser, {}).sigma == 0.2


def test_photon_counts_weigh_the_rays(invoke, scans: Path, priors: Path, tmp_path: Path) -> None:
    record = read(scans / "ct.npz")
    assert isinstance(record, Sinogram) and record.counts is not None
    small = ("--size", 32, "--pixel-size", 7.0, "--prior", f"model:folder={priors / 'real'}")
    for name in ("dds", "red-diff", "dps"):
        words = (*small, "--algorithm", name, "--iterations", 4, "--no-check")
        about = reconstruct(invoke, scans / "ct.npz", tmp_path / f"{name}.npz", *words)
        assert about["plan"]["noise level"].endswith("(photon counts of the file)")
        head = read(tmp_path / f"{name}.npz").data[0, 12:20, 12:20]
        assert -700 < float(head.median()) < 900, name


@pytest.mark.slow
def test_a_local_folder_of_diffusers_is_a_prior(invoke, scans: Path, tmp_path: Path) -> None:
    guard_torchvision()
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "net")
    write(tmp_path / "image.npz", Image(torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.1))
    prior = ("--prior", f"diffusers:folder={tmp_path / 'net'}", *FEW)
    about = reconstruct(invoke, tmp_path / "image.npz", tmp_path / "x.npz", "--sigma", 0.1, *prior)
    assert about["plan"]["prior range"] == "image = 0.5 x the network's + 0.5"
    about = reconstruct(invoke, scans / "mri.npz", tmp_path / "y.npz", *prior)
    assert about["plan"]["prior range"] == "image = 1 x the network's"


def test_only_where_the_coils_see_is_an_image_compared(invoke, scans: Path, priors: Path, tmp_path: Path) -> None:
    words = ("--prior", f"model:folder={priors / 'complex'}", "--iterations", 30)
    about = reconstruct(invoke, scans / "mri.npz", tmp_path / "x.npz", *words)
    reconstruct(invoke, scans / "mri.npz", tmp_path / "tv.npz", "--prior", "tv", "--algorithm", "pdhg:rtol=1e-4",
                "--iterations", 150)  # fmt: skip
    x, tv = (read(tmp_path / name).data.abs() for name in ("x.npz", "tv.npz"))
    found = about["slices"][0]["trust"]["difference from tv"]
    assert found == pytest.approx(float((x - tv).norm() / tv.norm()), rel=1e-3)


def save_lpn(folder: Path, **info: Any) -> Path:
    """A learned proximal network whose weights are 0, so that it halves: the prox of N(0, sigma^2) at step sigma^2."""
    model = ConvexCNN(hidden=2, layers=1, kernel=3, strong_convexity=0.5)
    with torch.no_grad():
        for one in model.outs:
            one.zero_()
    config.save_pretrained(model, folder, info=info)
    return folder


@pytest.mark.parametrize("source", ["image", "kspace"])
def test_a_learned_proximal_network_finds_the_map_of_a_gaussian(
    source: str, invoke, scans: Path, tmp_path: Path
) -> None:
    prior = f"model:folder={save_lpn(tmp_path / 'lpn', sigma=0.2, scale=0.5)}"
    generator = torch.Generator().manual_seed(0)
    if source == "image":
        write(tmp_path / "y.npz", Image(7 * torch.rand(1, 16, 16, generator=generator)))
    else:
        data = torch.randn(1, 1, 16, 16, dtype=torch.complex64, generator=generator)
        write(tmp_path / "y.npz", KSpace(data, noise_sigma=0.1))
    words = ("--prior", prior, "--sigma", 0.3, "--no-check", *(("--operator", "fourier") if source != "image" else ()))
    about = reconstruct(invoke, tmp_path / "y.npz", tmp_path / "x.npz", "--iterations", 60, *words)
    assert about["plan"]["algorithm"].startswith("lpn-admm: ADMM(iterations=60")
    assert about["plan"]["prior range"] == "image = 0.5 x the network's, trained at noise 0.1"
    zero = reconstruct(invoke, tmp_path / "y.npz", tmp_path / "z.npz", *words[2:3], 0.3, "--prior", "none",
                       "--algorithm", "adjoint", *words[5:])  # fmt: skip
    assert zero["status"] == "finished"
    scale = float(about["plan"]["scale"].split()[0])
    # f(v) = v / 2 is the prox of |x|^2 / 2, so that R = |x|^2 / (2 0.1^2), beside |x - y|^2 / (2 variance)
    variance = (0.3 / scale) ** 2
    exact = read(tmp_path / "z.npz").data * 0.01 / (0.01 + variance)
    torch.testing.assert_close(read(tmp_path / "x.npz").data, exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))
    twice = ("--algorithm", "lpn-admm:weight=" + str(2 * (0.3 / scale) ** 2), "--iterations", 60)
    reconstruct(invoke, tmp_path / "y.npz", tmp_path / "w.npz", *twice, *words)
    exact = read(tmp_path / "z.npz").data * 0.005 / (0.005 + variance)
    torch.testing.assert_close(read(tmp_path / "w.npz").data, exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))
    # at the step that is proved the weight is step / (0.95 variance)
    reconstruct(invoke, tmp_path / "y.npz", tmp_path / "p.npz", "--algorithm", "lpn-pgd", "--iterations", 60, *words)
    exact = read(tmp_path / "z.npz").data * 0.95 / 1.95
    torch.testing.assert_close(read(tmp_path / "p.npz").data, exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))


def test_what_learned_proximal_networks_cannot_is_said(invoke, scans: Path, priors: Path, tmp_path: Path) -> None:
    net, mute = f"model:folder={save_lpn(tmp_path / 'lpn', sigma=0.1)}", save_lpn(tmp_path / "mute")
    denoiser = f"model:folder={priors / 'complex'}"
    data = torch.randn(1, 1, 3, 16, 20, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    write(tmp_path / "volume.npz", KSpace(data, noise_sigma=0.1))
    for source, prior, words, message in (
        ("mri.npz", net, ("--algorithm", "dds"), "dds goes with a denoiser, but prior model:folder="),
        ("mri.npz", net, ("--samples", 2), "but lpn-admm gives one image"),
        ("mri.npz", net, ("--with", "tv"), "--with goes with dds, got lpn-admm"),
        ("mri.npz", net, ("--algorithm", "lpn-admm:rho=2"), "unknown option of lpn-admm 'rho'"),
        ("mri.npz", net, ("--algorithm", "lpn-pgd", "--weight", "2"), "lpn-pgd follows from its step"),
        ("mri.npz", net, ("--algorithm", "lpn-pgd:weight=2"), "lpn-pgd follows from its step"),
        ("mri.npz", net, ("--algorithm", "lpn-pgd:weight=0"), "lpn-pgd follows from its step"),
        ("mri.npz", net, ("--algorithm", "lpn-admm:weight=0"), "weight of lpn-admm must be finite and > 0, got 0.0"),
        ("mri.npz", net, ("--weight", "0"), "weight of lpn-admm must be finite and > 0, got 0.0"),
        ("mri.npz", f"{net},offset=1", (), "offset of a learned proximal network must be 0, got 1"),
        ("mri.npz", f"{net},sigma=-1", (), "sigma of a prior must be finite and > 0, got -1"),
        ("mri.npz", f"model:folder={mute}", (), "needs the noise level that it was trained at; add sigma=NUMBER"),
        ("mri.npz", denoiser, ("--algorithm", "lpn-admm"), "lpn-admm goes with a learned"),
        ("mri.npz", f"{denoiser},sigma=1", (), "sigma of a prior goes with learned proximal"),
        ("ct.npz", "brain-lpn", (), "prior brain-lpn is for brain MR images, got a sinogram; take --prior head-ct"),
        (tmp_path / "volume.npz", net, (), "takes images (y, x), but those of this scan are (3, 16, 20)"),
    ):
        outcome = invoke("reconstruct", scans / source, "-o", tmp_path / "x.npz", "--quiet", "--prior", prior, *words)
        assert outcome.code == 2, (words, outcome.err)
        assert message in outcome.err, outcome.err
        assert outcome.err.count("\n") == 1
