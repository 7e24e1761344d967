"""Gradients of stochastic equations: by differences on the same path, against each other, and as steps shrink."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invreg.solvers import (
    SOSRA,
    SOSRA2,
    SOSRI,
    SOSRI2,
    Adjoint,
    Checkpointed,
    Direct,
    Euler,
    EulerHeun,
    Fixed,
    Heun,
    Method,
    Milstein,
    Reversible,
    ReversibleHeun,
    ShARK,
    Solution,
    StochasticAdjoint,
    VirtualBrownianTree,
    sdeint,
)
from invreg.solvers.method import Calculus, Noise

EXACT: dict[str, Adjoint] = {"checkpointed": Checkpointed(), "replayed": Checkpointed(tape=0), "direct": Direct()}
Gradients = tuple[Tensor, ...]
CHANNELS = {"scalar": 1, "commutative": 2, "general": 2}


class Net(nn.Module):
    """tanh of a linear map of the state, times cos t."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(4)
        self.weight = nn.Parameter(0.7 * torch.randn(2, 2, dtype=torch.float64, generator=random))
        self.bias = nn.Parameter(0.3 * torch.randn(2, dtype=torch.float64, generator=random))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.weight + self.bias) * torch.cos(t)


@dataclass(eq=False)
class Neural:
    """A stochastic equation that depends on y0, an argument, a leaf behind a closed-over tensor and two modules."""

    noise: Noise
    y0: Tensor
    argument: Tensor
    leaf: Tensor
    drift_net: Net
    noise_net: Net

    @classmethod
    def of(cls, noise: Noise) -> "Neural":
        random = torch.Generator().manual_seed(1)
        y0 = torch.randn(3, 2, dtype=torch.float64, generator=random).requires_grad_()
        leaf = torch.randn(2, dtype=torch.float64, generator=random).requires_grad_()
        argument = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
        noise_net = Net()
        with torch.no_grad():
            noise_net.weight.mul_(0.5)
            if noise == "diagonal":  # strictly: entry i depends on entry i only
                noise_net.weight.mul_(torch.eye(2))
        return cls(noise, y0, argument, leaf, Net(), noise_net)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.y0, self.argument, self.leaf, *self.drift_net.parameters(), *self.noise_net.parameters()]

    def path(self, seed: int = 2, **options: Any) -> VirtualBrownianTree:
        channels = CHANNELS.get(self.noise, 2)
        return VirtualBrownianTree(0.0, 1.0, (3, channels), seed=seed, dtype=torch.float64, **options)

    def solve(self, **options: Any) -> Solution:
        closed = self.leaf.sin() * 0.5

        def drift(t: Tensor, y: Tensor, a: Tensor) -> Tensor:
            return a * self.drift_net(t, y) - 0.5 * y + closed

        def diffusion(t: Tensor, y: Tensor, a: Tensor) -> Tensor:
            if self.noise == "additive":
                return (0.3 + a * self.noise_net.bias * torch.cos(t) + 0.2 * closed).expand_as(y)
            if self.noise == "diagonal":
                eye = torch.eye(2, dtype=torch.float64)
                return 0.4 + a * torch.tanh(y @ (self.noise_net.weight * eye) + self.noise_net.bias * closed)
            strength = 0.4 + a * self.noise_net(t, y) * closed
            if self.noise == "scalar":
                return strength
            if self.noise == "commutative":  # one field, seen by two channels
                return torch.stack([strength, -0.7 * strength], -1)
            return torch.stack([strength, 0.5 * torch.sin(y.flip(-1)) * a], -1)

        arguments: dict[str, Any] = {"path": self.path(), **options}
        return sdeint(
            drift, diffusion, self.y0, [0.0, 0.375, 1.0], noise=self.noise, args=(self.argument,), **arguments
        )


