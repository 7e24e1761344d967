"""Tests of `invreg.operators.gradient` beyond the laws."""

import math

import pytest
import torch

from invreg.lanczos import operator_norm
from invreg.operators import Gradient, SymmetrizedGradient
from invreg.random import draw


def grid(*sizes: int) -> list[torch.Tensor]:
    axes = [torch.arange(n, dtype=torch.float64) for n in sizes]
    return list(torch.meshgrid(*axes, indexing="ij"))


def test_gradient_of_a_ramp_is_its_slope_and_zero_at_the_last_pixels() -> None:
    y, x = grid(4, 5)
    slope = Gradient(voxel_size=(0.5, 2.0))((3 * y - 7 * x)[None])[0]
    assert slope.shape == (2, 4, 5)
    assert (slope[0, :-1] == 6).all()
    assert (slope[0, -1] == 0).all()
    assert (slope[1, :, :-1] == -3.5).all()
    assert (slope[1, :, -1] == 0).all()


def test_adjoint_is_minus_the_divergence_with_a_closed_border() -> None:
    p = torch.tensor([[[1.0, 2.0, 5.0]]])
    assert Gradient(1).adjoint(p).tolist() == [[-1.0, -1.0, 2.0]]


@pytest.mark.parametrize("channel_dim", [1, 2, 3, -1, -2])
def test_channels_are_differentiated_like_separate_images(channel_dim: int) -> None:
    x = draw(torch.empty(2, 3, 5, 4, dtype=torch.complex128), torch.Generator().manual_seed(0))
    moved = x.movedim(1, channel_dim)
    together = Gradient(2, channel_dim)(moved)
    axis = channel_dim + 1 if channel_dim > 0 else channel_dim
    for c in range(3):
        assert torch.equal(together.select(axis, c), Gradient(2)(x[:, c]))


@pytest.mark.parametrize(("dim", "sizes"), [(1, (40,)), (2, (30, 40)), (3, (12, 14, 16))])
@pytest.mark.parametrize("kind", [Gradient, SymmetrizedGradient])
def test_norm_bound_holds_and_is_close(kind: type, dim: int, sizes: tuple[int, ...]) -> None:
    operator = kind(dim, voxel_size=tuple(1.0 + 0.5 * k for k in range(dim)))
    shape = sizes if kind is Gradient else (dim, *sizes)
    norm = float(operator_norm(operator, torch.empty(1, *shape, dtype=torch.float64), iterations=200))
    assert 0.95 * operator.norm_bound <= norm <= 1.005 * operator.norm_bound


def test_a_volume_is_not_read_as_channels() -> None:
    with pytest.raises(ValueError, match=r"x must be \(B, y, x\) for Gradient, got .*give channel_dim"):
        Gradient(2)(torch.zeros(1, 4, 5, 6))
    with pytest.raises(ValueError, match=r"x must be \(B, channel, y, x\)"):
        Gradient(2, channel_dim=1)(torch.zeros(1, 4, 5))
    with pytest.raises(ValueError, match=r"field must be \(B, 2, y, x\)"):
        Gradient(2).adjoint(torch.zeros(1, 3, 4, 5))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 4}, ValueError, "dim must be 1, 2 or 3, got 4"),
        ({"dim": 2.0}, TypeError, "dim must be an int"),
        ({"voxel_size": (1.0, 2.0, 3.0)}, ValueError, "voxel_size must be one number or 2"),
        ({"voxel_size": 0.0}, ValueError, "voxel_size must be finite and > 0"),
        ({"channel_dim": 0}, ValueError, "channel_dim must lie within the 4 axes behind the batch, got 0"),
        ({"channel_dim": 1.0}, TypeError, "channel_dim must be an int or None"),
    ],
)
@pytest.mark.parametrize("kind", [Gradient, SymmetrizedGradient])
def test_wrong_options_are_refused(kind: type, arguments: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        kind(**arguments)


def test_symmetrized_gradient_of_an_affine_images_gradient_is_zero_at_the_border_too() -> None:
    z, y, x = grid(4, 5, 6)
    slope = Gradient(3)((2 * z - 3 * y + 5 * x + 1)[None])
    assert (SymmetrizedGradient(3)(slope) == 0).all()


def test_symmetrized_gradient_of_a_gradient_is_the_hessian() -> None:
    y, x = grid(6, 7)
    bend = SymmetrizedGradient()(Gradient()((2 * y**2 - 3 * x * y + 0.5 * x**2)[None]))[0]
    assert (bend[0, 1:-1] == 4).all()
    assert (bend[1, :, 1:-1] == 1).all()
    torch.testing.assert_close(bend[2, :-1, :-1], torch.full((5, 6), -3 * math.sqrt(2), dtype=torch.float64))


def test_symmetrized_gradient_ignores_rotations() -> None:
    y, x = grid(6, 7)
    w = torch.stack([x, -(y + 0.0)])[None]  # d_x w_y + d_y w_x = 0
    assert float(SymmetrizedGradient()(w)[:, 2].abs().max()) == 0


def test_euclidean_norm_of_the_components_is_the_frobenius_norm() -> None:
    w = draw(torch.empty(1, 3, 4, 5, 6, dtype=torch.float64), torch.Generator().manual_seed(0))
    e = SymmetrizedGradient(3)(w)[0]
    inside = (slice(1, -1),) * 3
    matrix = torch.zeros(3, 3, 4, 5, 6, dtype=torch.float64)
    for a in range(3):
        for b in range(3):
            forward = torch.zeros(4, 5, 6, dtype=torch.float64)
            step = torch.diff(w[0, a], dim=b)
            if a == b:
                forward.narrow(b, 1, w.shape[b + 2] - 1).copy_(step)
            else:
                forward.narrow(b, 0, w.shape[b + 2] - 1).copy_(step)
            matrix[a, b] = forward
    symmetric = (matrix + matrix.transpose(0, 1)) / 2
    torch.testing.assert_close(e[(slice(None), *inside)].norm(), symmetric[(slice(None), slice(None), *inside)].norm())


def test_components_are_counted() -> None:
    assert [SymmetrizedGradient(d).components for d in (1, 2, 3)] == [1, 3, 6]


def test_axes_of_one_pixel_have_no_slope() -> None:
    x = torch.ones(1, 1, 3)
    assert (Gradient()(x) == 0).all()
    assert (Gradient().adjoint(torch.ones(1, 2, 1, 3))[0] == torch.tensor([[-1.0, 0.0, 1.0]])).all()
    assert SymmetrizedGradient()(torch.ones(1, 2, 1, 3)).isfinite().all()


def test_only_the_wanted_axes_are_differentiated() -> None:
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    both = Gradient(3)(x)
    torch.testing.assert_close(Gradient(3, along=(0, 2))(x), both[:, [0, 2]], rtol=0, atol=0)
    assert Gradient(3, voxel_size=(0.5, 1.0, 1.0), along=(0,)).norm_bound == 4.0
    for along in ((), (2, 0), (0, 0), (3,), (-1,)):
        with pytest.raises(ValueError, match="along must be rising axes within 0 to 2, one or more"):
            Gradient(3, along=along)
