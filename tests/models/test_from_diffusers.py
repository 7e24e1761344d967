"""Networks of diffusers, tiny and random, denoise as their own schedulers say they do; folders load offline."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invreg._torchvision import guard_torchvision
from invreg.algorithms import UniformSteps
from invreg.models.from_diffusers import from_diffusers
from invreg.models.noise_path import EDM, DiscreteVariancePreserving, RectifiedFlow, VarianceExploding
from invreg.testing import relative_gap

guard_torchvision()
diffusers: Any = pytest.importorskip("diffusers")


def unet(channels: int = 1, out: int | None = None, **others: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels if out is None else out,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        **others,
    ).eval()


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    unet()  # the first use of a class of diffusers imports much


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole pipeline."""
    folder = tmp_path_factory.mktemp("made") / "pipeline"
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()).save_pretrained(folder)
    return Path(folder)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_at_whole_steps_the_denoised_image_is_the_schedulers_own(kind: str, schedule: str, zero_snr: bool) -> None:
    scheduler = diffusers.DDIMScheduler(
        prediction_type=kind, beta_schedule=schedule, clip_sample=False, rescale_betas_zero_snr=zero_snr
    )
    scheduler.set_timesteps(1000)
    network = unet().double()
    made = from_diffusers(network, scheduler)
    assert made.layout == "channels"
    x = images(2, 8, 8, dtype=torch.float64)
    for k in (3, 400, 950):
        a = scheduler.alphas_cumprod[k].double()
        noisy = a.sqrt() * x[:, None]
        wanted = scheduler.step(network(noisy, k).sample, k, noisy).pred_original_sample[:, 0]
        assert relative_gap(made(x, ((1 - a) / a).sqrt()), wanted) < 1e-5
    assert made.sigma_range[1] < 3e5