def loss_of(solution: Solution, estimates: bool = False) -> Tensor:
    weights = torch.linspace(-1, 1, solution.ys.numel(), dtype=torch.float64).reshape(solution.ys.shape)
    loss = (solution.ys.square() * weights).sum() + solution.ys.sum()
    if not estimates:
        return loss
    steps = solution.steps
    for column in (steps.error, steps.ratio, steps.stiffness):
        if column is not None:
            loss = loss + (column * torch.linspace(1, 2, column.numel()).reshape(column.shape)).sum()
    return loss


def gradients(noise: Noise, estimates: bool = False, **options: Any) -> Gradients:
    neural = Neural.of(noise)
    found = torch.autograd.grad(loss_of(neural.solve(**options), estimates), neural.leaves, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(neural.leaves, found, strict=True))


def differences(noise: Noise, h: float = 1e-5, **options: Any) -> Gradients:
    """Central finite differences on the same path, of every entry."""
    neural = Neural.of(noise)
    found = []
    with torch.no_grad():
        for leaf in neural.leaves:
            entries = leaf.view(-1)
            column = torch.zeros_like(entries)
            for i in range(len(entries)):
                kept = entries[i].clone()
                sides = []
                for sign in (1, -1):
                    entries[i] = kept + sign * h
                    sides.append(loss_of(neural.solve(**options)))
                entries[i] = kept
                column[i] = (sides[0] - sides[1]) / (2 * h)
            found.append(column.reshape(leaf.shape))
    return tuple(found)


def require_close(one: Gradients, other: Gradients, tolerance: float) -> None:
    """Every tensor within a tolerance relative to the largest entry of it, or of all."""
    largest = max(float(b.abs().max()) for b in other)
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) <= tolerance * max(float(b.abs().max()), 0.01 * largest)


KINDS: list[tuple[Method, Calculus, Noise]] = [
    (Euler(), "ito", "diagonal"),
    (Euler(), "ito", "general"),
    (SOSRI(), "ito", "diagonal"),
    (SOSRI2(), "ito", "scalar"),
    (SOSRA(), "ito", "additive"),
    (SOSRA2(), "stratonovich", "additive"),
    (ShARK(), "ito", "additive"),
    (Milstein(), "ito", "diagonal"),
    (Milstein(), "ito", "commutative"),
    (Milstein(), "stratonovich", "scalar"),
    (Milstein(derivative_free=True), "ito", "diagonal"),
    (Milstein(derivative_free=True), "ito", "commutative"),
    (EulerHeun(), "stratonovich", "general"),
    (Heun(), "stratonovich", "diagonal"),
    (Heun(), "stratonovich", "scalar"),
    (Heun(), "stratonovich", "general"),
    *((ReversibleHeun(), "stratonovich", noise) for noise in ("diagonal", "scalar", "commutative", "general")),
    (ReversibleHeun(), "ito", "additive"),
]
kinds = pytest.mark.parametrize(("method", "calculus", "noise"), KINDS, ids=str)
reversible = pytest.mark.parametrize(("method", "calculus", "noise"), KINDS[-5:], ids=str)


# --- fixed steps


@pytest.mark.usefixtures("forward_mode")
@kinds
def test_gradients_are_those_of_finite_differences_on_the_same_path(
    method: Method, calculus: Calculus, noise: Noise
) -> None:
    options: dict[str, Any] = {"method": method, "calculus": calculus, "controller": Fixed(0.4)}
    want = differences(noise, **options)
    ways = dict(EXACT)
    if isinstance(method, ReversibleHeun):
        ways["reversible"] = Reversible()
    for name, adjoint in ways.items():
        found = gradients(noise, adjoint=adjoint, **options)
        assert all(bool(one.any()) for one in found[:3]), name
        require_close(found, want, 1e-6)


