"""torchsde's interface over our solvers, against torchsde itself on the same Brownian motion."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from invreg.solvers.compat import torchsde as ours

theirs = pytest.importorskip("torchsde")

TS = [0.0, 0.13, 0.5, 1.0]
CASES = [
    ("diagonal", "ito", "euler"),
    ("diagonal", "ito", "milstein"),
    ("diagonal", "ito", "srk"),
    ("scalar", "ito", "srk"),
    ("scalar", "ito", "milstein"),
    ("additive", "ito", "srk"),
    ("additive", "ito", "euler"),
    ("general", "ito", "euler"),
    ("general", "stratonovich", "heun"),
    ("general", "stratonovich", "midpoint"),
    ("general", "stratonovich", "reversible_heun"),
    ("diagonal", "stratonovich", "euler_heun"),
    ("diagonal", "stratonovich", "reversible_heun"),
    ("diagonal", "stratonovich", "milstein"),
]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


class Problem(nn.Module):
    """A small SDE with every kind of noise; entry i of diagonal and scalar diffusions depends on entry i of y only."""

    def __init__(self, noise_type: str, sde_type: str) -> None:
        super().__init__()
        self.noise_type, self.sde_type = noise_type, sde_type
        self.inner = nn.Linear(3, 3)
        self.rates = nn.Parameter(torch.randn(3) * 0.3)
        self.columns = nn.Parameter(torch.randn(3, 2) * 0.3)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.inner(y)) * torch.cos(t)

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        return -y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        if self.noise_type == "diagonal":
            return torch.sigmoid(self.rates * y) * 0.3 + 0.1
        if self.noise_type == "scalar":
            return (torch.sigmoid(self.rates * y) * 0.3).unsqueeze(-1)
        if self.noise_type == "additive":
            return (self.columns * torch.sin(t + 1)).expand(len(y), 3, 2)
        return torch.sin(y).unsqueeze(-1) * self.columns


def motion(noise: str, size: int | None = None, area: bool = True) -> object:
    channels = size or {"diagonal": 3, "scalar": 1}.get(noise, 2)
    levy = "space-time" if area else "none"
    return theirs.BrownianInterval(0.0, 1.0, (4, channels), entropy=3, levy_area_approximation=levy)


def gradients(ys: Tensor, y0: Tensor, sde: nn.Module) -> Tensor:
    found = torch.autograd.grad(ys.square().sum(), [y0, *sde.parameters()], allow_unused=True, materialize_grads=True)
    return torch.cat([one.flatten() for one in found])


@pytest.mark.parametrize(("noise", "calculus", "method"), CASES)
def test_values_and_gradients_are_those_of_torchsde(noise: str, calculus: str, method: str) -> None:
    sde, start = Problem(noise, calculus), torch.randn(4, 3)
    found = []
    for package in (ours, theirs):
        y0 = start.clone().requires_grad_()
        ys = package.sdeint(sde, y0, TS, bm=motion(noise), method=method, dt=1 / 50)
        found.append((ys.detach(), gradients(ys, y0, sde)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        lean = ours.sdeint(sde, start, TS, bm=motion(noise), method=method, dt=1 / 50)
    torch.testing.assert_close(lean, found[0][0], rtol=0, atol=0)


def test_the_adjoint_of_reversible_heun_is_exact_even_between_steps() -> None:
    sde, start = Problem("general", "stratonovich"), torch.randn(4, 3)
    found = []
    for function in (ours.sdeint_adjoint, ours.sdeint):
        y0 = start.clone().requires_grad_()
        found.append(
            gradients(function(sde, y0, TS, bm=motion("general"), method="reversible_heun", dt=1 / 50), y0, sde)
        )
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("noise", "calculus", "method"), [CASES[2], CASES[8], CASES[3]])
def test_the_adjoint_of_other_methods_comes_near_as_steps_get_short(noise: str, calculus: str, method: str) -> None:
    sde, start = Problem(noise, calculus), torch.randn(4, 3)
    errors = []
    for n in (20, 320):
        found = []
        for function in (ours.sdeint_adjoint, ours.sdeint):
            y0 = start.clone().requires_grad_()
            bm = ours.BrownianInterval(0.0, 1.0, motion(noise).shape, entropy=1, levy_area_approximation="space-time")
            found.append(gradients(function(sde, y0, [0.0, 0.5, 1.0], bm=bm, method=method, dt=1 / n), y0, sde))
        errors.append(float((found[0] - found[1]).abs().max() / found[1].abs().max()))
    assert errors[1] < 0.02
    assert errors[1] < 0.6 * errors[0]


def test_log_ratios_are_those_of_torchsde() -> None:
    for noise, size in (("diagonal", 4), ("general", 2)):
        sde, y0 = Problem(noise, "ito"), torch.randn(4, 3)
        pairs = [
            package.sdeint(sde, y0, TS, bm=motion(noise, size), method="euler", dt=1 / 50, logqp=True)
            for package in (ours, theirs)
        ]
        for one, other in zip(*pairs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
        assert pairs[0][1].shape == (3, 4)


def test_the_extra_state_of_reversible_heun_starts_another_solve() -> None:
    sde, y0 = Problem("diagonal", "stratonovich"), torch.randn(4, 3)
    found = []
    for package in (ours, theirs):
        options = {"method": "reversible_heun", "dt": 1 / 50}
        ys, state = package.sdeint(sde, y0, TS, bm=motion("diagonal"), extra=True, **options)
        later = theirs.BrownianInterval(1.0, 2.0, (4, 3), entropy=4)
        found.append(
            [ys, *state, package.sdeint(sde, ys[-1], [1.0, 2.0], bm=later, extra_solver_state=state, **options)]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    assert ours.sdeint(sde, y0, TS, method="midpoint", dt=0.1, extra=True)[1] == ()


def test_other_names_and_other_ways_to_give_the_functions_make_no_difference() -> None:
    y0 = torch.randn(4, 3)
    plain = Problem("general", "ito")

    class Renamed(nn.Module):
        noise_type, sde_type = "general", "ito"

        def drift(self, t: Tensor, y: Tensor) -> Tensor:
            return plain.f(t, y)

        def spread(self, t: Tensor, y: Tensor) -> Tensor:
            return plain.g(t, y)

    class Both(nn.Module):
        noise_type, sde_type = "general", "ito"
        calls = 0

        def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            self.calls += 1
            return plain.f(t, y), plain.g(t, y)

    class Products(nn.Module):
        noise_type, sde_type = "general", "ito"

        def f_and_g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return plain.f(t, y), (plain.g(t, y) @ v.unsqueeze(-1)).squeeze(-1)

    def ends(sde: nn.Module, **options: object) -> Tensor:
        return ours.sdeint(sde, y0, [0.0, 1.0], bm=motion("general"), method="euler", dt=0.1, **options)[-1]

    wanted = ends(plain)
    both = Both()
    for found in (ends(Renamed(), names={"drift": "drift", "diffusion": "spread"}), ends(both), ends(Products())):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert both.calls <= 10 + 6  # one for each step, and some to look at the shapes


def test_adaptive_steps_come_near_the_solution() -> None:
    class Geometric(nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return 1.01 * y

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return 0.87 * y

    y0 = torch.full((200, 1), 0.5)
    bm = ours.BrownianInterval(0.0, 1.0, (200, 1), entropy=2, levy_area_approximation="space-time")
    ys = ours.sdeint(Geometric(), y0, [0.0, 1.0], bm=bm, method="srk", adaptive=True, dt=0.1, rtol=1e-3, atol=1e-3)
    exact = 0.5 * torch.exp(0.63155 + 0.87 * bm(0.0, 1.0))
    assert float((ys[-1] - exact).abs().mean()) < 0.02
    with pytest.raises(ValueError, match="no error estimate"):
        ours.sdeint(Geometric(), y0, [0.0, 1.0], method="euler", adaptive=True)


def test_brownian_motions_keep_what_is_given() -> None:
    w, area = torch.randn(3, 2), torch.randn(3, 2)
    bm = ours.BrownianInterval(0.0, 2.0, W=w, H=area, levy_area_approximation="space-time")
    increment, integral = bm(0.0, 2.0, return_U=True)
    torch.testing.assert_close(increment, w)
    torch.testing.assert_close(integral, 2.0 * (w / 2 + area))
    first, then = bm(0.0, 0.7, return_U=True), bm(0.7, 2.0, return_U=True)
    torch.testing.assert_close(first[0] + then[0], w)
    torch.testing.assert_close(first[1] + then[1] + 1.3 * first[0], integral)
    tree = ours.BrownianTree(0.0, torch.zeros(3, 2), w1=w, entropy=5)
    torch.testing.assert_close(tree(1.0), w)
    assert torch.equal(tree(0.3), ours.BrownianTree(0.0, torch.zeros(3, 2), w1=w, entropy=5)(0.3))
    path = ours.BrownianPath(0.0, torch.ones(3, 2))
    torch.testing.assert_close(path(0.0), torch.ones(3, 2))
    reverse = ours.ReverseBrownian(bm)
    torch.testing.assert_close(reverse(-2.0, -1.0), bm(1.0, 2.0))
    like = ours.brownian_interval_like(w.float(), t1=3.0, entropy=1)
    assert like.shape == (3, 2)
    assert like(0.0, 3.0).dtype == torch.float32
    assert math.isclose(float(ours.BrownianInterval(0.0, 4.0, (20000,), entropy=0)(0.0, 4.0).std()), 2.0, rel_tol=0.03)


def test_torchsde_takes_our_motions() -> None:
    sde, y0 = Problem("diagonal", "ito"), torch.randn(4, 3)
    bm = ours.BrownianInterval(0.0, 1.0, (4, 3), entropy=7, levy_area_approximation="space-time")
    one = theirs.sdeint(sde, y0, [0.0, 1.0], bm=bm, method="srk", dt=0.05)
    torch.testing.assert_close(
        ours.sdeint(sde, y0, [0.0, 1.0], bm=bm, method="srk", dt=0.05), one, rtol=1e-11, atol=1e-12
    )


def test_bad_input_is_refused_with_a_reason() -> None:
    sde, y0 = Problem("diagonal", "ito"), torch.randn(4, 3)

    class Bare(nn.Module):
        pass

    class Half(nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return y

    def refused(match: str, *args: object, **options: object) -> None:
        with pytest.raises((ValueError, AttributeError), match=match):
            ours.sdeint(*args, **options)

    refused("noise_type", Bare(), y0, TS)
    refused("at least one of `g`", Half(), y0, TS)
    refused("2-dimensional", sde, y0[0], TS)
    refused("strictly increasing", sde, y0, [0.0, 0.0, 1.0])
    refused("must not require gradient", sde, y0, torch.tensor(TS, requires_grad=True))
    refused("list/tuple of floats", sde, y0, "01")
    refused("did you mean 'milstein'", sde, y0, TS, method="milsten")
    refused("Noise sizes", sde, y0, TS, bm=motion("general"))
    refused("options must be", sde, y0, TS, method="milstein", options={"gradfree": True})
    refused("for diagonal noise of Ito", sde, y0, TS, method="heun")
    refused("extra_solver_state", sde, y0, TS, method="euler", extra_solver_state=(y0,))
    refused("space-time", sde, y0, TS, bm=motion("diagonal", area=False), method="srk", dt=0.1)
    refused("drift, diffusion and prior drift", Half(), y0, TS, logqp=True, names={"diffusion": "f"})
    with pytest.raises(ValueError, match="nn.Module"):
        ours.sdeint_adjoint(object(), y0, TS)
    with pytest.raises(ValueError, match="noise type"):
        ours.SDEIto("round")
    with pytest.raises(ValueError, match="levy_area_approximation"):
        ours.BrownianInterval(size=(2,), levy_area_approximation="foster")
    assert isinstance(ours.SDEStratonovich("diagonal"), ours.BaseSDE)


def test_an_interval_that_nobody_asked_is_cut_as_the_steps_are() -> None:
    sde, y0 = Problem("diagonal", "ito"), torch.randn(4, 3)
    bm = ours.BrownianInterval(0.0, 1.0, (4, 3), entropy=1)
    ys = ours.sdeint(sde, y0, [0.0, 1.0], bm=bm, method="euler", dt=1 / 64)
    same = ours.BrownianInterval(0.0, 1.0, (4, 3), entropy=1, dt=1 / 64)
    assert torch.equal(ours.sdeint(sde, y0, [0.0, 1.0], bm=same, method="euler", dt=1 / 64), ys)
    asked = ours.BrownianInterval(0.0, 1.0, (4, 3), entropy=1)
    before = asked(0.0, 0.3)
    ours.sdeint(sde, y0, [0.0, 1.0], bm=asked, method="euler", dt=1 / 64)
    assert torch.equal(asked(0.0, 0.3), before)
