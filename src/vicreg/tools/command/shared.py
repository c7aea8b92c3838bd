"""Shared by several commands: options with known values, and the console on stderr."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vicreg.tools.command.functions import printable
from vicreg.tools.requirements import RequirementError

__all__ = ["chosen", "stderr_console", "write_report"]


def chosen(option: str, given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the names `given` to `option` without duplicates; raise if one is not `known`."""
    for name in given:
        if name not in known:
            raise RequirementError(f"{option} must be one of {', '.join(known)}; got {name!r}")
    return tuple(dict.fromkeys(given))


def write_report(
    files: Mapping[str, Path | None], as_json: Mapping[str, Any], as_markdown: str
) -> None:
    """Write a report to the files named "json" and "markdown", where there are any."""
    from rich.console import Console

    from vicreg.tools.files import replacing

    texts = {
        "json": json.dumps(as_json, indent=2, allow_nan=False) + "\n",
        "markdown": as_markdown,
    }
    for kind, file in files.items():
        if file is not None:
            with replacing(file) as unfinished:
                unfinished.write_text(texts[kind], encoding="utf-8")
            line = printable(f"The report is in {file}")
            Console(highlight=False).print(line, markup=False, soft_wrap=True)


def stderr_console() -> Any:
    """Return a console that prints to stderr."""
    from rich.console import Console

    return Console(stderr=True)
