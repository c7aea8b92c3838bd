"""Errors of a command: one line on stderr and an exit status, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from vicreg.tools.requirements import RequirementError, ToolError

__all__ = ["UsageError", "one_line_errors", "stop"]


class UsageError(RequirementError):
    """The arguments of a command cannot be used; its help says which can."""


def stop(message: str, status: int = 2) -> NoReturn:
    """Print `message` on stderr and exit with `status`."""
    print(f"vicreg: {message}", file=sys.stderr)
    sys.exit(status)


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
