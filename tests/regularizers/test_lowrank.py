"""Tests of `invreg.regularizers.lowrank` beyond the laws."""

import pytest
import torch

from invreg.random import draw
from invreg.regularizers import LocallyLowRank, NuclearNorm
from invreg.testing import relative_gap


def signal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 4, 6), (2, 5, 5)])
def test_prox_lowers_the_singular_values(shape: tuple[int, ...]) -> None:
    x = signal(*shape, dtype=torch.complex128)
    z = NuclearNorm(0.7).prox(x, 2.0)
    got, want = torch.linalg.svdvals(z), (torch.linalg.svdvals(x) - 1.4).clamp_min(0)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(NuclearNorm(0.7)(z), 0.7 * want.sum(1))


def test_nuclear_norm_of_rank_one_is_the_product_of_the_norms() -> None:
    u, v = signal(1, 5, 1, dtype=torch.complex128), signal(1, 1, 4, dtype=torch.complex128, seed=1)
    torch.testing.assert_close(NuclearNorm()(u * v), (u.norm() * v.norm())[None])


def test_nuclear_norm_of_a_diagonal_is_its_l1_norm() -> None:
    x = torch.diag(torch.tensor([3.0, -2.0, 0.5]))[None]
    torch.testing.assert_close(NuclearNorm(2.0)(x), torch.tensor([11.0]))
    torch.testing.assert_close(NuclearNorm().prox(x, 1.0), torch.diag(torch.tensor([2.0, -1.0, 0.0]))[None])


def test_a_series_becomes_a_matrix_of_frames_and_pixels() -> None:
    x = signal(2, 3, 4, 5)
    torch.testing.assert_close(NuclearNorm(1.0, 1)(x), NuclearNorm()(x.flatten(2)))
    last = x.movedim(1, -1)
    torch.testing.assert_close(NuclearNorm(1.0, -1)(last), NuclearNorm()(x.flatten(2)))
    torch.testing.assert_close(NuclearNorm(1.0, -1).prox(last, 0.5), NuclearNorm(1.0, 1).prox(x, 0.5).movedim(1, -1))


def test_gradients_are_finite_where_singular_values_coincide_or_vanish() -> None:
    for matrix in (torch.eye(4, 3), torch.zeros(4, 3), torch.ones(4, 3)):
        x = matrix.double()[None].requires_grad_()
        (gradient,) = torch.autograd.grad(NuclearNorm()(x).sum(), x)
        assert gradient.isfinite().all()
        assert float(torch.linalg.matrix_norm(gradient, 2)) <= 1 + 1e-12
    x = torch.eye(3, dtype=torch.float64)[None].requires_grad_()
    (gradient,) = torch.autograd.grad(NuclearNorm()(x).sum(), x)
    torch.testing.assert_close(gradient, x.detach())


def test_derivative_of_prox_at_equal_singular_values_is_that_of_differences() -> None:
    x = torch.eye(4, 3, dtype=torch.float64)[None].requires_grad_()
    prior = NuclearNorm(1.0)
    direction, test = signal(1, 4, 3), signal(1, 4, 3, seed=1)
    (gradient,) = torch.autograd.grad((prior.prox(x, 0.4) * test).sum(), x)
    h, point = 1e-6, x.detach()
    moved = (prior.prox(point + h * direction, 0.4) - prior.prox(point - h * direction, 0.4)) / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), (moved * test).sum(), rtol=1e-6, atol=0)


def test_derivative_of_prox_at_weight_zero_is_the_identity() -> None:
    x = signal(1, 4, 3).requires_grad_()
    weight = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    test = signal(1, 4, 3, seed=1)
    to_x, to_weight = torch.autograd.grad((NuclearNorm(weight).prox(x, 1.0) * test).sum(), (x, weight))
    torch.testing.assert_close(to_x, test)
    u, _, vh = torch.linalg.svd(x.detach(), full_matrices=False)
    torch.testing.assert_close(to_weight, -((u @ vh) * test).sum())


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_locally_low_rank_treats_each_block_alone_and_cuts_the_last(kind: str) -> None:
    x = signal(2, 3, 7, 5, dtype=torch.complex128 if kind == "complex" else torch.float64)
    prior, whole = LocallyLowRank(0.8, (4, 3)), NuclearNorm(0.8, 1)
    blocks = [
        (slice(None), slice(None), rows, columns)
        for rows in (slice(0, 4), slice(4, 7))
        for columns in (slice(0, 3), slice(3, 5))
    ]
    torch.testing.assert_close(prior(x), sum(whole(x[b]) for b in blocks))
    z = prior.prox(x, 0.5)
    for b in blocks:
        torch.testing.assert_close(z[b], whole.prox(x[b], 0.5))


def test_locally_low_rank_finds_its_axes() -> None:
    x = signal(1, 2, 4, 5, 6)
    want = LocallyLowRank(1.0, (2, 3, 4), 3).prox(x, 0.5)
    got = LocallyLowRank(1.0, (2, 3, 4), 3, -1).prox(x.movedim(1, -1), 0.5)
    assert relative_gap(got.movedim(-1, 1), want) <= 1e-13
    middle = LocallyLowRank(1.0, (2, 3, 4), 3, 3).prox(x.movedim(1, 3), 0.5)
    assert relative_gap(middle.movedim(3, 1), want) <= 1e-13


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NuclearNorm(1.0, 0), ValueError, "channel_dim must be an axis of .* behind the batch, got 0"),
        (lambda: NuclearNorm(1.0, 1.0), TypeError, "channel_dim must be an int"),
        (lambda: NuclearNorm(1.0, 4)(torch.ones(1, 2, 3)), ValueError, "channel_dim 4 must lie within"),
        (lambda: NuclearNorm()(torch.ones(1, 2, 3, 4)), ValueError, "give channel_dim for a series"),
        (lambda: LocallyLowRank(1.0, 0), ValueError, "block must be >= 1"),
        (lambda: LocallyLowRank(1.0, (2, 2, 2)), ValueError, "block must be one number or 2"),
        (lambda: LocallyLowRank(1.0, 2, 4), ValueError, "dim must be 1, 2 or 3"),
        (lambda: LocallyLowRank(1.0, 2, 2, 4), ValueError, "channel_dim must be an axis"),
        (
            lambda: LocallyLowRank()(torch.ones(1, 8, 8)),
            ValueError,
            "x must have a batch, a channel and 2 spatial axes",
        ),
    ],
)
def test_wrong_arguments_are_refused(make: object, error: type, message: str) -> None:
    assert callable(make)
    with pytest.raises(error, match=message):
        make()
