"""One function draws all the noise, so that a sample's noise does not depend on its batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

Generator = torch.Generator | Sequence[torch.Generator] | None


def draw(like: Tensor, generator: Generator = None) -> Tensor:
    """Standard normal noise, drawn in the dtype of `like` and on the generator's device, then moved to `like`'s.

    Args:
        like: (B, ...), real or complex; only shape, dtype and device are used.
        generator: one for the whole batch, or one per sample: then sample i's noise is the same in every batch.

    Returns:
        Noise, (B, ...). A complex entry has real and imaginary part of variance 1 each: E|n|^2 = 2.

    Raises:
        TypeError: like is of integers.
        ValueError: the number of generators is not B.
    """
    if isinstance(generator, Sequence):
        if len(generator) != like.shape[0]:
            raise ValueError(
                f"generator must be one or one per sample ({like.shape[0]}), got a sequence of {len(generator)}"
            )
        return torch.cat([draw(like[i : i + 1], one) for i, one in enumerate(generator)])
    if not (like.is_floating_point() or like.is_complex()):
        raise TypeError(f"like must be floating point or complex, got {like.dtype}; use like.float()")
    real = like.real.dtype
    shape = (*like.shape, 2) if like.is_complex() else tuple(like.shape)
    device = like.device if generator is None else generator.device
    noise = torch.randn(shape, dtype=real, device=device, generator=generator).to(like.device)
    return torch.view_as_complex(noise) if like.is_complex() else noise
