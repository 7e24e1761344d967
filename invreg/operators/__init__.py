"""Forward operators: what an instrument does."""

from invreg.operators.fourier import Fourier, MaskedFourier, centred_fft, centred_ifft
from invreg.operators.sense import Sense, SoftSense

__all__ = [
    "Fourier",
    "MaskedFourier",
    "Sense",
    "SoftSense",
    "centred_fft",
    "centred_ifft",
]

