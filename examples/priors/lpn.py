"""Train a small learned proximal network of brain MR images at one noise level; about half an hour of one CPU core.

Its images are the magnitudes and the real parts of those of the prior "brain", so that it serves real images and, in
`ComplexPotential`, complex ones. Kill it when you like; started again it goes on.
"""

from pathlib import Path

import torch
from averaged_brains import MACAQUE, anatomies, finish, flags
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from invreg.assets import BRAIN_SLICES, HEAD_SLICES, brain_slice, head_slice
from invreg.metrics import psnr
from invreg.models.icnn import ConvexCNN
from invreg.random import draw
from invreg.regularizers import TotalVariation
from invreg.training import Average, Options, ProximalMatching, iterate
from invreg.training.ahead import Ahead
from invreg.training.random_contrast import magnetic_resonance
from invreg.training.random_images import RandomImages, uniform

SIGMA = 0.1
INFO = {
    "kind": "learned proximal network",
    "images": "real, (B, y, x), magnitudes of about 0 to 1, or real parts",
    "pixel size (mm)": [0.8, 2.2],
    "sigma": SIGMA,
    "license": "see NOTICE.md",
    "use": "for demonstration, not for diagnosis",
}


def real_image(found: Tensor | None, fine: int, g: torch.Generator) -> Tensor:
    """What `RandomImages` paints: an image of any contrast, its magnitude or its real part under any phase."""
    image = magnetic_resonance(found, fine, g)
    return image.abs() if uniform(g) < 0.5 else image.real


def main(
    quick: bool = False,
    folder: Path = Path("lpn-training"),
    macaque: Path = MACAQUE,
    steps: int = 6_000,
) -> dict[str, float]:
    """Train, write FOLDER/model, and return what `scores` finds; quick: on phantoms alone."""
    sources, steps = ([], 20) if quick else (anatomies(macaque), steps)
    size, batch = (32, 4) if quick else (64, 4)
    batches = RandomImages(sources, size=size, batch=batch, steps=steps, seed=1, paint=real_image)
    torch.manual_seed(0)
    model = ConvexCNN(hidden=4 if quick else 24, layers=8, kernel=3, beta=30.0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    average = Average(model, 0.998)
    run = iterate(
        ProximalMatching(model, SIGMA, first_gamma=0.1, last_gamma=0.04),
        Ahead(batches),
        optimizer,
        torch.Generator().manual_seed(3),
        model=model,
        scheduler=torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=steps, pct_start=0.1),
        average=average,
        folder=folder,
        resume=True,
        options=Options(save_minutes=2),
    )
    finish(run, average, folder, INFO, steps)
    return scores(average.module, quick)


def scores(model: nn.Module, quick: bool) -> dict[str, float]:
    """Mean PSNR at `SIGMA` of slices of the brain Colin27, which no training saw; of TV with its best weight."""
    halved = [avg_pool2d(brain_slice(k).image, 2) for k in range(BRAIN_SLICES)]  # to pixels of 1 mm
    images = halved + [head_slice(k).image for k in range(HEAD_SLICES)]
    if quick:
        images = [images[0][:, 60:124, 60:124]]
    generator = torch.Generator().manual_seed(0)
    noisy = [x + SIGMA * draw(x, generator) for x in images]
    found = {"noisy": _mean(noisy, images)}
    found["TV"] = max(
        _mean([TotalVariation(weight).prox(y, 1.0) for y in noisy], images) for weight in (0.04, 0.05, 0.06, 0.08, 0.1)
    )
    with torch.no_grad():
        found["LPN"] = _mean([model(y) for y in noisy], images)
    return found


def _mean(found: list[Tensor], images: list[Tensor]) -> float:
    """Of the PSNR, dB."""
    return sum(float(psnr(a, b, data_range=1.0)) for a, b in zip(found, images, strict=True)) / len(images)


if __name__ == "__main__":
    options = flags(__doc__, "lpn-training", 6_000)
    print(", ".join(f"{k} {v:.2f} dB" for k, v in main(False, options.folder, options.macaque, options.steps).items()))
