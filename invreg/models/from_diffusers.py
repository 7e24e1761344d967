"""Networks of diffusers as denoisers: their weights, and from their scheduler what they were told of noise."""

from __future__ import annotations

import importlib
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invreg._torchvision import guard_torchvision
from invreg.models.denoiser import NetworkDenoiser, Prediction
from invreg.models.noise_path import EDM, DiscreteVariancePreserving, NoisePath, RectifiedFlow, VarianceExploding

NETWORK, CONFIG, SCHEDULER = "UNet2DModel", "config.json", "scheduler_config.json"
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
PRECONDITIONED = {"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"}
DISTILLED = {"LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler", "CMStochasticIterativeScheduler"}
PREDICTIONS = {
    "epsilon": Prediction.NOISE,
    "sample": Prediction.CLEAN,
    "original_sample": Prediction.CLEAN,
    "v_prediction": Prediction.V,
}
CHANNELS = {"channels": 1, "parts": 1, "real2": 2}


def from_diffusers(
    source: nn.Module | str | os.PathLike[str] | Any,
    scheduler: Any = None,
    *,
    layout: str | None = None,
    conditions: Mapping[str, Tensor] | None = None,
) -> NetworkDenoiser:
    """A denoiser of a network of diffusers, in its own units, such as images within -1 and 1; see `Calibrated`.

    Of the scheduler only what the network was trained with counts: `alphas_cumprod` and `prediction_type`, the range
    of sigma, or the multiplier of a flow's time. Its steps, its clipping and its spacing of times are not used.
    Nothing is downloaded and nothing is unpickled.

    Args:
        source: a network such as `UNet2DModel`; an object with `unet` and `scheduler`, as pipelines are; or a local
            folder, of a pipeline (unet/ and scheduler/) or of a network beside its scheduler_config.json. A network in
            hand is used as it is: call its `eval()` first.
        scheduler: where `source` has none, or another is wanted: an object, its config with `_class_name`, or a folder.
        layout: how images relate to the network's, see `NetworkDenoiser`; default "channels" for one channel, "real2"
            for two, else "native".
        conditions: further arguments of the network by name, such as class_labels, (B,) or (1,).

    Returns:
        On the CPU in evaluation mode where it was loaded, in the dtype it was saved in or float32.

    Raises:
        ImportError: diffusers is needed and not installed.
        FileNotFoundError: a folder or a file of it is missing.
        TypeError: a source or scheduler of another kind.
        ValueError: a network, scheduler or prediction type that is not known, pickled weights, weights that do not fit,
            or channels, layout and conditions that do not go together.
    """
    network: Any
    found: Any = None
    if isinstance(source, str | os.PathLike):
        network, found = _from_folder(Path(source), scheduler is None)
    elif isinstance(source, nn.Module):
        network = source
    else:
        network, found = getattr(source, "unet", None), getattr(source, "scheduler", None)
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"source must be a network, a pipeline with unet and scheduler or a folder, got {type(source).__name__}"
        )
    scheduler = found if scheduler is None else scheduler
    if scheduler is None:
        raise TypeError(f"scheduler must be given where source has none, got a {type(source).__name__} alone")
    path, prediction, negative = _training_of(_as_scheduler(scheduler))
    layout = _check_channels(network, layout)
    conditions = dict(conditions or {})
    _check_conditions(network, conditions)
    whole = _config(network, "time_embedding_type", "positional") == "learned"
    if whole and not isinstance(path, DiscreteVariancePreserving):
        raise ValueError(f"a network with learned embeddings of whole steps needs a path with steps, got {path}")
    if negative or whole:
        network = _Adjusted(network, negative, whole)
    return NetworkDenoiser(network, path, prediction, layout, conditions)


class _Adjusted(nn.Module):
    """A network whose output has the other sign, or that takes whole steps only."""

    def __init__(self, network: nn.Module, negative: bool, whole: bool) -> None:
        super().__init__()
        self.network, self.negative, self.whole = network, negative, whole

    def forward(self, x: Tensor, time: Tensor, **conditions: Tensor) -> Tensor:
        output = self.network(x, time.round().long() if self.whole else time, **conditions)
        found: Tensor = output if isinstance(output, Tensor) else output.sample
        return -found if self.negative else found


