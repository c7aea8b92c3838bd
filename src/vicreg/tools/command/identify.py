"""``vicreg identify``: which published convention a function is."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from vicreg.tools.command.errors import one_line_errors, stop
from vicreg.tools.command.functions import library_hint, printable
from vicreg.tools.command.shared import (
    STDOUT,
    JsonFile,
    check_files,
    names_completed,
    say_written,
    write_json,
)
from vicreg.tools.functions import FunctionError, load_function
from vicreg.tools.libraries import NAMES
from vicreg.tools.requirements import require

__all__ = ["add_to"]

_HELP = (
    "Say which published convention a function of two arrays is.\n\n"
    "It is called with chosen arrays, about a hundred times, and only its values are used. "
    "The answer is the convention, its weights, gamma and eps, and the weights that make the "
    'official code compute the same; or it is "none of them", and which term differs. A class '
    "is called without arguments first.\n\n"
    """\b
vicreg identify losses:my_loss
    the function my_loss in losses.py, here, on NumPy arrays
vicreg identify pytorch_metric_learning.losses:VICRegLoss --backend torch
    a class of an installed package, on PyTorch tensors
vicreg identify losses:my_loss --json
    the answer as data

Exit status: 0 identified, 1 none of them, 2 the function cannot be found, called or used.
"""
)


def add_to(app: typer.Typer) -> None:
    """Add the subcommand to `app`."""

    @app.command(help=_HELP)
    def identify(
        function: Annotated[
            str, typer.Argument(metavar="MODULE:FUNCTION", help="What to identify.")
        ],
        backend: Annotated[
            str,
            typer.Option(
                metavar="NAME",
                autocompletion=names_completed(NAMES),
                help="The library whose arrays it takes.",
            ),
        ] = "numpy",
        json_file: JsonFile = None,
    ) -> None:
        with one_line_errors("identify"):
            require("numpy")
            check_files({"--json": json_file})
            identified = _identify(function, backend, json_file)
        if not identified:
            raise typer.Exit(1)


def _identify(path: str, backend: str, json_file: Path | None) -> bool:
    import vicreg

    try:
        with redirect_stdout(sys.stderr):  # the function may print
            answer = vicreg.identify(load_function(path), backend=backend)
    except FunctionError as error:
        raise FunctionError(f"{error}{library_hint(error, backend)}") from error
    except ValueError as error:
        stop(str(error))
    if json_file != STDOUT:
        print(printable(str(answer)))
    write_json(json_file, answer.as_data())
    say_written({"--json": json_file})
    return answer.identified