@pytest.mark.usefixtures("forward_mode")
@kinds
@pytest.mark.parametrize("controller", [Fixed(0.1), None])
def test_exact_gradients_agree_with_each_other(
    method: Method, calculus: Calculus, noise: Noise, controller: Fixed | None
) -> None:
    options: dict[str, Any] = {"method": method, "calculus": calculus, "controller": controller, "rtol": 1e-2}
    estimates = method.error_order is not None
    want = gradients(noise, estimates=estimates, adjoint=Direct(), **options)
    ways = [Checkpointed(), Checkpointed(tape=0), Checkpointed(tape=3_000)]  # the last: some steps on the tape
    for adjoint in ways:
        require_close(gradients(noise, estimates=estimates, adjoint=adjoint, **options), want, 1e-12)


@reversible
@pytest.mark.parametrize("controller", [Fixed(0.1), Fixed(0.07), Fixed(), None])
def test_steps_taken_back_have_the_gradients_of_the_tape(
    method: Method, calculus: Calculus, noise: Noise, controller: Fixed | None
) -> None:
    options: dict[str, Any] = {"method": method, "calculus": calculus, "controller": controller, "rtol": 1e-2}
    require_close(
        gradients(noise, estimates=True, adjoint=Reversible(), **options),
        gradients(noise, estimates=True, adjoint=Direct(), **options),
        1e-12,
    )


def test_gradients_of_adaptive_steps_are_those_of_the_same_fixed_steps() -> None:
    path = Neural.of("diagonal").path()
    found = Neural.of("diagonal")
    adaptive = found.solve(path=path, rtol=1e-2, atol=1e-3)
    one = torch.autograd.grad(loss_of(adaptive), found.leaves)
    replayed = Neural.of("diagonal")
    ends = (adaptive.steps.t + adaptive.steps.dt)[:, 0].tolist()
    fixed = replayed.solve(path=path, stops=ends, controller=Fixed())
    assert len(fixed.steps) < len(adaptive.steps) or torch.equal(fixed.steps.dt, adaptive.steps.dt)
    assert len(fixed.steps) == len(adaptive.steps)
    other = torch.autograd.grad(loss_of(fixed), replayed.leaves)
    require_close(one, other, 1e-12)


def test_gradients_of_steps_carry_through_the_states_that_were_recorded() -> None:
    def of(adjoint: Adjoint) -> Gradients:
        neural = Neural.of("diagonal")
        solution = neural.solve(adjoint=adjoint, controller=Fixed(0.25))
        loss = loss_of(solution, estimates=True) + (solution.steps.y.square()).sum()
        return torch.autograd.grad(loss, neural.leaves)

    require_close(of(Checkpointed()), of(Direct()), 1e-12)
    require_close(of(Checkpointed(tape=0)), of(Direct()), 1e-12)


def test_values_between_steps_have_gradients() -> None:
    neural = Neural.of("diagonal")

    def value(adjoint: Adjoint = EXACT["checkpointed"]) -> Tensor:
        solution = neural.solve(adjoint=adjoint, controller=Fixed(0.25))
        return solution(torch.tensor([0.1, 0.6])).square().sum()

    found = torch.autograd.grad(value(), neural.leaves)
    require_close(torch.autograd.grad(value(Direct()), neural.leaves), found, 1e-12)
    with torch.no_grad():
        h, sides = 1e-5, []
        for sign in (1, -1):
            neural.argument.add_(sign * h)
            sides.append(value())
            neural.argument.sub_(sign * h)
    assert float((sides[0] - sides[1]) / (2 * h)) == pytest.approx(float(found[1]), rel=1e-6)


@pytest.mark.parametrize("adjoint", EXACT)
def test_states_of_several_tensors_and_a_diffusion_without_gradients(adjoint: str) -> None:
    a, b = torch.ones(2, dtype=torch.float64, requires_grad=True), torch.ones(3, dtype=torch.float64)
    rate = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def end(rate: Tensor, a: Tensor) -> Tensor:
        path = VirtualBrownianTree(0.0, 1.0, (5,), seed=0, dtype=torch.float64)
        ya, yb = sdeint(
            lambda t, y: (-rate * y[0], y[0].sum() - y[1]),
            lambda t, y: (torch.full_like(y[0], 0.1), torch.full_like(y[1], 0.2)),
            (a, b), [0.0, 1.0], path=path, controller=Fixed(0.25), adjoint=EXACT[adjoint],
        ).ys  # fmt: skip
        return ya[-1].square().sum() + yb[-1].sum()

    assert torch.autograd.gradcheck(end, (rate, a))


