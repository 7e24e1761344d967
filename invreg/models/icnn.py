"""Input-convex networks: scalar functions psi(x), convex in x, whose gradients are exact proximal maps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, softplus

from invreg._check import require_count, require_positive
from invreg.interfaces import ConvexPotential

LINEAR_FROM = 40.0
"""beta * x from which softplus is the identity to all digits of double precision."""


class InputConvexNetwork(nn.Module, ABC):
    """psi(x) = sum_k <w_k, z_k> + strong_convexity / 2 |x|^2, where z_k = s(W_k z_(k-1) + H_k x + b_k), z_0 = 0.

    Softplus s is convex and rises, so psi is convex in x where w_k and W_k hold no negative entry; H_k is free. The
    gradient of a convex function is the proximal map of some penalty, convex or not, and with strong_convexity > 0 a
    bijection of the signals, so that the penalty can be computed.

    Negative entries of w_k and W_k count as zero wherever they are used: psi is convex at every moment, after the last
    step of an optimizer and in a running mean of weights as well. Such an entry gets no gradient, so training must
    call `clamp_weights` between its steps; this is projected descent. (After 300 steps on images with noise of 0.1 it
    reached 25.9 dB, weights exp(v) and softplus(v) 24.6 dB; in one dimension the three are equal.)

    The network called is its gradient.

    Source: Amos, Xu and Kolter 2017, "Input convex neural networks", for z_k; Fang, Buchanan and Sulam 2024, "What's in
    a prior? Learned proximal networks for inverse problems", sec. 3, with every layer, not the last alone, in the sum,
    and the quadratic of modulus strong_convexity as in the paper; the authors' code has twice that.
    """

    lifts: nn.ModuleList
    mixes: nn.ParameterList
    outs: nn.ParameterList

    def __init__(self, beta: float, strong_convexity: float) -> None:
        super().__init__()
        require_positive("beta", beta)
        require_positive("strong_convexity", strong_convexity, zero_allowed=True)
        self.beta, self._strong_convexity = beta, strong_convexity

    @property
    def strong_convexity(self) -> float:
        """The modulus m: psi - m / 2 |x|^2 is convex, too."""
        return self._strong_convexity

    @property
    @abstractmethod
    def config(self) -> Mapping[str, object]:
        """The constructor's arguments, for `save_pretrained`."""

    @abstractmethod
    def convex_part(self, x: Tensor) -> Tensor:
        """Psi without the quadratic, (B,); raises TypeError or ValueError for a signal that does not fit."""

    def nonnegative(self) -> list[nn.Parameter]:
        """The weights that must not be negative."""
        return [*self.mixes.parameters(), *self.outs.parameters()]

    def value(self, x: Tensor) -> Tensor:
        """psi(x), (B,)."""
        return self.convex_part(x) + self._strong_convexity / 2 * x.square().flatten(1).sum(1)

    def gradient(self, x: Tensor) -> Tensor:
        """The gradient of psi, shaped as x, by automatic differentiation.

        It has a graph, for gradients in x and in the weights, where gradients are enabled and x or a weight requires
        one: freeze the network by `requires_grad_(False)`, or work within `torch.no_grad()`, to spare its memory.
        """
        differentiable = torch.is_grad_enabled() and (
            x.requires_grad or any(one.requires_grad for one in self.parameters())
        )
        with torch.enable_grad():
            point = x if differentiable and x.requires_grad else x.detach().requires_grad_()
            total = self.convex_part(point).sum()
            (gradient,) = torch.autograd.grad(total, point, create_graph=differentiable)
        return gradient + self._strong_convexity * x

    def forward(self, x: Tensor) -> Tensor:
        return self.gradient(x)

    @torch.no_grad()
    def clamp_weights(self) -> None:
        """Set negative entries of the weights that must not be negative to zero; psi stays as it is."""
        for weight in self.nonnegative():
            weight.clamp_(min=0)

    def _activation(self, x: Tensor) -> Tensor:
        return softplus(x, self.beta, LINEAR_FROM)


