"""The parallel-beam operator against its formula, closed forms, ASTRA and its own memory promises."""

import math
import pickle
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from invreg.operators import ParallelBeam, joseph
from invreg.phantom import parallel_sinogram, rasterise, shepp_logan
from invreg.testing import adjoint_gap, relative_gap


def half_turn(views: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.arange(views, dtype=torch.float64) * math.pi / views).to(dtype)


def dense(operator: ParallelBeam) -> Tensor:
    """The matrix by its definition, (A, D, Ny Nx)."""
    p, (cx, cy) = operator.pixel_size, operator.centre_of_rotation
    y, x = ((torch.arange(n).double() - (n - 1) / 2) * p for n in operator.image_shape)
    cos, sin = (f(operator.angles)[:, None, None] for f in (torch.cos, torch.sin))
    t = (x - cx) * cos + (y[:, None] - cy) * sin
    m = torch.maximum(cos.abs(), sin.abs())[..., None]
    distance = (operator.offsets[:, None, None] - t[:, None]).abs()
    return (p / m * (1 - distance / (m * p)).clamp_min(0)).flatten(2)


GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "millimetres": {"pixel_size": 0.7},
    "fine detector": {"pixel_size": 1.3, "detector_pitch": 0.37, "detector_offset": 0.21},
    "coarse detector": {"detector_pitch": 2.5, "detectors": 9, "centre_of_rotation": (1.1, -0.4)},
}


@pytest.mark.parametrize("shape", [(8, 8), (7, 7), (9, 6), (5, 12)])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_forward_and_adjoint_are_the_matrix_of_the_formula(name: str, shape: tuple[int, int]) -> None:
    operator = ParallelBeam(shape, torch.linspace(-0.3, 3.3, 11).double(), **GEOMETRIES[name])
    matrix = dense(operator).to(torch.complex128)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape, dtype=torch.complex128, generator=generator)
    y = torch.randn(2, *operator.measurement_shape, dtype=torch.complex128, generator=generator)  # type: ignore[misc]
    assert relative_gap(operator(x), torch.einsum("adp,bp->bad", matrix, x.flatten(1))) <= 1e-13
    assert relative_gap(operator.adjoint(y).flatten(1), torch.einsum("adp,bad->bp", matrix, y)) <= 1e-13


