"""Shared by the commands that take a user's function."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from vicreg.tools.libraries import NAMES

if TYPE_CHECKING:
    from vicreg.tools.functions import FunctionError

__all__ = ["METAVAR", "Kwargs", "Output", "Shape", "files_of", "library_hint", "printable"]

METAVAR = "MODULE:FUNCTION"
#: The options of the commands that take a user's function.
Kwargs = Annotated[
    list[str] | None,
    typer.Option(
        "--kwargs",
        metavar="NAME=VALUE",
        help="Arguments for the class, or for each call of the function: 'std_coeff=1, eps=1e-3'; "
        "may be given again.",
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Which part of what it returns is the loss: a key, an index or an attribute, with "
        "dots if nested. By default 'loss' or 'total_loss', or the first number of a tuple.",
    ),
]
Shape = Annotated[
    str | None,
    typer.Option(
        metavar="AXES",
        help="The axes of each array, by default n,d: n is the samples, d the features, a number "
        "more samples, a number and d more features. For (B, C, T, H, W): n,d,1,1,1, or n,d,2,4,4 "
        "where each of the 2 * 4 * 4 places is a sample, or n,d,1,4d,4d where they are features.",
    ),
]

_SPELLED = {"γ": "gamma", "ε": "eps", "·": "*", "√": "sqrt ", "²": "^2", "×": "x"}


def printable(text: str) -> str:
    """Return `text`, with Greek letters and signs spelled out if the terminal lacks them."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        for letter, word in _SPELLED.items():
            text = text.replace(letter, word)
    return text


def files_of(target: str | None) -> list[Path]:
    """Return the file of the user's code that `target` names, as ``check_files`` takes inputs.

    It need not exist: a module may be elsewhere on the path.
    """
    module = (target or "").rpartition(":")[0]
    if not module:
        return []
    is_file = module.endswith(".py")
    return [Path(module).expanduser() if is_file else Path(f"{module.replace('.', '/')}.py")]


def library_hint(error: FunctionError, backend: str) -> str:
    """Return a hint at the library to try, if the function raised for NumPy arrays."""
    cause = error.__cause__
    if backend != "numpy" or cause is None or cause.__traceback__ is None:
        return ""
    library = _library_in(cause.__traceback__)
    if library is not None:
        return f"; it uses {library}: try --backend {library}"
    was_entered = cause.__traceback__.tb_next is not None
    if was_entered and isinstance(cause, (TypeError, AttributeError)):
        return "; is it for other arrays? --backend torch, jax, mlx ... gives it others"
    return ""


def _library_in(traceback: TracebackType | None) -> str | None:
    """Return the library that a module in the traceback imports."""
    while traceback is not None:
        names = {
            value.__name__.partition(".")[0]
            for value in traceback.tb_frame.f_globals.values()
            if isinstance(value, ModuleType)
        }
        names.add(str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        for library in NAMES:
            if library != "numpy" and library in names:
                return library
        traceback = traceback.tb_next
    return None
