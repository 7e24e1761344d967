"""Forward operators: what an instrument does."""

from invreg.operators.blur import Blur, ValidBlur, gaussian_kernel, motion_kernel
from invreg.operators.compose import Stack
from invreg.operators.downsample import Downsample
from invreg.operators.fanbeam import FanBeam
from invreg.operators.flow import Flow
from invreg.operators.fourier import Fourier, MaskedFourier, centred_fft, centred_ifft
from invreg.operators.gradient import Gradient, SymmetrizedGradient
from invreg.operators.mask import Mask
from invreg.operators.nonlinear import PhaseRetrieval
from invreg.operators.radon import ParallelBeam
from invreg.operators.sense import Sense, SoftSense
from invreg.operators.sensing import HadamardSensing, MatrixSensing, bernoulli_matrix, gaussian_matrix, hadamard_sensing
from invreg.operators.spectral import DenseSpectrum, spectrum_of
from invreg.operators.unmeasured import Unmeasured
from invreg.operators.wavelet import Wavelet

__all__ = [
    "Blur",
    "DenseSpectrum",
    "Downsample",
    "FanBeam",
    "Flow",
    "Fourier",
    "Gradient",
    "HadamardSensing",
    "Mask",
    "MaskedFourier",
    "MatrixSensing",
    "ParallelBeam",
    "PhaseRetrieval",
    "Sense",
    "SoftSense",
    "Stack",
    "SymmetrizedGradient",
    "Unmeasured",
    "ValidBlur",
    "Wavelet",
    "bernoulli_matrix",
    "centred_fft",
    "centred_ifft",
    "gaussian_kernel",
    "gaussian_matrix",
    "hadamard_sensing",
    "motion_kernel",
    "spectrum_of",
]
