"""Weights come out of checkpoints unchanged, and nothing in them is run."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from invreg.models.convert import convert


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = dict(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict())
    state["half"] = torch.randn(4).half()
    state["tied"] = state["0.weight"]
    state["strided"] = torch.arange(6.0).reshape(2, 3).mT
    return state


def saved(folder: Path, content: Any, name: str = "in.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def same(path: Path, wanted: dict[str, Tensor]) -> None:
    found = load_file(path)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", ["in.pt", "in.pth", "in.bin", "in.ckpt"])
def test_a_state_dict_is_written_as_it_is(tmp_path: Path, name: str) -> None:
    names = convert(saved(tmp_path, weights(), name), tmp_path / "out.safetensors")
    assert set(names) == set(weights())
    same(tmp_path / "out.safetensors", weights())
    assert {one.name for one in tmp_path.iterdir()} == {name, "out.safetensors"}


def test_the_only_weights_of_a_checkpoint_are_found_beside_its_optimizer(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "state_dict": weights(),
        "optimizer_states": [optimizer.state_dict()],
        "optimizer": {"exp_avg": torch.ones(2)},
        "hyper_parameters": {"width": 3, "name": "x"},
    }
    convert(saved(tmp_path, content), tmp_path / "out.safetensors")
    same(tmp_path / "out.safetensors", weights())


def test_one_of_several_models_is_chosen_by_key(tmp_path: Path) -> None:
    average = {name: value + 1 for name, value in weights().items()}
    path = saved(tmp_path, {"state": {"model": weights(), "ema": average}})
    with pytest.raises(ValueError, match=r"several models; choose one with key: state\.ema, state\.model"):
        convert(path, tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match=r"unknown key 'state\.emma'; did you mean 'state\.ema'"):
        convert(path, tmp_path / "out.safetensors", key="state.emma")
    assert not (tmp_path / "out.safetensors").exists()
    convert(path, tmp_path / "out.safetensors", key="state.ema")
    same(tmp_path / "out.safetensors", average)


def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path) -> None:
    wrapped = {f"module._orig_mod.{name}": value for name, value in weights().items()}
    convert(saved(tmp_path, wrapped), tmp_path / "out.safetensors")
    same(tmp_path / "out.safetensors", weights())


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("plain", [False, True])
def test_no_code_of_a_pickle_is_run(tmp_path: Path, plain: bool) -> None:
    content = {"state_dict": weights(), "extra": Trap(tmp_path / "sprung")}
    if plain:
        (tmp_path / "in.pt").write_bytes(pickle.dumps(content, protocol=2))
    else:
        saved(tmp_path, content)
    with pytest.raises(ValueError, match="holds objects beside tensors and plain values"):
        convert(tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_whole_models_are_refused_by_the_class_they_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear.*save its state_dict\(\) alone"):
        convert(saved(tmp_path, nn.Linear(2, 2)), tmp_path / "out.safetensors")


def test_files_that_are_damaged_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, weights())
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"in\.pt (is damaged|holds objects)"):
            convert(path, tmp_path / "out.safetensors")


def test_bad_paths_and_contents_are_named(tmp_path: Path) -> None:
    path, out = saved(tmp_path, weights()), tmp_path / "out.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        convert(tmp_path / "none.pt", out)
    with pytest.raises(ValueError, match=r"path_out must end in \.safetensors, got out\.bin"):
        convert(path, tmp_path / "out.bin")
    with pytest.raises(FileNotFoundError, match="does not exist; make it first"):
        convert(path, tmp_path / "none" / "out.safetensors")
    convert(path, out)
    with pytest.raises(ValueError, match="is in safetensors already"):
        convert(out, tmp_path / "other.safetensors")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        convert(path, out)
    convert(saved(tmp_path, {"a": torch.ones(1)}), out, overwrite=True)
    same(out, {"a": torch.ones(1)})
    for content in ({"epoch": 3}, [torch.ones(2)], torch.ones(2), {}):
        with pytest.raises(ValueError, match="holds no mapping from names to tensors"):
            convert(saved(tmp_path, content), out, overwrite=True)
    with pytest.raises(ValueError, match="a must be a dense tensor"):
        convert(saved(tmp_path, {"a": torch.eye(2).to_sparse()}), out, overwrite=True)
