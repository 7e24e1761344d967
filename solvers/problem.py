"""An initial value problem as the loops take it: one tensor, times in order, everything checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from .controller import Adaptive, Controller, Fixed, rms, rms_per_sample, scaled
from .dynamics import Dynamics
from .event import Event
from .method import Method, Step
from .stochastic import Stochastic
from .switch import AutoSwitch

BARELY = 1 + 1e-9  # how much longer than it should be a step may get, to end at a stop


def spread(control: Tensor, y: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1), which broadcasts to y; () stays."""
    return control.reshape((-1, *([1] * (y.ndim - 1)))) if control.ndim else control


@dataclass(frozen=True, eq=False)
class InitialValueProblem:
    """dy/dt = dynamics(t, y), y(ts[0]) = y0, wanted at ts.

    `y0` is the method's own state (`Method.lift`); `ts` is (T,) or, per sample, (T, B); float64, on y0's device.
    """

    dynamics: Dynamics
    y0: Tensor
    ts: Tensor
    methods: tuple[Method, ...]  # two where they switch
    switch: AutoSwitch | None
    controller: Controller
    rtol: float | Tensor
    atol: float | Tensor
    samples: bool  # whether axis 0 is a batch whose samples step on their own
    max_steps: int
    stops: tuple[float, ...] = ()  # in the order of time
    jumps: Mapping[float, float] = field(default_factory=dict)  # stops just before a jump -> the time just after it
    events: tuple[Event, ...] = ()
    overshoot: bool = False  # whether the last step may end beyond the last time

    @property
    def method(self) -> Method:
        """The method that starts."""
        return self.methods[0]

    @property
    def order(self) -> float:
        """The exponent of the controllers: the local error estimate grows with dt to this power."""
        return self.order_of(self.method)

    def order_of(self, method: Method) -> float:
        """The same of another method."""
        if isinstance(self.dynamics, Stochastic):
            return method.noise_order
        return min(method.order, method.error_order or method.order) + 1

    @property
    def grid(self) -> bool:
        """Whether the steps end at the times that are wanted."""
        return isinstance(self.controller, Fixed) and self.controller.step is None

    def fixed_steps(self) -> Iterator[tuple[float, float]]:
        """From where to where the steps of a `Fixed` controller go."""
        assert isinstance(self.controller, Fixed)
        step, times = self.controller.step, self.ts.tolist()
        t, last = times[0], times[-1]
        sign = 1.0 if last >= t else -1.0
        stops = {*self.stops, *(times[1:] if step is None else ())} - {last}
        for stop in (*sorted(stops, key=lambda time: time * sign), last):
            anchor, taken = t, 0
            while (left := (stop - t) * sign) > 0:
                taken += 1
                end = stop
                if step is not None and (step * BARELY < left or (self.overshoot and stop == last)):
                    end = anchor + sign * step * taken  # not added up: a thousand steps end where they should
                yield t, end
                t = end
            t = self.jumps.get(t, t)

    def over(self, **changes: object) -> Self:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def spread(self, control: Tensor) -> Tensor:
        """(B,) -> (B, 1, ..., 1), which broadcasts to the method's state; () stays."""
        return spread(control, self.y0)

    def moment(self, t: Tensor) -> Tensor:
        """(B,) -> (B, 1, ..., 1), which broadcasts to the solution, as the field gets it; () stays."""
        return spread(t, self.method.lower(self.y0))

    def shift(self, t: float | Tensor) -> Tensor:
        """0 with the gradient of ts[0], with which a step from t begins later; without it beyond a jump: () or (B,)."""
        zero = self.ts[0] - self.ts[0].detach()
        return torch.where(self.beyond(t), 0.0, zero) if self.jumps else zero

    def beyond(self, t: float | Tensor) -> Tensor:
        """Whether a jump lies between ts[0] and t: () or (B,)."""
        start = self.ts[0].detach()
        found = torch.zeros_like(start + t, dtype=torch.bool)
        for before, after in self.jumps.items():
            sign = 1.0 if after > before else -1.0
            found = found | (((t - after) * sign >= 0) & ((after - start) * sign > 0))
        return found

    def first(self) -> tuple[Tensor, Tensor]:
        """Time and solution at which the dynamics are evaluated first."""
        y = self.method.lower(self.y0)
        return self.moment(self.ts[0].expand(y.shape[0]) if self.samples else self.ts[0]), y

    def ratio(self, error: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
        """The error of a solution in units of what is tolerated between y0 and y1: (B,) per sample, else ()."""
        norm = self.controller.norm if isinstance(self.controller, Adaptive) else None
        if norm is None:
            norm = rms_per_sample if self.samples else rms
        return norm(scaled(error, y0, y1, self.rtol, self.atol))

    def judge(self, error: Tensor, y: Tensor, step: Step) -> Tensor:
        """The `ratio` of a step from the method's state y."""
        return self.ratio(error, self.method.lower(y), self.method.lower(step.y))

    def size(self, error: Tensor) -> Tensor:
        """The root mean square of an error, unscaled: (B,) per sample, else ()."""
        return rms_per_sample(error) if self.samples else rms(error)

    def condition(self, event: Event, t: Tensor, y: Tensor) -> Tensor:
        """The value of an event's condition at a state of the method: (B,) per sample, else ().

        Raises:
            TypeError, ValueError: the condition gives no real number, or not one for each sample.
        """
        value = event.condition(self.moment(t).to(self.dynamics.time_dtype), self.solution(y), *self.dynamics.args)
        batch = len(self.y0) if self.samples else 1
        if not isinstance(value, Tensor) or value.is_complex() or value.dtype == torch.bool:
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"condition of an Event must give a real tensor, got {got}")
        if value.numel() != batch:
            shape = f"({batch},), one value for each sample" if self.samples else "()"
            raise ValueError(f"condition of an Event must give a tensor of shape {shape}, got {tuple(value.shape)}")
        return value.reshape((batch,) if self.samples else ())

    def solution(self, y: Tensor) -> Any:
        """A state of the method as the user knows it."""
        y = self.method.lower(y)
        return y if self.dynamics.structure is None else self.dynamics.structure.unpack(y)