def _without_negative(weight: Tensor) -> Tensor:
    """Zero in place of negative entries; unlike clamp_min of torch 2.15, with a gradient for those that are zero."""
    return torch.where(weight >= 0, weight, 0)


class ConvexMLP(InputConvexNetwork):
    """A fully connected input-convex network of vectors, (B, features).

    Args:
        features: length of the signals.
        hidden: units of each layer.
        layers: how many.
        beta: sharpness of softplus, log(1 + exp(beta x)) / beta.
        strong_convexity: modulus of the quadratic, >= 0; it bounds the slope of the proximal map from below.

    Raises:
        TypeError, ValueError: an argument out of its range; on call, signals that are complex or of another shape.

    Source: as of `InputConvexNetwork`, whose 1-d example has four layers; two reach the same error here.
    """

    def __init__(
        self, features: int, hidden: int = 50, layers: int = 2, beta: float = 10.0, strong_convexity: float = 0.01
    ) -> None:
        super().__init__(beta, strong_convexity)
        for name, value in (("features", features), ("hidden", hidden), ("layers", layers)):
            require_count(name, value)
        self.features, self.hidden = features, hidden
        self.lifts = nn.ModuleList(nn.Linear(features, hidden) for _ in range(layers))
        self.mixes = nn.ParameterList(_nonnegative(hidden, hidden) for _ in range(layers - 1))
        self.outs = nn.ParameterList(_nonnegative(hidden) for _ in range(layers))

    @property
    def config(self) -> Mapping[str, object]:
        return {
            "features": self.features,
            "hidden": self.hidden,
            "layers": len(self.lifts),
            "beta": self.beta,
            "strong_convexity": self.strong_convexity,
        }

    def convex_part(self, x: Tensor) -> Tensor:
        _require_real(x)
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"x must be (B, {self.features}), got {tuple(x.shape)}")
        z = self._activation(self.lifts[0](x))
        total: Tensor = z @ _without_negative(self.outs[0])
        for lift, mix, out in zip(self.lifts[1:], self.mixes, self.outs[1:], strict=True):
            z = self._activation(linear(z, _without_negative(mix)) + lift(x))
            total = total + z @ _without_negative(out)
        return total


