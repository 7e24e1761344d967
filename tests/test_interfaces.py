import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invreg.interfaces import LinearOperator, NormalSolvable, Operator, Regularizer
from invreg.lanczos import operator_norm
from invreg.operators import Blur, Fourier, Mask, MatrixSensing, PhaseRetrieval
from invreg.random import draw
from invreg.testing import adjoint_gap, normal_gap, relative_gap, vjp_gap


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def dense(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.complex128) -> MatrixSensing:
    return MatrixSensing(noise(rows, columns, dtype=dtype, seed=seed))


class Cubic(Operator):
    """x -> (gain * x)^3, whose gradient is autograd's own."""

    def __init__(self, gain: Tensor) -> None:
        super().__init__((3,), (3,))
        self.register_buffer("gain", gain)

    def forward(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        return (self.gain * x) ** 3


# --- algebra

A, B, SQUARE = dense(5, 4, 1), dense(5, 4, 2), dense(4, 4, 3)


@pytest.mark.parametrize(
    ("operator", "matrix"),
    [
        (A @ SQUARE, A.matrix @ SQUARE.matrix),
        (A + B, A.matrix + B.matrix),
        (A - B, A.matrix - B.matrix),
        (-A, -A.matrix),
        (2 * A, 2 * A.matrix),
        (2.5 * A, 2.5 * A.matrix),
        ((1 - 2j) * A, (1 - 2j) * A.matrix),
        (torch.tensor(1 - 2j) * A, (1 - 2j) * A.matrix),
        (np.float64(2.5) * A, 2.5 * A.matrix),
        (A.H, A.matrix.mH),
        ((1j * A).H, -1j * A.matrix.mH),
        ((A @ SQUARE).H, (A.matrix @ SQUARE.matrix).mH),
        (A.H @ B, A.matrix.mH @ B.matrix),
        (1j * (A + 2 * B) @ SQUARE, 1j * (A.matrix + 2 * B.matrix) @ SQUARE.matrix),
    ],
)
def test_algebra_of_operators_is_that_of_matrices(operator: LinearOperator, matrix: Tensor) -> None:
    assert isinstance(operator, LinearOperator)
    assert operator.signal_shape == (matrix.shape[1],)
    assert operator.measurement_shape == (matrix.shape[0],)
    x = noise(3, matrix.shape[1], dtype=torch.complex128, seed=5)
    y = noise(3, matrix.shape[0], dtype=torch.complex128, seed=6)
    assert relative_gap(operator(x), x @ matrix.mT) < 1e-14
    assert relative_gap(operator.adjoint(y), y @ matrix.conj()) < 1e-14
    assert normal_gap(operator, x) < 1e-14
    assert vjp_gap(operator, x, y) < 1e-13


def test_adjoint_of_the_adjoint_is_the_operator_itself() -> None:
    assert A.H.H is A


def test_numbers_may_be_tensors_that_learn() -> None:
    scale = torch.tensor(0.7 + 0.2j, dtype=torch.complex128, requires_grad=True)
    operator, x = scale * A, noise(2, 4, dtype=torch.complex128)
    assert torch.autograd.gradcheck(lambda s: (s * A)(x), scale)
    assert torch.autograd.gradcheck(lambda s: (s * A).normal(x), scale)
    parameter = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    assert [name for name, _ in (parameter * A).named_parameters()] == ["scale"]
    assert operator(x).requires_grad


def test_composition_with_a_nonlinear_operator_chains_the_gradients() -> None:
    inner = PhaseRetrieval(A)
    operator = MatrixSensing(noise(2, 5)) @ inner
    assert not isinstance(operator, LinearOperator)
    x, v = noise(3, 4, dtype=torch.complex128), noise(3, 2)
    assert vjp_gap(operator, x, v) < 1e-13
    assert (PhaseRetrieval(A) @ SQUARE).signal_shape == (4,)
    assert vjp_gap(PhaseRetrieval(A) @ SQUARE, x, noise(3, 5)) < 1e-13


def test_what_is_sampled_survives_the_algebra() -> None:
    first, second = torch.tensor([True, False, False, True]), torch.tensor([True, True, False, False])
    mask, other = Mask(first), Mask(second)
    assert torch.equal((mask @ SQUARE).sampled(), first)
    assert torch.equal((2.0 * mask).sampled(), first)
    assert torch.equal((mask + other).sampled(), first | second)
    assert (mask + SQUARE).sampled() is None
    assert (SQUARE @ mask).sampled() is None
    assert mask.H.sampled() is None


def test_shapes_that_do_not_meet_are_refused() -> None:
    with pytest.raises(ValueError, match=r"signal of the outer and measurement of the inner .* \(4,\) and \(5,\)"):
        A @ B
    with pytest.raises(ValueError, match="measurements of the summands must agree"):
        A + dense(6, 4, 1)
    with pytest.raises(ValueError, match="signals of the summands must agree"):
        A - dense(5, 3, 1)
    with pytest.raises(ValueError, match="signal of the outer"):
        PhaseRetrieval(A) @ B


def test_an_operator_of_any_shape_takes_that_of_its_partner() -> None:
    operator = Mask(torch.ones(4, 6, dtype=torch.bool)) @ Fourier()
    assert operator.signal_shape is None
    assert operator.measurement_shape == (4, 6)


def test_what_is_not_an_operator_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"A @ B needs an Operator on its right, got Tensor; apply an operator with A\(x\)"
    ):
        A @ torch.ones(4)  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"A \+ B needs a LinearOperator on its right, got PhaseRetrieval"):
        A + PhaseRetrieval(B)  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"A - B needs a LinearOperator on its right, got int"):
        A - 1  # type: ignore[operator]
    with pytest.raises(TypeError, match="scale must be a number or a 0-d tensor"):
        torch.ones(2) * A
    with pytest.raises(TypeError, match="scale must be a number or a 0-d tensor"):
        "2" * A  # type: ignore[operator]


