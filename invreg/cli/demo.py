"""`invreg demo`: real images, simulated scans, several reconstructions side by side."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from invreg import config
from invreg.algorithms import (
    ADMM,
    DDS,
    FISTA,
    PDHG,
    SIRT,
    Algorithm,
    ConjugateGradient,
    Variational,
    filtered_backprojection,
    iterate_posterior,
)
from invreg.algorithms.reconstruction import Reconstruction, Status
from invreg.algorithms.smooth import curvature
from invreg.cli.descent import RED_DIFF, RED_DIFF_FROM
from invreg.cli.figure import draw_comparison
from invreg.cli.noise_level import mean_level
from invreg.cli.outputs import require_free
from invreg.cli.pipeline import RELATIVE_WEIGHT, column_norm
from invreg.cli.reconstruct import pick_device
from invreg.cli.report import warnings_as_remarks
from invreg.cli.simulated import MU_WATER, Wish, simulated_ct, simulated_mri
from invreg.io import KSpace, Sinogram, mu_to_hu
from invreg.metrics import hu_window, nrmse, psnr, rmse_hu, ssim
from invreg.mri import espirit
from invreg.noise import Gaussian
from invreg.operators import ParallelBeam, Sense, Wavelet
from invreg.problem import Problem
from invreg.regularizers import NonNegative, PlugAndPlay, REDDiff, SumOfTerms, TotalVariation, WaveletL1

BRAIN_WINDOW = (40.0, 160.0)  # centre and width, HU
SOFT_TISSUE = (40.0, 400.0)


@dataclass(frozen=True, eq=False)
class Method:
    """A row of a demo.

    Args:
        name: what it is called in the picture.
        compute: its image.
        after: name of the row whose work it goes on with, and whose seconds are therefore its own, too.
    """

    name: str
    compute: Callable[[], Tensor]
    after: str | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a demo shows.

    Args:
        about: what was simulated, in words.
        truth: (1, y, x), real.
        methods: in the order of the picture.
        row: numbers of an image.
        shown: an image as it is drawn, (y, x).
        window: grey values of black and white.
        error_range: brightest error drawn.
        unit: of the error.
    """

    about: str
    truth: Tensor
    methods: tuple[Method, ...]
    row: Callable[[Tensor], dict[str, float]]
    window: tuple[float, float]
    error_range: float
    unit: str