@pytest.mark.parametrize("adjoint", [*EXACT.values(), StochasticAdjoint()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("where", ["drift", "diffusion", "y0"])
def test_gradients_reach_each_place_alone(where: str, adjoint: Adjoint) -> None:
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(4, dtype=torch.float64)
    one, zero = w, w.detach()
    drift_w, noise_w, start = {"drift": (one, zero, zero), "diffusion": (zero, one, zero), "y0": (zero, zero, one)}[
        where
    ]
    path = VirtualBrownianTree(0.0, 1.0, (4,), seed=0, dtype=torch.float64)
    solution = sdeint(
        lambda t, y: -drift_w * y, lambda t, y: noise_w * y, start * y0, [0.0, 1.0], path=path, adjoint=adjoint,
        controller=Fixed(1 / 64), method=SOSRI(),
    )  # fmt: skip
    (found,) = torch.autograd.grad(solution.ys[-1].sum(), w)
    # y = w exp((-w - w^2 / 2) + w W)
    noise = path(0.0, 1.0)
    end = 0.5 * torch.exp(-0.5 - 0.125 + 0.5 * noise)
    want = {"drift": -end, "diffusion": (noise - 0.5) * end, "y0": 2 * end}[where].sum()
    assert float(found) == pytest.approx(float(want), rel=0.05)


def test_nothing_is_computed_for_tensors_without_gradients() -> None:
    for adjoint in (*EXACT.values(), StochasticAdjoint()):
        solution = sdeint(
            lambda t, y: -y, lambda t, y: 0.1 * y, torch.ones(3, dtype=torch.float64), [0.0, 1.0], adjoint=adjoint
        )
        assert not solution.ys.requires_grad


# --- the adjoint equation


def parted(adjoint: Adjoint, step: float, method: Method, calculus: Calculus, noise: Noise, seed: int = 2) -> Gradients:
    path = Neural.of(noise).path(seed=seed, cell=2.0**-8 if noise == "general" else 2.0**-6)
    return gradients(noise, adjoint=adjoint, method=method, calculus=calculus, controller=Fixed(step), path=path)


@pytest.mark.usefixtures("forward_mode")
@pytest.mark.parametrize(
    ("method", "calculus", "noise", "order"),
    [
        (SOSRI(), "ito", "diagonal", 1.0),
        (SOSRA(), "ito", "additive", 1.0),
        (Heun(), "stratonovich", "diagonal", 1.0),
        (Heun(), "stratonovich", "scalar", 1.0),
        (Heun(), "stratonovich", "commutative", 1.0),
        (Milstein(), "ito", "diagonal", 1.0),
    ],
    ids=str,
)
def test_the_adjoint_equation_gives_the_exact_gradients_as_steps_shrink(
    method: Method, calculus: Calculus, noise: Noise, order: float
) -> None:
    levels, seeds = (3, 6), range(6)  # of few paths each, whose errors scatter
    errors, size = [], 0.0
    for level in levels:
        total = size = 0.0
        for seed in seeds:
            one = parted(StochasticAdjoint(), 2.0**-level, method, calculus, noise, seed)
            other = parted(Checkpointed(), 2.0**-level, method, calculus, noise, seed)
            total += sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True))
            size += sum(float(b.square().sum()) for b in other)
        errors.append(math.sqrt(total))
    assert math.log2(errors[0] / errors[1]) / (levels[1] - levels[0]) > order - 0.4
    assert errors[-1] < 0.04 * math.sqrt(size)