def test_axis_parallel_views_are_plain_sums_of_rows_and_columns() -> None:
    x = torch.rand(1, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    operator = ParallelBeam((5, 7), torch.tensor([0, math.pi / 2], dtype=torch.float64), 7)
    y = operator(x)[0]
    assert torch.allclose(y[0], x[0].sum(0))
    assert torch.allclose(y[1, 1:6], x[0].sum(1))


def sinogram_error(n: int) -> float:
    phantom, angles = shepp_logan(float(n)), half_turn(180)
    operator = ParallelBeam((n, n), angles, n)
    wanted = parallel_sinogram(phantom, angles, operator.offsets)[None]
    return relative_gap(operator(rasterise(phantom, (n, n))[None]), wanted)


@pytest.mark.parametrize("n", [127, 128])
def test_shepp_logan_sinogram_is_near_the_closed_form_for_odd_and_even_sizes(n: int) -> None:
    assert sinogram_error(n) <= 0.030


@pytest.mark.slow
@pytest.mark.parametrize("n", [255, 256])
def test_error_to_the_closed_form_halves_when_the_size_doubles(n: int) -> None:
    assert sinogram_error(n) <= 0.0145


def test_pitch_offset_and_centre_of_rotation_place_the_sinogram() -> None:
    operator = ParallelBeam(
        (90, 71),
        half_turn(40, torch.float64),
        120,
        pixel_size=0.8,
        detector_pitch=0.6,
        detector_offset=0.27,
        centre_of_rotation=(2.0, -3.0),
    )
    assert float(operator.offsets[0]) == pytest.approx(-119 / 2 * 0.6 + 0.27)
    y, x = ((torch.arange(n).double() - (n - 1) / 2) * 0.8 for n in (90, 71))
    width, at = 4.0, (4.0, -6.0)  # a smooth blob has a closed form and no edges
    image = torch.exp(-((x - at[0]) ** 2 + (y[:, None] - at[1]) ** 2) / (2 * width**2))[None]
    seen = operator.offsets - ((at[0] - 2) * operator.angles.cos() + (at[1] + 3) * operator.angles.sin())[:, None]
    wanted = math.sqrt(2 * math.pi) * width * torch.exp(-(seen**2) / (2 * width**2))
    assert relative_gap(operator(image)[0], wanted) <= 5e-3  # half a pixel would be 0.07


def test_joseph_equals_the_linear_projector_of_astra() -> None:
    astra = pytest.importorskip("astra")
    n, angles = 64, half_turn(45)
    image = rasterise(shepp_logan(float(n)), (n, n))
    geometry = astra.create_proj_geom("parallel", 1.0, n, angles.double().numpy())
    projector = astra.create_projector("linear", geometry, astra.create_vol_geom(n, n))
    wanted = torch.as_tensor(astra.OpTomo(projector).FP(image.flip(0).numpy()))  # its y axis points upwards
    assert relative_gap(ParallelBeam((n, n), angles, n)(image[None])[0], wanted) <= 1e-4


def test_rotation_centre_is_the_image_centre_for_every_size() -> None:  # deepinv misses it for half of all sizes
    for n in (16, 17, 18, 19, 23, 32):
        operator = ParallelBeam((n, n), torch.tensor([0.0, math.pi], dtype=torch.float64), n + 1)
        x = torch.rand(1, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
        y = operator(x)[0]
        assert relative_gap(y[0].flip(0), y[1]) <= 1e-12


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.untyped_storage().nbytes() // out.element_size())
        return out


@pytest.mark.slow  # loads the compiler front end
def test_memory_does_not_grow_with_pixels_times_angles(monkeypatch: pytest.MonkeyPatch) -> None:
    n, views, allowed = 32, 150, 2**14
    operator = ParallelBeam((n, n), half_turn(views), n, compile=False)
    assert sum(buffer.numel() for buffer in operator.buffers()) <= 4 * views
    monkeypatch.setattr(joseph, "EAGER_ELEMENTS", allowed)
    with Largest() as largest:
        operator.adjoint(operator(torch.ones(1, n, n)))
    assert largest.elements <= allowed < n * n * views / 8


def test_adjoint_is_exact_by_construction_also_at_full_size() -> None:
    operator = ParallelBeam((128, 128), half_turn(50))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(1, 128, 128, generator=generator), torch.randn(1, 50, 182, generator=generator)
    assert operator.measurement_shape == (50, 182)
    assert adjoint_gap(operator, x, y) <= 1e-6
    assert adjoint_gap(operator, x.abs(), y.abs()) <= 1e-6
    assert torch.equal(operator.adjoint(y), operator.adjoint(y))


def test_construction_runs_no_projection() -> None:
    start = time.perf_counter()
    ParallelBeam((2048, 2048), half_turn(2000))
    assert time.perf_counter() - start < 0.5


def test_operator_is_differentiable_twice() -> None:
    operator = ParallelBeam((5, 6), torch.linspace(0, 3, 4).double(), 7)
    x = torch.randn(1, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v: operator(v).square().sum((1, 2)), (x,))
    assert torch.autograd.gradcheck(operator.adjoint, (operator(x).detach().requires_grad_(),))


def test_an_empty_batch_and_a_single_view_are_fine() -> None:
    operator = ParallelBeam((5, 6), [0.3], 7)
    assert operator(torch.zeros(0, 5, 6)).shape == (0, 1, 7)
    assert operator.adjoint(torch.zeros(0, 1, 7)).shape == (0, 5, 6)


@pytest.mark.slow
def test_compiled_kernels_agree_with_plain_ones_in_any_size_and_thread() -> None:
    for n, views, pitch in ((40, 30, 1.0), (33, 17, 1.0), (50, 40, 0.6)):
        plain, fast = (
            ParallelBeam((n, n + 3), half_turn(views), detector_pitch=pitch, compile=choice) for choice in (False, True)
        )
        x = torch.rand(2, n, n + 3, generator=torch.Generator().manual_seed(0))
        y = plain(x)
        assert relative_gap(fast(x), y) <= 2e-6
        assert relative_gap(fast.adjoint(y), plain.adjoint(y)) <= 2e-6
        assert torch.equal(pickle.loads(pickle.dumps(fast))(x), fast(x))
        barrier = threading.Barrier(4)

        def run(k: int, operator: ParallelBeam = fast, image: Tensor = x, gate: threading.Barrier = barrier) -> Tensor:
            gate.wait()
            return operator(image * k)

        with ThreadPoolExecutor(4) as pool:
            for k, found in enumerate(pool.map(run, range(4), timeout=120)):
                assert torch.equal(found, fast(x * k))


@pytest.mark.slow
def test_an_outer_inductor_graph_takes_forward_and_gradient_whole() -> None:
    operator = ParallelBeam((24, 24), half_turn(20), compile=None)
    x = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def loss(image: Tensor) -> Tensor:
        return operator(image).square().sum()

    (wanted,) = torch.autograd.grad(loss(x), x)
    (found,) = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x), x)
    assert relative_gap(found, wanted) <= 1e-5


