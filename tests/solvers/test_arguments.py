import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from invreg.solvers import RK4, AutoSwitch, Direct, Dopri5, Event, Fixed, Heun, I, Kvaerno5, Tsit5, odeint
from invreg.solvers import arguments as module
from invreg.solvers.arguments import nearest
from invreg.solvers.rosenbrock import Rosenbrock23


def decay(t: Tensor, y: Any) -> Any:
    return -y


def solve(**changes: Any) -> None:
    given: dict[str, Any] = {"field": decay, "y0": torch.ones(2, 3), "ts": [0.0, 1.0]}
    given.update(changes)
    odeint(given.pop("field"), given.pop("y0"), given.pop("ts"), **given)


NAN = float("nan")
WRONG: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "field": (TypeError, r"field must be callable as field\(t, y, \*args\), got int", {"field": 3}),
    "y0_list_of_numbers": (TypeError, r"y0\[0\] must be a tensor, got float", {"y0": [1.0]}),
    "y0_number": (TypeError, "y0 must be a tensor or a tuple or dict of tensors, got float", {"y0": 1.0}),
    "y0_integers": (
        TypeError, r"y0 must be floating point or complex, got torch.int64; use y0.float\(\)",
        {"y0": torch.ones(2).long()},
    ),
    "y0_leaf_of_integers": (
        TypeError, r"y0\['b'\] must be floating point or complex, got torch.bool",
        {"y0": {"a": torch.ones(1), "b": torch.ones(1).bool()}},
    ),
    "y0_nan": (ValueError, "y0 must be finite, got NaN or infinity in it", {"y0": torch.tensor([1.0, NAN])}),
    "y0_infinite": (ValueError, "y0 must be finite", {"y0": torch.tensor([1.0, float("inf")])}),
    "y0_nan_leaf": (ValueError, "y0 must be finite", {"y0": (torch.ones(2), torch.tensor(NAN))}),
    "y0_empty": (ValueError, "y0 must hold at least one tensor, got an empty container", {"y0": ()}),
    "y0_empty_dict": (ValueError, "y0 must hold at least one tensor", {"y0": {}}),
    "y0_scalar_per_sample": (
        ValueError, "y0 must have a batch on axis 0 for per_sample steps, got a 0-d tensor",
        {"y0": torch.ones(()), "per_sample": True},
    ),
    "y0_batches": (
        ValueError, r"y0 must have one batch size, axis 0, for per_sample steps, got shapes \[\(2, 1\), \(3, 1\)\]",
        {"y0": (torch.ones(2, 1), torch.ones(3, 1)), "per_sample": True},
    ),
    "y0_leaf_without_batch": (
        ValueError, "y0 must have one batch size", {"y0": (torch.ones(2, 1), torch.ones(())), "per_sample": True}
    ),
    "y0_leaves_without_batch": (
        ValueError, "y0 must have", {"y0": (torch.ones(()), torch.ones(())), "per_sample": True}
    ),
    "y0_devices": (
        ValueError, r"y0 must lie on one device, got \['cpu', 'meta'\]",
        {"y0": (torch.ones(1), torch.ones(1, device="meta"))},
    ),
    "ts_turns": (ValueError, r"ts must be strictly increasing or strictly decreasing, got \[0.0, 1.0, 0.5\]",
                 {"ts": [0.0, 1.0, 0.5]}),
    "ts_stays": (ValueError, "ts must be strictly increasing or strictly decreasing", {"ts": [0.0, 0.0]}),
    "ts_turns_for_one_sample": (
        ValueError, "ts must be strictly", {"ts": torch.tensor([[0.0, 0.0], [1.0, -1.0]]), "per_sample": True}
    ),
    "ts_nan": (ValueError, "ts must be finite, got NaN or infinity in it", {"ts": [0.0, NAN]}),
    "ts_infinite": (ValueError, "ts must be finite", {"ts": [0.0, float("inf")]}),
    "ts_empty": (ValueError, "ts must hold at least one time, got none", {"ts": []}),
    "ts_scalar": (ValueError, r"ts must have shape \(T,\), got \(\)", {"ts": torch.tensor(1.0)}),
    "ts_matrix": (ValueError, r"ts must have shape \(T,\), got \(2, 2\)", {"ts": torch.ones(2, 2)}),
    "ts_batch": (
        ValueError, r"ts must have shape \(T,\) or \(T, 2\), got \(2, 3\)",
        {"ts": torch.ones(2, 3), "per_sample": True},
    ),
    "ts_complex": (TypeError, "ts must be real, got torch.complex64", {"ts": torch.ones(2) * 1j}),
    "ts_bool": (TypeError, "ts must be real, got torch.bool", {"ts": torch.tensor([False, True])}),
    "rtol_zero": (ValueError, "rtol must be finite and > 0, got 0", {"rtol": 0.0}),
    "rtol_negative": (ValueError, "rtol must be finite and > 0, got -0.1", {"rtol": -0.1}),
    "atol_zero": (ValueError, "atol must be finite and > 0, got 0", {"atol": 0}),
    "atol_nan": (ValueError, "atol must be finite and > 0, got nan", {"atol": NAN}),
    "atol_kind": (TypeError, "atol must be a number or a tensor, got str", {"atol": "1e-3"}),
    "rtol_bool": (TypeError, "rtol must be a number or a tensor, got bool", {"rtol": True}),
    "atol_shape": (
        ValueError, r"atol must broadcast to y, \(2, 3\), got \(2,\)", {"atol": torch.full((2,), 0.1)}
    ),
    "atol_larger_shape": (
        ValueError, r"atol must broadcast to y, \(2, 3\), got \(4, 1, 3\)", {"atol": torch.full((4, 1, 3), 0.1)}
    ),
    "rtol_tensor": (ValueError, "rtol must be finite and > 0 everywhere", {"rtol": torch.tensor([0.1, 0.0, 0.1])}),
    "rtol_tensor_infinite": (ValueError, "rtol must be finite and > 0", {"rtol": torch.tensor(float("inf"))}),
    "atol_tensor": (ValueError, "atol must be finite and >= 0 everywhere", {"atol": torch.tensor([0.1, -1.0, 0.1])}),
    "method_class": (
        TypeError, r"method must be a Method such as Tsit5\(\), got Dopri5; did you mean Dopri5\(\)\?",
        {"method": Dopri5},
    ),
    "method_string": (
        TypeError, r"method must be a Method such as Tsit5\(\), got 'dopri5'; did you mean Dopri5\(\)\?",
        {"method": "dopri5"},
    ),
    "method_unknown": (TypeError, r"got 'xyzzy'$", {"method": "xyzzy"}),
    "method_none": (TypeError, "method must be a Method", {"method": None}),
    "controller_kind": (
        TypeError, r"controller must be PI\(\), I\(\), PID\(\) or Fixed\(step\), got 0.1", {"controller": 0.1}
    ),
    "controller_without_estimate": (
        ValueError, r"RK4 has no error estimate to adapt to: use controller=Fixed\(step\), or a method that has one",
        {"method": RK4(), "controller": I()},
    ),
    "switch_fixed": (
        ValueError, r"AutoSwitch needs an adaptive controller such as PI\(\), got Fixed",
        {"method": AutoSwitch(Tsit5(), Rosenbrock23()), "controller": Fixed(0.1)},
    ),
    "switch_per_sample": (
        ValueError, "AutoSwitch decides for the whole batch: use per_sample=False, or one stiff method",
        {"method": AutoSwitch(Tsit5(), Rosenbrock23()), "per_sample": True},
    ),
    "args_tensor": (TypeError, "args must be a list or tuple, got Tensor; put a", {"args": torch.ones(3)}),
    "event": (TypeError, "events must be a list or tuple, got Event", {"events": Event(lambda t, y: y[0, 0])}),
    "stop": (TypeError, "stops must be a list of times, got 0.5", {"stops": 0.5}),
    "stop_of_text": (TypeError, r"stops must be a list of times, got \['a'\]", {"stops": ["a"]}),
    "jump_reached_over": (
        ValueError, "Kvaerno5 evaluates the field beyond the end of a step, over a jump: use another method",
        {"method": Kvaerno5(), "jumps": [0.5]},
    ),
    "condition_bool": (
        TypeError, "condition of an Event must give a real tensor, got torch.bool",
        {"events": [Event(lambda t, y: (y < 0.5).any())]},
    ),
    "adjoint_class": (
        TypeError, r"adjoint must be an Adjoint such as Checkpointed\(\) or Direct\(\), got Direct", {"adjoint": Direct}
    ),
    "adjoint_none": (TypeError, "adjoint must be an Adjoint such as .* got None", {"adjoint": None}),
    "events": (TypeError, "events must be Event objects, got function", {"events": [decay]}),
    "max_steps_zero": (ValueError, "max_steps must be an integer > 0, got 0", {"max_steps": 0}),
    "max_steps_kind": (ValueError, "max_steps must be an integer > 0, got 10.0", {"max_steps": 10.0}),
    "max_steps_bool": (ValueError, "max_steps must be an integer > 0, got True", {"max_steps": True}),
    "compile": (ValueError, r'compile must be True, False or "auto", got "?\'?yes', {"compile": "yes"}),
    "stops": (ValueError, "stops must be finite", {"stops": [NAN]}),
    "jumps": (ValueError, "jumps must be finite", {"jumps": [NAN]}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name: str) -> None:
    error, message, changes = WRONG[name]
    with pytest.raises(error, match=message):
        solve(**changes)


