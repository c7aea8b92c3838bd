"""``vicreg identify``: which published convention a function is."""

import json
import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from vicreg.tools.command.errors import one_line_errors, stop
from vicreg.tools.command.functions import (
    METAVAR,
    Kwargs,
    Output,
    Shape,
    library_hint,
    printable,
)
from vicreg.tools.command.shared import stderr_console
from vicreg.tools.functions import FunctionError
from vicreg.tools.loading import Target
from vicreg.tools.requirements import require

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
vicreg identify ./src/losses.py:VICRegLoss --backend torch --kwargs 'std_coeff=1'
    a class in a file, made with arguments, on PyTorch tensors
vicreg identify losses:video_loss --backend torch --shape n,d,2,4,4 --output total
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
            str, typer.Option(metavar="NAME", help="The library whose arrays it takes.")
        ] = "numpy",
        kwargs: Kwargs = None,
        output: Output = None,
        shape: Shape = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
    ) -> None:
        with one_line_errors():
            require("numpy")
            target = Target(function, kwargs or (), output, shape)
            identified = _identify(target, backend, as_json)
        if not identified:
            raise typer.Exit(1)


def _identify(target: Target, backend: str, as_json: bool) -> bool:
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
        stop(str(error))
    if as_json:
        print(json.dumps(answer.as_data(), indent=2))
    else:
        print(printable(str(answer)))
    return answer.identified
