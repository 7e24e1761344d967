"""Whatever a network was trained to predict, the denoiser made of it gives E[x0 | x]: tried on exact networks."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invreg.interfaces import Denoiser
from invreg.models.denoiser import LAYOUTS, NetworkDenoiser, Prediction
from invreg.models.noise_path import (
    EDM,
    DiscreteVariancePreserving,
    NoisePath,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    linear_alphas,
)
from invreg.models.oracles import MixtureOracle
from invreg.models.pretrained import from_pretrained, save_pretrained
from invreg.models.unet import UNet
from invreg.random import draw
from invreg.testing import relative_gap

F64, C128 = torch.float64, torch.complex128
ALPHAS = linear_alphas()
TABLE = np.log(np.sqrt((1 - np.array(ALPHAS)) / np.array(ALPHAS)))


def sigma_of(path: NoisePath, time: Tensor) -> Tensor:
    """The noise level that a network makes of what it is told, written without the path's code."""
    match path:
        case EDM():
            return torch.exp(4 * time)
        case VarianceExploding():
            return time.exp() if path.logarithm else time
        case VariancePreserving():
            t = time / 999
            return torch.expm1(0.1 * t + 19.9 * t**2 / 2).sqrt()
        case DiscreteVariancePreserving():
            return torch.from_numpy(np.exp(np.interp(time.numpy(), np.arange(1000), TABLE)))
        case RectifiedFlow():
            t = time / path.multiplier
            return (1 - t) / t if path.reverse else t / (1 - t)
    raise AssertionError(path)


class ExactNetwork(nn.Module):
    """What a perfectly trained network gives: an oracle's denoised image, turned into the prediction."""

    def __init__(self, oracle: Denoiser, path: NoisePath, prediction: str, two_channels: bool = False) -> None:
        super().__init__()
        self.oracle, self.path, self.prediction, self.two_channels = oracle, path, prediction, two_channels
        self.times: list[float] = []

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.times += time.tolist()
        sigma = sigma_of(self.path, time)
        s = sigma.reshape(-1, 1, 1, 1)
        scale = {EDM: lambda: (s**2 + 0.49) ** -0.5, VarianceExploding: lambda: torch.ones_like(s)}.get(
            type(self.path), lambda: 1 / (1 + s) if isinstance(self.path, RectifiedFlow) else (1 + s**2) ** -0.5
        )()
        noisy = x / scale
        if self.two_channels:
            found = torch.view_as_real(self.oracle(torch.complex(noisy[:, 0], noisy[:, 1]), sigma)).movedim(-1, 1)
        else:
            found = self.oracle(noisy, sigma)
        n = (noisy - found) / s
        return {
            "noise": lambda: n,
            "clean": lambda: found,
            "v": lambda: scale * n - scale * s * found,
            "score": lambda: -n / (scale * s),
            "velocity": lambda: (found - n) if getattr(self.path, "reverse", False) else (n - found),
            "edm": lambda: (found - 0.49 / (s**2 + 0.49) * noisy) / (0.7 * s * (s**2 + 0.49) ** -0.5),
        }[self.prediction]()


VARIANCE_PRESERVING = [VariancePreserving(), DiscreteVariancePreserving(ALPHAS)]
WAYS: list[tuple[NoisePath, str]] = [
    *[(path, kind) for path in VARIANCE_PRESERVING for kind in ("noise", "clean", "v", "score")],
    *[(VarianceExploding(logarithm=log), kind) for log in (False, True) for kind in ("noise", "clean", "score")],
    *[(RectifiedFlow(multiplier=1000, reverse=reverse), "velocity") for reverse in (False, True)],
    (EDM(0.7), "edm"),
]


def ids(value: Any) -> str:
    return str(value)


def oracle(shape: tuple[int, ...], dtype: torch.dtype = F64) -> MixtureOracle:
    d = math.prod(shape)
    generator = torch.Generator().manual_seed(0)
    roots = draw(torch.zeros(3, d, d, dtype=dtype), generator) / d
    means = draw(torch.zeros(3, *shape, dtype=dtype), generator)
    return MixtureOracle(torch.tensor([0.2, 0.3, 0.5], dtype=F64), means, roots @ roots.mH)


def case(layout: str) -> tuple[Denoiser, Denoiser, Tensor]:
    """The network's oracle, the oracle of images, and images."""
    generator = torch.Generator().manual_seed(1)
    if layout == "native":
        exact = oracle((2, 2, 3))
        return exact, exact, draw(torch.zeros(4, 2, 2, 3, dtype=F64), generator)
    if layout == "real2":
        exact = oracle((2, 3), C128)
        return exact, exact, draw(torch.zeros(4, 2, 3, dtype=C128), generator)
    plain, inner = oracle((2, 3)), oracle((1, 2, 3))
    if layout == "channels":
        return inner, plain, draw(torch.zeros(4, 2, 3, dtype=F64), generator)
    return inner, Parts(plain), draw(torch.zeros(4, 2, 3, dtype=C128), generator)


