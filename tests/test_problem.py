import math
import pickle

import pytest
import torch
from torch import Tensor

from invreg.interfaces import LinearOperator, Noise
from invreg.noise import Gaussian, Poisson, TransmissionPoisson
from invreg.operators import Blur, Mask, MaskedFourier, MatrixSensing, PhaseRetrieval
from invreg.problem import Problem
from invreg.random import draw
from invreg.testing import gradient_gap, relative_gap


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def dense(dtype: torch.dtype = torch.complex128) -> MatrixSensing:
    return MatrixSensing(noise(7, 4, dtype=dtype))


SIGMAS: list[float | Tensor] = [
    0.3,
    torch.tensor(0.3, dtype=torch.float64),
    torch.tensor([0.3, 2.0], dtype=torch.float64).reshape(2, 1),
    noise(2, 7, seed=9).abs() + 0.1,
]


# --- what is counted


def test_only_sampled_entries_are_counted_and_complex_ones_twice() -> None:
    mask = torch.tensor([[True, False, True], [True, True, False]])
    assert Problem(Mask(mask), torch.zeros(5, 2, 3)).count.tolist() == [4] * 5
    assert Problem(Mask(mask), torch.zeros(1, 2, 3, dtype=torch.complex64)).count.tolist() == [8]
    assert Problem(Mask(mask, (3, 2, 3)), torch.zeros(1, 3, 2, 3)).count.tolist() == [3 * 4]
    assert Problem(dense(), torch.zeros(2, 7, dtype=torch.complex128)).count.tolist() == [14, 14]


def test_twice_the_misfit_of_the_truth_is_about_the_count() -> None:
    mask = noise(100, 100, seed=1) > 0
    x = noise(3, 100, 100, dtype=torch.complex128)
    model = Gaussian(0.2)
    operator = Mask(mask)
    y = operator(model.sample(operator(x), torch.Generator().manual_seed(5)))
    problem = Problem(operator, y, model)
    assert torch.allclose(2 * problem.misfit(x) / problem.count, torch.ones(3, dtype=torch.float64), atol=0.05)


# --- misfit and gradient


@pytest.mark.parametrize("sigma", SIGMAS)
def test_misfit_is_the_weighted_square(sigma: float | Tensor) -> None:
    x, y = noise(2, 4, dtype=torch.complex128), noise(2, 7, dtype=torch.complex128, seed=1)
    want = ((dense()(x) - y).abs() / sigma).square().sum(1) / 2
    assert relative_gap(Problem(dense(), y, Gaussian(sigma)).misfit(x), want) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_misfit_gradient_is_that_of_autograd(sigma: float | Tensor, dtype: torch.dtype) -> None:
    problem = Problem(dense(dtype), noise(2, 7, dtype=dtype, seed=1), Gaussian(sigma))
    x = noise(2, 4, dtype=dtype).requires_grad_()
    (want,) = torch.autograd.grad(problem.misfit(x).sum(), x)
    assert relative_gap(problem.misfit_gradient(x.detach()), want) < 1e-13
    assert problem.is_quadratic


@pytest.mark.parametrize("model", [Gaussian(0.3), Poisson(20.0, 1.0), TransmissionPoisson(100.0, 1.0)])
def test_misfit_gradient_of_a_nonlinear_operator_has_finite_differences(model: Noise) -> None:
    operator, x = PhaseRetrieval(0.3 * dense()), noise(2, 4, dtype=torch.complex128)
    y = model.sample(operator(noise(2, 4, dtype=torch.complex128, seed=3)), torch.Generator().manual_seed(0))
    problem = Problem(operator, y, model)
    assert not problem.is_quadratic
    assert gradient_gap(problem.misfit, x, problem.misfit_gradient(x)) < 1e-7


def test_scaling_data_and_noise_level_together_changes_only_the_scale() -> None:
    y, x = noise(2, 7, dtype=torch.complex128), noise(2, 4, dtype=torch.complex128)
    one, small = Problem(dense(), y, Gaussian(0.3)), Problem(dense(), 1e-6 * y, Gaussian(0.3e-6))
    assert relative_gap(small.misfit(1e-6 * x), one.misfit(x)) < 1e-12
    assert relative_gap(1e-6 * small.misfit_gradient(1e-6 * x), one.misfit_gradient(x)) < 1e-12
    assert relative_gap(1e6 * small.prox(1e-6 * x, 1e-12), one.prox(x, 1.0)) < 1e-6


