"""Trained priors by what users write: those that ship with the package by name, others by their folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from typing import Any

from invreg._check import require_positive, unknown_name
from invreg.config.names import SAVED
from invreg.config.spec import Spec, choose
from invreg.interfaces import ConvexPotential, Denoiser
from invreg.models import from_diffusers, pretrained

SHIPPED: Mapping[str, str] = {
    "brain": "a diffusion model of complex brain MR images of any contrast",
    "brain-lpn": "a learned proximal network of brain MR images of any contrast",
    "head-ct": "a diffusion model of head CT images, in units of the attenuation of water",
}
"""What there is, in a line each; beside the folder of each in invreg/assets lies its card, NAME-prior.md."""

PRIORS: Mapping[str, str] = {
    **SHIPPED,
    "diffusers": "diffusers:folder=PATH, a local folder of diffusers",
    "model": "model:folder=PATH, a folder of save_pretrained",
}
"""What `learned_prior` reads."""

_OPTIONS = {"diffusers": ("folder", "layout", "offset", "scale"), "model": ("folder", "offset", "scale", "sigma")}


@dataclass(frozen=True, eq=False)
class LearnedPrior:
    """A denoiser or a learned proximal network, and what is known of it.

    Args:
        model: on the CPU, in evaluation mode, in its own units.
        info: its card: range of values, pixel sizes, how it was trained; empty where there is none.
        scale, offset: an image is scale * (one as the denoiser knows it) + offset.
        water: whether these images are attenuation over that of water; else they are of values 0 to 1.
        sigma: noise level that a learned proximal network was trained at, in its units; of denoisers None.
    """

    model: Denoiser | ConvexPotential
    info: Mapping[str, Any]
    scale: float
    offset: float
    water: bool
    sigma: float | None


def learned_prior(spec: Spec) -> LearnedPrior:
    """A trained model from what `NAME[:key=value,...]` says, NAME one of `PRIORS`.

    The options scale and offset win over what the card says under these words, and over its units, "water" for images
    of attenuation over that of water. Where neither says anything, networks of diffusers are taken to see images within
    -1 and 1, others within 0 and 1.

    Raises:
        FileNotFoundError, ImportError: a folder or a file of it is missing, or diffusers is.
        TypeError, ValueError: an unknown name or option, a folder of another kind, a model that is neither denoiser nor
            convex potential, or one of these without the noise level that it was trained at.
    """
    choose("prior", spec.name, PRIORS)
    known = _OPTIONS.get(spec.name, ("offset", "scale"))
    for key in spec.options:
        if key not in known:
            raise ValueError(unknown_name(f"option of {spec.name}", key, known))
    model, info = _read(spec)
    usual = {"scale": 0.5, "offset": 0.5} if spec.name == "diffusers" else {"scale": 1.0, "offset": 0.0}
    said = {**usual, **{key: one for key, one in info.items() if key in usual}, **spec.options}
    water = info.get("units") == "water" and not usual.keys() & spec.options.keys()
    sigma = _level(spec, model, info)
    return LearnedPrior(model, info, _number("scale", said), _number("offset", said), water, sigma)


def _level(spec: Spec, model: Denoiser | ConvexPotential, info: Mapping[str, Any]) -> float | None:
    """The noise level of a learned proximal network, of the card or the option."""
    if isinstance(model, Denoiser):
        if "sigma" in spec.options:
            raise ValueError(f"sigma of a prior goes with learned proximal networks, got a {type(model).__name__}")
        return None
    said = {**info, **spec.options}
    if "sigma" not in said:
        raise ValueError(f"{spec.name} needs the noise level that it was trained at; add sigma=NUMBER to it")
    require_positive("sigma of a prior", _number("sigma", said))
    return _number("sigma", said)


def _read(spec: Spec) -> tuple[Denoiser | ConvexPotential, Mapping[str, Any]]:
    if spec.name in SHIPPED:
        return _shipped(spec.name), shipped_info(spec.name)
    folder = spec.options.get("folder")
    if not isinstance(folder, str):
        raise TypeError(f"{spec.name} needs folder, a path; write {spec.name}:folder=./NAME")
    if spec.name == "diffusers":
        layout = spec.options.get("layout")
        return from_diffusers(folder, layout=None if layout is None else str(layout)), {}
    model = pretrained.from_pretrained(folder, SAVED)
    if not isinstance(model, Denoiser | ConvexPotential):
        raise ValueError(
            f"{folder} must hold a denoiser or a learned proximal network, got {type(model).__name__}; it is no prior "
            "of images"
        )
    return model, pretrained.info_of(folder)


def _number(key: str, options: Mapping[str, Any]) -> float:
    value = options[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{key} of a prior must be a number, got {value!r}")
    return float(value)


def shipped_prior(name: str) -> Denoiser:
    """A diffusion model of `SHIPPED`, on the CPU, in evaluation mode; for demonstration, not for diagnosis.

    Raises:
        TypeError: it is a learned proximal network. ValueError: an unknown name.
    """
    model = _shipped(name)
    if not isinstance(model, Denoiser):
        raise TypeError(f"{name} is no denoiser but a learned proximal network; use shipped_potential")
    return model


def shipped_potential(name: str) -> ConvexPotential:
    """A learned proximal network of `SHIPPED`, for `LearnedProximal` at the step sigma^2 of its card.

    Raises:
        TypeError: it is a denoiser. ValueError: an unknown name.
    """
    model = _shipped(name)
    if not isinstance(model, ConvexPotential):
        raise TypeError(f"{name} is no learned proximal network but a denoiser; use shipped_prior")
    return model


def _shipped(name: str) -> Denoiser | ConvexPotential:
    with as_file(files("invreg.assets") / _folder(name)) as folder:
        model = pretrained.from_pretrained(folder, SAVED)
    assert isinstance(model, Denoiser | ConvexPotential)
    return model


def shipped_info(name: str) -> Mapping[str, Any]:
    """What its card says in numbers: range of values, pixel sizes, noise levels, data, how it was trained."""
    with as_file(files("invreg.assets") / _folder(name)) as folder:
        return pretrained.info_of(folder)


@cache
def _folder(name: str) -> str:
    if name not in SHIPPED:
        raise ValueError(unknown_name("prior", name, SHIPPED))
    return f"{name}-prior"
