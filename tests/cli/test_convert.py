"""`invreg convert`: pickled weights become safetensors."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def test_weights_are_written_anew_and_nothing_is_overwritten_unasked(invoke, tmp_path: Path) -> None:
    weights = {"a": torch.arange(3.0), "b": torch.eye(2)}
    torch.save({"model": weights, "ema": {"a": torch.ones(3)}}, tmp_path / "in.pt")
    words = ("convert", tmp_path / "in.pt", tmp_path / "out.safetensors")
    several = invoke(*words)
    assert several.code == 2
    assert "choose one with --key: ema, model" in several.err
    assert several.err.count("\n") == 1
    done = invoke(*words, "--key", "model", "--json")
    assert done.code == 0, done.err
    assert done.json["tensors"] == ["a", "b"]
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["a"], weights["a"])
    again = invoke(*words, "--key", "ema")
    assert again.code == 2
    assert "pass --force" in again.err
    forced = invoke(*words, "--key", "ema", "--force")
    assert forced.code == 0
    assert "1 tensors" in forced.out


def test_a_file_of_another_kind_is_one_line_and_code_two(invoke, tmp_path: Path) -> None:
    (tmp_path / "in.pt").write_bytes(b"no weights")
    for source in ("in.pt", "none.pt"):
        outcome = invoke("convert", tmp_path / source, tmp_path / "out.safetensors")
        assert outcome.code == 2
        assert outcome.err.startswith("error: ")
        assert outcome.err.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()