def test_wrong_signals_and_measurements_are_named() -> None:
    with pytest.raises(ValueError, match=r"x must be \(B, 4\) = the signal of MatrixSensing, got \(4,\); add a batch"):
        A(noise(4, dtype=torch.complex128))
    with pytest.raises(ValueError, match=r"y must be \(B, 5\) = the measurement of MatrixSensing, got \(2, 4\)"):
        A.adjoint(noise(2, 4, dtype=torch.complex128))


# --- vector-Jacobian products


def test_vjp_of_a_real_signal_is_real_though_the_measurement_is_complex() -> None:
    operator = 1j * MatrixSensing(noise(5, 4)) + MatrixSensing(noise(5, 4, seed=1))
    x, v = noise(2, 4), noise(2, 5, dtype=torch.complex128)
    assert operator.vjp(x, v).dtype == torch.float64
    assert vjp_gap(operator, x, v) < 1e-14


def test_vjp_leaves_the_callers_tensor_alone_and_gives_no_graph_unasked() -> None:
    operator, x, v = Cubic(torch.tensor(2.0, dtype=torch.float64)), noise(2, 3), noise(2, 3, seed=1)
    gradient = operator.vjp(x, v)
    assert not x.requires_grad
    assert x.grad_fn is None
    assert not gradient.requires_grad  # else a plain loop would keep every iteration alive
    x.requires_grad_()
    with torch.no_grad():
        assert not operator.vjp(x, v).requires_grad
    assert x.grad is None


