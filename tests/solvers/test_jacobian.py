import pytest
import torch
from torch import nn

from invreg.solvers.dynamics import Dynamics
from invreg.solvers.jacobian import Linearized
from invreg.solvers.linear import GMRES, Dense, chosen, gmres

F64 = torch.float64
zero = torch.zeros((), dtype=F64)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


W = randn(3, 3)


def plain(t, y):
    return torch.tanh(y @ W.T) * (1 + t) - y**3


def by_hand(y):
    """The Jacobian of `plain` at t = 0."""
    return (1 - torch.tanh(W @ y) ** 2)[:, None] * W - torch.diag(3 * y**2)


class NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - torch.tanh(x) ** 2)


def reading(t, y):
    """Reads a value of the state, which cannot be vectorised."""
    return plain(t, y) if y[0].item() < 100 else y


def writing(t, y):
    """Writes into what it made, which cannot be vectorised where that does not depend on the state."""
    out = torch.zeros(3, dtype=y.dtype)
    out.copy_(plain(t, y))
    return out


def reverse_only(t, y):
    return NoForwardMode.apply(y @ W.T) * (1 + t) - y**3


def of_a_potential(t, y):
    """The gradient of a potential, found by autograd within."""
    with torch.enable_grad():
        x = y if y.requires_grad else y.detach().requires_grad_()
        potential = (torch.cos(x) @ W @ x) * (1 + t)
        (g,) = torch.autograd.grad(potential, x, create_graph=True)
    return g


@pytest.mark.parametrize("field", [plain, reading, writing, reverse_only])
@pytest.mark.parametrize("grad", [False, True])
def test_matrix_and_products_are_right_whatever_the_field_allows(field, grad):
    y, v = randn(3, seed=1), randn(1, 3, seed=2)
    with torch.set_grad_enabled(grad):
        near = Linearized(field, zero, y.clone().requires_grad_(grad))
        J = near.matrix()[0]
        torch.testing.assert_close(J, by_hand(y))
        torch.testing.assert_close(near.product(v), v @ J.T)
        torch.testing.assert_close(near.transposed(v), v @ J)
        torch.testing.assert_close(near.time_derivative(), torch.tanh(W @ y))
    assert J.requires_grad == grad


def test_jacobian_of_a_field_that_differentiates_is_right():
    y = randn(3, seed=1)
    near = Linearized(of_a_potential, zero, y)
    wanted = torch.autograd.functional.hessian(lambda x: torch.cos(x) @ W @ x, y)
    torch.testing.assert_close(near.matrix()[0], wanted)
    torch.testing.assert_close(near.product(y[None]), (wanted @ y)[None])


@pytest.mark.parametrize("field", [plain, reading, reverse_only])
def test_jacobian_carries_gradients_to_the_state_and_to_what_the_field_holds(field):
    scale = torch.tensor(1.3, dtype=F64, requires_grad=True)
    y = randn(3, seed=1).requires_grad_()

    def total(scale, y):
        near = Linearized(lambda t, y: field(t, y * scale), zero, y)
        return (near.matrix() * randn(3, 3, seed=3)).sum() + (near.time_derivative() * randn(3, seed=4)).sum()

    assert torch.autograd.gradcheck(total, (scale, y))


def test_samples_have_their_own_blocks():
    y, t = randn(4, 3, seed=1), randn(4, 1, seed=2)
    together = Linearized(plain, t, y)
    J = together.matrix()
    assert J.shape == (4, 3, 3)
    for i in range(4):
        alone = Linearized(plain, t[i, 0], y[i])
        torch.testing.assert_close(J[i], alone.matrix()[0])
        torch.testing.assert_close(together.norm(samples=True)[i], alone.norm(samples=False))
        torch.testing.assert_close(together.time_derivative()[i], alone.time_derivative())


def test_joint_state_is_one_block():
    y = randn(2, 2, seed=1)
    J = Linearized(lambda t, y: y @ y, zero, y).matrix()
    torch.testing.assert_close(
        J[0],
        torch.autograd.functional.jacobian(lambda x: (x.reshape(2, 2) @ x.reshape(2, 2)).reshape(-1), y.reshape(-1)),
    )


def test_complex_state_counts_as_real_and_imaginary_parts():
    y = torch.tensor([1 + 2j], dtype=torch.complex128)
    J = Linearized(lambda t, y: (2 - 1j) * y + 3j * y.conj(), zero, y).matrix()[0]
    wanted = torch.tensor([[2, 1 + 3], [-1 + 3, 2]], dtype=F64)  # conj: (a + ib) 3i -> 3b + 3ia
    torch.testing.assert_close(J, wanted)


def test_norms_bound_the_eigenvalues_and_power_iteration_finds_the_largest():
    J = torch.diag(torch.tensor([-1.0, -500.0, 3.0, -20.0], dtype=F64)) + 0.1 * randn(4, 4)
    near = Linearized(lambda t, y: y @ J.T, zero, randn(4, seed=1))
    largest = torch.linalg.eigvals(J).abs().max()
    assert near.norm(samples=False) >= largest
    torch.testing.assert_close(near.growth(samples=False), largest, rtol=1e-3, atol=0)
    batch = Linearized(lambda t, y: y @ J.T, zero, randn(5, 4, seed=1))
    torch.testing.assert_close(batch.growth(samples=True), largest.expand(5), rtol=1e-3, atol=0)
    assert batch.norm(samples=True).shape == (5,)


