"""Steps at which plug-and-play with a learned proximal network is proved to converge."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch import Tensor

from invreg._check import require_positive, warn
from invreg.algorithms.smooth import curvature
from invreg.interfaces import Proximal
from invreg.problem import Problem


@runtime_checkable
class TrainedProximal(Proximal, Protocol):
    """A faculty: a prox that was learned at one step, and stands for a penalty at that step only."""

    def at_step(self, step: float) -> TrainedProximal:
        """The same network with its step called `step`: another weight of its penalty."""
        ...


def safe_step_size(problem: Problem, like: Tensor, margin: float = 0.95) -> float:
    """A step for `LearnedProximal.at_step` at which plug-and-play is proved to converge, margin / L.

    Give it as step_size to ProximalGradient, and its inverse as rho to ADMM with relaxation=1 and balance=False.

    Args:
        problem: a linear operator under Gaussian noise; L = |A|^2 / sigma^2, the largest of all samples.
        like: a signal, (B, *signal), for shape, dtype and device.
        margin: between 0 and 1.

    Raises:
        TypeError: the misfit is not quadratic. ValueError: the margin is out of its range, or the operator is zero.

    Source: Fang, Buchanan and Sulam 2024, Theorem 2, rho > |A^T A|, and its form for proximal gradient descent.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin must be within (0, 1), got {margin}")
    lipschitz = float(curvature(problem, like).max())
    if lipschitz == 0:
        raise ValueError("operator must not be zero, got one that is: any step is safe; choose one")
    return margin / lipschitz


def check_step(problem: Problem, like: Tensor, step: float, lipschitz: Tensor | None = None) -> float:
    """Warn unless plug-and-play with a `LearnedProximal` at this step is proved to converge: step * L < 1.

    Args:
        problem, like: as for `safe_step_size`.
        step: step_size of ProximalGradient, 1 / rho of ADMM, > 0.
        lipschitz: L of each sample, (B,), if it is known already.

    Returns:
        step * L.

    Raises:
        TypeError, ValueError: the misfit is not quadratic, step <= 0.
    """
    require_positive("step", step)
    most = float((curvature(problem, like) if lipschitz is None else lipschitz).max())
    if not step * most < 1:
        warn(
            f"convergence with a learned prox is proved for a step < 1 / L = {1 / most:.3g} only (ADMM: rho > L = "
            f"{most:.3g}), got {step:.3g}; use prior.at_step(safe_step_size(problem, x))"
        )
    return step * most


def warn_if_learned(priors: Iterable[object], got: str) -> None:
    """Warn that nothing is proved if one of the priors is a learned prox; `got` says what is asked of it."""
    if any(isinstance(one, TrainedProximal) for one in priors):
        warn(
            "convergence with a learned prox is proved for ProximalGradient and ADMM with a quadratic misfit and no "
            f"other term only, got {got}"
        )
