"""A model's folder builds the model again, and says what is wrong with it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invreg import config
from invreg._store import decode, encode, load_tensors, save_tensors
from invreg.models.pretrained import Configured, describe, from_pretrained, info_of, rebuild, save_pretrained


@dataclass(frozen=True)
class Rule:
    """An option that is an object."""

    order: int
    name: str = "rule"


class Part(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.config = {"width": width}
        self.linear = nn.Linear(width, width)


class Whole(nn.Module):
    """With parts, tied weights, buffers and several precisions."""

    def __init__(self, part: nn.Module, sizes: tuple[int, ...], rule: Rule | None = None, scale: float = 1.0) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"scale must be > 0, got {scale}")
        assert isinstance(sizes, tuple)
        self.part, self.sizes, self.rule, self.scale = part, sizes, rule, scale
        self.layers = nn.ModuleList(nn.Linear(a, a) for a in sizes)
        self.tied = nn.Parameter(torch.zeros(2))
        self.alias = self.tied
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex128))
        self.norm = nn.BatchNorm1d(2)

    @property
    def config(self) -> Mapping[str, Any]:
        return {"part": self.part, "sizes": self.sizes, "rule": self.rule, "scale": self.scale}


CLASSES: Mapping[str, type[Any]] = {"whole": Whole, "part": Part, "rule": Rule}


def model() -> Whole:
    torch.manual_seed(0)
    made = Whole(Part(3), (2, 4), Rule(5), 0.5)
    made.part.double()
    with torch.no_grad():
        made.tied.fill_(7.0)
        made.count.fill_(9)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pretrained(model(), tmp_path / "m", CLASSES, info={"range": [0, 1], "units": "mm"})
    return tmp_path / "m"


def test_a_folder_builds_the_same_model_again(folder: Path) -> None:
    assert {one.name for one in folder.iterdir()} == {"config.json", "model.safetensors"}
    found, wanted = from_pretrained(folder, CLASSES), model()
    assert isinstance(found, Whole)
    assert (found.rule, found.sizes, found.scale) == (Rule(5), (2, 4), 0.5)
    for (name, one), other in zip(found.state_dict().items(), wanted.state_dict().values(), strict=True):
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), name
    assert found.tied is found.alias
    assert found.part.linear.weight.dtype == torch.float64
    assert not found.training
    assert info_of(folder) == {"range": [0, 1], "units": "mm"}
    assert json.loads((folder / "config.json").read_text())["model"]["arguments"]["part"] == {
        "name": "part",
        "arguments": {"width": 3},
    }


def test_plain_attributes_and_properties_are_both_configurations() -> None:
    assert isinstance(Part(1), Configured)
    assert isinstance(model(), Configured)
    assert not isinstance(nn.Linear(1, 1), Configured)


def test_every_model_of_the_package_has_a_configuration(tmp_path: Path) -> None:
    for text in ("mlp:inputs=2,hidden=[3],outputs=1", "time-mlp:features=2,hidden=[3]", "cubic-drift"):
        made = config.part("model", text)
        config.save_pretrained(made, tmp_path / text[:3])
        again = config.from_pretrained(tmp_path / text[:3])
        assert type(again) is type(made)
        assert str(again) == str(made)
    nested = {
        "name": "neural-ode",
        "field": "time-mlp:features=2,hidden=[3]",
        "solver": {"rtol": "1e-5", "method": "vern7"},
    }
    made = config.part("model", nested)
    config.save_pretrained(made, tmp_path / "n")
    again = config.from_pretrained(tmp_path / "n")
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x).output, made(x).output)
    assert again.solver == made.solver
    mlp = "mlp:inputs=2,hidden=[],outputs=2"
    noisy = {"name": "noisy-solver", "method": "sosri", "noise": "diagonal"}
    made = config.part("model", {"name": "neural-sde", "drift": "cubic-drift", "diffusion": mlp, "solver": noisy})
    config.save_pretrained(made, tmp_path / "s")
    assert config.from_pretrained(tmp_path / "s").solver == made.solver


def test_a_folder_is_replaced_whole_and_only_if_it_holds_a_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileExistsError, match=r"m: exists already; choose another name or pass overwrite=True"):
        save_pretrained(model(), folder, CLASSES)
    other = model()
    other.scale = 0.25

    def failing(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("invreg.models.pretrained.write_whole", failing)
        with pytest.raises(OSError, match="No space left"):
            save_pretrained(other, folder, CLASSES, overwrite=True)
    assert from_pretrained(folder, CLASSES).scale == 0.5
    save_pretrained(other, folder, CLASSES, overwrite=True)
    assert from_pretrained(folder, CLASSES).scale == 0.25
    assert [one.name for one in folder.parent.iterdir()] == ["m"]
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds something else than a model and is not replaced"):
        save_pretrained(other, folder, CLASSES, overwrite=True)
    with pytest.raises(FileNotFoundError, match="the folder .*none does not exist; make it first"):
        save_pretrained(other, folder.parent / "none" / "m", CLASSES)


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    place = tmp_path / "m"
    with pytest.raises(TypeError, match="model must have a property config with its arguments, got Linear without"):
        save_pretrained(nn.Linear(1, 1), place, CLASSES)
    with pytest.raises(ValueError, match=r"Part has no name to be saved under; add one, as in classes=\{\*\*MODELS"):
        save_pretrained(model(), place, {"whole": Whole, "rule": Rule})
    with pytest.raises(TypeError, match=r"config.part must be plain or an object with config, got Linear"):
        save_pretrained(Whole(nn.Linear(1, 1), (1,)), place, CLASSES)
    for bad in ({"x": torch.zeros(1)}, {"x": object()}):
        with pytest.raises(TypeError, match="info must hold plain values only"):
            save_pretrained(model(), place, CLASSES, info=bad)
    unlucky = Part(1)
    unlucky.config = {"width": {"name": 1, "arguments": 2}}  # type: ignore[dict-item]
    with pytest.raises(
        TypeError, match="config.width must have strings as keys, and other ones than name and arguments"
    ):
        save_pretrained(unlucky, place, CLASSES)
    assert list(tmp_path.iterdir()) == []


def changed(folder: Path, old: str, new: str) -> None:
    """Change the configuration as somebody would who also fits the weights' own copy of it."""
    path = folder / "config.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    tensors, _ = load_tensors(folder / "model.safetensors")
    save_tensors(folder / "model.safetensors", tensors, {"model": json.loads(path.read_text())["model"]})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"name": "whole"', '"name": "hole"', "config.json: unknown class 'hole'; did you mean 'whole'"),
        ('"scale": 0.5', '"scales": 0.5', "unknown argument of whole 'scales'; did you mean 'scale'"),
        ('"scale": 0.5', '"scale": -1', r"whole cannot be built: scale must be > 0, got -1"),
        ('"width": 3', '"width": "x"', r"part cannot be built"),
        (
            '"width": 3',
            '"width": 4',
            r"does not fit .*linear.bias must be \(4,\), got \(3,\); part.linear.weight must be \(4, 4\), got \(3, 3\)",
        ),
        ('"format": 1', '"format": 2', r"has format 2, written by invreg .*, but this one reads format 1"),
    ],
)
def test_what_does_not_fit_is_named(folder: Path, old: str, new: str, said: str) -> None:
    changed(folder, old, new)
    with pytest.raises(ValueError, match=said):
        from_pretrained(folder, CLASSES)


