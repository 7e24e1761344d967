"""Hounsfield units."""

import pytest
import torch

from invreg.io import hu_to_mu, mu_to_hu


def test_water_and_air_are_the_fixed_points() -> None:
    hu = torch.tensor([0.0, -1000.0, 1000.0], dtype=torch.float64)
    assert hu_to_mu(hu).tolist() == pytest.approx([0.02, 0, 0.04])
    assert hu_to_mu(hu, 0.0193).tolist() == pytest.approx([0.0193, 0, 0.0386])


def test_padding_below_air_is_clipped() -> None:
    assert hu_to_mu(torch.tensor([-2000.0, -3024.0, -1000.5])).tolist() == [0, 0, 0]


def test_the_two_are_inverse_above_air() -> None:
    hu = torch.linspace(-1000, 3000, 101, dtype=torch.float64)
    assert torch.allclose(mu_to_hu(hu_to_mu(hu, 0.021), 0.021), hu, atol=1e-9)


def test_arguments_are_checked() -> None:
    for convert in (hu_to_mu, mu_to_hu):
        with pytest.raises(ValueError, match="mu_water must be"):
            convert(torch.zeros(1), 0.0)
        with pytest.raises(TypeError, match="real"):
            convert(torch.zeros(1, dtype=torch.complex64))
        with pytest.raises(TypeError, match=r"torch\.Tensor"):
            convert(0.0)  # type: ignore[arg-type]
