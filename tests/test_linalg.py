from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invreg.interfaces import LinearOperator
from invreg.lanczos import largest_eigenvalue, operator_norm
from invreg.linalg import LinearSolve, cg, expand, inner, lsqr, norm, solve_normal
from invreg.operators import Blur, Mask, MatrixSensing, gaussian_kernel
from invreg.random import draw
from invreg.testing import gradient_gap, relative_gap


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def definite(n: int, condition: float, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """A Hermitian matrix with eigenvalues from 1 / condition to 1, evenly in the logarithm."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    q, _ = torch.linalg.qr(noise(n, n, dtype=wide, seed=seed))
    values = torch.logspace(-torch.log10(torch.tensor(condition)).item(), 0, n, dtype=torch.float64)
    return ((q * values) @ q.mH).to(dtype)


def times(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """x -> H x for one matrix (n, n) or one for each sample (B, n, n)."""
    return lambda x: (matrix @ x[..., None])[..., 0]


# --- inner products and norms


def test_inner_is_the_real_part_of_the_hermitian_product() -> None:
    a, b = noise(3, 4, 5, dtype=torch.complex128), noise(3, 4, 5, dtype=torch.complex128, seed=1)
    want = (a.conj() * b).sum((1, 2)).real
    assert relative_gap(inner(a, b), want) < 1e-14
    assert relative_gap(inner(a.conj(), b.conj()), want) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_norm_is_the_euclidean_one_of_each_sample(dtype: torch.dtype) -> None:
    a = noise(3, 4, 5, dtype=dtype)
    assert relative_gap(norm(a), torch.linalg.vector_norm(a, dim=(1, 2))) < 1e-14
    assert torch.equal(norm(a.conj()), norm(a))
    assert torch.equal(norm(a.transpose(1, 2)), norm(a.transpose(1, 2).contiguous()))


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e30, 1e38])
def test_norm_neither_underflows_nor_overflows(size: float) -> None:
    a = torch.full((1, 4), size, dtype=torch.float32)
    assert float(norm(a)) == pytest.approx(2 * float(a[0, 0]), rel=1e-6)


def test_norm_of_many_half_precision_entries_is_finite() -> None:
    assert float(norm(torch.full((1, 100_000), 10.0, dtype=torch.float16))) == pytest.approx(3162.0, rel=1e-3)
    assert norm(torch.ones(1, 9, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_gradient_of_norm_is_zero_at_zero_and_a_unit_vector_elsewhere() -> None:
    a = torch.stack([torch.zeros(3, dtype=torch.float64), noise(3)]).requires_grad_()
    (gradient,) = torch.autograd.grad(norm(a).sum(), a)
    assert torch.equal(gradient[0], torch.zeros(3, dtype=torch.float64))
    assert relative_gap(gradient[1], a[1] / norm(a)[1]) < 1e-14
    assert torch.autograd.gradcheck(norm, noise(2, 3, dtype=torch.complex128).requires_grad_())


def test_norm_shows_what_is_not_finite() -> None:
    values = norm(torch.tensor([[float("nan"), 1.0], [float("inf"), 1.0], [3.0, 4.0]]))
    assert not values[0].isfinite()
    assert not values[1].isfinite()
    assert float(values[2]) == pytest.approx(5.0)


def test_an_empty_batch_has_no_norms_and_no_solutions() -> None:
    none = torch.zeros(0, 3, 4, dtype=torch.complex64)
    assert norm(none).shape == (0,)
    assert inner(none, none).shape == (0,)
    assert cg(lambda x: x, none).x.shape == none.shape


# --- conjugate gradients


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_cg_solves_what_the_dense_solver_solves(dtype: torch.dtype) -> None:
    matrix, b = definite(20, 100, dtype), noise(3, 20, dtype=dtype, seed=1)
    found = cg(times(matrix), b, rtol=1e-12, iterations=200)
    assert relative_gap(found.x, torch.linalg.solve(matrix, b.mT).mT) < 1e-10
    assert bool(found.converged.all())
    assert bool((norm(b - times(matrix)(found.x)) <= 1.01e-12 * norm(b)).all())


def test_each_sample_stops_at_its_own_iteration_and_is_frozen() -> None:
    matrices = torch.stack([torch.eye(30, dtype=torch.float64), definite(30, 1e4)])
    b = noise(2, 30, seed=1)
    found = cg(times(matrices), b, rtol=1e-8, iterations=500)
    assert int(found.iterations[0]) == 1
    assert int(found.iterations[1]) > 20
    assert bool(found.converged.all())
    alone = cg(times(matrices[:1]), b[:1], rtol=1e-8, iterations=500)
    assert torch.equal(found.x[:1], alone.x)


def test_when_the_host_looks_does_not_change_the_result() -> None:
    matrices = torch.stack([definite(30, 3), definite(30, 300)])
    b = noise(2, 30, seed=1)
    often, rarely = (cg(times(matrices), b, rtol=1e-6, check_every=k) for k in (1, 100))
    assert torch.equal(often.x, rarely.x)
    assert torch.equal(often.iterations, rarely.iterations)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e-4, 1e4, 1e8, 1e30])
def test_cg_does_not_know_the_scale_of_the_data(scale: float, dtype: torch.dtype) -> None:
    matrix = definite(64, 100, dtype)
    b = times(matrix)(noise(2, 64, dtype=dtype, seed=1))
    one, other = cg(times(matrix), b), cg(times(matrix), scale * b)
    assert bool(other.converged.all())
    assert relative_gap(other.x / scale, one.x) < 1e-5
    exact = cg(times(matrix), 2.0**40 * b)
    assert torch.equal(exact.x, 2.0**40 * one.x)


def test_samples_of_very_different_scale_do_not_disturb_each_other() -> None:
    matrix, b = definite(32, 50, torch.float32), noise(1, 32, dtype=torch.float32, seed=1)
    found = cg(times(matrix), torch.cat([1e-20 * b, 1e20 * b]))
    assert relative_gap(found.x[0] * 1e20, found.x[1] * 1e-20) < 1e-5


def test_what_is_reported_is_the_true_residual() -> None:
    matrix, b = definite(64, 1e5, torch.float32), noise(2, 64, dtype=torch.float32, seed=1)
    found = cg(times(matrix), b, rtol=1e-6, iterations=3000)
    true = norm(b - times(matrix)(found.x)) / norm(b)
    assert not bool(found.converged.any())  # float32 cannot
    assert relative_gap(found.residual, true) < 0.2
    loose = cg(times(matrix), b, rtol=1e-2, iterations=3000)
    assert bool(loose.converged.all())
    assert bool((norm(b - times(matrix)(loose.x)) <= 1.01e-2 * norm(b)).all())


def test_a_good_first_guess_saves_iterations_and_an_exact_one_all() -> None:
    matrix, b = definite(30, 100), noise(2, 30, seed=1)
    exact = torch.linalg.solve(matrix, b.mT).mT
    assert cg(times(matrix), b, x0=exact, rtol=1e-10).iterations.tolist() == [0, 0]
    near = cg(times(matrix), b, x0=exact * (1 + 1e-4), rtol=1e-6)
    assert bool((near.iterations < cg(times(matrix), b, rtol=1e-6).iterations).all())
    assert relative_gap(near.x, exact) < 1e-4


def test_zero_right_hand_side_has_the_solution_zero_whatever_the_guess() -> None:
    b = torch.stack([torch.zeros(10, dtype=torch.float64), noise(10)])
    found = cg(times(definite(10, 10)), b, x0=torch.ones(2, 10, dtype=torch.float64))
    assert torch.equal(found.x[0], torch.zeros(10, dtype=torch.float64))
    assert bool(found.converged.all())
    assert found.iterations[0] == 0


def test_preconditioner_of_a_diagonal_solves_in_one_iteration() -> None:
    diagonal = torch.logspace(0, 6, 40, dtype=torch.float64)
    b = noise(2, 40, dtype=torch.complex128)
    found = cg(lambda x: diagonal * x, b, rtol=1e-12, preconditioner=lambda x: x / diagonal)
    assert found.iterations.tolist() == [1, 1]
    assert relative_gap(found.x, b / diagonal) < 1e-12


def test_indefinite_and_not_finite_systems_are_reported_and_leave_others_alone() -> None:
    n = 12
    negative = -torch.eye(n, dtype=torch.float64)
    matrices = torch.stack([definite(n, 10), negative, definite(n, 10), definite(n, 10)])
    b = noise(4, n)
    b[2, 3] = float("nan")
    b[3, 3] = float("inf")
    found = cg(times(matrices), b)
    assert found.converged.tolist() == [True, False, False, False]
    assert relative_gap(found.x[0], torch.linalg.solve(matrices[0], b[0])) < 1e-5


def test_a_norm_beyond_the_range_is_not_called_converged() -> None:
    b = torch.full((1, 16), 3e38)
    assert not bool(cg(lambda x: x, b).converged.any())
    assert not bool(lsqr(MatrixSensing(torch.eye(16)), b).converged.any())


def test_a_system_without_enough_iterations_is_not_converged() -> None:
    matrix, b = definite(30, 1e4), noise(1, 30)
    found = cg(times(matrix), b, iterations=3)
    assert found.iterations.tolist() == [3]
    assert not bool(found.converged.any())
    none = cg(times(matrix), b, iterations=0, x0=torch.ones_like(b))
    assert relative_gap(none.x, torch.ones_like(b)) < 1e-14


def test_zero_tolerance_runs_all_iterations_and_stays_finite() -> None:
    found = cg(times(definite(10, 10, torch.float32)), noise(2, 10, dtype=torch.float32), rtol=0.0, iterations=300)
    assert bool(found.x.isfinite().all())
    assert found.residual.max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_cg_is_differentiated_implicitly(dtype: torch.dtype, preconditioned: bool) -> None:
    base, b = definite(5, 10, dtype), noise(2, 5, dtype=dtype).requires_grad_()
    factor = noise(5, 5, dtype=dtype, seed=2).requires_grad_()
    shift = torch.tensor([0.5, 2.0], dtype=torch.float64).reshape(2, 1).requires_grad_()
    preconditioner = (lambda x: 0.5 * x) if preconditioned else None

    def solve(b: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
        def apply(x: Tensor) -> Tensor:
            return times(base)(x) + times(factor.mH)(times(factor)(x)) + shift * x

        return cg(apply, b, rtol=1e-13, iterations=200, preconditioner=preconditioner).x

    assert torch.autograd.gradcheck(solve, (b, factor, shift), atol=1e-6, fast_mode=True)


def test_cg_keeps_no_graph_where_none_is_wanted() -> None:
    matrix, b = definite(5, 10), noise(2, 5)
    assert not cg(times(matrix), b).x.requires_grad
    b.requires_grad_()
    with torch.no_grad():
        assert not cg(times(matrix), b).x.requires_grad
    assert cg(times(matrix), b).x.requires_grad


def test_cg_writes_into_nothing() -> None:
    b, x0 = noise(2, 5), noise(2, 5, seed=1)
    kept = b.clone(), x0.clone()
    cg(times(definite(5, 10)), b, x0=x0)
    assert torch.equal(b, kept[0])
    assert torch.equal(x0, kept[1])


def test_options_of_one_call_do_not_reach_the_next() -> None:
    matrix, b = definite(30, 100), noise(1, 30)
    before = cg(times(matrix), b)
    cg(times(matrix), b, iterations=3, rtol=0.5, check_every=1)
    after = cg(times(matrix), b)
    assert torch.equal(before.x, after.x)
    assert torch.equal(before.iterations, after.iterations)


def test_cg_refuses_wrong_arguments() -> None:
    b = torch.ones(1, 3)
    with pytest.raises(TypeError, match=r"b must be a torch.Tensor, got list"):
        cg(lambda x: x, [1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x0 must have the shape of b, \(1, 3\), got \(1, 4\)"):
        cg(lambda x: x, b, x0=torch.ones(1, 4))
    with pytest.raises(TypeError, match="x0 must be real as b is"):
        cg(lambda x: x, b, x0=b.to(torch.complex64))
    with pytest.raises(ValueError, match="rtol must be finite and >= 0, got -1"):
        cg(lambda x: x, b, rtol=-1.0)
    with pytest.raises(ValueError, match="iterations must be >= 0"):
        cg(lambda x: x, b, iterations=-1)
    with pytest.raises(ValueError, match="check_every must be >= 1"):
        cg(lambda x: x, b, check_every=0)


# --- shifted normal equations


class Concealed(LinearOperator):
    """An operator without its closed form."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.signal_shape, operator.measurement_shape)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.adjoint(y)


@pytest.mark.parametrize("make", [lambda: Mask(noise(5, 6) > 0), lambda: Blur(noise(3, 3), (5, 6))])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_closed_form_and_conjugate_gradients_agree(make: Callable[[], LinearOperator], dtype: torch.dtype) -> None:
    operator, b = make(), noise(2, 5, 6, dtype=dtype, seed=1)
    for shift in (0.3, torch.tensor(0.3), torch.tensor([0.3, 4.0], dtype=torch.float64).reshape(2, 1, 1)):
        closed = solve_normal(operator, b, shift)
        iterated = solve_normal(Concealed(operator), b, shift, rtol=1e-12, iterations=500)
        assert closed.iterations.tolist() == [0, 0]
        assert bool(iterated.converged.all())
        assert relative_gap(closed.x, iterated.x) < 1e-6 if isinstance(shift, Tensor) and not shift.ndim else 1e-10


def test_gradient_of_the_shift_is_the_same_either_way() -> None:
    operator, b = Blur(noise(3, 3), (5, 6)), noise(1, 5, 6, seed=1)
    shift = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (closed,) = torch.autograd.grad(solve_normal(operator, b, shift).x.square().sum(), shift)
    slow = solve_normal(Concealed(operator), b, shift, rtol=1e-13, iterations=500)
    (iterated,) = torch.autograd.grad(slow.x.square().sum(), shift)
    assert relative_gap(iterated, closed) < 1e-9


def test_negative_shift_is_refused() -> None:
    with pytest.raises(ValueError, match="shift must be finite and >= 0, got -1"):
        solve_normal(Mask(torch.ones(3, dtype=torch.bool)), torch.ones(1, 3), -1.0)


# --- LSQR


def least_squares(matrix: Tensor, y: Tensor, damping: float = 0.0) -> Tensor:
    """The dense answer, of least norm where there are several."""
    eye = damping * torch.eye(matrix.shape[1], dtype=matrix.dtype)
    below = torch.zeros(y.shape[0], matrix.shape[1], dtype=y.dtype)
    stacked, right = torch.cat([matrix, eye]), torch.cat([y, below], 1)
    return torch.linalg.lstsq(stacked, right.mT, driver="gelsd", rcond=1e-12).solution.mT


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("damping", [0.0, 0.5])
@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (15, 15)])
def test_lsqr_finds_the_least_squares_solution(shape: tuple[int, int], damping: float, dtype: torch.dtype) -> None:
    matrix, y = noise(*shape, dtype=dtype), noise(3, shape[0], dtype=dtype, seed=1)
    found = lsqr(MatrixSensing(matrix), y, damping=damping, rtol=1e-13, iterations=400)
    assert bool(found.converged.all())
    assert relative_gap(found.x, least_squares(matrix, y, damping)) < 1e-8