# --- proximal map


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("variance", [0.5, torch.tensor([[0.1], [3.0]], dtype=torch.float64)])
def test_prox_is_the_dense_solution(sigma: float | Tensor, variance: float | Tensor, dtype: torch.dtype) -> None:
    operator, y, z = dense(dtype), noise(2, 7, dtype=dtype, seed=1), noise(2, 4, dtype=dtype, seed=2)
    got = Problem(operator, y, Gaussian(sigma)).prox(z, variance, rtol=1e-13, iterations=100)
    matrix = operator.matrix
    for i in range(2):
        weight = (torch.ones(2, 7, dtype=torch.float64) / sigma**2)[i].to(dtype)
        one = variance if isinstance(variance, float) else float(variance[i])
        system = matrix.mH @ (weight[:, None] * matrix) + torch.eye(4, dtype=dtype) / one
        want = torch.linalg.solve(system, matrix.mH @ (weight * y[i]) + z[i] / one)
        assert relative_gap(got[i], want) < 1e-9


def test_prox_in_closed_form_is_the_iterated_one() -> None:
    blur = Blur(noise(3, 3), (5, 6))

    class Concealed(LinearOperator):
        def forward(self, x: Tensor) -> Tensor:
            return blur(x)

        def adjoint(self, y: Tensor) -> Tensor:
            return blur.adjoint(y)

    y, z = noise(2, 5, 6, seed=1), noise(2, 5, 6, seed=2)
    closed = Problem(blur, y, Gaussian(0.4)).prox(z, 0.7)
    slow = Problem(Concealed(), y, Gaussian(0.4)).prox(z, 0.7, x0=torch.zeros_like(z), rtol=1e-13, iterations=500)
    assert relative_gap(slow, closed) < 1e-10


def test_prox_is_differentiated_in_centre_variance_and_data() -> None:
    z, y = noise(2, 4).requires_grad_(), noise(2, 7, seed=1).requires_grad_()
    variance = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def solve(z: Tensor, variance: Tensor, y: Tensor, sigma: Tensor) -> Tensor:
        return Problem(dense(torch.float64), y, Gaussian(sigma)).prox(z, variance, rtol=1e-14)

    assert torch.autograd.gradcheck(solve, (z, variance, y, sigma), atol=1e-6, fast_mode=True)


def test_options_of_one_prox_do_not_reach_the_next() -> None:
    problem, z = Problem(dense(), noise(1, 7, dtype=torch.complex128)), noise(1, 4, dtype=torch.complex128)
    before = problem.prox(z, 1.0)
    problem.prox(z, 1.0, iterations=1, rtol=0.9, check_every=1)
    assert torch.equal(problem.prox(z, 1.0), before)


# --- graphs and caches


class Counting(LinearOperator):
    """Identity that counts its adjoints."""

    def __init__(self) -> None:
        super().__init__()
        self.adjoints = 0

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        self.adjoints += 1
        return y


def test_other_measurements_have_a_backprojection_of_their_own() -> None:
    problem, y = (
        Problem(dense(), noise(2, 7, dtype=torch.complex128), Gaussian(0.3)),
        noise(2, 7, dtype=torch.complex128, seed=1),
    )
    before = problem.backprojection()
    other = problem.measuring(y)
    assert other.y is y and problem.y is not y
    assert torch.equal(other.backprojection(), Problem(problem.operator, y, problem.noise).backprojection())
    assert torch.equal(problem.backprojection(), before)


def test_backprojection_is_computed_once() -> None:
    operator = Counting()
    problem = Problem(operator, torch.ones(1, 3))
    for _ in range(3):
        problem.backprojection()
    assert operator.adjoints == 1


def test_a_value_without_graph_does_not_hide_that_one_is_wanted() -> None:
    y = noise(1, 7).requires_grad_()
    problem = Problem(dense(torch.float64), y)
    with torch.no_grad():
        assert not problem.backprojection().requires_grad
    assert problem.backprojection().requires_grad
    matrix = noise(7, 4).requires_grad_()
    learned = Problem(MatrixSensing(matrix), noise(1, 7))
    with torch.no_grad():
        first = learned.backprojection()
        matrix.mul_(2)  # an optimizer's step
        assert relative_gap(learned.backprojection(), 2 * first) < 1e-15
    assert learned.backprojection().requires_grad


