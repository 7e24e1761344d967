"""torchdiffeq's scipy_solver: any method of scipy.integrate.solve_ivp, without gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .request import Request, Solver

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ScipySolver(Solver):
    """solve_ivp on the CPU; the result is a constant for autograd."""

    name: str

    options = ("solver", "min_step", "max_step", "grid_points", "eps")  # the last two are ignored
    callbacks = ()

    def trajectory(self, request: Request) -> Tensor:
        from scipy.integrate import solve_ivp

        y0, options = request.y0.detach(), request.options
        if request.t.numel() == 1:
            return y0[None].clone()
        t = request.t.detach().cpu().double().numpy()
        solver, least = options.get("solver", "LSODA"), float(options.get("min_step", 0.0))
        extra = {"min_step": least} if solver == "LSODA" or least else {}

        def field(t: float, y: np.ndarray[Any, Any]) -> Any:
            with torch.no_grad():
                state = torch.as_tensor(y).to(y0).reshape(y0.shape)
                slope = request.field(torch.tensor(t, dtype=torch.float64, device=y0.device), state)
            return slope.detach().cpu().numpy().reshape(-1)

        found = solve_ivp(
            field,
            (t[0], t[-1]),
            y0.cpu().numpy().reshape(-1),
            method=solver,
            t_eval=t,
            rtol=_number(request.rtol),
            atol=_number(request.atol),
            max_step=float(options.get("max_step", math.inf)),
            **extra,
        )
        if not found.success:
            raise RuntimeError(
                f"scipy's {solver} stopped at t = {found.t[-1] if len(found.t) else t[0]}: {found.message}"
            )
        return torch.as_tensor(found.y.T.copy()).to(y0).reshape(-1, *y0.shape)

    def until_event(self, request: Request) -> tuple[Tensor, Tensor]:
        raise ValueError("scipy_solver cannot stop at an event_fn; use another method")


def _number(tolerance: float | Tensor) -> Any:
    return tolerance.cpu().double().numpy().reshape(-1) if isinstance(tolerance, Tensor) else tolerance
