import pickle

import pytest
import torch
from torch import Tensor, nn

from invreg.lanczos import operator_norm
from invreg.linalg import solve_normal
from invreg.operators import MaskedFourier, Sense, SoftSense, centred_fft, sense
from invreg.problem import Problem
from invreg.random import draw
from invreg.testing import adjoint_gap, normal_gap, relative_gap, vjp_gap


def signal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def some_mask(*shape: int, seed: int = 5) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.mark.parametrize("shape", [(6, 7), (7, 9), (8, 8), (4, 5, 6), (3, 5, 7)])
def test_kspace_is_the_masked_centred_transform_of_the_coil_images(shape: tuple[int, ...]) -> None:
    maps, mask, x = signal(1, 3, *shape), some_mask(*shape), signal(2, *shape, seed=1)
    operator = Sense(maps, mask, dim=len(shape))
    want = centred_fft(maps * x[:, None], len(shape)) * mask
    assert relative_gap(operator(x), want) <= 1e-14
    assert bool((operator(x).masked_select(~mask) == 0).all())


@pytest.mark.parametrize("mask", [some_mask(7, 6), some_mask(7, 1), some_mask(1, 6), torch.ones(7, 6) > 0, None])
def test_fused_normal_is_adjoint_after_forward_for_every_kind_of_mask(mask: Tensor | None) -> None:
    x = signal(2, 7, 6, seed=1)
    assert normal_gap(Sense(signal(1, 3, 7, 6), mask), x) <= 1e-14
    assert normal_gap(SoftSense(signal(1, 2, 3, 7, 6), mask), torch.stack((x, x.flip(1)), 1)) <= 1e-14


def test_single_coil_is_sense_with_one_unit_map() -> None:
    mask, x, y = some_mask(2, 6, 7), signal(2, 6, 7), signal(2, 6, 7, seed=1)
    one, many = MaskedFourier(mask), Sense(torch.ones(1, 1, 6, 7, dtype=torch.complex128), mask[:, None])
    assert relative_gap(many(x)[:, 0], one(x)) <= 1e-14
    assert relative_gap(many.adjoint(y[:, None]), one.adjoint(y)) <= 1e-14
    assert relative_gap(many.normal(x), one.normal(x)) <= 1e-14


def test_maps_of_unit_norm_and_full_sampling_make_an_isometry() -> None:
    maps = signal(1, 4, 6, 7)
    maps = maps / maps.norm(dim=1, keepdim=True)
    operator, x = Sense(maps), signal(2, 6, 7)
    assert relative_gap(operator.adjoint(operator(x)), x) <= 1e-14
    assert float(operator_norm(operator, x).max()) == pytest.approx(1, rel=2e-4)
    assert operator.sampled() is None


@pytest.mark.parametrize("soft", [False, True])
def test_masks_and_maps_may_differ_by_sample(soft: bool) -> None:
    sets = (2,) if soft else ()
    maps, mask, x = signal(2, *sets, 3, 6, 7), some_mask(2, 1, 6, 7), signal(2, *sets, 6, 7, seed=1)
    make = SoftSense if soft else Sense
    operator = make(maps, mask)
    alone = [make(maps[i : i + 1], mask[i, 0])(x[i : i + 1]) for i in range(2)]
    assert relative_gap(operator(x), torch.cat(alone)) <= 1e-14
    y = signal(2, 3, 6, 7, seed=2)
    assert adjoint_gap(operator, x, y) <= 1e-14
    assert normal_gap(operator, x) <= 1e-14
    assert vjp_gap(operator, x, y) <= 1e-14
    with pytest.raises(ValueError, match="x must have batch size 2, that of the maps, got 1"):
        operator(x[:1])
    with pytest.raises(ValueError, match="y must have batch size 2, that of the mask, got 1"):
        make(maps[:1], mask).adjoint(y[:1])


def test_soft_sense_adds_the_sets() -> None:
    maps, mask, x = signal(1, 2, 3, 6, 7), some_mask(6, 7), signal(2, 2, 6, 7, seed=1)
    want = sum(Sense(maps[:, s], mask)(x[:, s]) for s in range(2))
    assert relative_gap(SoftSense(maps, mask)(x), want) <= 1e-14


def test_soft_sense_with_one_set_is_sense() -> None:
    maps, mask, x = signal(1, 3, 6, 7), some_mask(6, 7), signal(2, 6, 7, seed=1)
    assert relative_gap(SoftSense(maps[:, None], mask)(x[:, None]), Sense(maps, mask)(x)) <= 1e-14
    assert relative_gap(SoftSense(maps[:, None], mask).normal(x[:, None])[:, 0], Sense(maps, mask).normal(x)) <= 1e-14