def test_what_inference_mode_computed_is_not_kept_for_autograd() -> None:
    problem = Problem(dense(torch.float64), noise(1, 7))
    with torch.inference_mode():
        problem.backprojection()
    x = noise(1, 4).requires_grad_()
    (gradient,) = torch.autograd.grad((problem.misfit_gradient(x) * problem.backprojection()).sum(), x)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("operator", [dense(), PhaseRetrieval(dense())])
def test_gradients_leave_the_callers_tensor_alone_and_give_no_graph_unasked(operator: MatrixSensing) -> None:
    x = noise(1, 4, dtype=torch.complex128)
    problem = Problem(operator, operator(x) + 1)
    gradient = problem.misfit_gradient(x)
    assert not x.requires_grad
    assert not gradient.requires_grad
    x.requires_grad_()
    with torch.no_grad():
        assert not problem.misfit_gradient(x).requires_grad
    assert problem.misfit_gradient(x).requires_grad


def test_a_problem_can_be_pickled() -> None:
    problem, x = (
        Problem(dense(), noise(1, 7, dtype=torch.complex128), Gaussian(0.2)),
        noise(1, 4, dtype=torch.complex128),
    )
    assert torch.equal(pickle.loads(pickle.dumps(problem)).misfit(x), problem.misfit(x))


# --- refusals


def test_data_where_nothing_is_sampled_are_refused() -> None:
    mask = Mask(torch.tensor([True, False, True]))
    with pytest.raises(ValueError, match="y must be 0 where the operator samples nothing.*multiply it by the mask"):
        Problem(mask, torch.ones(1, 3))
    Problem(mask, mask(torch.ones(1, 3)))


def test_data_that_are_not_finite_are_refused() -> None:
    y = torch.ones(1, 3)
    for bad in (math.nan, math.inf):
        y[0, 1] = bad
        with pytest.raises(ValueError, match="y must be finite, got 1 NaN or Inf of 3 entries; repair or mask them"):
            Problem(Mask(torch.ones(3, dtype=torch.bool)), y)


