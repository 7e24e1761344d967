"""Many samples of the posterior, one batch at a time: their mean, their spread, and how well they explain the data."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from invreg._check import require_count
from invreg.algorithms.loop import HasImage, Run, Sampler
from invreg.algorithms.reconstruction import Status
from invreg.interfaces import Denoiser
from invreg.moments import Moments
from invreg.operators.unmeasured import Unmeasured
from invreg.problem import Problem


@dataclass(frozen=True, eq=False)
class Posterior:
    """What K samples of each of B problems say.

    Args:
        moments: of the samples, each (B, *signal).
        chi_square: of every sample, (K, B); about 1 where the residual is as large as the noise.
        status: how every sample ended, K times B.
        samples: (K, B, *signal), if they were kept.
        settings: algorithm, prior and operator in plain words and numbers.
        seconds: wall time.
    """

    moments: Moments
    chi_square: Tensor
    status: tuple[tuple[Status, ...], ...]
    samples: Tensor | None
    settings: dict[str, Any]
    seconds: float

    @property
    def mean(self) -> Tensor:
        """Pixel by pixel, (B, *signal): the image of least expected square error."""
        return self.moments.mean

    @property
    def std(self) -> Tensor:
        """Pixel by pixel, real, (B, *signal), of 2 samples or more.

        Of complex images the root of E|x - mean|^2: sqrt(2) times the standard deviation of either part, in which noise
        levels are given, where both scatter alike.
        """
        return self.moments.std


class PosteriorRun(Iterator[Posterior]):
    """Sampling under way: an iterator of what is known so far, made by `iterate_posterior`."""

    def __init__(
        self,
        algorithm: Sampler[Any],
        problem: Problem,
        prior: Denoiser,
        x0: Tensor | None,
        samples: int,
        batch: int,
        seed: int,
        keep: bool,
    ) -> None:
        self._algorithm, self._problem, self._prior, self._x0 = algorithm, problem, prior, x0
        self._samples, self._batch, self._seed, self._keep = samples, batch, seed, keep
        self._moments = Moments()
        self._chi: list[Tensor] = []
        self._status: list[tuple[Status, ...]] = []
        self._kept: list[Tensor] = []
        self._settings: dict[str, Any] = {}
        self._start = time.perf_counter()

    def __len__(self) -> int:
        """How many batches there are in all."""
        wide = self._problem.y.shape[0] > 1
        return self._samples if wide else -(-self._samples // self._batch)

    def __next__(self) -> Posterior:
        done = len(self._chi)
        if done >= self._samples:
            raise StopIteration
        problems = self._problem.y.shape[0]
        count = 1 if problems > 1 else min(self._batch, self._samples - done)
        run = self._run(done, count)
        for _ in run:
            continue
        found = run.reconstruction()
        images = found.x.reshape(count, problems, *found.x.shape[1:])
        self._moments = self._moments.add(images)
        self._chi += list(found.chi_square.reshape(count, problems))
        self._status += [found.status[i * problems : (i + 1) * problems] for i in range(count)]
        self._settings = found.settings
        if self._keep:
            self._kept.append(images)
        return self.posterior()

    def posterior(self) -> Posterior:
        """What is known so far.

        Raises:
            ValueError: nothing is yet.
        """
        if not self._chi:
            raise ValueError("no sample is finished yet; go through the iterator first")
        return Posterior(
            self._moments,
            torch.stack(self._chi),
            tuple(self._status),
            torch.cat(self._kept) if self._keep else None,
            {**self._settings, "samples": len(self._chi), "seed": self._seed},
            time.perf_counter() - self._start,
        )

    def _run(self, first: int, count: int) -> Run[Denoiser, HasImage]:
        problem, x0 = self._problem, self._x0
        problems = problem.y.shape[0]
        if count > 1:
            problem = replace(problem, y=problem.y.expand(count, *problem.y.shape[1:]))
            x0 = None if x0 is None else x0.expand(count, *x0.shape[1:])
        generators = [
            chain_generator(self._seed, first + k, b, problem.y.device) for k in range(count) for b in range(problems)
        ]
        return replace(self._algorithm, generator=generators).iterate(problem, self._prior, x0)


def chain_generator(seed: int, sample: int, problem: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """The source of noise of one sample of one problem: the same whatever is sampled beside it."""
    mixed = hashlib.blake2b(f"{seed}/{sample}/{problem}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(mixed, "big") >> 1)


def iterate_posterior(
    algorithm: Sampler[Any],
    problem: Problem,
    prior: Denoiser,
    x0: Tensor | None = None,
    *,
    samples: int = 8,
    batch: int = 8,
    seed: int = 0,
    keep: bool = False,
) -> PosteriorRun:
    """An iterator of what is known after each batch of samples, for progress and early stop.

    Args:
        algorithm: how each sample is made; its own generator is not used.
        problem: what was measured, of B problems.
        prior: the denoiser.
        x0: as in `Algorithm.iterate`.
        samples: K, of each problem. Sample k of problem b is the same whatever K and the batch are.
        batch: samples that are made side by side where there is one problem; several problems are a batch already.
        seed: of all noise.
        keep: keep all samples; else only their mean and spread are, and memory does not grow with K.

    Raises:
        TypeError: the algorithm is not a sampler; and as `Algorithm.iterate`.
        ValueError: a count < 1.
    """
    if not isinstance(algorithm, Sampler):
        raise TypeError(
            f"algorithm must be a sampler such as DDS(), got {type(algorithm).__name__}, whose result is one image"
        )
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, got {type(problem).__name__}; use Problem(operator, y)")
    require_count("samples", samples)
    require_count("batch", batch)
    require_count("seed", seed, least=0)
    return PosteriorRun(algorithm, problem, prior, x0, samples, batch, seed, keep)


def posterior(
    algorithm: Sampler[Any],
    problem: Problem,
    prior: Denoiser,
    x0: Tensor | None = None,
    *,
    samples: int = 8,
    batch: int = 8,
    seed: int = 0,
    keep: bool = False,
    throw: bool = True,
) -> Posterior:
    """Mean and spread of samples of the posterior.

    Args:
        algorithm, problem, prior, x0, samples, batch, seed, keep: as in `iterate_posterior`.
        throw: raise if NaN or Inf appear in a sample.

    Raises:
        TypeError, ValueError: as `iterate_posterior`.
        RuntimeError: NaN or Inf appeared.
    """
    run = iterate_posterior(algorithm, problem, prior, x0, samples=samples, batch=batch, seed=seed, keep=keep)
    for _ in run:
        continue
    found = run.posterior()
    if throw and any(Status.NOT_FINITE in one for one in found.status):
        raise RuntimeError(
            f"{type(algorithm).__name__} met NaN or Inf; use a smaller weight, check the scale of y against what the "
            "prior was trained on, or look at it with throw=False"
        )
    return found


def sample_prior(algorithm: Sampler[Any], prior: Denoiser, like: Tensor) -> Tensor:
    """Draws from the prior itself: the algorithm with nothing measured.

    They spread as the algorithm's noise makes them. Those of DDS(eta=None), DiffPIR(zeta=None), DPS and
    PredictorCorrector tend to the prior's spread as steps grow (ancestral steps: 0.93, 0.96 and 0.97 of it at 50, 100
    and 200). So do deterministic ones, eta = 0; a share eta of fresh noise gives less, 0.87 of it at 0.85 and 0.7 at 1.

    Args:
        algorithm: its generator is the source of noise.
        prior: the denoiser.
        like: (B, *signal), for shape, dtype and device.

    Returns:
        (B, *signal).
    """
    nothing = Problem(Unmeasured(tuple(like.shape[1:])), torch.zeros_like(like))
    return algorithm.solve(nothing, prior).x
