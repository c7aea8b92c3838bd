"""Several processes at once on this machine, which end whatever happens.

Each process is given a folder of its own. A process that is at work shows it by new files there
whose names end in ``.done``; one that shows nothing for too long is stopped, and all others with
it. Processes that call `end_with_parent` also end if the one that started them is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["End", "Limits", "end_with_parent", "run_together"]

_POLL = 0.05


@dataclass(frozen=True)
class Limits:
    """How long processes may take, in seconds.

    Parameters
    ----------
    step : float
        From one file of any process to the next.
    start : float
        Until each process has written its first file: the time to import a library.
    after_failure : float
        For the others, once one process has failed.
    """

    step: float = 20.0
    start: float = 120.0
    after_failure: float = 3.0


@dataclass(frozen=True)
class End:
    """How a process ended.

    Parameters
    ----------
    status : int or None
        Its exit status, negative for a signal; None if it was stopped.
    output : str
        The last lines that it printed.
    """

    status: int | None
    output: str


def run_together(
    commands: Sequence[Sequence[str]],
    folders: Sequence[Path],
    environments: Sequence[Mapping[str, str]],
    limits: Limits | None = None,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[End]:
    """Run processes side by side until all have ended, or until a limit has passed.

    Parameters
    ----------
    commands : sequence of sequences of str
        The command line of each process.
    folders : sequence of path
        The folder of each process, which exists and is empty.
    environments : sequence of mappings
        What is added to the environment of each.
    limits : Limits, optional
        The time that they have.
    on_done : callable
        Called with the smallest number of files of a process, each time that it has grown.

    Returns
    -------
    list of End
        In the order of the processes, none of which is left when this returns or raises.
    """
    with _started(commands, folders, environments) as processes:
        _wait(processes, folders, limits or Limits(), on_done)
        statuses = [process.poll() for process in processes]
    return [
        End(status, _last_lines(_log(folder)))
        for status, folder in zip(statuses, folders, strict=True)
    ]


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone.

    Its standard input must be a pipe that the parent holds, as for `run_together`.
    """

    def wait() -> None:
        # Not through `sys.stdin`, whose lock a process that ends would wait for.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _started(
    commands: Sequence[Sequence[str]],
    folders: Sequence[Path],
    environments: Sequence[Mapping[str, str]],
) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command, folder, more in zip(commands, folders, environments, strict=True):
            with _log(folder).open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=os.environ | more,
                        # Ctrl-C goes to this process alone, which then stops the others.
                        start_new_session=True,
                    )
                )
        yield processes
    finally:
        for process in processes:
            _kill(process)
        for process in processes:
            process.communicate()


def _wait(
    processes: Sequence[subprocess.Popen[bytes]],
    folders: Sequence[Path],
    limits: Limits,
    on_done: Callable[[int], None],
) -> None:
    """Return when all processes have ended, or when a limit has passed."""
    counts = [0] * len(processes)
    changed = time.monotonic()
    failed: float | None = None
    while any(process.poll() is None for process in processes):
        time.sleep(_POLL)
        now = time.monotonic()
        before, counts = counts, [len(list(folder.glob("*.done"))) for folder in folders]
        if counts != before:
            changed = now
            for count in range(min(before), min(counts)):
                on_done(count + 1)
        if failed is None and any(process.poll() for process in processes):
            failed = now
        if failed is not None and now - failed > limits.after_failure:
            return
        if now - changed > (limits.step if all(counts) else limits.start):
            return


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and, where there are sessions, what it has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _log(folder: Path) -> Path:
    return folder / "output"


def _last_lines(log: Path, count: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])
