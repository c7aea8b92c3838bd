"""Processes that are started together: they end whatever happens, and say how."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vicreg.tools.processes import End, Limits, run_together

QUICK = Limits(step=0.6, start=5.0, after_failure=0.3)
#: Writes its process number where the test reads it, then runs what follows.
_BEGIN = "import os, pathlib, sys, time; f = pathlib.Path(sys.argv[1]); "
_BEGIN += "(f / 'number').write_text(str(os.getpid())); "
_DONE = "(f / '{}.done').touch(); "


def run(tmp_path: Path, *programs: str, **options: Any) -> tuple[list[End], list[Path]]:
    """Run each program with a folder of its own as its argument."""
    folders = [tmp_path / str(place) for place in range(len(programs))]
    for folder in folders:
        folder.mkdir()
    commands = [
        [sys.executable, "-c", _BEGIN + program, str(folder)]
        for program, folder in zip(programs, folders, strict=True)
    ]
    environments = [{"PLACE": folder.name} for folder in folders]
    return run_together(commands, folders, environments, **options), folders


def is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def none_is_left(folders: list[Path]) -> bool:
    numbers = [int((folder / "number").read_text()) for folder in folders]
    return not any(is_running(number) for number in numbers)


def test_each_has_its_environment_status_and_output(tmp_path: Path) -> None:
    ends, _ = run(tmp_path, "print(os.environ['PLACE'])", "print('no'); sys.exit(3)")
    assert ends == [End(0, "0"), End(3, "no")]


def test_one_that_shows_nothing_is_stopped_with_the_others(tmp_path: Path) -> None:
    done = "".join(_DONE.format(number) for number in range(3))
    counts: list[int] = []
    began = time.monotonic()
    ends, folders = run(
        tmp_path,
        f"{done} time.sleep(60)",
        f"{_DONE.format(0)} time.sleep(60)",
        limits=QUICK,
        on_done=counts.append,
    )
    assert [end.status for end in ends] == [None, None]
    assert counts == [1]
    assert time.monotonic() - began < 10
    assert none_is_left(folders)


def test_one_at_work_may_take_longer_than_the_limit_of_a_step(tmp_path: Path) -> None:
    work = "[(time.sleep(0.25), (f / f'{k}.done').touch()) for k in range(6)]"
    ends, _ = run(tmp_path, work, limits=Limits(step=1.0, start=5.0))
    assert ends == [End(0, "")]


@pytest.mark.parametrize("failure", ["sys.exit(1)", "os.kill(os.getpid(), 9)"])
def test_after_a_failure_the_others_have_little_time(failure: str, tmp_path: Path) -> None:
    limits = Limits(step=60.0, after_failure=0.3)
    ends, folders = run(tmp_path, "time.sleep(60)", failure, limits=limits)
    assert ends[0].status is None
    assert ends[1].status in (1, -signal.SIGKILL)
    assert none_is_left(folders)


def test_none_is_left_after_an_interrupt(tmp_path: Path) -> None:
    def interrupted(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, _DONE.format(0) + "time.sleep(60)", limits=QUICK, on_done=interrupted)
    assert none_is_left([tmp_path / "0"])


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="there are no sessions")
def test_what_a_process_has_started_is_stopped_too(tmp_path: Path) -> None:
    child = "import subprocess; p = subprocess.Popen(['sleep', '60']); "
    child += "(f / 'child').write_text(str(p.pid)); "
    _, (folder,) = run(tmp_path, child + _DONE.format(0) + "time.sleep(60)", limits=QUICK)
    number = int((folder / "child").read_text())
    _wait_until(lambda: not is_running(number) or _is_zombie(number))


def _is_zombie(number: int) -> bool:
    status = Path(f"/proc/{number}/stat")
    return status.exists() and status.read_text().split()[2] == "Z"


def _wait_until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_they_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    program = "from vicreg.tools.processes import end_with_parent; end_with_parent(); "
    program += _DONE.format(0) + "time.sleep(60)"
    parent = f"""
import sys
from pathlib import Path
from vicreg.tools.processes import run_together
program = {_BEGIN + program!r}
run_together([[sys.executable, "-c", program, sys.argv[1]]], [Path(sys.argv[1])], [{{}}])
"""
    process = subprocess.Popen([sys.executable, "-c", parent, str(tmp_path)])
    _wait_until(lambda: (tmp_path / "0.done").exists())
    process.kill()
    process.wait()
    number = int((tmp_path / "number").read_text())
    _wait_until(lambda: not is_running(number) or _is_zombie(number))
