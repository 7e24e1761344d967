import math

import pytest
import torch
from torch import Tensor

from invreg.solvers import PI, PID, Bosh3, Fixed, I, Status, odeint
from invreg.solvers.controller import Adaptive, rms, rms_per_sample, scaled

CONTROLLERS = {"pi": PI, "i": I, "pid": PID}


def swinging(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.cos(t)


def start() -> Tensor:
    return torch.tensor([1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"safety": 0.0}, "safety must be > 0, got 0.0"),
        ({"max_step": -1.0}, "max_step must be > 0, got -1.0"),
        ({"min_factor": 0.0}, "min_factor must be > 0, got 0.0"),
        ({"first_step": 0.0}, "first_step must be > 0, got 0.0"),
        ({"first_step": math.nan}, "first_step must be > 0, got nan"),
        ({"min_step": -1.0}, "min_step must be >= 0 and <= max_step = inf, got -1.0"),
        ({"min_step": 2.0, "max_step": 1.0}, "min_step must be >= 0 and <= max_step = 1.0, got 2.0"),
        ({"min_factor": 1.5}, "min_factor must be < 1 and max_factor > 1, got 1.5 and 10.0"),
        ({"max_factor": 0.5}, "min_factor must be < 1 and max_factor > 1, got 0.2 and 0.5"),
    ],
)
def test_a_wrong_setting_is_named(options: dict[str, float], message: str) -> None:
    for kind in CONTROLLERS.values():
        with pytest.raises(ValueError, match=message):
            kind(**options)


def test_a_fixed_step_is_positive() -> None:
    with pytest.raises(ValueError, match="step must be > 0, got 0"):
        Fixed(0.0)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_numbers_and_tensors_are_answered_alike(name: str) -> None:
    controller: Adaptive = CONTROLLERS[name]()
    for ratio in (0.0, 1e-12, 1e-3, 0.5, 1.0, 3.0, 1e6, math.inf, math.nan):
        x, one = torch.tensor(ratio, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
        if not ratio <= 1:
            assert controller.shrinkage(x, 5).item() == pytest.approx(controller.shrinkage(ratio, 5))
        else:
            assert controller.growth(x, (one, one), 5).item() == pytest.approx(controller.growth(ratio, (0.3, 0.3), 5))


@pytest.mark.parametrize("name", CONTROLLERS)
def test_the_change_of_a_step_is_bounded(name: str) -> None:
    controller: Adaptive = CONTROLLERS[name](min_factor=0.3, max_factor=4.0)
    assert controller.growth(0.0, (1.0, 1.0), 5) == 4.0
    assert controller.shrinkage(1e9, 5) == 0.3 and controller.shrinkage(math.nan, 5) == 0.3
    assert controller.shrinkage(1.0001, 5) < 1
    patient: Adaptive = CONTROLLERS[name](shrink_accepted=False)
    assert patient.growth(0.999, (1.0, 1.0), 5) == 1.0


def test_the_integral_controller_answers_to_the_last_error_alone() -> None:
    assert I().growth(0.1, (1e-3, 1e-4), 5) == I().growth(0.1, (1.0, 1.0), 5) == pytest.approx(0.9 * 0.1 ** (-0.2))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", CONTROLLERS)
def test_steps_keep_within_their_bounds(name: str, per_sample: bool) -> None:
    controller = CONTROLLERS[name](first_step=0.11, max_step=0.3)
    solution = odeint(swinging, start(), [0.0, 5.0], controller=controller, per_sample=per_sample, rtol=1e-2)
    assert (solution.steps.dt[0] == 0.11).all()
    # the last step may take a hundredth more, so as not to leave a crumb
    assert solution.steps.dt.max() <= 0.3 * 1.01 + 1e-12 and (solution.steps.dt[:-1].max(0).values > 0.29).all()


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_step_of_the_least_length_is_accepted_whatever_its_error(per_sample: bool) -> None:
    controller = PI(min_step=0.25)
    solution = odeint(swinging, start(), [0.0, 5.0], controller=controller, per_sample=per_sample, rtol=1e-12)
    assert solution.success and solution.steps.ratio is not None
    assert solution.steps.ratio.max() > 1
    last = solution.steps.t + solution.steps.dt >= 5.0
    assert (solution.steps.dt[solution.steps.mask & ~last] >= 0.25 - 1e-12).all()


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_least_step_does_not_accept_nan(per_sample: bool) -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t > 0.5, torch.nan, -y)

    solution = odeint(field, start(), [0.0, 1.0], controller=PI(min_step=0.2), per_sample=per_sample, throw=False)
    assert set(solution.status) == {Status.NONFINITE}
    assert (solution.reached <= 0.5).all()


@pytest.mark.parametrize("per_sample", [False, True])
def test_fixed_steps_are_of_one_length_but_for_the_last(per_sample: bool) -> None:
    solution = odeint(swinging, start(), [0.0, 1.0], controller=Fixed(0.3), per_sample=per_sample)
    torch.testing.assert_close(
        solution.steps.dt[:, 0], torch.tensor([0.3, 0.3, 0.3, 0.1], dtype=torch.float64), rtol=1e-12, atol=0
    )
    assert (solution.stats.accepted == 4).all() and (solution.stats.rejected == 0).all()
    short = odeint(swinging, start(), [0.0, 1.0], controller=Fixed(1 / 3), per_sample=per_sample)
    assert len(short.steps) == 3  # no crumb is left at the end


def test_smaller_tolerances_take_more_steps_in_proportion_to_the_order() -> None:
    counts = [
        len(odeint(swinging, start(), [0.0, 20.0], method=Bosh3(), rtol=rtol, atol=rtol).steps) for rtol in (1e-4, 1e-7)
    ]
    assert math.log10(counts[1] / counts[0]) == pytest.approx(1.0, abs=0.2)


def test_the_mean_square_of_nothing_and_of_zero_has_gradient_zero() -> None:
    for norm in (rms, rms_per_sample):
        x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(norm(x).sum(), x)
        assert (found == 0).all()
        assert norm(torch.zeros(2, 0)).sum() == 0


def test_the_mean_square_of_half_precision_does_not_overflow() -> None:
    x = torch.full((2, 1000), 300.0, dtype=torch.float16)
    assert rms(x).item() == pytest.approx(300.0, rel=1e-3)
    assert rms_per_sample(x).tolist() == pytest.approx([300.0, 300.0], rel=1e-3)


def test_the_scale_of_an_error_is_that_of_the_larger_state() -> None:
    y0, y1 = torch.tensor([1.0, -4.0]), torch.tensor([-2.0, 3.0])
    error = torch.tensor([1.4, -1.8])
    torch.testing.assert_close(scaled(error, y0, y1, 0.1, 0.5), torch.tensor([2.0, -2.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_error_of_half_precision_may_be_far_above_the_tolerance(dtype: torch.dtype) -> None:
    error, zero = torch.full((2,), 3.0, dtype=dtype), torch.zeros(2, dtype=dtype)
    torch.testing.assert_close(scaled(error, zero, zero, 1e-3, 1e-6), torch.full((2,), 3e6))