def test_missing_and_foreign_weights_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors, about = load_tensors(path)
    for name in ("count", "tied", "phase", "norm.weight"):
        tensors.pop(name)
    save_tensors(path, {**tensors, "new": torch.zeros(1)}, about)
    with pytest.raises(
        ValueError, match=r"does not fit its config.json: tied is missing; count is missing; .*and 2 more"
    ):
        from_pretrained(folder, CLASSES)


def test_missing_and_damaged_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder of a model"):
        from_pretrained(tmp_path / "none", CLASSES)
    weights, about = folder / "model.safetensors", folder / "config.json"
    whole, text = weights.read_bytes(), about.read_text()
    weights.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        from_pretrained(folder, CLASSES)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors: no such file"):
        from_pretrained(folder, CLASSES)
    for content, said in (("{", "config.json is damaged"), ("[]", "must hold format, model and info")):
        about.write_text(content)
        with pytest.raises(ValueError, match=said):
            info_of(folder)
    about.unlink()
    with pytest.raises(FileNotFoundError, match="config.json: no such file; a model's folder holds"):
        from_pretrained(folder, CLASSES)
    weights.write_bytes(whole)
    about.write_text(text.replace('"scale": 0.5', '"scale": 0.75'))
    with pytest.raises(ValueError, match="model.safetensors belongs to another model than config.json"):
        from_pretrained(folder, CLASSES)
    about.write_text(text.replace("mm", "cm"))  # info is free
    assert isinstance(from_pretrained(folder, CLASSES), Whole)
    shutil.rmtree(folder)


def test_a_name_that_is_no_model_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    about = json.loads(path.read_text())
    about["model"] = {"name": "rule", "arguments": {"order": 1}}
    path.write_text(json.dumps(about))
    tensors: dict[str, Tensor] = {}
    save_tensors(folder / "model.safetensors", tensors, {"model": about["model"]})
    with pytest.raises(ValueError, match="config.json must name a model, got Rule"):
        from_pretrained(folder, CLASSES)


def test_every_named_solver_part_can_be_saved_with_its_defaults() -> None:
    from invreg.config import ADJOINTS, CONTROLLERS, METHODS, SAVED, SOLVERS

    for names in (ADJOINTS, CONTROLLERS, METHODS, SOLVERS):
        for name, cls in names.items():
            if name == "auto-switch":
                continue
            described = json.loads(json.dumps(encode(describe(cls(), SAVED), {}, "config"), allow_nan=False))
            assert repr(rebuild(decode(described, {}), SAVED)) == repr(cls()), name


def test_numbers_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    place = tmp_path / "model"
    save_pretrained(model(), place, CLASSES, info={"loss": float("inf"), "score": float("nan")})
    info = info_of(place)
    assert info["loss"] == float("inf")
    assert info["score"] != info["score"]
