import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from invreg.algorithms import (
    ADMM,
    FISTA,
    HQS,
    PDHG,
    SIRT,
    Algorithm,
    ConjugateGradient,
    GradientDescent,
    History,
    ProximalGradient,
    Reconstruction,
    Status,
)
from invreg.interfaces import LinearOperator
from invreg.noise import Gaussian, Poisson
from invreg.operators import MaskedFourier, MatrixSensing, Sense
from invreg.operators.nonlinear import PhaseRetrieval
from invreg.problem import Problem
from invreg.random import draw
from invreg.regularizers import L1, NonNegative, SumOfTerms, Tikhonov, TotalVariation

LEAST: list[Algorithm] = [FISTA(iterations=40), PDHG(iterations=40), ADMM(iterations=40)]


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return draw(torch.empty(shape, dtype=dtype), torch.Generator().manual_seed(seed))


def small(batch: int = 2, sigma: float = 0.1) -> Problem:
    operator = MatrixSensing(noise(12, 8) / 3)
    return Problem(operator, operator(noise(batch, 8, seed=1)), Gaussian(sigma))


def mri() -> Problem:
    operator = MaskedFourier(noise(8, 8) > -0.3)
    return Problem(operator, operator(noise(2, 8, 8, dtype=torch.complex128, seed=1)), Gaussian(0.1))


class Scripted:
    """A prior whose prox raises or spoils the image from the given call on."""

    def __init__(self, call: int, what: str, sample: int | None = None) -> None:
        self.call, self.what, self.sample, self.calls = call, what, sample, 0

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        self.calls += 1
        if self.calls < self.call:
            return x
        if self.what == "interrupt":
            raise KeyboardInterrupt
        spoilt = x.clone()
        spoilt[slice(None) if self.sample is None else self.sample] = float("nan")
        return spoilt


class Gain(LinearOperator):
    """Multiplies by a real image, each sample by its own."""

    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.gain * y


