"""The command ``vicreg``: parses and prints."""

# Annotations are evaluated here: typer reads them, and is imported only when it is needed.

import importlib
import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

from vicreg import __version__
from vicreg.conventions import Convention, conventions

if TYPE_CHECKING:
    from rich.table import Table
    from typer import Typer

__all__ = ["application", "main"]

# typer folds paragraphs itself, save those that begin with \b.
_HELP = """The variance-invariance-covariance loss: see it work, and see which one you have.

\b
vicreg demo                    train an encoder with and without each term
vicreg demo --backend torch    the same on PyTorch
vicreg demo --plot demo.png    and draw what happened
vicreg conventions             compare the published implementations
vicreg conventions --json      the same as data
"""

_DEMO_HELP = (
    "Train a small encoder on images of digits, with and without each term.\n\n"
    "Four encoders are compared: VICReg, the same without its variance term, without its "
    "covariance term, and untrained. It takes about half a minute on two cores.\n\n"
    "\b\n"
    "vicreg demo                              on NumPy alone\n"
    "vicreg demo --backend jax --epochs 20    on JAX, shorter\n"
    "vicreg demo --plot demo.svg              with a figure\n"
)

_CONVENTIONS_HELP = """Compare the published conventions: "VICReg" is not one function.

\b
vicreg conventions           as tables
vicreg conventions --json    as data, for a program
"""

_COLUMNS = (
    "Var. and Cov. over: what a sum over n samples is divided by. Views: how the terms of two "
    "views combine. Hinge on: what is held against gamma. eps: added to the variance under the "
    "root. Weights: of invariance, variance and covariance."
)

_WHICH_ONE = (
    "Which one do you have? vicreg_loss without arguments is 'official': the same number as "
    "facebookresearch's code, lightly and pytorch-metric-learning."
)


class Backend(StrEnum):
    """The library that trains the encoder."""

    numpy = "numpy"
    torch = "torch"
    jax = "jax"
    cupy = "cupy"


def main() -> None:
    """Run the command, or say in one line what it lacks."""
    try:
        for package in ("typer", "rich"):
            importlib.import_module(package)
    except ImportError:
        _stop("the command needs its extra: pip install 'vicreg[command]'")
    try:
        status = application()(prog_name="vicreg", standalone_mode=False)
    except Exception as error:
        # A usage error, whichever copy of click typer brings; it would print several lines.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        _stop(f"{message().rstrip('.')}: see vicreg --help")
    sys.exit(status or 0)


def application() -> "Typer":
    """Return the command as a typer application.

    Returns
    -------
    typer.Typer
    """
    import typer

    app = typer.Typer(
        help=_HELP,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )

    def print_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"vicreg {__version__}")
            raise typer.Exit

    @app.callback(invoke_without_command=True)
    def options(
        context: typer.Context,
        version: Annotated[
            bool,
            typer.Option(
                "--version", callback=print_version, is_eager=True, help="Print the version."
            ),
        ] = False,
    ) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    @app.command(help=_DEMO_HELP)
    def demo(
        backend: Annotated[Backend, typer.Option(help="The library that trains.")] = Backend.numpy,
        epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 200,
        seed: Annotated[int, typer.Option(min=0, help="Chooses all that is random.")] = 0,
        plot: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="Draw a figure: .png, .svg or .pdf."),
        ] = None,
    ) -> None:
        _demo(backend.value, epochs, seed, plot)

    @app.command("conventions", help=_CONVENTIONS_HELP)
    def conventions_(
        as_json: Annotated[bool, typer.Option("--json", help="Print the data as JSON.")] = False,
    ) -> None:
        _print_json() if as_json else _print_conventions()

    return app


def _demo(backend: str, epochs: int, seed: int, plot: Path | None) -> None:
    # The errors' module needs nothing; the others need what is asked for first.
    from vicreg.demo.errors import DemoError, RequirementError, require

    try:
        require("numpy", "sklearn")
        _train_and_show(backend, epochs, seed, plot)
    except RequirementError as error:
        _stop(str(error))
    except DemoError as error:
        _stop(str(error), status=1)
    except KeyboardInterrupt:
        _stop("stopped", status=130)


def _train_and_show(backend: str, epochs: int, seed: int, plot: Path | None) -> None:
    from rich.console import Console

    from vicreg.demo.plot import check_plot, save_plot
    from vicreg.demo.report import CAPTION, findings, results_table, training_progress
    from vicreg.demo.study import run_study

    if plot is not None:
        check_plot(plot)
    with training_progress(Console(stderr=True), epochs) as on_epoch:
        study = run_study(backend, epochs=epochs, seed=seed, on_epoch=on_epoch)
    console = Console(highlight=False)
    console.print(results_table(study))
    console.print(CAPTION, style="dim")
    console.print()
    for finding in findings(study):
        console.print(finding)
    if plot is not None:
        try:
            save_plot(study, plot)
        except OSError as error:
            _stop(f"cannot plot to {str(plot)!r}: {error.strerror or error}", status=1)
        console.print(f"The figure is in {plot}", soft_wrap=True, markup=False)


def _print_conventions() -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for table in (_functions_table(), _sources_table()):
        console.print(table)
    console.print(_COLUMNS, style="dim")
    console.print()
    console.print(_WHICH_ONE)


def _functions_table() -> "Table":
    headings = (
        "Convention",
        "Invari-\nance",
        "Hinge\non",
        "Var.\nover",
        "eps",
        "Var.\nviews",
        "Cov.\nover",
        "Cov.\nviews",
        "Cov.\ndivisor",
    )
    table = _empty_table("What each computes", headings)
    for convention in conventions.values():
        table.add_row(
            convention.name,
            convention.invariance.replace(" ", "\n"),
            convention.hinge_on,
            _divisor(convention.variance_correction),
            f"{convention.eps:g}",
            convention.variance_over_views,
            _divisor(convention.covariance_correction),
            convention.covariance_over_views,
            convention.covariance_divisor,
        )
    return table


def _sources_table() -> "Table":
    headings = ("Convention", "Weights", "Published in, and also computed by")
    table = _empty_table("Where each is from", headings)
    for convention in conventions.values():
        others = [f"also {implementation}" for implementation in convention.implementations]
        table.add_row(
            convention.name, _weights(convention), "\n".join([convention.source, *others])
        )
    return table


def _empty_table(title: str, headings: tuple[str, ...]) -> "Table":
    from rich import box
    from rich.table import Table

    # Without padding the widest fits 80 columns; what does not fit a terminal is folded.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _divisor(correction: int) -> str:
    return f"n-{correction}" if correction else "n"


def _weights(convention: Convention) -> str:
    if convention.weights is None:
        return "none"
    return ", ".join(f"{weight:g}" for weight in convention.weights)


def _print_json() -> None:
    print(json.dumps({name: asdict(entry) for name, entry in conventions.items()}, indent=2))


def _stop(message: str, status: int = 2) -> NoReturn:
    print(f"vicreg: {message}", file=sys.stderr)
    sys.exit(status)
