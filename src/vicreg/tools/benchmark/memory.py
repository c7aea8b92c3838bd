"""The peak memory of one call above its inputs, in a process of its own."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from vicreg.tools.backends import Backend, backends_of
from vicreg.tools.benchmark.computations import Problem, build_ahead
from vicreg.tools.requirements import ToolError

__all__ = ["PeakUnknownError", "available_memory", "peak_memory"]

#: The call before the one that is watched: it loads what a first call loads.
_SMALL = 8
_PATIENCE = 600.0  # seconds


class PeakUnknownError(ToolError):
    """The peak memory could not be measured; the message is the reason."""


def peak_memory(name: str, backend: Backend, problem: Problem) -> int:
    """Return by how many bytes one call raises the memory above what its inputs take.

    In a new process, which has run nothing but a small call before; of a CPU it is the resident
    memory of that process, of a GPU what the library holds on it. The outputs are counted.

    Parameters
    ----------
    name : {"vicreg", "published", "products"}
        What is called.
    backend : Backend
        Where.
    problem : Problem
        What is computed.

    Returns
    -------
    int

    Raises
    ------
    PeakUnknownError
        The process ended with an error.
    """
    request = {
        "name": name,
        "backend": backend.name,
        "device": backend.device,
        "problem": asdict(problem),
    }
    # -P: a module of the current directory shadows nothing.
    command = [sys.executable, "-P", "-m", "vicreg.tools.benchmark.memory", json.dumps(request)]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PeakUnknownError(f"its process took longer than {_PATIENCE:.0f} seconds") from error
    except OSError as error:
        raise PeakUnknownError(f"its process did not start: {error.strerror or error}") from error
    if ran.returncode:
        raise PeakUnknownError(_why(ran))
    return int(json.loads(ran.stdout.splitlines()[-1])["bytes"])


def _why(ran: subprocess.CompletedProcess[str]) -> str:
    lines = ran.stderr.strip().splitlines()
    if ran.returncode < 0:
        return f"its process was ended by signal {-ran.returncode}"
    return f"its process ended with: {lines[-1] if lines else ran.returncode}"


def _measure(name: str, backend: Backend, problem: Problem) -> int:
    with backend.active(), backend.full_precision():
        small = Problem(
            _SMALL, _SMALL, problem.dtype, problem.mode, problem.compiled, problem.views
        )
        backend.synchronise(build_ahead(name, backend, small, small.arrays(backend))())
        arrays = problem.arrays(backend)
        backend.synchronise(tuple(arrays))
        call = build_ahead(name, backend, problem, arrays)
        gc.collect()
        rise = backend.watch_memory() or _watch_process()
        output = call()
        backend.synchronise(output)
        return rise()


def _watch_process() -> Callable[[], int]:
    """Begin to watch the resident memory of this process; return what says by how much it rose."""
    try:
        # Linux: the highest begins anew, so that what making the inputs took hides nothing. It
        # is also of this process alone, where ru_maxrss begins with that of the parent.
        Path("/proc/self/clear_refs").write_text("5")
        held = _of_status("VmRSS")
        return lambda: max(0, _of_status("VmHWM") - held)
    except (OSError, KeyError):
        held = _highest()
        return lambda: _highest() - held


def _of_status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, amount = line.partition(":")
        if name == field:
            return int(amount.split()[0]) * 1024
    raise KeyError(field)


def _highest() -> int:
    """Return the highest resident memory so far.

    Making the inputs may have taken more than they keep: the rise is that much too low at most.
    """
    import resource

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


def available_memory() -> int | None:
    """Return how many bytes this process could still take; None where the system does not say.

    Returns
    -------
    int or None
        The least of what the machine has available and what the process's group may take.
    """
    amounts = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                amounts.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        amounts.append(limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # another system, or a group without a limit
        pass
    return min(amounts, default=None)


def _main(request: str) -> None:
    asked = json.loads(request)
    (backend,) = [b for b in backends_of(asked["backend"]) if b.device == asked["device"]]
    problem = Problem(**asked["problem"])
    print(json.dumps({"bytes": _measure(asked["name"], backend, problem)}))


if __name__ == "__main__":
    _main(sys.argv[1])
