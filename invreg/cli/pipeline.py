"""From flags to a prior, its weight, an algorithm and a running reconstruction."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, Protocol

import torch
from torch import Tensor

from invreg import config
from invreg._check import require_positive, unknown_name
from invreg.algorithms import filtered_backprojection
from invreg.algorithms.loop import Algorithm, describe
from invreg.algorithms.reconstruction import History, Reconstruction, Status
from invreg.cli.finished import Finished
from invreg.cli.noise_level import NoiseLevel, mean_level
from invreg.cli.weights import automatic_weight
from invreg.interfaces import LinearOperator, Proximal
from invreg.io.records import Image
from invreg.linalg import norm
from invreg.noise import Gaussian
from invreg.operators import FanBeam, ParallelBeam
from invreg.problem import Problem
from invreg.random import draw
from invreg.regularizers import Box, NonNegative, SumOfTerms, Tikhonov

# of the weight, in units of the image gradient that noise alone makes; see docs/cli.md
RELATIVE_WEIGHT = {"tv": 0.4, "tgv": 0.4, "wavelet": 0.7}
NOISELESS = 1e-3
"""What stands for the noise level, relative to an image of size 1, where none is known."""
DIRECT = {"adjoint": "A^H y: zero-filling of k-space, back-projection of a sinogram", "fbp": "filtered back-projection"}


class Scan(Protocol):
    """A file's measurement, one slice at a time, in scaled units."""

    kind: str
    """"mri", "ct" or "image"."""
    prior: str
    algorithm: str
    iterations: int
    unregularized: int
    """Iterations of conjugate gradients without a prior, which only their number keeps from fitting the noise."""
    positive: bool
    count: int
    dim: int
    channel_dim: int | None
    device: torch.device
    scale: float
    scale_rule: str

    def operator(self, index: int) -> LinearOperator: ...
    def y(self, index: int) -> Tensor: ...
    def sigma(self, index: int, level: NoiseLevel) -> float | Tensor | None: ...
    def start(self, index: int) -> Tensor | None: ...
    def covered(self, index: int, x: Tensor) -> Tensor: ...
    def image(self, x: Tensor) -> Image: ...
    def water(self) -> tuple[float, float] | None:
        """Scale and offset from attenuation over that of water to scaled images; None where they are none."""
        ...

    def about(self) -> dict[str, Any]: ...


class Wishes(Protocol):
    """The part of a request that decides how to reconstruct."""

    @property
    def prior(self) -> str | None: ...
    @property
    def algorithm(self) -> str | None: ...
    @property
    def weight(self) -> str | None: ...
    @property
    def rule(self) -> str | None: ...
    @property
    def iterations(self) -> int | None: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Plan:
    """How every slice will be reconstructed.

    Args:
        scan: the measurement.
        prior: what is believed, with its weight; None for nothing.
        algorithm: an algorithm, or the name of a direct method.
        level: the noise level in the units of the file.
        settings: plain words and numbers for the sidecar.
    """

    scan: Scan
    prior: Any
    algorithm: Algorithm[Any, Any] | str
    level: NoiseLevel
    settings: dict[str, Any]

    @property
    def iterations(self) -> int:
        """Iterations of a slice at most."""
        return 1 if isinstance(self.algorithm, str) else self.algorithm.iterations

    def lines(self) -> list[str]:
        """What the user should know before it starts."""
        return words_of(self.settings)

    def solve(
        self, index: int, stop: Event, tick: Callable[[int], None], before: Finished | None = None
    ) -> Finished | None:
        """A slice in scaled units, or None if `stop` was set before its first iteration.

        Args:
            index: of the slice.
            stop: looked at between iterations.
            tick: called with the number of iterations done.
            before: not used: one image has no part that could be kept.
        """
        if isinstance(self.algorithm, str):
            return Finished(self._directly(index))
        problem = problem_of(self.scan, index, self.level)
        run = self.algorithm.iterate(problem, self.prior, self._start(index))
        if stop.is_set():
            return None
        for _ in run:
            tick(run.iteration)
            if stop.is_set():
                break
        if not run.iteration:
            return None
        result = run.reconstruction()
        return Finished(replace(result, x=self.scan.covered(index, result.x)))

    def _start(self, index: int) -> Tensor | None:
        """A first image for algorithms with a prior; those without one regularize by their way from zero."""
        return None if self.prior is None else self.scan.start(index)

    def _directly(self, index: int) -> Reconstruction:
        operator, y = self.scan.operator(index), self.scan.y(index)
        if self.algorithm == "adjoint":
            x = operator.adjoint(y)
        else:
            assert isinstance(operator, ParallelBeam | FanBeam)  # make_plan saw to it
            x = filtered_backprojection(operator, y)
        none = torch.zeros(0, x.shape[0])
        history = History(none, torch.zeros(0, dtype=torch.int64), none, none)
        status, settings = (Status.CONVERGED,) * x.shape[0], {"algorithm": self.algorithm}
        return Reconstruction(x, history, status, settings, 0.0, Problem(operator, y).count)


