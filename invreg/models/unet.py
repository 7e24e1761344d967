"""A small convolutional U-Net that is told a noise level: the network of the denoisers that ship with the package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle, silu

from invreg._check import require_count

FREQUENCIES = 4


class UNet(nn.Module):
    """Residual blocks at falling resolutions and back, (B, channels, y, x) and a condition (B,) -> the same shape.

    Nothing is normalised over the image, so that a pixel's result depends on its surroundings alone: what was trained
    on patches holds for whole images. The finest resolution is reached by folding squares of `fold` pixels into
    channels, which costs a network of this size little and makes it several times faster. Images of any size: they are
    extended by zeros to a multiple of `fold * 2**(len(widths) - 1)` and cut again.

    Args:
        channels: of image and result.
        widths: channels at each resolution, finest first; one or more.
        blocks: residual blocks at each resolution on the way down, and as many on the way up.
        fold: side of the squares, 1 or more.
        embedding: length of the vector that is made of the condition.

    Raises:
        TypeError, ValueError: a number that is not a count, no widths; on call, an image with other channels.
    """

    def __init__(
        self, channels: int, widths: Sequence[int] = (32, 64, 128), blocks: int = 2, fold: int = 2, embedding: int = 64
    ) -> None:
        super().__init__()
        if not isinstance(widths, Sequence):
            raise TypeError(f"widths must be a sequence such as (32, 64, 128), got {widths!r}")
        widths = tuple(widths)
        if not widths:
            raise ValueError("widths must name the channels of one resolution or more, such as (32, 64, 128), got none")
        for name, value in (("channels", channels), ("blocks", blocks), ("fold", fold), ("embedding", embedding)):
            require_count(name, value)
        for width in widths:
            require_count("widths", width)
        self.config: Mapping[str, object] = {
            "channels": channels,
            "widths": widths,
            "blocks": blocks,
            "fold": fold,
            "embedding": embedding,
        }
        self.channels, self.fold, self.multiple = channels, fold, fold * 2 ** (len(widths) - 1)
        folded = channels * fold**2
        self.embed = nn.Sequential(nn.Linear(1 + 2 * FREQUENCIES, embedding), nn.SiLU())
        self.first = nn.Conv2d(folded, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_stage(width, blocks, embedding) for width in widths)
        self.coarser = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.finer = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_stage(width, blocks, embedding) for width in widths[:-1])
        self.last = nn.Conv2d(widths[0], folded, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must be (B, {self.channels}, y, x), got {tuple(x.shape)}")
        height, width = x.shape[-2:]
        x = pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        e = self.embed(_features(condition).to(self.first.weight.dtype))
        x = self.first(pixel_unshuffle(x, self.fold))
        passed: list[Tensor] = []
        for i, stage in enumerate(self.down):
            for block in _blocks(stage):
                x = block(x, e)
            if i < len(self.coarser):
                passed.append(x)
                x = self.coarser[i](x)
        for i in reversed(range(len(self.up))):
            x = self.finer[i](x) + passed[i]
            for block in _blocks(self.up[i]):
                x = block(x, e)
        return pixel_shuffle(self.last(silu(x)), self.fold)[..., :height, :width]


class _Block(nn.Module):
    """x + convolution(silu(gain * convolution(silu(x)))), the gain of each channel made of the condition."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1)
        self.two = nn.Conv2d(width, width, 3, padding=1)
        self.gain = nn.Linear(embedding, width)
        nn.init.zeros_(self.gain.weight)
        nn.init.ones_(self.gain.bias)
        with torch.no_grad():
            self.two.weight *= 0.3  # so that the sum over blocks starts near the identity

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        found: Tensor = self.two(silu(self.one(silu(x)) * self.gain(e)[:, :, None, None]))
        return x + found


def _stage(width: int, blocks: int, embedding: int) -> nn.ModuleList:
    return nn.ModuleList(_Block(width, embedding) for _ in range(blocks))


def _blocks(stage: nn.Module) -> nn.ModuleList:
    assert isinstance(stage, nn.ModuleList)
    return stage


def _features(condition: Tensor) -> Tensor:
    """The condition and sines of it, (B,) -> (B, 1 + 2 * FREQUENCIES)."""
    turns = condition[:, None] * (math.pi * 2.0 ** torch.arange(FREQUENCIES, device=condition.device))
    return torch.cat([condition[:, None], turns.sin(), turns.cos()], 1)
