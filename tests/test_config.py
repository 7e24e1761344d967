"""Names and options in text become objects, and what is wrong is said."""

import inspect
from pathlib import Path

import pytest
import torch

from invreg import algorithms, config, operators, regularizers, solvers
from invreg.algorithms import FISTA
from invreg.algorithms.loop import Algorithm
from invreg.interfaces import Operator, Regularizer
from invreg.regularizers import TotalVariation, WaveletL1
from invreg.training.neural_ode import Supervised


def test_options_are_read_as_numbers_booleans_tuples_and_text() -> None:
    spec = config.parse("TV:weight=1e-3, isotropic=false,voxel_size=[1, 2.5],channel-dim=none,mode=fast")
    assert spec.name == "tv"
    assert spec.options == {
        "weight": 1e-3,
        "isotropic": False,
        "voxel_size": (1, 2.5),
        "channel_dim": None,
        "mode": "fast",
    }


@pytest.mark.parametrize("text", ["", ":weight=1", "tv:weight", "tv:weight=1,weight=2", "tv:1=2"])
def test_malformed_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="wanted|once"):
        config.parse(text)


def test_unknown_names_and_options_suggest_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'wavelet'"):
        config.choose("prior", "wavelets", config.REGULARIZERS)
    with pytest.raises(ValueError, match="did you mean 'iterations'"):
        config.algorithm("fista:iteration=10")


def test_text_becomes_an_object_with_its_options() -> None:
    algorithm = config.algorithm("fista:rtol=0,restart=false", iterations=7)
    assert algorithm == FISTA(rtol=0, restart=False, iterations=7)


def test_options_in_the_text_win() -> None:
    assert config.algorithm("fista:iterations=3", iterations=7).iterations == 3


def test_refusals_of_the_class_name_the_option() -> None:
    with pytest.raises(ValueError, match="fista: iterations must be >= 1"):
        config.algorithm("fista:iterations=0")


def test_every_name_stands_for_an_exported_class() -> None:
    for table, package, base in (
        (config.OPERATORS, operators, Operator),
        (config.REGULARIZERS, regularizers, Regularizer),
        (config.ALGORITHMS, algorithms, Algorithm),
    ):
        for cls in table.values():
            assert issubclass(cls, base)
            assert cls.__name__ in package.__all__


def test_every_algorithm_has_a_name() -> None:
    classes = {
        value
        for value in vars(algorithms).values()
        if inspect.isclass(value) and issubclass(value, Algorithm) and not inspect.isabstract(value)
    }
    assert classes == set(config.ALGORITHMS.values())


def test_total_variation_is_called_tv() -> None:
    assert config.REGULARIZERS["tv"] is TotalVariation


def test_channels_reach_the_priors_that_know_them() -> None:
    tv = config.regularizer("tv", (2, 8, 8), 0.5, 2, 1)
    assert isinstance(tv, TotalVariation)
    assert tv(torch.ones(1, 2, 8, 8)).shape == (1,)
    wavelet = config.regularizer("wavelet:levels=1", (2, 8, 8), 0.5, 2, 1)
    assert isinstance(wavelet, WaveletL1)
    assert wavelet.wavelet.axes == (2, 3)
    assert config.regularizer("l1", (2, 8, 8), 0.5, 2, 1).weight == 0.5


def test_parts_of_parts_are_built_from_mappings_and_texts() -> None:
    found = config.part(
        "objective",
        {
            "name": "supervised",
            "loss": "mse",
            "regularizers": {
                "error": {"name": "solver-error", "schedule": "linear:first=1,last=1e-1"},
                "local": "local-heuristic",
            },
        },
        {
            "model": config.part("model", {"name": "neural-ode", "field": "cubic-drift", "span": [0, 2]}),
            "generator": None,
        },
    )
    assert isinstance(found, Supervised)
    assert found.loss is torch.nn.functional.mse_loss
    assert found.regularizers["error"].at(1.0).weight == pytest.approx(0.1)
    assert isinstance(found.regularizers["local"], regularizers.LocalHeuristic)
    assert found.model.span == (0.0, 2.0)
    assert config.part("solver", {"rtol": "1e-9"}) == solvers.Solver(rtol=1e-9)
    sde = {"name": "neural-sde", "drift": "cubic-drift", "diffusion": "cubic-drift", "solver": {"rtol": "1e-1"}}
    assert config.part("model", sde).solver == solvers.NoisySolver(rtol=0.1)
    assert config.part("solver", {"controller": "pi", "method": "kvaerno5"}).method == solvers.Kvaerno5()
    assert config.part("controller", None) is None


def test_a_generator_reaches_the_parts_that_draw() -> None:
    generator = torch.Generator()
    local = config.part("regularizers", {"local": {"name": "local-heuristic"}}, {"generator": generator})["local"]
    assert local.generator is generator


def test_every_training_name_stands_for_something_that_can_be_described() -> None:
    for table in (config.MODELS, config.OBJECTIVES, config.DATA):
        for name, one in table.items():
            assert config.summary(one), name
    assert len(config.SAVED) == sum(
        map(len, (config.MODELS, config.PATHS, config.SOLVERS, config.METHODS, config.CONTROLLERS, config.ADJOINTS))
    ), "two classes share a name"
    names = {name.lower() for name in solvers.__all__}
    for table in (config.METHODS, config.CONTROLLERS, config.ADJOINTS):
        for name, cls in table.items():
            assert cls.__name__.lower() == name.replace("-", "")
            assert cls.__name__.lower() in names


def test_a_configuration_that_holds_itself_is_no_endless_search(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.write_text("prior: &a [1, *a]\n")
    with pytest.raises(ValueError, match="prior must be a single value"):
        config.read_settings(path, ["prior"])
