"""Joseph's projector of lines and its exact transpose, as gathers: what the 2D tomography operators share.

A line x cos(phi) + y sin(phi) = s crosses every row of pixels (every column, if it is flat) once; there it takes the
linear interpolation of the two pixels beside it, times the length pixel / m with m = max(|cos phi|, |sin phi|). So the
matrix entry of a line and a pixel whose centre lies at distance e from it is (pixel / m) max(0, 1 - |e| / (m pixel)):
forward, every line gathers from rows; backwards, every pixel gathers the few detectors with |e| < m pixel. Neither
direction scatters, and no matrix is stored.

Source: Joseph 1982, "An improved algorithm for reprojecting rays through pixel images".
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import itertools
import math
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invreg._check import require_count, require_positive

Kernel = Callable[..., Tensor]
EAGER_ELEMENTS = 2**19  # of one temporary in eager mode: a few of them stay in a processor's cache
COMPILED_ANGLES = 192  # in one compiled call: so many sinogram rows' cache lines fit the first-level cache
WORTH_COMPILING = (
    2**24
)  # ray-row crossings in one call (about 256 x 256 and 180 views) from which compile=None compiles


def project_lines(
    image: Tensor, position: Tensor, slope: Tensor, base: Tensor, rows: Tensor, starts: Tensor, last: Tensor
) -> Tensor:
    """Sums of linearly interpolated pixels along lines.

    All sizes come as tensors: with symbolic integers inside, the compiler would give up its vector instructions.

    Args:
        image: (C, n), the image and its transpose as `padded_rows` lays them out.
        position: where each line crosses the row of coordinate 0, in columns of the padded image, (A, D).
        slope: columns per row, (A, D) or (A, 1).
        base: where in `image` the rows begin that a line crosses, the image's or its transpose's, int32, as slope.
        rows, starts: coordinate of each row, and where it begins, int32, (count,).
        last: greatest column, ().

    Returns:
        (C, A, D).
    """
    column = (position[:, None] + slope[:, None] * rows[None, :, None]).clamp_min(0.0).minimum(last)
    left = column.to(torch.int32)
    where = left + (starts[None, :, None] + base[:, None])
    low, high = _take(image, where), _take(image, where + 1)
    return torch.lerp(low, high, (column - left)[None]).sum(2)


def _take(flat: Tensor, index: Tensor) -> Tensor:
    """flat[:, index], by the faster of the two ways in eager mode: (C, n), (...) -> (C, ...)."""
    return flat.index_select(1, index.flatten()).reshape(flat.shape[0], *index.shape)


def gather_parallel(
    sinogram: Tensor,
    cos: Tensor,
    sin: Tensor,
    shift: Tensor,
    reach: Tensor,
    starts: Tensor,
    y: Tensor,
    x: Tensor,
    last: Tensor,
    taps: int,
) -> Tensor:
    """The transpose of `project_lines` for parallel lines, detector indices as unit of length.

    Args:
        sinogram: (C, n), the views one after the other, each with `taps` zeros on both sides.
        cos, sin: of the angles, (A,), times pixel / pitch.
        shift: detector index of the image centre's projection, (A,).
        reach: half-width of the hat, m pixel / pitch, (A,).
        starts: where detector 0 of each view is in `sinogram`, int32, (A,).
        y, x: pixel coordinates in pixels, (Ny,), (Nx,).
        last: number of detectors, ().
        taps: at most so many detectors lie under a hat.

    Returns:
        (C, Ny, Nx), the sum of hat-weighted detectors over angles.
    """
    centre = x[None, None] * cos[:, None, None] + (y[None, :, None] * sin[:, None, None] + shift[:, None, None])
    first = torch.ceil(centre - reach[:, None, None]).clamp_min(-float(taps)).minimum(last)
    where = first.to(torch.int32) + starts[:, None, None]
    inverse = (1 / reach)[:, None, None]
    distance = first - centre
    total: Tensor | None = None
    for k in range(taps):
        weight = (1 - (distance + k).abs() * inverse).clamp_min(0.0)
        term = weight[None] * _take(sinogram, where + k)
        total = term if total is None else total + term
    assert total is not None
    return total.sum(1)


def gather_fan(
    sinogram: Tensor,
    cos: Tensor,
    sin: Tensor,
    starts: Tensor,
    fan: Tensor,
    geometry: Tensor,
    y: Tensor,
    x: Tensor,
    last: Tensor,
    taps: int,
    curved: bool,
) -> Tensor:
    """The transpose of `project_lines` for the rays of a fan, pixels as unit of length.

    A pixel at angle g and distance r as seen from the source has distance r sin(gamma - g) from the ray at gamma.

    Args:
        sinogram, starts, y, x, last, taps: as in `gather_parallel`, y and x from the centre of rotation.
        cos, sin: of the angles, (A,).
        fan: cosine and sine of every detector's gamma, (2, D + 2 taps), with `taps` entries of padding on both sides.
        geometry: distance of the source; detector indices per unit of tan(gamma), or of gamma if curved; index of the
            central ray, (3,).
        curved: whether detectors are at equal angles.

    Returns:
        (C, Ny, Nx), the sum of hat-weighted detectors over angles.
    """
    source, scale, middle = geometry[0], geometry[1], geometry[2]
    cos, sin = cos[:, None, None], sin[:, None, None]
    across = x[None, None] * cos + y[None, :, None] * sin
    depth = source + (y[None, :, None] * cos - x[None, None] * sin)
    distance = (across * across + depth * depth).sqrt()
    # a ray within m of the pixel, m <= 1 its own max(|cos|, |sin|), which differs from the pixel's by at most the angle
    own = torch.maximum((cos * depth + sin * across).abs(), (sin * depth - cos * across).abs()) / distance
    widest = ((own + 1.1 / distance).clamp_max(1.0) / distance).clamp_max(1.0)
    back = (1 - widest * widest).sqrt()
    left_across, left_depth = across * back - depth * widest, depth * back + across * widest
    left = torch.atan2(left_across, left_depth) if curved else left_across / left_depth
    first = torch.ceil(left * scale + middle).clamp_min(0.0).minimum(last).to(torch.int32)
    where = first + starts[:, None, None]
    total: Tensor | None = None
    for k in range(taps):
        fan_cos, fan_sin = (_take(fan[i : i + 1], first + (k + taps))[0] for i in (0, 1))
        reach = torch.maximum((cos * fan_cos + sin * fan_sin).abs(), (sin * fan_cos - cos * fan_sin).abs())
        error = (depth * fan_sin - across * fan_cos).abs()
        weight = (1 - error / reach.clamp_min(0.5)).clamp_min(0.0)
        term = weight[None] * _take(sinogram, where + k)
        total = term if total is None else total + term
    assert total is not None
    return total.sum(1)


@dataclass(frozen=True, eq=False)
class Rows:
    """An image as `project_lines` reads it.

    Args:
        image: the image and its transpose, one after the other, each row with a zero before and two behind, (C, n).
        coordinates: of the rows, centred, (count,); count is the longer side.
        starts: where each row begins, int32, (count,).
        turned: where the transpose begins.
        last: the greatest column that may be read, ().
    """

    image: Tensor
    coordinates: Tensor
    starts: Tensor
    turned: int
    last: Tensor


def padded_rows(image: Tensor) -> Rows:
    """Lay out images, (C, Ny, Nx)."""
    _, ny, nx = image.shape
    count = max(ny, nx)
    width = count + 3
    upright = torch.nn.functional.pad(image, (1, width - nx - 1, 0, count - ny))
    turned = torch.nn.functional.pad(image.transpose(1, 2), (1, width - ny - 1, 0, count - nx))
    index = torch.arange(count, device=image.device)
    return Rows(
        torch.stack([upright, turned], 1).flatten(1),
        index.to(image.dtype) - (count - 1) / 2,
        (index * width).to(torch.int32),
        count * width,
        image.new_full((), width - 2.0),
    )


def padded_views(sinogram: Tensor, margin: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views one after the other with zeros on both sides, as the gathers read them.

    Args:
        sinogram: (C, A, D).
        margin: how many zeros on either side.

    Returns:
        (C, A, D + 2 margin), where detector 0 of each view is in the flattened views, int32 (A,), and D as a tensor ().
    """
    angles, detectors = sinogram.shape[1:]
    width = detectors + 2 * margin
    starts = (torch.arange(angles, device=sinogram.device) * width + margin).to(torch.int32)
    return torch.nn.functional.pad(sinogram, (margin, margin)), starts, sinogram.new_full((), float(detectors))