@pytest.mark.parametrize(
    ("typed", "meant"), [("tsit5", "Tsit5"), ("TSIT", "Tsit5"), ("rk4", "RK4"), ("vern", "Vern7"), ("heunn", "Heun")]
)
def test_the_nearest_name_is_suggested(typed: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"did you mean {meant}\(\)"):
        solve(method=typed)


def test_the_nearest_name_is_none_where_none_is_near() -> None:
    assert nearest("bosh", ["Bosh3", "Heun"]) == "Bosh3"
    assert nearest("zzzz", ["Bosh3", "Heun"]) is None


def test_tolerances_below_the_resolution_warn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_warned", set())
    y0 = torch.ones(2)
    with pytest.warns(UserWarning, match=r"rtol 1e-12 is below the resolution of torch.float32, 1.2e-07") as caught:
        odeint(decay, y0, [0.0, 1e-3], rtol=1e-12, atol=1e-3)
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odeint(decay, y0, [0.0, 1e-3], rtol=1e-12, atol=1e-3)
        odeint(decay, y0.double(), [0.0, 1e-3], rtol=1e-12, atol=1e-3)


def test_a_controller_is_chosen_by_the_method() -> None:
    assert len(odeint(decay, torch.ones(1), [0.0, 0.5, 1.0], method=RK4()).steps) == 2
    assert odeint(decay, torch.ones(1), [0.0, 0.5, 1.0], method=Heun()).steps.ratio is not None


def test_stops_and_jumps_beyond_the_ends_are_left_out() -> None:
    plain = odeint(decay, torch.ones(1), [0.0, 1.0])
    other = odeint(decay, torch.ones(1), [0.0, 1.0], stops=[-1.0, 0.0, 1.0, 3.0], jumps=[-0.5, 1.5])
    assert torch.equal(plain.steps.t, other.steps.t)


def test_arguments_of_any_kind_reach_the_field() -> None:
    def field(t: Tensor, y: Tensor, scale: float, options: dict[str, float]) -> Tensor:
        return -y * scale * options["a"]

    solution = odeint(field, torch.ones(1), [0.0, 1.0], args=[2.0, {"a": 0.5}])
    torch.testing.assert_close(solution.ys[-1], torch.full((1,), 0.3679), rtol=1e-3, atol=0)


def test_events_may_be_a_list() -> None:
    assert odeint(decay, torch.ones(1), [0.0, 1.0], events=[Event(lambda t, y: y - 0.5)]).success
