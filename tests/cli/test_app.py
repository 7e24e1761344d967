"""Flags, help, JSON, settings files and exit codes of the commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from invreg import __version__, config


def test_help_and_version_are_shown(invoke) -> None:
    assert "reconstruct" in invoke("--help").out
    assert "--prior" in invoke("reconstruct", "--help").out
    assert invoke("--version").out.strip() == __version__


def test_list_has_one_line_each(invoke) -> None:
    found = invoke("list", "--json").json
    assert set(found) == {
        "operators", "regularizers", "algorithms", "priors", "samplers", "formats", "models", "objectives", "data"
    }  # fmt: skip
    assert found["regularizers"]["tv"]
    assert "brain" in found["priors"]
    assert set(found["samplers"]) == set(config.PRESETS)
    assert {"pdhg", "adjoint", "fbp"} <= set(found["algorithms"])
    assert not {"dds", "dps", "predictor-corrector"} & set(found["algorithms"])  # which need a learned prior
    assert set(invoke("list", "formats", "--json").json) == {"formats"}
    assert "pdhg" in invoke("list", "algorithms").out
    bad = invoke("list", "algoritms")
    assert bad.code == 2
    assert "did you mean 'algorithms'" in bad.err


def test_info_tells_what_a_file_holds(invoke, scans: Path) -> None:
    found = invoke("info", scans / "mri.npz", "--json").json
    assert found["holds"] == "KSpace"
    assert found["shape"] == [1, 4, 64, 64]
    assert found["axes"] == "batch, coil, y, x"
    assert found["coils"] == 4
    assert "SIMULATED" in found["meta"]["simulated"]
    sinogram = invoke("info", scans / "ct.npz", "--json").json
    assert sinogram["holds"] == "Sinogram"
    assert sinogram["angles"].startswith("12 from 0.00 to 165.00")
    assert invoke("info", scans / "truth.npz", "--json").json["holds"] == "Image"
    assert "KSpace" in invoke("info", scans / "mri.npz").out


def test_json_commands_write_nothing_but_json_to_stdout(invoke, scans: Path, tmp_path: Path) -> None:
    good = invoke("reconstruct", scans / "mri.npz", "-o", tmp_path / "a.npz", "--iterations", 3, "--json")
    assert good.json["status"] == "finished"
    assert good.err == ""
    bad = invoke("reconstruct", tmp_path / "none.npz", "-o", tmp_path / "b.npz", "--json")
    assert bad.json == {"error": f"{tmp_path / 'none.npz'}: no such file; check the path", "exit code": 2}
    assert bad.err.count("\n") == 1


def test_every_flag_can_be_set_in_a_file_and_the_command_line_wins(invoke, scans: Path, tmp_path: Path) -> None:
    settings = tmp_path / "run.yaml"
    settings.write_text(
        f"input: {scans / 'mri.npz'}\noutput: {tmp_path / 'a.npz'}\nprior: tv\nweight: 1e-2\n"
        "algorithm: fista:rtol=0\niterations: 3\nseed: 5\ndevice: cpu\nquiet: true\n"
    )
    first = invoke("reconstruct", "--config", settings, "--json")
    assert first.code == 0, first.err
    assert first.json["plan"]["weight"] == 0.01
    assert first.json["slices"][0]["iterations"] == 3
    assert first.json["seed"] == 5
    second = invoke("reconstruct", "--config", settings, "--iterations", 4, "-o", tmp_path / "b.npz", "--json")
    assert second.json["slices"][0]["iterations"] == 4
    assert (tmp_path / "b.npz").exists()
    settings.write_text("pior: tv\n")
    bad = invoke("reconstruct", "--config", settings)
    assert bad.code == 2
    assert "did you mean 'prior'" in bad.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("reconstruct",), "Missing argument"),
        (("reconstruct", "x.npz"), "Missing option '--output'"),
        (("reconstruct", "x.npz", "-o", "y.npz", "--priro", "tv"), "No such option: --priro"),
        (("reconstruct", "x.npz", "-o", "y.npz", "--sigma", "loud"), "Invalid value for"),
        (("reconstuct",), "No such command 'reconstuct'"),
        (("demo", "pet"), "demo must be mri or ct, got 'pet'"),
        (("simulate", "x.npz", "--what", "pet"), "--what must be mri or ct"),
        (("simulate", "x.npz", "--what", "ct", "--matrix", "64"), "--matrix goes with --what mri, got --what ct"),
        (("simulate", "x.npz", "--what", "ct", "--slice", "0"), "--slice goes with --what mri"),
        (("simulate", "x.npz", "--views", "90"), "--views goes with --what ct, got --what mri"),
        (("simulate", "x.npz", "--what", "mri", "--photons", "1e4"), "--photons goes with --what ct"),
        (("simulate", "x.npz", "--slice", "9"), "slices must be within 0 to 5"),
        (("simulate", "x.npz", "--acceleration", "0"), "acceleration must be finite and > 0"),
        (("simulate", "x.npz", "--pattern", "spiral"), "pattern must be"),
    ],
)
def test_wrong_flags_are_one_line_and_code_two(
    invoke, words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = invoke(*words)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_where_an_error_came_from(invoke, tmp_path: Path) -> None:
    outcome = invoke("info", tmp_path / "none.npz", "--debug")
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert "Traceback" not in invoke("info", tmp_path / "none.npz").err


def test_json_and_debug_may_stand_in_the_settings_file(invoke, tmp_path: Path) -> None:
    settings = tmp_path / "run.yaml"
    settings.write_text(f"input: {tmp_path / 'none.npz'}\noutput: {tmp_path / 'x.npz'}\njson: true\ndebug: true\n")
    outcome = invoke("reconstruct", "--config", settings)
    assert outcome.code == 2
    assert outcome.json == {"error": f"{tmp_path / 'none.npz'}: no such file; check the path", "exit code": 2}
    assert "Traceback" in outcome.err
    settings.write_text(f"input: {tmp_path / 'none.npz'}\noutput: {tmp_path / 'x.npz'}\njson: false\n")
    plain = invoke("reconstruct", "--config", settings)
    assert (plain.code, plain.out) == (2, "")
    assert "Traceback" not in plain.err


def test_simulated_scans_do_not_overwrite_unasked(invoke, scans: Path) -> None:
    before = (scans / "mri.npz").read_bytes()
    outcome = invoke("simulate", scans / "mri.npz")
    assert outcome.code == 2
    assert "pass --force" in outcome.err
    assert (scans / "mri.npz").read_bytes() == before


def test_the_installed_command_runs(scans: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "invreg.cli", "info", str(scans / "mri.npz"), "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["coils"] == 4
