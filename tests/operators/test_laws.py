"""The laws of every forward operator: one row for each class, and a check that no class lacks its row."""

import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from invreg import operators
from invreg.interfaces import LinearOperator, Operator
from invreg.operators import (
    Blur,
    Downsample,
    FanBeam,
    Flow,
    Mask,
    MatrixSensing,
    ParallelBeam,
    PhaseRetrieval,
    Stack,
    ValidBlur,
    hadamard_sensing,
)
from invreg.random import draw
from invreg.solvers import Fixed
from invreg.testing import adjoint_gap, batch_gap, linearity_gap, normal_gap, relative_gap, vjp_gap

BATCH = 2


@dataclass(frozen=True)
class Row:
    """An operator to hold to the laws.

    Args:
        make: precision (float32 or float64) -> operator.
        signals: which signals it takes, of "real" and "complex".
        shape: the signal's shape where the operator does not fix it.
        one_graph: whether a compiler can make it one graph.
    """

    make: Callable[[torch.dtype], Operator]
    signals: tuple[str, ...] = ("real", "complex")
    shape: tuple[int, ...] | None = None
    one_graph: bool = True

    def signal(self, precision: torch.dtype, kind: str, seed: int = 0) -> Tensor:
        operator = self.make(precision)
        shape = operator.signal_shape or self.shape
        assert shape is not None
        dtype = precision.to_complex() if kind == "complex" else precision
        return draw(torch.empty(BATCH, *shape, dtype=dtype), torch.Generator().manual_seed(seed))