def test_a_compiler_that_fails_is_reported_once_and_the_plain_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Tensor:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(joseph, "_compiled", lambda kernel: broken)
    monkeypatch.setattr(joseph, "_broken", set())
    monkeypatch.setattr(joseph, "WORTH_COMPILING", 1)
    monkeypatch.setattr(joseph, "_compiler_at_hand", lambda device: True)
    x = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    operator, plain = (ParallelBeam((8, 8), half_turn(5), compile=choice) for choice in (None, False))
    with pytest.warns(RuntimeWarning, match="compile=False"):
        assert torch.equal(operator(x), plain(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator(x)
    with pytest.raises(RuntimeError, match="no compiler"):
        ParallelBeam((8, 8), half_turn(5), compile=True).adjoint(operator(x))


def test_angles_that_look_like_degrees_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="radians"):
        ParallelBeam((8, 8), torch.arange(0.0, 180.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ParallelBeam((8, 8), torch.linspace(0, 2 * math.pi, 10))
        ParallelBeam((8, 8), torch.linspace(-2 * math.pi, 0, 10))


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, r"shape must be \(Ny, Nx\)", {"shape": (8,)}),
        (ValueError, "shape must be >= 1", {"shape": (8, 0)}),
        (TypeError, "detectors must be an int", {"detectors": 8.5}),
        (ValueError, "detectors must be >= 1", {"detectors": 0}),
        (ValueError, "pixel_size must be", {"pixel_size": 0.0}),
        (ValueError, "detector_pitch must be", {"detector_pitch": -1.0}),
        (ValueError, "detector_offset must be finite", {"detector_offset": math.inf}),
        (TypeError, "detector_offset must be a number", {"detector_offset": "1"}),
        (ValueError, "centre_of_rotation must be two", {"centre_of_rotation": (1.0,)}),
        (ValueError, r"angles must be \(A,\)", {"angles": torch.zeros(2, 2)}),
        (ValueError, r"angles must be \(A,\)", {"angles": []}),
        (ValueError, "angles must be finite", {"angles": [0.0, math.nan]}),
        (TypeError, "angles must be a tensor", {"angles": "all"}),
        (TypeError, "angles must be float32 or float64", {"angles": torch.zeros(2, dtype=torch.float16)}),
        (TypeError, "angles must be real", {"angles": torch.zeros(2, dtype=torch.complex64)}),
    ],
)
def test_bad_geometry_is_refused(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        ParallelBeam(**{"shape": (8, 8), "angles": [0.0, 1.0], "detectors": 8, **arguments})
