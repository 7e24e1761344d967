"""The fan-beam operator against its formula, closed forms and ASTRA."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from invreg.operators import FanBeam, ParallelBeam
from invreg.phantom import fan_sinogram, rasterise, shepp_logan
from invreg.testing import adjoint_gap, relative_gap


def full_turn(views: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.arange(views, dtype=torch.float64) * 2 * math.pi / views).to(dtype)


def dense(operator: FanBeam) -> Tensor:
    """The matrix by its definition, (A, D, Ny Nx)."""
    p, (cx, cy) = operator.pixel_size, operator.centre_of_rotation
    y, x = ((torch.arange(n).double() - (n - 1) / 2) * p for n in operator.image_shape)
    ratio = operator.offsets / (operator.source_origin + operator.origin_detector)
    gamma = ratio if operator.curved else ratio.atan()
    normal = (operator.angles[:, None] - gamma)[..., None, None]
    t = (x - cx) * normal.cos() + (y[:, None] - cy) * normal.sin()
    m = torch.maximum(normal.cos().abs(), normal.sin().abs())
    distance = ((operator.source_origin * gamma.sin())[:, None, None] - t).abs()
    return (p / m * (1 - distance / (m * p)).clamp_min(0)).flatten(2)


GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {"source_origin": 20.0, "origin_detector": 10.0},
    "near source, detector at the centre": {"source_origin": 10.5, "origin_detector": 0.0, "pixel_size": 0.7},
    "fine detector": {
        "source_origin": 17.0,
        "origin_detector": 9.0,
        "pixel_size": 1.1,
        "detectors": 60,
        "detector_pitch": 0.37,
        "detector_offset": 0.21,
    },
    "coarse detector": {
        "source_origin": 200.0,
        "origin_detector": 9.0,
        "detectors": 9,
        "detector_pitch": 2.5,
        "centre_of_rotation": (1.1, -0.4),
    },
}


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("shape", [(8, 8), (9, 6), (5, 12)])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_forward_and_adjoint_are_the_matrix_of_the_formula(name: str, shape: tuple[int, int], curved: bool) -> None:
    angles = torch.linspace(-0.3, 6.2, 31).double()
    operator = FanBeam(shape, angles, curved=curved, **{"detectors": 25, **GEOMETRIES[name]})
    matrix = dense(operator).to(torch.complex128)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape, dtype=torch.complex128, generator=generator)
    y = torch.randn(2, *operator.measurement_shape, dtype=torch.complex128, generator=generator)  # type: ignore[misc]
    assert relative_gap(operator(x), torch.einsum("adp,bp->bad", matrix, x.flatten(1))) <= 1e-12
    assert relative_gap(operator.adjoint(y).flatten(1), torch.einsum("adp,bad->bp", matrix, y)) <= 1e-12


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("n", [127, 128])
def test_shepp_logan_sinogram_is_near_the_closed_form(n: int, curved: bool) -> None:
    operator = FanBeam(
        (n, n), full_turn(90), 200, source_origin=2.0 * n, origin_detector=1.0 * n, detector_offset=0.3, curved=curved
    )
    phantom = shepp_logan(float(n))
    wanted = fan_sinogram(phantom, operator.angles, operator.offsets, 2.0 * n, 1.0 * n, curved)[None]
    assert relative_gap(operator(rasterise(phantom, (n, n))[None]), wanted) <= 0.030


def test_geometry_is_that_of_astra_fanflat() -> None:
    astra = pytest.importorskip("astra")
    n, angles = 96, full_turn(60)
    image = rasterise(shepp_logan(float(n)), (n, n))
    geometry = astra.create_proj_geom("fanflat", 1.3, 140, angles.double().numpy(), 2.0 * n, 0.5 * n)
    projector = astra.create_projector("line_fanflat", geometry, astra.create_vol_geom(n, n))
    wanted = torch.as_tensor(astra.OpTomo(projector).FP(image.flip(0).numpy()))  # its y axis points upwards
    operator = FanBeam((n, n), angles, 140, source_origin=2.0 * n, origin_detector=0.5 * n, detector_pitch=1.3)
    assert relative_gap(operator(image[None])[0], wanted) <= 0.025  # lengths in pixels there, Joseph here
    assert relative_gap(operator(image.flip(0)[None])[0], wanted) > 0.1


def test_a_distant_source_gives_the_parallel_beam() -> None:
    angles = full_turn(20, torch.float64)
    x = torch.rand(1, 15, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for curved in (False, True):
        fan = FanBeam((15, 18), angles, 25, source_origin=1e9, origin_detector=1.0, detector_pitch=1.0, curved=curved)
        assert fan.taps in (2, 3)
        assert relative_gap(fan(x), ParallelBeam((15, 18), angles, 25)(x)) <= 1e-6


def test_adjoint_is_exact_in_single_precision_at_size() -> None:
    operator = FanBeam((96, 96), full_turn(40), 140, source_origin=150.0, origin_detector=100.0)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(1, 96, 96, generator=generator), torch.rand(1, 40, 140, generator=generator)
    assert adjoint_gap(operator, x, y) <= 1e-6
    assert sum(buffer.numel() for buffer in operator.buffers()) <= 3 * 40 + 2 * 140 + 3


def test_operator_is_differentiable_twice() -> None:
    operator = FanBeam((5, 6), full_turn(4, torch.float64), 7, source_origin=12.0, origin_detector=5.0)
    x = torch.randn(1, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v: operator(v).square().sum((1, 2)), (x,))


@pytest.mark.slow
@pytest.mark.parametrize("curved", [False, True])
def test_compiled_kernels_agree_with_plain_ones(curved: bool) -> None:
    plain, fast = (
        FanBeam((40, 44), full_turn(30), 60, source_origin=90.0, origin_detector=60.0, curved=curved, compile=choice)
        for choice in (False, True)
    )
    x = torch.rand(2, 40, 44, generator=torch.Generator().manual_seed(0))
    y = plain(x)
    assert relative_gap(fast(x), y) <= 2e-6
    assert relative_gap(fast.adjoint(y), plain.adjoint(y)) <= 2e-6


def test_angles_that_look_like_degrees_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="radians"):
        FanBeam((8, 8), torch.arange(0.0, 360.0), 9, source_origin=20.0, origin_detector=5.0)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("source_origin must exceed", {"source_origin": 5.0}),
        ("source_origin must be", {"source_origin": -5.0}),
        ("origin_detector must be", {"origin_detector": -1.0}),
        ("half-fan must be below 90", {"curved": True, "detector_pitch": 10.0}),
        ("detectors must be >= 1", {"detectors": 0}),
        ("centre_of_rotation must be two", {"centre_of_rotation": (1.0, math.nan)}),
        (r"shape must be \(Ny, Nx\)", {"shape": (8, 8, 8)}),
    ],
)
def test_bad_geometry_is_refused(message: str, arguments: dict[str, Any]) -> None:
    usual = {"shape": (8, 8), "angles": [0.0], "detectors": 9, "source_origin": 20.0, "origin_detector": 5.0}
    with pytest.raises(ValueError, match=message):
        FanBeam(**{**usual, **arguments})
