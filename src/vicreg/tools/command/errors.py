"""Errors of a command: one line on stderr and an exit status, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from vicreg.tools.requirements import RequirementError, ToolError

__all__ = ["one_line_errors", "stop"]


def stop(message: str, status: int = 2) -> NoReturn:
    """Print `message` on stderr and exit with `status`."""
    print(f"vicreg: {message}", file=sys.stderr)
    sys.exit(status)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Exit on an error in the block: with status 2 for bad usage, 1 for a failure."""
    try:
        yield
    except RequirementError as error:
        stop(str(error))
    except ToolError as error:
        stop(str(error), status=1)
    except KeyboardInterrupt:
        stop("stopped", status=130)
