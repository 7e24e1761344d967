"""The classes behind `invreg.deepinv_bridge`. Importing this file imports deepinv: only the bridge does, when asked."""

from __future__ import annotations

import copy
import inspect
from typing import Any, ClassVar

import torch
from deepinv.models import Denoiser as DeepinvDenoiser
from deepinv.optim import Prior as DeepinvPrior
from deepinv.optim.potential import Potential
from deepinv.physics import MRI, Inpainting, LinearPhysics, MultiCoilMRI
from deepinv.physics import Physics as DeepinvPhysics
from torch import Tensor, nn

from invreg._channels import against, per_problem, to_channels, to_plain
from invreg.interfaces import Denoiser, LinearOperator, Operator, Proximal, Regularizer

__all__ = ["DeepinvDenoiser", "DeepinvPhysics", "DeepinvPrior"]


# --- ours as deepinv's


def _refuse_parameters(operator: Operator, given: dict[str, Any]) -> None:
    """Deepinv stores keyword arguments named as a buffer; our operators are fixed. Others are for the noise model."""
    own = {name.rsplit(".", 1)[-1] for name, _ in operator.named_buffers()} | {"mask", "coil_maps", "filter", "angles"}
    for name, value in given.items():
        if name in own and value is not None:
            raise TypeError(
                f"{name} must not be given: {type(operator).__name__} is fixed; "
                "build another operator and wrap it with as_deepinv"
            )


class OurLinearPhysics(LinearPhysics):  # type: ignore[misc]
    """A LinearOperator as deepinv's LinearPhysics."""

    def __init__(self, operator: LinearOperator, layout: str) -> None:
        super().__init__(img_size=_channel_shape(operator.signal_shape, layout))
        self.operator, self.layout = operator, layout

    def A(self, x: Tensor, **parameters: Any) -> Tensor:
        _refuse_parameters(self.operator, parameters)
        return to_channels(self.operator(to_plain(x, self.layout)), self.layout, x.shape[0])

    def A_adjoint(self, y: Tensor, **parameters: Any) -> Tensor:
        _refuse_parameters(self.operator, parameters)
        return to_channels(self.operator.adjoint(to_plain(y, self.layout)), self.layout, y.shape[0])

    def A_adjoint_A(self, x: Tensor, **parameters: Any) -> Tensor:
        _refuse_parameters(self.operator, parameters)
        return to_channels(self.operator.normal(to_plain(x, self.layout)), self.layout, x.shape[0])

    def update_parameters(self, **parameters: Any) -> None:
        _refuse_parameters(self.operator, parameters)


class OurPhysics(DeepinvPhysics):  # type: ignore[misc]
    """An Operator that is not linear as deepinv's Physics."""

    def __init__(self, operator: Operator, layout: str) -> None:
        super().__init__()
        self.operator, self.layout = operator, layout

    def A(self, x: Tensor, **parameters: Any) -> Tensor:
        _refuse_parameters(self.operator, parameters)
        return to_channels(self.operator(to_plain(x, self.layout)), self.layout, x.shape[0])

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        plain = self.operator.vjp(to_plain(x, self.layout), to_plain(v, self.layout))
        return to_channels(plain, self.layout, x.shape[0])

    def A_jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """J(x) v, which deepinv's `compute_norm` of a non-linear physics asks for."""
        derivative: Tensor = torch.func.jvp(self.A, (x,), (v,))[1]
        return derivative

    def update_parameters(self, **parameters: Any) -> None:
        _refuse_parameters(self.operator, parameters)


def physics_of(operator: Operator, layout: str) -> DeepinvPhysics:
    """Our operator as deepinv's Physics, linear if it is."""
    if isinstance(operator, LinearOperator):
        return OurLinearPhysics(operator, layout)
    return OurPhysics(operator, layout)


def _channel_shape(shape: tuple[int, ...] | None, layout: str) -> tuple[int, ...] | None:
    """Our signal's shape as deepinv's `img_size`."""
    if shape is None or layout == "native":
        return shape
    return (2 if layout == "real2" else 1, *shape)


