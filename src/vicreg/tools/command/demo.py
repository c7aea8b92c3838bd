"""``vicreg demo``: train an encoder with and without each term."""

from pathlib import Path
from typing import Annotated

import typer

from vicreg.tools.command.errors import one_line_errors
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
                help="The library that trains.",
            ),
        ] = "numpy",
        epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 200,
        seed: Annotated[int, typer.Option(min=0, help="The random seed.")] = 0,
        plot: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="Draw a figure: .png, .svg or .pdf."),
        ] = None,
    ) -> None:
        with one_line_errors():
            require("numpy", "sklearn")
            _train_and_show(backend, epochs, seed, plot)


def _known(backend: str) -> str:
    if backend not in _BACKENDS:
        raise typer.BadParameter(f"{backend!r} is not one of {', '.join(_BACKENDS)}")
    return backend


def _train_and_show(backend: str, epochs: int, seed: int, plot: Path | None) -> None:
    from rich.console import Console

    from vicreg.tools.demo.plot import save_plot
    from vicreg.tools.demo.report import CAPTION, findings, results_table, training_progress
    from vicreg.tools.demo.study import run_study
    from vicreg.tools.files import check_figure_file

    if plot is not None:
        check_figure_file(plot)
    with training_progress(Console(stderr=True), epochs) as on_epoch:
        study = run_study(backend, epochs=epochs, seed=seed, on_epoch=on_epoch)
    console = Console(highlight=False)
    console.print(results_table(study))
    console.print(CAPTION, style="dim")
    console.print()
    for finding in findings(study):
        console.print(finding)
    if plot is not None:
        save_plot(study, plot)
        console.print(f"The figure is in {plot}", soft_wrap=True, markup=False)
