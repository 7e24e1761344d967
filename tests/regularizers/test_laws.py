"""The laws of every classical regularizer: one row for each class, and a check that no class lacks its row."""

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from invreg import regularizers
from invreg.interfaces import Denoiser, Proximal, Regularizer
from invreg.linalg import inner
from invreg.operators import Gradient, Wavelet
from invreg.random import draw
from invreg.regularizers import (
    L1,
    RED,
    Box,
    GroupL1,
    LocallyLowRank,
    NonNegative,
    NuclearNorm,
    SumOfTerms,
    Tikhonov,
    TotalGeneralizedVariation,
    TotalVariation,
    WaveletL1,
)
from invreg.testing import batch_gap, gradient_gap, prox_gap, relative_gap

BATCH = 2
WEIGHT = 0.7
Make = Callable[[float | Tensor], Regularizer[Tensor]]


class Shrinking(Denoiser):
    """The optimal denoiser of N(0, 1) entries: linear and symmetric, so that RED has the value it claims."""

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return x / (1 + sigma**2)


@dataclass(frozen=True)
class Row:
    """A regularizer to hold to the laws.

    Args:
        make: weight -> regularizer.
        shape: of a signal.
        signals: which it takes, of "real" and "complex".
        weighted: whether the weight scales the value.
        accuracy: of prox and value, relative.
        slow: an iterative one whose many evaluations are left to slow tests.
    """

    make: Make
    shape: tuple[int, ...]
    signals: tuple[str, ...] = ("real", "complex")
    weighted: bool = True
    accuracy: float = 1e-12
    slow: bool = False

    def signal(self, kind: str, seed: int = 0, precision: torch.dtype = torch.float64) -> Tensor:
        dtype = precision.to_complex() if kind == "complex" else precision
        return draw(torch.empty(BATCH, *self.shape, dtype=dtype), torch.Generator().manual_seed(seed))


def tv(weight: float | Tensor, **options: object) -> Regularizer[Tensor]:
    return TotalVariation(weight, rtol=1e-5, iterations=5000, **options)  # type: ignore[arg-type]


ROWS: dict[str, Row] = {
    "L1": Row(L1, (6, 5)),
    "GroupL1": Row(lambda w: GroupL1(w, 1), (3, 4, 5)),
    "GroupL1:two axes": Row(lambda w: GroupL1(w, (-1, 1)), (3, 4, 5)),
    "Tikhonov": Row(Tikhonov, (6, 5)),
    "Tikhonov:gradient": Row(lambda w: Tikhonov(w, Gradient(), rtol=1e-13), (6, 5), accuracy=1e-10),
    "Tikhonov:wavelet": Row(lambda w: Tikhonov(w, Wavelet((6, 5), "db2", 1)), (6, 5)),
    "Box": Row(lambda w: Box(-0.5, 0.8), (6, 5), ("real",), weighted=False),
    "NonNegative": Row(lambda w: NonNegative(), (6, 5), ("real",), weighted=False),
    "TotalVariation": Row(tv, (5, 4), accuracy=1e-5),
    "TotalVariation:anisotropic": Row(lambda w: tv(w, isotropic=False), (5, 4), accuracy=1e-5),
    "TotalVariation:colour": Row(lambda w: tv(w, channel_dim=1), (2, 4, 3), accuracy=1e-5),
    "TotalVariation:colour, anisotropic": Row(
        lambda w: tv(w, channel_dim=-1, isotropic=False), (4, 3, 2), accuracy=1e-5
    ),
    "TotalVariation:between slices": Row(lambda w: tv(w, dim=3, along=(0,)), (3, 2, 3), accuracy=1e-5),
    "TotalVariation:volume": Row(lambda w: tv(w, dim=3, voxel_size=(2.0, 1.0, 1.5)), (3, 2, 3), accuracy=1e-5),
    "TotalGeneralizedVariation": Row(
        lambda w: TotalGeneralizedVariation(w, rtol=1e-3, iterations=20000), (5, 4), accuracy=1e-3, slow=True
    ),
    "TotalGeneralizedVariation:colour volume": Row(
        lambda w: TotalGeneralizedVariation(w, 3, channel_dim=1, ratio=1.0, rtol=1e-3, iterations=20000),
        (2, 2, 3, 3),
        ("real",),
        accuracy=1e-3,
        slow=True,
    ),
    "WaveletL1": Row(lambda w: WaveletL1(Wavelet((8, 6), "db2", 2), w), (8, 6)),
    "WaveletL1:all": Row(
        lambda w: WaveletL1(Wavelet((2, 7, 6), "haar", 2, channel_dim=1), w, penalize_approximation=True), (2, 7, 6)
    ),
    "NuclearNorm": Row(NuclearNorm, (5, 4)),
    "NuclearNorm:series": Row(lambda w: NuclearNorm(w, -1), (3, 2, 4)),
    "LocallyLowRank": Row(lambda w: LocallyLowRank(w, 3), (3, 7, 5)),
    "LocallyLowRank:volume": Row(lambda w: LocallyLowRank(w, (2, 3, 2), 3, -1), (3, 4, 5, 2)),
    "RED": Row(lambda w: RED(Shrinking(), 0.5, w), (6, 5)),
    "SumOfTerms": Row(lambda w: SumOfTerms(Tikhonov(w), L1(w)), (6, 5)),
}
# a prox without a value; penalties of solutions, not of images, and learned ones, which may be negative and have a prox
# at one step only: tests of their own hold them to their laws
NOT_REGULARIZERS = {"PlugAndPlay", "SolverError", "SolverStiffness", "LocalHeuristic"}
NOT_REGULARIZERS |= {"LearnedProximal", "RelaxedLearnedProximal", "REDDiff"}