class OurPrior(DeepinvPrior):  # type: ignore[misc]
    """A Regularizer as deepinv's Prior g_param * weight * R."""

    def __init__(self, regularizer: Regularizer[Tensor], layout: str) -> None:
        super().__init__()
        self.regularizer, self.layout = regularizer, layout
        self.explicit_prior = regularizer.exact

    def fn(self, x: Tensor, g_param: Any = None, **options: Any) -> Tensor:
        value = self.regularizer(to_plain(x, self.layout))
        if self.layout == "channels":
            value = value.reshape(x.shape[0], -1).sum(1)
        return value if g_param is None else value * (g_param.flatten() if isinstance(g_param, Tensor) else g_param)

    def grad(self, x: Tensor, g_param: Any = None, **options: Any) -> Tensor:
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            point = x if x.requires_grad else x.detach().requires_grad_()
            value = self.fn(point, g_param).sum()
            (gradient,) = torch.autograd.grad(value, point, create_graph=graph)
        return gradient


class OurProximalPrior(OurPrior):
    """A Regularizer with a proximal map as deepinv's Prior."""

    def prox(self, x: Tensor, g_param: Any = None, *, gamma: Any = 1.0, **options: Any) -> Tensor:
        return _prox(self.regularizer, self.layout, x, g_param, gamma)


class OurImplicitPrior(DeepinvPrior):  # type: ignore[misc]
    """A Proximal without a value as deepinv's Prior."""

    def __init__(self, proximal: Proximal, layout: str) -> None:
        super().__init__()
        self.proximal, self.layout = proximal, layout
        self.explicit_prior = False

    def prox(self, x: Tensor, g_param: Any = None, *, gamma: Any = 1.0, **options: Any) -> Tensor:
        return _prox(self.proximal, self.layout, x, g_param, gamma)


def _prox(proximal: Any, layout: str, x: Tensor, g_param: Any, gamma: Any) -> Tensor:
    plain = to_plain(x, layout)
    step = per_problem(gamma, x, layout)
    if g_param is not None:
        step = step * per_problem(g_param, x, layout)
    return to_channels(proximal.prox(plain, against(step, plain)), layout, x.shape[0])


def prior_of(thing: Any, layout: str) -> DeepinvPrior:
    """Our regularizer or proximal map as deepinv's Prior."""
    if not isinstance(thing, Regularizer):
        return OurImplicitPrior(thing, layout)
    return OurProximalPrior(thing, layout) if isinstance(thing, Proximal) else OurPrior(thing, layout)


class OurDenoiser(DeepinvDenoiser):  # type: ignore[misc]
    """A Denoiser as deepinv's."""

    def __init__(self, denoiser: Denoiser, layout: str) -> None:
        nn.Module.__init__(self)  # deepinv's constructor would move it to the CPU
        self.denoiser, self.layout = denoiser, layout

    def forward(self, x: Tensor, sigma: Any, **options: Any) -> Tensor:
        level = torch.as_tensor(sigma, device=x.device) if isinstance(sigma, (list, tuple)) else sigma
        plain = self.denoiser(to_plain(x, self.layout), per_problem(level, x, self.layout))
        return to_channels(plain, self.layout, x.shape[0])


# --- deepinv's as ours