def test_data_of_another_kind_or_shape_are_refused() -> None:
    operator = dense()
    with pytest.raises(TypeError, match=r"y must be a torch.Tensor, got list"):
        Problem(operator, [1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"y must be floating point or complex, got torch.int64; use y.float\(\)"):
        Problem(operator, torch.ones(1, 7, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"y must be \(B, 7\) = the measurement of MatrixSensing, got \(7,\); add a batch"
    ):
        Problem(operator, torch.ones(7))
    with pytest.raises(TypeError, match="operator must be an Operator, got Tensor"):
        Problem(torch.ones(7, 4), torch.ones(1, 7))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"noise must be a Noise such as Gaussian\(0.1\), got float"):
        Problem(operator, torch.ones(1, 7), 0.1)  # type: ignore[arg-type]


def test_what_are_not_counts_is_refused_under_poisson_noise() -> None:
    operator = dense(torch.float64)
    for model in (Poisson(), TransmissionPoisson(10.0)):
        with pytest.raises(ValueError, match=f"y must be counts >= 0 under {type(model).__name__} noise"):
            Problem(operator, -torch.ones(1, 7, dtype=torch.float64), model)
        with pytest.raises(ValueError, match="y must be counts"):
            Problem(operator, torch.ones(1, 7, dtype=torch.complex128), model)


def test_noise_levels_that_do_not_broadcast_to_the_data_are_refused() -> None:
    operator, y = dense(torch.float64), noise(2, 7)
    with pytest.raises(ValueError, match=r"sigma must broadcast to y, \(2, 7\), got \(2,\); .* is \(2, 1\)"):
        Problem(operator, y, Gaussian(torch.ones(2, dtype=torch.float64)))
    with pytest.raises(ValueError, match="sigma must broadcast"):
        Problem(operator, y[:1], Gaussian(torch.ones(2, 1, dtype=torch.float64)))
    with pytest.raises(ValueError, match="sigma must broadcast"):
        Problem(operator, y, Gaussian(torch.ones(1, 2, 7, dtype=torch.float64)))
    with pytest.raises(ValueError, match="photons must broadcast"):
        Problem(operator, y.abs(), Poisson(torch.ones(6, dtype=torch.float64)))
    with pytest.raises(
        TypeError, match=r"sigma is torch.float64 but y is torch.complex64; use sigma.to\(torch.float32\)"
    ):
        Problem(operator, y.to(torch.complex64), Gaussian(torch.ones(7, dtype=torch.float64)))
    Problem(operator, y.to(torch.complex64), Gaussian(torch.ones(7)))


def test_only_a_quadratic_misfit_has_a_prox() -> None:
    x = noise(1, 4, dtype=torch.complex128)
    nonlinear = Problem(PhaseRetrieval(dense()), torch.ones(1, 7, dtype=torch.float64))
    counts = Problem(dense(torch.float64), torch.ones(1, 7, dtype=torch.float64), Poisson())
    with pytest.raises(TypeError, match="needs a LinearOperator and Gaussian noise, got PhaseRetrieval and Gaussian"):
        nonlinear.prox(x, 1.0)
    for call in (counts.backprojection, lambda: counts.normal(x), lambda: counts.prox(x, 1.0)):
        with pytest.raises(TypeError, match="got MatrixSensing and Poisson; use GradientDescent or FISTA"):
            call()
    with pytest.raises(ValueError, match="variance must be finite and > 0, got 0"):
        Problem(dense(), noise(1, 7, dtype=torch.complex128)).prox(x, 0.0)


def test_a_mask_of_each_sample_wants_as_many_measurements() -> None:
    mask = noise(3, 4, 4) > -1
    for batch in (1, 2):
        with pytest.raises(ValueError, match=f"y must have batch size 3, that of the operator, got {batch}"):
            Problem(MaskedFourier(mask), torch.zeros(batch, 4, 4, dtype=torch.complex64))


@pytest.mark.parametrize("noise", [Poisson(1e5, 3.0), TransmissionPoisson(1e5), TransmissionPoisson(1e5, 3.0)])
def test_only_sampled_counts_enter_the_misfit(noise: Poisson | TransmissionPoisson) -> None:
    seen = torch.arange(600) % 3 == 0
    x = torch.linspace(0.1, 2, 600)[None].double()
    y = torch.where(seen, noise.sample(x, torch.Generator().manual_seed(0)), 0)
    problem = Problem(Mask(seen), y, noise)
    alone = Problem(Mask(torch.ones(200, dtype=torch.bool)), y[:, seen], noise)
    assert float(problem.misfit(x)) == pytest.approx(float(alone.misfit(x[:, seen])), rel=1e-12)
    assert 0.7 < 2 * float(problem.misfit(x)) / int(problem.count) < 1.3
    assert gradient_gap(problem.misfit, x, problem.misfit_gradient(x)) <= 1e-6


def test_back_projection_follows_its_sources() -> None:
    operator, y = MatrixSensing(torch.eye(2)), torch.tensor([[1.0, 2.0]])
    problem, zero = Problem(operator, y), torch.zeros(1, 2)
    assert problem.misfit_gradient(zero).tolist() == [[-1.0, -2.0]]
    operator.matrix.mul_(3)
    assert problem.misfit_gradient(zero).tolist() == [[-3.0, -6.0]]
    y.mul_(2)
    assert problem.misfit_gradient(zero).tolist() == [[-6.0, -12.0]]
    operator.load_state_dict({"matrix": torch.eye(2)})
    assert problem.misfit_gradient(zero).tolist() == [[-2.0, -4.0]]
    assert problem.backprojection() is problem.backprojection()


def test_a_real_image_under_a_complex_operator_has_a_real_gradient_and_prox() -> None:
    operator = (1 + 2j) * Blur(torch.tensor([0.2, 0.5, 0.3]).double(), (4,))
    x = torch.linspace(-1, 1, 4)[None].double()
    problem = Problem(operator, operator(x + 1) + 0.3j, Gaussian(0.5))
    gradient = problem.misfit_gradient(x)
    assert gradient.dtype == torch.float64
    torch.testing.assert_close(gradient, operator.vjp(x, (operator(x) - problem.y) / 0.25))
    z = problem.prox(x, 0.7, rtol=1e-12)
    torch.testing.assert_close(problem.misfit_gradient(z) + (z - x) / 0.7, torch.zeros_like(z), rtol=0, atol=1e-9)
