import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from invreg.interfaces import Noise, ProximalNoise
from invreg.noise import Gaussian, Poisson, TransmissionPoisson, line_integrals
from invreg.random import draw
from invreg.testing import noise_gap, relative_gap


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), seeded(seed))


def positive(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=seeded(seed)) + 0.1


# --- samples


def test_real_gaussian_noise_has_variance_sigma_squared() -> None:
    clean = torch.full((2, 100_000), 3.0, dtype=torch.float64)
    y = Gaussian(0.5).sample(clean, seeded())
    assert float(y.mean()) == pytest.approx(3.0, abs=0.005)
    assert float((y - clean).square().mean()) == pytest.approx(0.25, rel=0.02)


def test_complex_gaussian_noise_has_twice_the_energy_and_no_preferred_phase() -> None:
    error = Gaussian(0.5).sample(torch.zeros(1, 200_000, dtype=torch.complex128), seeded())
    assert float(error.abs().square().mean()) == pytest.approx(2 * 0.25, rel=0.02)
    assert float(error.real.square().mean()) == pytest.approx(0.25, rel=0.02)
    assert abs(complex(error.square().mean())) < 0.005


def test_sigma_of_each_sample_scales_its_noise() -> None:
    sigma = torch.tensor([0.1, 10.0], dtype=torch.float64).reshape(2, 1, 1)
    error = Gaussian(sigma).sample(torch.zeros(2, 100, 100, dtype=torch.float64), seeded())
    assert torch.allclose(error.flatten(1).std(1), sigma.flatten(), rtol=0.05)


@pytest.mark.parametrize(
    ("model", "clean", "rate"),
    [(Poisson(20.0, 3.0), 0.4, 11.0), (TransmissionPoisson(100.0, 5.0), 1.5, 100 * math.exp(-1.5) + 5)],
)
def test_counts_have_mean_and_variance_of_their_rate(model: Noise, clean: float, rate: float) -> None:
    y = model.sample(torch.full((1, 100_000), clean, dtype=torch.float64), seeded())
    assert float(y.mean()) == pytest.approx(rate, rel=0.01)
    assert float(y.var()) == pytest.approx(rate, rel=0.03)
    assert torch.equal(y, y.round())


@pytest.mark.parametrize("model", [Gaussian(0.3), Poisson(30.0), TransmissionPoisson(200.0, 1.0)])
def test_noise_of_a_sample_does_not_depend_on_its_batch(model: Noise) -> None:
    clean = positive(3, 4, 5)
    together = model.sample(clean, [seeded(i) for i in range(3)])
    for i in range(3):
        assert torch.equal(together[i : i + 1], model.sample(clean[i : i + 1], [seeded(i)]))
    assert not torch.equal(together[0], together[1])
    with pytest.raises(ValueError, match=r"generator must be one or one per sample \(3\), got a sequence of 2"):
        model.sample(clean, [seeded(0), seeded(1)])


@pytest.mark.parametrize("model", [Gaussian(0.3), Poisson(30.0), TransmissionPoisson(200.0, 1.0)])
def test_samples_keep_the_precision(model: Noise) -> None:
    assert model.sample(torch.ones(1, 3, dtype=torch.float32), seeded()).dtype == torch.float32


# --- likelihoods


def test_gaussian_likelihood_is_scipys_up_to_a_constant_of_y() -> None:
    clean, y = noise(2, 5), noise(2, 5, seed=1)
    want = -torch.from_numpy(stats.norm.logpdf(y.numpy(), clean.numpy(), 0.7)) - math.log(0.7 * math.sqrt(2 * math.pi))
    assert relative_gap(Gaussian(0.7).nll(clean, y), want.sum(1)) < 1e-13


def test_complex_gaussian_likelihood_sums_both_components() -> None:
    clean, y = noise(2, 5, dtype=torch.complex128), noise(2, 5, dtype=torch.complex128, seed=1)
    parts = Gaussian(0.7).nll(torch.view_as_real(clean), torch.view_as_real(y))
    assert relative_gap(Gaussian(0.7).nll(clean, y), parts) < 1e-14


