"""Training of denoisers: the loss of exact ones, its scale, and that it falls."""

import math

import pytest
import torch
from torch import Tensor, nn

from invreg.interfaces import Denoiser
from invreg.linalg import expand
from invreg.models.denoiser import NetworkDenoiser
from invreg.models.noise_path import EDM
from invreg.models.unet import UNet
from invreg.training import iterate
from invreg.training.denoising import DenoisingFit
from invreg.training.random_contrast import magnetic_resonance
from invreg.training.random_images import RandomImages


class White(Denoiser):
    """Exact for independent normal entries of standard deviation s."""

    def __init__(self, s: float) -> None:
        super().__init__()
        self.s = s

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        level = expand(torch.as_tensor(sigma, dtype=x.real.dtype).reshape(-1), x)
        return x * self.s**2 / (self.s**2 + level**2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_loss_of_the_exact_denoiser_of_noise_is_one(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    clean = 0.3 * torch.randn(400, 16, 16, dtype=dtype, generator=g) * (2**0.5 if dtype.is_complex else 1)
    terms = DenoisingFit(White(0.3), sigma_data=0.3)((clean,), 0.0, g)
    assert float(terms["denoising"]) == pytest.approx(1.0, rel=0.01)


def test_the_score_is_that_of_the_exact_denoiser() -> None:
    clean = 0.3 * torch.randn(100, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    score = DenoisingFit(White(0.3), sigma_data=0.3).score((clean,))
    for level in (0.1, 1.0):
        error = (0.3 * level) ** 2 / (0.3**2 + level**2)
        assert float(score[f"psnr at {level:g}"]) == pytest.approx(-10 * math.log10(error), abs=0.05)


def test_an_untrained_network_starts_at_one_and_learns() -> None:
    torch.manual_seed(0)
    model = NetworkDenoiser(UNet(2, (8, 16), blocks=1, embedding=8), EDM(0.25, 0.003, 20.0), "edm", "real2")
    objective = DenoisingFit(model, sigma_data=0.25)
    batches = RandomImages([], size=16, batch=8, steps=40, paint=magnetic_resonance)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = [
        step.terms["denoising"] for step in iterate(objective, batches, optimizer, torch.Generator().manual_seed(0))
    ]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:3]) / 3 * 10


def test_what_is_no_denoiser_is_refused() -> None:
    with pytest.raises(TypeError, match="model must be a Denoiser, got Linear; wrap the network in NetworkDenoiser"):
        DenoisingFit(nn.Linear(1, 1))  # type: ignore[arg-type]
