"""The bridge to deepinv, both ways: operators, regularizers and denoisers. deepinv is imported by the first call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from invreg._channels import check_layout
from invreg._torchvision import guard_torchvision
from invreg.interfaces import Denoiser, Operator, Proximal, Regularizer

__all__ = ["as_deepinv", "from_deepinv", "guard_torchvision"]

if TYPE_CHECKING:
    from types import ModuleType

Layout = Literal["native", "channels", "real2"]


def as_deepinv(
    thing: Operator | Regularizer[Tensor] | Proximal | Denoiser, layout: Layout = "native"
) -> Any:  # deepinv carries no types
    """One of our objects as deepinv's: an operator as `Physics`, a regularizer as `Prior`, a denoiser as `Denoiser`.

    | ours | deepinv's | what it offers |
    |---|---|---|
    | LinearOperator | LinearPhysics | A, A_adjoint, A_adjoint_A (our `normal`), and all that deepinv derives |
    | Operator | Physics | A, A_vjp, A_jvp |
    | Regularizer | Prior | fn, grad; prox is ours if it has one, else deepinv's gradient descent |
    | Proximal without a value | Prior, not explicit | prox |
    | Denoiser | Denoiser | forward(x, sigma) |

    The result holds our object as a submodule, so that `state_dict`, `.to` and deepinv's `clone` reach its buffers.
    An operator is fixed: `A(x, mask=...)` is refused where deepinv would store the new mask. A prior is
    `g_param * weight * R`, g_param being 1 unless given, in the value, the gradient and the proximal map alike.

    Args:
        thing: the object to wrap.
        layout: how deepinv's tensors relate to ours.
            "native": they are the same.
            "channels": deepinv's have channels behind the batch, (B, C, *signal), each treated on its own.
            "real2": deepinv's are real with two channels, (B, 2, *signal), where ours are complex, (B, *signal):
            its convention for MRI, k-space (B, 2, coil, y, x) included.

    Raises:
        ImportError: deepinv is not installed.
        TypeError: `thing` is none of these.
        ValueError: an unknown layout.
    """
    check_layout(layout)
    adapters = _adapters()
    if isinstance(thing, Operator):
        return adapters.physics_of(thing, layout)
    if isinstance(thing, Denoiser):
        return adapters.OurDenoiser(thing, layout)
    if isinstance(thing, (Regularizer, Proximal)):
        return adapters.prior_of(thing, layout)
    raise TypeError(
        f"thing must be an Operator, a Regularizer, a Proximal or a Denoiser, got {type(thing).__name__}; "
        "a model of deepinv needs no bridge, and from_deepinv goes the other way"
    )


def from_deepinv(
    thing: Any,
    signal_shape: tuple[int, ...] | None = None,
    *,
    layout: Layout = "native",
    weight: float | Tensor | None = None,
    g_param: float | Tensor | None = None,
    dtype: torch.dtype | None = None,
    snapshot: bool = True,
) -> Any:
    """One of deepinv's objects as ours: a `Physics` as operator, a `Prior` as regularizer, a `Denoiser` as denoiser.

    | deepinv's | ours |
    |---|---|
    | LinearPhysics | LinearOperator by A, A_adjoint and A_adjoint_A; its noise and sensor models are left behind |
    | Physics | Operator by A, gradients by autograd |
    | Denoiser | Denoiser |
    | Prior, explicit, with its own prox | Regularizer with `prox` |
    | Prior, explicit, without | Regularizer; deepinv's generic prox is a few gradient steps and not taken over |
    | Prior with a prox only (PnP) | Proximal: `prox` is the denoiser at level g_param, whatever the step |
    | Prior with a gradient only (RED) | Regularizer with `exact = False` that promises this gradient |

    Args:
        thing: the object to wrap.
        signal_shape: of a physics, our signal's shape without batch, such as (C, y, x) in the native layout; default
            the physics' own `img_size`. With neither, the shapes stay open.
        layout: how our tensors relate to deepinv's; see `as_deepinv`. Here "channels" stands for exactly one channel:
            ours are (B, *signal), deepinv's (B, 1, *signal).
        weight: of a prior, default 1.
        g_param: of a prior, what deepinv calls so, passed on to it: the noise level of PnP and RED, which need it.
        dtype: of a physics, of the signal that is sent through once to learn the measurement's shape; default real
            and then complex, in the precision of its buffers.
        snapshot: copy a physics, so that parameters stored in it later do not change the operator.

    Raises:
        ImportError: deepinv is not installed.
        TypeError: `thing` is none of these, measures several tensors, cannot be copied, or an option is missing or not
            for it.
        ValueError: an unknown layout.
    """
    check_layout(layout)
    adapters = _adapters()
    if isinstance(thing, adapters.DeepinvPrior):
        _refuse("Prior", signal_shape=signal_shape, dtype=dtype)
        return adapters.regularizer_of(thing, layout, 1.0 if weight is None else weight, g_param)
    if isinstance(thing, adapters.DeepinvPhysics):
        _refuse("Physics", weight=weight, g_param=g_param)
        return adapters.operator_of(thing, signal_shape, layout, dtype, snapshot)
    if isinstance(thing, adapters.DeepinvDenoiser):
        _refuse("Denoiser", signal_shape=signal_shape, dtype=dtype, weight=weight, g_param=g_param)
        return adapters.DeepinvsDenoiser(thing, layout)
    raise TypeError(
        f"thing must be a Physics, Prior or Denoiser of deepinv, got {type(thing).__module__}.{type(thing).__name__}"
    )


def _adapters() -> ModuleType:
    """The module that subclasses deepinv's classes; importing it imports deepinv."""
    guard_torchvision()
    try:
        import deepinv  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the bridge to deepinv needs deepinv, but {error.name!r} is not installed; pip install 'invreg[deepinv]'"
        ) from error
    from invreg import _deepinv

    return _deepinv


def _refuse(kind: str, **options: object) -> None:
    """Raise TypeError if an option was given that means nothing for this kind of object."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise TypeError(f"{', '.join(given)} must not be given for a {kind} of deepinv; leave it out")