def as_channels(x: Tensor) -> Tensor:
    """(B, ., .) real or complex -> (B or 2 B, ., .) real."""
    if not x.is_complex():
        return x
    return torch.view_as_real(x).movedim(-1, 1).flatten(0, 1)


def from_channels(channels: Tensor, like: Tensor) -> Tensor:
    """Undo `as_channels`."""
    if not like.is_complex():
        return channels
    pairs = channels.reshape(-1, 2, *channels.shape[1:])
    return torch.view_as_complex(pairs.movedim(1, -1).contiguous())


def chunks(angles: int, crossings: int, channels: int, compiled: bool) -> list[slice]:
    """Slices of the angles, all nearly equal, so that temporaries stay bounded.

    Args:
        angles: how many there are.
        crossings: entries of a temporary for one angle and channel.
        channels: of the data.
        compiled: whether temporaries are fused away (in `project_lines` and `gather_parallel`).
    """
    most = COMPILED_ANGLES if compiled else max(1, EAGER_ELEMENTS // max(1, crossings * channels))
    count = math.ceil(angles / most)
    edges = [round(i * angles / count) for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def use_compiled(choice: bool | None, work: int, device: torch.device) -> bool:
    """Whether to run the compiled kernels.

    Args:
        choice: the operator's `compile`: None compiles calls of much work where a compiler is at hand.
        work: ray-row crossings of the call.
        device: where the data lie.
    """
    if torch.compiler.is_compiling():  # an outer torch.compile takes the plain kernels into its own graph
        return False
    if choice is not None:
        return choice
    return work >= WORTH_COMPILING and _compiler_at_hand(device.type)


@functools.lru_cache
def _compiler_at_hand(device: str) -> bool:
    if device == "cuda":
        return importlib.util.find_spec("triton") is not None
    return device == "cpu" and any(shutil.which(c) for c in (os.environ.get("CXX", "g++"), "g++", "clang++"))


@functools.lru_cache
def _compiled(kernel: Kernel) -> Kernel:
    # without these the compiler would write the positions of all rays and rows to memory before it reads them; the
    # other kernels are too deep to be unfolded whole (minutes), so they are called with few angles at a time
    wanted = {"realize_opcount_threshold": 1000, "realize_reads_threshold": 1000, "realize_acc_reads_threshold": 1000}
    known = torch._inductor.list_options()
    options: dict[str, str | int | bool | Callable[..., Any]] = {
        key: value for key, value in wanted.items() if key in known and kernel in (project_lines, gather_parallel)
    }
    # one kernel serves all sizes, but not all ranks of batches (one or many), precisions and numbers of taps
    limit = {"recompile_limit": 64} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}
    return functools.partial(torch.compile, **limit)(kernel, dynamic=True, fullgraph=True, options=options)


_broken: set[str] = set()  # kernels that a compiler at hand could not compile


def run_kernel(kernel: Kernel, choice: bool | None, compiled: bool, *arguments: Tensor | int) -> Tensor:
    """Run a kernel, compiled or not; with choice None a compiler that fails is reported once and left alone."""
    name = getattr(kernel, "__name__", "kernel")
    if not compiled or name in _broken:
        return kernel(*arguments)
    # fresh tensors, for a compiled kernel is tied to the strides, and to being a view or not, of what it first saw
    arguments = tuple(a.clone(memory_format=torch.contiguous_format) if isinstance(a, Tensor) else a for a in arguments)
    if choice is not None:
        return _compiled(kernel)(*arguments)
    try:
        return _compiled(kernel)(*arguments)
    except Exception as error:  # compilers fail in every way there is; a mistake of ours raises again below
        _broken.add(name)
        warnings.warn(
            f"torch.compile failed ({type(error).__name__}), so the plain projector runs, which is slower; "
            "pass compile=False to silence this, or compile=True to see the error",
            RuntimeWarning,
            stacklevel=2,
        )
        return kernel(*arguments)


def check_angles(angles: Tensor | Sequence[float]) -> Tensor:
    """The angles as a floating-point tensor, (A,), float64 or float32; a warning if they look like degrees.

    Raises:
        TypeError: not numbers.
        ValueError: not one-dimensional, empty, NaN or Inf.
    """
    try:
        values = torch.as_tensor(angles)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"angles must be a tensor or a sequence of numbers, got {type(angles).__name__}") from error
    if values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"angles must be real numbers in radians, got {values.dtype}")
    if not values.is_floating_point() or not hasattr(angles, "dtype"):  # plain numbers have no precision of their own
        values = values.to(torch.get_default_dtype())
    if values.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"angles must be float32 or float64, got {values.dtype}; use angles.to(torch.float32)")
    if values.ndim != 1 or not values.numel():
        raise ValueError(f"angles must be (A,) with A >= 1, got shape {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("angles must be finite, got NaN or Inf")
    largest = float(values.abs().max())
    if largest > 2 * math.pi * (1 + 1e-6):
        warnings.warn(
            f"angles reach {largest:.4g}, beyond 2 pi; they must be in radians: use torch.deg2rad if these are degrees",
            UserWarning,
            stacklevel=3,
        )
    return values.detach()


def check_grid(shape: tuple[int, int], detectors: int, lengths: dict[str, float]) -> None:
    """Raise unless shape is (Ny, Nx), detectors a count and every length of `lengths` a positive number."""
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise ValueError(f"shape must be (Ny, Nx), got {shape!r}")
    for n in shape:
        require_count("shape", n)
    require_count("detectors", detectors)
    for name, length in lengths.items():
        require_positive(name, length)


def check_point(name: str, value: tuple[float, float]) -> tuple[float, float]:
    """Two finite numbers (x, y).

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(math.isfinite(v) for v in value):
        raise ValueError(f"{name} must be two finite numbers (x, y) in mm, got {value!r}")
    return float(value[0]), float(value[1])


def check_offset(name: str, value: float) -> float:
    """A finite number of either sign.

    Raises:
        TypeError, ValueError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number in mm, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def pixel_axes(shape: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel centres from the image centre in pixels, y (Ny,) and x (Nx,), in the precision and place of `like`."""
    y, x = (torch.arange(n, dtype=like.dtype, device=like.device) - (n - 1) / 2 for n in shape)
    return y, x