class DeepinvsLinearOperator(LinearOperator):
    """A LinearPhysics of deepinv as our LinearOperator."""

    def __init__(
        self, physics: DeepinvPhysics, signal: tuple[int, ...] | None, measured: tuple[int, ...] | None, layout: str
    ) -> None:
        super().__init__(signal, measured)
        self.physics, self.layout = physics, layout

    def forward(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        return _through(self.physics.A, x, self.layout)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_measurement(y)
        return _through(self.physics.A_adjoint, y, self.layout)

    def normal(self, x: Tensor) -> Tensor:
        return _through(self.physics.A_adjoint_A, x, self.layout)

    def sampled(self) -> Tensor | None:
        """The mask of those physics that leave zeros where nothing is measured."""
        if not isinstance(self.physics, (MRI, MultiCoilMRI, Inpainting)):
            return None
        mask: Tensor = self.physics.mask != 0
        if isinstance(self.physics, MultiCoilMRI):  # (B, 2, y, x) for k-space (B, 2, coil, y, x)
            mask = mask[:, :, None]
        return mask if self.layout == "native" else mask[:, 0]  # both real channels of k-space share their mask


class DeepinvsOperator(Operator):
    """A Physics of deepinv as our Operator."""

    def __init__(
        self, physics: DeepinvPhysics, signal: tuple[int, ...] | None, measured: tuple[int, ...] | None, layout: str
    ) -> None:
        super().__init__(signal, measured)
        self.physics, self.layout = physics, layout

    def forward(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        return _through(self.physics.A, x, self.layout)


def _through(function: Any, x: Tensor, layout: str) -> Tensor:
    """Send a plain tensor through a function of deepinv that has one channel, or two for a complex number."""
    return _receive(function(_add_channels(x, layout)), layout)


def _receive(result: Any, layout: str) -> Tensor:
    if not isinstance(result, Tensor):
        raise TypeError(
            f"the physics must give one tensor, got {type(result).__name__}; wrap its parts and join them with Stack"
        )
    return _drop_channels(result, layout)


def _add_channels(x: Tensor, layout: str) -> Tensor:
    return x.unsqueeze(1) if layout == "channels" else to_channels(x, layout, x.shape[0])


def _drop_channels(x: Tensor, layout: str) -> Tensor:
    if layout == "channels" and (x.ndim < 2 or x.shape[1] != 1):
        raise ValueError(
            f'the layout "channels" is for one channel, but deepinv gave {tuple(x.shape)}; '
            'use layout="native" and a signal with its channels'
        )
    return to_plain(x, layout)


def operator_of(
    physics: DeepinvPhysics,
    signal_shape: tuple[int, ...] | None,
    layout: str,
    dtype: torch.dtype | None,
    snapshot: bool,
) -> Operator:
    """Deepinv's Physics as our operator, linear if it is."""
    if snapshot:
        physics = _copy(physics)
    if signal_shape is None:
        signal_shape = _own_shape(physics, layout)
    measured = None if signal_shape is None else _measured_shape(physics, signal_shape, layout, dtype)
    kind = DeepinvsLinearOperator if isinstance(physics, LinearPhysics) else DeepinvsOperator
    return kind(physics, None if signal_shape is None else tuple(signal_shape), measured, layout)


def _copy(physics: DeepinvPhysics) -> DeepinvPhysics:
    try:
        return physics.clone()
    except Exception as error:  # whatever a foreign object's copy may raise
        raise TypeError(
            f"{type(physics).__name__} cannot be copied ({error}); use snapshot=False, and do not change it later"
        ) from error


def _own_shape(physics: DeepinvPhysics, layout: str) -> tuple[int, ...] | None:
    # the img_size of this one is a default that it ignores
    size = physics.mask.shape[1:] if isinstance(physics, MultiCoilMRI) else getattr(physics, "img_size", None)
    if not isinstance(size, (tuple, list, torch.Size)) or not all(isinstance(n, int) for n in size):
        return None
    lead = {"native": (), "channels": (1,), "real2": (2,)}[layout]
    if tuple(size[: len(lead)]) != lead:
        return None
    return tuple(size[len(lead) :])


def _measured_shape(
    physics: DeepinvPhysics, shape: tuple[int, ...], layout: str, dtype: torch.dtype | None
) -> tuple[int, ...]:
    """The measurement's shape, learnt by sending a zero signal through, on the physics' device."""
    state = [t for name, t in physics.named_buffers() if name != "_device_holder"] + list(physics.parameters())
    kinds = [t.real.dtype for t in state if t.is_floating_point() or t.is_complex()]
    real = kinds[0] if kinds else torch.float32
    # whether a physics wants real or complex signals, it does not say: real is tried first
    tries = [dtype] if dtype is not None else [real, real.to_complex()][layout == "real2" :]
    for k, one in enumerate(tries):
        probe = torch.zeros(1, *shape, dtype=one, device=state[0].device if state else None)
        try:
            with torch.no_grad():
                result = physics.A(_add_channels(probe, layout))
            break
        except (TypeError, ValueError, RuntimeError):
            if k == len(tries) - 1:
                raise
    return tuple(_receive(result, layout).shape[1:])


class DeepinvsDenoiser(Denoiser):
    """A Denoiser of deepinv as ours."""

    def __init__(self, model: DeepinvDenoiser, layout: str) -> None:
        super().__init__()
        self.model, self.layout = model, layout

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        result: Tensor = self.model(_add_channels(x, self.layout), sigma)
        return _drop_channels(result, self.layout)


class DeepinvsRegularizer(Regularizer[Tensor]):
    """An explicit Prior of deepinv as our Regularizer: its value, its gradient by autograd."""

    def __init__(self, prior: DeepinvPrior, layout: str, weight: float | Tensor, g_param: Any) -> None:
        super().__init__(weight)
        self.prior, self.layout, self.g_param = prior, layout, g_param

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.prior.fn(_add_channels(x, self.layout), *_arguments(self.g_param))
        return self.weight * value.reshape(x.shape[0], -1).sum(1)


class DeepinvsProximalRegularizer(DeepinvsRegularizer):
    """An explicit Prior of deepinv that has its own proximal map."""

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """The prior's proximal map, as exact as deepinv's; it remembers nothing between calls."""
        return _foreign_prox(self.prior, self.layout, x, step * self.weight, self.g_param)


class DeepinvsGradient(Regularizer[Tensor]):
    """A Prior of deepinv that has a gradient and no value (RED, score priors).

    Its number is weight * Re<grad(x), x> with the gradient held fixed: autograd gives weight * grad(x), as promised.
    """

    exact: ClassVar[bool] = False

    def __init__(self, prior: DeepinvPrior, layout: str, weight: float | Tensor, g_param: Any) -> None:
        super().__init__(weight)
        self.prior, self.layout, self.g_param = prior, layout, g_param

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            foreign = self.prior.grad(_add_channels(x, self.layout), *_arguments(self.g_param))
            gradient = _drop_channels(foreign, self.layout)
        product = gradient.conj() * x
        return self.weight * (product.real if product.is_complex() else product).flatten(1).sum(1)


class DeepinvsProximal(nn.Module):
    """A Prior of deepinv that has a proximal map and no value (plug and play)."""

    def __init__(self, prior: DeepinvPrior, layout: str, weight: float | Tensor, g_param: Any) -> None:
        super().__init__()
        self.prior, self.layout, self.weight, self.g_param = prior, layout, weight, g_param

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """The prior's map; a denoiser's level is g_param, whatever the step."""
        return _foreign_prox(self.prior, self.layout, x, step * self.weight, self.g_param)


def _arguments(g_param: Any) -> tuple[Any, ...]:
    return () if g_param is None else (g_param,)


def _foreign_prox(prior: DeepinvPrior, layout: str, x: Tensor, gamma: Any, g_param: Any) -> Tensor:
    """Deepinv's prox from a pristine state: some of its priors start from where their last call ended."""
    if not any(True for _ in prior.parameters()):  # networks keep no such state, and copying them would be dear
        prior = copy.deepcopy(prior)
    foreign = _add_channels(x, layout)
    if isinstance(gamma, Tensor) and gamma.ndim:
        gamma = gamma.reshape(-1, *(1,) * (foreign.ndim - 1))
    return _drop_channels(prior.prox(foreign, *_arguments(g_param), gamma=gamma), layout)


def regularizer_of(prior: DeepinvPrior, layout: str, weight: float | Tensor, g_param: Any) -> nn.Module:
    """Deepinv's Prior as our Regularizer or Proximal, by what it has.

    Raises:
        TypeError: it has neither value nor gradient nor proximal map of its own, or needs a g_param that is not given.
    """
    own_prox = type(prior).prox is not Potential.prox
    if prior.explicit_prior:
        kind = DeepinvsProximalRegularizer if own_prox else DeepinvsRegularizer
        return kind(prior, layout, weight, g_param)
    _require_level(prior, prior.prox if own_prox else prior.grad, g_param)
    if own_prox:
        return DeepinvsProximal(prior, layout, weight, g_param)
    if type(prior).grad is not Potential.grad:
        return DeepinvsGradient(prior, layout, weight, g_param)
    raise TypeError(f"{type(prior).__name__} must have a value, a gradient or a prox of its own; it has none")


def _require_level(prior: DeepinvPrior, method: Any, g_param: Any) -> None:
    """Raise TypeError if the method cannot be called without the noise level that g_param is."""
    _, level, *_ = inspect.signature(method).parameters.values()
    if g_param is None and level.kind is level.POSITIONAL_OR_KEYWORD and level.default is level.empty:
        raise TypeError(f"g_param must be given for {type(prior).__name__}, as its {level.name}; got None")
