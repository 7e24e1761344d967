"""Train the diffusion prior "brain" that ships with the package; about an hour of one CPU core.

Anatomies are those of `averaged_brains`. Planes, contrasts, skulls, shapes, resolutions and phases are random. Kill it
when you like; started again it goes on.
"""

from pathlib import Path

import torch
from averaged_brains import MACAQUE, flags, stages, train

from invreg.models.denoiser import NetworkDenoiser
from invreg.models.noise_path import EDM
from invreg.models.unet import UNet
from invreg.training.denoising import DenoisingFit
from invreg.training.random_contrast import magnetic_resonance

SIGMA_DATA, LOW, HIGH = 0.25, 0.003, 20.0
INFO = {
    "kind": "diffusion",
    "images": "complex, (B, y, x), magnitudes of about 0 to 1",
    "pixel size (mm)": [0.8, 2.2],
    "noise levels": [LOW, HIGH],
    "license": "see NOTICE.md",
    "use": "for demonstration, not for diagnosis",
}


def main(
    quick: bool = False, folder: Path = Path("brain-training"), macaque: Path = MACAQUE, steps: int = 18_000
) -> float:
    """Train, write FOLDER/model, and return the mean loss of the last tenth of the steps; quick: on phantoms alone."""
    batches = stages(magnetic_resonance, 20 if quick else steps, macaque, quick)
    torch.manual_seed(0)
    network = UNet(2, (8, 16, 16) if quick else (32, 64, 128)).to(memory_format=torch.channels_last)
    model = NetworkDenoiser(network, EDM(SIGMA_DATA, LOW, HIGH), "edm", "real2")
    objective = DenoisingFit(model, sigma_data=SIGMA_DATA, log_mean=-1.8, log_std=1.4)
    return train(model, objective, batches, folder, INFO)


if __name__ == "__main__":
    options = flags(__doc__, "brain-training", 18_000)
    print(f"loss at the end: {main(False, options.folder, options.macaque, options.steps):.4f}")
