"""Tests of `invreg.regularizers.learned`: exact proximal maps, certified values, other steps, and their gradients."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

from invreg.interfaces import ConvexPotential, Proximal, Regularizer
from invreg.models.icnn import ConvexCNN, ConvexMLP, InputConvexNetwork
from invreg.random import draw
from invreg.regularizers.learned import LearnedProximal, RelaxedLearnedProximal
from invreg.testing import gradient_gap, prox_gap, relative_gap


class Quadratic(nn.Module):
    """psi = c / 2 |x|^2: f(y) = c y, the prox of R(x) = (1 / c - 1) / 2 |x|^2, which is concave for c > 1."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor(c, dtype=torch.float64))

    @property
    def strong_convexity(self) -> float:
        return float(self.c.detach())

    def value(self, x: Tensor) -> Tensor:
        return self.c / 2 * x.square().flatten(1).sum(1)

    def gradient(self, x: Tensor) -> Tensor:
        return self.c * x


def awake(net: InputConvexNetwork, size: float = 2.0) -> InputConvexNetwork:
    """With layers that count, without gradients in its weights."""
    torch.manual_seed(0)
    net = net.double().requires_grad_(False)
    for weight in net.nonnegative():
        weight.copy_(torch.rand_like(weight) * size / weight[0].numel() ** 0.5)
    for lift in net.lifts:
        assert isinstance(lift, nn.Linear | nn.Conv2d)
        assert lift.bias is not None
        lift.weight.copy_(draw(lift.weight, torch.Generator().manual_seed(1)) / lift.weight[0].numel() ** 0.5)
        lift.bias.copy_(draw(lift.bias, torch.Generator().manual_seed(2)) / 2)
    return net


def vectors(size: float = 1.0) -> InputConvexNetwork:
    return awake(ConvexMLP(3, 12, 2, beta=5.0, strong_convexity=0.1), size)


def images() -> InputConvexNetwork:
    return awake(ConvexCNN(1, 4, 2, 3, beta=5.0, strong_convexity=0.1), 1.0)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=torch.float64), torch.Generator().manual_seed(seed))


CASES = {"vectors": (vectors, (4, 3)), "images": (images, (2, 3, 4))}
EACH = pytest.mark.parametrize("case", CASES)


