"""What the priors that ship with the package are trained on, two averaged brains, and how denoisers are.

Anatomy comes from the average ICBM152 (pip install 'invreg[priors]') and the macaque average INIA19 (Debian: apt
install mricron-data, or its file by --macaque). The brain Colin27 is seen by no training here.
"""

import argparse
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invreg import config
from invreg.io import Image, read
from invreg.models.denoiser import NetworkDenoiser
from invreg.training import Average, Options, Training, iterate
from invreg.training.ahead import Ahead, Chained
from invreg.training.denoising import DenoisingFit
from invreg.training.random_images import Anatomy, Paint, RandomImages

MACAQUE = Path("/usr/share/mricron/templates/inia19-t1-brain.nii.gz")


def volume(path: Path) -> Tensor:
    """Intensities of a NIfTI file, (z, y, x), 1 being the value that one voxel in a thousand exceeds."""
    record = read(path)
    assert isinstance(record, Image)
    data = record.data.squeeze().float()
    return (data / data.flatten().kthvalue(int(0.999 * data.numel())).values).clamp(0, 1)


def human() -> Anatomy:
    """The average ICBM152 with its tissues."""
    found = find_spec("nilearn")
    if found is None or found.origin is None:
        raise SystemExit("this needs the ICBM152 brain that nilearn carries: pip install 'invreg[priors]'")
    folder = Path(found.origin).parent / "datasets" / "data"
    t1, grey, white = (
        volume(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz") for kind in ("t1", "gm", "wm")
    )
    return Anatomy.of(t1, grey, white, 1.0)


def anatomies(macaque: Path) -> list[Anatomy]:
    """The human average twice as often as the macaque, whose tissues are told by intensity and which is enlarged."""
    average, animal = human(), volume(macaque)
    above = [torch.sigmoid((animal - level) / 0.04) * (animal > 0.02) for level in (0.55, 0.79)]
    return [average, average, Anatomy.of(animal, above[0] - above[1], above[1], 0.9)]


def stages(paint: Paint, steps: int, macaque: Path, quick: bool) -> Chained[tuple[Tensor]]:
    """Batches of random images, larger ones towards the end; quick: small ones of phantoms alone."""
    if quick:
        return Chained(RandomImages([], size=32, batch=4, steps=steps, seed=1, paint=paint))
    sources, small = anatomies(macaque), round(0.85 * steps)
    return Chained(
        RandomImages(sources, size=64, batch=16, steps=small, seed=1, paint=paint),
        RandomImages(sources, size=128, batch=4, steps=steps - small, seed=2, paint=paint),
    )


def train(
    model: NetworkDenoiser,
    objective: DenoisingFit,
    batches: Chained[tuple[Tensor]],
    folder: Path,
    info: Mapping[str, object],
) -> float:
    """Train, or go on, write FOLDER/model as `finish` does, and return the mean loss of the last tenth of the steps."""
    optimizer, steps = torch.optim.AdamW(model.parameters(), 1.5e-3, betas=(0.9, 0.99), weight_decay=1e-4), len(batches)
    average = Average(model, 0.9993)
    run = iterate(
        objective,
        Ahead(batches),
        optimizer,
        torch.Generator().manual_seed(3),
        model=model,
        scheduler=torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.04),
        average=average,
        folder=folder,
        resume=True,
        options=Options(save_minutes=10),
    )
    finish(run, average, folder, info, steps)
    last = run.record.terms["denoising"][-max(steps // 10, 1) :]
    return sum(last) / len(last)


def finish(run: Training[Any], average: Average, folder: Path, info: Mapping[str, object], steps: int) -> None:
    """Go through a training; write the running mean of the weights to FOLDER/model, also at Ctrl-C.

    Beside it stand `info` and how far the training came.
    """

    def save() -> None:
        said = {**info, "trained": f"{run.step} of {steps} steps"}
        config.save_pretrained(average.module, folder / "model", info=said, overwrite=True)

    try:
        for _ in run:
            continue
    except KeyboardInterrupt:
        save()
        raise
    save()


def flags(description: str | None, folder: str, steps: int) -> argparse.Namespace:
    """Those of the command: folder, macaque and steps."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(folder))
    parser.add_argument("--macaque", type=Path, default=MACAQUE)
    parser.add_argument("--steps", type=int, default=steps)
    return parser.parse_args()
