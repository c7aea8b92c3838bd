"""Start the ranks, and collect what they answer, or how they ended without."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vicreg.tools.backends import Floats
from vicreg.tools.processes import End, Limits, run_together
from vicreg.tools.verification.distributed.job import Job, read_answers, write_job

__all__ = ["Ran", "run_ranks"]

_WORKER = "vicreg.tools.verification.distributed.worker"
#: One thread each: there are as many processes as ranks.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Ran:
    """What some ranks did.

    Parameters
    ----------
    answers : list
        For each question that all ranks have answered, the answer of each rank.
    failure : str
        Why there are no more, as one line; empty if there are as many as questions.
    """

    answers: list[list[dict[str, Floats]]]
    failure: str


def run_ranks(
    job: Job, size: int, limits: Limits, on_done: Callable[[int], None] = lambda _: None
) -> Ran:
    """Run a job on a number of ranks.

    Parameters
    ----------
    job : Job
        The questions.
    size : int
        The number of ranks.
    limits : Limits
        The time that they have.
    on_done : callable
        Called with the number of questions that all ranks have answered.

    Returns
    -------
    Ran
        No process is left.
    """
    with tempfile.TemporaryDirectory(prefix="vicreg-") as name:
        file = Path(name) / "job.json"
        write_job(job, file)
        folders = [Path(name) / str(rank) for rank in range(size)]
        for folder in folders:
            folder.mkdir()
        # JAX has all ranks in one process.
        own = folders if job.backend == "torch" else folders[:1]
        ends = run_together(
            # -P: a module in the current directory must not stand in for one of Python's.
            [[sys.executable, "-P", "-m", _WORKER, str(file), str(folder)] for folder in own],
            own,
            [_ENVIRONMENT[job.backend](rank, size) for rank in range(len(own))],
            limits,
            lambda count: on_done(count - 1),
        )
        count = len(job.questions)
        of_ranks = [read_answers(folder, count) for folder in folders]
        answers = [list(each) for each in zip(*of_ranks, strict=False)]
        failure = (
            "" if len(answers) == count else _failure(ends, own, of_ranks[: len(own)], limits)
        )
    return Ran(answers, failure)


def _for_torch(rank: int, size: int) -> dict[str, str]:
    """Return the variables that ``torchrun`` sets, and gloo's network: this machine."""
    network = {} if sys.platform == "win32" else {"GLOO_SOCKET_IFNAME": _loopback()}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return _ONE_THREAD | network | {name: str(number) for name, number in ranks.items()}


def _loopback() -> str:
    return "lo0" if sys.platform == "darwin" else "lo"


def _for_jax(rank: int, size: int) -> dict[str, str]:
    return _ONE_THREAD | {
        "XLA_FLAGS": " ".join(
            [
                *os.environ.get("XLA_FLAGS", "").split(),
                f"--xla_force_host_platform_device_count={size}",
                "--xla_backend_optimization_level=0",  # each loss runs once or twice
            ]
        ),
        "JAX_ENABLE_X64": "1",
        "JAX_PLATFORMS": "cpu",
    }


_ENVIRONMENT = {"torch": _for_torch, "jax": _for_jax}


def _failure(
    ends: list[End], folders: list[Path], of_ranks: list[list[Any]], limits: Limits
) -> str:
    """Return what happened first: a process that died, an error, or ranks that hang.

    The arguments are by process, of which JAX has one.
    """
    errors = [_error(folder) for folder in folders]
    raised = sorted((e["time"], rank) for rank, e in enumerate(errors) if e is not None)
    died = [rank for rank, end in enumerate(ends) if end.status and errors[rank] is None]
    if died:
        return f"{_ranks(died, len(ends))} died ({_reason(ends[died[0]])})"
    if raised:
        line = errors[raised[0][1]]["line"]
        same = sorted(rank for _, rank in raised if errors[rank]["line"] == line)
        if len(same) == len(ends):
            return str(line)
        return f"{line}, on {_ranks(same, len(ends))}; the others waited in vain"
    absent = [rank for rank, folder in enumerate(folders) if not (folder / "ready.done").exists()]
    if absent:
        return f"{_ranks(absent, len(ends))} did not start within {limits.start:g} s"
    late = min(map(len, of_ranks))
    here = {rank: _place(folders[rank]) for rank, got in enumerate(of_ranks) if len(got) == late}
    if all(place.is_waiting for place in here.values()):
        causes, what = here, "wait for each other"
    else:  # others wait because of these
        causes = {rank: place for rank, place in here.items() if not place.is_waiting}
        what = "hang" if len(causes) > 1 else "hangs"
    names = {rank: f"rank {rank} " if len(ends) > 1 else "" for rank in causes}
    where = "; ".join(f"{names[rank]}in {place}" for rank, place in causes.items() if place.line)
    return f"{_ranks(list(causes), len(ends))} {what}: stopped after {limits.step:g} s" + (
        f" ({where})" if where else ""
    )


def _ranks(ranks: list[int], size: int) -> str:
    if len(ranks) == size:
        return "all ranks" if size > 1 else "the process"
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _error(folder: Path) -> Any:
    file = folder / "error.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _reason(end: End) -> str:
    status = end.status or 0
    try:
        how = f"signal {signal.Signals(-status).name}"
    except ValueError:
        how = f"exit status {status}"
    last = end.output.splitlines()[-1:]
    return ": ".join([how, *(_readable(line) for line in last)])


def _readable(line: str) -> str:
    """Return the line without what the runtime of C++ puts before a message."""
    return re.sub(r"^\s*what\(\):|\[enforce fail at [^]]*\]", "", line).strip()[:160]


class _Place(NamedTuple):
    """Where a rank is: a line of the user's code or "", and whether it waits for other ranks."""

    line: str
    is_waiting: bool

    def __str__(self) -> str:
        return self.line


_FRAME = re.compile(r'File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)')
_LIBRARIES = ("site-packages", "dist-packages", sysconfig.get_path("stdlib"))
_COLLECTIVES = str(Path("torch", "distributed"))


def _place(folder: Path) -> _Place:
    """Return where a rank was when it had been late for some time."""
    threads = (folder / "where").read_text(errors="replace").split("\n\n")
    frames = [*_FRAME.finditer(next((one for one in threads if "worker.py" in one), ""))]
    is_waiting = any(_COLLECTIVES in frame["file"] for frame in frames)
    not_theirs = (str(Path(__file__).parents[3]), "<", *_LIBRARIES)
    for frame in frames:
        if not any(part in frame["file"] for part in not_theirs):
            line = f"{frame['name']}, {Path(frame['file']).name}:{frame['line']}"
            return _Place(line, is_waiting)
    return _Place("", is_waiting=True)  # in the backward pass or in DistributedDataParallel
