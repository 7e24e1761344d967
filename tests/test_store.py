"""What goes to disk comes back the same, whole or not at all, and damage is noticed."""

import math
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invreg._files import write_whole
from invreg._store import DamagedFileError, decode, encode, load_tensors, save_tensors

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def test_tensors_of_all_kinds_come_back_the_same(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
    tensors = {str(dtype): (10 * z).to(dtype) for dtype in DTYPES}
    tensors |= {"complex64": torch.view_as_complex(z.float()), "complex128": torch.view_as_complex(z).mH}
    tensors |= {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 2),
        "strided": z[::2, :, 1],
        "conj": tensors["complex64"].conj(),
    }
    tensors["alias"] = tensors["strided"]
    path = tmp_path / "a.safetensors"
    save_tensors(path, tensors, {"what": [1, "x", None]})
    found, about = load_tensors(path)
    assert about == {"what": [1, "x", None]}
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.just("!"), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(plain)
def test_nested_values_come_back_the_same(value: object) -> None:
    import json

    found = decode(json.loads(json.dumps(encode(value, {}, "x"), allow_nan=False)), {})
    assert found == value
    assert repr(found) == repr(value)  # 1 and 1.0 and True differ


def test_states_of_optimizers_and_schedulers_come_back_the_same() -> None:
    tensors: dict[str, torch.Tensor] = {}
    value = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}, 1: {}},
        "milestones": Counter({3: 1, 5: 2}),
        "ordered": OrderedDict(a=(1, 2.5)),
        "lost": math.inf,
    }
    found = decode(encode(value, tensors, "state"), tensors)
    assert set(tensors) == {"state.state.0.step", "state.state.0.exp_avg"}
    assert torch.equal(found["state"][0]["exp_avg"], torch.ones(2))
    assert found["milestones"] == value["milestones"]
    assert isinstance(found["milestones"], Counter)
    assert found["ordered"] == {"a": (1, 2.5)}
    assert found["lost"] == math.inf
    assert math.isnan(decode(encode(math.nan, {}, "x"), {}))


def test_what_is_neither_plain_nor_a_tensor_is_named() -> None:
    with pytest.raises(TypeError, match=r"state.rule.1 must be of plain values and tensors to be kept, got function"):
        encode({"rule": [1, lambda: 0]}, {}, "state")


def test_damage_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"w": torch.arange(8.0)}, {"step": 3})
    whole = path.read_bytes()
    damaged = [whole[:-1], whole[:20], b"", whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]]
    damaged.append(whole.replace(b'step\\": 3', b'step\\": 4'))
    for content in damaged:
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match="a.safetensors is damaged"):
            load_tensors(path)
    safetensors.torch.save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(DamagedFileError, match="damaged or of another kind"):
        load_tensors(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_tensors(tmp_path / "b.safetensors")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"w": torch.zeros(2)}, {})
    write_whole(tmp_path / "b", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for attempt in (lambda: save_tensors(path, {"w": torch.ones(2)}, {}), lambda: write_whole(tmp_path / "b", b"new")):
        with pytest.raises(OSError, match="No space left"):
            attempt()
    assert torch.equal(load_tensors(path)[0]["w"], torch.zeros(2))
    assert (tmp_path / "b").read_bytes() == b"old"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.safetensors", "b"]


def test_a_folder_that_cannot_be_written_to_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a.safetensors"):
        save_tensors(tmp_path / "none" / "a.safetensors", {"w": torch.zeros(2)}, {})