class Watch(TorchDispatchMode):
    """Counts the moments at which the host reads the device."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.reads += name in {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_to_cpu"}
        return func(*args, **(kwargs or {}))


def test_history_records_every_change_and_every_check() -> None:
    problem, prior = small(), L1(0.3)
    result = FISTA(iterations=25, check_every=10, rtol=0).solve(problem, prior)
    assert result.iterations == 25
    assert result.history.change.shape == (25, 2)
    assert result.history.checked.tolist() == [10, 20, 25]
    torch.testing.assert_close(result.history.misfit[-1], problem.misfit(result.x))
    torch.testing.assert_close(result.history.penalty[-1], prior(result.x))
    torch.testing.assert_close(result.history.objective, result.history.misfit + result.history.penalty)
    assert result.status == (Status.ITERATION_LIMIT,) * 2


def test_change_is_relative_to_the_image() -> None:
    problem = small()
    run = ProximalGradient(iterations=5).iterate(problem, L1(0.1))
    before = next(run).x
    after = next(run).x
    expected = (after - before).norm(dim=1) / after.norm(dim=1)
    torch.testing.assert_close(run.reconstruction().history.change[1], expected)


def test_change_of_a_zero_image_is_zero() -> None:
    operator = MatrixSensing(noise(12, 8))
    result = FISTA(iterations=50, check_every=5).solve(Problem(operator, torch.zeros(1, 12).double()), L1(1.0))
    assert result.iterations == 5
    assert result.status == (Status.CONVERGED,)
    assert torch.equal(result.history.change, torch.zeros(5, 1).double())


def test_penalty_is_zero_without_prior_and_nan_without_value() -> None:
    problem = small()
    assert (ConjugateGradient(iterations=3).solve(problem, None).history.penalty == 0).all()
    unvalued = FISTA(iterations=3).solve(problem, Scripted(100, "nan")).history
    assert unvalued.penalty.isnan().all()
    assert torch.equal(unvalued.objective, unvalued.misfit)


def test_convergence_ends_the_loop_at_a_check() -> None:
    result = FISTA(iterations=5000, rtol=1e-6, check_every=7).solve(small(), Tikhonov(1.0))
    assert result.iterations < 5000
    assert result.iterations % 7 == 0
    assert result.status == (Status.CONVERGED,) * 2
    assert (result.history.change[-1] <= 1e-6).all()


def test_loop_waits_for_the_slowest_sample() -> None:
    operator = MatrixSensing(torch.diag(torch.logspace(0, -1.5, 8).double()))
    easy = torch.zeros(8).double()
    y = torch.stack([easy, noise(8)])
    result = ProximalGradient(iterations=40, rtol=1e-6, check_every=10).solve(Problem(operator, y), None)
    assert result.iterations == 40
    assert result.status == (Status.CONVERGED, Status.ITERATION_LIMIT)


def test_zero_rtol_never_ends_early() -> None:
    assert FISTA(iterations=60, rtol=0.0).solve(small(), Tikhonov(100.0)).iterations == 60


def test_nan_raises_and_names_the_algorithm() -> None:
    with pytest.raises(RuntimeError, match="FISTA met NaN or Inf after 10 iterations; .*throw=False"):
        FISTA(iterations=50, check_every=10).solve(small(), Scripted(4, "nan"))


def test_nan_of_one_sample_is_reported_and_the_other_goes_on() -> None:
    result = FISTA(iterations=50, rtol=0.0).solve(small(), Scripted(4, "nan", sample=1), throw=False)
    assert result.status == (Status.ITERATION_LIMIT, Status.NOT_FINITE)
    assert result.iterations == 50
    assert result.x[0].isfinite().all()


def test_divergence_is_reported() -> None:
    with pytest.raises(RuntimeError, match="smaller step size"):
        ProximalGradient(iterations=3000, step_size=100.0).solve(small(), None)


def test_interrupt_keeps_the_last_finished_image() -> None:
    problem = small()
    result = ProximalGradient(iterations=50).solve(problem, Scripted(5, "interrupt"))
    assert result.status == (Status.INTERRUPTED,) * 2
    assert result.iterations == 4
    expected = ProximalGradient(iterations=4).solve(problem, None)
    assert torch.equal(result.x, expected.x)


def test_interrupt_of_the_first_step_gives_the_first_image() -> None:
    x0 = noise(2, 8, seed=3)
    result = ProximalGradient().solve(small(), Scripted(1, "interrupt"), x0)
    assert result.status == (Status.INTERRUPTED,) * 2
    assert torch.equal(result.x, x0)
    assert "interrupted" in repr(result)


def test_iterate_can_be_stopped_early() -> None:
    algorithm, problem = FISTA(iterations=50), small()
    run = algorithm.iterate(problem, L1(0.1))
    seen = []
    for state in run:
        seen.append(state.x)
        if len(seen) == 7:
            break
    result = run.reconstruction()
    assert result.iterations == 7
    assert torch.equal(result.x, seen[-1])
    assert result.status == (Status.INTERRUPTED,) * 2
    rest = list(run)
    assert len(rest) == 43
    assert torch.equal(run.reconstruction().x, algorithm.solve(problem, L1(0.1)).x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_saved_reconstruction_loads_unchanged(tmp_path: Path, dtype: torch.dtype) -> None:
    operator = MatrixSensing(noise(12, 8, dtype=dtype))
    problem = Problem(operator, operator(noise(2, 8, dtype=dtype)))
    result = FISTA(iterations=20).solve(problem, L1(0.1))
    result.save(tmp_path / "result.safetensors")
    again = Reconstruction.load(tmp_path / "result.safetensors")
    assert torch.equal(again.x, result.x)
    for field in dataclasses.fields(History):
        assert torch.equal(getattr(again.history, field.name), getattr(result.history, field.name))
    assert (again.status, again.settings, again.seconds) == (result.status, result.settings, result.seconds)
    assert [p.name for p in tmp_path.iterdir()] == ["result.safetensors"]


def test_reconstruction_without_iterations_can_be_saved(tmp_path: Path) -> None:
    result = FISTA().iterate(small(), None).reconstruction()
    result.save(tmp_path / "empty.safetensors")
    assert Reconstruction.load(tmp_path / "empty.safetensors").iterations == 0


def test_conjugated_and_strided_images_can_be_saved(tmp_path: Path) -> None:
    problem = mri()
    result = FISTA(iterations=2).solve(problem, None)
    changed = dataclasses.replace(result, x=result.x.mT.conj())
    changed.save(tmp_path / "x.safetensors")
    assert torch.equal(Reconstruction.load(tmp_path / "x.safetensors").x, changed.x.resolve_conj())


def test_save_needs_its_suffix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        FISTA(iterations=2).solve(small(), None).save(tmp_path / "result.pt")


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "foreign", "list", "pair"])
def test_a_broken_or_foreign_file_is_refused(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    FISTA(iterations=2).solve(small(), None).save(path)
    content = path.read_bytes()
    if damage == "foreign":
        save_file({"x": torch.ones(2)}, path)
    elif damage == "list":
        save_file({"x": torch.ones(2)}, path, {"reconstruction": "[]"})
    elif damage == "pair":
        about = '{"complex": true, "status": ["CONVERGED"], "settings": {}, "seconds": 1.0}'
        save_file({"x": torch.ones(3)}, path, {"reconstruction": about})
    else:
        path.write_bytes({"cut": content[:-20], "noise": b"\xff" * 300, "empty": b""}[damage])
    with pytest.raises(ValueError, match="not a saved Reconstruction"):
        Reconstruction.load(path)


def test_a_file_of_another_version_says_what_differs(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    FISTA(iterations=2).solve(small(), None).save(path)
    with safe_open(path, "pt") as file:
        about, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del tensors["count"], tensors["penalty"]
    save_file(tensors | {"regret": torch.ones(2)}, path, about)
    with pytest.raises(ValueError, match="of this version: it lacks count, penalty and also has regret; reconstruct"):
        Reconstruction.load(path)


def test_the_chi_square_before_the_first_check_is_nan_in_the_precision_of_the_data() -> None:
    run = FISTA(iterations=20).iterate(small(), None)
    before = run.reconstruction().chi_square
    for _ in run:
        continue
    after = run.reconstruction().chi_square
    assert before.shape == after.shape == (2,) and before.dtype == after.dtype == torch.float64
    assert bool(before.isnan().all()) and bool(after.isfinite().all())


@pytest.mark.parametrize("shape", [(8,), (4, 2), (2, 2, 2)])
def test_plot_returns_a_figure(shape: tuple[int, ...]) -> None:
    from matplotlib.figure import Figure

    operator = MatrixSensing(noise(12, 8), shape)
    figure = FISTA(iterations=20).solve(Problem(operator, noise(2, 12)), L1(0.1)).plot(1)
    assert isinstance(figure, Figure)
    assert [axes.get_title() for axes in figure.axes][1:] == ["relative change", "objective"]
    figure.canvas.draw()
    assert isinstance(FISTA(iterations=3).solve(mri(), None).plot(), Figure)


def test_plain_words_say_what_happened() -> None:
    result = FISTA(iterations=20, rtol=0.0).solve(small(), L1(0.25))
    assert repr(result).startswith("Reconstruction(2x8 float64 by FISTA: iteration limit (2); 20 iterations, ")
    assert "objective" in repr(result)
    page = result._repr_html_()
    assert "<th>algorithm</th><td>FISTA</td>" in page
    assert "<td>L1(weight=0.25)</td>" in page
    assert result.settings["operator"] == "MatrixSensing"
    assert result.settings["noise"] == "Gaussian(sigma=0.1)"
    odd = dataclasses.replace(result, settings={"a<b": "c&d"})
    assert "a&lt;b" in odd._repr_html_() and "c&amp;d" in odd._repr_html_()


def test_a_sum_of_priors_is_described_by_its_parts() -> None:
    prior = SumOfTerms(L1(0.37), NonNegative())
    settings = PDHG(iterations=2).solve(small(), prior).settings
    assert settings["prior"] == "SumOfTerms(L1(weight=0.37), NonNegative)"


def test_the_penalty_on_record_is_that_of_the_annealed_prior() -> None:
    class Fading(L1):
        def at(self, progress: float) -> L1:
            return L1(self.weight * (2 - progress))

    result = FISTA(iterations=8, check_every=4, rtol=0).solve(small(), Fading(0.3))
    run = FISTA(iterations=8, check_every=4, rtol=0).iterate(small(), Fading(0.3))
    images = [state.x for state in run]
    torch.testing.assert_close(result.history.penalty, torch.stack([L1(0.45)(images[3]), L1(0.3)(images[7])]))


def test_what_is_neither_problem_nor_prior_is_refused() -> None:
    problem = small()
    for algorithm in (FISTA(), PDHG(), ADMM(), HQS(), GradientDescent(), ConjugateGradient(), SIRT()):
        with pytest.raises(
            TypeError, match=r"problem must be a Problem, got MatrixSensing; use Problem\(operator, y\)"
        ):
            algorithm.solve(problem.operator, None)
        with pytest.raises(TypeError, match=r"prior must be an object, got the class L1; use L1\(\.\.\.\)"):
            algorithm.solve(problem, L1)


@pytest.mark.parametrize("make", [small, mri])
@pytest.mark.parametrize(
    "algorithm",
    [
        FISTA(),
        PDHG(),
        PDHG(adaptive=False),
        ADMM(),
        HQS(iterations=100),
        ProximalGradient(),
        GradientDescent(),
        ConjugateGradient(iterations=100),
    ],
)
def test_host_does_not_look_between_checks(make, algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = Tikhonov(0.1) if isinstance(algorithm, (ConjugateGradient, GradientDescent)) else L1(0.1)
    run = dataclasses.replace(algorithm, check_every=10).iterate(make(), prior)
    looked: list[str] = []
    for name in ("__bool__", "__float__", "__int__", "item", "tolist", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, _recording(getattr(Tensor, name), name, looked))
    with Watch() as watch:
        for _ in range(9):
            next(run)
        assert watch.reads == 0
        assert looked == []
        next(run)
        assert 1 <= watch.reads <= 2  # the tenth is a check


def _recording(method, name: str, looked: list[str]):
    def call(self: Tensor, *args, **kwargs):
        looked.append(name)
        return method(self, *args, **kwargs)

    return call


@pytest.mark.parametrize("noise_model", [Poisson(50.0), Poisson(50.0, 2.0)])
def test_host_does_not_look_while_step_sizes_are_found(noise_model: Poisson) -> None:
    operator = MatrixSensing(noise(12, 8).abs())
    clean = operator(noise(2, 8, seed=1).abs())
    problem = Problem(operator, noise_model.sample(clean, torch.Generator().manual_seed(0)), noise_model)
    for algorithm in (FISTA(), ProximalGradient(), GradientDescent()):
        run = algorithm.iterate(problem, None, torch.ones(2, 8).double())
        with Watch() as watch:
            for _ in range(9):
                next(run)
            assert watch.reads == 0


def test_watch_sees_a_look() -> None:
    with Watch() as watch:
        bool(torch.ones(1) > 0)
        float(torch.ones(1))
    assert watch.reads >= 2


@pytest.mark.parametrize("algorithm", [*LEAST, HQS(), GradientDescent(), ConjugateGradient()])
def test_no_graph_is_kept_and_no_flag_flipped(algorithm: Algorithm) -> None:
    prior = Tikhonov(torch.nn.Parameter(torch.tensor(0.1).double()))
    x0, y = noise(2, 8, seed=2), small().y.clone()
    kept = x0.clone(), y.clone()
    result = algorithm.solve(Problem(small().operator, y), prior, x0)
    assert not x0.requires_grad and not y.requires_grad and not result.x.requires_grad
    assert torch.equal(x0, kept[0]) and torch.equal(y, kept[1])
    assert not any(getattr(result.history, f.name).requires_grad for f in dataclasses.fields(History))
    x0.requires_grad_()
    y.requires_grad_()
    result = algorithm.solve(Problem(small().operator, y), prior, x0)
    assert x0.requires_grad and y.requires_grad and not result.x.requires_grad
    assert prior.weight.requires_grad and x0.grad is None


@pytest.mark.parametrize("algorithm", LEAST)
def test_steps_taken_by_hand_carry_a_graph(algorithm: Algorithm) -> None:
    weight = torch.nn.Parameter(torch.tensor(0.2).double())
    problem = small()
    state = algorithm.init(problem, L1(weight), None)
    for k in range(5):
        state = algorithm.step(problem, L1(weight), state, (k + 1) / 40)
    (gradient,) = torch.autograd.grad(state.x.square().sum(), weight)
    assert gradient.isfinite()
    assert gradient != 0


def test_options_are_frozen_and_checked() -> None:
    for algorithm in (*LEAST, HQS(), GradientDescent(), ConjugateGradient(), SIRT(), ProximalGradient()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            algorithm.iterations = 3
        with pytest.raises(ValueError, match="iterations must be"):
            dataclasses.replace(algorithm, iterations=0)
        with pytest.raises(ValueError, match="check_every must be"):
            dataclasses.replace(algorithm, check_every=0)
        with pytest.raises(ValueError, match="rtol must be"):
            dataclasses.replace(algorithm, rtol=-1.0)
        with pytest.raises(TypeError, match="iterations must be an int"):
            dataclasses.replace(algorithm, iterations=2.5)
        with pytest.raises(TypeError):
            type(algorithm)(5)  # options have names


def test_first_image_is_checked() -> None:
    problem = small()
    with pytest.raises(TypeError, match=r"x0 must be a torch\.Tensor"):
        FISTA().solve(problem, None, [1.0])
    with pytest.raises(ValueError, match="signal of MatrixSensing"):
        FISTA().solve(problem, None, torch.zeros(2, 7).double())
    with pytest.raises(ValueError, match="x0 must have the batch size of y, 2, got 1"):
        FISTA().solve(problem, None, torch.zeros(1, 8).double())
    with pytest.raises(TypeError, match="x0 must have the precision of y"):
        FISTA().solve(problem, None, torch.zeros(2, 8))
    with pytest.raises(ValueError, match="x0 must be finite"):
        FISTA().solve(problem, None, torch.full((2, 8), float("nan")).double())
    bent = PhaseRetrieval(MatrixSensing(noise(12, 8)))
    with pytest.raises(ValueError, match="x0 must be given for PhaseRetrieval"):
        FISTA().solve(Problem(bent, noise(2, 12).abs()), None)


@pytest.mark.parametrize("algorithm", [*LEAST, HQS(), ProximalGradient()])
def test_a_batch_is_solved_as_its_samples(algorithm: Algorithm) -> None:
    operator = MatrixSensing(noise(12, 8) / 3)
    y = noise(3, 12, seed=1) * torch.tensor([1.0, 100.0, 0.01]).double()[:, None]
    algorithm = dataclasses.replace(algorithm, rtol=0.0)
    together = algorithm.solve(Problem(operator, y), L1(0.1)).x
    for i in range(3):
        alone = algorithm.solve(Problem(operator, y[i : i + 1]), L1(0.1)).x
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(
    "algorithm", [*LEAST, ADMM(rho=1.0), HQS(), ProximalGradient(), GradientDescent(), ConjugateGradient()]
)
def test_a_sample_that_its_operator_does_not_see_leaves_the_others_alone(
    algorithm: Algorithm, dtype: torch.dtype
) -> None:
    maps = noise(2, 3, 6, 6, dtype=torch.complex128)
    maps[1] = 0
    everywhere = torch.ones(6, 6, dtype=torch.bool)
    both, one = (Sense(m, everywhere) if dtype.is_complex else Gain(m[:, 0].real) for m in (maps, maps[:1]))
    y = noise(2, *((3,) if dtype.is_complex else ()), 6, 6, dtype=dtype, seed=1)
    algorithm = dataclasses.replace(algorithm, iterations=20, rtol=0.0)
    smooth = isinstance(algorithm, (ConjugateGradient, GradientDescent))
    for prior in (Tikhonov(0.1),) if smooth else (L1(0.1), TotalVariation(0.1, rtol=0, iterations=20)):
        x = algorithm.solve(Problem(both, y), prior).x
        torch.testing.assert_close(x[:1], algorithm.solve(Problem(one, y[:1]), prior).x)
        assert (x[1] == 0).all()


def test_sirt_leaves_a_sample_that_its_operator_does_not_see_as_it_was() -> None:
    gain, x0 = torch.tensor([2.0, 0.0]).double().reshape(2, 1, 1), noise(2, 6, 6, seed=1)
    y = noise(2, 6, 6)
    result = SIRT(iterations=5).solve(Problem(Gain(gain), y), None, x0)
    torch.testing.assert_close(result.x, torch.stack([y[0] / 2, x0[1]]))


def test_a_total_variation_prior_has_its_value_recorded() -> None:
    operator = MatrixSensing(torch.eye(16).double(), (4, 4))
    prior = TotalVariation(0.2)
    result = PDHG(iterations=30).solve(Problem(operator, noise(1, 16)), prior)
    torch.testing.assert_close(result.history.penalty[-1], prior(result.x))
