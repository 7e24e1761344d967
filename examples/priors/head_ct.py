"""Train a diffusion prior of head CT images in units of the attenuation of water; about as long as the prior "brain".

Anatomies are those of `averaged_brains`; tissues, lesions, skulls, cavities, planes and shapes are random. Kill it
when you like; started again it goes on. A noise level of 0.001 is 1 HU.
"""

from pathlib import Path

import torch
from averaged_brains import MACAQUE, flags, stages, train

from invreg.models.denoiser import NetworkDenoiser
from invreg.models.noise_path import EDM
from invreg.models.unet import UNet
from invreg.training.denoising import DenoisingFit
from invreg.training.random_ct import computed_tomography

SIGMA_DATA, LOW, HIGH = 0.9, 0.001, 40.0
INFO = {
    "kind": "diffusion",
    "units": "water",
    "images": "real, (B, y, x), attenuation over that of water: air 0, brain within 0.05 of 1, bone 1.2 to 3",
    "pixel size (mm)": [0.8, 2.2],
    "noise levels": [LOW, HIGH],
    "license": "see NOTICE.md",
    "use": "for demonstration, not for diagnosis",
}


def main(
    quick: bool = False, folder: Path = Path("head-ct-training"), macaque: Path = MACAQUE, steps: int = 18_000
) -> float:
    """Train, write FOLDER/model, and return the mean loss of the last tenth of the steps; quick: on phantoms alone."""
    batches = stages(computed_tomography, 20 if quick else steps, macaque, quick)
    torch.manual_seed(0)
    network = UNet(1, (8, 16, 16) if quick else (32, 64, 128)).to(memory_format=torch.channels_last)
    model = NetworkDenoiser(network, EDM(SIGMA_DATA, LOW, HIGH), "edm", "channels")
    # grey and white matter differ by 0.01, so that levels far below sigma_data count
    objective = DenoisingFit(model, sigma_data=SIGMA_DATA, log_mean=-2.5, log_std=1.8)
    return train(model, objective, batches, folder, INFO)


if __name__ == "__main__":
    options = flags(__doc__, "head-ct-training", 18_000)
    print(f"loss at the end: {main(False, options.folder, options.macaque, options.steps):.4f}")