def run_demo(
    what: str, output: Path | None, device: str, seed: int, *, force: bool, console: Console
) -> dict[str, Any]:
    """Simulate, reconstruct, compare, draw.

    Args:
        what: "mri" or "ct".
        output: PNG file; default `invreg-demo-WHAT.png` in the working directory, which is replaced.
        device: "auto", "cpu" or "cuda".
        seed: of the simulated noise and sampling.
        force: whether `output` may be replaced.
        console: where remarks go.

    Returns:
        Title, what was simulated, a row of numbers for each method, the path of the figure.

    Raises:
        ValueError: an unknown demo or device.
        OSError: the figure cannot be written.
        KeyboardInterrupt: Ctrl-C; nothing is drawn.
    """
    if what not in ("mri", "ct"):
        raise ValueError(f"demo must be mri or ct, got {what!r}")
    path = output or Path(f"invreg-demo-{what}.png")
    require_free(path, force or output is None)
    chosen = pick_device(device)
    start = time.perf_counter()
    with _one_thread():
        comparison = (_mri if what == "mri" else _ct)(chosen, seed, console)
    console.print(comparison.about, style="bold")
    rows, images, spent = [], [], dict[str, float]()
    with warnings_as_remarks(console), torch.no_grad(), _one_thread():
        for method in comparison.methods:
            before = time.perf_counter()
            image = method.compute().cpu()
            spent[method.name] = time.perf_counter() - before + (spent[method.after] if method.after else 0)
            row = comparison.row(image)
            rows.append({"method": method.name, **row, "seconds": round(spent[method.name], 2)})
            first, value = next(iter(row.items()))
            images.append((f"{method.name}\n{first} {value:.4g}", image[0].abs() if image.is_complex() else image[0]))
            console.print(f"{method.name}: {spent[method.name]:.1f} s")
    title = f"invreg demo {what}: simulated scan"
    draw_comparison(
        path, title, comparison.truth[0], images, comparison.window, comparison.error_range, comparison.unit
    )
    return {
        "title": title,
        "simulated": comparison.about,
        "results": rows,
        "figure": str(path),
        "seconds": round(time.perf_counter() - start, 2),
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """Images this small gain little from threads, and lose much where cores are shared with others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _finished(result: Reconstruction) -> Tensor:
    """The image, unless Ctrl-C, which `solve` turns into a status, ended it early."""
    if Status.INTERRUPTED in result.status:
        raise KeyboardInterrupt
    return result.x


def _mri(device: torch.device, seed: int, console: Console) -> Comparison:
    record, image, about = simulated_mri(Wish("mri", seed=seed))
    assert isinstance(record, KSpace)
    assert isinstance(record.noise_sigma, float)
    before = time.perf_counter()
    kspace, mask = record.data.to(device), None if record.mask is None else record.mask.to(device)
    operator = Sense(espirit(kspace, mask).maps, mask)
    console.print(f"ESPIRiT coil maps from the calibration lines: {time.perf_counter() - before:.1f} s")
    back = operator.adjoint(kspace)
    scale = float(back.abs().flatten().kthvalue(round(0.99 * back.numel())).values)
    problem = Problem(operator, kspace / scale)
    unit = record.noise_sigma / scale * column_norm(problem, seed)
    truth = image.data

    wavelet = WaveletL1(Wavelet(tuple(truth.shape[1:])), RELATIVE_WEIGHT["wavelet"] * unit).to(device)
    variation = TotalVariation(RELATIVE_WEIGHT["tv"] * unit)

    def row(x: Tensor) -> dict[str, float]:
        return {
            "PSNR (dB)": float(psnr(x, truth)),
            "SSIM": float(ssim(x, truth)),
            "NRMSE": float(nrmse(x, truth)),
        }

    seen = (operator.maps != 0).any(1)  # elsewhere nothing was measured, only the prior speaks

    def solved(algorithm: Algorithm[Any, Any], prior: Any) -> Tensor:
        return scale * seen * _finished(algorithm.solve(problem, prior))

    noisy = Problem(operator, problem.y, Gaussian(record.noise_sigma / scale))
    learned = _learned("brain", noisy, seed, lambda x: scale * seen * x, console, DDS(iterations=25), 4)
    methods: tuple[Method, ...] = (
        Method("zero-filling", lambda: back),
        Method("CG-SENSE", lambda: solved(ConjugateGradient(iterations=8, rtol=0.0), None)),
        Method("wavelet, FISTA", lambda: solved(FISTA(iterations=60, rtol=1e-4), wavelet)),
        Method("TV, PDHG", lambda: solved(PDHG(iterations=150, rtol=1e-4), variation)),
        *learned,
    )
    return Comparison(about, truth, methods, row, (0.0, 0.75), 0.1, "in units of the brightest voxel")


def _learned(
    prior: str,
    problem: Problem,
    seed: int,
    shown: Callable[[Tensor], Tensor],
    console: Console,
    sampler: DDS,
    samples: int,
) -> tuple[Method, ...]:
    """Rows of a prior that ships.

    Args:
        prior: its name.
        problem: with the true noise level, in units where images have size 1.
        seed: of the samplers.
        shown: from the image of the problem to that of the demo.
        console: where remarks go.
        sampler: of the draws.
        samples: of which the mean is shown.
    """
    denoiser = config.shipped_prior(prior).to(problem.y.device)
    run = iterate_posterior(sampler, problem, denoiser, samples=samples, batch=1, seed=seed)

    def mean_of(count: int) -> Tensor:
        """Of the draws so far and as many more as it takes."""
        while (found := next(run)).moments.count < count:
            continue
        return shown(found.mean)

    def varied() -> Tensor:
        back = problem.backprojection()
        sigma = float(curvature(problem, torch.zeros_like(back))) ** -0.5
        generator = torch.Generator(back.device).manual_seed(seed)
        weight = RED_DIFF / sigma
        belief = REDDiff(denoiser, weight, sigma_max=RED_DIFF_FROM, generator=generator)
        return shown(_finished(Variational(iterations=60, step_size=0.05).solve(problem, belief)))

    def plugged() -> Tensor:
        return shown(_finished(ADMM(iterations=12).solve(problem, PlugAndPlay(denoiser))))

    console.print(f"learned prior: {config.SHIPPED[prior]}; for demonstration, not for diagnosis")
    draws: tuple[Method, ...] = (
        Method("DDS, a sample", lambda: mean_of(1)),
        Method(f"DDS, mean of {samples}", lambda: mean_of(samples), after="DDS, a sample"),
    )
    if not problem.y.is_complex():  # the others draw streaks into CT of few views
        return draws
    return (Method("RED-Diff", varied), *draws, Method("PnP, ADMM", plugged))


def _ct(device: torch.device, seed: int, console: Console) -> Comparison:
    record, image, about = simulated_ct(Wish("ct", views=60, seed=seed))
    assert isinstance(record, Sinogram)
    assert record.detector_pitch is not None
    side = image.data.shape[-1]
    pitch = record.detector_pitch
    operator = ParallelBeam((side, side), record.angles, record.data.shape[-1], pixel_size=pitch, detector_pitch=pitch)
    operator = operator.to(device)
    y = record.data.to(device) / MU_WATER
    plain = Problem(operator, y)
    counts = record.counts
    assert counts is not None
    sigma = counts.clamp_min(0.5).rsqrt().to(device) / MU_WATER
    level = mean_level(sigma)
    weighted = Problem(operator, y, Gaussian(sigma / level))
    weight = RELATIVE_WEIGHT["tv"] * level * column_norm(weighted, seed)
    prior = SumOfTerms(TotalVariation(weight), NonNegative())
    truth = image.data
    fbp = filtered_backprojection(operator, y, "hann")

    def hounsfield(x: Tensor) -> Tensor:
        return mu_to_hu(x * MU_WATER, MU_WATER)

    def row(x: Tensor) -> dict[str, float]:
        shown, wanted = hu_window(x, *SOFT_TISSUE), hu_window(truth, *SOFT_TISSUE)
        return {
            "PSNR (dB)": float(psnr(shown, wanted, data_range=1.0)),
            "SSIM": float(ssim(shown, wanted, data_range=1.0)),
            "RMSE (HU)": float(rmse_hu(x, truth, window=SOFT_TISSUE)),
        }

    sirt, cg = SIRT(iterations=100, rtol=0.0), ConjugateGradient(iterations=10, rtol=0.0)
    pdhg = PDHG(iterations=150, rtol=1e-4, balance=0.1)
    noisy = Problem(operator, y, Gaussian(sigma))
    sampler = DDS(iterations=20, inner_iterations=20)
    methods: tuple[Method, ...] = (
        Method("FBP, Hann", lambda: hounsfield(fbp)),
        Method("SIRT, 100", lambda: hounsfield(_finished(sirt.solve(plain, None)))),
        Method("CGLS, 10", lambda: hounsfield(_finished(cg.solve(plain, None)))),
        Method("TV, PDHG", lambda: hounsfield(_finished(pdhg.solve(weighted, prior, fbp.clamp_min(0))))),
        *_learned("head-ct", noisy, seed, hounsfield, console, sampler, 2),
    )
    low, high = BRAIN_WINDOW[0] - BRAIN_WINDOW[1] / 2, BRAIN_WINDOW[0] + BRAIN_WINDOW[1] / 2
    console.print("numbers are taken in the soft-tissue window, 40 +- 200 HU")
    return Comparison(about, truth, methods, row, (low, high), 100.0, "HU")