def test_lsqr_finds_the_solution_of_least_norm_when_the_rank_is_deficient() -> None:
    matrix = noise(20, 4) @ noise(4, 15, seed=1)
    y = noise(2, 20, seed=2)
    found = lsqr(MatrixSensing(matrix), y, rtol=1e-12, iterations=200)
    assert bool(found.converged.all())
    assert relative_gap(found.x, least_squares(matrix, y)) < 1e-8


def test_lsqr_sees_the_condition_number_once_where_cg_sees_it_twice() -> None:
    n = 40
    left, _ = torch.linalg.qr(noise(n, n))
    right, _ = torch.linalg.qr(noise(n, n, seed=1))
    matrix = (left * torch.logspace(-3, 0, n, dtype=torch.float64)) @ right
    truth = noise(1, n, seed=2)
    operator, y = MatrixSensing(matrix.float()), (truth @ matrix.T).float()
    found = lsqr(operator, y, rtol=1e-7, iterations=1000)
    by_cg = cg(operator.normal, operator.adjoint(y), rtol=1e-7, iterations=1000)
    assert bool(found.converged.all())
    assert relative_gap(found.x.double(), truth) < 1e-4
    assert relative_gap(by_cg.x.double(), truth) > 1e-3


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_lsqr_does_not_know_the_scale_of_data_or_operator(scale: float) -> None:
    matrix, y = noise(30, 12, dtype=torch.float32), noise(2, 30, dtype=torch.float32, seed=1)
    one = lsqr(MatrixSensing(matrix), y)
    data = lsqr(MatrixSensing(matrix), scale * y)
    system = lsqr(MatrixSensing(scale * matrix), y)
    for other, factor in ((data, 1 / scale), (system, scale)):
        assert bool(other.converged.all())
        assert relative_gap(other.x * factor, one.x) < 1e-4
    damped = lsqr(MatrixSensing(scale * matrix), scale * y, damping=2 * scale)
    assert relative_gap(damped.x, lsqr(MatrixSensing(matrix), y, damping=2.0).x) < 1e-4


