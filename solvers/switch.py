"""When to change from an explicit to a stiff method and back."""

from __future__ import annotations

from dataclasses import dataclass

from .method import Method


@dataclass(frozen=True)
class AutoSwitch:
    """An explicit method while the problem lets it, a stiff one where stability bounds its steps.

    A step counts as stiff where stiffness * dt > `threshold` times the stability size of the explicit method.

    Args:
        nonstiff: an explicit method with a stiffness estimate (Tsit5, Vern7, Dopri5, Dopri8).
        stiff: a stiff method with one (Rosenbrock23, Rodas5P, Kvaerno3, Kvaerno5).
        patience: stiff steps in a row before the stiff method takes over.
        confidence: steps in a row that are not, before the explicit method does.
        threshold: of the stability size.
        factor: the first step of the stiff method is longer by it, the first of the explicit one shorter.

    Source: the AutoSwitch of OrdinaryDiffEq; Shampine 1977 for the estimate.
    """

    nonstiff: Method
    stiff: Method
    patience: int = 10
    confidence: int = 3
    threshold: float = 0.9
    factor: float = 2.0

    def __post_init__(self) -> None:
        for name in ("nonstiff", "stiff"):
            method = getattr(self, name)
            if not isinstance(method, Method):
                raise TypeError(f"{name} must be a Method such as Tsit5(), got {method!r}")
            if not method.has_stiffness:
                raise ValueError(f"{name} must estimate the stiffness, which {type(method).__name__} does not")
        if self.nonstiff.stability_size is None:
            raise ValueError(f"nonstiff must be explicit, got {type(self.nonstiff).__name__}")

    def judge(self, which: int, run: int, stiffness: float, dt: float) -> tuple[int, int, float]:
        """After an accepted step of method `which` (0 nonstiff): the next method, its run, the factor for dt.

        `run` counts steps in a row that speak for the other method. A stiffness that is not finite counts as stiff.
        """
        assert self.nonstiff.stability_size is not None
        calm = stiffness * abs(dt) <= self.threshold * self.nonstiff.stability_size
        run = run + 1 if calm == bool(which) else 0
        if which == 0 and run > self.patience:
            return 1, 0, self.factor
        if which == 1 and run > self.confidence:
            return 0, 0, 1 / self.factor
        return which, run, 1.0
