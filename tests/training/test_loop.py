"""The training loop: terms by name, an optimizer step for each batch, nothing lost where the loss is not finite."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invreg.training import Average, Options, fit, iterate
from invreg.training.checkpoint import checkpoints


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
        ({"data": torch.ones(()), "b": torch.ones(())}, "must have a gradient, but none of 'data', 'b' has"),
    ],
)
def test_objectives_that_do_not_fit_are_named(terms: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit(lambda batch, progress, generator: terms, [0], torch.optim.SGD([parameter()], lr=0.1))


@pytest.mark.parametrize("terms", [torch.zeros(()), [torch.zeros(())], None])
def test_an_objective_that_names_no_terms_is_told_so(terms: Any) -> None:
    with pytest.raises(TypeError, match=f"must give a mapping from names to terms, got {type(terms).__name__}"):
        fit(lambda batch, progress, generator: terms, [0], torch.optim.SGD([parameter()], lr=0.1))


def test_a_message_says_kept_only_of_what_was_saved(tmp_path: Any) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for first, kept in ((0, False), (1, True)):
        batches = [torch.full((1, 1), torch.nan if k == first else 1.0) for k in range(3)]
        steps = iterate(
            lambda batch, progress, generator: {"data": model(batch).square().mean()},
            batches,
            optimizer,
            model=model,
            folder=tmp_path / str(first),
        )
        with pytest.raises(RuntimeError, match=f"the loss of step {first} must be finite") as caught:
            list(steps)
        assert (f"it is kept in {tmp_path / str(first)}" in str(caught.value)) == kept
        assert bool(checkpoints(tmp_path / str(first))) == kept


def test_progress_is_the_part_of_the_steps_that_is_done() -> None:
    seen: list[float] = []

    def terms(batch: int, progress: float, generator: torch.Generator | None) -> dict[str, Tensor]:
        seen.append(progress)
        return {"data": w.sum() * batch}

    w = parameter()
    fit(terms, [1, 2, 3, 4], torch.optim.SGD([w], lr=0.1))
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_a_long_gradient_is_shortened_and_its_norm_recorded() -> None:
    target = torch.tensor([3.0, 4.0], dtype=torch.float64)
    for clip, moved in ((1.0, 1.0), (20.0, 10.0), (None, 10.0)):
        w = parameter()
        record = fit(
            lambda batch, progress, generator, w=w: {"data": (w - batch).square().sum()},
            [target],
            torch.optim.SGD([w], lr=1.0),
            options=Options(clip=clip),
        )
        assert record.gradient_norm == pytest.approx([10.0])
        assert float(w.detach().norm()) == pytest.approx(moved, rel=1e-5)


def test_the_scheduler_is_stepped_after_each_step_and_its_rate_recorded() -> None:
    w = parameter()
    optimizer = torch.optim.SGD([w], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    record = fit(objective(w), [torch.zeros(2).double()] * 3, optimizer, scheduler=scheduler)
    assert record.lr == [1.0, 0.5, 0.25]


def test_the_average_follows_the_model() -> None:
    model = nn.Linear(1, 1)
    average = Average(model, decay=0.5)
    before = model.weight.detach().clone()
    options = Options(clip=None)
    fit(
        lambda batch, progress, generator: {"data": model(batch).sum()},
        [torch.ones(1)] * 2,
        torch.optim.SGD(model.parameters(), lr=1.0),
        model=model,
        average=average,
        options=options,
    )
    weight, expected = before.clone(), before.clone()
    for step in (1, 2):
        weight = weight - 1
        decay = min(0.5, step / (step + 9))
        expected = decay * expected + (1 - decay) * weight
    (found, _) = average.module.parameters()
    assert torch.allclose(model.weight.detach(), weight)
    assert torch.allclose(found, expected)


def test_a_term_that_comes_and_goes_is_recorded_where_it_was() -> None:
    w, numbers = parameter(), itertools.count()

    def terms(batch: int, progress: float, generator: torch.Generator | None) -> dict[str, Tensor]:
        found = {"data": w.sum()}
        return {**found, "extra": w.sum() * 0 + 2} if next(numbers) == 1 else found

    record = fit(terms, [0] * 3, torch.optim.SGD([w], lr=0.1))
    assert record.terms["extra"][1] == 2.0
    assert [math.isnan(one) for one in record.terms["extra"]] == [True, False, True]
    assert len(record.terms["total"]) == 3


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_and_keeps_full_weights(precision: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=generator)
    seen: set[torch.dtype] = set()

    def terms(batch: Tensor, progress: float, generator: torch.Generator | None) -> dict[str, Tensor]:
        output = model(batch)
        seen.add(output.dtype)
        return {"data": (output[:, 0] - batch.sum(1)).square().mean()}

    record = fit(terms, [x] * 60, torch.optim.Adam(model.parameters(), 0.05), options=Options(precision=precision))
    assert seen == {getattr(torch, precision)}
    assert model.weight.dtype == torch.float32
    assert record.terms["data"][-1] < 0.05 * record.terms["data"][0]


def test_steps_whose_scaled_gradient_overflows_are_left_out() -> None:
    w = torch.ones(1, requires_grad=True)
    scheduler_steps = []
    optimizer = torch.optim.SGD([w], lr=1e-6)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: scheduler_steps.append(k) or 1.0)
    record = fit(
        lambda batch, progress, generator: {"data": (w * 1e35).sum()},  # times 65536 this is no float32
        [0] * 30,
        optimizer,
        scheduler=scheduler,
        options=Options(precision="float16", clip=1.0),
    )
    finite = [math.isfinite(one) for one in record.gradient_norm]
    assert 0 < finite.index(True) < 20
    assert all(finite[finite.index(True) :])
    assert scheduler_steps[-1] == sum(finite)


def test_a_gradient_that_is_not_finite_is_named_and_nothing_is_changed() -> None:
    model = nn.ModuleDict({"good": nn.Linear(1, 1), "bad": nn.Linear(1, 1)})

    def terms(batch: float, progress: float, generator: torch.Generator | None) -> dict[str, Tensor]:
        zero = model["bad"].weight.sum() * 0
        return {"data": model["good"].weight.sum(), "root": (zero + batch).sqrt()}  # whose slope at 0 is infinite

    training = iterate(terms, [1.0, 0.0], torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    next(training)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with pytest.raises(
        RuntimeError, match=r"the gradient of step 1 must be finite, but that of bad.weight is not, with terms \{'data'"
    ):
        next(training)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert training.step == len(training.record) == 1


def test_a_step_that_failed_can_be_taken_again_with_the_same_draws() -> None:
    w, failing, seen = parameter(), [True], list[float]()

    def terms(batch: int, progress: float, generator: torch.Generator | None) -> dict[str, Tensor]:
        seen.append(float(torch.rand((), generator=generator)) + float(torch.rand(())))
        if failing.pop():
            raise OSError("the disk went away")
        failing.append(False)
        return {"data": w.sum()}

    training = iterate(terms, [0, 0], torch.optim.SGD([w], lr=0.1), torch.Generator().manual_seed(0))
    with pytest.raises(OSError, match="the disk went away"):
        next(training)
    failing.append(False)
    next(training)
    assert seen[0] == seen[1]


def test_settings_out_of_range_are_named() -> None:
    for options, said in (
        ({"clip": 0.0}, "clip must be finite and > 0, got 0.0"),
        ({"precision": "half"}, 'precision must be "full", "bfloat16" or "float16", got \'half\''),
        ({"save_every": 0}, "save_every must be >= 1, got 0"),
        ({"save_minutes": 0.0}, "save_minutes must be finite and > 0, got 0.0"),
        ({"log_every": 0}, "log_every must be >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=said):
            Options(**options)  # type: ignore[arg-type]


def test_parts_that_do_not_go_together_are_named(tmp_path: Any) -> None:
    w, model = parameter(), nn.Linear(1, 1)
    optimizer = torch.optim.SGD([w], lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(TypeError, match="scheduler must depend on the step only, got ReduceLROnPlateau"):
        iterate(objective(w), [0], optimizer, scheduler=plateau)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="optimizer must step by one gradient, got LBFGS"):
        iterate(objective(w), [0], torch.optim.LBFGS([w]))
    with pytest.raises(ValueError, match="average needs the model whose parameters are trained, got none"):
        iterate(objective(w), [0], optimizer, average=Average(model))
    with pytest.raises(ValueError, match="folder needs the model whose parameters are trained, got none"):
        iterate(objective(w), [0], optimizer, folder=tmp_path)
    with pytest.raises(ValueError, match="must hold all parameters of the optimizer, but lacks 1 of 1"):
        iterate(objective(w), [0], optimizer, model=model)
    with pytest.raises(TypeError, match="batches must be a sequence"):
        iterate(objective(w), iter([0]), optimizer)  # type: ignore[arg-type]


def test_a_finite_gradient_of_infinite_norm_is_not_applied_unshortened() -> None:
    w = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1e-3)
    options = Options(precision="float16", clip=1.0)
    steep = iterate(lambda batch, progress, generator: {"data": (w * 1e30).sum()}, [0] * 30, optimizer, options=options)
    with pytest.raises(RuntimeError, match="the gradient of step .* must be finite, but that of all together is not"):
        list(steep)
    assert torch.equal(w.detach(), torch.ones(3))


def test_an_objective_that_misses_all_parameters_is_told_so() -> None:
    w, other = parameter(), parameter()
    with pytest.raises(ValueError, match="objective must depend on the parameters that the optimizer holds"):
        fit(objective(other), [torch.ones(2, dtype=torch.float64)], torch.optim.SGD([w], lr=0.1))