def test_lsqr_stops_each_sample_on_its_own_and_freezes_it() -> None:
    matrix = torch.diag(torch.logspace(0, 2, 20, dtype=torch.float64))
    y = torch.cat([matrix[:1], noise(1, 20)])  # the first is along one singular vector
    found = lsqr(MatrixSensing(matrix), y, rtol=1e-10, iterations=300)
    assert int(found.iterations[0]) == 1
    assert int(found.iterations[1]) > 10
    assert relative_gap(found.x[:1], lsqr(MatrixSensing(matrix), y[:1], rtol=1e-10).x) < 1e-14
    assert bool(found.x.isfinite().all())


def test_lsqr_of_nothing_is_nothing_and_of_nan_is_not_converged() -> None:
    operator = MatrixSensing(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    y = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 3.0], [1.0, float("nan"), 0.0], [1.0, 4.0, 0.0]])
    found = lsqr(operator, y)
    assert found.converged.tolist() == [True, True, False, True]
    assert torch.equal(found.x[:2], torch.zeros(2, 2))
    assert relative_gap(found.x[3], torch.tensor([1.0, 2.0])) < 1e-6


@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_lsqr_is_differentiated_implicitly(damping: float, dtype: torch.dtype) -> None:
    matrix, y = noise(6, 4, dtype=dtype).requires_grad_(), noise(2, 6, dtype=dtype, seed=1).requires_grad_()

    def solve(matrix: Tensor, y: Tensor) -> Tensor:
        return lsqr(MatrixSensing(matrix), y, damping=damping, rtol=1e-14, iterations=100).x

    assert torch.autograd.gradcheck(solve, (matrix, y), atol=1e-6, fast_mode=True)


