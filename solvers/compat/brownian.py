"""torchsde's Brownian motions over the virtual tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..brownian import VirtualBrownianTree
from ..warn import warn_user


class BrownianInterval:
    """A Brownian motion between two times, asked for intervals; torchsde's signature.

    The path is a function of `entropy` and time, whatever is asked in which order. `tol`, `pool_size`, `cache_size` and
    `halfway_tree` have no effect: memory is constant and the tree is always the dyadic one.

    Args:
        t0, t1: its ends.
        size: shape of its values.
        dtype, device: of its values.
        entropy: the seed; None: drawn from torch's generator.
        dt: length of the intervals that will be asked for, which are then quick.
        levy_area_approximation: "none" or "space-time".
        W, H: increment and space-time Levy area from t0 to t1, where they are given.

    Raises:
        ValueError: other approximations of the Levy area, or shapes that do not fit.
    """

    def __init__(
        self,
        t0: float | Tensor = 0.0,
        t1: float | Tensor = 1.0,
        size: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        entropy: int | None = None,
        dt: float | Tensor | None = None,
        tol: float = 0.0,
        pool_size: int = 8,
        cache_size: int | None = 45,
        halfway_tree: bool = False,
        levy_area_approximation: str = "none",
        W: Tensor | None = None,
        H: Tensor | None = None,
    ) -> None:
        if levy_area_approximation not in {"none", "space-time"}:
            raise ValueError(
                'levy_area_approximation must be "none" or "space-time", as approximations of the space-space area are '
                f"not here, got {levy_area_approximation!r}"
            )
        given = next((one for one in (W, H) if one is not None), None)
        if size is None and given is not None:
            size = given.shape
        if size is None:
            raise ValueError("size must be given where neither W nor H is")
        if H is not None and levy_area_approximation == "none":
            raise ValueError('levy_area_approximation must be "space-time" where H is given')
        shape = tuple(size)
        if any(one is not None and tuple(one.shape) != shape for one in (W, H)):
            raise ValueError(f"W and H must have shape {shape}, as size says")
        self.levy_area_approximation = levy_area_approximation
        like = torch.empty(0, dtype=dtype, device=device) if given is None else given
        area = levy_area_approximation == "space-time"
        cell = None if dt is None or given is not None else float(dt)
        self._tree = VirtualBrownianTree(
            float(t0), float(t1), shape, seed=entropy, cell=cell, area=area, dtype=like.dtype, device=like.device
        )
        self._free = cell is None and given is None  # to be cut as those who ask first would have it
        self._moved = None if W is None else W - self._tree(self._tree.t0, self._tree.t1)
        self._bent = None if H is None else H - self._tree.with_area(self._tree.t0, self._tree.t1)[1]

    def __repr__(self) -> str:
        tree = self._tree
        return f"{type(self).__name__}(t0={tree.t0}, t1={tree.t1}, size={tree.shape}, entropy={tree.seed})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its values."""
        return self._tree.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of its values."""
        return self._tree.dtype

    @property
    def device(self) -> torch.device:
        """Of its values."""
        return self._tree.device

    @property
    def entropy(self) -> int:
        """The seed."""
        return self._tree.seed

    def size(self) -> tuple[int, ...]:
        """Of its values, as a tensor has it."""
        return self.shape

    def __call__(
        self,
        ta: float | Tensor,
        tb: float | Tensor | None = None,
        return_U: bool = False,
        return_A: bool = False,
    ) -> Any:
        if return_A:
            raise ValueError("return_A must be False: there is no space-space Levy area")
        self._free = False
        begin, end = (self._tree.t0, float(ta)) if tb is None else (float(ta), float(tb))
        begin, end = self._inside("ta", begin), self._inside("ta" if tb is None else "tb", end)
        if begin > end:
            raise RuntimeError(f"Query times ta={begin:.3f} and tb={end:.3f} must respect ta <= tb.")
        if self._tree.area:
            w, area = self._tree.with_area(begin, end)
        else:
            w, area = self._tree.increment(begin, end), None
        span = self._tree.t1 - self._tree.t0
        low, high, part = (begin - self._tree.t0) / span, (end - self._tree.t0) / span, (end - begin) / span
        if self._moved is not None:  # a straight line
            w = torch.add(w, self._moved, alpha=part)
        if self._bent is not None and area is not None:  # a parabola
            w = torch.add(w, self._bent, alpha=6 * (high * (1 - high) - low * (1 - low)))
            area = torch.add(area, self._bent, alpha=part * part)
        if not return_U:
            return w.clone()
        return w, None if area is None else (end - begin) * (w / 2 + area)

    def expect(self, dt: float) -> None:
        """Be quick for intervals of length dt, where nobody has asked for any so far and nothing else was said."""
        if self._free:
            old, self._free = self._tree, False
            self._tree = VirtualBrownianTree(
                old.t0, old.t1, old.shape, seed=old.seed, cell=dt, area=old.area, dtype=old.dtype, device=old.device
            )

    def _inside(self, name: str, t: float) -> float:
        if not self._tree.t0 <= t <= self._tree.t1:
            warn_user(f"Should have t0<={name}<=t1 but got {name}={t}, t0={self._tree.t0}, t1={self._tree.t1}.")
        return min(max(t, self._tree.t0), self._tree.t1)


class _Started(BrownianInterval):
    """What `BrownianPath` and `BrownianTree` share: a value at the start."""

    _w0: Tensor

    def __call__(
        self,
        t: float | Tensor,
        tb: float | Tensor | None = None,
        return_U: bool = False,
        return_A: bool = False,
    ) -> Any:
        out = super().__call__(t, tb, return_U, return_A)
        return out + self._w0 if tb is None and not return_U else out


class BrownianPath(_Started):
    """A Brownian motion from t0 to t0 + 1 that is w0 at t0; torchsde's signature, `window_size` has no effect."""

    def __init__(self, t0: float | Tensor, w0: Tensor, window_size: int = 8) -> None:
        super().__init__(t0, float(t0) + 1, w0.shape, w0.dtype, w0.device)
        self._w0 = w0


