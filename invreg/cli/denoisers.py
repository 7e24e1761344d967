"""`--prior` of learned priors: a denoiser, or a proximal network, that takes the images of a scan, in their units."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invreg import config
from invreg.cli.pipeline import Scan, reference_slice
from invreg.cli.report import one_line
from invreg.interfaces import ConvexPotential, Denoiser
from invreg.models import Calibrated, ComplexPotential, InputConvexNetwork, NetworkDenoiser, Slices

SLICES_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class Fitted:
    """A learned prior for the images of a scan.

    Args:
        model: a denoiser of images as the scan's operators take them, in scaled units, on the scan's device; or a
            convex potential of these over `scale`.
        pixel_sizes: the least and the largest pixel that it has seen, mm; None if unknown.
        about: plain words and numbers for the sidecar.
        scale: of a potential, as of `LearnedProximal`.
        sigma: noise level that a potential was trained at, in scaled units.
        size: how large the images are, in scaled units: of attenuation, that of water.
    """

    model: Denoiser | ConvexPotential
    pixel_sizes: tuple[float, float] | None
    about: Mapping[str, Any]
    scale: float = 1.0
    sigma: float | None = None
    size: float = 1.0


def is_learned(text: str | None) -> bool:
    """Whether `--prior` names a learned one."""
    return text is not None and config.parse(text).name in config.PRIORS


def fitted(found: config.LearnedPrior, text: str, scan: Scan) -> Fitted:
    """What `--prior` has for a scan.

    Args:
        found: what was read.
        text: what the user calls it.
        scan: the measurement.

    Raises:
        TypeError, ValueError: the network is for images of another kind.
    """
    like = _image_like(scan)
    if not isinstance(found.model, Denoiser):
        return _fitted_potential(found, found.model, text, scan, like)
    denoiser = _of_kind(found.model, text, like.is_complex())
    scale, offset = _of_water(found, text, scan) if found.water else _of_size(found, denoiser, scan, like)
    if (scale, offset) != (1.0, 0.0):
        denoiser = Calibrated(denoiser, scale, offset)
    denoiser = denoiser.to(scan.device).requires_grad_(False)
    _try(denoiser, text, like)
    for _ in like.shape[3:]:  # slices of a volume, and map sets, are images of their own
        denoiser = Slices(denoiser, axis=1, batch=SLICES_AT_ONCE)
    return Fitted(
        denoiser,
        _pixel_sizes(found.info),
        {
            "prior": text,
            "prior weights": fingerprint(denoiser),
            "prior range": f"image = {scale:g} x the network's" + (f" + {offset:g}" if offset else ""),
        },
        size=scale / found.scale if found.water else _size(scan, like),
    )


def _fitted_potential(
    found: config.LearnedPrior, potential: ConvexPotential, text: str, scan: Scan, like: Tensor
) -> Fitted:
    """A learned proximal network; of complex images it takes both parts one by one."""
    if like.ndim != 3:
        raise ValueError(
            f"prior {text} takes images (y, x), but those of this scan are {tuple(like.shape[1:])}; take a denoiser, "
            "such as --prior brain"
        )
    if scan.kind == "ct" and text in config.SHIPPED:
        raise ValueError(f"prior {text} is for brain MR images, got a sinogram; take --prior head-ct")
    scale, offset = _of_water(found, text, scan) if found.water else _of_size(found, None, scan, like)
    if offset != 0:
        raise ValueError(f"offset of a learned proximal network must be 0, got {offset:g} for prior {text}")
    model: Any = ComplexPotential(potential) if like.is_complex() else potential
    model = model.to(scan.device).requires_grad_(False)
    try:
        model.gradient(like)
    except Exception as error:  # a network raises anything
        raise ValueError(f"prior {text} does not take images of {tuple(like.shape[1:])}: {one_line(error)}") from error
    assert found.sigma is not None
    about = {
        "prior": text,
        "prior weights": fingerprint(model),
        "prior range": f"image = {scale:g} x the network's, trained at noise {found.sigma * scale:g}",
    }
    return Fitted(model, _pixel_sizes(found.info), about, scale, found.sigma * scale)


def _image_like(scan: Scan) -> Tensor:
    """Zeros shaped as a slice's image, (1, *signal)."""
    index = reference_slice(scan)
    return torch.zeros_like(scan.operator(index).adjoint(scan.y(index)))


