"""`invreg train`: from a recipe to a model's folder, through interrupts, by one process or two."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from invreg import io
from invreg.cli.recipe import read_recipe
from invreg.cli.train import Order, make_plan
from invreg.config import from_pretrained, learned_prior, parse
from invreg.models.pretrained import info_of
from invreg.training import read_log
from invreg.training.checkpoint import checkpoints
from invreg.training.neural_ode import NeuralODE


def recipe(folder: Path, /, **changes: Any) -> dict[str, Any]:
    """A neural ODE on points of two classes, small enough to train in a second."""
    path = folder / "points.npz"
    if not path.exists():
        x = np.random.default_rng(0).normal(size=(60, 2))
        np.savez(path, x=x, label=(x.sum(1) > 0).astype(int))
    content = {
        "data": {"name": "arrays", "file": str(path), "keys": ["x", "label"]},
        "test": 0.2,
        "model": {
            "name": "neural-ode",
            "field": "time-mlp:features=2,hidden=[8]",
            "head": {"name": "mlp", "inputs": 2, "hidden": [], "outputs": 2},
            "solver": {"rtol": "1e-2", "atol": "1e-2", "method": "bosh3"},
        },
        "objective": {
            "name": "supervised",
            "regularizers": {"error": {"name": "solver-error", "schedule": "exponential:first=1e-2,last=1e-3"}},
        },
        "optimizer": "adam:lr=5e-2",
        "scheduler": "cosine",
        "batch": 16,
        "epochs": 5,
        "folder": str(folder / "run"),
        **changes,
    }
    return {key: value for key, value in content.items() if value is not ...}


def write(folder: Path, /, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(folder, **changes)))
    return path


def test_a_recipe_becomes_a_model_with_its_log(invoke: Any, tmp_path: Path) -> None:
    outcome = invoke("train", write(tmp_path, average=0.9), "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    run, report = tmp_path / "run", outcome.json
    assert report["steps"] == 15
    assert report["model"]["test"]["accuracy"] > 0.6
    assert set(report["averaged"]["test"]) == {"loss", "evaluations", "accuracy"}
    assert json.loads((run / "report.json").read_text()) == report
    assert [line["step"] for line in read_log(run)] == list(range(15))
    assert set(read_log(run)[0]["terms"]) == {"data", "error", "total"}
    model = from_pretrained(run / "model")
    assert isinstance(model, NeuralODE)
    assert model.solver.rtol == 1e-2  # type: ignore[attr-defined]
    info = info_of(run / "model")
    assert info["recipe"]["optimizer"] == "adam:lr=5e-2"
    assert info["data"]["ranges"][1] == [0.0, 1.0]
    assert info["test"] == report["model"]["test"]
    averaged = from_pretrained(run / "averaged")
    assert not torch.equal(averaged.field.layers[0].weight, model.field.layers[0].weight)


def test_the_same_seed_trains_the_same_and_another_differs(invoke: Any, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        outcome = invoke("train", write(tmp_path, seed=seed, steps=3, epochs=...), "--folder", tmp_path / name)
        assert outcome.code == 0, outcome.err
        weights.append(from_pretrained(tmp_path / name / "model").state_dict()["head.layers.0.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_finished_training_is_not_repeated_but_written_again(invoke: Any, tmp_path: Path) -> None:
    path = write(tmp_path, steps=3, epochs=...)
    assert invoke("train", path).code == 0
    again = invoke("train", path)
    assert again.code == 2
    assert "run: holds a training already; pass --resume or choose another folder" in again.err
    resumed = invoke("train", path, "--resume")
    assert resumed.code == 0, resumed.err
    assert "3 steps on cpu, resumed after 3" in resumed.err
    assert "accuracy" in resumed.out
    changed = invoke("train", write(tmp_path, steps=3, epochs=..., optimizer="adam:lr=1e-3"), "--resume")
    assert changed.code == 2
    assert "belongs to another training: optimizer.groups.0" in changed.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modle": 1}, "unknown setting 'modle'; did you mean 'model'"),
        ({"objective": ...}, "must say objective; see docs/training.md"),
        ({"epochs": ...}, "one of epochs and steps must be given, got none"),
        ({"steps": 3}, "one of epochs and steps must be given, got both"),
        ({"epochs": "many"}, "epochs must be an int, got str"),
        ({"batch": 0}, "batch must be >= 1, got 0"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"test": 1.5}, "test must be a fraction below 1, got 1.5"),
        ({"test": 0.01}, "test 0.01 of 60 samples holds out none; raise it, or leave it away"),
        ({"drop_last": 3}, "drop_last must be true or false, got 3"),
        ({"clip": 0}, "clip must be finite and > 0, got 0"),
        ({"precision": "half"}, 'precision must be "full", "bfloat16" or "float16"'),
        ({"average": 2}, "decay must be within [0, 1), got 2"),
        ({"data": "digit"}, "unknown data 'digit'; did you mean 'digits'"),
        ({"data": "digits:size=3"}, "unknown option of digits 'size'"),
        ({"data": {"name": "arrays"}}, "arrays needs file"),
        ({"data": "arrays:file=none.npz"}, "none.npz: no such file; check the path"),
        ({"model": 5}, "model must be NAME[:key=value,...] or a mapping with a name, got 5"),
        ({"model": {"field": "cubic-drift"}}, "model must have a name, one of calibrated, cnf,"),
        ({"model": "mpl:inputs=1"}, "unknown model 'mpl'; did you mean 'mlp'"),
        ({"model": {"name": "neural-ode", "feild": 1}}, "unknown option of neural-ode 'feild'; did you mean 'field'"),
        ({"model": {"name": "neural-ode", "field": "time-mpl"}}, "unknown field 'time-mpl'; did you mean 'time-mlp'"),
        ({"model": "mlp:inputs=0,hidden=[],outputs=1"}, "mlp: widths of layers must be >= 1, got 0"),
        ({"objective": "supervise"}, "unknown objective 'supervise'; did you mean 'supervised'"),
        (
            {"objective": {"name": "supervised", "model": {"name": "neural-ode", "field": "cubic-drift"}}},
            "leave the key model",
        ),
        ({"objective": {"name": "supervised", "loss": "mae"}}, "unknown loss 'mae'"),
        ({"objective": {"name": "supervised", "loss": "mse:x=1"}}, "loss mse takes no options, got x"),
        ({"objective": {"name": "supervised", "regularizers": {"e": "solver-eror"}}}, "did you mean 'solver-error'"),
        ({"optimizer": "adam:rl=1"}, "unknown option of adam 'rl'; did you mean 'lr'"),
        ({"optimizer": "adam:lr=-1"}, "adam: Invalid learning rate: -1"),
        ({"scheduler": "cosin"}, "unknown scheduler 'cosin'; did you mean 'cosine'"),
        ({"scheduler": "exponential"}, "exponential needs gamma"),
    ],
)
def test_recipes_that_do_not_fit_are_one_line_and_code_two(
    invoke: Any, tmp_path: Path, changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = invoke("train", write(tmp_path, **changes))
    assert outcome.code == 2
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_numbers_that_are_not_finite_are_code_one_and_keep_the_last_good_state(invoke: Any, tmp_path: Path) -> None:
    outcome = invoke("train", write(tmp_path, optimizer="sgd:lr=1e30", scheduler=..., clip=None))
    assert outcome.code in (1, 2), outcome.err  # the loss, or the solver, meets it first
    assert checkpoints(tmp_path / "run")
    missing = invoke("train", tmp_path / "none.yaml")
    assert missing.code == 2
    assert "no such configuration file" in missing.err


def test_every_objective_can_be_named(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    times = np.linspace(0, 1, 4)
    np.savez(
        tmp_path / "series.npz",
        values=generator.normal(size=(8, 4, 1)),
        mask=np.ones((8, 4, 1), dtype=bool),
        y0=generator.normal(size=(8, 2)),
        targets=generator.normal(size=(8, 3, 2)),
        walks=generator.normal(size=(8, 5, 2)),
        times=times,
    )

    def arrays(*keys: str, **more: Any) -> dict[str, Any]:
        return {"name": "arrays", "file": str(tmp_path / "series.npz"), "keys": list(keys), **more}

    latent = {
        "name": "latent-ode",
        "encoder": "series-encoder:features=1,hidden=4,latent=2",
        "field": "time-mlp:features=2,hidden=[4]",
        "decoder": "mlp:inputs=2,hidden=[],outputs=1",
    }
    recipes: list[dict[str, Any]] = [
        {
            "data": arrays("y0", "targets", constants=["times"]),
            "model": "cubic-drift",
            "objective": {
                "name": "trajectory-fit",
                "regularizers": {
                    "kinetic": "kinetic-energy:weight=1e-2",
                    "jacobian": {"name": "jacobian-norm", "weight": "1e-2"},
                    "order": "taylor-derivative:order=2",
                },
            },
        },
        {"data": arrays("values", "mask", constants=["times"]), "model": latent, "objective": "evidence-bound"},
        {
            "data": arrays("y0"),
            "model": {"name": "cnf", "features": 2, "field": "concat-squash:features=2,hidden=[4]"},
            "objective": "likelihood",
        },
        {
            "data": arrays("walks"),
            "model": {"name": "flow-map", "interval": 0.1, "field": "cubic-drift"},
            "objective": "forced-fit:forcing=adaptive",
        },
        {
            "data": arrays("y0", "targets", "targets", constants=["times"]),
            "model": {
                "name": "neural-sde",
                "drift": "cubic-drift",
                "diffusion": "cubic-drift:hidden=3",
                "solver": {"name": "noisy-solver", "method": "sosri2", "rtol": "1e-1"},
            },
            "objective": {"name": "moment-fit", "paths": 5, "regularizers": {"error": "solver-error:weight=1e-2"}},
        },
    ]
    for number, one in enumerate(recipes):
        changes = {"batch": 4, "steps": 2, "epochs": ..., "folder": str(tmp_path / f"run{number}"), "test": 0.0}
        plan = make_plan(read_recipe(write(tmp_path, **one, **changes), None), torch.device("cpu"), False)
        assert len(list(plan.training)) == 2, one
        names = load_names(tmp_path / f"run{number}")
        assert ("state.model.forcing.alpha" in names) == (number == 3)  # what the objective changes is kept, too


def load_names(folder: Path) -> set[str]:
    from invreg._store import load_tensors

    return set(load_tensors(checkpoints(folder)[0])[0])


@pytest.mark.slow(seconds=20)
def test_ctrl_c_saves_and_says_how_to_resume(tmp_path: Path) -> None:
    path = write(tmp_path, epochs=10_000, save_every=100_000)
    log = tmp_path / "run" / "log.jsonl"
    for resume in ([], ["--resume"]):
        before = log.stat().st_size if log.exists() else 0
        process = subprocess.Popen(
            [sys.executable, "-m", "invreg.cli", "train", str(path), *resume],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + 60
        while (log.stat().st_size if log.exists() else 0) <= before + 500:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 1
        done = len(read_log(tmp_path / "run"))
        assert f"interrupted after {done} of 30000 steps; go on with: invreg train {path} --resume" in said
        assert checkpoints(tmp_path / "run")[0].name == f"checkpoint-{done:010d}.safetensors"


@pytest.mark.slow(seconds=30)
def test_two_processes_under_torchrun_train_like_one(invoke: Any, tmp_path: Path) -> None:
    # fixed steps, since those of an adaptive solver depend on who shares the batch
    path = write(
        tmp_path,
        model={
            "name": "neural-ode",
            "field": "cubic-drift",
            "solver": {"method": "rk4", "controller": "fixed:step=0.25"},
        },
        objective="supervised",
        drop_last=True,
    )
    assert invoke("train", path, "--folder", tmp_path / "one", "--device", "cpu").code == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "invreg.cli", "train", str(path), "--folder", str(tmp_path / "two"), "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("accuracy") == 1
    one, two = (from_pretrained(tmp_path / name / "model").state_dict() for name in ("one", "two"))
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-5), name
    assert json.loads((tmp_path / "two" / "report.json").read_text())["processes"] == 2


def test_the_recipe_in_the_docs_trains(invoke: Any, tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    content = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    path = tmp_path / "recipe.yaml"
    del content["epochs"]
    path.write_text(yaml.safe_dump({**content, "steps": 2}))
    outcome = invoke("train", path, "--folder", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("accuracy") == 2


def test_an_order_is_what_the_flags_say(tmp_path: Path) -> None:
    assert Order(tmp_path).device == "auto"
    read = read_recipe(write(tmp_path), tmp_path / "other")
    assert read.folder == str(tmp_path / "other")
    assert read.model["solver"]["rtol"] == 1e-2
    assert "folder" not in read.decisive


def test_scores_that_fail_cost_no_model(invoke: Any, tmp_path: Path) -> None:
    path = write(tmp_path, steps=3, epochs=...)
    found = dict(np.load(tmp_path / "points.npz"))
    held_out = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:12]
    found["label"][held_out.numpy()] = 5
    np.savez(tmp_path / "points.npz", **found)
    done = invoke("train", path)
    assert done.code == 0, done.err
    assert "could not be scored on what was held out" in done.err
    assert isinstance(from_pretrained(tmp_path / "run" / "model"), NeuralODE)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "target does not fit" in report["model"]["test failed"]


def test_numbers_that_are_not_finite_are_null_in_the_report(
    invoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invreg.cli.train._scores", lambda plan, model: {"accuracy": float("nan")})
    done = invoke("train", write(tmp_path, steps=2, epochs=...))
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run" / "report.json").read_text())["model"]["test"] == {"accuracy": None}


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_place_that_is_taken_is_found_before_the_first_step(invoke: Any, tmp_path: Path, resume: list[str]) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "thesis.txt").write_text("mine")
    done = invoke("train", write(tmp_path, steps=2, epochs=...), *resume)
    assert done.code == 2
    assert "holds a" in done.err or "holds something else" in done.err
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.parametrize("folder", ["", None, 3])
def test_folders_without_a_name_are_refused(invoke: Any, tmp_path: Path, folder: Any) -> None:
    done = invoke("train", write(tmp_path, folder=folder))
    assert done.code == 2
    assert "folder must be the name of a folder" in done.err


def test_data_may_move_between_start_and_resumption(invoke: Any, tmp_path: Path) -> None:
    assert invoke("train", write(tmp_path, steps=2, epochs=...)).code == 0
    (tmp_path / "points.npz").rename(tmp_path / "moved.npz")
    data = {"name": "arrays", "file": str(tmp_path / "moved.npz"), "keys": ["x", "label"]}
    again = tmp_path / "again.yaml"
    content = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    again.write_text(yaml.safe_dump({**content, "data": data}))
    assert invoke("train", again, "--resume").code == 0


def test_a_key_that_is_given_twice_is_refused(invoke: Any, tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text() + "epochs: 7\n")
    done = invoke("train", path)
    assert done.code == 2
    assert "epochs is given twice" in done.err


def priors(folder: Path) -> dict[str, dict[str, Any]]:
    """Recipes of a diffusion denoiser of complex images and of a learned proximal network, on a folder of slices."""
    scans = folder / "scans"
    if not scans.exists():
        scans.mkdir()
        generator = np.random.default_rng(0)
        for name in ("a", "b", "c"):
            parts = generator.normal(size=(2, 3, 20, 24)).cumsum(-1)
            np.save(scans / f"{name}.npy", parts[0] + 1j * parts[1])
    common = {"test": 0.4, "batch": 4, "steps": 4, "epochs": ..., "scheduler": ..., "average": 0.5, "optimizer": "adam"}
    images = {"name": "images", "files": str(scans), "size": 16}
    unet = "unet:channels=2,widths=[4,4],blocks=1"
    denoiser = {"name": "network-denoiser", "network": unet, "path": "edm", "prediction": "edm", "layout": "real2"}
    matching = {"name": "proximal-matching", "sigma": 0.1, "first_gamma": 0.2}
    return {
        "denoising": {**common, "data": images, "model": denoiser, "objective": "denoising"},
        "matching": {
            **common,
            "data": {**images, "magnitude": True},
            "model": "convex-cnn:hidden=4,layers=2",
            "objective": matching,
        },
    }


@pytest.mark.parametrize(("kind", "score"), [("denoising", "psnr at 0.1"), ("matching", "rmse")])
def test_priors_are_trained_on_patches_of_images(invoke: Any, tmp_path: Path, kind: str, score: str) -> None:
    done = invoke("train", write(tmp_path, **priors(tmp_path)[kind]), "--json")
    assert done.code == 0, done.err
    for name in ("model", "averaged"):
        assert score in done.json[name]["test"]
    assert done.json["averaged"]["test"] != done.json["model"]["test"]
    info = info_of(tmp_path / "run" / "model")
    assert (info["data"]["images"], info["data"]["held out"]) == (6, 3)


def test_a_prior_of_ct_images_says_its_units_and_pixels(invoke: Any, tmp_path: Path) -> None:
    content = priors(tmp_path)["denoising"]
    (tmp_path / "ct").mkdir()
    for name in ("a", "b"):
        io.write(tmp_path / "ct" / f"{name}.npz", io.Image(torch.rand(1, 24, 24), "HU", (0.5, 0.5)))
    content["data"] = {**content["data"], "files": str(tmp_path / "ct"), "scale": 2000, "offset": -500}
    network = "unet:channels=1,widths=[4,4],blocks=1"
    content["model"] = {**content["model"], "network": network, "layout": "channels"}
    assert invoke("train", write(tmp_path, **{**content, "test": 0.5})).code == 0
    found = learned_prior(parse(f"model:folder={tmp_path / 'run' / 'model'}"))
    assert (found.water, found.scale, found.offset) == (True, 2.0, 0.5)  # -500 HU is half of water
    assert found.info["pixel size (mm)"] == [0.4545, 0.55]


@pytest.mark.parametrize("kind", ["denoising", "matching"])
def test_a_prior_that_was_broken_off_ends_as_one_that_was_not(invoke: Any, tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, **priors(tmp_path)[kind])
    assert invoke("train", path, "--folder", tmp_path / "whole").code == 0
    plan = make_plan(read_recipe(path, None), torch.device("cpu"), False)
    next(plan.training)
    next(plan.training)
    plan.training.save()
    next(plan.training)  # is lost
    del plan
    done = invoke("train", path, "--resume")
    assert done.code == 0, done.err
    assert "resumed after 2" in done.err
    for name in ("model", "averaged"):
        one, other = (from_pretrained(tmp_path / run / name).state_dict() for run in ("whole", "run"))
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_the_standard_deviation_of_the_images_is_measured_unless_it_is_said(tmp_path: Path) -> None:
    content = priors(tmp_path)["denoising"]
    plan = make_plan(read_recipe(write(tmp_path, **content), None), torch.device("cpu"), False)
    found = plan.objective.sigma_data
    assert 0.05 < found < 1
    assert plan.model.path.sigma_data == found  # type: ignore[union-attr]
    said = {**content, "model": {**content["model"], "path": "edm:sigma_data=0.3"}, "folder": str(tmp_path / "other")}
    plan = make_plan(read_recipe(write(tmp_path, **said), None), torch.device("cpu"), False)
    assert plan.model.path.sigma_data == 0.3  # type: ignore[union-attr]


def test_a_learned_prox_of_vectors_is_trained_on_arrays(invoke: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "points.npy", np.random.default_rng(0).laplace(size=(40, 3)))
    changes = {"steps": 3, "epochs": ..., "scheduler": ...}
    data = {"name": "arrays", "file": str(tmp_path / "points.npy")}
    objective = "proximal-matching:sigma=1.0"
    path = write(tmp_path, data=data, model="convex-mlp:features=3,hidden=5", objective=objective, **changes)
    done = invoke("train", path, "--json")
    assert done.code == 0, done.err
    assert set(done.json["model"]["test"]) == {"rmse", "matching"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 2, "steps": ...}, "data images needs steps in place of epochs"),
        ({"data": "images:size=8"}, "images needs files"),
        ({"drop_last": True}, "drop_last is of no use with data images: every batch of patches is full; leave it away"),
        ({"test": 0.1}, "test 0.1 of 9 samples holds out none; raise it, or leave it away"),
        ({"data": "images:files=nowhere"}, "nowhere: no such file or folder; check the path"),
        ({"data": "images:files=none"}, "files must be a path or a list of paths, as text, got None"),
        ({"model": "convex-cnn:kernel=2", "objective": "proximal-matching:sigma=0.1"}, "kernel must be odd, got 2"),
        ({"objective": "proximal-matching:sigma=0.1"}, "got NetworkDenoiser"),
    ],
)
def test_recipes_of_priors_that_do_not_fit_are_one_line(
    invoke: Any, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    done = invoke("train", write(tmp_path, **{**priors(tmp_path)["denoising"], **changes}))
    assert done.code == 2
    assert said in done.err


@pytest.mark.parametrize("number", [1, 2])
def test_the_recipes_of_priors_in_the_docs_train(invoke: Any, tmp_path: Path, number: int) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    content = yaml.safe_load(text.split("```yaml\n")[number + 1].split("```")[0])
    for name in ("train", "test"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        parts = np.random.default_rng(0).normal(size=(2, 1, 64, 64)).cumsum(-1)
        np.save(tmp_path / "scans" / name / "a.npy", parts[0] + 1j * parts[1])
    for name in ("files", "held_out"):
        content["data"][name] = str(tmp_path / content["data"][name])
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**content, "steps": 2, "batch": 2, "folder": str(tmp_path / "run")}))
    outcome = invoke("train", path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("psnr at 0.1" if number == 1 else "rmse") == 2