class BrownianTree(_Started):
    """A Brownian motion that is w0 at t0 and, where it is given, w1 at t1; torchsde's signature.

    `tol`, `pool_size`, `cache_depth` and `safety` have no effect.
    """

    def __init__(
        self,
        t0: float | Tensor,
        w0: Tensor,
        t1: float | Tensor | None = None,
        w1: Tensor | None = None,
        entropy: int | None = None,
        tol: float = 1e-6,
        pool_size: int = 24,
        cache_depth: int = 9,
        safety: float | None = None,
    ) -> None:
        end = float(t0) + 1 if t1 is None else float(t1)
        increment = None if w1 is None else w1 - w0
        super().__init__(t0, end, w0.shape, w0.dtype, w0.device, entropy, W=increment)
        self._w0 = w0


class ReverseBrownian:
    """A Brownian motion with time running backwards, from -t1 to -t0; torchsde's signature."""

    def __init__(self, base_brownian: Any) -> None:
        self.base_brownian = base_brownian
        self.shape, self.dtype, self.device = base_brownian.shape, base_brownian.dtype, base_brownian.device
        self.levy_area_approximation = base_brownian.levy_area_approximation

    def __call__(self, ta: float, tb: float, return_U: bool = False, return_A: bool = False) -> Any:
        return self.base_brownian(-tb, -ta, return_U=return_U, return_A=return_A)

    def __repr__(self) -> str:
        return f"ReverseBrownian({self.base_brownian})"


def brownian_interval_like(
    y: Tensor,
    t0: float = 0.0,
    t1: float = 1.0,
    size: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    entropy: int | None = None,
    dt: float | None = None,
    levy_area_approximation: str = "none",
) -> BrownianInterval:
    """A Brownian motion with the shape, dtype and device of a tensor."""
    return BrownianInterval(
        t0,
        t1,
        y.shape if size is None else size,
        y.dtype if dtype is None else dtype,
        y.device if device is None else device,
        entropy,
        dt,
        levy_area_approximation=levy_area_approximation,
    )
