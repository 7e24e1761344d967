"""Latent ODEs: the bound and its parts, what was not observed, learning."""

import math

import pytest
import torch
from torch import Tensor, nn

from invreg.models import MLP, Gaussian, SeriesEncoder, TimeMLP
from invreg.regularizers import LocalHeuristic, SolverError
from invreg.solvers import Solver
from invreg.training import Shuffled, fit, parallel
from invreg.training.latent_ode import EvidenceBound, LatentODE, gaussian_nll, union_grid, warm_up


def model(sigma: float = 0.1, per_sample: bool = False) -> LatentODE:
    torch.manual_seed(0)
    encoder, field, decoder = SeriesEncoder(1, 8, 2), TimeMLP(2, (8,), timed=False), MLP(2, (), 1)
    return LatentODE(encoder, field, decoder, sigma=sigma, solver=Solver(rtol=1e-6, atol=1e-6, per_sample=per_sample))


def waves(samples: int = 64, times: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Sines of several phases, of which half is observed."""
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(times, generator=generator).sort().values.double()
    phase = 6.28 * torch.rand(samples, 1, 1, generator=generator)
    values = torch.sin(4 * t.float()[None, :, None] + phase)
    return values, torch.rand(samples, times, 1, generator=generator) < 0.5, t


@pytest.mark.parametrize("per_sample", [False, True])
def test_terms_are_those_of_the_bound_per_observed_number(per_sample: bool) -> None:
    values, mask, times = waves(8)
    latent = model(per_sample=per_sample)
    penalties = {"error": SolverError(1e-3), "local": LocalHeuristic(1e-3)}
    objective = EvidenceBound(latent, times, lambda progress: progress, penalties)
    terms = objective((values, mask), 0.25, torch.Generator().manual_seed(0))
    assert list(terms) == ["data", "divergence", "error", "local"]
    assert all(term.shape == () and term.requires_grad for term in terms.values())
    kept = mask.any(2).any(0)
    normal = latent.encode(values[:, kept], mask[:, kept], times[kept])
    path = latent.decode(normal.sample(torch.Generator().manual_seed(0)), times[kept])
    exact = -torch.distributions.Normal(path.values, 0.1).log_prob(values[:, kept])[mask[:, kept]].mean()
    assert torch.allclose(terms["data"], exact, rtol=1e-5)
    assert torch.allclose(terms["divergence"], 0.25 * normal.divergence().sum() / mask.sum())
    again = objective((values, mask), 0.25, torch.Generator().manual_seed(0))
    assert torch.equal(again["data"], terms["data"])


def test_processes_divide_by_the_mean_of_their_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    values, mask, times = waves(8)
    mask[:4] &= torch.rand(mask[:4].shape, generator=torch.Generator().manual_seed(1)) < 0.3
    mask[::4] = True  # so that both halves have one grid
    objective = EvidenceBound(model(per_sample=True), times, lambda progress: 1.0)
    monkeypatch.setattr(Gaussian, "sample", lambda self, generator=None: self.mean)
    whole = objective((values, mask), 1.0)
    monkeypatch.setattr(parallel, "mean", lambda count: mask.sum() / 2)
    halves = [objective((values[rows], mask[rows]), 1.0) for rows in (slice(4), slice(4, 8))]
    assert int(mask[:4].sum()) != int(mask[4:].sum())
    for name, term in whole.items():
        assert torch.allclose(term, (halves[0][name] + halves[1][name]) / 2, rtol=1e-5)


def test_what_was_not_observed_does_not_count() -> None:
    values, mask, times = waves(8)
    mask[:, 3] = False
    objective = EvidenceBound(model(), times)
    hidden = torch.where(mask, values, torch.nan)
    one, other = (objective((v, mask), 1.0, torch.Generator().manual_seed(0)) for v in (values, hidden))
    for name, term in one.items():
        assert torch.equal(term, other[name])
    gradient = torch.autograd.grad(other["data"], list(objective.model.parameters()), allow_unused=True)
    assert all(bool(one.isfinite().all()) for one in gradient if one is not None)


def test_the_likelihood_is_that_of_a_normal_distribution() -> None:
    means, values = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[1.5], [9.0]]])
    mask = torch.tensor([[[True], [False]]])
    expected = 0.25 / (2 * 0.04) + math.log(0.2) + math.log(2 * math.pi) / 2
    assert float(gaussian_nll(means, values, mask, 0.2)) == pytest.approx(expected, rel=1e-6)


def test_the_weight_of_the_divergence_rises_over_the_first_half() -> None:
    assert [warm_up(p) for p in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0]


def test_series_are_predicted_at_any_later_times() -> None:
    values, mask, times = waves(4)
    latent = model()
    wanted = torch.cat([times[:1], times[:1] + torch.tensor([0.5, 2.0])])
    path = latent(values, mask, times, wanted)
    assert path.values.shape == (4, 3, 1)
    assert torch.allclose(path.values[:, 0], latent(values, mask, times).values[:, 0])
    with pytest.raises(ValueError, match="wanted must begin with the first time of the observations"):
        latent(values, mask, times, wanted[1:])


def test_a_latent_ode_learns_waves() -> None:
    values, mask, times = waves()
    latent = model(0.2)
    latent.solver = Solver()
    objective = EvidenceBound(latent, times)
    with torch.no_grad():
        before = objective.score((values, mask))["squared error"]
    batches = Shuffled(values, mask, size=64, epochs=60, seed=0)
    fit(objective, batches, torch.optim.Adam(latent.parameters(), lr=0.03), torch.Generator().manual_seed(0))
    with torch.no_grad():
        after = objective.score((values, mask))
    assert float(after["squared error"]) < 0.3 * float(before)
    assert float(after["evaluations"]) > 0


def test_the_parts_of_a_model_rebuild_it() -> None:
    latent = model()
    again = LatentODE(**latent.config)  # type: ignore[arg-type]
    values, mask, times = waves(4)
    assert torch.equal(again(values, mask, times).values, latent(values, mask, times).values)
    assert isinstance(again.encoder, nn.Module)


def test_samples_are_put_on_the_union_of_their_times() -> None:
    one = (torch.tensor([0.0, 0.5]), torch.tensor([[1.0, 2.0], [3.0, torch.nan]]))
    other = (torch.tensor([0.7, 0.5]), torch.tensor([[4.0, 5.0], [6.0, 7.0]]))
    series = union_grid([one, other])
    assert torch.allclose(series.times, torch.tensor([0.0, 0.5, 0.7], dtype=torch.float64))
    assert series.values.tolist() == [[[1, 2], [3, 0], [0, 0]], [[0, 0], [6, 7], [4, 5]]]
    assert series.mask.int().tolist() == [[[1, 1], [1, 0], [0, 0]], [[0, 0], [1, 1], [1, 1]]]


def test_arguments_that_do_not_fit_are_named() -> None:
    values, mask, times = waves(4)
    with pytest.raises(ValueError, match=r"values and mask must be \(B, 15, features\), got \(4, 14, 1\)"):
        EvidenceBound(model(), times)((values[:, 1:], mask[:, 1:]), 0.0)
    with pytest.raises(ValueError, match="mask must have an observation in each batch, got none"):
        EvidenceBound(model(), times)((values, mask & False), 0.0)
    with pytest.raises(ValueError, match="regularizers must not be called 'data'"):
        EvidenceBound(model(), times, regularizers={"data": SolverError()})
    with pytest.raises(ValueError, match="sigma must be finite and > 0, got 0"):
        model(0)
    with pytest.raises(ValueError, match="samples must hold at least one series"):
        union_grid([])
    with pytest.raises(
        ValueError, match=r"sample 0 must have times \(T,\) and values \(T, 1\), got \(2,\) and \(3, 1\)"
    ):
        union_grid([(torch.zeros(2), torch.zeros(3, 1))])
    with pytest.raises(ValueError, match="sample 0 must have each time once, got 1 twice"):
        union_grid([(torch.zeros(2), torch.zeros(2, 1))])