@pytest.mark.parametrize("name", ["PNDMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_any_scheduler_with_the_same_training_gives_the_same_denoiser(name: str) -> None:
    network, x = unet(), images(2, 8, 8)
    made = from_diffusers(network, getattr(diffusers, name)(prediction_type="epsilon"))
    assert torch.allclose(made(x, 0.7), from_diffusers(network, diffusers.DDPMScheduler())(x, 0.7), atol=1e-6)


@pytest.mark.parametrize("count", [1, 7, 20, 50, 333, 999, 1000])
def test_uniform_steps_are_levels_of_the_usual_scheduler_though_its_table_is_of_single_precision(count: int) -> None:
    scheduler = diffusers.DDPMScheduler()
    assert scheduler.alphas_cumprod.dtype == torch.float32
    found = UniformSteps().sigmas(count, from_diffusers(unet(), scheduler).sigma_range)
    a = scheduler.alphas_cumprod[[i * 1000 // count for i in reversed(range(count))]].double()
    assert found == pytest.approx(((1 - a) / a).sqrt().tolist(), rel=1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_euler_schedulers_agree_in_their_own_units(kind: str) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type=kind)
    scheduler.set_timesteps(1000)
    network, x = unet(), images(1, 8, 8)
    made = from_diffusers(network, scheduler)
    i = 600
    t, sigma = scheduler.timesteps[i], scheduler.sigmas[i]
    output = network(scheduler.scale_model_input(x[:, None], t), t).sample
    wanted = scheduler.step(output, t, x[:, None]).pred_original_sample[:, 0]
    assert relative_gap(made(x, sigma), wanted) < 1e-3  # scheduler's levels are float32


def test_a_last_step_without_signal_is_left_out_though_euler_schedulers_write_a_small_number() -> None:
    given = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    euler = from_diffusers(unet(), diffusers.EulerDiscreteScheduler(**given))
    assert euler.sigma_range == from_diffusers(unet(), diffusers.DDPMScheduler(**given)).sigma_range


def test_continuous_euler_is_preconditioned() -> None:
    scheduler = diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.01,
        sigma_max=70.0,
    )
    scheduler.set_timesteps(20)
    network, x = unet(), images(1, 8, 8)
    made = from_diffusers(network, scheduler)
    assert made.sigma_range == (0.01, 70.0)
    t, sigma = scheduler.timesteps[7], scheduler.sigmas[7]
    output = network(scheduler.scale_model_input(x[:, None], t), t).sample
    wanted = scheduler.step(output, t, x[:, None]).pred_original_sample[:, 0]
    assert relative_gap(made(x, sigma), wanted) < 1e-4
    with pytest.raises(ValueError, match=r"continuous timesteps must be one of v_prediction, got 'epsilon'"):
        from_diffusers(network, diffusers.EulerDiscreteScheduler(timestep_type="continuous"))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_preconditioned_networks_are_as_their_scheduler_says(name: str, kind: str) -> None:
    scheduler = getattr(diffusers, name)(sigma_min=0.01, sigma_max=50.0, sigma_data=0.7, prediction_type=kind)
    network, x = unet(), images(2, 8, 8)
    made = from_diffusers(network, scheduler)
    assert isinstance(made.path, EDM)
    assert (made.sigma_range, made.path.sigma_data) == ((0.01, 50.0), 0.7)
    for sigma in (0.02, 1.0, 30.0):
        level = torch.tensor(sigma)
        inputs = scheduler.precondition_inputs(x[:, None], level)
        output = network(inputs, scheduler.precondition_noise(level)).sample
        wanted = scheduler.precondition_outputs(x[:, None], output, level)[:, 0]
        assert relative_gap(made(x, sigma), wanted) < 1e-5


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flows_step_to_their_clean_image(name: str, shift: float) -> None:
    network = unet(3)
    made = from_diffusers(network, getattr(diffusers, name)(shift=shift))
    assert isinstance(made.path, RectifiedFlow)
    x, t = images(1, 3, 8, 8), 0.4
    noisy = (1 - t) * x
    wanted = noisy - t * network(noisy, torch.tensor([400.0])).sample
    assert relative_gap(made(x, t / (1 - t)), wanted) < 1e-5
    first = shift * 1e-3 / (1 + (shift - 1) * 1e-3)
    assert made.sigma_range[0] == pytest.approx(first / (1 - first))


def test_a_flow_with_its_times_reversed_agrees_with_the_schedulers_step() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(10)
    network = unet(3)
    made = from_diffusers(network, scheduler)
    told, signal = scheduler.timesteps[6], float(scheduler.sigmas[6])
    x = images(1, 3, 8, 8)
    noisy = signal * x
    # one step of the whole way that is left is the clean image
    wanted = noisy + (1 - signal) * network(noisy, told).sample
    assert relative_gap(made(x, (1 - signal) / signal), wanted) < 1e-5


def test_solvers_told_of_flows_read_their_shift() -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    same = from_diffusers(unet(3), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    made = from_diffusers(unet(3), scheduler)
    x = images(1, 3, 8, 8)
    assert torch.equal(made(x, 0.5), same(x, 0.5))
    assert made.sigma_range == same.sigma_range


def test_scores_of_exploding_paths_are_followed() -> None:
    network = unet(1, time_embedding_type="fourier")
    made = from_diffusers(network, diffusers.ScoreSdeVeScheduler(sigma_max=50.0))
    assert isinstance(made.path, VarianceExploding)
    x, sigma = images(1, 8, 8), 2.0
    wanted = x + sigma**2 * network(x[:, None], torch.tensor([sigma])).sample[:, 0]
    assert relative_gap(made(x, sigma), wanted) < 1e-6


def test_learned_embeddings_are_told_whole_steps() -> None:
    network = unet(1, time_embedding_type="learned", num_train_timesteps=1000)
    made = from_diffusers(network, diffusers.DDPMScheduler())
    x, a = images(1, 8, 8), diffusers.DDPMScheduler().alphas_cumprod[300]
    sigma = ((1 - a) / a).sqrt()
    output = network(a.sqrt() * x[:, None], torch.tensor([300])).sample[:, 0]
    assert relative_gap(made(x, sigma), x - sigma * output) < 1e-5
    with pytest.raises(ValueError, match="needs a path with steps"):
        from_diffusers(network, diffusers.EDMEulerScheduler())


def test_of_a_learned_variance_the_mean_is_kept() -> None:
    network = unet(3, 6)
    made = from_diffusers(network, diffusers.DDPMScheduler(variance_type="learned_range"))
    x, a = images(1, 3, 8, 8), diffusers.DDPMScheduler().alphas_cumprod[300]
    sigma = ((1 - a) / a).sqrt()
    output = network(a.sqrt() * x, 300).sample[:, :3]
    assert relative_gap(made(x, sigma), x - sigma * output) < 1e-5


def test_layouts_follow_the_channels() -> None:
    scheduler = diffusers.DDPMScheduler()
    assert [from_diffusers(unet(n), scheduler).layout for n in (1, 2, 3)] == ["channels", "real2", "native"]
    made = from_diffusers(unet(1), scheduler, layout="parts")
    assert made(images(2, 8, 8, dtype=torch.complex64), 0.5).dtype == torch.complex64
    assert from_diffusers(unet(2), scheduler)(images(2, 8, 8, dtype=torch.complex64), 0.5).shape == (2, 8, 8)


def test_classes_are_conditions() -> None:
    network, scheduler = unet(1, num_class_embeds=5), diffusers.DDPMScheduler()
    made = from_diffusers(network, scheduler, conditions={"class_labels": torch.tensor([2])})
    x, a = images(2, 8, 8), scheduler.alphas_cumprod[300]
    sigma = ((1 - a) / a).sqrt()
    output = network(a.sqrt() * x[:, None], 300, class_labels=torch.tensor([2, 2])).sample[:, 0]
    assert relative_gap(made(x, sigma), x - sigma * output) < 1e-5
    with pytest.raises(ValueError, match="the network wants classes; give conditions="):
        from_diffusers(network, scheduler)
    with pytest.raises(ValueError, match="class_labels must be whole numbers from 0 to 4"):
        from_diffusers(network, scheduler, conditions={"class_labels": torch.tensor([5])})
    with pytest.raises(ValueError, match="the network has no classes"):
        from_diffusers(unet(), scheduler, conditions={"class_labels": torch.tensor([0])})
    with pytest.raises(ValueError, match="conditions must be arguments of the network, class_labels"):
        from_diffusers(unet(), scheduler, conditions={"text": torch.zeros(1)})


def copied(pipeline: Path, folder: Path) -> Path:
    return Path(shutil.copytree(pipeline, folder / "copy"))


def test_a_pipelines_folder_loads_as_the_pipeline_itself(pipeline: Path) -> None:
    whole = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    x = images(2, 8, 8)
    made = from_diffusers(str(pipeline))
    assert not made.network.training
    assert torch.equal(made(x, 0.5), from_diffusers(whole)(x, 0.5))
    assert isinstance(made.path, DiscreteVariancePreserving)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_prediction_type_of_a_folder_is_read(pipeline: Path, tmp_path: Path, kind: str) -> None:
    folder = copied(pipeline, tmp_path)
    diffusers.DDPMScheduler(prediction_type=kind).save_pretrained(folder / "scheduler")
    wanted = from_diffusers(unet(), diffusers.DDPMScheduler(prediction_type=kind))
    x = images(2, 8, 8)
    assert torch.equal(from_diffusers(folder)(x, 0.5), wanted(x, 0.5))


def test_a_network_is_found_beside_its_scheduler_or_is_given_one(pipeline: Path, tmp_path: Path) -> None:
    x, wanted = images(1, 8, 8), from_diffusers(pipeline)(images(1, 8, 8), 0.5)
    assert torch.equal(from_diffusers(pipeline / "unet")(x, 0.5), wanted)
    bare = Path(shutil.copytree(pipeline / "unet", tmp_path / "bare"))
    with pytest.raises(FileNotFoundError, match=r"no scheduler/scheduler_config.json is there; pass scheduler"):
        from_diffusers(bare)
    config = json.loads((pipeline / "scheduler" / "scheduler_config.json").read_text())
    for scheduler in (pipeline / "scheduler", pipeline / "scheduler" / "scheduler_config.json", config):
        assert torch.equal(from_diffusers(bare, scheduler)(x, 0.5), wanted)
    shutil.copy(pipeline / "scheduler" / "scheduler_config.json", bare)
    assert torch.equal(from_diffusers(bare)(x, 0.5), wanted)
    flow = from_diffusers(pipeline, diffusers.FlowMatchEulerDiscreteScheduler())
    assert isinstance(flow.path, RectifiedFlow)


def test_a_variant_of_half_precision_is_found(tmp_path: Path) -> None:
    unet().half().save_pretrained(tmp_path / "half", variant="fp16")
    made = from_diffusers(tmp_path / "half", diffusers.DDPMScheduler())
    x = images(1, 8, 8)
    assert relative_gap(made(x, 0.5), from_diffusers(unet(), diffusers.DDPMScheduler())(x, 0.5)) < 1e-2


def test_pickled_weights_are_refused_with_the_way_out(pipeline: Path, tmp_path: Path) -> None:
    folder = copied(pipeline, tmp_path)
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="no weights are there"):
        from_diffusers(folder)
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model.bin is pickled .*invreg convert"):
        from_diffusers(folder)


def test_weights_that_do_not_fit_are_refused(pipeline: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(pipeline, tmp_path)
    weights = next((folder / "unet").glob("*.safetensors"))
    state = load_file(weights)
    save_file({("other" if k == "conv_in.bias" else k): v for k, v in state.items()}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"conv_in.bias is missing; other is unknown"):
        from_diffusers(folder)


def test_folders_of_other_kinds_are_refused(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="models are not downloaded, give a local one"):
        from_diffusers("google/ddpm-cat-256")
    with pytest.raises(FileNotFoundError, match=r"neither unet/config.json nor config.json"):
        from_diffusers(tmp_path)
    folder = copied(pipeline, tmp_path)
    place = folder / "unet" / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "_class_name": "SD3Transformer2DModel"}))
    with pytest.raises(ValueError, match="must hold a UNet2DModel, got SD3Transformer2DModel"):
        from_diffusers(folder)
    place.write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        from_diffusers(folder)


def test_without_diffusers_the_extra_is_named(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    module = sys.modules["invreg.models.from_diffusers"]  # the package's face has the function under that name
    monkeypatch.setattr(module, "importlib", SimpleNamespace(import_module=missing))
    with pytest.raises(ImportError, match=r"need diffusers, which is not installed; pip install 'invreg\[diffusers\]'"):
        from_diffusers(pipeline)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: from_diffusers(3), TypeError, "source must be a network, a pipeline with unet and scheduler"),
        (lambda: from_diffusers(unet()), TypeError, "scheduler must be given"),
        (lambda: from_diffusers(unet(), 3), TypeError, "scheduler must be an object, a config or a folder"),
        (lambda: from_diffusers(unet(), {}), ValueError, "its class under _class_name"),
        (lambda: from_diffusers(unet(), {"_class_name": "NoScheduler"}), ValueError, "got 'NoScheduler', which"),
        (lambda: from_diffusers(unet(), {"_class_name": "UNet2DModel"}), ValueError, "got 'UNet2DModel', which"),
        (lambda: from_diffusers(unet(), "nowhere"), FileNotFoundError, "no such file; a scheduler's folder"),
        (
            lambda: from_diffusers(unet(), diffusers.DDPMScheduler(prediction_type="noise")),
            ValueError,
            "prediction_type of DDPMScheduler must be one of epsilon, sample, .* got 'noise'",
        ),
        (
            lambda: from_diffusers(unet(), diffusers.EDMEulerScheduler(prediction_type="sample")),
            ValueError,
            "prediction_type of EDMEulerScheduler must be one of epsilon, v_prediction, got 'sample'",
        ),
        (lambda: from_diffusers(unet(), diffusers.LCMScheduler()), ValueError, "LCMScheduler belongs to distilled"),
        (
            lambda: from_diffusers(unet(), diffusers.CosineDPMSolverMultistepScheduler()),
            ValueError,
            "CosineDPMSolverMultistepScheduler is not known, having no alphas_cumprod",
        ),
        (lambda: from_diffusers(unet(3, 4), diffusers.DDPMScheduler()), ValueError, "got 3 in and 4 out"),
        (
            lambda: from_diffusers(unet(3), diffusers.DDPMScheduler(), layout="real2"),
            ValueError,
            'the layout "real2" needs a network of 2 channels, got 3',
        ),
        (
            lambda: from_diffusers(unet(3), diffusers.DDPMScheduler(), layout="parts"),
            ValueError,
            'the layout "parts" needs a network of 1 channels',
        ),
        (lambda: from_diffusers(unet(), diffusers.DDPMScheduler(), layout="real"), ValueError, "unknown layout 'real'"),
        (
            lambda: from_diffusers(nn.Identity(), diffusers.DDPMScheduler()),
            TypeError,
            "Identity must have in_channels in its config",
        ),
    ],
)
def test_bad_input_is_named(make: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()
