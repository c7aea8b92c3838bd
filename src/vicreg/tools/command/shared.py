"""Shared by several commands: options with known values, and the console on stderr."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vicreg.tools.requirements import RequirementError

__all__ = ["chosen", "stderr_console"]


def chosen(option: str, given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the names `given` to `option` without duplicates; raise if one is not `known`."""
    for name in given:
        if name not in known:
            raise RequirementError(f"{option} must be one of {', '.join(known)}; got {name!r}")
    return tuple(dict.fromkeys(given))


def stderr_console() -> Any:
    """Return a console that prints to stderr."""
    from rich.console import Console

    return Console(stderr=True)