def test_lsqr_refuses_wrong_arguments() -> None:
    operator, y = MatrixSensing(torch.eye(3)), torch.ones(1, 3)
    with pytest.raises(ValueError, match="damping must be finite and >= 0"):
        lsqr(operator, y, damping=-1.0)
    with pytest.raises(ValueError, match="rtol must be finite and >= 0"):
        lsqr(operator, y, rtol=float("nan"))
    with pytest.raises(ValueError, match="iterations must be >= 0"):
        lsqr(operator, y, iterations=-1)
    with pytest.raises(TypeError, match=r"y must be a torch.Tensor"):
        lsqr(operator, None)  # type: ignore[arg-type]


# --- operator norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (30, 40), (60, 60)])
def test_operator_norm_is_the_largest_singular_value_from_above(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for seed in range(5):
        matrix = noise(*shape, dtype=dtype, seed=seed)
        got = operator_norm(MatrixSensing(matrix), torch.zeros(2, shape[1], dtype=dtype))
        want = torch.linalg.matrix_norm(matrix, 2)
        assert got.dtype == want.dtype
        assert bool((got >= want * (1 - 4e-2)).all())  # the start may be unlucky, see largest_eigenvalue
        assert bool((got <= want * (1 + 1.01e-2)).all())
        near = operator_norm(MatrixSensing(matrix), torch.zeros(1, shape[1], dtype=dtype), rtol=1e-4, iterations=99)
        assert want * (1 - 1e-6) <= near <= want * (1 + 1.1e-4)


def test_operator_norm_stays_above_where_the_spectrum_is_crowded() -> None:
    n = 2000
    difference = torch.eye(n, dtype=torch.float64)[1:] - torch.eye(n, dtype=torch.float64)[:-1]
    operator = MatrixSensing(difference)
    want = 2 * float(torch.cos(torch.tensor(torch.pi / (2 * n), dtype=torch.float64)))
    for iterations in (5, 10, 20, 40):
        got = float(operator_norm(operator, torch.zeros(1, n, dtype=torch.float64), iterations=iterations))
        assert want * (1 - 1e-2) <= got <= want * 1.02


def test_operator_norm_of_each_sample_is_its_own() -> None:
    kernels = torch.stack([noise(3, 3), 1e6 * noise(3, 3), torch.zeros(3, 3, dtype=torch.float64)])
    operator = Blur(kernels, (6, 7), per_sample=True)
    got = operator_norm(operator, torch.zeros(3, 6, 7, dtype=torch.float64))
    want = operator.transfer.abs().flatten(1).amax(1)
    assert torch.allclose(got, want, rtol=1e-2, atol=0)
    assert got[2] == 0


def test_operator_norm_of_a_multiple_of_the_identity_is_exact() -> None:
    operator = 3.0 * Mask(torch.ones(4, 5, dtype=torch.bool))
    got = operator_norm(operator, torch.zeros(3, 4, 5, dtype=torch.float64))
    assert torch.allclose(got, torch.full((3,), 3.0, dtype=torch.float64), rtol=1e-12)


def test_operator_norm_repeats_itself_and_leaves_the_global_seed_alone() -> None:
    operator, like = MatrixSensing(noise(20, 30)), torch.zeros(1, 30, dtype=torch.float64)
    state = torch.get_rng_state()
    assert torch.equal(operator_norm(operator, like), operator_norm(operator, like))
    assert torch.equal(torch.get_rng_state(), state)
    other = operator_norm(operator, like, generator=torch.Generator().manual_seed(5))
    assert float(other) == pytest.approx(float(operator_norm(operator, like)), rel=2e-2)
    assert float(other) != float(operator_norm(operator, like))


def test_largest_eigenvalue_is_that_of_a_function() -> None:
    matrix = definite(30, 100, torch.complex128)
    got = largest_eigenvalue(times(5 * matrix), torch.zeros(2, 30, dtype=torch.complex128), rtol=1e-6)
    assert torch.allclose(got, torch.full((2,), 5.0, dtype=torch.float64), rtol=1e-6)


def test_operator_norm_refuses_wrong_arguments() -> None:
    operator = MatrixSensing(torch.eye(3))
    with pytest.raises(TypeError, match=r"like must be a torch.Tensor"):
        operator_norm(operator, (1, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="iterations must be >= 1"):
        operator_norm(operator, torch.zeros(1, 3), iterations=0)


def test_expand_adds_axes_behind_the_batch() -> None:
    assert expand(torch.arange(2), torch.empty(2, 3, 4)).shape == (2, 1, 1)


def test_gradient_through_a_solve_has_finite_differences() -> None:
    operator = Blur(noise(3, 3), (5, 6))
    b = noise(1, 5, 6, seed=1)

    def value(b: Tensor) -> Tensor:
        return solve_normal(Concealed(operator), b, 0.5, rtol=1e-13, iterations=500).x.square()

    point = b.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(point).sum(), point)
    assert gradient_gap(value, b, gradient) < 1e-7


def test_a_solve_is_a_frozen_record() -> None:
    found = cg(lambda x: x, torch.ones(1, 3))
    assert isinstance(found, LinearSolve)
    with pytest.raises(AttributeError):
        found.x = torch.zeros(1, 3)  # type: ignore[misc]


@pytest.mark.parametrize("size", [256, 512])
def test_operator_norm_sees_a_few_large_eigenvalues_above_many_equal_ones(size: int) -> None:
    """A delta with a wide halo: nearly all eigenvalues are 1, a few are 4."""
    kernel = gaussian_kernel(size / 12)
    kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] += 1
    operator = Blur(kernel, (size, size))
    assert 2.0 <= float(operator_norm(operator, torch.zeros(1, size, size))) <= 2.02


def test_operator_norm_sees_one_pixel_of_larger_gain() -> None:
    gain = torch.ones(320, 320)
    gain[100, 200] = 2.2
    found = largest_eigenvalue(lambda x: gain.square() * x, torch.zeros(1, 320, 320))
    assert 2.2**2 <= float(found) <= 2.2**2 * 1.02