def test_expected_gaussian_likelihood_is_half_the_count_of_real_numbers() -> None:
    clean = torch.zeros(1, 50_000, dtype=torch.complex128)
    model = Gaussian(3.0)
    assert float(model.nll(clean, model.sample(clean, seeded()))) == pytest.approx(50_000, rel=0.02)


@pytest.mark.parametrize("background", [0.0, 2.0])
@pytest.mark.parametrize("kind", [Poisson, TransmissionPoisson])
def test_count_likelihood_is_scipys_up_to_a_constant_of_y(kind: type, background: float) -> None:
    clean = positive(2, 6)
    model = kind(photons=30.0, background=background)
    y = model.sample(clean, seeded())
    y[:, 0] = 0
    rate = (30 * clean if kind is Poisson else 30 * torch.exp(-clean)) + background
    want = torch.from_numpy(stats.poisson.logpmf(y.numpy(), y.numpy()) - stats.poisson.logpmf(y.numpy(), rate.numpy()))
    assert relative_gap(model.nll(clean, y), want.sum(1)) < 1e-12


@pytest.mark.parametrize("kind", [Poisson, TransmissionPoisson])
@pytest.mark.parametrize("background", [0.0, 100.0])
def test_large_counts_do_not_cancel_in_single_precision(kind: type, background: float) -> None:
    model = kind(photons=1e6, background=background)
    clean = positive(1, 1000)
    y = model.sample(clean, seeded())
    want = model.nll(clean.float().double(), y)
    assert 400 < float(want) < 600  # half the count
    assert float(model.nll(clean.float(), y.float())) == pytest.approx(float(want), rel=2e-3)


def test_dark_rays_cost_what_their_logarithm_says() -> None:
    clean = torch.tensor([[200.0]], dtype=torch.float32)  # exp(-200) is zero in single precision
    value = TransmissionPoisson(1000.0).nll(clean, torch.tensor([[4.0]]))
    assert float(value) == pytest.approx(4 * (math.log(4 / 1000) + 200) - 4, rel=1e-5)


def test_zero_counts_are_ordinary() -> None:
    y = torch.zeros(1, 2, dtype=torch.float64)
    clean = torch.tensor([[0.0, 0.5]], dtype=torch.float64)
    assert float(Poisson(10.0).nll(clean, y)) == pytest.approx(5.0)
    assert torch.equal(Poisson(10.0).nll_gradient(clean, y), torch.full_like(y, 10.0))
    assert float(TransmissionPoisson(10.0).nll(clean, y)) == pytest.approx(10 + 10 * math.exp(-0.5))
    for model in (Poisson(10.0), TransmissionPoisson(10.0), TransmissionPoisson(10.0, 1.0)):
        point = clean.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.nll(point, y).sum(), point)
        assert relative_gap(gradient, model.nll_gradient(clean, y)) < 1e-14


def test_the_gradient_at_an_impossible_rate_leads_back() -> None:
    y, clean = torch.tensor([[2.0, 2.0, 0.0, 5.0]]), torch.tensor([[-1.0, 0.0, -1.0, -0.01]])
    assert Poisson(10.0).nll_gradient(clean, y)[0].tolist() == pytest.approx([-90.0, -90.0, 0.0, -90.0])
    assert Poisson(10.0, 1.0).nll_gradient(clean, y)[0].tolist() == pytest.approx([-90.0, -10.0, 0.0, 10 - 50 / 0.9])


def test_an_impossible_rate_costs_infinitely_much() -> None:
    y, clean = torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 1.0]])
    assert float(Poisson().nll(clean, y)) == math.inf
    assert float(Poisson().nll(torch.tensor([[0.0, 1.0]]), y)) == math.inf
    assert float(Poisson().nll(torch.tensor([[-0.5]]), torch.zeros(1, 1))) == math.inf


