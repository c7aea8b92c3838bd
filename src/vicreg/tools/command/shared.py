"""Shared by the commands: their common options, the files they write, and the consoles."""

# No `from __future__ import annotations`: typer reads the annotations.

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vicreg._conventions import codebases, convention_named, conventions
from vicreg.tools.command.errors import UsageError
from vicreg.tools.command.functions import printable
from vicreg.tools.dtypes import DTYPES
from vicreg.tools.libraries import NAMES

__all__ = [
    "CONVENTIONS",
    "STDOUT",
    "Backends",
    "Conventions",
    "Devices",
    "Dtypes",
    "JsonFile",
    "PlotFile",
    "Subcommands",
    "check_files",
    "chosen",
    "chosen_conventions",
    "names_completed",
    "report_console",
    "say_written",
    "stderr_console",
    "write_json",
    "write_text",
]

#: The file that stands for standard output.
STDOUT = Path("-")

JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="[FILE.json]",
        help="Write the data as JSON to standard output, and nothing else there; or to a file, "
        "whose name ends in .json (any other file: --json=FILE).",
    ),
]

PlotFile = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw a figure: .png, .svg or .pdf."),
]


def names_completed(names: Sequence[str]) -> Callable[[str], list[str]]:
    """Return the function by which typer completes one of `names` in a shell."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def _several(what: str, names: Sequence[str]) -> Any:
    again = f"{what}; may be given again."
    return typer.Option(metavar="NAME", autocompletion=names_completed(names), help=again)


#: What ``--convention`` takes.
CONVENTIONS = (*conventions, *codebases)

Backends = Annotated[list[str] | None, _several(f"A library: {', '.join(NAMES)}", NAMES)]
Conventions = Annotated[
    list[str] | None,
    _several("A convention or codebase: see vicreg conventions", CONVENTIONS),
]
Devices = Annotated[list[str] | None, _several("A device (cpu, cuda, cuda:1)", ("cpu", "cuda"))]
Dtypes = Annotated[list[str] | None, _several(f"A dtype: {', '.join(DTYPES)}", DTYPES)]


class Subcommands(TyperGroup):
    """The subcommands, with a ``--json`` whose file may be left out: typer has no such option."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the subcommand and its arguments, with a file for each ``--json``."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command, rest if ctx.resilient_parsing else _with_json_file(rest)


def _with_json_file(arguments: Sequence[str]) -> list[str]:
    completed = list(arguments)
    for place, (word, following) in enumerate(pairwise([*arguments, ""])):
        if word == "--":
            break
        if word == "--json" and not following.lower().endswith(".json"):
            completed[place] = f"--json={STDOUT}"
    return completed


def chosen(option: str, given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the names `given` to `option` without duplicates; raise if one is not `known`."""
    for name in given:
        if name not in known:
            raise UsageError(f"{option} must be one of {', '.join(known)}; got {name!r}")
    return tuple(dict.fromkeys(given))


def chosen_conventions(given: Sequence[str]) -> tuple[str, ...]:
    """Return the conventions that ``--convention`` names, without duplicates."""
    try:
        names = [convention_named(name, "--convention").name for name in given]
    except ValueError as error:
        raise UsageError(str(error)) from error
    return tuple(dict.fromkeys(names))


def check_files(files: Mapping[str, Path | None], inputs: Sequence[Path] = ()) -> None:
    """Check, before any work, that the file of each option can be written and is its own.

    It must not be one of the `inputs`, which it would replace.
    """
    from vicreg.tools.files import check_figure_file, check_file, real

    given = _written(files)
    for option, file in given.items():
        check_figure_file(file) if option == "--plot" else check_file(file)
    if len({real(file) for file in given.values()}) < len(given):
        raise UsageError(f"{' and '.join(given)} must be different files")
    read = {real(file) for file in inputs}
    for option, file in given.items():
        if real(file) in read:
            raise UsageError(f"{option} must not replace {str(file)!r}, which is read")


def write_json(file: Path | None, data: Any) -> None:
    """Write `data` to `file`, or to standard output, or nowhere if it is None."""
    if file is None:
        return
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    if file == STDOUT:
        sys.stdout.write(text)
    else:
        write_text(file, text)


def write_text(file: Path | None, text: str) -> None:
    """Replace `file` by `text`, completely or not at all; do nothing if it is None."""
    from vicreg.tools.files import replacing

    if file is not None:
        with replacing(file) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def say_written(files: Mapping[str, Path | None]) -> None:
    """Print the names of the files that were written, unless standard output is for the data."""
    console = report_console(files.get("--json"))
    for file in _written(files).values():
        console.print(printable(f"Written: {file}"), markup=False, soft_wrap=True)


def _written(files: Mapping[str, Path | None]) -> dict[str, Path]:
    return {
        option: file
        for option, file in files.items()
        if file is not None and (option, file) != ("--json", STDOUT)
    }


def report_console(json_file: Path | None) -> Any:
    """Return the console of the report, which is silent if standard output is for the data."""
    from rich.console import Console

    return Console(highlight=False, quiet=json_file == STDOUT)


def stderr_console() -> Any:
    """Return a console that prints to stderr."""
    from rich.console import Console

    return Console(stderr=True)
