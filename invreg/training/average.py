"""A model whose weights are the running mean of those that are trained: less noisy than the last ones."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average(nn.Module):
    """The exponential moving average of a model's parameters.

    After step k each parameter a becomes d a + (1 - d) p with d = min(decay, k / (k + 9)), so that the random start is
    soon forgotten; buffers are copied.

    Args:
        model: is copied; `module` is the copy, in evaluation mode and without gradients.
        decay: between 0 and 1; 0.999 is a mean over some 1000 steps.

    Raises:
        ValueError: decay outside [0, 1).

    Source: Polyak and Juditsky 1992 for the mean; the warm-up is that of TensorFlow's ExponentialMovingAverage, where
    it is (1 + k) / (10 + k) with k counted from 0.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be within [0, 1), got {decay}; 0.999 is usual")
        self.decay = decay
        self.module = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow a model after its step of that number, from 1."""
        weight = 1 - min(self.decay, step / (step + 9))
        trained = dict(model.named_parameters())
        for name, parameter in self.module.named_parameters():
            parameter.lerp_(trained[name].to(parameter), weight)
        buffers = dict(model.named_buffers())
        for name, buffer in self.module.named_buffers():
            buffer.copy_(buffers[name])
