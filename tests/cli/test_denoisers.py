"""Learned priors by the words of `--prior`."""

from collections.abc import Mapping

import pytest
import torch

from invreg import config
from invreg.cli.denoisers import fingerprint, is_learned
from invreg.interfaces import Denoiser
from invreg.models import EDM, DiscreteVariancePreserving, NetworkDenoiser, UNet


def network(seed: int) -> NetworkDenoiser:
    torch.manual_seed(seed)
    return NetworkDenoiser(UNet(1, widths=(4,), blocks=1, fold=1, embedding=4), EDM(0.5), "edm", "channels")


def test_learned_priors_are_told_from_others_by_name() -> None:
    assert is_learned("brain")
    assert is_learned("model:folder=x")
    assert is_learned("Diffusers:folder=x")
    assert not is_learned("tv:weight=1")
    assert not is_learned("brian")
    assert not is_learned(None)


def test_a_fingerprint_follows_the_weights() -> None:
    assert fingerprint(network(0)) == fingerprint(network(0)) != fingerprint(network(1))
    assert fingerprint(network(0).double()) != fingerprint(network(0))


def test_a_fingerprint_follows_what_is_made_of_the_network() -> None:
    net = network(0).network
    betas = torch.linspace(1e-4, 0.02, 10)
    paths = [DiscreteVariancePreserving((1 - b).cumprod(0).tolist()) for b in (betas, 2 * betas)]
    found = [
        fingerprint(NetworkDenoiser(net, *words))
        for words in (
            (EDM(0.5), "edm", "channels"),
            (EDM(0.25), "edm", "channels"),
            (EDM(0.5), "edm", "parts"),
            (paths[0], "noise", "channels"),
            (paths[0], "v", "channels"),
            (paths[1], "noise", "channels"),
        )
    ]
    assert len(set(found)) == 6


@pytest.mark.parametrize("name", sorted(config.SHIPPED))
def test_shipped_priors_denoise_and_say_what_they_have_seen(name: str) -> None:
    found = config.learned_prior(config.parse(name))
    assert isinstance(found.info, Mapping)
    low, high = found.info["pixel size (mm)"]
    assert 0 < low < high
    if not isinstance(found.model, Denoiser):
        assert found.sigma == 0.1
        x = torch.full((1, 24, 24), 0.5)
        noisy = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert float((found.model.gradient(noisy) - x).norm()) < 0.6 * float((noisy - x).norm())
        return
    assert found.water == (name == "head-ct")
    x = torch.full((1, 24, 24), 1.0 if found.water else 0.5, dtype=torch.float32 if found.water else torch.complex64)
    noisy = x + 0.2 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sigma = 0.2 / 2**0.5 if x.is_complex() else 0.2
        assert float((found.model(noisy, sigma) - x).norm()) < 0.5 * float((noisy - x).norm())


def test_what_ships_is_asked_for_by_its_kind() -> None:
    assert isinstance(config.shipped_prior("head-ct"), Denoiser)
    assert config.shipped_potential("brain-lpn").strong_convexity == 0.01
    with pytest.raises(TypeError, match="brain-lpn is no denoiser but a learned proximal network; use shipped_potent"):
        config.shipped_prior("brain-lpn")
    with pytest.raises(TypeError, match="brain is no learned proximal network but a denoiser; use shipped_prior"):
        config.shipped_potential("brain")