class Parts(Denoiser):
    """Real and imaginary part on their own."""

    def __init__(self, plain: Denoiser) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return torch.complex(self.plain(x.real, sigma), self.plain(x.imag, sigma))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("path", "prediction"), WAYS, ids=ids)
def test_every_parameterisation_gives_the_denoised_image(path: NoisePath, prediction: str, layout: str) -> None:
    inner, wanted, x = case(layout)
    made = NetworkDenoiser(ExactNetwork(inner, path, prediction, layout == "real2"), path, prediction, layout)
    for sigma in (0.02, 0.3, torch.tensor(2.0), torch.tensor([0.05, 0.5, 1.0, 30.0], dtype=F64)):
        assert relative_gap(made(x, sigma), wanted(x, sigma)) < 1e-6
    assert made.sigma_range == path.sigma_range


@pytest.mark.parametrize(("path", "prediction"), WAYS, ids=ids)
def test_without_noise_the_image_stays_and_the_network_is_told_the_least_level(
    path: NoisePath, prediction: str
) -> None:
    inner, _, x = case("native")
    network = ExactNetwork(inner, path, prediction)
    found = NetworkDenoiser(network, path, prediction)(x, 0.0)
    least = torch.tensor(path.sigma_range[:1], dtype=F64)
    assert network.times == pytest.approx(path.time(least).tolist() * 4)
    assert bool(found.isfinite().all())
    if prediction != "clean":
        assert torch.allclose(found, x, atol=1e-12)


def test_beyond_the_largest_level_the_network_is_told_that() -> None:
    network = ExactNetwork(case("native")[0], EDM(0.7), "edm")
    NetworkDenoiser(network, EDM(0.7), "edm")(case("native")[2], 1e6)
    assert network.times == pytest.approx([math.log(80.0) / 4] * 4)


