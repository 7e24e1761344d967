"""Trained priors that ship with the package, by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import as_file, files
from typing import Any

from invreg._check import unknown_name
from invreg.config.build import from_pretrained
from invreg.interfaces import Denoiser
from invreg.models.pretrained import info_of

SHIPPED: Mapping[str, str] = {"brain": "a diffusion model of complex brain MR images of any contrast"}
"""What there is, in a line each; the folder of each in invreg/assets holds its card."""


def shipped_prior(name: str) -> Denoiser:
    """A prior of `SHIPPED`, on the CPU, in evaluation mode; for demonstration, not for diagnosis.

    Raises:
        ValueError: an unknown name.
    """
    with as_file(files("invreg.assets") / _folder(name)) as folder:
        model = from_pretrained(folder)
    assert isinstance(model, Denoiser)
    return model


def shipped_info(name: str) -> Mapping[str, Any]:
    """What its card says in numbers: range of values, pixel sizes, noise levels, data, how it was trained."""
    with as_file(files("invreg.assets") / _folder(name)) as folder:
        return info_of(folder)


@cache
def _folder(name: str) -> str:
    if name not in SHIPPED:
        raise ValueError(unknown_name("prior", name, SHIPPED))
    return f"{name.replace('-', '_')}_prior"