@pytest.mark.parametrize("entries", [1, 100, 10**9])
def test_coils_in_pieces_are_all_coils_at_once(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, mask, x, y = signal(1, 5, 4, 6, 7), some_mask(4, 6, 7), signal(2, 4, 6, 7), signal(2, 5, 4, 6, 7, seed=1)
    operator = Sense(maps, mask, dim=3)
    want = operator(x), operator.adjoint(y), operator.normal(x)
    monkeypatch.setattr(sense, "CACHE_ENTRIES", entries)
    for got, wanted in zip((operator(x), operator.adjoint(y), operator.normal(x)), want, strict=True):
        assert relative_gap(got, wanted) <= 1e-14


def textbook_cg(hermitian: Tensor, b: Tensor, iterations: int) -> Tensor:
    """Hestenes-Stiefel on a dense matrix, written out."""
    x = torch.zeros_like(b)
    r = b.clone()
    p = r.clone()
    rho = torch.vdot(r, r).real
    for _ in range(iterations):
        q = hermitian @ p
        alpha = rho / torch.vdot(p, q).real
        x, r = x + alpha * p, r - alpha * q
        rho, before = torch.vdot(r, r).real, rho
        p = r + rho / before * p
    return x


def dense(operator: Sense, n: tuple[int, int]) -> Tensor:
    basis = torch.eye(n[0] * n[1], dtype=torch.complex128).reshape(-1, *n)
    return operator(basis).flatten(1).mT


def test_cg_sense_is_the_textbook_solve_at_fixed_iterations() -> None:
    shape, shift = (10, 9), 0.01
    operator = Sense(signal(1, 4, *shape), some_mask(*shape))
    y = operator(signal(1, *shape, seed=1)) + 0.1 * operator(signal(1, *shape, seed=2))
    matrix = dense(operator, shape)
    hermitian = matrix.mH @ matrix + shift * torch.eye(matrix.shape[1], dtype=torch.float64)
    for iterations in (3, 10, 30):
        want = textbook_cg(hermitian, matrix.mH @ y.flatten(), iterations).reshape(1, *shape)
        got = solve_normal(operator, operator.adjoint(y), shift, rtol=0, iterations=iterations).x
        assert relative_gap(got, want) <= 1e-6
    exact = torch.linalg.solve(hermitian, matrix.mH @ y.flatten()).reshape(1, *shape)
    bound = float(torch.linalg.cond(hermitian)) * 1e-12
    assert relative_gap(solve_normal(operator, operator.adjoint(y), shift, rtol=1e-12).x, exact) <= bound < 1e-6


@pytest.mark.parametrize("scale", [1e-8, 1e-5, 1.0, 1e4, 1e8])
def test_solution_scales_with_the_data(scale: float) -> None:
    operator = Sense(signal(1, 4, 16, 15, dtype=torch.complex64), some_mask(16, 15))
    y = operator(signal(1, 16, 15, seed=1, dtype=torch.complex64))
    want = solve_normal(operator, operator.adjoint(y), 0.01, rtol=1e-5).x
    got = solve_normal(operator, operator.adjoint(scale * y), 0.01, rtol=1e-5).x
    assert relative_gap(got / scale, want) <= 1e-5


def test_complex_signals_go_in_and_come_out_unconverted() -> None:
    for dtype in (torch.complex64, torch.complex128):
        operator = Sense(signal(1, 3, 6, 7, dtype=dtype), some_mask(6, 7))
        x = signal(2, 6, 7, dtype=dtype)
        assert operator(x).dtype == operator.adjoint(operator(x)).dtype == operator.normal(x).dtype == dtype


def test_gradients_reach_maps_that_are_parameters() -> None:
    maps = nn.Parameter(signal(1, 2, 2, 3))
    x, y = signal(2, 2, 3, seed=1), signal(2, 2, 2, 3, seed=2)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    assert [name for name, _ in Sense(maps, mask).named_parameters()] == ["maps"]
    assert torch.autograd.gradcheck(lambda m, z: Sense(m, mask)(z), (maps, x.requires_grad_()))
    assert torch.autograd.gradcheck(lambda m, z: Sense(m, mask).adjoint(z), (maps, y.requires_grad_()))
    assert torch.autograd.gradcheck(lambda m, z: Sense(m, mask).normal(z), (maps, x))


def test_gradients_through_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, x, w = signal(1, 5, 4, 5).requires_grad_(), signal(2, 4, 5, seed=1).requires_grad_(), signal(2, 4, 5, seed=2)
    operator = Sense(maps, some_mask(4, 5))
    want = torch.autograd.grad(operator.normal(x), (maps, x), w)
    monkeypatch.setattr(sense, "CACHE_ENTRIES", 1)
    for got, wanted in zip(torch.autograd.grad(operator.normal(x), (maps, x), w), want, strict=True):
        assert relative_gap(got, wanted) <= 1e-14


def test_sampled_entries_are_counted_by_the_problem() -> None:
    mask = some_mask(6, 1)
    operator = Sense(signal(1, 3, 6, 7), mask)
    assert Problem(operator, operator(signal(2, 6, 7))).count.tolist() == [2 * 3 * 7 * int(mask.sum())] * 2


def test_state_and_pickle_keep_mask_and_maps() -> None:
    operator = Sense(signal(1, 3, 6, 7), some_mask(6, 7))
    other = Sense(signal(1, 3, 6, 7, seed=9), some_mask(6, 7, seed=8))
    other.load_state_dict(operator.state_dict())
    x = signal(1, 6, 7)
    assert torch.equal(other(x), operator(x))
    assert torch.equal(pickle.loads(pickle.dumps(operator)).normal(x), operator.normal(x))


def test_wrong_number_of_coils_names_both() -> None:
    operator = Sense(signal(1, 8, 6, 7))
    with pytest.raises(ValueError, match="y has 4 coils but maps have 8; compress both with one matrix"):
        operator.adjoint(signal(1, 4, 6, 7))


def test_bad_arguments_are_named() -> None:
    maps = signal(1, 3, 6, 7, dtype=torch.complex64)
    with pytest.raises(ValueError, match="mask samples nothing in at least one item"):
        Sense(maps, torch.zeros(6, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask samples nothing in at least one item"):
        Sense(maps, torch.stack((torch.ones(1, 6, 7), torch.zeros(1, 6, 7))) > 0)
    with pytest.raises(TypeError, match=r"mask must be bool, got torch\.float32"):
        Sense(maps, torch.ones(6, 7))
    with pytest.raises(ValueError, match=r"mask must be \(6, 7\) or \(B, 1, 6, 7\), got \(7, 6\)"):
        Sense(maps, some_mask(7, 6))
    with pytest.raises(ValueError, match=r"mask must be \(6, 7\) or \(B, 1, 6, 7\), got \(1, 3, 6, 7\)"):
        Sense(maps, some_mask(1, 3, 6, 7))
    with pytest.raises(ValueError, match="mask and maps must have one batch size or 1, got 3 masks and 2 maps"):
        Sense(maps.repeat(2, 1, 1, 1), some_mask(3, 1, 6, 7))
    with pytest.raises(ValueError, match=r"maps must hold at least one coil and one voxel, got \(1, 0, 6, 7\)"):
        Sense(maps[:, :0])
    with pytest.raises(TypeError, match=r"maps must be complex, got torch.float32; use maps.to\(torch.complex64\)"):
        Sense(maps.real)
    with pytest.raises(ValueError, match=r"maps must be \(B, coil, y, x\) for dim=2, got \(1, 3, 2, 6, 7\).*dim=3"):
        Sense(signal(1, 3, 2, 6, 7))
    with pytest.raises(ValueError, match=r"maps must be \(B, sets, coil, y, x\) for dim=2, got \(1, 3, 6, 7\)"):
        SoftSense(maps)
    with pytest.raises(ValueError, match="dim must be 2 for images or 3 for volumes, got 1"):
        Sense(maps, dim=1)
    with pytest.raises(ValueError, match="maps must be finite"):
        Sense(maps * torch.nan)


def test_real_and_mixed_precision_signals_are_refused() -> None:
    operator = Sense(signal(1, 3, 6, 7, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"x must be complex, got torch.float32; use x.to\(torch.complex64\)"):
        operator(torch.ones(1, 6, 7))
    with pytest.raises(TypeError, match=r"x is torch.complex128 but maps is torch.complex64"):
        operator.normal(signal(1, 6, 7))
    with pytest.raises(TypeError, match=r"y is torch.complex128 but maps is torch.complex64"):
        operator.adjoint(signal(1, 3, 6, 7))


@pytest.mark.slow
def test_normal_compiles_with_inductor() -> None:
    operator, x = (
        Sense(signal(1, 4, 16, 15, dtype=torch.complex64), some_mask(16, 15)),
        signal(2, 16, 15, seed=1, dtype=torch.complex64),
    )
    torch._dynamo.reset()
    for function in (operator, operator.normal, lambda v: operator.adjoint(operator(v))):
        assert relative_gap(torch.compile(function, fullgraph=True)(x), function(x)) <= 1e-6
