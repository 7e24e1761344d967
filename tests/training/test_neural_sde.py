"""Neural SDEs and their fit to moments."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from invreg.config import SAVED
from invreg.models import CubicDrift
from invreg.models.pretrained import from_pretrained, save_pretrained
from invreg.regularizers import SolverError
from invreg.solvers import PI, SOSRI, Fixed, NoisySolver, Solver
from invreg.training import MomentFit, NeuralSDE, fit

TIMES = [0.0, 0.25, 0.5]


class Ornstein(nn.Module):
    """-rate y, or a constant."""

    def __init__(self, rate: float, constant: bool = False) -> None:
        super().__init__()
        self.rate, self.constant = nn.Parameter(torch.tensor(rate, dtype=torch.float64)), constant

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rate * torch.ones_like(y) if self.constant else -self.rate * y


def model(rate: float = 1.0, sigma: float = 0.5) -> NeuralSDE:
    return NeuralSDE(Ornstein(rate), Ornstein(sigma, constant=True), NoisySolver(noise="additive", rtol=1e-3))


def exact(rate: float, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Start, means and variances of an Ornstein-Uhlenbeck process in closed form."""
    y0, t = torch.tensor([[1.0, -2.0]], dtype=torch.float64), torch.tensor(TIMES[1:], dtype=torch.float64)[:, None]
    variance = sigma**2 / (2 * rate) * (1 - torch.exp(-2 * rate * t))
    return y0, (torch.exp(-rate * t) * y0)[None], variance.expand(-1, 2)[None]


def test_the_moments_of_an_ornstein_uhlenbeck_process_are_met_by_the_true_model() -> None:
    terms = MomentFit(model(), TIMES, paths=20_000)(exact(1.0, 0.5), 0.0, torch.Generator().manual_seed(0))
    assert set(terms) == {"mean", "variance"}
    assert terms["mean"].item() < 4 * 4 * 0.16 / 20_000
    assert terms["variance"].item() < 4 * 4 * 2 * 0.16**2 / 20_000


@pytest.mark.slow
def test_training_finds_rate_and_noise() -> None:
    found = model(0.3, 0.2)
    optimizer = torch.optim.Adam(found.parameters(), lr=0.05)
    fit(MomentFit(found, TIMES, paths=500), [exact(1.0, 0.5)] * 150, optimizer, torch.Generator().manual_seed(0))
    assert abs(float(found.drift.rate.detach()) - 1.0) < 0.1
    assert abs(float(found.diffusion.rate.detach()) - 0.5) < 0.08


def test_the_same_generator_gives_the_same_terms_and_gradients_match_finite_differences() -> None:
    objective = MomentFit(
        NeuralSDE(Ornstein(1.0), Ornstein(0.5, constant=True), NoisySolver("additive", controller=Fixed(0.125))),
        TIMES,
        paths=10,
        regularizers={"error": SolverError(1e-3)},
    )
    batch, rate = exact(1.0, 0.5), objective.model.drift.rate

    def total() -> Tensor:
        terms = objective(batch, 0.5, torch.Generator().manual_seed(3))
        assert set(terms) == {"mean", "variance", "error"}
        return torch.stack([*terms.values()]).sum()

    (slope,) = torch.autograd.grad(total(), rate)
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            rate += step
        values.append(total().detach())
        with torch.no_grad():
            rate -= step
    torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-9)


def test_scores_tell_misfits_and_evaluations() -> None:
    score = MomentFit(model(), TIMES).score(exact(1.0, 0.5), torch.Generator().manual_seed(0))
    assert set(score) == {"mean", "variance", "evaluations"}
    assert float(score["evaluations"]) > 10


def test_a_model_is_saved_with_its_solver(tmp_path: Path) -> None:
    solver = NoisySolver(method=SOSRI(estimate="sum"), controller=PI(max_step=0.5), rtol=0.1)
    saved = NeuralSDE(CubicDrift(2, 5), CubicDrift(2, 4), solver)
    save_pretrained(saved, tmp_path / "model", SAVED)
    found = from_pretrained(tmp_path / "model", SAVED)
    assert isinstance(found, NeuralSDE)
    assert found.solver == solver
    for one, other in zip(found.parameters(), saved.parameters(), strict=True):
        assert torch.equal(one, other)


def test_bad_input_is_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match="times must hold"):
        MomentFit(model(), [0.0])
    with pytest.raises(ValueError, match="at least 2"):
        MomentFit(model(), TIMES, paths=1)
    with pytest.raises(ValueError, match="must not be called 'mean'"):
        MomentFit(model(), TIMES, regularizers={"mean": SolverError()})
    y0, means, variances = exact(1.0, 0.5)
    with pytest.raises(ValueError, match=r"variances must be \(1, 2, 2\)"):
        MomentFit(model(), TIMES)((y0, means, variances[:, :1]), 0.0)


def test_each_start_is_held_to_its_own_moments() -> None:
    y0, means, variances = exact(1.0, 0.5)
    both = torch.cat([y0, 3 * y0]), torch.cat([means, 3 * means]), variances.expand(2, -1, -1)
    fitted = MomentFit(model(), TIMES, paths=5000)
    right = fitted(both, 0.0, torch.Generator().manual_seed(0))
    wrong = fitted((both[0].flip(0), *both[1:]), 0.0, torch.Generator().manual_seed(0))
    assert right["mean"].item() < 0.01
    assert wrong["mean"].item() > 1


def test_parts_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="solver must be a NoisySolver, got Solver"):
        NeuralSDE(CubicDrift(), CubicDrift(), Solver())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="drift must be a torch.nn.Module"):
        NeuralSDE(lambda t, y: y, CubicDrift())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be a NeuralSDE"):
        MomentFit(CubicDrift(), TIMES)  # type: ignore[arg-type]
