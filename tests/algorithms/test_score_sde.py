import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from invreg.algorithms.loop import Status
from invreg.algorithms.posterior import sample_prior
from invreg.algorithms.score_sde import (
    Ancestral,
    EulerMaruyama,
    Langevin,
    Predictor,
    PredictorCorrector,
    ReverseDiffusion,
)
from invreg.diagnostics import chi_square
from invreg.interfaces import Denoiser
from invreg.linalg import expand
from invreg.models import Calibrated
from invreg.noise import Gaussian, Poisson
from invreg.operators import Mask, MatrixSensing
from invreg.problem import Problem
from invreg.random import draw
from invreg.sde import SDE, VE, VP, SubVP


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), seeded(seed))


class GaussianDenoiser(Denoiser):
    """Of independent pixels, mean 0.2, variance 0.25 in each real component."""

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=x.real.dtype)
        sigma = expand(sigma, x) if sigma.ndim else sigma
        return 0.2 + 0.25 / (0.25 + sigma**2) * (x - 0.2)


def unmeasured(count: int, d: int, dtype: torch.dtype = torch.float64) -> Problem:
    return Problem(MatrixSensing(torch.zeros(1, d, dtype=dtype)), torch.zeros(count, 1, dtype=dtype))


@pytest.mark.parametrize("sde", [VE(), VP(), SubVP()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("predictor", [EulerMaruyama(), ReverseDiffusion(), Ancestral()], ids=str)
def test_without_data_the_prior_is_sampled(sde: SDE, predictor: Predictor) -> None:
    sampler = PredictorCorrector(iterations=150, sde=sde, predictor=predictor, t_min=1e-3, generator=seeded())
    x = sampler.solve(unmeasured(500, 16), GaussianDenoiser()).x
    assert float(x.mean()) == pytest.approx(0.2, abs=0.025)
    assert float(x.var()) == pytest.approx(0.25, rel=0.09)  # the predictors' own error at so few steps


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("sde", [VE(), VP(), SubVP()], ids=lambda one: type(one).__name__)
def test_a_thousand_steps_make_the_variance_right_to_two_percent(sde: SDE) -> None:
    sampler = PredictorCorrector(iterations=1000, sde=sde, t_min=1e-3, generator=seeded())
    x = sampler.solve(unmeasured(2000, 16), GaussianDenoiser()).x
    assert float(x.mean()) == pytest.approx(0.2, abs=0.01)
    assert float(x.var()) == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize("predictor", [EulerMaruyama(), ReverseDiffusion(), Ancestral()], ids=str)
def test_predictors_alone_become_exact_with_many_steps(predictor: Predictor) -> None:
    error = []
    for n in (25, 250):
        sampler = PredictorCorrector(
            iterations=n, sde=VP(), predictor=predictor, corrector=None, t_min=1e-3, generator=seeded()
        )
        error.append(abs(float(sampler.solve(unmeasured(1000, 8), GaussianDenoiser()).x.var()) / 0.25 - 1))
    assert error[1] < max(0.06, error[0] / 4)


def test_langevin_steps_keep_a_gaussian() -> None:
    corrector, generator = Langevin(), seeded()
    x = 0.5 * noise(1000, 32)
    for _ in range(120):
        x = corrector.step(x, -x / 0.25, 0.5, 1.0, draw(x, generator))
    assert float(x.var()) == pytest.approx(0.25, rel=0.03)


def test_langevin_steps_are_bounded_where_the_score_vanishes() -> None:
    x, n = torch.zeros(2, 2, dtype=torch.float64), noise(2, 2)
    assert float((Langevin().step(x, x, 0.5, 1.0, n) - x).abs().max()) < 0.25 * float(n.abs().max())


def test_complex_images_are_sampled_in_both_parts() -> None:
    sampler = PredictorCorrector(iterations=100, generator=seeded())
    x = sampler.solve(unmeasured(600, 6, torch.complex128), GaussianDenoiser()).x
    assert float(x.real.mean()) == pytest.approx(0.2, abs=0.03) and float(x.imag.mean()) == pytest.approx(0, abs=0.03)
    assert float(x.real.var()) == pytest.approx(0.25, rel=0.06)
    assert float(x.imag.var()) == pytest.approx(0.25, rel=0.06)


def test_the_default_levels_are_in_units_of_the_images() -> None:
    like = torch.zeros(400, 8, dtype=torch.float64)
    for s in (1.0, 1e3, 1e-3):
        prior = Calibrated(GaussianDenoiser(), s)
        found, wanted = (
            sample_prior(PredictorCorrector(iterations=50, sde=sde, generator=seeded()), prior, like)
            for sde in (None, VE(s * 0.01, s * 50.0))
        )
        assert torch.equal(found, wanted)
        assert float(found.std()) == pytest.approx(0.5 * s, rel=0.1)


@pytest.mark.parametrize("sde", [VE(), VP(), SubVP()], ids=lambda one: type(one).__name__)
def test_noisy_pixels_are_sampled_from_their_posterior(sde: SDE) -> None:
    count, sigma = 120, 0.3
    mask = torch.tensor([True, False] * 8)
    truth = 0.2 + 0.5 * noise(count, 16)
    y = (truth + sigma * noise(count, 16, seed=1)) * mask
    problem = Problem(Mask(mask), y, Gaussian(sigma))
    sampler = PredictorCorrector(iterations=300, sde=sde, t_min=1e-3, generator=seeded(2))
    x = sampler.solve(problem, GaussianDenoiser()).x
    gain = 0.25 / (0.25 + sigma**2)
    error = x - torch.where(mask, 0.2 + gain * (y - 0.2), 0.2)
    spread = torch.where(mask, (0.25 * (1 - gain)) ** 0.5, 0.5)
    for seen in (mask, ~mask):
        assert float((error / spread)[:, seen].mean()) == pytest.approx(0, abs=0.12)
        assert float((error / spread)[:, seen].std()) == pytest.approx(1, abs=0.09)
    assert float((error * y)[:, mask].mean() / y[:, mask].square().mean()) == pytest.approx(0, abs=0.14)
    assert float(chi_square(problem, x).mean()) == pytest.approx(1, abs=0.2)


def test_exact_data_are_met_and_their_neighbours_follow() -> None:
    truth = 0.2 + 0.5 * noise(5, 3)
    matrix = torch.linalg.qr(noise(3, 3, seed=3)).Q[:2]
    problem = Problem(MatrixSensing(matrix), truth @ matrix.T, Gaussian(1e-3))
    x = PredictorCorrector(iterations=20, sde=VE(1e-3, 20.0), generator=seeded()).solve(problem, GaussianDenoiser()).x
    torch.testing.assert_close(x @ matrix.T, problem.y, rtol=0, atol=0.01)


def test_a_chain_does_not_depend_on_its_batch() -> None:
    truth = 0.2 + 0.5 * noise(3, 5)
    matrix, levels = noise(4, 5, seed=1), torch.tensor([[0.05], [0.5], [0.01]]).double()
    y = truth @ matrix.T + levels * noise(3, 4, seed=2)

    def chains(which: list[int]) -> Tensor:
        sampler = PredictorCorrector(
            iterations=8, sde=SubVP(), predictor=Ancestral(), t_min=1e-3, generator=[seeded(i) for i in which]
        )
        problem = Problem(MatrixSensing(matrix), y[which], Gaussian(levels[which]))
        return sampler.solve(problem, GaussianDenoiser()).x

    together = chains([0, 1, 2])
    for i in range(3):
        torch.testing.assert_close(chains([i]), together[i : i + 1], rtol=1e-4, atol=1e-5)


class Looks(TorchDispatchMode):
    """Counts what the host reads of single precision and of truth values: coefficients are double and its own."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        reads = name in {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select"}
        self.count += reads and args[0].dtype != torch.float64
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device() -> None:
    problem = Problem(Mask(torch.tensor([True, False])), torch.tensor([[1.0, 0.0], [0.2, 0.0]]), Gaussian(0.1))
    for corrector in (None, Langevin(steps=2)):
        sampler = PredictorCorrector(iterations=12, corrector=corrector, generator=seeded())
        run = sampler.iterate(problem, GaussianDenoiser())
        run.state = sampler.step(problem, GaussianDenoiser(), run.state, 1 / 12)  # remembers what y says
        with Looks() as looks:
            for k in range(1, 12):
                run.state = sampler.step(problem, GaussianDenoiser(), run.state, (k + 1) / 12)
        assert looks.count == 0
        assert run.state.most == pytest.approx(100, rel=0.01) and not run.state.blind


def test_the_run_is_recorded_and_single_precision_stays() -> None:
    problem = Problem(Mask(torch.tensor([True, False])), torch.tensor([[1.0, 0.0]]), Gaussian(0.1))
    result = PredictorCorrector(iterations=20, sde=VE(), generator=seeded()).solve(problem, GaussianDenoiser())
    assert result.x.dtype == torch.float32
    assert result.status == (Status.COMPLETE,) and result.iterations == 20
    assert result.settings["algorithm"] == "PredictorCorrector" and "VE" in result.settings["sde"]


def test_the_sampler_refuses_what_it_cannot_do() -> None:
    eye, y = MatrixSensing(torch.eye(2).double()), torch.ones(1, 2).double()
    with pytest.raises(TypeError, match="PredictorCorrector needs a Denoiser, got NoneType"):
        PredictorCorrector().solve(Problem(eye, y), None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="PredictorCorrector needs a LinearOperator and Gaussian noise"):
        PredictorCorrector().solve(Problem(eye, y, Poisson()), GaussianDenoiser())
    with pytest.raises(TypeError, match=r"sde must be one such as VE\(\)"):
        PredictorCorrector(sde=VE)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"predictor must be one such as ReverseDiffusion\(\)"):
        PredictorCorrector(predictor="ancestral")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rtol must be 0, as a schedule is gone through to its end, got 0.1"):
        PredictorCorrector(rtol=0.1)
    with pytest.raises(TypeError, match="generator must be a torch.Generator, or one for each sample, got 3"):
        PredictorCorrector(generator=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="iterations must be >= 2, got 1"):
        PredictorCorrector(iterations=1)
    with pytest.raises(ValueError, match="snr must be < 1, got 2"):
        Langevin(snr=2)