CASES = [(name, kind) for name, row in ROWS.items() for kind in row.signals]
PROX_CASES = [(name, kind) for name, kind in CASES if isinstance(ROWS[name].make(1.0), Proximal)]
# what costs a minute in many dimensions, and is held to its law in two
FLAT, FLAT_PROX = ([one for one in cases if "colour volume" not in one[0]] for cases in (CASES, PROX_CASES))


def patient(cases: list[tuple[str, str]]) -> list[object]:
    """The cases, those of many slow evaluations marked."""
    return [pytest.param(*case, marks=[pytest.mark.slow] if ROWS[case[0]].slow else []) for case in cases]


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Iterator[None]:
    """An iteration that misses its accuracy warns; no row may."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*reached accuracy.*")
        yield


def brief(name: str, weight: float | Tensor = WEIGHT) -> Regularizer[Tensor]:
    """The row's regularizer; a slow one stops after few iterations, for laws that hold at any accuracy."""
    regularizer = ROWS[name].make(weight)
    if ROWS[name].slow:
        regularizer.rtol, regularizer.iterations = 0.0, 15
    return regularizer


def proximal(name: str, weight: float | Tensor = WEIGHT, *, short: bool = False) -> Proximal:
    regularizer = brief(name, weight) if short else ROWS[name].make(weight)
    assert isinstance(regularizer, Proximal)
    return regularizer


def sharp(name: str, weight: float | Tensor = WEIGHT) -> Regularizer[Tensor]:
    """The row's regularizer, an iterative one accurate enough for finite differences of its prox."""
    regularizer = ROWS[name].make(weight)
    if name.startswith("Total"):
        regularizer.rtol, regularizer.iterations = 1e-8 if name.startswith("TotalVariation") else 1e-6, 50000
    return regularizer


