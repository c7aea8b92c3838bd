"""``vicreg conventions``: the published conventions as tables or as data."""

from dataclasses import asdict

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from vicreg._conventions import Convention, conventions
from vicreg.tools.command.errors import one_line_errors
from vicreg.tools.command.shared import JsonFile, check_files, report_console, write_json

__all__ = ["add_to"]

_HELP = """Compare the published conventions: "VICReg" is not one function.

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


def add_to(app: typer.Typer) -> None:
    """Add the subcommand to `app`."""

    @app.command("conventions", help=_HELP)
    def conventions_(json_file: JsonFile = None) -> None:
        with one_line_errors("conventions"):
            check_files({"--json": json_file})
            _print_conventions(report_console(json_file))
            data = {name: asdict(entry) for name, entry in conventions.items()}
            write_json(json_file, data)


def _print_conventions(console: Console) -> None:
    for table in (_functions_table(), _sources_table()):
        console.print(table)
    console.print(_COLUMNS, style="dim")
    console.print()
    console.print(_WHICH_ONE)


def _functions_table() -> Table:
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


def _sources_table() -> Table:
    headings = ("Convention", "Weights", "Published in, and also computed by")
    table = _empty_table("Where each is from", headings)
    for convention in conventions.values():
        others = [f"also {implementation}" for implementation in convention.implementations]
        table.add_row(
            convention.name, _weights(convention), "\n".join([convention.source, *others])
        )
    return table


def _empty_table(title: str, headings: tuple[str, ...]) -> Table:
    # Without padding the widest row has 80 columns; on a narrower terminal it is wrapped.
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