@pytest.mark.slow(seconds=30)
@pytest.mark.parametrize(("method", "calculus"), [(Euler(), "ito"), (Heun(), "stratonovich")], ids=str)
def test_the_adjoint_equation_takes_noise_that_does_not_commute(method: Method, calculus: Calculus) -> None:
    levels = (4, 6, 8)
    errors = []
    for level in levels:
        one = parted(StochasticAdjoint(), 2.0**-level, method, calculus, "general")
        other = parted(Checkpointed(), 2.0**-level, method, calculus, "general")
        errors.append(float(np.sqrt(sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True)))))
    assert -float(np.polyfit(levels, np.log2(errors), 1)[0]) > 0.5 - 0.4
    assert errors[-1] < 0.5 * errors[0]


def test_the_adjoint_equation_of_a_linear_one_is_known() -> None:
    # y = y0 exp((a - s^2 / 2) t + s W): at two times, with gradients of y0, a and s
    a, s = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (-0.4, 0.3))
    y0 = torch.ones(500, dtype=torch.float64, requires_grad=True)
    path = VirtualBrownianTree(0.0, 1.0, (500,), seed=0, dtype=torch.float64)
    solution = sdeint(
        lambda t, y: a * y, lambda t, y: s * y, y0, [0.0, 0.5, 1.0], path=path, adjoint=StochasticAdjoint(),
        controller=Fixed(1 / 64),
    )  # fmt: skip
    found = torch.autograd.grad(solution.ys.sum(), [y0, a, s])
    want: list[Tensor] = [torch.ones_like(y0), torch.zeros_like(a), torch.zeros_like(s)]
    for t in (0.5, 1.0):
        w = path(0.0, t)
        y = torch.exp((a - s * s / 2).detach() * t + s.detach() * w)
        want = [want[0] + y, want[1] + (y * t).sum(), want[2] + (y * (w - s.detach() * t)).sum()]
    sizes = [want[0].abs().max(), want[0].sum(), want[0].sum()]  # the last two are sums in which much cancels
    for one, other, size in zip(found, want, sizes, strict=True):
        assert float((one - other).abs().max()) < 5e-3 * float(size)


def test_the_adjoint_equation_follows_adaptive_steps() -> None:
    found, want = (
        gradients("diagonal", adjoint=adjoint, rtol=1e-3, atol=1e-3) for adjoint in (StochasticAdjoint(), Direct())
    )
    require_close(found, want, 0.15)


def test_the_adjoint_equation_refuses_what_it_cannot_do() -> None:
    neural = Neural.of("diagonal")
    with pytest.raises(
        ValueError,
        match=r"StochasticAdjoint needs a method that carries nothing but y, which ReversibleHeun does not: use "
        r"adjoint=Reversible\(\), whose gradients are exact",
    ):
        neural.solve(adjoint=StochasticAdjoint(), method=ReversibleHeun(), calculus="stratonovich")
    dropout = nn.Dropout(0.5)
    y0 = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="StochasticAdjoint needs functions without random numbers, as it meets other"):
        sdeint(lambda t, y: -dropout(y), lambda t, y: y, y0, [0.0, 1.0], adjoint=StochasticAdjoint())
    dropout.eval()
    assert sdeint(lambda t, y: -dropout(y), lambda t, y: y, y0, [0.0, 1.0], adjoint=StochasticAdjoint()).success


def test_reversible_steps_refuse_random_numbers() -> None:
    dropout = nn.Dropout(0.5)
    y0 = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="Reversible needs a field without random numbers"):
        sdeint(
            lambda t, y: -dropout(y), lambda t, y: y, y0, [0.0, 1.0], adjoint=Reversible(), method=ReversibleHeun(),
            calculus="stratonovich",
        )  # fmt: skip


# --- twice