def seeded(*shape: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    """A fixed random tensor for a row's buffers, the same one in every precision."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return draw(torch.empty(shape, dtype=wide), torch.Generator().manual_seed(seed)).to(dtype)


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[..., 1], -y[..., 0].sin() - 0.1 * t * y[..., 1]], -1)


ROWS: dict[str, Row] = {
    # --- mri: fourier, sense
    "Fourier:2D": Row(lambda p: operators.Fourier(), ("complex",), (6, 7)),
    "Fourier:3D": Row(lambda p: operators.Fourier(3), ("complex",), (4, 5, 6)),
    "Fourier:lines with channels": Row(lambda p: operators.Fourier(1), ("complex",), (3, 4, 5)),
    "MaskedFourier:2D": Row(lambda p: operators.MaskedFourier(seeded(6, 7, dtype=torch.float32) > 0), ("complex",)),
    "MaskedFourier:3D": Row(
        lambda p: operators.MaskedFourier(seeded(4, 5, 1, dtype=torch.float32) > 0, 3, shape=(4, 5, 6)), ("complex",)
    ),
    "Sense:even": Row(
        lambda p: operators.Sense(
            seeded(1, 4, 8, 6, dtype=p.to_complex()), seeded(8, 6, dtype=torch.float32, seed=2) > 0
        ),
        ("complex",),
    ),
    "Sense:odd, lines": Row(
        lambda p: operators.Sense(
            seeded(1, 3, 7, 9, dtype=p.to_complex()), seeded(7, 1, dtype=torch.float32, seed=2) > 0
        ),
        ("complex",),
    ),
    "Sense:all sampled": Row(lambda p: operators.Sense(seeded(1, 3, 7, 6, dtype=p.to_complex())), ("complex",)),
    "Sense:3D": Row(
        lambda p: operators.Sense(
            seeded(1, 3, 4, 5, 6, dtype=p.to_complex()), seeded(4, 5, 1, dtype=torch.float32, seed=2) > 0, dim=3
        ),
        ("complex",),
    ),
    "SoftSense:2D": Row(
        lambda p: operators.SoftSense(
            seeded(1, 2, 4, 7, 6, dtype=p.to_complex()), seeded(7, 6, dtype=torch.float32, seed=2) > 0
        ),
        ("complex",),
    ),
    "SoftSense:3D": Row(
        lambda p: operators.SoftSense(
            seeded(1, 2, 3, 4, 5, 6, dtype=p.to_complex()), seeded(4, 5, 6, dtype=torch.float32, seed=2) > 0, dim=3
        ),
        ("complex",),
    ),
    # --- ct: radon, fan beam
    "ParallelBeam": Row(lambda p: ParallelBeam((8, 8), torch.linspace(0, 3.1, 7, dtype=p), 11)),
    "ParallelBeam:fine": Row(
        lambda p: ParallelBeam(
            (7, 10),
            torch.linspace(-1, 5, 9, dtype=p),
            pixel_size=0.8,
            detector_pitch=0.3,
            detector_offset=0.1,
            centre_of_rotation=(0.4, -1.2),
        )
    ),
    "FanBeam": Row(
        lambda p: FanBeam((9, 8), torch.linspace(0, 6, 8, dtype=p), 17, source_origin=20.0, origin_detector=15.0)
    ),
    "FanBeam:arc": Row(
        lambda p: FanBeam(
            (6, 9),
            torch.linspace(0, 4, 7, dtype=p),
            21,
            source_origin=15.0,
            origin_detector=5.0,
            detector_pitch=0.6,
            detector_offset=0.2,
            centre_of_rotation=(0.5, 0.3),
            curved=True,
        )
    ),
    # --- imaging: mask, blur, downsample, sensing, phase retrieval, nothing, stack
    "Mask": Row(lambda p: Mask(seeded(5, 6, dtype=p) > 0)),
    "Mask:broadcast": Row(lambda p: Mask(seeded(5, 6, dtype=p) > 0, (3, 5, 6))),
    "Blur": Row(lambda p: Blur(seeded(3, 4, dtype=p), (7, 8))),
    "Blur:channels": Row(lambda p: Blur(seeded(3, 2, dtype=p), (2, 6, 7))),
    "Blur:3d": Row(lambda p: Blur(seeded(2, 3, 3, dtype=p), (4, 5, 6))),
    "Blur:complex": Row(lambda p: Blur(seeded(3, 3, dtype=p.to_complex()), (6, 7)), ("complex",)),
    "ValidBlur": Row(lambda p: ValidBlur(seeded(3, 4, dtype=p), (7, 8))),
    "ValidBlur:3d": Row(lambda p: ValidBlur(seeded(2, 3, 3, dtype=p), (2, 4, 5, 6))),
    "ValidBlur:complex": Row(lambda p: ValidBlur(seeded(2, 3, dtype=p.to_complex()), (6, 7)), ("complex",)),
    "Downsample": Row(lambda p: Downsample((6, 9), (2, 3), seeded(3, 3, dtype=p))),
    "Downsample:block": Row(lambda p: Downsample((2, 6, 8), (2, 2)).to(p)),
    "MatrixSensing": Row(lambda p: MatrixSensing(seeded(7, 12, dtype=p), (3, 4))),
    "MatrixSensing:complex": Row(lambda p: MatrixSensing(seeded(7, 12, dtype=p.to_complex()), (3, 4)), ("complex",)),
    "HadamardSensing": Row(lambda p: hadamard_sensing((4, 8), 11, generator=torch.Generator().manual_seed(0))),
    "PhaseRetrieval": Row(lambda p: PhaseRetrieval(MatrixSensing(seeded(9, 6, dtype=p), (6,)))),
    "PhaseRetrieval:complex": Row(
        lambda p: PhaseRetrieval(MatrixSensing(seeded(9, 6, dtype=p.to_complex()), (6,))), ("complex",)
    ),
    "Flow": Row(lambda p: Flow(pendulum, [0.0, 0.5, 1.2], (2,), controller=Fixed(0.1)), one_graph=False),
    "Flow:complex": Row(
        lambda p: Flow(pendulum, [1.0, 0.3], (3, 2), controller=Fixed(0.1)), ("complex",), one_graph=False
    ),
    "Unmeasured": Row(lambda p: operators.Unmeasured((5, 6))),
    "Stack": Row(lambda p: Stack(Blur(seeded(3, 3, dtype=p), (5, 6)), Mask(seeded(5, 6, dtype=p) > 0))),
    # --- analysis: gradient, wavelet
    "Gradient": Row(lambda p: operators.Gradient(2, voxel_size=(0.7, 1.3)), shape=(7, 6)),
    "Gradient:channels": Row(lambda p: operators.Gradient(2, channel_dim=1), shape=(3, 5, 6)),
    "Gradient:volume": Row(lambda p: operators.Gradient(3, channel_dim=-1), shape=(4, 5, 3, 2)),
    "Gradient:along two of three": Row(
        lambda p: operators.Gradient(3, voxel_size=(0.7, 1.0, 1.3), along=(0, 2)), shape=(4, 5, 3)
    ),
    "SymmetrizedGradient": Row(lambda p: operators.SymmetrizedGradient(2, voxel_size=(0.7, 1.3)), shape=(2, 7, 6)),
    "SymmetrizedGradient:volume": Row(lambda p: operators.SymmetrizedGradient(3, channel_dim=1), shape=(3, 2, 4, 5, 3)),
    "Wavelet": Row(lambda p: operators.Wavelet((16, 24), "db4", levels=3)),
    "Wavelet:odd volume": Row(lambda p: operators.Wavelet((3, 7, 5, 9), "sym5", levels=2, channel_dim=1)),
}

LINEAR = [name for name, row in ROWS.items() if isinstance(row.make(torch.float32), LinearOperator)]
CASES = [(name, kind) for name, row in ROWS.items() for kind in row.signals]
LINEAR_CASES = [(name, kind) for name, kind in CASES if name in LINEAR]


def measurement(operator: Operator, x: Tensor) -> Tensor:
    return draw(operator(x), torch.Generator().manual_seed(7))


def test_every_operator_has_a_row() -> None:
    classes = {
        name
        for name in operators.__all__
        if inspect.isclass(getattr(operators, name)) and issubclass(getattr(operators, name), Operator)
    }
    assert classes - {name.split(":")[0] for name in ROWS} == set()


@pytest.mark.parametrize(("precision", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("name", "kind"), LINEAR_CASES)
def test_adjoint_is_exact(name: str, kind: str, precision: torch.dtype, bound: float) -> None:
    operator = ROWS[name].make(precision)
    assert isinstance(operator, LinearOperator)
    x = ROWS[name].signal(precision, kind)
    assert adjoint_gap(operator, x, measurement(operator, x)) <= bound


@pytest.mark.parametrize(("name", "kind"), LINEAR_CASES)
def test_operator_is_linear_and_its_normal_is_adjoint_after_forward(name: str, kind: str) -> None:
    operator = ROWS[name].make(torch.float64)
    assert isinstance(operator, LinearOperator)
    x = ROWS[name].signal(torch.float64, kind)
    assert linearity_gap(operator, x, ROWS[name].signal(torch.float64, kind, 3)) <= 1e-12
    assert normal_gap(operator, x) <= 1e-12


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_vjp_is_the_one_of_autograd(name: str, kind: str) -> None:
    operator = ROWS[name].make(torch.float64)
    x = ROWS[name].signal(torch.float64, kind)
    assert vjp_gap(operator, x, measurement(operator, x)) <= 1e-10


@pytest.mark.parametrize(("name", "kind"), LINEAR_CASES)
def test_adjoint_can_be_differentiated(name: str, kind: str) -> None:
    operator = ROWS[name].make(torch.float64)
    assert isinstance(operator, LinearOperator)
    x = ROWS[name].signal(torch.float64, kind)
    y = measurement(operator, x).requires_grad_()
    (gradient,) = torch.autograd.grad(operator.adjoint(y), y, x)
    wanted = operator(x)
    wanted = wanted if gradient.is_complex() or not wanted.is_complex() else wanted.real
    assert relative_gap(gradient, wanted) <= 1e-10


@pytest.mark.parametrize(("name", "kind"), LINEAR_CASES)
def test_torch_func_maps_and_differentiates(name: str, kind: str) -> None:
    operator, row = ROWS[name].make(torch.float64), ROWS[name]
    x, v = row.signal(torch.float64, kind), row.signal(torch.float64, kind).flip(0)
    y, tangent = torch.func.jvp(operator, (x,), (v,))
    (back,) = torch.func.vjp(operator, x)[1](y)
    mapped = torch.vmap(operator)(torch.stack([x, v]))
    for got, want in ((tangent, operator(v)), (back, operator.vjp(x, y)), (mapped[0], y), (mapped[1], operator(v))):
        assert relative_gap(got, want) <= 1e-12


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_item_of_a_batch_is_the_item_alone(name: str, kind: str) -> None:
    operator = ROWS[name].make(torch.float64)
    assert batch_gap(operator, ROWS[name].signal(torch.float64, kind)) <= 1e-12


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_result_keeps_precision_and_shape(name: str, kind: str, precision: torch.dtype) -> None:
    operator = ROWS[name].make(precision)
    x = ROWS[name].signal(precision, kind)
    y = operator(x)
    assert y.real.dtype == precision
    assert operator.measurement_shape is None or tuple(y.shape) == (BATCH, *operator.measurement_shape)
    if isinstance(operator, LinearOperator):
        back = operator.adjoint(y)
        assert back.shape == x.shape
        assert back.real.dtype == precision
        if y.is_complex() == x.is_complex():
            assert back.dtype == x.dtype


@pytest.mark.parametrize("name", list(ROWS))
def test_to_changes_precision_and_keeps_complex_buffers(name: str) -> None:
    row = ROWS[name]
    x = row.signal(torch.float64, row.signals[0])
    want = row.make(torch.float64)(x)
    moved = row.make(torch.float32).to(torch.float64)
    got = moved(x)
    assert relative_gap(got, want) <= 1e-5
    if isinstance(moved, LinearOperator):
        assert relative_gap(moved.normal(x), moved.adjoint(got)) <= 1e-12


@pytest.mark.parametrize("name", list(ROWS))
def test_pickle_round_trip_is_the_same_operator(name: str) -> None:
    row = ROWS[name]
    operator = row.make(torch.float32)
    x = row.signal(torch.float32, row.signals[0])
    assert torch.equal(pickle.loads(pickle.dumps(operator))(x), operator(x))


@pytest.mark.parametrize("name", list(ROWS))
def test_wrong_shape_and_wrong_precision_are_refused(name: str) -> None:
    row = ROWS[name]
    operator = row.make(torch.float32)
    x = row.signal(torch.float32, row.signals[0])
    if operator.signal_shape is not None:
        with pytest.raises(ValueError, match="x must be"):
            operator(x[0])
        with pytest.raises(ValueError, match="x must be"):
            operator(x[..., :-1])
    if any(b.is_floating_point() or b.is_complex() for b in operator.buffers()):
        with pytest.raises(TypeError, match=r"float32|complex64"):
            operator(row.signal(torch.float64, row.signals[0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.one_graph])
def test_compiles_into_one_graph(name: str) -> None:
    row = ROWS[name]
    operator = row.make(torch.float64)
    x = row.signal(torch.float64, row.signals[0])
    torch._dynamo.reset()
    assert relative_gap(torch.compile(operator, fullgraph=True, backend="aot_eager")(x), operator(x)) <= 1e-12
    if isinstance(operator, LinearOperator):
        y = operator(x)
        adjoint = torch.compile(operator.adjoint, fullgraph=True, backend="aot_eager")
        assert relative_gap(adjoint(y), operator.adjoint(y)) <= 1e-12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_gpu_agrees_with_cpu(name: str, kind: str) -> None:
    operator = ROWS[name].make(torch.float64)
    x = ROWS[name].signal(torch.float64, kind)
    want = operator(x)
    assert relative_gap(operator.cuda()(x.cuda()).cpu(), want) <= 1e-12
