"""Several processes that train together do what one does with the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from invreg._store import load_tensors
from invreg.training import parallel, read_log
from invreg.training.checkpoint import checkpoints

CODE = """
import sys
import torch
from torch import distributed as dist, nn
from invreg.training import Average, Options, Share, Shuffled, iterate, parallel

rank, world, folder, mode, steps = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
if world > 1:
    dist.init_process_group("gloo", init_method="file://" + folder + ".meet", rank=rank, world_size=world)
torch.manual_seed(0 if rank == 0 else 99)  # the first process decides where all begin
sizes = {"inner": (6, 8), "outer": (8, 2), "some": (8, 2), "unused": (1, 1)}
model = nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})
model.register_parameter("turn", nn.Parameter(torch.ones(8, dtype=torch.complex128)))
model.double()
x = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def objective(batch, progress, generator):
    torch.rand((), generator=generator)  # what each process draws is its own, and kept
    hidden = torch.view_as_real(torch.tanh(model["inner"](batch[0])) * model.turn).sum(2)
    terms = {"data": model["outer"](hidden).square().mean(), "first": model["inner"](batch[0])[:, 0].mean()}
    # a parameter with a gradient in one of the processes has one in all
    some = 0 * model["some"](hidden).sum() if rank == world - 1 else hidden.new_zeros(())
    return {**terms, "some": some}


batches = Shuffled(x, size=8, epochs=4, seed=0)
training = iterate(
    objective, batches if world == 1 else Share(batches), torch.optim.AdamW(model.parameters(), 1e-2),
    torch.Generator().manual_seed(100 + rank), model=model, average=Average(model, 0.9), folder=folder,
    resume=mode == "resume", options=Options(save_every=5, clip=0.3),
)
for step in training:
    if parallel.any_of(rank == 0 and training.step >= steps, torch.device("cpu")):
        training.save()
        break
if world > 1:
    assert [len(one) for one in parallel.gather_bytes(b"x" * (3 + rank), torch.device("cpu"))] == [3, 4]
    dist.destroy_process_group()
"""

NORMALIZED = """
import sys
import torch
from torch import distributed as dist, nn
from invreg.training import Options, Share, iterate

rank, world, folder, mode, steps = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
dist.init_process_group("gloo", init_method="file://" + folder + ".meet", rank=rank, world_size=world)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
batches = list(torch.randn(9, 8, 3))
if mode == "fail":
    batches[5][7] = torch.nan  # in the part of the last process


def objective(batch, progress, generator):
    found = model(batch).square().mean()
    model.eval()  # whose statistics then come from the other batches
    steady = model(batch).square().mean()
    model.train()
    return {"data": found, "steady": steady}


training = iterate(
    objective, Share(batches), torch.optim.SGD(model.parameters(), 1e-2), model=model, folder=folder,
    resume=mode == "resume", options=Options(save_every=3),
)
for step in training:
    if training.step == steps:
        training.save()
        break
"""


def train(folder: Path, world: int, steps: int = 1000, mode: str = "begin", code: str = CODE) -> list[str]:
    """Train by some processes, and tell what they complained of."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    (folder.parent / (folder.name + ".meet")).unlink(missing_ok=True)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(world), str(folder), mode, str(steps)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    return [one.communicate(timeout=120)[1] if one.wait(120) else "" for one in running]


def generators(about: Any) -> list[Any]:
    return [json.loads(one)["generator"] for one in about["state"]["random"]]


@pytest.mark.slow(seconds=40)
def test_two_processes_end_like_one_and_only_the_first_writes(tmp_path: Path) -> None:
    one, two, stopped = tmp_path / "one", tmp_path / "two", tmp_path / "stopped"
    assert train(one, 1) == [""]
    assert train(two, 2) == ["", ""]
    alone, _ = load_tensors(checkpoints(one)[0])
    together, about = load_tensors(checkpoints(two)[0])
    assert len(about["state"]["random"]) == 2
    assert generators(about)[0] != generators(about)[1]
    for name, value in alone.items():
        assert torch.allclose(value, together[name], rtol=1e-9, atol=1e-12), name
    assert [line["step"] for line in read_log(two)] == list(range(20))
    assert train(stopped, 2, steps=7) == ["", ""]
    assert checkpoints(stopped)[0].name == "checkpoint-0000000007.safetensors"
    assert train(stopped, 2, mode="resume") == ["", ""]
    resumed, about_resumed = load_tensors(checkpoints(stopped)[0])
    assert all(torch.equal(value, resumed[name]) for name, value in together.items())
    assert generators(about) == generators(about_resumed)
    for said in train(two, 1, mode="resume"):
        assert "options.processes was 2, is 1" in said


@pytest.mark.slow(seconds=40)
def test_processes_share_their_buffers_and_keep_what_was_before_nan(tmp_path: Path) -> None:
    whole, stopped, failed = tmp_path / "whole", tmp_path / "stopped", tmp_path / "failed"
    train(whole, 2, code=NORMALIZED)
    train(stopped, 2, steps=4, code=NORMALIZED)
    train(stopped, 2, mode="resume", code=NORMALIZED)
    (one, _), (other, _) = (load_tensors(checkpoints(folder)[0]) for folder in (whole, stopped))
    assert checkpoints(whole)[0].name == "checkpoint-0000000009.safetensors"
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    for said in train(failed, 2, mode="fail", code=NORMALIZED):
        assert "the loss of step 5 must be finite" in said
        assert f"it is kept in {failed}" in said
    assert checkpoints(failed)[0].name == "checkpoint-0000000005.safetensors"


def test_alone_nothing_is_sent() -> None:
    assert (parallel.rank(), parallel.world()) == (0, 1)
    w = torch.ones(2, requires_grad=True)
    w.grad = torch.full((2,), 3.0)
    parallel.average_gradients([w])
    parallel.copy_from_first([w])
    assert w.grad.tolist() == [3.0, 3.0]
    assert parallel.gather_bytes(b"abc", torch.device("cpu")) == [b"abc"]
    assert parallel.any_of(True, torch.device("cpu"))
    assert parallel.mean(w.detach()).tolist() == [1.0, 1.0]
