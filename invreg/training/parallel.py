"""Training by several processes, one for each device: the same model in all, each with its part of the batch.

Gradients are averaged once they are all there, by one message for each dtype. torch's DistributedDataParallel would
send them while the backward pass still runs, but it needs the loss to come out of its own forward call and each
parameter to receive its gradient once: an objective that solves with `model.field`, and adjoints that run autograd
inside autograd, do neither.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch import distributed as dist

LETTING_GO = 0.01
"""Seconds for which the interpreter is free after the last message of a training. Threads of gloo drop the tensors they
sent only then; if the interpreter ends first, they abort the process (pytorch/pytorch#190489)."""


def world() -> int:
    """How many processes train together; 1 unless torch.distributed is initialized."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Give every process the mean of all gradients; a parameter that has one somewhere has one everywhere."""
    if world() == 1 or not parameters:
        return
    has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
    dist.all_reduce(has, dist.ReduceOp.MAX)
    for parameter, wanted in zip(parameters, has.tolist(), strict=True):
        if wanted and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    for group in _alike(gradients):
        flat = torch.cat([_real(one).reshape(-1) for one in group])
        dist.all_reduce(flat)
        flat /= world()
        _hand_out(flat, group)


@torch.no_grad()
def copy_from_first(tensors: Iterable[object]) -> None:
    """Overwrite tensors by those of process 0; what else there is, is left."""
    if world() == 1:
        return
    for group in _alike(one for one in tensors if isinstance(one, Tensor)):
        flat = torch.cat([_real(one).reshape(-1) for one in group])
        dist.broadcast(flat, 0)
        _hand_out(flat, group)


def mean(values: Tensor) -> Tensor:
    """The mean over the processes."""
    if world() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / world()


def gather_bytes(content: bytes, device: torch.device) -> list[bytes]:
    """What each process gives, in order; `device` is where messages lie."""
    if world() == 1:
        return [content]
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world())]
    dist.all_gather(sizes, torch.tensor([len(content)], device=device))
    counts = [int(size) for size in sizes]
    padded = torch.zeros(max(counts), dtype=torch.uint8, device=device)
    padded[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(device)
    received = [torch.zeros_like(padded) for _ in counts]
    dist.all_gather(received, padded)
    time.sleep(LETTING_GO)
    return [bytes(one[:count].cpu().numpy().data) for one, count in zip(received, counts, strict=True)]


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether it is true in any process."""
    if world() == 1:
        return flag
    found = torch.tensor(float(flag), device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def _hand_out(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    parts = torch.split(flat, [_real(one).numel() for one in tensors])
    for one, part in zip(tensors, parts, strict=True):
        _real(one).copy_(part.view_as(_real(one)))


def _alike(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((_real(tensor).dtype, tensor.device), []).append(tensor)
    return list(groups.values())


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
