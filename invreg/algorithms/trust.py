"""Whether a reconstruction with a learned prior may be believed, by its residual and by one without learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from invreg._check import require_positive, require_shape, require_tensor
from invreg.diagnostics import chi_square
from invreg.linalg import norm
from invreg.problem import Problem

CHI_SQUARE = (0.3, 1.5)
"""Of 2 * misfit / count: a draw from the posterior is near 1, the mean of many is below it."""
# a start: brain images by DDS and by total variation differ by 0.05 to 0.1 where the prior fits the subject
DISAGREEMENT = 0.25
"""Of |abs(x) - abs(reference)| / |abs(reference)|."""


@dataclass(frozen=True, eq=False)
class Trust:
    """What a check found.

    Args:
        chi_square: 2 * misfit / count of each sample, (B,).
        disagreement: from the reference, relative, of magnitudes, (B,); NaN where there was none.
        reasons: why each sample should not be believed as it is, B times; empty where nothing was found.
    """

    chi_square: Tensor
    disagreement: Tensor
    reasons: tuple[tuple[str, ...], ...]

    @property
    def passed(self) -> tuple[bool, ...]:
        """Whether nothing was found, of each sample."""
        return tuple(not one for one in self.reasons)


def judge(
    problem: Problem,
    x: Tensor,
    reference: Tensor | None = None,
    *,
    pixel_size: Sequence[float] | None = None,
    trained_sizes: tuple[float, float] | None = None,
) -> Trust:
    """Look for signs that a learned prior said more than the data allow.

    None of them is a proof: an image may pass and hold a detail that is not there. What the data leave open, no
    residual shows; a lesion that the prior removed and one that it made up disagree with the reference alike.

    Args:
        problem: with the true noise level, for the residual means nothing without it.
        x: the images, (B, *signal).
        reference: the same images without a learned prior, such as by total variation, shaped as x; None for none.
        pixel_size: of the images, along each of their last axes, mm; None if unknown.
        trained_sizes: the least and the largest pixel that the prior has seen, mm; None if unknown.

    Raises:
        TypeError: an argument of the wrong kind, or noise of which `invreg.diagnostics.chi_square` knows nothing.
        ValueError: x or reference has another shape than the signal or another batch size than y, sizes are not
            positive, or nothing was measured.

    The bounds are `CHI_SQUARE` and `DISAGREEMENT`.
    """
    require_tensor("x", x)
    problem.operator.check_signal(x)
    if reference is not None:
        require_tensor("reference", reference)
        require_shape("reference", reference, tuple(x.shape[1:]), "x")
        if reference.shape[0] != x.shape[0]:
            raise ValueError(f"reference must have the batch size of x, {x.shape[0]}, got {reference.shape[0]}")
    misplaced = _about_pixels(pixel_size, trained_sizes)
    with torch.no_grad():
        found = chi_square(problem, x)
        disagreement = torch.full_like(found, math.nan) if reference is None else _difference(x, reference)
        good = x.isfinite().flatten(1).all(1)
    reasons = tuple(
        (*_about_residual(chi), *(_about_reference(gap) if reference is not None else ()), *misplaced)
        if finite
        else ("NaN or Inf in the image", *misplaced)
        for chi, gap, finite in zip(found.tolist(), disagreement.tolist(), good.tolist(), strict=True)
    )
    return Trust(found, disagreement, reasons)


def _difference(x: Tensor, reference: Tensor) -> Tensor:
    """|abs(x) - abs(reference)| / |abs(reference)|, (B,); 0 where both are 0, infinite where only the reference is.

    NaN where the reference holds NaN or Inf.
    """
    apart, size = norm(x.abs() - reference.abs()), norm(reference)
    ratio = apart / torch.where(size > 0, size, 1)
    found = torch.where(size > 0, ratio, torch.where(apart > 0, math.inf, 0.0))
    return torch.where(reference.isfinite().flatten(1).all(1), found, math.nan)


def _about_residual(chi_square: float) -> tuple[str, ...]:
    low, high = CHI_SQUARE
    if low <= chi_square <= high:
        return ()
    if math.isnan(chi_square):
        return ("chi-square NaN: the residual is no number",)
    if chi_square < low:
        return (f"chi-square {chi_square:.3g} < {low:g}: it explains the noise, too, or the noise level is too large",)
    return (f"chi-square {chi_square:.3g} > {high:g}: it does not explain the data, or the noise level is too small",)


def _about_reference(disagreement: float) -> tuple[str, ...]:
    if disagreement <= DISAGREEMENT:
        return ()
    if math.isnan(disagreement):
        return ("NaN or Inf in the image without a learned prior",)
    return (f"{disagreement:.0%} apart from the image without a learned prior, above {DISAGREEMENT:.0%}",)


def _about_pixels(sizes: Sequence[float] | None, trained: tuple[float, float] | None) -> tuple[str, ...]:
    if trained is not None:
        for one in trained:
            require_positive("trained_sizes", one)
    if sizes is not None:
        for one in sizes:
            require_positive("pixel_size", one)
    if sizes is None or trained is None:
        return ()
    slack = 1e-3 * trained[0]
    outside = [one for one in sizes if not trained[0] - slack <= one <= trained[1] + slack]
    if not outside:
        return ()
    return (f"pixels of {outside[0]:.3g} mm, but the prior has seen {trained[0]:g} to {trained[1]:g} mm only",)
