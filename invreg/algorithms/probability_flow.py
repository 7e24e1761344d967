"""The ordinary differential equation with a diffusion's marginals: samples by a smooth map, and exact likelihoods."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from invreg._check import require_count, require_tensor
from invreg.interfaces import Denoiser
from invreg.linalg import expand
from invreg.random import Generator, draw
from invreg.sde import SDE, VP
from invreg.solvers import Dopri5, Method, odeint


@torch.no_grad()
def probability_flow(
    denoiser: Denoiser,
    noise: Tensor,
    sde: SDE = VP(),
    *,
    t_min: float = 1e-5,
    method: Method = Dopri5(),
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """Samples of the prior, (B, *signal): noise carried by dx/dt = rate x - diffusion^2 score / 2 from t = 1 to t_min.

    Every image takes steps of its own, so that it does not depend on its batch. The map from noise to image is
    deterministic and invertible. The span of times is cut to the noise levels that the denoiser was made for, and what
    is returned is the denoised image at its end.

    Args:
        denoiser: the prior.
        noise: standard normal, (B, *signal), as from `draw`; its dtype is that of the samples.
        sde: the diffusion.
        t_min: where to stop, > 0.
        method: of the solver.
        rtol, atol: of the solver, for the scaled image x_t.

    Raises:
        TypeError, ValueError: arguments of the wrong kind; the diffusion and the denoiser share no noise level.
        RuntimeError: the solver stopped short.

    Source: Song et al. 2021, "Score-based generative modeling through stochastic differential equations", eq. 13. Their
    noise has mean zero, here it has the mean of the images, E[x0 | x_1 = 0], times what is left of it.
    """
    _check(denoiser, noise, "noise", sde)
    last, first = sde.span(denoiser.sigma_range, t_min)
    start = sde.prior_mean(denoiser, noise, first) + noise * float(sde.std(first))

    def field(t: Tensor, x: Tensor) -> Tensor:
        return _velocity(sde, denoiser, x, t.reshape(-1))[0]

    times = torch.tensor([first, last], dtype=torch.float64, device=noise.device)
    end: Tensor = odeint(field, start, times, method=method, per_sample=True, rtol=rtol, atol=atol).ys[-1]
    return sde.denoised(denoiser, end, last)


@torch.no_grad()
def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    sde: SDE = VP(),
    *,
    probes: int | None = None,
    generator: Generator = None,
    t_min: float = 1e-5,
    method: Method = Dopri5(),
    rtol: float = 1e-6,
    atol: float = 1e-6,
) -> Tensor:
    """Log density of images under the prior that a denoiser stands for, (B,), in nats; no gradient.

    The change of variables along the probability flow: the log density of the noise at its end plus the integral of
    the divergence. It is the density of images that carry the noise of time t_min, or of the least level that the
    denoiser was made for, if that is more. Divide by -log(2) times the number of pixels for bits per dimension.

    Args:
        denoiser: the prior; it must be differentiable in x.
        x: images, (B, *signal); a density over complex images is one over their real and imaginary parts.
        sde: the diffusion; the result depends on it only by t_min and by how little is left of x at t = 1.
        probes: None: the exact divergence, by one backward pass for every real component; else the number of random
            signs by which it is estimated without bias (their error falls with the root).
        generator: of the signs.
        t_min: where to begin, > 0.
        method, rtol, atol: of the solver.

    Raises:
        TypeError, ValueError: arguments of the wrong kind; the diffusion and the denoiser share no noise level.
        RuntimeError: the solver stopped short.

    Source: Song et al. 2021, eq. 39 and 40, with the mean as in `probability_flow`; Grathwohl et al. 2019, "FFJORD",
    for the estimate with signs that stay the same along the path.
    """
    _check(denoiser, x, "x", sde)
    if probes is not None:
        require_count("probes", probes)
    last, first = sde.span(denoiser.sigma_range, t_min)
    start = sde.scale(last).to(x.device, x.real.dtype) * x
    trace = _exact_trace if probes is None else _estimated_trace(_signs(x, probes, generator))
    entries = _parts(x[:1]).numel()

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        velocity, part = _velocity(sde, denoiser, state[0], t, trace)
        linear = sde.rate(t) + 0.5 * (sde.diffusion(t) / sde.std(t)).square()
        quadratic = 0.5 * (sde.diffusion(t) / sde.std(t)).square()
        return velocity, linear.to(part) * entries - quadratic.to(part) * part

    gained = torch.zeros(len(x), dtype=x.real.dtype, device=x.device)
    times = torch.tensor([last, first], dtype=torch.float64, device=x.device)
    end = odeint(field, (start, gained), times, method=method, per_sample=True, rtol=rtol, atol=atol).ys
    # the density of the unscaled image: that of scale * x, times scale to the number of components
    unscaled = entries * sde.scale(last).log().to(gained)
    noise = end[0][-1] - sde.prior_mean(denoiser, x, first)
    found: Tensor = sde.prior_log_density(noise, first) + end[1][-1] + unscaled
    return found


Trace = Callable[[Tensor, Tensor], Tensor]


def _velocity(sde: SDE, denoiser: Denoiser, x: Tensor, t: Tensor, trace: Trace | None = None) -> tuple[Tensor, Tensor]:
    """dx/dt, (B, *signal), and the trace of the denoiser's Jacobian, (B,), zero if it is not wanted."""
    with torch.set_grad_enabled(trace is not None):
        scaled = _parts(x) / _broadcast(sde.scale(t), _parts(x))
        scaled = scaled.detach().requires_grad_(trace is not None)
        image = torch.view_as_complex(scaled) if x.is_complex() else scaled
        found = denoiser(image, sde.sigma(t).to(x.device, x.real.dtype))
        part = x.real.new_zeros(len(x)) if trace is None else trace(_parts(found), scaled)
    score = sde.score_of(found.detach(), x, t)
    return _broadcast(sde.rate(t), x) * x - 0.5 * _broadcast(sde.diffusion(t), x).square() * score, part


