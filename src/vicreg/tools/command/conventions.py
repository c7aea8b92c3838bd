"""``vicreg conventions``: the published conventions as tables or as data."""

from dataclasses import asdict
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from vicreg._conventions import Convention, codebases, codebases_of, conventions
from vicreg.tools.command.errors import one_line_errors
from vicreg.tools.command.shared import (
    JsonFile,
    check_files,
    report_console,
    say_written,
    write_json,
)

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
    "Without a name it is official. The names of codebases may be given for those of conventions, "
    'as in convention="lightly" or --convention lightly.'
)


def add_to(app: typer.Typer) -> None:
    """Add the subcommand to `app`."""

    @app.command("conventions", help=_HELP)
    def conventions_(json_file: JsonFile = None) -> None:
        with one_line_errors("conventions"):
            files = {"--json": json_file}
            check_files(files)
            _print_conventions(report_console(json_file))
            write_json(json_file, _as_data())
            say_written(files)


def _print_conventions(console: Console) -> None:
    for table in (_functions_table(), _sources_table()):
        console.print(table)
    console.print(_COLUMNS, style="dim")
    console.print()
    console.print(_codebases_table())
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
    headings = ("Convention", "Weights", "Published in")
    table = _empty_table("Where each is from", headings)
    for convention in conventions.values():
        table.add_row(convention.name, _weights(convention), convention.source)
    return table


def _codebases_table() -> Table:
    headings = ("Codebase", "Convention", "What computes it")
    table = _empty_table("Which one do you have?", headings)
    for codebase in codebases.values():
        table.add_row(codebase.name, codebase.convention, codebase.function)
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


def _as_data() -> dict[str, dict[str, Any]]:
    data: dict[str, dict[str, Any]] = {name: asdict(one) for name, one in conventions.items()}
    for name, fields in data.items():
        fields["codebases"] = codebases_of(name)
    return data
