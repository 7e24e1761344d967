"""Hounsfield units and linear attenuation."""

from torch import Tensor

from invreg._check import require_positive, require_tensor


def hu_to_mu(hu: Tensor, mu_water: float = 0.02) -> Tensor:
    """Linear attenuation max(0, mu_water (1 + HU / 1000)), 1/mm.

    Values below -1000 HU, which scanners use as padding outside the field of view, become 0.

    Args:
        hu: any shape, real.
        mu_water: attenuation of water at the effective energy, 1/mm, > 0; 0.02 is water near 70 keV.

    Raises:
        TypeError: hu is complex.
        ValueError: mu_water <= 0.
    """
    _check(hu, "hu", mu_water)
    return (mu_water * (1 + hu / 1000)).clamp_min(0)


def mu_to_hu(mu: Tensor, mu_water: float = 0.02) -> Tensor:
    """Hounsfield units 1000 (mu / mu_water - 1).

    Args:
        mu: any shape, real, 1/mm.
        mu_water: attenuation of water, 1/mm, > 0.

    Raises:
        TypeError: mu is complex.
        ValueError: mu_water <= 0.
    """
    _check(mu, "mu", mu_water)
    return 1000 * (mu / mu_water - 1)


def _check(value: Tensor, name: str, mu_water: float) -> None:
    require_tensor(name, value)
    require_positive("mu_water", mu_water)
    if value.is_complex():
        raise TypeError(f"{name} must be real, got {value.dtype}; take the real part if that is meant")