def test_vjp_is_differentiable_in_everything_that_asks_for_it() -> None:
    x, v = noise(2, 3).requires_grad_(), noise(2, 3, seed=1).requires_grad_()
    gain = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, v, g: Cubic(g).vjp(x, v), (x, v, gain))
    operator = Cubic(torch.tensor(2.0, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: operator.vjp(x, v.detach()), x)
    unrolled = (2 * x).sin()  # not a leaf: the history in front is not cut off
    (gradient,) = torch.autograd.grad(operator.vjp(unrolled, v.detach()).sum(), x, retain_graph=True)
    (wanted,) = torch.autograd.grad((3 * 8 * unrolled**2 * v.detach()).sum(), x)
    assert relative_gap(gradient, wanted) < 1e-13


def test_vjp_gives_its_memory_back() -> None:
    operator, v = Cubic(torch.tensor(2.0)), torch.ones(1, 3)
    x = torch.ones(1, 3)
    first = weakref.ref(x)
    for _ in range(3):
        x = x - 0.01 * operator.vjp(x, v)
    gc.collect()
    assert first() is None


def test_a_nonlinear_operator_has_no_norm_of_its_own_but_its_derivative_has() -> None:
    operator, x = Cubic(torch.tensor(1.0, dtype=torch.float64)), torch.tensor([[1.0, 2.0, -3.0]], dtype=torch.float64)

    class Derivative(LinearOperator):
        def forward(self, d: Tensor) -> Tensor:
            return torch.func.jvp(operator, (x,), (d,))[1]

        def adjoint(self, v: Tensor) -> Tensor:
            return operator.vjp(x, v)

    assert adjoint_gap(Derivative(), noise(1, 3), noise(1, 3, seed=1)) < 1e-14
    assert float(operator_norm(Derivative(), x)) == pytest.approx(27.0, rel=1e-9)


# --- precision and device


@pytest.mark.parametrize(
    "change", [lambda m: m.to(torch.float64), lambda m: m.double(), lambda m: m.to(torch.complex128)]
)
def test_precision_changes_and_complex_stays_complex(change: object) -> None:
    assert callable(change)
    real, complex_ = noise(5, 4, dtype=torch.float32), noise(5, 4, dtype=torch.complex64)
    pair = (MatrixSensing(real), MatrixSensing(complex_))
    for operator, before in zip(pair, (real, complex_), strict=True):
        after = change(operator).matrix
        assert after.dtype == (torch.complex128 if before.is_complex() else torch.float64)
        assert torch.equal(after, before.to(after.dtype))


def test_precision_reaches_the_parts_of_a_composition_and_a_module_around_it() -> None:
    operator = (2j * MatrixSensing(noise(5, 4, dtype=torch.complex64))) @ Blur(noise(3, dtype=torch.float32), (4,))
    nn.Sequential(operator).double()
    assert operator(noise(1, 4, dtype=torch.complex128)).dtype == torch.complex128
    operator.float()
    assert operator(noise(1, 4, dtype=torch.complex64)).dtype == torch.complex64


def test_masks_and_indices_keep_their_kind() -> None:
    mask = Mask(torch.tensor([True, False]))
    assert mask.double().mask.dtype == torch.bool


def test_the_same_precision_changes_nothing() -> None:
    operator = MatrixSensing(noise(5, 4, dtype=torch.complex64))
    before = operator.matrix
    assert operator.to(torch.float32).matrix is before


def test_empty_and_meta_copies_keep_complex_buffers() -> None:
    operator = MatrixSensing(noise(5, 4, dtype=torch.complex64)).to("meta")
    assert operator.matrix.device.type == "meta"
    assert operator.matrix.dtype == torch.complex64
    real = operator.to_empty(device="cpu")
    assert real.matrix.shape == (5, 4)
    assert real.matrix.dtype == torch.complex64


def test_gradient_flows_through_a_change_of_precision() -> None:
    matrix = noise(5, 4, dtype=torch.complex64).requires_grad_()
    operator = MatrixSensing(matrix).double()
    (gradient,) = torch.autograd.grad(operator(noise(1, 4, dtype=torch.complex128)).abs().sum(), matrix)
    assert float(gradient.abs().sum()) > 0


def test_copies_and_pickles_of_a_composition_agree() -> None:
    operator, x = (2j * A) @ SQUARE + B, noise(2, 4, dtype=torch.complex128)
    for other in (copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        assert torch.equal(other(x), operator(x))


# --- faculties


def test_a_closed_form_is_a_faculty_that_an_operator_has_or_lacks() -> None:
    assert isinstance(Mask(torch.ones(2, dtype=torch.bool)), NormalSolvable)
    assert not isinstance(A, NormalSolvable)
    assert not isinstance(2.0 * Mask(torch.ones(2, dtype=torch.bool)), NormalSolvable)


class Half(Regularizer[Tensor]):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.square().flatten(1).sum(1) / 2


def test_a_weight_is_a_number_or_a_scalar_tensor() -> None:
    assert Half(2).at(0.5) is not None
    weight = torch.tensor(2.0, requires_grad=True)
    assert Half(weight)(torch.ones(1, 3)).requires_grad
    with pytest.raises(ValueError, match="weight must be finite and >= 0, got -1"):
        Half(-1)
    with pytest.raises(ValueError, match="weight must be finite and >= 0, got nan"):
        Half(float("nan"))
    with pytest.raises(TypeError, match="weight must be a number or a 0-d tensor, got str"):
        Half("1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="weight must be a number or a 0-d tensor, got bool"):
        Half(True)
    with pytest.raises(ValueError, match=r"weight must be a real 0-d tensor or a number, got shape \(2,\)"):
        Half(torch.ones(2))