def _of_water(found: config.LearnedPrior, text: str, scan: Scan) -> tuple[float, float]:
    """Scale and offset of `Calibrated` for a prior of attenuation over that of water."""
    water = scan.water()
    if water is None:
        reason = {
            "mri": "those of k-space are not; take --prior brain",
            "ct": "without a detector pitch those of this sinogram are not; write parallel-beam:detector_pitch=MM",
            "image": "this one has no HU; convert it to a format that keeps them, such as DICOM or .npz",
        }[scan.kind]
        raise ValueError(f"prior {text} is for images of attenuation over that of water, but {reason}")
    return water[0] * found.scale, water[0] * found.offset + water[1]


def _of_size(found: config.LearnedPrior, denoiser: Denoiser | None, scan: Scan, like: Tensor) -> tuple[float, float]:
    """Scale and offset of `Calibrated` for a prior of images of magnitude 0 to 1."""
    size = _size(scan, like)
    scale, offset = _units(found, denoiser)
    return size * scale, size * offset


def _size(scan: Scan, like: Tensor) -> float:
    """How large the images are, in scaled units: about 1, but for operators that average pixels."""
    if scan.kind != "image":
        return 1.0
    return 1 / float(scan.operator(reference_slice(scan)).normal(torch.ones_like(like)).abs().max())


def _of_kind(denoiser: Denoiser, text: str, wants_complex: bool) -> Denoiser:
    """The denoiser for real or for complex images; that of real ones may take both parts of a complex one."""
    network = _network(denoiser)
    if network is None:  # of a kind that does not say; the trial will
        return denoiser
    if network.layout == "native":
        raise ValueError(f"prior {text} is for images with channels; wanted one of a layout for images (y, x)")
    is_complex = network.layout in ("real2", "parts")
    if is_complex == wants_complex:
        return denoiser
    if is_complex:
        raise ValueError(
            f"prior {text} is for complex images, such as those of k-space, but the images of this scan are real; "
            "take --prior head-ct for a sinogram, one with a layout for real images, or --prior tv"
        )
    if denoiser is not network:
        raise ValueError(
            f"prior {text} is for real images, but those of this scan are complex; take one for complex images, save "
            "the NetworkDenoiser without its wrappers, or use --prior wavelet"
        )
    conditions = {name: network.get_buffer(f"condition_{name}") for name in network.conditions}
    return NetworkDenoiser(network.network, network.path, network.prediction, "parts", conditions)


def _network(denoiser: Any) -> NetworkDenoiser | None:
    """The innermost denoiser, if it is a network's."""
    inner: Any = denoiser
    while not isinstance(inner, NetworkDenoiser) and isinstance(getattr(inner, "denoiser", None), Denoiser):
        inner = inner.denoiser
    return inner if isinstance(inner, NetworkDenoiser) else None


def _units(found: config.LearnedPrior, denoiser: Denoiser | None) -> tuple[float, float]:
    """Scale and offset of `Calibrated`, for images of magnitude 0 to 1.

    The parts of a complex image have either sign, so that 0 must stay 0 there; the largest value stays what it is.
    """
    network = _network(denoiser)
    if network is not None and network.layout in ("real2", "parts"):
        return found.scale + found.offset, 0.0
    return found.scale, found.offset


def _try(denoiser: Denoiser, text: str, like: Tensor) -> None:
    """Denoise an image of zeros, so that what does not go together is said before the work."""
    one = like[(0,) * (like.ndim - 2)][None]
    try:
        with torch.no_grad():
            shape = denoiser(one, max(0.1, denoiser.sigma_range[0])).shape
    except Exception as error:  # a network raises anything
        raise ValueError(f"prior {text} does not take images of {tuple(one.shape[1:])}: {one_line(error)}") from error
    if shape != one.shape:
        raise ValueError(f"prior {text} must give {tuple(one.shape)} back, got {tuple(shape)}; is it a denoiser?")


def _pixel_sizes(info: Mapping[str, Any]) -> tuple[float, float] | None:
    known = info.get("pixel size (mm)")
    if not isinstance(known, tuple | list) or len(known) != 2:
        return None
    return float(known[0]), float(known[1])


def fingerprint(model: Any) -> str:
    """SHA-256 of the weights, their names, and what is made of the network's output, the first 16 digits."""
    total = hashlib.sha256()
    network = _network(model)
    for part in model.modules():
        if isinstance(part, InputConvexNetwork):
            total.update(f"{type(part).__name__} {dict(part.config)}".encode())
    if network is not None:
        path = f"{type(network.path).__name__} {dict(network.path.config)}"
        total.update(f"{path} {network.prediction.value} {network.layout}".encode())
    for name, value in sorted(model.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        plain = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        total.update(plain.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]
