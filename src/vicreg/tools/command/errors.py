"""Errors of a command: one line on stderr and an exit status, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

from vicreg.tools.requirements import RequirementError, ToolError

__all__ = ["UsageError", "discard", "one_line_errors", "stop"]


class UsageError(RequirementError):
    """The arguments of a command cannot be used; its help says which can."""


def stop(message: str, status: int = 2) -> NoReturn:
    """Print `message` on stderr and exit with `status`."""
    try:
        print(f"vicreg: {message}", file=sys.stderr, flush=True)
    except OSError:  # nobody can be told
        discard(sys.stderr)
    sys.exit(status)


def discard(stream: TextIO) -> None:
    """Let go of what `stream` could not write: Python would try again when it ends."""
    with suppress(OSError):  # it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Exit on an error in the block: with status 2 for bad usage, 1 for a failure.

    Parameters
    ----------
    command : str
        The name of the subcommand, to whose help an error of usage points.
    """
    try:
        yield
    except UsageError as error:
        stop(f"{error}: see vicreg {command} --help")
    except RequirementError as error:
        stop(str(error))
    except ToolError as error:
        stop(str(error), status=1)
    except KeyboardInterrupt:
        stop("stopped", status=130)
