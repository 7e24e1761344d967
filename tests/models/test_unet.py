"""The U-Net takes images of any size, shifts with them, and comes back from its folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invreg.models.pretrained import from_pretrained, save_pretrained
from invreg.models.unet import UNet

CLASSES: dict[str, type[Any]] = {"unet": UNet}


def network(channels: int = 1) -> UNet:
    torch.manual_seed(0)
    made = UNet(channels, (4, 8), 1, 2, 8).double()
    nn.init.normal_(made.last.weight, std=0.1)
    return made


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("size", [(1, 1), (3, 8), (7, 13), (16, 16)])
def test_images_of_any_size_keep_it(size: tuple[int, int]) -> None:
    x = images(2, 1, *size)
    assert network()(x, torch.zeros(2, dtype=torch.float64)).shape == x.shape


def test_odd_sizes_are_as_if_zeros_surrounded_them() -> None:
    made, x, t = network(), images(1, 1, 6, 7), torch.tensor([0.3], dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 2))
    assert torch.allclose(made(x, t), made(padded, t)[..., :6, :7], atol=1e-14)


def test_a_shift_by_the_multiple_shifts_the_result_away_from_the_edges() -> None:
    made, t = network(), torch.tensor([0.3], dtype=torch.float64)
    assert made.multiple == 4
    x = images(1, 1, 96, 96)
    moved = made(x.roll((4, -8), (-2, -1)), t)
    still = made(x, t).roll((4, -8), (-2, -1))
    inner = (..., slice(36, 60), slice(36, 60))  # beyond the network's reach of 24 pixels and the roll
    assert torch.allclose(moved[inner], still[inner], atol=1e-13)
    assert not torch.allclose(moved[inner], made(x, t)[inner], atol=1e-3)


def test_a_new_network_gives_zeros_and_its_first_step_moves_it() -> None:
    torch.manual_seed(0)
    made = UNet(2, (4, 8), 1, 1, 8)
    x, t = images(1, 2, 8, 8).float(), torch.zeros(1)
    assert torch.equal(made(x, t), torch.zeros_like(x))
    (made(x, t) - x).square().sum().backward()
    assert made.last.weight.grad is not None
    assert float(made.last.weight.grad.abs().sum()) > 0


def test_the_condition_counts_and_belongs_to_its_image() -> None:
    made, x = network(), images(2, 1, 8, 8)
    for module in made.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
    t = torch.tensor([0.1, 2.0], dtype=torch.float64)
    together = made(x, t)
    assert torch.allclose(together[1:], made(x[1:], t[1:]), atol=1e-13)
    assert not torch.allclose(together, made(x, t.flip(0)), atol=1e-3)


def test_one_resolution_is_enough() -> None:
    made, x = UNet(1, (4,), 1, 3, 8).double(), images(1, 1, 4, 5)
    nn.init.normal_(made.last.weight, std=0.1)
    assert made.multiple == 3
    assert made(x, torch.zeros(1, dtype=torch.float64)).shape == x.shape


def test_its_folder_gives_it_back(tmp_path: Path) -> None:
    made = network(2)
    save_pretrained(made, tmp_path / "m", CLASSES)
    found = from_pretrained(tmp_path / "m", CLASSES)
    assert isinstance(found, UNet)
    assert dict(found.config) == dict(made.config)
    x, t = images(1, 2, 5, 6), torch.tensor([0.3], dtype=torch.float64)
    assert torch.equal(found(x, t), made(x, t))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="channels must be >= 1"):
        UNet(0)
    with pytest.raises(TypeError, match="widths must be an int"):
        UNet(1, (4.0,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"widths must be a sequence such as \(32, 64, 128\), got 32"):
        UNet(1, 32)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"widths must name the channels of one resolution or more, .* got none"):
        UNet(1, ())
    for name in ("blocks", "fold", "embedding"):
        with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
            UNet(1, (4,), **{name: 0})
    with pytest.raises(ValueError, match=r"x must be \(B, 1, y, x\), got \(1, 2, 8, 8\)"):
        network()(images(1, 2, 8, 8), torch.zeros(1))