def second(adjoint: Adjoint, method: Method, calculus: Calculus, noise: Noise) -> Tensor:
    neural = Neural.of(noise)
    solution = neural.solve(adjoint=adjoint, method=method, calculus=calculus, controller=Fixed(0.25))
    (first,) = torch.autograd.grad(loss_of(solution), neural.y0, create_graph=True)
    return torch.autograd.grad(first.square().sum(), neural.argument)[0]


@pytest.mark.usefixtures("forward_mode")
@pytest.mark.parametrize(
    ("method", "calculus", "noise"),
    [(SOSRI(), "ito", "diagonal"), (Milstein(), "ito", "diagonal"), (Heun(), "stratonovich", "general"),
     (SOSRA2(), "ito", "additive"), (ReversibleHeun(), "stratonovich", "scalar")],
    ids=str,
)  # fmt: skip
def test_direct_gradients_can_be_differentiated_again(method: Method, calculus: Calculus, noise: Noise) -> None:
    found = second(Direct(), method, calculus, noise)
    h, sides = 1e-5, []
    for sign in (1, -1):
        neural = Neural.of(noise)
        with torch.no_grad():
            neural.argument.add_(sign * h)
        solution = neural.solve(method=method, calculus=calculus, controller=Fixed(0.25))
        sides.append(torch.autograd.grad(loss_of(solution), neural.y0)[0].square().sum())
    assert float(found) == pytest.approx(float((sides[0] - sides[1]) / (2 * h)), rel=1e-6)


@pytest.mark.parametrize(
    ("adjoint", "method"),
    [(Checkpointed(), Heun()), (Checkpointed(tape=0), Heun()), (Reversible(), ReversibleHeun()),
     (StochasticAdjoint(), Heun())],
    ids=str,
)  # fmt: skip
def test_the_others_refuse_to_be_differentiated_again(adjoint: Adjoint, method: Method) -> None:
    with pytest.raises(RuntimeError, match="adjoint=Direct"):
        second(adjoint, method, "stratonovich", "diagonal")


# --- what is learned


@pytest.mark.parametrize("adjoint", [*EXACT.values(), StochasticAdjoint()], ids=lambda one: type(one).__name__)
def test_a_rate_is_found_by_descent(adjoint: Adjoint) -> None:
    path = VirtualBrownianTree(0.0, 1.0, (32,), seed=0, dtype=torch.float64, cell=1 / 16)
    y0 = torch.ones(32, dtype=torch.float64)

    def solve(rate: Tensor, **options: Any) -> Tensor:
        ends: Tensor = sdeint(
            lambda t, y: -rate * y, lambda t, y: 0.2 * y, y0, [0.0, 1.0], path=path, controller=Fixed(1 / 16),
            method=Milstein(derivative_free=True), **options,
        ).ys[-1]  # fmt: skip
        return ends

    target = solve(torch.tensor(1.3, dtype=torch.float64))
    rate = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    for _ in range(10):
        end = solve(rate, adjoint=adjoint)
        (slope,) = torch.autograd.grad((end - target).square().sum(), rate)
        with torch.no_grad():
            rate -= slope / (2 * end.square().sum())
    assert float(rate.detach()) == pytest.approx(1.3, abs=1e-3)


@functools.cache
def memory_of(adjoint: Callable[[], Adjoint], steps: int) -> int:
    """Entries that a solve saves for its backward pass."""
    y0 = torch.ones(10, 10, dtype=torch.float64, requires_grad=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        sdeint(
            lambda t, y: -y, lambda t, y: 0.1 * torch.sin(y), y0, [0.0, 1.0], adjoint=adjoint(),
            calculus="stratonovich", method=ReversibleHeun() if adjoint is Reversible else Heun(),
            controller=Fixed(1 / steps), generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    return sum(sizes)


def test_steps_taken_back_and_the_adjoint_equation_save_nothing_of_the_steps() -> None:
    for adjoint in (Reversible, StochasticAdjoint):
        assert memory_of(adjoint, 64) == memory_of(adjoint, 8)
    assert memory_of(Direct, 64) > 4 * memory_of(Direct, 8)
