"""The commands and their flags."""

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from invreg.cli.report import FAILED, OK, InterruptedRunError, exit_code, notes, one_line, results, say_json

# what a wrong flag or a missing argument raises, whichever click typer stands on
_CLICK_ERROR: type[Exception] = typer.BadParameter.__bases__[0].__bases__[0]
_INTERRUPTED = "interrupted; nothing was written"


class Commands(TyperGroup):
    """Commands whose errors are one line on stderr and an exit code: 0 done, 1 failed or interrupted, 2 bad input."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; the exit code is returned if not `standalone_mode`."""
        words = list(sys.argv[1:] if args is None else args)
        said: dict[str, Any] = {}  # the context's object: what --config sets, for the errors below
        try:
            code = super().main(
                words, prog_name or "invreg", complete_var, False, windows_expand_args, obj=said, **extra
            )
        except typer.Abort:
            code = _complain(_INTERRUPTED, FAILED, words, said)
        except _CLICK_ERROR as error:
            code = _complain(" ".join(str(error.format_message()).split()), 2, words, said)  # type: ignore[attr-defined]
        except Exception as error:
            if _wanted("debug", words, said):
                traceback.print_exc()
            code = _complain(one_line(error), exit_code(error), words, said)
        code = code if isinstance(code, int) else OK
        if standalone_mode:
            sys.exit(code)
        return code

    def invoke(self, ctx: Any) -> Any:
        """Run what was parsed; an interrupt that nobody took notice of is an error like others."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # else typer makes the exit code 130 of it, without a word
            raise InterruptedRunError(_INTERRUPTED) from None


def _wanted(flag: str, words: Sequence[str], said: Mapping[str, Any]) -> bool:
    """Whether a flag is given on the command line or in the settings file."""
    return f"--{flag}" in words or str(said.get(flag)).lower() in ("true", "yes", "on", "1")


def _complain(text: str, code: int, words: Sequence[str], said: Mapping[str, Any]) -> int:
    if text:  # without arguments the help was shown
        notes().print(f"[red]error:[/red] {_plain(text)}", soft_wrap=True)
    if _wanted("json", words, said):
        say_json({"error": text, "exit code": code})
    return code


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


app = typer.Typer(
    cls=Commands,
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From scanner file to image: inverse problems in MRI and CT.",
)


def main() -> None:
    """The console script."""
    app()


def _configure(context: typer.Context, path: Path | None) -> Path | None:
    """Take flags from a YAML file; those on the command line win."""
    if path is not None:
        from invreg.config import read_settings

        taken = [one for one in context.command.params if one.name not in (None, "config", "help")]
        names = {_flag(one): str(one.name) for one in taken}
        settings = {names[flag]: value for flag, value in read_settings(path, names).items()}
        context.default_map = {**(context.default_map or {}), **settings}
        context.obj.update(settings)
    return path


def _flag(parameter: Any) -> str:
    """What users call a parameter, with underscores: its longest flag without dashes, or its name."""
    return str(max(parameter.opts, key=len)).lstrip("-").replace("-", "_")


Config = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file with flags as keys.", callback=_configure, is_eager=True),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No remarks and no progress bar.")]
Force = Annotated[bool, typer.Option("--force", help="Replace existing outputs.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything drawn at random.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        from invreg import __version__

        results().print(__version__)
        raise typer.Exit(OK)


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    """From scanner file to image: inverse problems in MRI and CT."""


@app.command()
def demo(
    what: Annotated[str, typer.Argument(help="mri or ct.")] = "mri",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="PNG file; default invreg-demo-WHAT.png.")
    ] = None,
    device: Device = "auto",
    seed: Seed = 0,
    force: Force = False,
    config: Config = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Simulate a scan of a real image, reconstruct it by several methods, and draw them beside the truth."""
    from invreg.cli.demo import run_demo

    report = run_demo(what, output, device, seed, force=force, console=notes(quiet or json))
    if json:
        say_json(report)
        return
    table = Table(title=report["title"])
    rows: list[dict[str, Any]] = report["results"]
    for key in rows[0]:
        table.add_column(key, justify="left" if key == "method" else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    results().print(table)
    results().print(f"figure: {report['figure']}", soft_wrap=True)


@app.command()
def reconstruct(
    input: Annotated[Path, typer.Argument(help="Scan: k-space, sinogram or image, of any known format.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Image; its suffix chooses the format.")],
    operator: Annotated[str | None, typer.Option("--operator", help="NAME[:key=value,...]; see `invreg list`.")] = None,
    prior: Annotated[
        str | None, typer.Option("--prior", help="NAME[:key=value,...] or none; learned: see `list priors`.")
    ] = None,
    algorithm: Annotated[
        str | None, typer.Option("--algorithm", help="NAME[:key=value,...], adjoint, fbp; see `invreg list samplers`.")
    ] = None,
    weight: Annotated[str | None, typer.Option("--weight", help="Of the prior: a number or auto.")] = None,
    rule: Annotated[
        str | None, typer.Option("--rule", help="How auto chooses: discrepancy (default), sure, gcv or lcurve.")
    ] = None,
    sigma: Annotated[float | None, typer.Option("--sigma", help="Noise level, in the units of the file.")] = None,
    iterations: Annotated[int | None, typer.Option("--iterations", help="At most so many.")] = None,
    maps: Annotated[
        Path | None, typer.Option("--maps", help="File with coil maps; default the scan's, else ESPIRiT.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="Pixels along a side of a CT image; their size stays.", min=1)
    ] = None,
    pixel_size: Annotated[float | None, typer.Option("--pixel-size", help="Of a CT image, mm.")] = None,
    mu_water: Annotated[
        float | None, typer.Option("--mu-water", help="Attenuation of water (ct), 1/mm; default 0.02.")
    ] = None,
    centre: Annotated[
        float | None, typer.Option("--centre", help="Detector cell of the rotation axis (ct), counted from 0.")
    ] = None,
    format: Annotated[str | None, typer.Option("--format", help="Of the input; default told from its content.")] = None,
    samples: Annotated[
        int, typer.Option("--samples", help="Draws with a learned prior: their mean, and their spread.", min=1)
    ] = 1,
    beside: Annotated[str | None, typer.Option("--with", help="A prior beside a learned one, such as tv.")] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare a learned prior's image with total variation's.")
    ] = True,
    device: Device = "auto",
    seed: Seed = 0,
    force: Force = False,
    config: Config = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Reconstruct a scan. Without further flags a choice that suits the data is made, and printed."""
    from invreg.cli.reconstruct import Request, run_request

    request = Request(
        input, output, operator, prior, algorithm, weight, rule, sigma, iterations, maps, size, pixel_size, mu_water,
        centre, format, device, seed, samples, beside, check,
    )  # fmt: skip
    report = run_request(request, force=force, quiet=quiet or json, console=notes(quiet or json))
    if json:
        say_json(report)
    else:
        results().print(f"{output}: {report['status']} in {report['seconds']:.1f} s", soft_wrap=True)


@app.command()
def simulate(
    output: Annotated[Path, typer.Argument(help="Scan to write, such as scan.npz or scan.cfl.")],
    what: Annotated[str, typer.Option("--what", help="mri or ct.")] = "mri",
    slice: Annotated[int | None, typer.Option("--slice", help="Of the head, 0 to 5 (mri); default 0.")] = None,
    slices: Annotated[
        int | None, typer.Option("--slices", help="How many slices, from that one on (mri); default 1.", min=1)
    ] = None,
    acceleration: Annotated[
        float | None, typer.Option("--acceleration", help="Of the sampling (mri); default 4.")
    ] = None,
    calibration: Annotated[
        int | None, typer.Option("--calibration", help="Calibration lines (mri); default 24.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option("--pattern", help="equispaced (default), random or variable-density (mri).")
    ] = None,
    coils: Annotated[int | None, typer.Option("--coils", help="Receive coils (mri); default 8.")] = None,
    sigma: Annotated[
        float | None, typer.Option("--sigma", help="Noise level of an image of size 1 (mri); default 0.01.")
    ] = None,
    matrix: Annotated[
        int | None, typer.Option("--matrix", help="Pixels along a side (mri); default 192.", min=16)
    ] = None,
    views: Annotated[
        int | None, typer.Option("--views", help="Angles over half a turn (ct); default 90.", min=1)
    ] = None,
    photons: Annotated[float | None, typer.Option("--photons", help="Counts without object (ct); default 5e4.")] = None,
    truth: Annotated[Path | None, typer.Option("--truth", help="Write the true image here.")] = None,
    seed: Seed = 0,
    force: Force = False,
    config: Config = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a simulated scan of a real image, to play with."""
    from invreg.cli.simulated import wish_of, write_simulated

    mri = {
        "slice": slice, "slices": slices, "acceleration": acceleration, "calibration": calibration,
        "pattern": pattern, "coils": coils, "sigma": sigma, "matrix": matrix,
    }  # fmt: skip
    wish = wish_of(what, seed, mri=mri, ct={"views": views, "photons": photons})
    report = write_simulated(output, truth, wish, force=force)
    if json:
        say_json(report)
    else:
        results().print(f"{output}: {report['about']}", soft_wrap=True)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file: data, model, objective, ...; see docs/training.md.")],
    folder: Annotated[Path | None, typer.Option("--folder", help="For log, checkpoints and model.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the folder stands.")] = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train neural differential equations, denoisers and learned proximal networks by a recipe.

    May be killed and resumed; several GPUs with torchrun.
    """
    from invreg.cli.train import Order, run_training

    report = run_training(Order(recipe, folder, resume, device), quiet=quiet or json, console=notes(quiet or json))
    if report["process"] > 0:
        return
    if json:
        say_json(report)
        return
    for name in ("model", "averaged"):
        if name in report:
            test = report[name].get("test", {}).items()
            shown = ", ".join(f"{key} " + ("not finite" if value is None else f"{value:.4g}") for key, value in test)
            results().print(f"{report[name]['folder']}: {shown or 'trained'}", soft_wrap=True)


@app.command()
def convert(
    input: Annotated[Path, typer.Argument(help="Weights that torch.save wrote: .pt, .pth, .bin or .ckpt.")],
    output: Annotated[Path, typer.Argument(help="File to write, .safetensors.")],
    key: Annotated[str | None, typer.Option("--key", help="Where the weights are, if the file holds several.")] = None,
    force: Force = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write pickled weights anew as safetensors, without running what a pickle may hold."""
    from invreg.cli.convert import convert_weights

    report = convert_weights(input, output, key, force=force)
    if json:
        say_json(report)
    else:
        results().print(f"{output}: {len(report['tensors'])} tensors", soft_wrap=True)


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="Any file that `reconstruct` reads.")],
    format: Annotated[str | None, typer.Option("--format", help="Default told from its content.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """What a file holds."""
    from invreg.cli.inform import describe

    found = describe(file, format)
    if json:
        say_json(found)
        return
    _two_columns(str(file), found)


@app.command("list")
def list_(
    topic: Annotated[str | None, typer.Argument(help="What to list; all of it by default.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """What there is to choose from, one line each."""
    from invreg.cli.inform import listing

    found = listing(topic)
    if json:
        say_json(found)
        return
    for title, entries in found.items():
        _two_columns(title, entries)


def _two_columns(title: str, entries: dict[str, Any], words: Callable[[Any], str] = str) -> None:
    table = Table(title=_plain(title), show_header=False, title_justify="left", box=None, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for key, value in entries.items():
        table.add_row(_plain(key), _plain(words(value)))
    results().print(table)
