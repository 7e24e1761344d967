"""Time to the same total-variation objective, denoising and MRI, beside deepinv and sigpy.

    python tests/benchmarks/tv.py [--quick] [--threads 1] [--repeats 5]

Every solver is run from scratch with the fewest iterations that bring the objective within 1e-4 of its minimum; the
minimum comes from a long run in double precision. All minimise the same function: forward differences, none across the
border, isotropic. deepinv's total variation of a complex image is another function, which changes with the phase: its
FISTA gets ours through the bridge there. Peers that are not installed are left out and say so.
"""

import argparse
import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mri import as_complex, object_and_maps, real_view, sampling
from timing import Job, Row, machine, missing, peak_memory, peer, race, table, use_threads
from torch import Tensor

from invreg.algorithms import FISTA, PDHG
from invreg.operators import Mask, Sense
from invreg.problem import Problem
from invreg.regularizers import TotalVariation

CLOSE = 1e-4  # how near to the minimum, relative
Runner = Callable[[int], Any]  # iterations -> image


@dataclass(frozen=True)
class Case:
    """A problem and who solves it.

    Args:
        problem, prior: in single precision, for the objective.
        runners: iterations -> image, by name; None where the library is missing.
        tidy: any runner's image -> the problem's.
    """

    problem: Problem
    prior: TotalVariation
    runners: Mapping[str, Runner | None]
    tidy: Callable[[Any], Tensor]

    def objective(self, image: Any) -> float:
        """Misfit + penalty in double precision."""
        x = self.tidy(image).detach()
        wide = double(self.problem)
        x = x.to(wide.y.dtype if x.is_complex() else torch.float64)
        return float(wide.misfit(x) + self.prior(x))


def double(problem: Problem) -> Problem:
    """The same problem in double precision."""
    wide = torch.complex128 if problem.y.is_complex() else torch.float64
    return Problem(copy.deepcopy(problem.operator).to(torch.float64), problem.y.to(wide), problem.noise)


def noisy(clean: Tensor, sigma: float) -> Tensor:
    """Clean data and white noise, seeded."""
    generator = torch.Generator().manual_seed(0)
    shape = (*clean.shape, 2) if clean.is_complex() else tuple(clean.shape)
    noise = torch.randn(shape, generator=generator)
    return clean + sigma * (torch.view_as_complex(noise) if clean.is_complex() else noise)


# --- cases


def denoising(size: int) -> Case:
    image = object_and_maps(1, size)[0].real[None]
    y, weight = noisy(image, 0.1), 0.1
    prior = TotalVariation(weight)
    problem = Problem(Mask(torch.ones(size, size, dtype=torch.bool)), y)
    return Case(
        problem,
        prior,
        {
            "invreg TotalVariation.prox": lambda k: TotalVariation(weight, rtol=0, iterations=k).prox(y, 1.0),
            "invreg PDHG": partial(by_pdhg, problem, prior),
            "deepinv TVDenoiser": partial(by_deepinv_denoiser, y, weight) if peer("deepinv") else None,
            "sigpy PDHG": partial(by_sigpy, None, y[0], weight) if peer("sigpy") else None,
        },
        lambda x: torch.as_tensor(x).reshape(1, size, size),
    )


def mri(size: int) -> Case:
    problem, maps, mask = scan(size)
    weight = 0.02
    prior = TotalVariation(weight)
    return Case(
        problem,
        prior,
        {
            "invreg FISTA": partial(by_fista, problem, prior),
            "invreg PDHG": partial(by_pdhg, problem, prior),
            "deepinv FISTA, our TV": partial(by_deepinv, maps, mask, problem.y, weight) if peer("deepinv") else None,
            "sigpy PDHG": partial(by_sigpy, (maps, mask), problem.y[0], weight) if peer("sigpy") else None,
        },
        lambda x: as_complex(x)[None],
    )


