"""The peak memory of one call above its inputs, measured in a new process."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from vicreg.tools.backends import Backend, backends_of
from vicreg.tools.benchmark.computations import Problem, build_ahead
from vicreg.tools.requirements import ToolError

__all__ = ["PeakUnknownError", "available_memory", "peak_memory"]

#: A small call before the measured one, so that everything is loaded.
_SMALL = 8
_PATIENCE = 600.0  # seconds
#: For the allocator of glibc: give the memory of each large array back when it is freed. It would
#: else keep some, as that of the drawn inputs, which the call would use without a rise; or leave
#: gaps that nothing fits into. Others ignore it.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}


class PeakUnknownError(ToolError):
    """The peak memory could not be measured; the message is the reason."""


def peak_memory(name: str, backend: Backend, problem: Problem) -> int:
    """Return the peak memory of one call, in bytes above its inputs.

    It is measured in a new process, after one small call. On a CPU it is the resident memory of
    the process, on a GPU what the library has allocated there. The outputs are included.

    Parameters
    ----------
    name : {"vicreg", "published", "products"}
        The computation.
    backend : Backend
        The library and the device.
    problem : Problem
        The problem.

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
    # -P: do not import from the current directory.
    command = [sys.executable, "-P", "-m", "vicreg.tools.benchmark.memory", json.dumps(request)]
    try:
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
            env=os.environ | _ALLOCATOR,
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
    """Start to record the resident memory; return a function that returns the rise to its peak."""
    try:
        # Linux: reset the peak, so that it excludes making the inputs. Unlike ru_maxrss, it does
        # not start from the peak of the parent process.
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
    """Return the peak of the resident memory so far.

    If making the inputs took more memory than they keep, the rise is too low by that.
    """
    import resource

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


def available_memory() -> int | None:
    """Return how many bytes this process can still allocate; None if that is unknown.

    Returns
    -------
    int or None
        The smaller of what the machine has available and what the control group allows.
    """
    amounts = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                amounts.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        amounts.append(limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # not Linux, or a group without a limit
        pass
    return min(amounts, default=None)


def _main(request: str) -> None:
    call = json.loads(request)
    (backend,) = [b for b in backends_of(call["backend"]) if b.device == call["device"]]
    problem = Problem(**call["problem"])
    print(json.dumps({"bytes": _measure(call["name"], backend, problem)}))


if __name__ == "__main__":
    _main(sys.argv[1])
