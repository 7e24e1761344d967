"""What a scanner's raw data needs before it is an inverse problem."""

from invreg.mri.compression import compress_coils, compression_matrix, mix_coils
from invreg.mri.espirit import SensitivityMaps, espirit, find_calibration
from invreg.mri.prewhitening import noise_covariance, prewhiten, whitening_matrix

__all__ = [
    "SensitivityMaps",
    "compress_coils",
    "compression_matrix",
    "espirit",
    "find_calibration",
    "mix_coils",
    "noise_covariance",
    "prewhiten",
    "whitening_matrix",
]