def test_what_explains_the_data_best_costs_nothing() -> None:
    y = torch.tensor([[0.0, 3.0, 1e5]])
    assert float(Poisson().nll(y, y)) == 0
    assert float(Gaussian().nll(y, y)) == 0
    assert float(TransmissionPoisson(1e6).nll(-torch.log(y[:, 1:] / 1e6), y[:, 1:])) == pytest.approx(0, abs=1e-6)


def test_a_nan_shows() -> None:
    bad = torch.tensor([[float("nan"), 1.0]])
    for model in (Gaussian(), Poisson(), TransmissionPoisson(10.0), TransmissionPoisson(10.0, 1.0)):
        assert bool(model.nll(bad, torch.ones(1, 2)).isnan().all())
        for counts in (torch.zeros(1, 2), torch.ones(1, 2)):
            assert model.nll_gradient(bad, counts).isnan().tolist() == [[True, False]]


# --- gradients

MODELS: list[Callable[[], Noise]] = [
    lambda: Gaussian(0.4),
    lambda: Gaussian(positive(2, 6)),
    lambda: Poisson(30.0),
    lambda: Poisson(positive(2, 6, seed=3), 0.5),
    lambda: TransmissionPoisson(30.0),
    lambda: TransmissionPoisson(100 * positive(2, 6, seed=3), 2.0),
]


@pytest.mark.parametrize("make", MODELS)
def test_gradient_has_finite_differences(make: Callable[[], Noise]) -> None:
    model, clean = make(), positive(2, 6)
    y = model.sample(positive(2, 6, seed=1), seeded())
    assert noise_gap(model, clean, y) < 1e-7


def test_gradient_of_complex_gaussian_noise_has_finite_differences() -> None:
    clean, y = noise(2, 6, dtype=torch.complex128), noise(2, 6, dtype=torch.complex128, seed=1)
    assert noise_gap(Gaussian(0.4), clean, y) < 1e-7


@pytest.mark.parametrize("make", MODELS)
def test_gradient_is_that_of_autograd(make: Callable[[], Noise]) -> None:
    model, clean = make(), positive(2, 6).requires_grad_()
    y = model.sample(positive(2, 6, seed=1), seeded())
    (gradient,) = torch.autograd.grad(model.nll(clean, y).sum(), clean)
    assert relative_gap(gradient, model.nll_gradient(clean.detach(), y)) < 1e-12


# --- proximal maps


