import pytest
import torch

from invreg.moments import Moments
from invreg.random import draw


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_batches_give_the_mean_and_std_of_all_draws(dtype: torch.dtype) -> None:
    draws = noise(23, 2, 5, dtype=dtype) + 3
    found = Moments()
    for batch in draws.split([1, 10, 0, 5, 7]):
        found = found.add(batch)
    assert found.count == 23
    torch.testing.assert_close(found.mean, draws.mean(0))
    torch.testing.assert_close(found.std, draws.std(0))
    torch.testing.assert_close(found.variance, draws.var(0))
    assert not found.std.is_complex()


def test_moments_of_parts_merge_to_those_of_the_whole() -> None:
    draws = noise(30, 4)
    parts = [Moments().add(part) for part in draws.split([7, 12, 11])]
    found = parts[0].merge(parts[1]).merge(parts[2])
    torch.testing.assert_close(found.std, draws.std(0))
    torch.testing.assert_close(Moments().merge(found).mean, draws.mean(0))
    torch.testing.assert_close(found.merge(Moments()).mean, draws.mean(0))
    assert parts[0].count == 7


def test_a_small_spread_about_a_large_mean_keeps_its_digits() -> None:
    draws = noise(1000, 3).float() + 1e4
    found = Moments()
    for one in draws:
        found = found.add(one[None])
    torch.testing.assert_close(found.std, draws.double().std(0).float(), rtol=1e-3, atol=0)


def test_half_precision_is_summed_in_single() -> None:
    found = Moments().add(torch.full((3000, 1), 100.0, dtype=torch.float16))
    assert found.mean.dtype == torch.float32
    assert float(found.mean) == 100.0


def test_moments_refuse_other_shapes_and_too_few_draws() -> None:
    with pytest.raises(ValueError, match="mean needs a draw"):
        _ = Moments().mean
    with pytest.raises(ValueError, match="a spread needs 2 draws or more, got 1"):
        _ = Moments().add(noise(1, 3)).std
    with pytest.raises(ValueError, match=r"draws must be \(N, \*\(3,\)\), got \(N, \*\(4,\)\)"):
        Moments().add(noise(2, 3)).add(noise(2, 4))
    with pytest.raises(TypeError, match="draws must be floating point"):
        Moments().add(torch.ones(2, 2, dtype=torch.int64))