def _broadcast(coefficient: Tensor, x: Tensor) -> Tensor:
    return expand(coefficient.to(x.device, x.real.dtype), x)


def _parts(x: Tensor) -> Tensor:
    """Real and imaginary parts on an axis of their own."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _exact_trace(output: Tensor, point: Tensor) -> Tensor:
    """The sum of d output_i / d point_i, (B,), component by component."""
    flat, total = output.flatten(1), point.new_zeros(len(point))
    for i in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, i].sum(), point, retain_graph=True)
        total = total + row.flatten(1)[:, i]
    return total


def _signs(x: Tensor, probes: int, generator: Generator) -> Tensor:
    """Random signs, (B, probes, *parts), of each sample's generator."""
    like = _parts(x)
    noise = draw(like.new_empty(len(x), probes, *like.shape[1:]), generator)
    return torch.where(noise < 0, -1.0, 1.0).to(like.dtype)


def _estimated_trace(signs: Tensor) -> Trace:
    def trace(output: Tensor, point: Tensor) -> Tensor:
        total = point.new_zeros(len(point))
        for probe in signs.unbind(1):
            (row,) = torch.autograd.grad(output, point, probe, retain_graph=True)
            total = total + (row * probe).flatten(1).sum(1)
        return total / signs.shape[1]

    return trace


def _check(denoiser: Denoiser, x: Tensor, name: str, sde: SDE) -> None:
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"denoiser must be a Denoiser, got {type(denoiser).__name__}")
    if not isinstance(sde, SDE):
        raise TypeError(f"sde must be an SDE such as VP(), got {sde!r}; write VP() with its brackets")
    require_tensor(name, x)
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"{name} must be floating point or complex, got {x.dtype}; use {name}.float()")
