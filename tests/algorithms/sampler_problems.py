"""What the tests of samplers share: a tiny network, small operators, problems whose posterior is known, distances."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from invreg.algorithms import DiffusionSampler
from invreg.interfaces import Denoiser, LinearOperator
from invreg.models.denoiser import NetworkDenoiser
from invreg.models.noise_path import DiscreteVariancePreserving, linear_alphas
from invreg.models.oracles import GaussianOracle, MixtureOracle
from invreg.noise import Gaussian
from invreg.operators import MatrixSensing, Sense
from invreg.problem import Problem
from invreg.random import Generator, draw
from invreg.sample_distance import sampling_floor, sliced_wasserstein

F64, C128 = torch.float64, torch.complex128
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
KEPT = (1 - BETAS).cumprod(0)  # the abar of the publications


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), seeded(seed))


def steps_of(count: int) -> list[int]:
    """The time steps of a chain, from the noisiest on."""
    return list(range(0, 1000, 1000 // count))[::-1]


class TinyNetwork(nn.Module):
    """Two convolutions that are told the time: what is tested is what happens around it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, 6, 3, padding=1), nn.Conv2d(6, channels, 3, padding=1)
        for i, one in enumerate(self.parameters()):
            one.data = 0.3 * noise(*one.shape, seed=i)
        self.requires_grad_(False)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        out: Tensor = self.last((self.first(x) + time.reshape(-1, 1, 1, 1) / 1000).tanh())
        return out


def network_denoiser(layout: str = "channels") -> NetworkDenoiser:
    """The tiny network as trained on 1000 steps to predict noise."""
    channels = 2 if layout == "real2" else 1
    return NetworkDenoiser(TinyNetwork(channels).double(), DiscreteVariancePreserving(linear_alphas()), layout=layout)


def matrix(rows: int, shape: tuple[int, ...], seed: int = 1, dtype: torch.dtype = F64) -> MatrixSensing:
    n = math.prod(shape)
    return MatrixSensing(noise(rows, n, seed=seed, dtype=dtype) / math.sqrt(n), shape)


def dense(operator: LinearOperator, like: Tensor) -> Tensor:
    """The matrix (m, n) of an operator on signals as `like`, (1, *signal)."""
    n = like[0].numel()
    return operator(torch.eye(n, dtype=like.dtype).reshape(n, *like.shape[1:])).flatten(1).mT


def measured(operator: LinearOperator, x: Tensor, sigma: float, seed: int = 9) -> Problem:
    noisy = Gaussian(sigma).sample(operator(x), seeded(seed))
    mask = operator.sampled()
    return Problem(operator, noisy if mask is None else torch.where(mask, noisy, 0), Gaussian(sigma))


