"""The bridge to deepinv, both ways, held to deepinv's own checks and to closed forms."""

import copy
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from invreg._torchvision import guard_torchvision
from invreg.deepinv_bridge import as_deepinv, from_deepinv
from invreg.interfaces import Denoiser, LinearOperator, Operator, Proximal, Regularizer
from invreg.operators import Blur, ParallelBeam, Sense
from invreg.problem import Problem
from invreg.random import draw
from invreg.regularizers import L1, RED, SumOfTerms, Tikhonov
from invreg.testing import adjoint_gap, gradient_gap, linearity_gap, normal_gap, prox_gap, relative_gap, vjp_gap

guard_torchvision()  # before anything imports torchvision
deepinv = pytest.importorskip("deepinv", reason="needs invreg[deepinv]")


def seeded(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


class Rows(LinearOperator):
    """A dense matrix on the last axis of an image."""

    matrix: Tensor

    def __init__(self, matrix: Tensor, rows: int) -> None:
        super().__init__((rows, matrix.shape[1]), (rows, matrix.shape[0]))
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.mT

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.conj()


class Square(Operator):
    """An operator that is not linear."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square()


class Absolute(Regularizer[Tensor]):
    """Weight * |x|_1."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.abs().flatten(1).sum(1)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        size = x.abs()
        return x * (1 - (step * self.weight) / size.clamp_min(1e-30)).clamp_min(0)


class Energy(Regularizer[Tensor]):
    """Weight * |x|^2 / 2, without a prox."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * 0.5 * x.abs().square().flatten(1).sum(1)


class Shrink(Denoiser):
    """The posterior mean under a standard normal prior."""

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        level = torch.as_tensor(sigma, dtype=x.real.dtype)
        return x / (1 + level.square().reshape(-1, *(1,) * (x.ndim - 1)))


class OnlyProx:
    """A proximal map without a value."""

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        return x - step


def sense(dtype: torch.dtype = torch.complex128) -> Sense:
    maps = seeded(1, 3, 12, 10, dtype=dtype)
    return Sense(maps, torch.rand(12, 10, generator=torch.Generator().manual_seed(1)) > 0.4)


def dense_norm(operator: LinearOperator, like: Tensor) -> float:
    """The largest singular value, of the operator written out as a matrix; `like` is (1, *signal)."""
    basis = torch.eye(like.numel(), dtype=like.dtype).reshape(-1, *like.shape[1:])
    return float(torch.linalg.matrix_norm(operator(basis).flatten(1), 2))


MADE: dict[str, tuple[Callable[[], LinearOperator], str, torch.dtype]] = {
    "matrix, native": (lambda: Rows(seeded(7, 5), 4), "native", torch.float64),
    "matrix, channels": (lambda: Rows(seeded(7, 5), 4), "channels", torch.float64),
    "complex matrix, real2": (lambda: Rows(seeded(7, 5, dtype=torch.complex128), 4), "real2", torch.float64),
    "SENSE, native": (sense, "native", torch.complex128),
    "SENSE, real2": (sense, "real2", torch.float64),
    "SENSE, channels": (sense, "channels", torch.complex128),
    "CT, channels": (lambda: ParallelBeam((9, 8), torch.linspace(0, 3.1, 12).double()), "channels", torch.float64),
}


@pytest.mark.parametrize("name", list(MADE))
def test_our_operators_pass_the_adjointness_norm_and_pseudo_inverse_checks_of_deepinv(name: str) -> None:
    make, layout, dtype = MADE[name]
    physics = as_deepinv(make(), layout)
    torch.manual_seed(0)
    assert float(physics.adjointness_test(num_samples=5, dtype=dtype)) <= 1e-12
    x = torch.randn(physics.img_size, dtype=dtype)[None]
    plain = torch.empty(1, *make().signal_shape or (), dtype=torch.complex128 if layout == "real2" else dtype)
    norm = dense_norm(make(), plain)
    found = float(physics.compute_sqnorm(x, max_iter=500, tol=1e-9, verbose=False))
    assert found == pytest.approx(norm**2, rel=1e-3)
    y = physics.A(x)
    fitted = physics.A_dagger(y, solver="lsqr", max_iter=300, tol=1e-9)
    assert relative_gap(physics.A(fitted), y) <= 1e-6
    assert relative_gap(physics.A_adjoint_A(x), physics.A_adjoint(y)) <= 1e-12


@pytest.mark.parametrize("name", list(MADE))
def test_our_operators_survive_clone_state_dict_and_change_of_precision(name: str) -> None:
    make, layout, dtype = MADE[name]
    physics = as_deepinv(make(), layout)
    x = torch.randn(2, *physics.img_size, dtype=dtype)
    y = physics.A(x)
    assert torch.equal(physics.clone().A(x), y)
    assert all(key.startswith("operator.") for key in physics.state_dict())
    other = as_deepinv(make(), layout)
    for buffer in other.state_dict().values():
        buffer.zero_()
    other.load_state_dict(physics.state_dict())
    assert torch.equal(other.A(x), y)
    single = physics.clone().to(torch.float32)
    got = single.A(x.to(torch.complex64 if dtype.is_complex else torch.float32))
    assert got.real.dtype == torch.float32
    assert relative_gap(got.to(y.dtype), y) <= 1e-5


def test_real2_layout_is_that_of_the_multicoil_mri_of_deepinv() -> None:
    maps = seeded(2, 3, 12, 10, dtype=torch.complex64)
    mask = torch.rand(12, 10, generator=torch.Generator().manual_seed(1)) > 0.4
    ours = as_deepinv(Sense(maps, mask), "real2")
    theirs = deepinv.physics.MultiCoilMRI(mask=mask.float()[None, None].expand(1, 2, -1, -1), coil_maps=maps)
    x = seeded(2, 2, 12, 10, dtype=torch.float32)
    y = theirs.A(x)
    assert relative_gap(ours.A(x), y) <= 1e-6
    assert relative_gap(ours.A_adjoint(y), theirs.A_adjoint(y)) <= 1e-6


def test_channels_layout_treats_each_channel_alone() -> None:
    operator = Rows(seeded(7, 5), 4)
    x = seeded(2, 3, 4, 5)
    y = as_deepinv(operator, "channels").A(x)
    assert y.shape == (2, 3, 4, 7)
    for c in range(3):
        assert torch.allclose(y[:, c], operator(x[:, c]))


def test_gradient_of_a_least_squares_solve_of_deepinv_is_the_closed_form() -> None:
    matrix = seeded(7, 5)
    physics = as_deepinv(Rows(matrix, 4), "channels")
    y, weight = seeded(1, 1, 4, 7, seed=1).requires_grad_(), seeded(1, 1, 4, 5, seed=2)
    x = physics.prox_l2(torch.zeros(1, 1, 4, 5, dtype=torch.float64), y, gamma=2.0, max_iter=100, tol=1e-12)
    (got,) = torch.autograd.grad((x * weight).sum(), y)
    inverse = torch.linalg.inv(matrix.mT @ matrix + torch.eye(5, dtype=torch.float64) / 2)
    assert relative_gap(got, weight @ inverse @ matrix.mT) <= 1e-6


def test_a_parameter_given_to_a_fixed_operator_is_refused() -> None:
    physics = as_deepinv(sense(), "real2")
    x = seeded(1, 2, 12, 10)
    assert torch.equal(physics(x, sigma=0.1), physics.A(x))  # for the noise model, which is none here
    with pytest.raises(TypeError, match="mask must not be given: Sense is fixed"):
        physics.A(x, mask=torch.ones(12, 10))
    with pytest.raises(TypeError, match="maps must not be given"):
        physics.update(maps=torch.ones(12, 10))


def test_nonlinear_operator_has_the_products_with_its_jacobian() -> None:
    physics = as_deepinv(Square())
    x, v = seeded(1, 1, 3, 4), seeded(1, 1, 3, 4, seed=1)
    assert torch.equal(physics.A(x), x.square())
    assert relative_gap(physics.A_vjp(x, v), 2 * x * v) <= 1e-15
    assert relative_gap(physics.A_jvp(x, v), 2 * x * v) <= 1e-15
    assert float(physics.compute_norm(x).detach()) == pytest.approx(float((4 * x.square()).max()), rel=1e-3)


def test_our_regularizer_is_a_prior_with_g_param_times_weight() -> None:
    prior = as_deepinv(Absolute(0.5), "channels")
    x = seeded(2, 3, 4, 5)
    assert prior.explicit_prior
    assert torch.allclose(prior.fn(x), 0.5 * x.abs().flatten(1).sum(1))
    assert torch.allclose(prior.fn(x, 3.0), 1.5 * x.abs().flatten(1).sum(1))
    assert torch.allclose(prior.grad(x, 3.0), 1.5 * x.sign())
    shrunk = x.sign() * (x.abs() - 0.3).clamp_min(0)
    assert torch.allclose(prior.prox(x, 3.0, gamma=0.2), shrunk)
    per_sample = prior.prox(x, None, gamma=torch.tensor([0.6, 0.0], dtype=torch.float64).reshape(2, 1, 1, 1))
    assert torch.allclose(per_sample[0], shrunk[0])
    assert torch.allclose(per_sample[1], x[1])
    assert torch.allclose(prior.prox_conjugate(x, None, gamma=1.7), x.clamp(-0.5, 0.5))


def test_gradient_of_a_prior_leaves_its_argument_alone_and_keeps_the_graph_of_unrolled_training() -> None:
    prior = as_deepinv(Energy(2.0))
    x = seeded(1, 1, 3, 4)
    with torch.no_grad():
        gradient = prior.grad(x)
    assert not x.requires_grad
    assert not gradient.requires_grad
    point = x.clone().requires_grad_()
    (second,) = torch.autograd.grad(prior.grad(3 * point).sum(), point)
    assert torch.allclose(second, torch.full_like(x, 6.0))


def test_complex_prior_in_two_real_channels_is_phase_invariant() -> None:
    prior = as_deepinv(Absolute(1.0), "real2")
    z = seeded(2, 4, 5, dtype=torch.complex128)
    x = torch.view_as_real(z).movedim(-1, 1)
    assert torch.allclose(prior.fn(x), z.abs().flatten(1).sum(1))
    want = z * (1 - 0.4 / z.abs()).clamp_min(0)
    assert torch.allclose(prior.prox(x, gamma=0.4), torch.view_as_real(want).movedim(-1, 1))
    assert torch.allclose(prior.grad(x), torch.view_as_real(z.sgn()).movedim(-1, 1))


def test_prior_without_prox_gets_the_gradient_descent_of_deepinv_and_prox_without_value_is_implicit() -> None:
    x = seeded(1, 1, 3, 4)
    prior = as_deepinv(Energy(1.0))
    assert (
        relative_gap(prior.prox(x, gamma=0.5, stepsize_inter=0.5, max_iter_inter=200, tol_inter=1e-9), x / 1.5) < 1e-6
    )
    implicit = as_deepinv(OnlyProx())
    assert not implicit.explicit_prior
    assert torch.equal(implicit.prox(x, gamma=0.25), x - 0.25)


def test_our_operator_and_prior_solve_a_lasso_inside_the_algorithm_of_deepinv() -> None:
    matrix = torch.linalg.qr(seeded(5, 5))[0]
    physics = as_deepinv(Rows(matrix, 4), "channels")
    y = seeded(1, 1, 4, 5, seed=3)
    model = deepinv.optim.optim_builder(
        "PGD",
        data_fidelity=deepinv.optim.L2(),
        prior=as_deepinv(Absolute(0.2), "channels"),
        params_algo={"stepsize": 1.0, "lambda": 1.0},
        max_iter=20,
        early_stop=False,
    )
    z = y @ matrix  # orthogonal: the lasso is the soft threshold of A^T y
    want = z.sign() * (z.abs() - 0.2).clamp_min(0)
    assert relative_gap(model(y, physics), want) <= 1e-10


@pytest.mark.parametrize("layout", ["native", "channels", "real2"])
def test_our_denoiser_takes_one_level_or_one_per_sample_in_every_layout(layout: Any) -> None:
    model = as_deepinv(Shrink(), layout)
    x = seeded(2, 2, 4, 5)
    assert torch.allclose(model(x, 0.5), x / 1.25)
    assert torch.allclose(model(x, sigma=torch.tensor(0.5)), x / 1.25)
    per_sample = model(x, torch.tensor([0.5, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1))
    assert torch.allclose(per_sample[0], x[0] / 1.25)
    assert torch.allclose(per_sample[1], x[1] / 2)


def test_linear_physics_becomes_a_linear_operator_that_obeys_the_laws() -> None:
    kernel = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    physics = deepinv.physics.Blur(filter=kernel, padding="valid")
    operator = from_deepinv(physics, (2, 9, 8))
    assert isinstance(operator, LinearOperator)
    assert operator.measurement_shape == (2, 7, 6)
    x = seeded(2, 2, 9, 8)
    assert torch.equal(operator(x), physics.A(x))
    assert adjoint_gap(operator, x, seeded(2, 2, 7, 6)) <= 1e-12
    assert linearity_gap(operator, x, seeded(2, 2, 9, 8, seed=5)) <= 1e-12
    assert normal_gap(operator, x) <= 1e-12
    assert vjp_gap(operator, x, seeded(2, 2, 7, 6)) <= 1e-12
    with pytest.raises(ValueError, match="x must be"):
        operator(x[..., :-1])
    plain = from_deepinv(physics, (9, 8), layout="channels")
    assert torch.equal(plain(x[:, 0]), physics.A(x[:, :1])[:, 0])


def test_mri_of_deepinv_becomes_a_complex_operator_with_its_mask() -> None:
    maps = seeded(1, 3, 12, 10, dtype=torch.complex64)
    mask = torch.rand(12, 10, generator=torch.Generator().manual_seed(1)) > 0.4
    physics = deepinv.physics.MultiCoilMRI(mask=mask.float()[None, None].expand(1, 2, -1, -1), coil_maps=maps)
    operator, ours = from_deepinv(physics, layout="real2"), Sense(maps, mask)
    assert operator.signal_shape == ours.signal_shape
    assert operator.measurement_shape == ours.measurement_shape
    x = seeded(2, 12, 10, dtype=torch.complex64)
    assert relative_gap(operator(x), ours(x)) <= 1e-6
    assert adjoint_gap(operator, x, seeded(2, 3, 12, 10, dtype=torch.complex64)) <= 1e-6
    y = ours(x)
    assert torch.equal(Problem(operator, y).count, Problem(ours, y).count)


def test_there_and_back_is_the_same_operator() -> None:
    operator = sense()
    again = from_deepinv(as_deepinv(operator, "real2"), layout="real2")
    x = seeded(2, 12, 10, dtype=torch.complex128)
    assert again.signal_shape == operator.signal_shape
    assert torch.equal(again(x), operator(x))
    assert again.to(torch.float32)(x.to(torch.complex64)).dtype == torch.complex64


def test_a_later_change_of_the_physics_does_not_reach_the_operator_unless_asked() -> None:
    physics = deepinv.physics.Inpainting((1, 4, 5), mask=torch.ones(1, 4, 5))
    copied, shared = from_deepinv(physics), from_deepinv(physics, snapshot=False)
    x = seeded(1, 1, 4, 5, dtype=torch.float32)
    physics.A(x, mask=torch.zeros(1, 1, 4, 5))
    assert torch.equal(copied(x), x)
    assert torch.equal(shared(x), torch.zeros_like(x))


def test_physics_that_cannot_be_copied_says_what_to_do() -> None:
    physics = deepinv.physics.LinearPhysics(A=lambda x: 2 * x, A_adjoint=lambda y: 2 * y)
    physics.handle = (k for k in range(3))
    with pytest.raises(TypeError, match=r"LinearPhysics cannot be copied .*; use snapshot=False"):
        from_deepinv(physics, (1, 4, 5))
    assert torch.equal(from_deepinv(physics, snapshot=False)(torch.ones(1, 1, 4, 5)), 2 * torch.ones(1, 1, 4, 5))


def test_nonlinear_physics_becomes_an_operator_with_gradients() -> None:
    operator = from_deepinv(deepinv.physics.Physics(A=lambda x: x.square()), (3, 4))
    assert not isinstance(operator, LinearOperator)
    x, v = seeded(2, 3, 4), seeded(2, 3, 4, seed=1)
    assert torch.allclose(operator.vjp(x, v), 2 * x * v)


def test_stacked_physics_is_refused_with_advice() -> None:
    kernel = torch.ones(1, 1, 3, 3) / 9
    physics = deepinv.physics.Blur(kernel, padding="circular").stack(deepinv.physics.Denoising())
    with pytest.raises(TypeError, match="one tensor, got TensorList; wrap its parts"):
        from_deepinv(physics, (1, 6, 6))


def test_explicit_prior_with_its_own_prox_becomes_a_proximal_regularizer() -> None:
    regularizer = from_deepinv(deepinv.optim.L1Prior(), weight=0.3)
    assert isinstance(regularizer, Regularizer)
    assert isinstance(regularizer, Proximal)
    assert regularizer.exact
    x = seeded(2, 1, 4, 5)
    assert torch.allclose(regularizer(x), 0.3 * x.abs().flatten(1).sum(1))
    assert prox_gap(regularizer, x, 0.7) <= 1e-12
    per_sample = regularizer.prox(x, torch.tensor([1.0, 2.0], dtype=torch.float64).reshape(2, 1, 1, 1))
    assert torch.allclose(per_sample[1], x[1].sign() * (x[1].abs() - 0.6).clamp_min(0))
    plain = from_deepinv(deepinv.optim.L1Prior(), weight=0.3, layout="channels")
    assert torch.equal(plain.prox(x[:, 0], 0.5), regularizer.prox(x, 0.5)[:, 0])


def test_prox_of_a_wrapped_prior_does_not_depend_on_earlier_calls() -> None:
    regularizer = from_deepinv(deepinv.optim.TVPrior(n_it_max=20), weight=0.3)
    a, b = seeded(1, 1, 8, 8), seeded(1, 1, 8, 8, seed=1)
    fresh = regularizer.prox(b, 1.0)
    regularizer.prox(a, 1.0)
    assert torch.equal(regularizer.prox(b, 1.0), fresh)


def test_explicit_prior_with_the_generic_prox_has_none_here() -> None:
    regularizer = from_deepinv(deepinv.optim.Prior(g=lambda x, *_: x.square().flatten(1).sum(1)), weight=0.5)
    x = seeded(2, 1, 3, 4).requires_grad_()
    assert not isinstance(regularizer, Proximal)
    (gradient,) = torch.autograd.grad(regularizer(x).sum(), x)
    assert gradient_gap(regularizer, x.detach(), gradient) <= 1e-6


def test_plug_and_play_and_red_priors_keep_what_they_have() -> None:
    denoiser = as_deepinv(Shrink())
    x = seeded(2, 1, 3, 4)
    pnp = from_deepinv(deepinv.optim.PnP(denoiser), g_param=1.0)
    assert isinstance(pnp, Proximal)
    assert not isinstance(pnp, Regularizer)
    assert torch.allclose(pnp.prox(x, 0.1), x / 2)
    red = from_deepinv(deepinv.optim.RED(denoiser), g_param=1.0, weight=3.0)
    assert not red.exact
    assert not isinstance(red, Proximal)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(red(point).sum(), point)
    assert torch.allclose(gradient, 3 * x / 2)


@pytest.mark.parametrize("kind", ["PnP", "RED", "ScorePrior"])
def test_a_prior_that_needs_a_noise_level_is_refused_without(kind: str) -> None:
    prior = getattr(deepinv.optim, kind)(deepinv.models.MedianFilter())
    with pytest.raises(TypeError, match=f"g_param must be given for {kind}, as its sigma_denoiser"):
        from_deepinv(prior)


def test_a_sum_with_a_surrogate_is_no_explicit_prior() -> None:
    class Same(Denoiser):
        def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            return x

    assert as_deepinv(SumOfTerms(L1(), Tikhonov())).explicit_prior
    assert not as_deepinv(SumOfTerms(L1(), RED(Same(), 0.1))).explicit_prior


def test_prior_that_has_nothing_is_refused() -> None:
    with pytest.raises(TypeError, match="Prior must have a value, a gradient or a prox of its own"):
        from_deepinv(deepinv.optim.Prior())


def test_denoiser_of_deepinv_keeps_our_contract() -> None:
    class Halve(deepinv.models.Denoiser):  # type: ignore[misc]
        def forward(self, x: Tensor, sigma: Any) -> Tensor:
            assert x.shape[1] == 1
            return x * self._handle_sigma(sigma, reference_tensor=x)

    model = from_deepinv(Halve(), layout="channels")
    assert isinstance(model, Denoiser)
    x = seeded(2, 3, 4)
    got = model(x, torch.tensor([0.5, 2.0], dtype=torch.float64))
    assert torch.equal(got, torch.stack([x[0] * 0.5, x[1] * 2]))
    tv = from_deepinv(deepinv.models.TVDenoiser(n_it_max=5))
    assert tv(x[:, None], 0.1).shape == (2, 1, 3, 4)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda d: as_deepinv("TV"), TypeError, "thing must be an Operator, a Regularizer, a Proximal or a Denoiser"),
        (lambda d: from_deepinv(Square()), TypeError, "thing must be a Physics, Prior or Denoiser of deepinv"),
        (lambda d: as_deepinv(Square(), "real"), ValueError, "unknown layout 'real'; did you mean 'real2'"),
        (lambda d: from_deepinv(d.optim.L1Prior(), (1, 4, 4)), TypeError, "signal_shape must not be given for a Prior"),
        (
            lambda d: from_deepinv(d.models.TVDenoiser(), weight=1.0),
            TypeError,
            "weight must not be given for a Denoise",
        ),
        (lambda d: from_deepinv(d.physics.Denoising(), g_param=1.0), TypeError, "g_param must not be given for a Phys"),
        (lambda d: as_deepinv(Square(), "real2").A(torch.ones(1, 3, 4)), ValueError, "real and .B, 2, .signal"),
        (lambda d: as_deepinv(Square(), "channels").A(torch.ones(1, 3)), ValueError, "must be .B, C, .signal"),
        (
            lambda d: from_deepinv(d.physics.Denoising(), (4, 4), layout="real2", dtype=torch.float32),
            TypeError,
            "for complex tensors, got torch.float32",
        ),
        (
            lambda d: from_deepinv(
                d.physics.LinearPhysics(A=lambda x: x.repeat(1, 2, 1, 1)), (4, 4), layout="channels", snapshot=False
            ),
            ValueError,
            "for one channel, but deepinv gave",
        ),
    ],
)
def test_wrong_calls_say_what_was_wanted(call: Callable[[Any], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call(deepinv)


def test_missing_deepinv_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepinv", None)
    with pytest.raises(ImportError, match=r"pip install 'invreg\[deepinv\]'"):
        as_deepinv(Square())


def test_importing_the_bridge_does_not_import_deepinv() -> None:
    code = "import sys, invreg.deepinv_bridge; assert not {'deepinv', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_wrapped_operator_can_be_copied_and_its_gradient_reaches_a_learned_weight() -> None:
    weight = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    prior = copy.deepcopy(as_deepinv(Energy(weight)))
    x = seeded(1, 1, 3, 4)
    (gradient,) = torch.autograd.grad(prior.fn(x).sum(), prior.regularizer.weight)
    assert float(gradient) == pytest.approx(float(0.5 * x.square().sum()))


SMOOTH = torch.tensor([0.2, 0.6, 0.2])
FOREIGN: dict[str, tuple[Callable[[], LinearOperator], Any, torch.dtype]] = {
    "SENSE, native": (lambda: sense(torch.complex64), "native", torch.complex64),
    "SENSE, real2": (lambda: sense(torch.complex64), "real2", torch.float32),
    "blur, channels": (lambda: Blur(torch.outer(SMOOTH, SMOOTH), (12, 10)), "channels", torch.float32),
    "CT, channels": (lambda: ParallelBeam((16, 16), torch.linspace(0, 3.1, 40)), "channels", torch.float32),
}
SHIPPED = [
    ("test_operators_adjointness", {"rng": True}),
    ("test_operators_norm", {"rng": True, "verbose": False}),
    ("test_pseudo_inverse", {"rng": True, "implicit_backward_solver": True}),
    ("test_pseudo_inverse", {"rng": True, "implicit_backward_solver": False}),
    ("test_operators_differentiability", {}),
    ("test_physics_state_dict", {}),
    ("test_adjoint_autograd", {}),
    ("test_clone", {}),
]


@pytest.fixture(scope="module")
def shipped() -> Any:
    """The test file of operators that comes with deepinv."""
    path = Path(deepinv.__file__).parent / "tests" / "test_physics.py"
    if not path.exists():
        pytest.skip("this deepinv comes without its tests")
    spec = importlib.util.spec_from_file_location("deepinv_shipped_tests", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("test", "options"), SHIPPED)
@pytest.mark.parametrize("name", list(FOREIGN))
def test_our_operators_pass_the_tests_that_deepinv_ships(
    name: str,
    test: str,
    options: dict[str, Any],
    shipped: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def find_operator(name: str, device: str, get_physics_param: bool = False) -> tuple[Any, ...]:
        make, layout, dtype = FOREIGN[name]
        operator = make()
        assert operator.signal_shape is not None
        like = torch.empty(1, *operator.signal_shape, dtype=torch.complex64 if "SENSE" in name else dtype)
        unit = (1 / dense_norm(operator, like)) * operator
        found = (as_deepinv(unit, layout), as_deepinv(unit, layout).img_size, 1.0, dtype)
        return (*found, []) if get_physics_param else found

    monkeypatch.chdir(tmp_path)  # one of them writes files
    monkeypatch.setattr(shipped, "find_operator", find_operator)
    monkeypatch.setattr(shipped, "OPERATORS", list(FOREIGN))
    if FOREIGN[name][2].is_complex and test == "test_adjoint_autograd":
        test = "test_operators_adjointness"  # deepinv's autograd adjoint does not conjugate, as it says there
        options = {"rng": True}
    if name.startswith("CT") and test == "test_clone":
        pytest.skip("it overwrites all buffers with 0, and a cosine and sine of 0 are no angle")
    torch.manual_seed(0)
    arguments = {**options, **({"rng": torch.Generator().manual_seed(0)} if "rng" in options else {})}
    getattr(shipped, test)(name=name, device="cpu", **arguments)