def _training_of(scheduler: Any) -> tuple[NoisePath, Prediction, bool]:
    """The path of noise, what is predicted, and whether with the other sign."""
    name, kind = type(scheduler).__name__, str(_config(scheduler, "prediction_type", "epsilon"))
    if name in DISTILLED:
        raise ValueError(f"{name} belongs to distilled networks, whose output is no mean of clean images; use another")
    if name == "ScoreSdeVeScheduler":
        low, high = _config(scheduler, "sigma_min"), _config(scheduler, "sigma_max")
        return VarianceExploding(float(low), float(high)), Prediction.SCORE, False
    if name in PRECONDITIONED:
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(_unknown_prediction(name, kind, ("epsilon", "v_prediction")))
        data, low, high = (float(_config(scheduler, key)) for key in ("sigma_data", "sigma_min", "sigma_max"))
        return EDM(data, low, high), Prediction.EDM, kind == "v_prediction"
    if name.startswith("FlowMatch") or kind == "flow_prediction" or _config(scheduler, "use_flow_sigmas", False):
        return _flow(scheduler), Prediction.VELOCITY, False
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alphas, Tensor):
        raise ValueError(
            f"{name} is not known, having no alphas_cumprod; known are those with it, ScoreSdeVeScheduler, "
            f"FlowMatchEulerDiscreteScheduler and {', '.join(sorted(PRECONDITIONED))}"
        )
    levels = alphas.double().tolist()
    if _config(scheduler, "rescale_betas_zero_snr", False):
        levels = levels[:-1]  # no signal at all, though some schedulers write a small number
    path = DiscreteVariancePreserving(levels)
    if _config(scheduler, "timestep_type", "discrete") == "continuous":
        if kind != "v_prediction":
            raise ValueError(_unknown_prediction(f"{name} with continuous timesteps", kind, ("v_prediction",)))
        low = float(_config(scheduler, "sigma_min", None) or path.sigma_range[0])
        return EDM(1.0, low, float(_config(scheduler, "sigma_max", None) or path.sigma_range[1])), Prediction.EDM, True
    if kind not in PREDICTIONS:
        raise ValueError(_unknown_prediction(name, kind, (*PREDICTIONS, "flow_prediction")))
    return path, PREDICTIONS[kind], False


def _unknown_prediction(name: str, kind: str, known: tuple[str, ...]) -> str:
    return f"prediction_type of {name} must be one of {', '.join(known)}, got {kind!r}"


def _flow(scheduler: Any) -> RectifiedFlow:
    """Times from one step to all but one of those that were trained, as the scheduler shifts them."""
    steps = int(_config(scheduler, "num_train_timesteps", 1000))
    shift = float(_config(scheduler, "shift", None) or _config(scheduler, "flow_shift", None) or 1.0)
    if _config(scheduler, "use_dynamic_shifting", False):
        shift = 1.0  # it depends on the size of the image, and what the network is told does not depend on it
    first, last = (shift * t / (1 + (shift - 1) * t) for t in (1 / steps, 1 - 1 / steps))
    return RectifiedFlow(first, last, multiplier=float(steps), reverse=bool(_config(scheduler, "invert_sigmas", False)))


_REQUIRED = object()


def _config(owner: Any, key: str, default: Any = _REQUIRED) -> Any:
    """An entry of the config of a network or scheduler."""
    config = getattr(owner, "config", None)
    found = config.get(key, default) if isinstance(config, Mapping) else getattr(config, key, default)
    if found is _REQUIRED:
        raise TypeError(f"{type(owner).__name__} must have {key} in its config, as objects of diffusers do")
    return found


def _check_channels(network: nn.Module, layout: str | None) -> str:
    """The layout, if network and layout go together."""
    inputs, outputs = int(_config(network, "in_channels")), int(_config(network, "out_channels"))
    if outputs not in (inputs, 2 * inputs):
        raise ValueError(
            f"network must have as many channels out as in, or twice as many (a learned variance), got {inputs} in and "
            f"{outputs} out"
        )
    if layout is None:
        return {1: "channels", 2: "real2"}.get(inputs, "native")
    wanted = CHANNELS.get(layout, inputs)
    if inputs != wanted:
        raise ValueError(f'the layout "{layout}" needs a network of {wanted} channels, got {inputs}')
    return layout