class Recorded(Denoiser):
    """Another denoiser that counts its calls and keeps the noise levels."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.levels = inner, list[float]()

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.levels.append(float(sigma))
        return self.inner(x, sigma)


class Counted(LinearOperator):
    """Another operator that counts what is asked of it, and offers no closed form."""

    def __init__(self, inner: LinearOperator) -> None:
        super().__init__(inner.signal_shape, inner.measurement_shape)
        self.inner = inner
        self.forwards = self.adjoints = self.normals = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.inner(x)

    def adjoint(self, y: Tensor) -> Tensor:
        self.adjoints += 1
        return self.inner.adjoint(y)

    def normal(self, x: Tensor) -> Tensor:
        self.normals += 1
        return self.inner.normal(x)

    def calls(self) -> tuple[int, int, int]:
        """(A, A^H, A^H A) since the last time."""
        found = self.forwards, self.adjoints, self.normals
        self.forwards = self.adjoints = self.normals = 0
        return found


Oracle = GaussianOracle | MixtureOracle


@dataclass(frozen=True)
class Toy:
    """A problem whose posterior is known.

    Args:
        prior: exact denoiser.
        problem: one measurement.
        exact: denoiser of the posterior, which can be sampled.
    """

    prior: Oracle
    problem: Problem
    exact: Oracle

    def repeated(self, count: int) -> Problem:
        y = self.problem.y
        return Problem(self.problem.operator, y.expand(count, *y.shape[1:]), self.problem.noise)


def toy(prior: Oracle, problem: Problem) -> Toy:
    return Toy(prior, problem, prior.posterior(problem))


@cache
def gauss8() -> Toy:
    """Eight correlated entries, four measurements of singular values 1 to 0.1."""
    lag = (torch.arange(8)[:, None] - torch.arange(8)).abs()
    prior = GaussianOracle(torch.full((8,), 0.2, dtype=F64), 0.25 * torch.tensor(0.9, dtype=F64) ** lag)
    U, V = torch.linalg.qr(noise(4, 4, seed=2))[0], torch.linalg.qr(noise(8, 4, seed=25))[0]
    A = MatrixSensing(U @ torch.diag(torch.tensor([1.0, 0.7, 0.4, 0.1], dtype=F64)) @ V.mT)
    return toy(prior, measured(A, prior.sample(1, seeded(4)), 0.1))


@cache
def gmm2() -> Toy:
    """Four modes in the plane of which the first coordinate is seen; three of them explain it."""
    means = torch.tensor([[-0.463, 0.9], [-0.013, -1.0], [-0.35, 0.0], [0.94, 0.4]], dtype=F64)
    prior = MixtureOracle(torch.ones(4, dtype=F64), means, 0.05 * torch.eye(2, dtype=F64).expand(4, 2, 2))
    A = MatrixSensing(torch.tensor([[1.0, 0.0]], dtype=F64))
    return toy(prior, Problem(A, torch.tensor([[-0.35]], dtype=F64), Gaussian(0.3)))


@cache
def gmm16() -> Toy:
    """Eight modes in sixteen dimensions, three measurements."""
    root = 0.1 * noise(8, 16, 16, seed=5)
    prior = MixtureOracle(torch.ones(8, dtype=F64), 0.7 * noise(8, 16, seed=6), root @ root.mT)
    A = MatrixSensing(torch.linalg.qr(noise(16, 3, seed=7))[0].mT.contiguous())
    return toy(prior, measured(A, prior.sample(1, seeded(29)), 0.2))


@cache
def mri16() -> Toy:
    """A smooth complex field of 16 x 16 under four coils, of which 5 lines of 16 are measured."""
    k = torch.fft.fftfreq(16, dtype=F64) * 16
    spectrum = (1 + (k[:, None] ** 2 + k**2) / 4) ** -1.5
    spectrum = 0.5 * spectrum / spectrum.mean()
    basis = torch.fft.ifft2(torch.eye(256, dtype=C128).reshape(256, 16, 16), norm="ortho").reshape(256, 256).mT
    covariance = basis @ torch.diag(spectrum.flatten()).to(C128) @ basis.mH
    prior = GaussianOracle(torch.zeros(16, 16, dtype=C128), (covariance + covariance.mH) / 2)
    lines = torch.zeros(16, 1, dtype=torch.bool)
    lines[[1, 5, 7, 8, 13]] = True
    grid = torch.linspace(-1, 1, 16, dtype=F64)
    centres = ((-1, -1), (-1, 1), (1, -1), (1, 1))
    coils = torch.stack([torch.exp(-((grid[:, None] - a) ** 2 + (grid - b) ** 2) / 3) for a, b in centres])
    coils = coils * torch.exp(1j * noise(4, 1, 1, seed=8))
    coils = coils / coils.abs().square().sum(0).sqrt()
    return toy(prior, measured(Sense(coils[None], lines), prior.sample(1, seeded(12)), 0.05))


TOYS: dict[str, Callable[[], Toy]] = {"gauss8": gauss8, "gmm2": gmm2, "gmm16": gmm16, "mri16": mri16}


@dataclass(frozen=True)
class Quality:
    """How far samples are from the posterior.

    Args:
        distance: sliced Wasserstein distance to exact samples over that between two exact sets.
        bias: of the mean, in standard deviations of the posterior, root mean square.
        spread: standard deviation over the posterior's.
    """

    distance: float
    bias: float
    spread: float


def flat(x: Tensor) -> Tensor:
    return (torch.view_as_real(x) if x.is_complex() else x).flatten(1)


def quality(x: Tensor, exact: Oracle, seed: int = 20) -> Quality:
    count = len(x)
    reference = exact.sample(4 * count, seeded(seed))
    floor = sampling_floor(exact.sample, count, repeats=4, directions=64, generator=seeded(seed + 1)).mean
    distance = float(sliced_wasserstein(x, reference[:count], 64, generator=seeded(seed + 2)))
    total = exact.covariance.diagonal().real.sum()
    bias = (x.mean(0) - exact.mean).abs().square().sum()
    return Quality(distance / floor, float((bias / total).sqrt()), float((flat(x).var(0).sum() / total).sqrt()))


def chains(sampler: DiffusionSampler, toy: Toy, count: int) -> Tensor:
    """`count` samples of a toy's posterior."""
    return sampler.solve(toy.repeated(count), toy.prior).x


def generators(count: int, first: int = 100) -> Generator:
    return [seeded(first + i) for i in range(count)]