def test_every_regularizer_has_a_row() -> None:
    classical = {
        name
        for name in regularizers.__all__
        if inspect.isclass(getattr(regularizers, name)) and issubclass(getattr(regularizers, name), nn.Module)
    }
    assert classical - {name.split(":")[0] for name in ROWS} - NOT_REGULARIZERS == set()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_value_is_one_real_number_a_sample_and_scales_with_the_weight(name: str, kind: str) -> None:
    row = ROWS[name]
    x = row.signal(kind)
    value = brief(name)(x)
    assert value.shape == (BATCH,)
    assert value.dtype == torch.float64
    if row.weighted:
        assert (value > 0).all()
        torch.testing.assert_close(brief(name, 3 * WEIGHT)(x), 3 * value)
        assert (brief(name, 0.0)(x) == 0).all()


@pytest.mark.parametrize(("name", "kind"), patient(PROX_CASES))
def test_prox_is_a_minimum_that_no_move_improves(name: str, kind: str) -> None:
    row = ROWS[name]
    assert prox_gap(row.make(WEIGHT), row.signal(kind), 0.8, trials=20 if row.slow else 200) <= row.accuracy


@pytest.mark.parametrize(("name", "kind"), patient(PROX_CASES))
def test_prox_is_firmly_nonexpansive(name: str, kind: str) -> None:
    row = ROWS[name]
    prior = proximal(name)
    for seed, size in ((1, 1.0), (2, 0.01)):
        x = row.signal(kind)
        d = size * row.signal(kind, seed)
        moved = prior.prox(x + d, 0.8) - prior.prox(x, 0.8)
        slack = 10 * row.accuracy * inner(x, x).sqrt() * inner(d, d).sqrt()
        assert (inner(moved, moved) <= inner(moved, d) + slack).all()


@pytest.mark.parametrize(("name", "kind"), patient([case for case in CASES if ROWS[case[0]].weighted]))
def test_gradient_is_that_of_finite_differences(name: str, kind: str) -> None:
    row = ROWS[name]
    x = row.signal(kind).requires_grad_()
    regularizer = sharp(name)
    (gradient,) = torch.autograd.grad(regularizer(x).sum(), x)
    bound = 2e-2 if row.slow else 1e-7
    assert gradient_gap(regularizer, x.detach(), gradient, step=1e-3 if row.slow else 1e-6) <= bound


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_gradient_at_a_constant_image_is_finite(name: str, kind: str, level: float) -> None:
    x = torch.full_like(ROWS[name].signal(kind), level).requires_grad_()
    (gradient,) = torch.autograd.grad(brief(name)(x).sum(), x)
    assert gradient.isfinite().all()
    if level == 0:
        assert (gradient == 0).all()


@pytest.mark.parametrize(("name", "kind"), PROX_CASES)
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_gradient_of_prox_at_a_constant_image_is_finite(name: str, kind: str, level: float) -> None:
    x = torch.full_like(ROWS[name].signal(kind), level).requires_grad_()
    weight = torch.tensor(WEIGHT, dtype=torch.float64, requires_grad=True)
    z = proximal(name, weight, short=True).prox(x, 0.5)
    gradients = torch.autograd.grad(z.real.sum(), (x, weight), allow_unused=not ROWS[name].weighted)
    assert all(g.isfinite().all() for g in gradients if g is not None)


@pytest.mark.parametrize(("name", "kind"), patient([case for case in PROX_CASES if ROWS[case[0]].weighted]))
def test_prox_and_value_can_be_differentiated_in_the_weight(name: str, kind: str) -> None:
    row = ROWS[name]
    x, direction = row.signal(kind), row.signal(kind, 5)
    weight = torch.tensor(WEIGHT, dtype=torch.float64, requires_grad=True)

    def total(w: Tensor) -> Tensor:
        regularizer = sharp(name, w)
        assert isinstance(regularizer, Proximal)
        return inner(regularizer.prox(x, 0.4), direction).sum() + regularizer(x).sum()

    (gradient,) = torch.autograd.grad(total(weight), weight)
    h = 3e-3 if row.slow else 1e-5
    with torch.no_grad():
        wanted = (total(weight + h) - total(weight - h)) / (2 * h)
    torch.testing.assert_close(
        gradient, wanted, rtol=2e-2 if row.slow else 1e-3 if row.accuracy > 1e-8 else 1e-6, atol=1e-4
    )