def _check_conditions(network: nn.Module, conditions: Mapping[str, Any]) -> None:
    parameters = inspect.signature(network.forward).parameters
    open_ended = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    known = list(parameters)[2:]
    for name in conditions:
        if name not in known and not open_ended:
            raise ValueError(f"conditions must be arguments of the network, {', '.join(known)}, got {name!r}")
    if isinstance(getattr(network, "class_embedding", None), nn.Module) != ("class_labels" in conditions):
        if "class_labels" not in conditions:
            raise ValueError(
                "the network wants classes; give conditions={'class_labels': torch.tensor([k])} for class k"
            )
        if hasattr(network, "class_embedding"):
            raise ValueError("the network has no classes; leave class_labels out of conditions")
    embedding, labels = getattr(network, "class_embedding", None), conditions.get("class_labels")
    if isinstance(embedding, nn.Embedding) and isinstance(labels, Tensor):
        count = embedding.num_embeddings
        if labels.dtype not in (torch.int64, torch.int32) or not bool(((labels >= 0) & (labels < count)).all()):
            raise ValueError(f"class_labels must be whole numbers from 0 to {count - 1}, got {labels}")


def _diffusers() -> Any:
    guard_torchvision()
    try:
        return importlib.import_module("diffusers")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"networks of diffusers need {error.name}, which is not installed; pip install 'invreg[diffusers]'",
            name=error.name,
        ) from error


def _as_scheduler(given: Any) -> Any:
    """An object, from itself, its config or its folder."""
    if isinstance(given, str | os.PathLike):
        folder = Path(given)
        place = folder / SCHEDULER if folder.is_dir() else folder
        if not place.is_file():
            raise FileNotFoundError(f"{place}: no such file; a scheduler's folder holds {SCHEDULER}")
        given = _read(place)
    if isinstance(given, Mapping):
        name = given.get("_class_name")
        if not isinstance(name, str):
            raise ValueError("scheduler must say its class under _class_name, as scheduler_config.json does")
        kind = getattr(_diffusers(), name, None) if name.endswith("Scheduler") else None
        if kind is None:
            raise ValueError(f"scheduler must be of a class of diffusers, got {name!r}, which the installed one lacks")
        return kind.from_config(dict(given))
    if getattr(given, "config", None) is None:
        raise TypeError(f"scheduler must be an object, a config or a folder of diffusers, got {type(given).__name__}")
    return given


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(found).__name__}")
    return found


def _from_folder(folder: Path, with_scheduler: bool) -> tuple[nn.Module, Path | None]:
    """The network of a folder and the file of its scheduler."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; models are not downloaded, give a local one")
    place = next((one for one in (folder / "unet", folder) if (one / CONFIG).is_file()), None)
    if place is None:
        raise FileNotFoundError(f"{folder}: neither unet/{CONFIG} nor {CONFIG} is there; give a pipeline or a network")
    kind = _read(place / CONFIG).get("_class_name")
    if kind != NETWORK:
        raise ValueError(f"{place} must hold a {NETWORK}, got {kind}; load others yourself and pass the network")
    around = [folder / "scheduler" / SCHEDULER, folder / SCHEDULER]
    around += [folder.parent / "scheduler" / SCHEDULER] if folder.name == "unet" else []
    scheduler = next((one for one in around if one.is_file()), None)
    if scheduler is None and with_scheduler:
        raise FileNotFoundError(f"{folder}: no scheduler/{SCHEDULER} is there; pass scheduler")
    return _load(place), scheduler


def _load(folder: Path) -> nn.Module:
    files = sorted(one.name for one in folder.iterdir())
    stem = "diffusion_pytorch_model"
    safe = [one for one in files if one.endswith((".safetensors", ".safetensors.index.json"))]
    if not safe:
        pickled = [one for one in files if Path(one).suffix in PICKLED]
        if pickled:
            raise ValueError(
                f"{folder / pickled[0]} is pickled and could run code, so it is not loaded; write its weights anew "
                f"with invreg convert {pickled[0]} {stem}.safetensors"
            )
        raise FileNotFoundError(f"{folder}: no weights are there; wanted {stem}.safetensors")
    plain = any(one in (f"{stem}.safetensors", f"{stem}.safetensors.index.json") for one in safe)
    variants = {one.split(".")[1] for one in safe if one.startswith(f"{stem}.")} - {"safetensors"}
    network, report = getattr(_diffusers(), NETWORK).from_pretrained(
        os.fspath(folder),
        local_files_only=True,
        use_safetensors=True,
        low_cpu_mem_usage=False,
        variant=None if plain or not variants else min(variants),
        output_loading_info=True,
    )
    # diffusers leaves weights that are missing at random, and only logs it
    wrong = [f"{name} is missing" for name in report["missing_keys"]]
    wrong += [f"{name} is unknown" for name in report["unexpected_keys"]]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"the weights in {folder} do not fit its {CONFIG}: {'; '.join(wrong[:3])}{more}")
    found: nn.Module = network
    return found.eval()
