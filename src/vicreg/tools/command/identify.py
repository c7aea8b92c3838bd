"""``vicreg identify``: which published convention a function is."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vicreg.tools.command.errors import UsageError, one_line_errors
from vicreg.tools.command.functions import (
    METAVAR,
    Kwargs,
    Output,
    Shape,
    files_of,
    library_hint,
    printable,
)
from vicreg.tools.command.shared import (
    STDOUT,
    JsonFile,
    check_files,
    names_completed,
    say_written,
    stderr_console,
    write_json,
)
from vicreg.tools.libraries import NAMES
from vicreg.tools.requirements import require

if TYPE_CHECKING:
    from vicreg.tools.loading import Target

__all__ = ["add_to"]

#: How often a function is called, about.
_CALLS = 120

_HELP = (
    "Say which published convention a function of two arrays is.\n\n"
    "It is called with chosen arrays, about a hundred times, and only its values are used. "
    "The answer is the convention, its weights, gamma and eps, and the weights that make the "
    'official code compute the same; or it is "none of them", and which term differs. A class '
    "is called first, with the arguments of --kwargs. What is returned may be a dict, a tuple or "
    "an object that has the loss in it.\n\n"
    """\b
vicreg identify losses:my_loss
    the function my_loss in losses.py, here, on NumPy arrays
vicreg identify ./losses.py:MyLoss --backend torch --kwargs 'std_coeff=1'
    a class in a file, made with arguments, on PyTorch tensors
vicreg identify losses:video --backend torch --shape n,d,2,4,4 --output total
    a loss of (B, C, T, H, W) that returns a dict with the key 'total'
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
            str,
            typer.Argument(
                metavar=METAVAR, help="What to identify; the module may be a file, my_code.py."
            ),
        ],
        backend: Annotated[
            str,
            typer.Option(
                metavar="NAME",
                autocompletion=names_completed(NAMES),
                help="The library whose arrays it takes.",
            ),
        ] = "numpy",
        kwargs: Kwargs = None,
        output: Output = None,
        shape: Shape = None,
        json_file: JsonFile = None,
    ) -> None:
        with one_line_errors("identify"):
            require("numpy")
            from vicreg.tools.loading import Target

            check_files({"--json": json_file}, files_of(function))
            target = Target(function, kwargs or (), output, shape)
            identified = _identify(target, backend, json_file)
        if not identified:
            raise typer.Exit(1)


def _identify(target: "Target", backend: str, json_file: Path | None) -> bool:
    from vicreg.tools.functions import FunctionError
    from vicreg.tools.identification import identify_loss
    from vicreg.tools.progress import late_progress

    try:
        with (
            redirect_stdout(sys.stderr),  # the function may print
            late_progress(stderr_console(), _CALLS) as on_step,
        ):
            answer = identify_loss(
                target.load(),
                backend,
                target.output,
                target.shape,
                lambda: on_step(f"calling {target.path}"),
            )
    except FunctionError as error:
        raise FunctionError(f"{error}{library_hint(error, backend)}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    if json_file != STDOUT:
        print(printable(str(answer)))
    write_json(json_file, answer.as_data())
    say_written({"--json": json_file})
    return answer.identified