class ConvexCNN(InputConvexNetwork):
    """A convolutional input-convex network of images, (B, y, x) with one channel or (B, channels, y, x), of any size.

    psi is the sum, not a mean, over all pixels of one convex function of the pixel's surroundings, a square of
    2 * radius + 1 pixels. A sum of convex functions of linear images of x is convex, so its gradient is a proximal map
    whatever the size, borders included; and since nothing is divided by a count of pixels or of overlapping patches,
    a pixel further than 2 * radius from the borders is denoised alike in an image of any size: what was trained on
    patches holds for whole images.

    Beyond its borders the image goes on as its mirror image, the edge repeated: the extension is linear, so nothing
    above is lost, and a pixel near the border is in as many squares as one inside, counting its mirrored self. Layers
    are computed on the extended image without padding of their own.

    Args:
        channels: of the images.
        hidden: channels of each layer.
        layers: how many.
        kernel: side of the convolutions, odd; radius = layers * (kernel - 1) / 2.
        beta: sharpness of softplus, log(1 + exp(beta x)) / beta, in units of 1 / x.
        strong_convexity: modulus of the quadratic, >= 0; it bounds the slope of the proximal map from below.

    Raises:
        TypeError, ValueError: an argument out of its range; on call, images that are complex or of another shape.

    Source: as of `InputConvexNetwork`, whose authors stride down to one number a patch and blend overlapping patches by
    a count that is not uniform, which is no gradient; the sum over pixels is that of a convex field of experts, Roth
    and Black 2009.
    """

    def __init__(
        self,
        channels: int = 1,
        hidden: int = 32,
        layers: int = 3,
        kernel: int = 5,
        beta: float = 100.0,
        strong_convexity: float = 0.01,
    ) -> None:
        super().__init__(beta, strong_convexity)
        for name, value in (("channels", channels), ("hidden", hidden), ("layers", layers), ("kernel", kernel)):
            require_count(name, value)
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        self.channels, self.hidden, self.kernel, self.radius = channels, hidden, kernel, layers * (kernel // 2)
        self.lifts = nn.ModuleList(nn.Conv2d(channels, hidden, kernel) for _ in range(layers))
        self.mixes = nn.ParameterList(_nonnegative(hidden, hidden, kernel, kernel) for _ in range(layers - 1))
        self.outs = nn.ParameterList(_nonnegative(hidden) for _ in range(layers))

    @property
    def config(self) -> Mapping[str, object]:
        return {
            "channels": self.channels,
            "hidden": self.hidden,
            "layers": len(self.lifts),
            "kernel": self.kernel,
            "beta": self.beta,
            "strong_convexity": self.strong_convexity,
        }

    def convex_part(self, x: Tensor) -> Tensor:
        _require_real(x)
        images = x[:, None] if x.ndim == 3 and self.channels == 1 else x
        if images.ndim != 4 or images.shape[1] != self.channels or not images.numel():
            wanted = "(B, y, x) or (B, 1, y, x)" if self.channels == 1 else f"(B, {self.channels}, y, x)"
            raise ValueError(f"x must be {wanted}, got {tuple(x.shape)}")
        height, width = images.shape[-2:]
        extended = _mirrored(images, self.radius)
        total, z = images.new_zeros(images.shape[0]), None
        for k, (lift, out) in enumerate(zip(self.lifts, self.outs, strict=True)):
            cut = k * (self.kernel // 2)  # by which the layers so far have shrunk the image
            pushed = lift(extended[..., cut : extended.shape[-2] - cut, cut : extended.shape[-1] - cut])
            z = self._activation(pushed if z is None else pushed + conv2d(z, _without_negative(self.mixes[k - 1])))
            rim = self.radius - cut - self.kernel // 2
            inside = z[..., rim : rim + height, rim : rim + width]
            total = total + inside.sum((-2, -1)) @ _without_negative(out)
        return total


class ComplexPotential(nn.Module):
    """psi(Re x) + psi(Im x): what a network of real signals is for complex ones, with a prox that is exact as theirs.

    Args:
        potential: psi, of real signals.

    Raises:
        TypeError: it is no convex potential; on call, signals that are real.
    """

    def __init__(self, potential: ConvexPotential) -> None:
        super().__init__()
        if not isinstance(potential, ConvexPotential):
            raise TypeError(f"potential must be convex, such as ConvexCNN, got {type(potential).__name__}")
        self.potential = potential

    @property
    def strong_convexity(self) -> float:
        return self.potential.strong_convexity

    def value(self, x: Tensor) -> Tensor:
        return torch.stack(self.potential.value(_parts(x)).chunk(2)).sum(0)

    def gradient(self, x: Tensor) -> Tensor:
        return torch.complex(*self.potential.gradient(_parts(x)).chunk(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.gradient(x)


def _parts(x: Tensor) -> Tensor:
    """Real parts and behind them imaginary ones, (2 B, *signal)."""
    if not x.is_complex():
        raise TypeError(f"x must be complex, got {x.dtype}; real signals are for the potential itself")
    return torch.cat([x.real, x.imag])


def _mirrored(images: Tensor, rim: int) -> Tensor:
    """Images extended on all sides by their mirror images, the edge repeated, (..., y + 2 rim, x + 2 rim)."""
    for axis in (-2, -1):
        n = images.shape[axis]
        place = torch.arange(-rim, n + rim, device=images.device) % (2 * n)
        images = images.index_select(axis, torch.minimum(place, 2 * n - 1 - place))
    return images


def _require_real(x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x must be real floating point, got {x.dtype}; complex ones are for ComplexPotential")


def _nonnegative(*shape: int) -> nn.Parameter:
    """Weights between 0 and 0.02 / fan-in: layers begin as if they were one, and large ones grow where they serve."""
    fan_in = math.prod(shape[1:] or shape)
    return nn.Parameter(torch.rand(shape) * (0.02 / fan_in))