SHOWN = (
    "operator",
    "coil maps",
    "field of view",
    "centre of rotation",
    "prior",
    "prior range",
    "weight",
    "weight source",
    "algorithm",
    "with",
    "with weight",
    "samples",
    "check",
    "noise level",
    "scale",
    "units",
)


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """What the user should know before it starts, in lines."""
    values = ((key, settings.get(key)) for key in SHOWN)
    return [
        f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}"
        for key, value in values
        if value is not None
    ]


def problem_of(scan: Scan, index: int, level: NoiseLevel) -> Problem:
    """A slice with the misfit |A x - y|^2 / 2 in scaled units; noise levels that vary become relative weights."""
    sigma = scan.sigma(index, level)
    noise = Gaussian(sigma / mean_level(sigma)) if isinstance(sigma, Tensor) else Gaussian()
    return Problem(scan.operator(index), scan.y(index), noise)


def make_plan(scan: Scan, level: NoiseLevel, wishes: Wishes) -> Plan:
    """Choose what the user left open.

    Raises:
        TypeError, ValueError: names or options that are unknown, or that do not go together; `--weight auto` without
            a noise level.
    """
    settings = scan.about() | {"scale": f"{scan.scale:.6g} ({scan.scale_rule})", "noise level": words_of_level(level)}
    name = config.parse(wishes.algorithm).name if wishes.algorithm else None
    if name in config.PRESETS:
        raise ValueError(
            f"{name} goes with a learned prior; give --prior {next(iter(config.SHIPPED))}, or see list priors"
        )
    if name in DIRECT:
        spec = config.parse(wishes.algorithm or "")
        if spec.options or wishes.prior not in (None, "none") or wishes.weight is not None:
            raise ValueError(f"{name} takes no options, prior or weight; leave them away")
        operator = scan.operator(reference_slice(scan))
        if name == "fbp" and not isinstance(operator, ParallelBeam | FanBeam):
            raise ValueError(f"fbp goes with parallel-beam and fan-beam, got {type(operator).__name__}; try adjoint")
        settings |= {"prior": "none", "algorithm": name}
        return Plan(scan, None, str(name), level, settings)
    text = wishes.prior or ("none" if name in ("cg", "sirt") and wishes.weight is None else scan.prior)
    usual = wishes.algorithm or _usual(text, scan)
    iterations = _usual_iterations(usual, text, scan) if wishes.iterations is None else wishes.iterations
    algorithm = config.algorithm(usual, iterations)
    settings |= {"algorithm": shown(algorithm)}
    if text == "none":
        if wishes.weight is not None:
            raise ValueError(f"weight needs a prior, got --weight {wishes.weight} with --prior none")
        return _checked(Plan(scan, None, algorithm, level, settings | {"prior": "none"}))
    prior, about = _weighted(text, scan, level, wishes, algorithm)
    return _checked(Plan(scan, prior, algorithm, level, settings | about))


def _checked(plan: Plan) -> Plan:
    """The plan, once prior and algorithm have been found to go together."""
    if isinstance(plan.algorithm, Algorithm):
        plan.algorithm.init(problem_of(plan.scan, reference_slice(plan.scan), plan.level), plan.prior, None)
    return plan


def reference_slice(scan: Scan) -> int:
    """The slice that stands for all where one decision is made for the file: the middle one."""
    return scan.count // 2


