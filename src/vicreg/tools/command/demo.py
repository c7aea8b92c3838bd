"""``vicreg demo``: train an encoder with and without each term."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from vicreg.tools.command.errors import one_line_errors
from vicreg.tools.command.shared import (
    JsonFile,
    PlotFile,
    check_files,
    names_completed,
    report_console,
    say_written,
    stderr_console,
    write_json,
)
from vicreg.tools.libraries import names_where
from vicreg.tools.requirements import require

__all__ = ["add_to"]

_HELP = (
    "Train a small encoder on images of digits, with and without each term.\n\n"
    "Four encoders are compared: VICReg, the same without its variance term, without its "
    "covariance term, and untrained. It takes about half a minute on two cores.\n\n"
    "\b\n"
    "vicreg demo                              on NumPy alone\n"
    "vicreg demo --backend jax --epochs 20    on JAX, shorter\n"
    "vicreg demo --plot demo.svg              with a figure\n"
)


#: The libraries that can train the encoder.
_BACKENDS = names_where("trains_demo")


def add_to(app: typer.Typer) -> None:
    """Add the subcommand to `app`."""

    @app.command(help=_HELP)
    def demo(
        backend: Annotated[
            str,
            typer.Option(
                metavar=f"[{'|'.join(_BACKENDS)}]",
                callback=_known,
                autocompletion=names_completed(_BACKENDS),
                help="The library that trains.",
            ),
        ] = "numpy",
        epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 200,
        seed: Annotated[int, typer.Option(min=0, help="The random seed.")] = 0,
        plot: PlotFile = None,
        json_file: JsonFile = None,
    ) -> None:
        with one_line_errors("demo"):
            require("numpy", "sklearn")
            _train_and_show(backend, epochs, seed, {"--plot": plot, "--json": json_file})


def _known(backend: str) -> str:
    if backend not in _BACKENDS:
        raise typer.BadParameter(f"{backend!r} is not one of {', '.join(_BACKENDS)}")
    return backend


def _train_and_show(
    backend: str, epochs: int, seed: int, files: Mapping[str, Path | None]
) -> None:
    from vicreg.tools.demo import report
    from vicreg.tools.demo.plot import save_plot
    from vicreg.tools.demo.study import run_study

    check_files(files)
    with report.training_progress(stderr_console(), epochs) as on_epoch:
        study = run_study(backend, epochs=epochs, seed=seed, on_epoch=on_epoch)
    console = report_console(files["--json"])
    console.print(report.results_table(study))
    console.print(report.CAPTION, style="dim")
    console.print()
    for finding in report.findings(study):
        console.print(finding)
    write_json(files["--json"], report.as_json(study))
    if plot := files["--plot"]:
        save_plot(study, plot)
    say_written(files)