def scan(size: int) -> tuple[Problem, Tensor, Tensor]:
    """A noisy scan of 8 coils, four times accelerated, with its maps and mask."""
    image, maps = object_and_maps(8, size)
    mask = sampling(size, calibration=min(24, size // 4))
    operator = Sense(maps[None], mask)
    return Problem(operator, noisy(operator(image[None]), 0.02) * mask), maps, mask


CASES: dict[str, Callable[[int], Case]] = {"denoising": denoising, "MRI": mri}


# --- solvers


def by_fista(problem: Problem, prior: TotalVariation, iterations: int) -> Tensor:
    return FISTA(iterations=iterations, rtol=0, check_every=iterations).solve(problem, prior).x


def by_pdhg(problem: Problem, prior: TotalVariation, iterations: int) -> Tensor:
    return PDHG(iterations=iterations, rtol=0, check_every=iterations).solve(problem, prior).x


def by_deepinv_denoiser(y: Tensor, weight: float, iterations: int) -> Any:
    from deepinv.models import TVDenoiser

    return TVDenoiser(n_it_max=iterations, crit=0.0)(y[:, None], ths=weight)


def by_deepinv(maps: Tensor, mask: Tensor, y: Tensor, weight: float, iterations: int) -> Any:
    from deepinv.optim import FISTA as DeepinvFISTA  # noqa: N811
    from deepinv.optim import L2
    from deepinv.physics import MultiCoilMRI

    from invreg.deepinv_bridge import as_deepinv

    both = mask.float()[None, None].expand(1, 2, *mask.shape)
    physics = MultiCoilMRI(mask=both, coil_maps=maps[None])
    model = DeepinvFISTA(
        data_fidelity=L2(),
        prior=as_deepinv(TotalVariation(weight), "real2"),
        lambda_reg=1.0,
        stepsize=1.0,
        max_iter=iterations,
        early_stop=False,
    )
    return model(real_view(y), physics)


def by_sigpy(maps_and_mask: tuple[Tensor, Tensor] | None, y: Tensor, weight: float, iterations: int) -> Any:
    import numpy as np
    import sigpy
    import sigpy.mri as sigpy_mri

    class Gradient(sigpy.linop.Linop):  # type: ignore[misc]
        """Forward differences without the step across the border, which sigpy's own has."""

        def __init__(self, shape: tuple[int, ...]) -> None:
            super().__init__((2, *shape), shape)

        def _apply(self, x: Any) -> Any:
            out = np.zeros(self.oshape, x.dtype)
            out[0, :-1] = x[1:] - x[:-1]
            out[1, :, :-1] = x[:, 1:] - x[:, :-1]
            return out

        def _adjoint_linop(self) -> Any:
            return Divergence(self.ishape)

    class Divergence(sigpy.linop.Linop):  # type: ignore[misc]
        """The adjoint of `Gradient`."""

        def __init__(self, shape: tuple[int, ...]) -> None:
            super().__init__(shape, (2, *shape))

        def _apply(self, q: Any) -> Any:
            out = np.zeros(self.oshape, q.dtype)
            out[1:] += q[0, :-1]
            out[:-1] -= q[0, :-1]
            out[:, 1:] += q[1, :, :-1]
            out[:, :-1] -= q[1, :, :-1]
            return out

        def _adjoint_linop(self) -> Any:
            return Gradient(self.oshape)

    class Length(sigpy.prox.Prox):  # type: ignore[misc]
        """weight * sum over pixels of the length of the gradient."""

        def __init__(self, shape: tuple[int, ...]) -> None:
            super().__init__((2, *shape))

        def _prox(self, alpha: float, q: Any) -> Any:
            length = np.sqrt((np.abs(q) ** 2).sum(0))
            return q * np.maximum(1 - weight * alpha / np.maximum(length, 1e-30), 0)

    shape = tuple(y.shape[-2:])
    if maps_and_mask is None:
        operator = sigpy.linop.Identity(shape)
    else:
        maps, mask = maps_and_mask
        operator = sigpy_mri.linop.Sense(maps.numpy(), weights=mask.numpy().astype("float32"))
    return sigpy.app.LinearLeastSquares(
        operator, y.numpy(), proxg=Length(shape), G=Gradient(shape), max_iter=iterations, show_pbar=False
    ).run()


# --- the fewest iterations, and their time


def fewest(reached: Callable[[int], bool], limit: int) -> int | None:
    """The fewest iterations that reach the aim, to within 5 %, or None if `limit` does not.

    By bisection; where reaching it is not monotone, as under FISTA, it is some number that does.
    """
    high = 1
    while not reached(high):
        if high >= limit:
            return None
        high = min(2 * high, limit)
    low = high // 2
    while high - low > max(1, high // 20):
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def minimum(case: Case, iterations: int) -> float:
    """The objective that a long run in double precision reaches."""
    return case.objective(by_pdhg(double(case.problem), case.prior, iterations))


def rows_of(name: str, size: int, repeats: int, limit: int, memory: bool) -> list[Row]:
    case = CASES[name](size)
    title = f"TV {name}, {'8 x ' if name == 'MRI' else ''}{size} x {size}"
    aim = minimum(case, 2 * limit) * (1 + CLOSE)
    counts = {
        one: None if run is None else fewest(partial(reaches, case, run, aim), limit)
        for one, run in case.runners.items()
    }
    jobs: dict[str, Job] = {
        one: partial(run, count) for one, run in case.runners.items() if run and (count := counts[one])
    }
    seconds = race(jobs, repeats)
    rows = []
    for one, run in case.runners.items():
        if run is None:
            rows.append(missing(title, one))
        elif one not in jobs:
            gap = case.objective(run(limit)) * (1 + CLOSE) / aim - 1
            rows.append(Row(title, one, note=f"{gap:.0e} above the minimum after {limit} iterations"))
        else:
            peak = peak_memory(partial(job_of, name, size, one, counts[one])) if memory else None
            rows.append(Row(title, one, seconds[one], peak, f"{counts[one]} iterations"))
    return rows


def reaches(case: Case, run: Runner, aim: float, iterations: int) -> bool:
    return case.objective(run(iterations)) <= aim


def job_of(name: str, size: int, runner: str, iterations: int) -> Job:
    """One solver's job, built anew in a process of its own."""
    run = CASES[name](size).runners[runner]
    assert run is not None
    return partial(run, iterations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--threads", type=int, default=1, help="for torch, OpenMP and numba alike")
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many is shown")
    options = parser.parse_args()
    use_threads(options.threads)
    warnings.simplefilter("ignore")
    print(machine())
    rows = []
    with torch.no_grad():
        for name in CASES:
            size = 32 if options.quick else 256 if name == "denoising" else 128
            repeats, limit = (1, 200) if options.quick else (options.repeats, 1000)
            rows += rows_of(name, size, repeats, limit, not options.quick)
    print(table(rows))


if __name__ == "__main__":
    main()