@pytest.mark.parametrize(("name", "kind"), patient(FLAT_PROX))
def test_prox_can_be_differentiated_in_the_image(name: str, kind: str) -> None:
    row = ROWS[name]
    direction = row.signal(kind, 5)
    x = row.signal(kind).requires_grad_()
    prior = sharp(name)
    assert isinstance(prior, Proximal)
    (gradient,) = torch.autograd.grad(inner(prior.prox(x, 0.4), direction).sum(), x)
    step, bound = (1e-3, 2e-2) if row.slow else (1e-5, 1e-3) if row.accuracy > 1e-8 else (1e-6, 1e-6)
    assert gradient_gap(lambda z: inner(prior.prox(z, 0.4), direction), x.detach(), gradient, step=step) <= bound


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_item_of_a_batch_is_the_item_alone(name: str, kind: str) -> None:
    row = ROWS[name]
    x = row.signal(kind) * torch.tensor([1.0, 1e-3], dtype=torch.float64).reshape(-1, *(1,) * len(row.shape))
    regularizer = brief(name)
    if row.weighted:
        assert batch_gap(regularizer, x) <= 1e-12
    if isinstance(regularizer, Proximal):
        assert batch_gap(lambda z: regularizer.prox(z, 1e-3), x) <= 1e-12


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[1] == "complex"])
def test_a_global_phase_changes_no_value_and_turns_the_prox(name: str, kind: str) -> None:
    row = ROWS[name]
    x = row.signal(kind)
    phase = torch.exp(torch.tensor(0.8j, dtype=torch.complex128))
    regularizer = brief(name)
    assert relative_gap(regularizer(phase * x), regularizer(x)) <= 1e-12
    if isinstance(regularizer, Proximal):
        assert relative_gap(regularizer.prox(phase * x, 0.8), phase * regularizer.prox(x, 0.8)) <= row.accuracy


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.signals == ("real", "complex")])
def test_a_real_image_is_the_same_as_a_complex_one_without_imaginary_part(name: str) -> None:
    row = ROWS[name]
    x = row.signal("real")
    regularizer = brief(name)
    assert relative_gap(regularizer(x.to(torch.complex128)), regularizer(x)) <= 1e-12
    if isinstance(regularizer, Proximal):
        z = regularizer.prox(x.to(torch.complex128), 0.8)
        assert relative_gap(z, regularizer.prox(x, 0.8).to(z.dtype)) <= row.accuracy


@pytest.mark.parametrize(("name", "kind"), PROX_CASES)
def test_prox_does_not_depend_on_what_was_asked_before(name: str, kind: str) -> None:
    x = ROWS[name].signal(kind)
    used = proximal(name, short=True)
    used.prox(ROWS[name].signal(kind, 9), 0.3)
    assert torch.equal(used.prox(x, 0.8), proximal(name, short=True).prox(x, 0.8))


@pytest.mark.parametrize(("name", "kind"), PROX_CASES)
def test_each_sample_can_have_its_own_step(name: str, kind: str) -> None:
    row = ROWS[name]
    x = row.signal(kind)
    steps = torch.tensor([0.2, 0.9], dtype=torch.float64)
    prior = proximal(name, short=True)
    together = prior.prox(x, steps.reshape(-1, *(1,) * len(row.shape)))
    assert together.shape == x.shape
    for i, step in enumerate(steps):
        for one in (float(step), step):
            assert relative_gap(together[i : i + 1], prior.prox(x[i : i + 1], one)) <= 1e-9


@pytest.mark.parametrize("name", sorted({name for name, _ in PROX_CASES if ROWS[name].weighted}))
def test_a_step_that_does_not_belong_to_the_batch_is_refused(name: str) -> None:
    x = ROWS[name].signal("real")
    with pytest.raises(ValueError, match=r"step must be a number, \(\) or \(B, 1"):
        proximal(name).prox(x, torch.ones(BATCH, dtype=torch.float64))