def _weighted(
    text: str, scan: Scan, level: NoiseLevel, wishes: Wishes, algorithm: Algorithm[Any, Any]
) -> tuple[Any, dict[str, Any]]:
    """The prior with its weight, and what was decided."""
    spec = config.parse(text)
    cls = _class(text)
    if "weight" not in config.keys(cls) or "weight" in spec.options:
        if wishes.weight is not None:
            reason = "has no weight" if "weight" not in config.keys(cls) else "has its weight already"
            raise ValueError(f"prior {text} {reason}; leave --weight {wishes.weight} away")
        return scan_prior(text, None, scan), {"prior": text, "weight": spec.options.get("weight")}
    index = reference_slice(scan)
    if wishes.weight not in (None, "auto"):
        value, why = parse_weight(str(wishes.weight)), "given"
    else:
        value, why = usual_weight(spec.name, scan, index, level, wishes.seed)
    if wishes.weight == "auto":
        value, why = automatic_weight(
            wishes.rule or "discrepancy",
            problem_of(scan, index, level),
            scan.sigma(index, level),
            level,
            lambda weight: scan_prior(text, weight, scan),
            algorithm,
            value,
            scan.start(index),
            wishes.seed,
        )
    return scan_prior(text, value, scan), {
        "prior": text,
        "weight": value,
        "weight source": f"{why}; beside |A x - y|^2 / 2 with y over the scale",
    }


def scan_prior(text: str, weight: float | None, scan: Scan) -> Any:
    """A prior for a scan's images, which are kept >= 0 where the physics says so.

    Raises:
        TypeError, ValueError: as `config.regularizer`.
    """
    shape = scan.operator(reference_slice(scan)).signal_shape
    made = config.regularizer(text, shape, weight, scan.dim, scan.channel_dim).to(scan.device)
    if not scan.positive or isinstance(made, NonNegative | Box | Tikhonov):
        return made
    return SumOfTerms(made, NonNegative())


def parse_weight(text: str) -> float:
    """A weight >= 0 from what the user wrote; ValueError if it is none."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"weight must be a number or auto, got {text!r}") from None
    require_positive("weight", value, zero_allowed=True)
    return value


def usual_weight(name: str, scan: Scan, index: int, level: NoiseLevel, seed: int) -> tuple[float, str]:
    """A weight in proportion to the image gradient that noise alone makes."""
    problem = problem_of(scan, index, level)
    sigma = scan.sigma(index, level)
    size = NOISELESS if sigma is None else mean_level(sigma) if isinstance(sigma, Tensor) else sigma
    factor = RELATIVE_WEIGHT.get(name, 1.0)
    source = "1e-3 for want of a noise level" if sigma is None else "the noise level"
    return factor * size * column_norm(problem, seed), f"{factor:g} x {source} x the columns of A"


def column_norm(problem: Problem, seed: int) -> float:
    """Root mean square norm of the columns of A / sigma, by one random image."""
    like = problem.backprojection()
    image = draw(torch.zeros_like(like), torch.Generator().manual_seed(seed))
    sigma = problem.noise.sigma if isinstance(problem.noise, Gaussian) else 1.0
    return float((norm(problem.operator(image) / sigma) / norm(image)).mean())


def _usual(prior: str, scan: Scan) -> str:
    """The algorithm that suits a prior."""
    if prior == "none":
        return "cg"
    made = scan_prior(prior, None if "weight" not in config.keys(_class(prior)) else 1.0, scan)
    return scan.algorithm if isinstance(made, Proximal) else "pdhg"


def _usual_iterations(algorithm: str, prior: str, scan: Scan) -> int | None:
    """How many suit; None leaves it to the algorithm's class."""
    if prior == "none" and config.parse(algorithm).name == "cg":
        return scan.unregularized
    return scan.iterations if algorithm == scan.algorithm else None


def _class(prior: str) -> type[Any]:
    name = config.parse(prior).name
    if name not in config.REGULARIZERS:
        raise ValueError(unknown_name("prior", name, {**config.REGULARIZERS, **config.PRIORS}))
    return config.REGULARIZERS[name]


def shown(algorithm: Algorithm[Any, Any]) -> str:
    """An algorithm and its options in one line."""
    values = describe(algorithm)
    name = values.pop("algorithm")
    return f"{name}({', '.join(f'{key}={value}' for key, value in values.items() if value is not None)})"


def words_of_level(level: NoiseLevel) -> str:
    """A noise level and its source."""
    number = level.number()
    return level.source if number is None else f"sigma = {number:.4g} ({level.source})"