def prior_and_signal(case: str, **options: float) -> tuple[LearnedProximal, Tensor]:
    make, shape = CASES[case]
    return LearnedProximal(make(), rtol=1e-10, **options), noise(*shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("c", [0.25, 1.0, 2.0])
def test_a_quadratic_potential_is_a_quadratic_penalty(c: float) -> None:
    prior = LearnedProximal(Quadratic(c), step=0.5, scale=3.0, weight=2.0, rtol=1e-12)
    x = noise(3, 4)
    want = 2.0 * (1 / c - 1) / 2 * x.square().sum(1) / 0.5
    torch.testing.assert_close(prior(x).detach(), want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prior.prox(x, 0.25), c * x)


def test_both_are_regularizers_with_a_prox_and_a_potential() -> None:
    for kind in (LearnedProximal, RelaxedLearnedProximal):
        prior = kind(vectors())
        assert isinstance(prior, Regularizer)
        assert isinstance(prior, Proximal)
        assert prior.exact
        assert isinstance(prior.potential, ConvexPotential)
        assert set(prior.state_dict()) == {f"potential.{name}" for name in vectors().state_dict()}


@pytest.mark.slow
@EACH
def test_no_move_of_many_improves_on_the_network(case: str) -> None:
    prior, x = prior_and_signal(case, step=0.7, scale=2.0, weight=0.5)
    assert prox_gap(prior, x, 1.4, trials=100) <= 1e-9


@EACH
def test_the_network_is_the_prox_of_its_penalty_borders_included(case: str) -> None:
    prior, x = prior_and_signal(case, step=0.7, scale=2.0, weight=0.5)
    assert prox_gap(prior, x, 1.4, trials=3) <= 1e-9


def test_the_network_finds_the_least_of_a_grid_where_the_penalty_is_not_convex() -> None:
    net = awake(ConvexMLP(1, 8, 2, beta=5.0, strong_convexity=0.1), 1.5)
    prior = LearnedProximal(net, rtol=1e-10)
    z = torch.linspace(-8, 8, 3201, dtype=torch.float64)[:, None]
    penalty = prior(z)
    assert bool((penalty.diff().diff() < 0).any())
    for y in (-2.0, -0.3, 0.4, 1.7):
        found = prior.prox(torch.tensor([[y]], dtype=torch.float64), 1.0)
        assert abs(float(found)) < 8
        best = z[(penalty + (z[:, 0] - y).square() / 2).argmin()]
        assert abs(float(best - found)) <= 0.5 * 16 / 3200 + 1e-9


@pytest.mark.slow
def test_a_larger_image_has_an_exact_prox_too() -> None:
    prior = LearnedProximal(images(), rtol=1e-10)
    assert prox_gap(prior, noise(1, 19, 14), 1.0, trials=10) <= 1e-9


@EACH
def test_the_inverse_is_found_within_its_certificate(case: str) -> None:
    prior, y = prior_and_signal(case, scale=3.0, weight=0.5, step=0.5)
    x = prior.prox(y, 1.0)
    found = prior.evaluate(x)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.point, y, rtol=1e-7, atol=1e-7)
    miss = (prior.prox(found.point, 1.0) - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(found.residual, miss, rtol=0.1, atol=1e-13)
    error = (found.point - y).flatten(1).norm(dim=1)
    assert (error <= found.bound * (1 + 1e-6) + 1e-12).all()
    assert torch.equal(found.value, prior(x))


def test_a_rough_inverse_says_so_and_keeps_its_bounds() -> None:
    net, y = vectors(), noise(4, 3)
    x = net(y)
    exact = LearnedProximal(net, rtol=1e-12).evaluate(x)
    rough = LearnedProximal(net, step=2.0, rtol=1e-12, iterations=1)
    found = rough.evaluate(x)
    assert not bool(found.converged.any())
    assert ((found.point - y).norm(dim=1) <= found.bound).all()
    short = exact.value / 2.0 - found.value
    assert (short >= 0).all()
    assert (short <= found.residual * found.bound / (2 * 2.0)).all()
    with pytest.warns(UserWarning, match="the value of LearnedProximal reached accuracy .* > rtol"):
        rough(x)


def test_without_strong_convexity_nothing_bounds_the_inverse() -> None:
    net = awake(ConvexMLP(2, 12, 2, strong_convexity=0.0), 1.0)
    found = LearnedProximal(net).evaluate(net(0.1 * noise(2, 2)))
    assert torch.isinf(found.bound).all()


@EACH
@pytest.mark.parametrize("relaxed", [False, True])
def test_the_gradient_of_the_value_is_that_of_finite_differences(case: str, relaxed: bool) -> None:
    make, shape = CASES[case]
    kind = RelaxedLearnedProximal if relaxed else LearnedProximal
    prior = kind(make(), step=0.5, scale=2.0, weight=3.0, rtol=1e-11)
    x = noise(*shape).requires_grad_()
    (gradient,) = torch.autograd.grad(prior(x).sum(), x)
    assert gradient_gap(prior, x.detach(), gradient, step=1e-5) <= 1e-6
    point = prior.evaluate(x).point
    torch.testing.assert_close(gradient, 3.0 * (point - x.detach()) / 0.5)


def test_the_value_can_be_differentiated_in_the_weight_and_the_network() -> None:
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    potential, x = Quadratic(0.4), noise(1, 3)
    value = LearnedProximal(potential, step=0.5, weight=weight, rtol=1e-12)(x)
    to_weight, to_c = torch.autograd.grad(value.sum(), (weight, potential.c))
    square = x.square().sum()
    torch.testing.assert_close(to_weight, (1 / 0.4 - 1) * square)
    torch.testing.assert_close(to_c, -2.0 / 0.4**2 * square)


def test_the_second_derivative_of_the_value_is_that_of_finite_differences() -> None:
    prior, x = LearnedProximal(vectors(), step=0.5, scale=2.0, weight=3.0, rtol=1e-11), noise(1, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(prior(x).sum(), x, create_graph=True)
    direction = noise(1, 3, seed=1)
    (curved,) = torch.autograd.grad(gradient, x, direction)
    slopes = []
    for h in (1e-4, -1e-4):
        moved = (x + h * direction).detach().requires_grad_()
        slopes.append(torch.autograd.grad(prior(moved).sum(), moved)[0])
    torch.testing.assert_close(curved, (slopes[0] - slopes[1]) / 2e-4, rtol=1e-5, atol=1e-6)


def test_weight_zero_is_no_penalty() -> None:
    x = noise(2, 3)
    assert torch.equal(LearnedProximal(vectors(), weight=0.0)(x), torch.zeros(2, dtype=torch.float64))
    assert relative_gap(RelaxedLearnedProximal(vectors(), weight=0.0).prox(x, 0.3), x) <= 1e-14


def test_another_step_is_refused_with_advice() -> None:
    prior, x = LearnedProximal(vectors(), step=0.5), noise(2, 3)
    for step in (0.49, torch.tensor([0.5, 0.6]).reshape(2, 1)):
        with pytest.raises(ValueError, match=r"step \* weight must be 0.5.*at_step.*RelaxedLearnedProximal"):
            prior.prox(x, step)
    single = torch.full((2, 1), 1 / torch.tensor(2.0, dtype=torch.float32).item())
    assert torch.equal(prior.prox(x, single), prior.prox(x, 0.5))


def test_at_step_keeps_the_network_and_changes_the_weight() -> None:
    prior, x = LearnedProximal(vectors(), step=0.5), noise(2, 3)
    other = prior.at_step(0.1)
    assert other.potential is prior.potential
    assert other.weight == 5.0
    assert torch.equal(other.prox(x, 0.1), prior.prox(x, 0.5))
    torch.testing.assert_close(other(x), 5 * prior(x))


@pytest.mark.parametrize(("c", "step"), [(0.25, 0.3), (0.25, 5.0), (2.0, 0.7), (2.0, 1.9)])
def test_the_relaxed_prox_of_a_quadratic_is_known(c: float, step: float) -> None:
    x = noise(2, 3)
    prior = RelaxedLearnedProximal(Quadratic(c), scale=2.0, lipschitz=c, rtol=1e-12)
    torch.testing.assert_close(prior.prox(x, step), x / (1 + step * (1 / c - 1)), rtol=1e-8, atol=1e-10)


@EACH
@pytest.mark.parametrize("step", [0.2, 0.9])
def test_the_relaxed_prox_is_a_minimum_that_no_move_improves(case: str, step: float) -> None:
    make, shape = CASES[case]
    prior = RelaxedLearnedProximal(make(), step=2.0, scale=1.5, weight=2.0, rtol=1e-10)
    assert prox_gap(prior, noise(*shape), step, trials=1) <= 1e-9


def test_the_relaxed_prox_meets_the_network_at_its_own_step_and_the_identity_at_none() -> None:
    x = noise(2, 3)
    prior = RelaxedLearnedProximal(vectors(), step=0.5, rtol=1e-10)
    torch.testing.assert_close(prior.prox(x, 0.5), LearnedProximal(vectors(), step=0.5).prox(x, 0.5))
    torch.testing.assert_close(prior.prox(x, 0.0), x)
    steps = torch.tensor([0.1, 0.4], dtype=torch.float64).reshape(2, 1)
    together = prior.prox(x, steps)
    for i in range(2):
        torch.testing.assert_close(together[i : i + 1], prior.prox(x[i : i + 1], float(steps[i])))


def test_the_relaxed_prox_can_be_differentiated_in_the_signal_and_the_weight() -> None:
    net, x = vectors(), noise(2, 3).requires_grad_()
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def prox(x: Tensor, weight: Tensor) -> Tensor:
        return RelaxedLearnedProximal(net, 2.0, 1.5, weight, rtol=1e-12).prox(x, 0.8)

    assert torch.autograd.gradcheck(prox, (x, weight), eps=1e-5, atol=1e-6)


def test_steps_at_which_the_relaxed_prox_may_not_be_one_point_are_refused() -> None:
    x = noise(1, 3)
    with pytest.raises(ValueError, match=r"at most 1 times the network's own step, 0.5, got 0.6.*lipschitz"):
        RelaxedLearnedProximal(vectors(), step=0.5).prox(x, 0.6)
    with pytest.raises(ValueError, match=r"at most 2 times"):
        RelaxedLearnedProximal(Quadratic(2.0), lipschitz=2.0).prox(x, 2.0)
    with pytest.raises(ValueError, match=r"must be >= 0"):
        RelaxedLearnedProximal(vectors()).prox(x, -0.1)


def test_tolerances_of_the_relaxed_prox_are_summable_and_end_at_the_wanted_one() -> None:
    prior = RelaxedLearnedProximal(vectors(), rtol=1e-8)
    looseness = [prior.at(k / 100).looseness for k in range(101)]  # type: ignore[attr-defined]
    assert looseness[0] == 101**2
    assert looseness[-1] == 1.0 == prior.looseness
    assert sum(looseness) < 2 * looseness[0]
    x = noise(2, 3)
    far = (prior.at(0.0).prox(x, 0.5) - prior.prox(x, 0.5)).abs().max()  # type: ignore[attr-defined]
    assert float(far) < 1e-3
    assert torch.equal(prior.at(1.0).prox(x, 0.5), prior.prox(x, 0.5))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="decay must be > 1.5"):
        RelaxedLearnedProximal(vectors(), decay=1.0)


def test_too_few_newton_steps_are_told() -> None:
    with pytest.warns(UserWarning, match="RelaxedLearnedProximal.prox reached accuracy"):
        RelaxedLearnedProximal(vectors(), rtol=1e-12, iterations=1).prox(noise(2, 3), 0.5)


@EACH
def test_the_scale_changes_units_and_nothing_else(case: str) -> None:
    prior, x = prior_and_signal(case, step=0.5)
    scaled = LearnedProximal(prior.potential, step=0.5 * 9, scale=3.0, rtol=1e-10)
    torch.testing.assert_close(scaled.prox(3 * x, 4.5), 3 * prior.prox(x, 0.5))
    torch.testing.assert_close(scaled(3 * x), prior(x))


@EACH
def test_no_sample_depends_on_the_others(case: str) -> None:
    prior, x = prior_and_signal(case)
    x = x * torch.tensor([1.0, 5.0, 0.01, 0.0][: len(x)]).double().reshape(-1, *(1,) * (x.ndim - 1))
    together = prior(x)
    for i in range(len(x)):
        torch.testing.assert_close(together[i : i + 1], prior(x[i : i + 1]), rtol=1e-8, atol=1e-8)


@EACH
def test_single_precision_reaches_its_default_tolerance(case: str) -> None:
    make, shape = CASES[case]
    prior = LearnedProximal(make().float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = prior(noise(*shape).float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), LearnedProximal(make())(noise(*shape)), rtol=1e-3, atol=1e-3)


def test_arguments_are_left_as_they_were_and_copies_are_the_same() -> None:
    x = noise(2, 3)
    before = x.clone()
    for prior in (LearnedProximal(vectors()), RelaxedLearnedProximal(vectors())):
        assert not prior(x).requires_grad
        assert not prior.prox(x, 1.0).requires_grad
        for twin in (pickle.loads(pickle.dumps(prior)), copy.deepcopy(prior)):
            assert torch.equal(twin(x), prior(x))
    assert torch.equal(x, before)
    assert not x.requires_grad


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="potential must have value, gradient and strong_convexity, got Linear; use"):
        LearnedProximal(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"step must be finite and > 0, got 0\.0"):
        LearnedProximal(vectors(), step=0.0)
    with pytest.raises(ValueError, match=r"scale must be finite and > 0, got -1\.0"):
        LearnedProximal(vectors(), scale=-1.0)