def minimiser(objective: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """The minimiser of a convex function of each entry, by golden section."""
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(90):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        left = objective(a) < objective(b)
        low, high = torch.where(left, low, a), torch.where(left, b, high)
    return (low + high) / 2


@pytest.mark.parametrize(
    "model",
    [Gaussian(0.4), Gaussian(torch.tensor(2.0)), Poisson(5.0), Poisson(0.3, 2.0), Poisson(torch.tensor(40.0), 0.1)],
)
@pytest.mark.parametrize("step", [1e-3, 0.5, torch.tensor(30.0, dtype=torch.float64)])
def test_prox_is_the_minimiser_by_brute_force(model: Noise, step: float | Tensor) -> None:
    assert isinstance(model, ProximalNoise)
    z = 3 * noise(1, 40)
    y = torch.poisson(4 * positive(1, 40), generator=seeded())
    y[:, ::4] = 0
    got = model.prox(z, y, step)

    def objective(c: Tensor) -> Tensor:
        each = model.nll(c.reshape(-1, 1), y.reshape(-1, 1)).reshape(c.shape)
        return step * each + (c - z).square() / 2

    low = torch.full_like(z, -1e5)
    if isinstance(model, Poisson):
        low = torch.full_like(z, 1e-15 - model.background / float(model.photons))
    found = minimiser(objective, low, torch.full_like(z, 1e5))
    assert float((objective(got) - objective(found)).max()) < 1e-9
    assert torch.allclose(got, found, atol=2e-5)


def test_prox_of_complex_gaussian_noise_solves_its_optimality() -> None:
    z, y = noise(2, 6, dtype=torch.complex128), noise(2, 6, dtype=torch.complex128, seed=1)
    model, step = Gaussian(0.4), torch.tensor([0.3, 5.0], dtype=torch.float64).reshape(2, 1)
    c = model.prox(z, y, step)
    assert float((step * model.nll_gradient(c, y) + c - z).abs().max()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prox_of_poisson_noise_is_finite_and_has_a_finite_gradient_everywhere(dtype: torch.dtype) -> None:
    z = torch.tensor([[-1e6, -1.0, 0.0, 0.5, 1.0, 1e6]], dtype=dtype).requires_grad_()
    for count in (0.0, 1.0, 1e6):
        c = Poisson().prox(z, torch.full_like(z, count), 0.5)  # at z = 0.5 the square root meets zero
        assert bool((c >= 0).all())
        assert bool(c.isfinite().all())
        (gradient,) = torch.autograd.grad(c.sum(), z)
        assert bool(gradient.isfinite().all())


def test_prox_of_poisson_noise_loses_no_digits_far_below_zero() -> None:
    z, y = torch.tensor([[-1e4]], dtype=torch.float32), torch.tensor([[3.0]])
    want = Poisson().prox(z.double(), y.double(), 1.0)
    assert float(Poisson().prox(z, y, 1.0)) == pytest.approx(float(want), rel=1e-5)


def test_transmission_noise_has_no_proximal_map() -> None:
    assert not isinstance(TransmissionPoisson(10.0), ProximalNoise)


# --- the logarithm of counts


def test_line_integrals_undo_the_attenuation_and_state_its_deviation() -> None:
    clean = torch.full((1, 100_000), 1.2, dtype=torch.float64)
    counts = TransmissionPoisson(1000.0, 20.0).sample(clean, seeded())
    got, sigma = line_integrals(counts, 1000.0, 20.0)
    assert float(got.mean()) == pytest.approx(1.2, abs=2e-3)
    assert float(got.std()) == pytest.approx(float(sigma.mean()), rel=0.02)


def test_low_counts_are_read_as_half_a_count() -> None:
    got, sigma = line_integrals(torch.tensor([0.0, 2.0, 10.0]), 100.0, 2.0)
    assert got.tolist() == pytest.approx([math.log(200), math.log(200), math.log(100 / 8)])
    assert sigma.tolist() == pytest.approx([math.sqrt(2.5) / 0.5, math.sqrt(2.5) / 0.5, math.sqrt(10) / 8])


def test_line_integrals_take_a_flat_field() -> None:
    flat = torch.tensor([100.0, 200.0])
    got, _ = line_integrals(torch.tensor([[50.0, 50.0]]), flat)
    assert torch.allclose(got, torch.log(flat / 50)[None])


# --- refusals


def test_wrong_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="sigma must be finite and > 0, got 0"):
        Gaussian(0.0)
    with pytest.raises(ValueError, match="sigma must be finite and > 0 everywhere"):
        Gaussian(torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="sigma must be finite and > 0 everywhere"):
        Gaussian(torch.tensor(float("nan")))
    with pytest.raises(ValueError, match="photons must be finite and > 0 everywhere"):
        TransmissionPoisson(torch.tensor(math.inf))
    for wrong in (torch.tensor(1j), torch.tensor(2)):
        with pytest.raises(TypeError, match="sigma must be a number or a floating-point tensor"):
            Gaussian(wrong)
    for counts in (torch.tensor([-5.0]), torch.tensor([math.nan])):
        with pytest.raises(ValueError, match="counts must be"):
            line_integrals(counts, 10.0)
    with pytest.raises(TypeError, match="sigma must be a number, got str"):
        Gaussian("0.1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="photons must be finite and > 0, got -1"):
        Poisson(-1.0)
    with pytest.raises(ValueError, match="background must be finite and >= 0, got -1"):
        TransmissionPoisson(10.0, -1.0)
    with pytest.raises(ValueError, match="photons must be finite and > 0, got 0"):
        line_integrals(torch.ones(2), 0.0)
    with pytest.raises(ValueError, match="background must be finite and >= 0"):
        line_integrals(torch.ones(2), 1.0, -1.0)


def test_a_noise_model_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Gaussian(0.1).sigma = 0.2  # type: ignore[misc]
