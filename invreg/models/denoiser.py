"""A network as a denoiser, whatever it was trained to predict."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import torch
from torch import Tensor, nn

from invreg._channels import to_channels, to_plain
from invreg._check import unknown_name
from invreg.interfaces import Denoiser
from invreg.linalg import expand
from invreg.models.noise_path import EDM, NoisePath, RectifiedFlow, VarianceExploding


class Prediction(StrEnum):
    """What a network's output is, where it saw x_t = a x0 + b n with b = a sigma."""

    NOISE = "noise"
    """n."""
    CLEAN = "clean"
    """x0."""
    V = "v"
    """a n - b x0, for a^2 + b^2 = 1."""
    SCORE = "score"
    """The gradient of log p in x_t."""
    VELOCITY = "velocity"
    """n - x0, for a + b = 1 (its negative where the path is reversed)."""
    EDM = "edm"
    """What is left of x0 once its best linear guess is taken away, of unit variance."""


LAYOUTS = ("native", "channels", "real2", "parts")


class NetworkDenoiser(Denoiser):
    """E[x0 | x0 + sigma n = x] by a network: the input is scaled and the output turned into x0, as they were trained.

    Beyond the noise levels of the path the network is told the nearest of them, so that sigma = 0 is well defined. It
    computes in its own precision, half too; what surrounds it is in that of x, but at least in single precision, as
    half has no room for sigma^2. The result has the dtype of x.

    Args:
        network: (x, time) -> output, (B, C, y, x) and (B,) -> (B, C, y, x); an object with `sample`, as networks of
            diffusers give it, will do. With 2 C channels (a learned variance), the first half counts.
        path: what the network sees of x at a noise level.
        prediction: what the output is.
        layout: how images relate to the network's.
            "native": they are the same.
            "channels": images are (B, y, x), the network has one channel.
            "real2": images are complex, (B, y, x), real and imaginary part are the network's two channels.
            "parts": images are complex, and a network of one channel denoises real and imaginary part on their own.
        conditions: further arguments of the network by name, such as class_labels, (B, ...) or (1, ...).

    Raises:
        TypeError: an argument of the wrong kind; on call, real images where complex ones are wanted, or the reverse.
        ValueError: an unknown prediction or layout, or one that does not go with the path; on call, images that the
            network cannot take.

    Source: Karras et al. 2022, eq. 7, for the common form skip * x + out * network(scale * x, time).
    """

    def __init__(
        self,
        network: nn.Module,
        path: NoisePath,
        prediction: Prediction | str = Prediction.NOISE,
        layout: str = "native",
        conditions: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a module, got {type(network).__name__}")
        if not isinstance(path, NoisePath):
            raise TypeError(f"path must be a NoisePath such as EDM(), got {type(path).__name__}")
        kinds = [one.value for one in Prediction]
        if prediction not in kinds:
            raise ValueError(unknown_name("prediction", str(prediction), kinds))
        if layout not in LAYOUTS:
            raise ValueError(unknown_name("layout", layout, LAYOUTS))
        self.network, self.path, self.prediction, self.layout = network, path, Prediction(prediction), layout
        if (self.prediction is Prediction.EDM) != isinstance(path, EDM):
            raise ValueError(f'prediction "edm" and the path EDM go together, got {prediction!r} and {path}')
        if (self.prediction is Prediction.VELOCITY) != isinstance(path, RectifiedFlow):
            raise ValueError(
                f'prediction "velocity" and the path RectifiedFlow go together, got {prediction!r} and {path}'
            )
        if self.prediction is Prediction.V and isinstance(path, VarianceExploding):
            raise ValueError(f'prediction "v" needs a path with a^2 + b^2 = 1, such as VariancePreserving, got {path}')
        self.conditions = tuple(conditions or {})
        for name, value in (conditions or {}).items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                raise TypeError(f"conditions[{name!r}] must be a tensor, (1, ...) or (B, ...), got {value!r}")
            self.register_buffer(f"condition_{name}", value)

    @property
    def config(self) -> Mapping[str, object]:
        """The constructor's arguments, for `save_pretrained`."""
        if self.conditions:
            raise TypeError("a denoiser with conditions cannot be saved; save it without and give them again")
        return {
            "network": self.network,
            "path": self.path,
            "prediction": self.prediction.value,
            "layout": self.layout,
        }

    @property
    def sigma_range(self) -> tuple[float, float]:
        return self.path.sigma_range

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        images = self._to_network(x)
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        level = torch.as_tensor(sigma, dtype=images.dtype, device=images.device).reshape(-1)
        if level.numel() not in (1, x.shape[0]):
            raise ValueError(f"sigma must be () or ({x.shape[0]},), got {tuple(level.shape)}")
        level = level.repeat(images.shape[0] // level.numel())
        scale = self.path.scale(level)
        output = self._call(expand(scale, images) * images, self.path.time(level.clamp(*self.sigma_range)))
        skip, out = self._weights(level, scale)
        clean = torch.addcmul(expand(skip, images) * images, expand(out, images), output)
        return self._from_network(clean, x).to(x.dtype)

    def _weights(self, sigma: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """(skip, out) with x0 = skip * x + out * output."""
        match self.prediction:
            case Prediction.NOISE:
                return torch.ones_like(sigma), -sigma
            case Prediction.CLEAN:
                return torch.zeros_like(sigma), torch.ones_like(sigma)
            case Prediction.V:
                return scale**2, -scale * sigma
            case Prediction.SCORE:
                return torch.ones_like(sigma), scale * sigma**2
            case Prediction.VELOCITY:
                assert isinstance(self.path, RectifiedFlow)
                return scale, scale * sigma * (1 if self.path.reverse else -1)
            case Prediction.EDM:
                assert isinstance(self.path, EDM)
                data = self.path.sigma_data
                return (data * scale) ** 2, data * sigma * scale

    def _call(self, x: Tensor, time: Tensor) -> Tensor:
        own = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), x.dtype)
        # times to 1000 need more digits than half precision has
        told = time.to(own if own in (torch.float32, torch.float64) else torch.float32)
        output = self.network(x.to(own), told, **self._conditions(x.shape[0]))
        found: Tensor = output if isinstance(output, Tensor) else output.sample
        if found.ndim == x.ndim and found.shape[1] == 2 * x.shape[1]:
            found = found[:, : x.shape[1]]
        if found.shape != x.shape:
            raise ValueError(f"network must give {tuple(x.shape)} back, got {tuple(found.shape)}")
        return found.to(x.dtype)

    def _conditions(self, images: int) -> dict[str, Tensor]:
        """Each condition for so many images, twice as many as x has in the layout "parts"."""
        found = {}
        for name in self.conditions:
            value = self.get_buffer(f"condition_{name}")
            copies = 2 if self.layout == "parts" else 1
            if value.shape[0] not in (1, images // copies):
                raise ValueError(
                    f"conditions[{name!r}] must be (1, ...) or ({images // copies}, ...) as x is, "
                    f"got {tuple(value.shape)}"
                )
            found[name] = torch.cat([value.expand(images // copies, *value.shape[1:])] * copies)
        return found

    def _to_network(self, x: Tensor) -> Tensor:
        wants_complex = self.layout in ("real2", "parts")
        if x.is_complex() != wants_complex:
            hint = "; use x.real, or a layout for complex images" if x.is_complex() else "; use x.to(torch.complex64)"
            wanted = "complex" if wants_complex else "real"
            raise TypeError(f'x must be {wanted} in the layout "{self.layout}", got {x.dtype}{hint}')
        wanted_axes = 4 if self.layout == "native" else 3
        if x.ndim != wanted_axes:
            shape = "(B, C, y, x)" if self.layout == "native" else "(B, y, x)"
            raise ValueError(f'x must be {shape} in the layout "{self.layout}", got {tuple(x.shape)}')
        if self.layout == "parts":
            return torch.cat([x.real, x.imag])[:, None]
        return to_channels(x.resolve_conj(), self.layout, x.shape[0])

    def _from_network(self, images: Tensor, x: Tensor) -> Tensor:
        if self.layout == "parts":
            return torch.complex(*images[:, 0].chunk(2))
        return to_plain(images, self.layout).reshape(x.shape)