def test_jacobians_do_not_count_as_evaluations_but_on_their_own():
    dynamics = Dynamics(plain, (), None, F64)
    near = Linearized(dynamics, zero, randn(3))
    Dense().inverse(near, 0.1).solve(randn(3))
    near.time_derivative()
    assert (dynamics.calls, dynamics.jacobians, dynamics.solves) == (0, 1, 1)


def test_large_batches_are_pushed_through_in_chunks(monkeypatch):
    monkeypatch.setattr("invreg.solvers.jacobian.CHUNK", 5)
    torch.testing.assert_close(Linearized(plain, zero, randn(3, seed=1)).matrix()[0], by_hand(randn(3, seed=1)))


@pytest.mark.parametrize("restart", [6, 40])
def test_gmres_solves_every_block_to_its_own_tolerance(restart):
    A = 3 * torch.eye(20, dtype=F64) + 0.2 * randn(5, 20, 20)
    b = randn(5, 20, seed=1) * torch.tensor([1, 1e-9, 1e9, 0, 1], dtype=F64)[:, None]
    x, converged = gmres(lambda v: (A @ v[..., None])[..., 0], b, 1e-9, restart, 400)
    assert converged.all()
    residual = torch.linalg.vector_norm((A @ x[..., None])[..., 0] - b, dim=1)
    assert (residual <= 1e-9 * torch.linalg.vector_norm(b, dim=1)).all()
    for i in range(5):
        alone, _ = gmres(lambda v, i=i: v @ A[i].T, b[i : i + 1], 1e-9, restart, 400)
        torch.testing.assert_close(x[i], alone[0], rtol=1e-12, atol=0)


def test_gmres_says_which_blocks_it_could_not_solve():
    A = torch.stack([torch.eye(6, dtype=F64), torch.eye(6, dtype=F64).roll(1, 0), torch.zeros(6, 6, dtype=F64)])
    x, converged = gmres(lambda v: (A @ v[..., None])[..., 0], torch.eye(6, dtype=F64)[:3], 1e-9, 4, 12)
    assert converged.tolist() == [True, False, False]
    assert x.isfinite().all()


@pytest.mark.parametrize("samples", [False, True])
def test_both_inverses_agree_in_value_and_gradient(samples):
    y, b = randn(4, 3, seed=1), randn(4, 3, seed=2)
    t, scale = (torch.zeros(4, 1, dtype=F64), torch.tensor([[0.1], [1.0], [0.0], [3.0]])) if samples else (zero, 0.7)
    found = []
    for linear in (Dense(), GMRES(rtol=1e-13)):
        leaves = [x.clone().requires_grad_() for x in (y, b, W)]

        def field(t, y, leaves=leaves):
            return torch.tanh(y @ leaves[2].T) - y**3

        inverse = linear.inverse(Linearized(field, t, leaves[0]), scale)
        x = inverse.solve(leaves[1])
        found.append([x, *torch.autograd.grad((x * randn(4, 3, seed=3)).sum(), leaves)])
    for dense, krylov in zip(*found, strict=True):
        torch.testing.assert_close(krylov, dense, rtol=1e-9, atol=1e-11)


def test_second_derivatives_through_gmres_are_refused_not_wrong():
    y = randn(3, seed=1).requires_grad_()
    x = GMRES().inverse(Linearized(plain, zero, y), 0.5).solve(randn(3, seed=2))
    (g,) = torch.autograd.grad(x.sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(g.sum(), y)


def test_unsolved_systems_are_nan_not_wrong():
    near = Linearized(lambda t, y: y, zero, randn(3))
    for linear in (Dense(), GMRES()):
        assert not linear.inverse(near, 1.0).solve(randn(3)).isfinite().any()  # I - J = 0


def test_the_number_of_unknowns_chooses():
    small, large = randn(2, 200), randn(2, 300)
    assert isinstance(chosen(None, Linearized(plain, torch.zeros(2, 1), small)), Dense)
    assert isinstance(chosen(None, Linearized(plain, zero, small)), GMRES)
    assert isinstance(chosen(None, Linearized(plain, torch.zeros(2, 1), large)), GMRES)
    assert isinstance(chosen(Dense(), Linearized(plain, zero, large)), Dense)


def test_half_precision_is_solved_in_single():
    near = Linearized(lambda t, y: -y, torch.zeros(()), torch.ones(2, dtype=torch.bfloat16))
    x = Dense().inverse(near, 1.0).solve(torch.ones(2, dtype=torch.bfloat16))
    assert x.dtype == torch.bfloat16
    torch.testing.assert_close(x.float(), torch.full((2,), 0.5))


def test_gradients_reach_the_parameters_of_a_module_through_the_jacobian():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    near = Linearized(lambda t, y: net(y), zero, randn(3))
    near.matrix().square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (net[0].weight, net[0].bias, net[2].weight))


def test_options_of_gmres_are_checked():
    with pytest.raises(ValueError, match="rtol must be between 0 and 1, got 2"):
        GMRES(rtol=2)
    with pytest.raises(ValueError, match="restart must be an integer > 0, got 0"):
        GMRES(restart=0)
