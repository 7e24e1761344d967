"""Sparsity in an orthogonal wavelet basis."""

from __future__ import annotations

from torch import Tensor

from invreg.interfaces import Regularizer
from invreg.operators.wavelet import Wavelet
from invreg.regularizers.norms import sample_sum, scaled_step, shrink


class WaveletL1(Regularizer[Tensor]):
    """weight * sum_i |(W x)_i| over the detail coefficients of an orthogonal wavelet transform W.

    The prox is exact: W^H of soft-thresholded W x, as W is orthonormal. Thresholds do not move with the image: an
    average over shifted transforms (cycle spinning) would not be a proximal map and is not offered as one.

    Args:
        wavelet: W.
        weight: >= 0, a number or a 0-d tensor, which may require a gradient.
        penalize_approximation: count the coarsest approximation too, which holds the image's mean.

    Raises:
        TypeError: wavelet is not a Wavelet.
    """

    def __init__(self, wavelet: Wavelet, weight: float | Tensor = 1.0, *, penalize_approximation: bool = False) -> None:
        super().__init__(weight)
        if not isinstance(wavelet, Wavelet):
            raise TypeError(f"wavelet must be a Wavelet such as Wavelet((256, 256)), got {type(wavelet).__name__}")
        self.wavelet, self.penalize_approximation = wavelet, penalize_approximation

    def forward(self, x: Tensor) -> Tensor:
        size = self.wavelet(x).abs()
        if not self.penalize_approximation:
            size[self.wavelet.approximation] = 0
        return self.weight * sample_sum(size)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """W^H of W x with every modulus lowered by step * weight; exact."""
        coefficients = self.wavelet(x)
        kept = shrink(coefficients, coefficients.abs(), scaled_step(self.weight, step, x))
        if not self.penalize_approximation:
            corner = self.wavelet.approximation
            kept[corner] = coefficients[corner]
        return self.wavelet.adjoint(kept)
