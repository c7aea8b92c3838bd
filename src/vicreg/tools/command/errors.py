"""How a command ends: one line on stderr and a status, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from vicreg.tools.requirements import RequirementError, ToolError

__all__ = ["one_line_errors", "stop"]


def stop(message: str, status: int = 2) -> NoReturn:
    """Print `message` as one line on stderr and end with `status`."""
    print(f"vicreg: {message}", file=sys.stderr)
    sys.exit(status)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the command as each error of the block asks: 2 for usage, 1 for what went wrong."""
    try:
        yield
    except RequirementError as error:
        stop(str(error))
    except ToolError as error:
        stop(str(error), status=1)
    except KeyboardInterrupt:
        stop("stopped", status=130)
