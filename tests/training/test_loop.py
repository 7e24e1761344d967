"""The training loop: terms by name, an optimizer step for each batch, nothing lost where the loss is not finite."""

from typing import Any

import pytest
import torch
from torch import Tensor

from invreg.training import fit, iterate


def objective(w: Tensor) -> Any:
    def terms(batch: Tensor, progress: float, generator: torch.Generator | None) -> dict[str, Tensor]:
        noise = torch.randn((), generator=generator, dtype=w.dtype)
        return {"data": (w - batch).square().sum(), "noise": 1e-3 * noise * w.sum()}

    return terms


def parameter() -> Tensor:
    return torch.zeros(2, dtype=torch.float64, requires_grad=True)


def test_fit_descends_the_sum_of_the_terms_and_records_each() -> None:
    w, target = parameter(), torch.tensor([1.0, -2.0], dtype=torch.float64)
    record = fit(objective(w), [target] * 200, torch.optim.SGD([w], lr=0.1), torch.Generator().manual_seed(0))
    assert torch.allclose(w.detach(), target, atol=0.01)
    assert len(record) == 200
    assert set(record.terms) == {"data", "noise", "total"}
    assert record.terms["total"][5] == pytest.approx(record.terms["data"][5] + record.terms["noise"][5])
    assert record.terms["data"][0] == 5.0


def test_the_same_generator_trains_the_same() -> None:
    ends = []
    for _ in range(2):
        w = parameter()
        fit(objective(w), [torch.ones(2).double()] * 20, torch.optim.Adam([w]), torch.Generator().manual_seed(7))
        ends.append(w.detach().clone())
    assert torch.equal(*ends)


def test_iterate_lets_others_stop_early() -> None:
    w = parameter()
    training = iterate(objective(w), [torch.ones(2, dtype=torch.float64)] * 1000, torch.optim.SGD([w], lr=0.2))
    for step in training:
        if step.terms["data"] < 1e-4:
            break
    assert 0 < training.step < len(training) == 1000
    assert len(training.record) == training.step
    assert torch.allclose(w.detach(), torch.ones(2, dtype=torch.float64), atol=0.02)


def test_a_loss_that_is_not_finite_stops_before_it_does_harm() -> None:
    w = parameter()
    batches = [torch.ones(2, dtype=torch.float64), torch.full((2,), torch.nan, dtype=torch.float64)]
    steps = iterate(objective(w), batches, torch.optim.SGD([w], lr=0.1))
    next(steps)
    before = w.detach().clone()
    with pytest.raises(RuntimeError, match=r"the loss of step 1 must be finite, got \{'data': nan"):
        next(steps)
    assert torch.equal(w.detach(), before)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({}, "at least one named term"),
        ({"total": torch.zeros(())}, 'must not call a term "total"'),
        ({"data": torch.zeros(3)}, r"term 'data' of the objective must be a tensor of shape \(\), got \(3,\)"),
        ({"data": 1.0}, r"term 'data' of the objective must be a tensor of shape \(\), got float"),
    ],
)
def test_objectives_that_do_not_fit_are_named(terms: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit(lambda batch, progress, generator: terms, [0], torch.optim.SGD([parameter()], lr=0.1))
