import pytest
import torch

from invreg.random import draw


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_noise_has_shape_and_dtype_of_its_model(dtype: torch.dtype) -> None:
    like = torch.zeros(2, 3, 4, dtype=dtype)
    got = draw(like, seeded(0))
    assert got.dtype == dtype
    assert got.shape == like.shape
    assert torch.equal(like, torch.zeros_like(like))


def test_every_real_component_has_variance_one() -> None:
    real = draw(torch.empty(1, 200_000, dtype=torch.float64), seeded(0))
    assert float(real.var()) == pytest.approx(1, rel=0.02)
    complex_ = draw(torch.empty(1, 200_000, dtype=torch.complex128), seeded(0))
    assert float(complex_.abs().square().mean()) == pytest.approx(2, rel=0.02)
    assert float(complex_.real.var()) == pytest.approx(1, rel=0.02)


def test_one_generator_repeats_itself() -> None:
    like = torch.empty(2, 3)
    assert torch.equal(draw(like, seeded(1)), draw(like, seeded(1)))
    assert not torch.equal(draw(like, seeded(1)), draw(like, seeded(2)))


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    like = torch.empty(3, 4, 5, dtype=torch.complex64)
    together = draw(like, [seeded(i) for i in range(3)])
    for i in range(3):
        assert torch.equal(together[i : i + 1], draw(like[i : i + 1], [seeded(i)]))
        assert torch.equal(together[i : i + 1], draw(like[i : i + 1], seeded(i)))


def test_drawing_from_a_generator_leaves_the_global_seed_alone() -> None:
    state = torch.get_rng_state()
    draw(torch.empty(2, 3), seeded(0))
    draw(torch.empty(2, 3), [seeded(0), seeded(1)])
    assert torch.equal(torch.get_rng_state(), state)


def test_too_few_generators_are_refused() -> None:
    with pytest.raises(ValueError, match=r"generator must be one or one per sample \(3\), got a sequence of 2"):
        draw(torch.empty(3, 4), [seeded(0), seeded(1)])


def test_noise_of_integers_is_refused() -> None:
    with pytest.raises(TypeError, match="like must be floating point or complex, got torch.int64"):
        draw(torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_noise_is_drawn_on_the_device_of_the_generator() -> None:
    like = torch.empty(2, 3, device="cuda")
    assert torch.equal(draw(like, seeded(0)).cpu(), draw(torch.empty(2, 3), seeded(0)))
    assert draw(like, torch.Generator("cuda").manual_seed(0)).device.type == "cuda"
