"""Shared by the commands that take a user's function."""

from __future__ import annotations

import sys
from types import ModuleType, TracebackType

from vicreg.tools.functions import FunctionError
from vicreg.tools.libraries import NAMES

__all__ = ["library_hint", "printable"]

_SPELLED = {"γ": "gamma", "ε": "eps", "·": "*", "√": "sqrt ", "²": "^2", "×": "x"}


def printable(text: str) -> str:
    """Return `text`, with Greek letters and signs spelled out if the terminal lacks them."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        for letter, word in _SPELLED.items():
            text = text.replace(letter, word)
    return text


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
