"""What a report states so that it can be repeated: versions and the processor."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from vicreg import __version__
from vicreg.tools.backends import Backend

__all__ = ["description", "load_per_core", "processor"]


def description(backends: Iterable[Backend] = ()) -> dict[str, str]:
    """Return the versions and the machine that a report was made with.

    Parameters
    ----------
    backends : iterable of Backend
        The libraries that were used.

    Returns
    -------
    dict of str to str
        "vicreg", "python", "platform", "processor", "array-api-compat", and each library.
    """
    named = {
        "vicreg": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "array-api-compat": version("array-api-compat"),
    }
    return named | {backend.name: backend.version for backend in backends}


def processor() -> str:
    """Return the processor's name and how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor_name()}, {cores} cores"


def load_per_core() -> float | None:
    """Return how many processes wanted each core over the last minute; None if unknown."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (AttributeError, OSError):  # Windows; a system that does not tell
        return None


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