class Recorder(nn.Module):
    """Gives back what it saw, or what it is told to give."""

    def __init__(self, output: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.output = output
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[Any] = []

    def forward(self, x: Tensor, time: Tensor, **conditions: Tensor) -> Any:
        self.seen.append((x, time, conditions))
        return self.output(x)


def test_a_learned_variance_is_left_aside_and_objects_with_sample_will_do() -> None:
    x = torch.ones(2, 3, 4, 4)
    network = Recorder(lambda x: SimpleNamespace(sample=torch.cat([0.5 * x, torch.full_like(x, 9.0)], 1)))
    found = NetworkDenoiser(network, VarianceExploding(), "noise")(x, 0.2)
    assert torch.allclose(found, x - 0.2 * 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_half_precision_works_inside_a_single_precision_denoiser(dtype: torch.dtype) -> None:
    network = Recorder()
    made = NetworkDenoiser(network.to(dtype), DiscreteVariancePreserving(ALPHAS))
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = made(x, 1.0)
    seen, time, _ = network.seen[0]
    assert seen.dtype == dtype
    assert time.dtype == torch.float32
    assert found.dtype == torch.float32
    assert torch.allclose(found, x - x / math.sqrt(2), atol=0.03)


@pytest.mark.parametrize(("path", "prediction"), WAYS, ids=ids)
def test_images_of_half_precision_are_denoised_beyond_the_root_of_its_largest_number(
    path: NoisePath, prediction: str
) -> None:
    """At sigma = 300, sigma^2 and 1 + sigma^2 have no place in float16."""
    exact = oracle((1, 2, 3))
    made = NetworkDenoiser(ExactNetwork(exact, path, prediction), path, prediction)
    noise = torch.randn(4, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    x = (exact.sample(4, torch.Generator().manual_seed(1)) + 300 * noise).half()
    found, wanted = made(x, 300.0), made(x.float(), 300.0)
    assert found.dtype == torch.float16
    assert relative_gap(found.float(), wanted) < 1e-3
    assert torch.equal(made(x, torch.tensor(300.0, dtype=torch.float16)), found)


def test_conditions_reach_the_network_as_many_as_there_are_images() -> None:
    network = Recorder()
    labels = torch.tensor([3, 4])
    made = NetworkDenoiser(network, VarianceExploding(), conditions={"class_labels": labels})
    made(torch.ones(2, 1, 4, 4), 1.0)
    assert network.seen[-1][2]["class_labels"].tolist() == [3, 4]
    parts = NetworkDenoiser(network, VarianceExploding(), layout="parts", conditions={"class_labels": labels})
    parts(torch.ones(2, 4, 4, dtype=torch.complex64), 1.0)
    assert network.seen[-1][2]["class_labels"].tolist() == [3, 4, 3, 4]
    one = NetworkDenoiser(network, VarianceExploding(), layout="parts", conditions={"text": torch.ones(1, 5, 6)})
    one(torch.ones(3, 4, 4, dtype=torch.complex64), 1.0)
    assert network.seen[-1][2]["text"].shape == (6, 5, 6)
    with pytest.raises(ValueError, match=r"conditions\['class_labels'\] must be \(1, ...\) or \(3, ...\)"):
        made(torch.ones(3, 1, 4, 4), 1.0)
    with pytest.raises(TypeError, match="with conditions cannot be saved"):
        _ = made.config


def test_conjugated_images_are_denoised_as_their_values() -> None:
    inner, wanted, x = case("real2")
    path = VariancePreserving()
    made = NetworkDenoiser(ExactNetwork(inner, path, "noise", True), path, "noise", "real2")
    assert relative_gap(made(x.conj(), 0.5), wanted(x.conj().resolve_conj(), 0.5)) < 1e-9


def test_gradients_pass_through_to_the_image() -> None:
    inner, wanted, x = case("native")
    made = NetworkDenoiser(ExactNetwork(inner, EDM(0.7), "edm"), EDM(0.7), "edm")
    got = torch.autograd.functional.jacobian(lambda x: made(x, 0.5).square().sum(), x)
    assert relative_gap(got, torch.autograd.functional.jacobian(lambda x: wanted(x, 0.5).square().sum(), x)) < 1e-9


@pytest.mark.parametrize("path", [EDM(0.5), DiscreteVariancePreserving(ALPHAS)], ids=ids)
def test_a_folder_holds_network_path_and_layout(path: NoisePath, tmp_path: Path) -> None:
    classes: dict[str, type[Any]] = {
        "network_denoiser": NetworkDenoiser,
        "unet": UNet,
        "edm": EDM,
        "discrete": DiscreteVariancePreserving,
    }
    torch.manual_seed(0)
    network = UNet(1, (4, 8), 1, 1, 8)
    nn.init.normal_(network.last.weight)
    made = NetworkDenoiser(network, path, "edm" if isinstance(path, EDM) else "v", "channels")
    save_pretrained(made, tmp_path / "m", classes)
    found = from_pretrained(tmp_path / "m", classes)
    assert isinstance(found, NetworkDenoiser)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found(x, 0.3), made(x, 0.3))
    assert (found.layout, found.prediction) == (made.layout, made.prediction)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"network": lambda x, t: x}, TypeError, "network must be a module, got function"),
        ({"path": "edm"}, TypeError, r"path must be a NoisePath such as EDM\(\), got str"),
        ({"prediction": "nois"}, ValueError, "unknown prediction 'nois'; did you mean 'noise'"),
        ({"layout": "reel2"}, ValueError, "unknown layout 'reel2'; did you mean 'real2'"),
        ({"prediction": "edm"}, ValueError, 'prediction "edm" and the path EDM go together'),
        ({"path": EDM()}, ValueError, 'prediction "edm" and the path EDM go together'),
        ({"path": RectifiedFlow()}, ValueError, 'prediction "velocity" and the path RectifiedFlow'),
        ({"prediction": "velocity"}, ValueError, 'prediction "velocity" and the path RectifiedFlow'),
        ({"prediction": Prediction.V}, ValueError, r'"v" needs a path with a\^2 \+ b\^2 = 1'),
        ({"conditions": {"class_labels": 3}}, TypeError, r"conditions\['class_labels'\] must be a tensor"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"network": Recorder(), "path": VarianceExploding(), **arguments}
    with pytest.raises(kind, match=message):
        NetworkDenoiser(**given)


@pytest.mark.parametrize(
    ("layout", "x", "kind", "message"),
    [
        ("native", torch.ones(2, 1, 4, 4, dtype=torch.complex64), TypeError, "use x.real, or a layout for complex"),
        ("real2", torch.ones(2, 4, 4), TypeError, r"use x.to\(torch.complex64\)"),
        ("native", torch.ones(2, 4, 4), ValueError, r"x must be \(B, C, y, x\)"),
        ("channels", torch.ones(2, 1, 4, 4), ValueError, r"x must be \(B, y, x\)"),
        ("parts", torch.ones(4, 4, dtype=torch.complex64), ValueError, r"x must be \(B, y, x\)"),
    ],
)
def test_images_that_do_not_fit_the_layout_are_refused(
    layout: str, x: Tensor, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        NetworkDenoiser(Recorder(), VarianceExploding(), layout=layout)(x, 1.0)


def test_levels_and_outputs_of_other_shapes_are_refused() -> None:
    x = torch.ones(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"sigma must be \(\) or \(2,\), got \(3,\)"):
        NetworkDenoiser(Recorder(), VarianceExploding())(x, torch.ones(3))
    with pytest.raises(ValueError, match="network must give"):
        NetworkDenoiser(Recorder(lambda x: x[..., :2]), VarianceExploding())(x, 1.0)
    with pytest.raises(ValueError, match="network must give"):
        NetworkDenoiser(Recorder(lambda x: x.mean()), VarianceExploding())(x, 1.0)