@pytest.mark.parametrize(("name", "kind"), [case for case in PROX_CASES if ROWS[case[0]].weighted])
def test_prox_of_weight_zero_is_the_identity(name: str, kind: str) -> None:
    x = ROWS[name].signal(kind)
    assert relative_gap(proximal(name, 0.0, short=True).prox(x, 0.8), x) <= 1e-14
    assert relative_gap(proximal(name, short=True).prox(x, 0.0), x) <= 1e-14


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_single_precision_stays_single(name: str, kind: str) -> None:
    row = ROWS[name]
    x = row.signal(kind, precision=torch.float32)
    weight: float | Tensor
    for weight in (WEIGHT, torch.tensor(WEIGHT, dtype=torch.float64)):
        regularizer = brief(name, weight)
        if name.startswith("TotalVariation"):
            regularizer.rtol = 1e-3
        assert regularizer(x).dtype == torch.float32
        if isinstance(regularizer, Proximal):
            assert regularizer.prox(x, 0.5).dtype == x.dtype
            steps = torch.full((BATCH, *(1,) * len(row.shape)), 0.5, dtype=torch.float64)
            assert regularizer.prox(x, steps).dtype == x.dtype


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_arguments_are_left_as_they_were_and_no_graph_is_made_unasked(name: str, kind: str) -> None:
    x = ROWS[name].signal(kind)
    before = x.clone()
    regularizer = brief(name)
    assert not regularizer(x).requires_grad
    with torch.no_grad():
        assert not regularizer(x.clone().requires_grad_()).requires_grad
    if isinstance(regularizer, Proximal):
        assert not regularizer.prox(x, 0.5).requires_grad
    assert torch.equal(x, before)
    assert not x.requires_grad


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_pickle_and_copy_give_the_same_regularizer(name: str, kind: str) -> None:
    x = ROWS[name].signal(kind)
    regularizer = brief(name, torch.nn.Parameter(torch.tensor(WEIGHT, dtype=torch.float64)))
    for twin in (pickle.loads(pickle.dumps(regularizer)), copy.deepcopy(regularizer)):
        assert torch.equal(twin(x), regularizer(x))
        if isinstance(regularizer, Proximal):
            assert torch.equal(twin.prox(x, 0.5), regularizer.prox(x, 0.5))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), FLAT)
def test_value_compiles_into_one_graph(name: str, kind: str) -> None:
    x = ROWS[name].signal(kind)
    regularizer = brief(name)
    torch._dynamo.reset()
    compiled = torch.compile(regularizer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), regularizer(x))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), PROX_CASES)
def test_prox_compiles_into_one_graph(name: str, kind: str) -> None:
    x = ROWS[name].signal(kind)
    regularizer = ROWS[name].make(WEIGHT)
    if ROWS[name].slow or name.startswith("TotalVariation"):  # a fixed number of iterations asks the device nothing
        regularizer.rtol, regularizer.iterations = 0.0, 5
    if name == "Tikhonov:gradient":
        pytest.skip("conjugate gradients look at the residual")
    assert isinstance(regularizer, Proximal)
    torch._dynamo.reset()
    compiled = torch.compile(regularizer.prox, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, 0.5), regularizer.prox(x, 0.5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_gpu_agrees_with_cpu(name: str, kind: str) -> None:
    x = ROWS[name].signal(kind)
    regularizer = brief(name)
    value = regularizer(x)
    z = regularizer.prox(x, 0.5) if isinstance(regularizer, Proximal) else None
    regularizer.cuda()
    torch.testing.assert_close(regularizer(x.cuda()).cpu(), value)
    if z is not None:
        assert isinstance(regularizer, Proximal)
        torch.testing.assert_close(regularizer.prox(x.cuda(), 0.5).cpu(), z)
